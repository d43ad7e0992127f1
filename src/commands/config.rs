//! `acrlpd config`: what a configuration says once everything is applied.

use acrlpd::config::{Config, presets};

use super::Outcome;
use super::flags::Changes;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Print the effective configuration, and where each value comes from.
    Show(Box<Show>),
    /// Print the JSON Schema of configurations.
    Schema,
    /// List all keys.
    Keys,
    /// List the presets.
    Presets,
}

#[derive(clap::Args)]
pub struct Show {
    /// Preset, or a .toml or .json file.
    #[arg(value_name = "NAME|FILE", required_unless_present = "config")]
    name: Option<String>,
    /// The same as a flag.
    #[arg(long, value_name = "NAME|FILE", conflicts_with = "name")]
    config: Option<String>,
    #[command(flatten)]
    changes: Changes,
    /// Print JSON that can be loaded again.
    #[arg(long, conflicts_with = "toml")]
    json: bool,
    /// Print TOML without comments.
    #[arg(long)]
    toml: bool,
}

pub fn run(command: &Command) -> Outcome {
    let lines = |words: Vec<String>| words.join("\n") + "\n";
    let text = match command {
        Command::Show(args) => show(args)?,
        Command::Schema => json(&Config::schema())?,
        Command::Keys => lines(Config::keys()),
        Command::Presets => lines(presets::PRESETS.iter().map(|preset| preset.0.to_owned()).collect()),
    };
    super::print(&text)?;
    Ok(0)
}

fn show(args: &Show) -> anyhow::Result<String> {
    let name = args.name.as_ref().or(args.config.as_ref()).map_or("", String::as_str);
    let config = args.changes.load(name, &[])?;
    Ok(match (args.json, args.toml) {
        (true, _) => json(&config.to_json())?,
        (false, true) => config.to_toml(),
        (false, false) => config.show(),
    })
}

fn json(value: &serde_json::Value) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
