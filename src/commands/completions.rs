//! `acrlpd completions` and `acrlpd man`: made from the flags themselves.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Outcome;
use crate::Cli;

#[derive(clap::Args)]
pub struct Completions {
    /// Shell to complete in.
    shell: Shell,
}

#[derive(clap::Args)]
pub struct ManPages {
    /// Folder for one page a command (acrlpd-train.1); without it all pages go to stdout.
    dir: Option<PathBuf>,
}

pub fn completions(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "acrlpd", &mut script);
    super::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

pub fn man(args: &ManPages) -> Outcome {
    let Some(dir) = &args.dir else {
        let mut command = Cli::command();
        command.build();
        let mut text = Vec::new();
        pages(command, &mut text)?;
        super::print(&String::from_utf8_lossy(&text))?;
        return Ok(0);
    };
    std::fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("the man pages cannot be written to `{}`", dir.display()))?;
    Ok(0)
}

/// A command's page, then those of its sub-commands.
fn pages(command: Command, to: &mut Vec<u8>) -> std::io::Result<()> {
    let inner: Vec<Command> = command.get_subcommands().cloned().collect();
    Man::new(command).render(to)?;
    inner.into_iter().try_for_each(|command| pages(command, to))
}
