//! Everything that can be wrong with weights and checkpoints. Each message is one sentence: what, where, why, what to
//! do.

use std::path::PathBuf;

use thiserror::Error;

use crate::files::FileError;

/// An error of the files that hold a model.
#[derive(Debug, Error)]
pub enum CheckpointError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` holds no weights: {reason}; give a .safetensors file or a folder with a model.safetensors")]
    NoWeights { path: PathBuf, reason: String },
    #[error("`{path}` is not a whole safetensors file: {reason}; copy or download it again")]
    Safetensors { path: PathBuf, reason: String },
    #[error("`{path}` cannot be read as part of an Orbax checkpoint: {reason}; copy or download it again")]
    Orbax { path: PathBuf, reason: String },
    #[error("`{path}` says that `{tensor}` is in `{shard}`, but {reason}; copy or download the shards again")]
    Shard {
        path: PathBuf,
        tensor: String,
        shard: String,
        reason: String,
    },
    #[error(
        "`{path}` has no tensor `{tensor}` of shape {expected:?}; give weights of the model that the config describes"
    )]
    Missing {
        path: PathBuf,
        tensor: String,
        expected: Vec<usize>,
    },
    #[error(
        "`{path}` does not fit the model: {problems}; give weights of the model that the config describes, or make the \
         sizes in [model] agree"
    )]
    Unfit { path: PathBuf, problems: String },
    #[error(
        "`{path}` holds {found}, but the config describes {wanted} (`{tensor}`); set model.pi05 = {fix}, or give other \
         weights"
    )]
    Architecture {
        path: PathBuf,
        found: &'static str,
        wanted: &'static str,
        tensor: String,
        fix: bool,
    },
    #[error(
        "`{path}` has `{tensor}` in shape {found:?}, but the config asks for {expected:?}; make the sizes in [model] \
         agree"
    )]
    Shape {
        path: PathBuf,
        tensor: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("`{path}` stores `{tensor}` as {found}, but only F32, F16 and BF16 can be read; convert it")]
    Dtype {
        path: PathBuf,
        tensor: String,
        found: String,
    },
    #[error(
        "`{path}` cannot be written: `{tensor}` has the value {value}, which float16 cannot hold; use bfloat16 or float32"
    )]
    TooLarge { path: PathBuf, tensor: String, value: f32 },
    #[error("`{path}` is there already; give another path, or remove it first")]
    Exists { path: PathBuf },
    #[error("`{path}` {reason}")]
    NotPi0 { path: PathBuf, reason: String },
    #[error("`{path}` cannot be written as planned: {reason}; this is a defect of the program, please report it")]
    Plan { path: PathBuf, reason: String },
    #[error("step {step} could not be saved: {reason}")]
    Unsaved { step: u64, reason: String },
    #[error("`{path}` is not a checkpoint: {reason}; give a folder such as checkpoints/CONFIG/EXPERIMENT/STEP")]
    NotACheckpoint { path: PathBuf, reason: String },
    #[error("the checkpoint `{path}` is not complete: {reason}; use an earlier step, or copy it again")]
    Incomplete { path: PathBuf, reason: String },
    #[error("the checkpoint `{path}` is damaged: {reason}; use an earlier step, or copy it again")]
    Damaged { path: PathBuf, reason: String },
    #[error(
        "no checkpoint in `{path}` can be used (the newest: {newest}); copy one there again, or start anew with \
         --overwrite"
    )]
    NoneWhole {
        path: PathBuf,
        newest: Box<CheckpointError>,
    },
    #[error("the checkpoint `{path}` has format {found}, but this version reads up to {known}; use a newer version")]
    TooNew { path: PathBuf, found: u64, known: u32 },
}

/// Shorthand for results of this room.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;
