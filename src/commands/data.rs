//! `acrlpd data`: datasets.

use std::path::PathBuf;

use acrlpd::data::check::{Finding, Settings};
use acrlpd::data::export::{self, Delta};
use acrlpd::data::{self, Column, DataError, NormStats, Place, histograms, inspect::Summary, sheet};
use acrlpd::files;
use anyhow::Context;
use indicatif::ProgressBar;

use super::Outcome;
use super::flags::ConfigFlags;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Episodes, features, value ranges, labels.
    Inspect {
        /// Its folder, or its public name.
        #[arg(value_name = "DIR|NAME")]
        path: String,
        /// Write the pictures of one episode as a contact sheet, a PNG.
        #[arg(long, value_name = "FILE")]
        contact_sheet: Option<PathBuf>,
        /// The episode on it.
        #[arg(long, value_name = "N", default_value_t = 0, requires = "contact_sheet")]
        episode: usize,
        /// Write a histogram of each coordinate of a feature, an SVG.
        #[arg(long, value_name = "FILE")]
        histograms: Option<PathBuf>,
        /// The feature they are of.
        #[arg(long, value_name = "KEY", default_value = "action", requires = "histograms")]
        of: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Find what would spoil a training run: broken numbers, times, pictures, episodes. Exit code 1 if there is anything.
    Check(CheckArgs),
    /// Raw windows around frames, as safetensors: numbers, padding flags, pictures and the planes of videos.
    Export {
        /// Its folder, or its public name.
        #[arg(value_name = "DIR|NAME")]
        path: String,
        /// The frames, numbered over the whole dataset.
        #[arg(long, value_name = "I,J,…", value_delimiter = ',', required = true)]
        index: Vec<usize>,
        /// The frames of a feature (or of all whose names begin with KEY and a dot) relative to each of them, such as
        /// action=0..9 or observation=0,10; without any, all features at the frame itself.
        #[arg(long, value_name = "KEY=FRAMES")]
        delta: Vec<Delta>,
        /// Add the columns of all frames.
        #[arg(long)]
        columns: bool,
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Compute the normalisation statistics a configuration trains with, as openpi's norm_stats.json.
    NormStats {
        #[command(flatten)]
        config: Box<ConfigFlags>,
        /// Where to write them.
        #[arg(long, value_name = "FILE", default_value = "norm_stats.json")]
        out: PathBuf,
    },
}

#[derive(clap::Args)]
pub struct CheckArgs {
    /// Its folder, or its public name.
    #[arg(value_name = "DIR|NAME")]
    path: String,
    /// Steps of a chunk: shorter episodes are found.
    #[arg(long, default_value_t = 50, value_name = "H")]
    horizon: usize,
    /// How far beyond the 1 % and 99 % quantiles values may lie, in units of the distance between the two.
    #[arg(long, default_value_t = 5.0, value_name = "K")]
    reach: f64,
    /// Dataset feature of the state.
    #[arg(long, default_value = "observation.state", value_name = "KEY")]
    state_key: String,
    /// Dataset feature of the action.
    #[arg(long, default_value = "action", value_name = "KEY")]
    action_key: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Check(args) => return check(args),
        Command::Inspect {
            path,
            contact_sheet,
            episode,
            histograms,
            of,
            json,
        } => {
            let dataset = data::open(Place::of(path).folder()?)?;
            if let Some(file) = contact_sheet {
                let count = dataset.episodes().len();
                let chosen = dataset.episodes().get(*episode);
                let chosen = chosen.with_context(|| {
                    format!(
                        "--episode {episode} does not exist: there are {count}; give one from 0 to {}",
                        count - 1
                    )
                })?;
                let picture = sheet::png(&sheet::sheet(dataset.as_ref(), chosen)?)?;
                files::replace(file, &picture).map_err(DataError::File)?;
            }
            if let Some(file) = histograms {
                let column = &dataset.columns()[Column::find(dataset.as_ref(), of)?];
                files::replace(file, histograms::svg(column).as_bytes()).map_err(DataError::File)?;
            }
            let summary = Summary::of(dataset.as_ref())?;
            if *json {
                println!("{}", serde_json::to_string_pretty(&summary)?);
            } else {
                print!("{summary}");
            }
        }
        Command::Export {
            path,
            index,
            delta,
            columns,
            out,
        } => {
            let dataset = data::open(Place::of(path).folder()?)?;
            let mut tensors = export::windows(dataset.as_ref(), index, delta)?;
            if *columns {
                tensors.extend(export::columns(dataset.as_ref())?);
            }
            export::write(out, &tensors)?;
            println!("wrote {} ({} tensors)", out.display(), tensors.len());
        }
        Command::NormStats { config, out } => {
            let config = config.load(&[])?;
            let dataset = data::open_all(&config.datasets()?)?;
            let bar = ProgressBar::new(dataset.info().total_frames as u64);
            let stats = NormStats::compute(dataset.as_ref(), &config.data_spec(), |done, _| {
                bar.set_position(done as u64);
            })?;
            bar.finish_and_clear();
            stats.write(out)?;
            println!("wrote {}", out.display());
        }
    }
    Ok(0)
}

/// Findings of one kind that are listed; the others are counted.
const LISTED: usize = 10;

fn check(args: &CheckArgs) -> Outcome {
    let dataset = data::open(Place::of(&args.path).folder()?)?;
    let settings = Settings {
        state_key: args.state_key.clone(),
        action_key: args.action_key.clone(),
        horizon: args.horizon,
        reach: args.reach,
    };
    let bar = ProgressBar::new(dataset.episodes().len() as u64);
    let found = data::check::check(dataset.as_ref(), &settings, |done, _| bar.set_position(done as u64));
    bar.finish_and_clear();
    if args.json {
        println!("{:#}", serde_json::json!({ "findings": found }));
    } else {
        for alike in found.chunk_by(|a, b| a.check == b.check) {
            for Finding { check, episode, what } in alike.iter().take(LISTED) {
                match episode {
                    Some(episode) => println!("{check:<8} episode {episode}: {what}"),
                    None => println!("{check:<8} {what}"),
                }
            }
            if alike.len() > LISTED {
                println!("{:<8} … and {} more", alike[0].check, alike.len() - LISTED);
            }
        }
        let (episodes, frames) = (dataset.episodes().len(), dataset.info().total_frames);
        println!("{} findings in {episodes} episodes, {frames} frames", found.len());
    }
    Ok(if found.is_empty() { 0 } else { super::FAILED })
}
