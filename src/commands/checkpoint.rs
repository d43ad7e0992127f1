//! `acrlpd checkpoint`: weights and checkpoints on disk.

use std::path::PathBuf;

use acrlpd::checkpoint;

use super::Outcome;

#[derive(clap::Subcommand)]
pub enum Command {
    /// What is in a checkpoint, a run's folder or a weights file.
    Inspect {
        path: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

pub fn run(command: &Command) -> Outcome {
    let Command::Inspect { path, json } = command;
    let summary = checkpoint::inspect(path)?;
    if *json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print!("{summary}");
    }
    Ok(0)
}
