//! `acrlpd checkpoint`: weights and checkpoints on disk.

use std::io::IsTerminal;
use std::path::{Component, Path, PathBuf};

use acrlpd::checkpoint::convert::{Converted, LowRank, Names, Target, convert};
use acrlpd::checkpoint::norms::{RoomDistance, RoomNorm, distances, networks, norms};
use acrlpd::checkpoint::{self, Weights, state};
use acrlpd::config::Config;
use acrlpd::data::Place;
use acrlpd::files;
use anyhow::bail;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use safetensors::Dtype;
use serde::Serialize;

use super::Outcome;
use super::table::{bytes, number, table};

#[derive(clap::Subcommand)]
pub enum Command {
    /// What is in a checkpoint, a run's folder or weights of other programs.
    Inspect {
        path: PathBuf,
        /// Another checkpoint: which keys of the configurations differ, and how far the weights are apart.
        #[arg(long, value_name = "OTHER")]
        diff: Option<PathBuf>,
        /// Do not read the weights: no norms.
        #[arg(long, conflicts_with = "diff")]
        quick: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Convert weights of any kind that can be read to safetensors with openpi's names, types kept.
    Import {
        /// Weights: a file, a folder, an Orbax checkpoint of the JAX model, a checkpoint of this program.
        path: PathBuf,
        /// A new FILE.safetensors, or a new folder, in which 5 GB are the most of a file.
        #[arg(long)]
        out: PathBuf,
        /// Write low-rank adapters into the matrices they are for, with α = r, as openpi's models have it.
        #[arg(long)]
        merge_lora: bool,
    },
    /// Write the policy of a checkpoint for another program.
    Export(Export),
}

#[derive(clap::Args)]
pub struct Export {
    /// A checkpoint (…/STEP), or a run's folder (its newest).
    checkpoint: PathBuf,
    /// Who is to read it.
    #[arg(long)]
    to: Program,
    /// A new folder.
    #[arg(long)]
    out: PathBuf,
    /// The averaged weights, which is the default if the checkpoint has them.
    #[arg(long, conflicts_with = "no_ema")]
    ema: bool,
    /// The weights as they are.
    #[arg(long)]
    no_ema: bool,
    #[arg(long, default_value = "float32")]
    dtype: Type,
    /// Most bytes of a file, such as 5GB; without it one file, which is all that the loaders of openpi and lerobot read.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_shard_size: Option<u64>,
    /// Name of the folder of norm_stats.json in assets/: `asset_id` of openpi's configuration; without it, the name of
    /// the dataset.
    #[arg(long, value_name = "ID")]
    asset_id: Option<String>,
    /// Write the low-rank adapters alone, under our names; without it they are merged into the matrices they are for,
    /// because neither program's PyTorch model has adapters.
    #[arg(long)]
    adapters_only: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Program {
    Openpi,
    Lerobot,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Type {
    Float32,
    Bfloat16,
    Float16,
}

impl Type {
    fn stored(self) -> Dtype {
        match self {
            Type::Float32 => Dtype::F32,
            Type::Bfloat16 => Dtype::BF16,
            Type::Float16 => Dtype::F16,
        }
    }
}

/// Most bytes of a file of imported weights.
const SHARD: u64 = 5_000_000_000;

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Inspect {
            path,
            diff,
            quick,
            json,
        } => inspect(path, diff.as_deref(), *quick, *json),
        Command::Import { path, out, merge_lora } => import(path, out, *merge_lora),
        Command::Export(args) => export(args),
    }
}

/// `5GB`, `200 MB`, `1GiB`, `1000000`.
fn size(text: &str) -> Result<u64, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let scale = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "mib" => (1u64 << 20) as f64,
        "gib" => (1u64 << 30) as f64,
        _ => return Err("give a number with a unit, such as 5GB".into()),
    };
    let number: f64 = digits.parse().map_err(|_| "give a number with a unit, such as 5GB")?;
    match number * scale {
        n if n >= 1.0 => Ok(n as u64),
        _ => Err("give at least one byte".into()),
    }
}

/// A bar on stderr, if that is a terminal.
fn bar(what: &'static str) -> impl FnMut(usize, usize) {
    let bar = ProgressBar::new(0).with_prefix(what);
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {percent} % · {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    move |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        if done == all {
            bar.finish_and_clear();
        }
    }
}

fn import(path: &Path, out: &Path, merge: bool) -> Outcome {
    let weights = Weights::open(path)?;
    let lora = match merge {
        true => LowRank::Merge(weights.dims()?.lora),
        false => LowRank::Keep,
    };
    let target = Target {
        path: out,
        names: Names::Plain,
        dtype: None,
        lora,
        shard: SHARD,
        texts: &[],
    };
    tell(&convert(&weights, &target, bar("importing"))?);
    Ok(0)
}

