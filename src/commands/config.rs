//! `acrlpd config`: what a configuration says once everything is applied.

use acrlpd::config::{Config, presets};

use super::Outcome;
use super::flags::ConfigFlags;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Print the effective configuration as TOML.
    Show(Box<ConfigFlags>),
    /// List all keys.
    Keys,
    /// List the presets.
    Presets,
}

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Show(flags) => print!("{}", flags.load(&[])?.to_toml()),
        Command::Keys => Config::keys().iter().for_each(|key| println!("{key}")),
        Command::Presets => presets::PRESETS.iter().for_each(|preset| println!("{}", preset.0)),
    }
    Ok(0)
}
