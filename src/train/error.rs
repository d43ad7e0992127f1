//! Why a run ends before its time.

use std::path::PathBuf;

use thiserror::Error;

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::files::FileError;
use crate::gpu::GpuError;

/// An error of a run. Each message is one sentence: what, where, why, what to do.
#[derive(Debug, Error)]
pub enum TrainError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Device(#[from] GpuError),
    #[error("around step {step}, {source}; the newest checkpoint is {kept}: go on from it with --resume")]
    Step { step: u64, source: GpuError, kept: String },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "`{path}` already holds checkpoints up to step {step}: give --resume to go on, --overwrite to start anew and \
         delete them, or another --exp-name"
    )]
    Exists { path: PathBuf, step: u64 },
    #[error("{0}")]
    Mismatch(String),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` is being trained by {holder}: wait until that ends, stop it, or give another --exp-name")]
    Locked { path: PathBuf, holder: String },
    #[error("step {step} could not be saved and is lost: {source}; the newest checkpoint is {kept}")]
    Unsaved {
        step: u64,
        source: Box<CheckpointError>,
        kept: String,
    },
    #[error(
        "{count} steps in a row (up to step {step}) gave gradients {part} that are not finite and changed nothing: \
         {diagnosis}; the newest checkpoint is {kept}: go on from it or an earlier one with a lower learning rate, or look \
         at the data{dump}"
    )]
    NotFinite {
        step: u64,
        count: u32,
        part: &'static str,
        /// Where numbers stopped being finite.
        diagnosis: String,
        /// How to do it again, if it could be kept.
        dump: String,
        kept: String,
    },
    #[error("`{path}` is not a dump of a step: {why}; give one that a run has left in its folder `dumps`")]
    Dump { path: PathBuf, why: String },
}

impl TrainError {
    /// The exit code that stands for this kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            TrainError::NotFinite { .. } => 1,
            TrainError::Config(_) | TrainError::Exists { .. } | TrainError::Locked { .. } | TrainError::Mismatch(_) => {
                2
            }
            TrainError::Data(_) => 3,
            TrainError::Device(_) | TrainError::Step { .. } => 4,
            TrainError::Checkpoint(_) | TrainError::File(_) | TrainError::Unsaved { .. } | TrainError::Dump { .. } => 5,
        }
    }
}

/// Shorthand for results of this room.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;