fn export(args: &Export) -> Outcome {
    let folder = checkpoint::resolve(&args.checkpoint)?;
    let saved = checkpoint::open(&folder)?;
    let averaged = args.ema || (saved.has(state::EMA) && !args.no_ema);
    let name = if averaged { state::EMA } else { state::PARAMS };
    let weights = saved.tensors(name)?;
    let config = Config::parse(&saved.config()?, folder.join(state::CONFIG))?;
    let asset = match &args.asset_id {
        Some(id) => id.clone(),
        // openpi's default is the dataset's public name.
        None => match (config.data.repo_id.clone(), config.datasets()?.swap_remove(0)) {
            (Some(name), _) | (None, Place::Name(name)) => name,
            (None, Place::Folder(path)) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        },
    };
    let inside = |part: Component| matches!(part, Component::Normal(_));
    if asset.is_empty() || !Path::new(&asset).components().all(inside) {
        bail!("--asset-id `{asset}` is not the name of a folder; give one such as my_dataset");
    }
    let stats = files::read(&saved.file(state::NORM_STATS)?)?;
    let target = Target {
        path: &args.out,
        names: match args.to {
            _ if args.adapters_only => Names::Plain,
            Program::Openpi => Names::Openpi,
            Program::Lerobot => Names::Lerobot,
        },
        dtype: Some(args.dtype.stored()),
        lora: match args.adapters_only {
            true => LowRank::Only,
            false => LowRank::Merge(config.pi0_dims().lora),
        },
        shard: args.max_shard_size.unwrap_or(u64::MAX),
        texts: &[(Path::new("assets").join(asset).join(state::NORM_STATS), stats)],
    };
    let converted = convert(&weights, &target, bar("exporting"))?;
    let which = if averaged { "averaged weights" } else { "weights" };
    println!("{which} of step {} ({name})", saved.state().step);
    tell(&converted);
    Ok(0)
}

fn tell(done: &Converted) {
    const LISTED: usize = 10;
    println!(
        "{} tensors, {:.1} M parameters, {}",
        done.tensors,
        done.parameters as f64 / 1e6,
        bytes(done.bytes)
    );
    for file in &done.files {
        println!("wrote {}", file.display());
    }
    if !done.left.is_empty() {
        let more = if done.left.len() > LISTED { ", …" } else { "" };
        let names = done.left[..done.left.len().min(LISTED)].join("`, `");
        println!(
            "{} tensors that π₀ does not have were left out: `{names}`{more}",
            done.left.len()
        );
    }
}

/// What `inspect` prints as JSON.
#[derive(Serialize)]
struct Inspected<'a> {
    #[serde(flatten)]
    summary: &'a checkpoint::Summary,
    rooms: Option<Vec<RoomNorm>>,
    diff: Option<Diff>,
}

#[derive(Serialize)]
struct Diff {
    other: PathBuf,
    /// Key, here, there; none if one of the two has no configuration.
    config: Option<Vec<(String, String, String)>>,
    rooms: Vec<RoomDistance>,
}

fn inspect(path: &Path, diff: Option<&Path>, quick: bool, json: bool) -> Outcome {
    let summary = checkpoint::inspect(path)?;
    let usable = summary.problem.is_none() && !quick;
    let own = if usable { networks(path)? } else { Vec::new() };
    let rooms = usable.then(|| norms(&own, bar("norms"))).transpose()?;
    let diff = match diff {
        Some(other) => {
            let theirs = networks(other)?;
            let configs = configuration(path)?.zip(configuration(other)?);
            Some(Diff {
                other: other.to_owned(),
                config: configs.map(|(ours, theirs)| ours.differences(&theirs)),
                rooms: distances(&own, &theirs, bar("comparing"))?,
            })
        }
        None => None,
    };
    if json {
        let all = Inspected {
            summary: &summary,
            rooms,
            diff,
        };
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(0);
    }
    println!("{}", summary.to_string().trim_end());
    if let Some(rooms) = rooms.filter(|rooms| !rooms.is_empty()) {
        let mut t = table(&["room", "parameters", "L2 norm"], 1);
        for room in rooms {
            t.add_row([room.room.to_owned(), room.parameters.to_string(), number(room.l2)]);
        }
        println!("\n{t}");
    }
    if let Some(diff) = diff {
        show(&diff);
    }
    Ok(0)
}

/// The configuration of a checkpoint; none of bare weights.
fn configuration(path: &Path) -> anyhow::Result<Option<Config>> {
    let Ok(folder) = checkpoint::resolve(path) else {
        return Ok(None);
    };
    let file = folder.join(state::CONFIG);
    match file.is_file() {
        true => Ok(Some(Config::parse(&files::read(&file)?, &file)?)),
        false => Ok(None),
    }
}

fn show(diff: &Diff) {
    println!("\nagainst {}", diff.other.display());
    match &diff.config {
        None => println!("no configurations to compare"),
        Some(keys) if keys.is_empty() => println!("the configurations are equal"),
        Some(keys) => {
            let mut t = table(&["key", "here", "there"], 3);
            for (key, here, there) in keys {
                t.add_row([key, here, there]);
            }
            println!("{t}");
        }
    }
    let mut t = table(
        &["room", "parameters", "relative L2 difference", "unmatched tensors"],
        1,
    );
    for room in &diff.rooms {
        t.add_row([
            room.room.to_owned(),
            room.parameters.to_string(),
            number(room.relative_l2),
            room.unmatched.to_string(),
        ]);
    }
    println!("\n{t}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_units() {
        assert_eq!(
            ["5GB", "1.5 MB", "12", "1GiB"].map(size),
            [Ok(5_000_000_000), Ok(1_500_000), Ok(12), Ok(1 << 30)]
        );
        for wrong in ["", "GB", "5 apples", "0", "-1GB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
