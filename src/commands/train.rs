//! `acrlpd train`.

use std::path::PathBuf;
use std::time::Instant;

use acrlpd::train::signals::{self, Stop};
use acrlpd::train::{self, Options, Start, TrainError};
use anyhow::Context;

use super::Outcome;
use super::console::Console;
use super::flags::{ConfigFlags, DeviceFlag};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Names the run: its folder is CHECKPOINT_DIR/CONFIG/EXP_NAME.
    #[arg(long, value_name = "NAME")]
    exp_name: String,
    #[command(flatten)]
    device: DeviceFlag,
    /// Share of the device's memory that the step may need.
    #[arg(long, default_value_t = 0.9, value_name = "SHARE")]
    memory_fraction: f64,
    /// Root of all checkpoints.
    #[arg(long, value_name = "DIR")]
    checkpoint_dir: Option<PathBuf>,
    /// Go on from the newest checkpoint of this run, if there is one.
    #[arg(long, conflicts_with = "overwrite")]
    resume: bool,
    /// Delete the checkpoints of this run and start anew.
    #[arg(long)]
    overwrite: bool,
    /// Steps between two rows of metrics.
    #[arg(long, value_name = "N")]
    log_interval: Option<String>,
    /// Steps between two checkpoints.
    #[arg(long, value_name = "N")]
    save_interval: Option<String>,
    /// Steps between two evaluations on held-out episodes; 0 for none.
    #[arg(long, value_name = "N")]
    eval_interval: Option<String>,
    /// Check what every launch writes, name the first number that is not finite, log in detail, a row for every step;
    /// several times slower.
    #[arg(long)]
    pub debug: bool,
    /// Prepare everything, do one step, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write no run for `wandb sync`.
    #[arg(long)]
    no_wandb: bool,
    /// Project of the run at wandb.
    #[arg(long, value_name = "NAME", default_value = "acrlpd")]
    wandb_project: String,
}

pub fn run(args: Args, started: Instant) -> Outcome {
    let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    if args.exp_name.is_empty() || args.exp_name.starts_with('.') || !args.exp_name.chars().all(plain) {
        anyhow::bail!(
            "--exp-name {:?} names a folder: use letters, digits, `-`, `_`, `.`, and no `.` in front",
            args.exp_name
        );
    }
    if !(args.memory_fraction > 0.0 && args.memory_fraction <= 1.0) {
        anyhow::bail!("--memory-fraction {} is not a share in (0, 1]", args.memory_fraction);
    }
    let log_interval = if args.debug {
        Some("1".to_owned())
    } else {
        args.log_interval
    };
    let config = args.config.load(&[
        ("checkpoint_dir", args.checkpoint_dir.map(|p| p.display().to_string())),
        ("log_interval", log_interval),
        ("save_interval", args.save_interval),
        ("eval_interval", args.eval_interval),
    ])?;
    let start = match (args.resume, args.overwrite) {
        (true, _) => Start::Resume,
        (_, true) => Start::Overwrite,
        _ => Start::Fresh,
    };
    let options = Options {
        config,
        exp_name: args.exp_name,
        start,
        device: args.device.device,
        memory_fraction: args.memory_fraction,
        dry_run: args.dry_run,
        watch: args.debug,
        wandb: !args.no_wandb,
        wandb_project: args.wandb_project,
        started,
    };
    let stop = Stop::listen().context("the signal handlers cannot be installed")?;
    let mut console = Console::default();
    let finish = train::run(&options, &stop, &mut console);
    let finish = finish.map_err(|e: TrainError| anyhow::Error::from(e))?;
    console.summary(&finish);
    Ok(signals::exit_code(finish.signal))
}
