//! What can go wrong between us and a device.

use thiserror::Error;

/// A device error. Once one has happened the [`Gpu`](super::Gpu) refuses all further work and every read reports it.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum GpuError {
    /// `--device` named something this machine does not have.
    #[error("device {device} is not available: {why}; {fix}")]
    Unavailable { device: String, why: String, fix: String },
    /// The device does not store or compute this number format.
    #[error("{op} needs {dtype} storage, which {device} does not have; use float32 or another device")]
    Dtype {
        op: &'static str,
        dtype: &'static str,
        device: String,
    },
    /// One operand of a launch is larger than one binding of this device may be.
    #[error("{op} binds {bytes} bytes in one operand, but {device} allows {limit}; the operand must be split")]
    BindingTooLarge {
        op: &'static str,
        bytes: u64,
        limit: u64,
        device: String,
    },
    /// The launch geometry is outside what the device takes.
    #[error("{op} asks for {what} {asked}, but {device} allows {limit}")]
    Geometry {
        op: &'static str,
        what: &'static str,
        asked: u64,
        limit: u64,
        device: String,
    },
    /// Device memory is exhausted.
    #[error(
        "{device} has no room for {bytes} more bytes in {arena} ({used} bytes in use); use a smaller micro-batch, \
         gradient accumulation or memory.preset"
    )]
    OutOfMemory {
        arena: String,
        bytes: u64,
        used: u64,
        device: String,
    },
    /// The step cannot fit, which is known before anything is allocated.
    #[error("a step needs {}, but only {} of {device} may be used; {advice}", gigabytes(.needs), gigabytes(.room))]
    TooLarge {
        device: String,
        needs: u64,
        room: u64,
        /// What to do about it.
        advice: String,
    },
    /// More rows of the prompt table would learn than there is memory for.
    #[error(
        "prompts have more than the {rows} different tokens that can learn; raise memory.prompt_rows, or set \
         memory.prompt_states = \"dense\""
    )]
    PromptRows { rows: usize },
    /// A kernel did not compile, or the driver refused a launch.
    #[error("{device} failed while running the step: {why}")]
    Launch { device: String, why: String },
    /// The device, its driver or its compiler failed for a reason that is known.
    #[error("{device} failed: {why}; {fix}")]
    Failed { device: String, why: String, fix: String },
    /// The thread that feeds the device panicked; its work was dropped.
    #[error("the device thread of {device} stopped: {why}")]
    DeviceThread { device: String, why: String },
}

fn gigabytes(bytes: &u64) -> String {
    format!("{:.3} GB", *bytes as f64 / 1e9)
}

/// Shorthand for results of this room.
pub type Result<T, E = GpuError> = std::result::Result<T, E>;
