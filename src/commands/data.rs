//! `acrlpd data`: datasets.

use std::path::PathBuf;

use acrlpd::data::export::{self, Delta};
use acrlpd::data::{self, NormStats, inspect::Summary};
use indicatif::ProgressBar;

use super::Outcome;
use super::flags::ConfigFlags;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Episodes, features, value ranges, labels.
    Inspect {
        path: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Raw windows around frames, as safetensors: numbers, padding flags, pictures and the planes of videos.
    Export {
        path: PathBuf,
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

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Inspect { path, json } => {
            let summary = Summary::of(data::open(path)?.as_ref())?;
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
            let dataset = data::open(path)?;
            let mut tensors = export::windows(dataset.as_ref(), index, delta)?;
            if *columns {
                tensors.extend(export::columns(dataset.as_ref())?);
            }
            export::write(out, &tensors)?;
            println!("wrote {} ({} tensors)", out.display(), tensors.len());
        }
        Command::NormStats { config, out } => {
            let config = config.load(&[])?;
            let dataset = data::open(config.dataset_path()?)?;
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
