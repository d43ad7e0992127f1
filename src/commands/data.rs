//! `acrlpd data`: datasets.

use std::path::PathBuf;

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
