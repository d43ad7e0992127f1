//! Holding a device to reference numbers: `acrlpd verify`.
//!
//! A fixture group is a JSON description with safetensors beside it, in the format of `tests/golden`. What kind of
//! group it is follows from its description: single operations (`ops`), data-side numerics (`data_ops`), a policy
//! (`policy`), a training step (`training`), or the names and shapes of a full-size policy (`published`; no
//! tensors beside it). Nothing is tuned to particular files: sizes come from the group. A tensor that no check reads
//! fails its group.

mod axes;
mod compare;
mod data_ops;
mod find;
mod fixture;
mod group;
mod inputs;
mod ops;
mod policy;
mod published;
mod replay;
mod training;
mod trajectory;

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::gpu::{DType, Gpu, GpuError};
use crate::model::stream::Storage;

pub use compare::{Cosine, Kind, Report, Row};
pub use find::Found;
pub use fixture::{Array, Fixture, Values};
pub use group::TrainingGroup;

/// Why a fixture could not be checked at all (a number that is off is a row of the [`Report`], not an error).
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error(
        "{path}: no fixture groups here; a group is NAME.json with NAME.safetensors or NAME.*.safetensors beside it"
    )]
    NothingFound { path: PathBuf },
    #[error("{path} cannot be read: {why}")]
    File { path: PathBuf, why: String },
    #[error("{group}: {what}; see tests/golden/README.md for the format")]
    Format { group: String, what: String },
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// Shorthand for results of this room.
pub type Result<T, E = VerifyError> = std::result::Result<T, E>;

/// The groups in a folder and what else lies there, or the group that `path` names (its JSON, one of its safetensors,
/// or its bare name).
pub fn find(path: &Path) -> Result<Found> {
    find::find(path)
}

/// Checks one group in f32; `wanted` picks rows (by `op/tensor` or `tensor`).
pub fn run(gpu: &Gpu, group: &Path, wanted: &dyn Fn(&str) -> bool) -> Result<Report> {
    run_as(gpu, group, DType::F32, wanted)
}

/// Checks one group with the model (activations, and the weights that compute) stored as f32, f16 or bf16, its residual
/// streams like the rest or in f32. What is f32 in every model (losses, critics, optimizer, data) is held to the rules of
/// f32.
pub fn run_as(gpu: &Gpu, group: &Path, storage: impl Into<Storage>, wanted: &dyn Fn(&str) -> bool) -> Result<Report> {
    let storage = storage.into();
    let dtype = storage.dtype;
    if !gpu.caps().stores(dtype) {
        return Err(VerifyError::Gpu(GpuError::Dtype {
            op: "verify",
            dtype: dtype.name(),
            device: gpu.caps().name.clone(),
        }));
    }
    let fixture = Fixture::open(group)?;
    let mut report = Report::new(&fixture.name, storage);
    let has = |key: &str| fixture.json.get(key).is_some();
    match () {
        () if has("ops") => ops::run(gpu, &fixture, storage, wanted, &mut report)?,
        () if has("groups") => {
            report.with_storage(DType::F32, |report| data_ops::run(gpu, &fixture, wanted, report))?
        }
        () if has("dims") && has("hyper") => training::run(gpu, fixture, storage, wanted, &mut report)?,
        () if has("dims") => policy::run(gpu, &fixture, storage, wanted, &mut report)?,
        () if published::is_table(&fixture.json) => published::run(&fixture, wanted, &mut report)?,
        () => {
            return Err(VerifyError::Format {
                group: fixture.name.clone(),
                what: "the description has none of the keys ops, groups, dims".into(),
            });
        }
    }
    gpu.check()?;
    Ok(report)
}

/// A tensor's name without the part of its file.
fn after_colon(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, rest)| rest)
}
