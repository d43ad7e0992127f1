//! `acrlpd`: flags to command, error to exit code.

mod commands;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Instant;

use acrlpd::files::fault;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// A step makes and frees some hundred thousand small things, on one thread and on cubecl's: system allocators let these
/// two wait for each other (docs/GPU.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Fine-tunes π₀ with action-chunked actor-critic reinforcement learning.
///
/// Exit codes: 0 done; 1 a check failed; 2 usage or configuration; 3 bad input data; 4 device; 5 checkpoint;
/// 130 and 143 stopped by a signal, after saving.
#[derive(Parser)]
#[command(
    name = "acrlpd",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train on a LeRobot dataset.
    Train(commands::train::Args),
    /// Count what a step costs: FLOPs, bytes, memory, per phase; needs no device.
    Plan(commands::plan::Args),
    /// Hold a device to golden fixtures: a folder of groups, or one group.
    Verify(commands::verify::Args),
    /// List the devices of this machine and check the chosen one.
    Doctor(commands::doctor::Args),
    /// Measure a device.
    #[command(subcommand)]
    Bench(commands::bench::Command),
    /// Look at a dataset.
    #[command(subcommand)]
    Data(commands::data::Command),
    /// Look at weights and checkpoints.
    #[command(subcommand)]
    Checkpoint(commands::checkpoint::Command),
    /// Sample actions of a checkpoint for frames of a dataset, and compare them with the recorded ones.
    Sample(commands::sample::Args),
    /// Score a checkpoint on recorded episodes: action errors by joint, flow loss, what critics make of good and bad ones.
    Eval(commands::eval::Args),
    /// Show the numbers of runs, with charts, as one HTML page.
    Report(commands::report::Args),
    /// Show a configuration.
    #[command(subcommand)]
    Config(commands::config::Command),
    /// Print the completions of a shell.
    Completions(commands::completions::Completions),
    /// Print the man pages, or write them to a folder.
    Man(commands::completions::ManPages),
}

fn main() -> ExitCode {
    let started = Instant::now();
    let cli = match Cli::try_parse_from(with_dashes(std::env::args_os())) {
        Ok(cli) => cli,
        // Help and version are answers, not mistakes.
        Err(asked) if !asked.use_stderr() || asked.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            asked.exit()
        }
        Err(wrong) => return usage_error(&commands::usage::sentence(&wrong)),
    };
    let debug = matches!(&cli.command, Command::Train(args) if args.debug);
    let level = if debug {
        "acrlpd=debug,warn"
    } else {
        "acrlpd=info,error"
    };
    let filter = match std::env::var_os("ACRLPD_LOG") {
        None => EnvFilter::new(level),
        Some(wanted) => match EnvFilter::builder().parse(wanted.to_string_lossy()) {
            Ok(filter) => filter,
            Err(e) => {
                return usage_error(&format!(
                    "ACRLPD_LOG {wanted:?}: {e}; write e.g. ACRLPD_LOG=acrlpd=debug"
                ));
            }
        },
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
        .with_target(false)
        .without_time()
        .init();
    if let Ok(script) = std::env::var(fault::VARIABLE) {
        match script.parse::<fault::Script>() {
            Ok(script) => fault::watch(script),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(2);
            }
        }
    }
    let done = match cli.command {
        Command::Train(args) => commands::train::run(args, started),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Bench(command) => commands::bench::run(&command),
        Command::Data(command) => commands::data::run(&command),
        Command::Checkpoint(command) => commands::checkpoint::run(&command),
        Command::Sample(args) => commands::sample::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Report(args) => commands::report::run(args),
        Command::Config(command) => commands::config::run(&command),
        Command::Completions(args) => commands::completions::completions(&args),
        Command::Man(args) => commands::completions::man(&args),
    };
    acrlpd::gpu::keep_kernels();
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {}", commands::sentence(&error));
            ExitCode::from(commands::exit_code(&error))
        }
    }
}

fn usage_error(sentence: &str) -> ExitCode {
    eprintln!("error: {sentence}");
    ExitCode::from(commands::USAGE)
}

/// Flags may be written with underscores: `--batch_size` is `--batch-size`.
fn with_dashes(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut plain = false;
    let dashed = |arg: OsString| {
        plain |= arg == "--";
        match arg.to_str().and_then(|arg| arg.strip_prefix("--")) {
            Some(flag) if !plain => {
                let (name, value) = match flag.split_once('=') {
                    Some((name, value)) => (name, format!("={value}")),
                    None => (flag, String::new()),
                };
                format!("--{}{value}", name.replace('_', "-")).into()
            }
            _ => arg,
        }
    };
    args.map(dashed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn underscores_become_dashes_in_names_only() {
        let args = ["train", "--exp_name=a_b", "--pi0_lr", "--", "--x_y"].map(OsString::from);
        let want = ["train", "--exp-name=a_b", "--pi0-lr", "--", "--x_y"];
        assert_eq!(with_dashes(args.into_iter()), want);
    }
}
