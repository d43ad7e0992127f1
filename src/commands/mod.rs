//! One file a sub-command. They read flags, call the library and print; nothing is computed here.

pub mod bench;
mod bench_kernels;
mod bench_kernels_show;
mod bench_loader;
mod bench_step;
mod bench_step_show;
pub mod checkpoint;
pub mod completions;
pub mod config;
mod console;
pub mod data;
pub mod doctor;
pub mod eval;
mod flags;
pub mod plan;
mod policy;
pub mod report;
pub mod sample;
mod table;
pub mod train;
pub mod usage;
pub mod verify;

use std::io::{ErrorKind, Write};

use acrlpd::bench::ResultsError;
use acrlpd::checkpoint::CheckpointError;
use acrlpd::config::ConfigError;
use acrlpd::data::DataError;
use acrlpd::gpu::GpuError;
use acrlpd::report::ReportError;
use acrlpd::train::TrainError;
use acrlpd::verify::VerifyError;

/// Prints a whole text. A reader that has seen enough (`| head`) is no mistake.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(anyhow::Error::from(e).context("stdout cannot be written")),
        _ => Ok(()),
    }
}

/// What a command returns: its exit code, or why it failed.
pub type Outcome = anyhow::Result<u8>;

/// A check that failed.
pub const FAILED: u8 = 1;
/// Flags that cannot be used.
pub const USAGE: u8 = 2;

/// An error in one sentence: its causes are added unless it speaks of them itself.
pub fn sentence(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .fold(String::new(), |told, cause| match told.is_empty() {
            true => cause,
            false if told.contains(&cause) => told,
            false => format!("{told}: {cause}"),
        })
}

/// The documented exit code of an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(e) = cause.downcast_ref::<TrainError>() {
            return e.exit_code();
        }
        if cause.is::<ConfigError>() {
            return USAGE;
        }
        if let Some(e) = cause.downcast_ref::<DataError>() {
            return if matches!(e, DataError::File(_)) { 5 } else { 3 };
        }
        if let Some(e) = cause.downcast_ref::<VerifyError>() {
            return if matches!(e, VerifyError::Gpu(_)) { 4 } else { 3 };
        }
        if let Some(e) = cause.downcast_ref::<ReportError>() {
            return e.exit_code();
        }
        if let Some(e) = cause.downcast_ref::<ResultsError>() {
            return e.exit_code();
        }
        if cause.is::<GpuError>() {
            return 4;
        }
        if cause.is::<CheckpointError>() {
            return 5;
        }
    }
    USAGE
}
