//! A step that was not finite, on disk: everything it takes to do it again elsewhere.
//!
//! `dumps/STEP.json` says what was found, `dumps/STEP.batch.safetensors` is the batch as the dataset gave it, and
//! `dumps/STEP/` is a checkpoint of the weights the step failed with. Noise follows from the seed and the step.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use super::diagnose::{self, Diagnosis};
use super::error::{Result, TrainError};
use super::handover::{Cut, Handover, Identity};
use super::setup;
use super::snapshot;
use crate::checkpoint::{self, state};
use crate::config::Config;
use crate::data::{CameraBatch, ChunkBatch};
use crate::files;
use crate::gpu::Gpu;
use crate::model::dims::Pi0Dims;
use crate::step::Learner;

/// Folder of a run's dumps.
pub const DUMPS: &str = "dumps";

/// `STEP.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    pub dump: Content,
}

/// What a dump is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// The step, from 0.
    pub step: u64,
    /// Names of the model's cameras, in the order of the batch.
    pub cameras: Vec<String>,
    /// What doing it again showed on the device it failed on.
    pub diagnosis: Diagnosis,
}

/// Whether `group`, a path without extension, is that of a dump, whole or not.
pub fn is_dump(group: &Path) -> bool {
    let weights_beside = group.is_dir() && beside(group, "json").is_file();
    weights_beside || description(group).is_ok()
}

fn beside(group: &Path, extension: &str) -> PathBuf {
    let name = group
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    group.with_file_name(format!("{name}.{extension}"))
}

fn description(group: &Path) -> Result<Content> {
    let path = beside(group, "json");
    let wrong = |why: String| TrainError::Dump {
        path: path.clone(),
        why,
    };
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(e.to_string()))?;
    let description: Description = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    Ok(description.dump)
}

/// Writes the dump of step `step` into the run's folder; returns the path that `verify` takes.
///
/// # Errors
/// A disk that cannot be written, and a device that failed.
pub fn write(
    learner: &Learner,
    identity: &Identity<'_>,
    step: u64,
    batch: &ChunkBatch,
    diagnosis: &Diagnosis,
) -> Result<PathBuf> {
    let dir = identity.dir.join(DUMPS);
    let identity = Identity { dir: &dir, ..*identity };
    let cut = Cut::new(identity.config.save_memory_mb);
    let (group, _) = Handover::begin(learner, &identity, step, 0, cut)?.finish()?.wait()?;
    let content = Content {
        step,
        cameras: batch.images.iter().map(|c| c.name.clone()).collect(),
        diagnosis: diagnosis.clone(),
    };
    let path = beside(&group, "batch.safetensors");
    let bytes = safetensors::serialize(tensors(batch, learner), None).map_err(|e| TrainError::Dump {
        path: path.clone(),
        why: e.to_string(),
    })?;
    files::write(&path, &bytes)?;
    let path = beside(&group, "json");
    let text = serde_json::to_string_pretty(&Description { dump: content }).unwrap_or_default();
    files::write(&path, text.as_bytes())?;
    Ok(group)
}

/// Does the step of a dump again on `gpu`.
///
/// # Errors
/// Files that are missing or broken, and a device that failed.
pub fn replay(gpu: &Gpu, group: &Path) -> Result<(Content, Diagnosis)> {
    let content = description(group)?;
    let saved = checkpoint::open(group)?;
    let config = Config::parse(&saved.config()?, group.join(state::CONFIG))?;
    let batch = read_batch(
        &beside(group, "batch.safetensors"),
        &content.cameras,
        &config.pi0_dims(),
    )?;
    let learner = setup::learner_for(gpu, &config, &saved)?;
    snapshot::restore(&learner, &saved)?;
    let diagnosis = diagnose::diagnose(&learner, &setup::collator(&config), content.step, &batch)?;
    Ok((content, diagnosis))
}

/// A tensor on its way to a file.
struct Bytes<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

fn tensors<'a>(batch: &'a ChunkBatch, learner: &Learner) -> Vec<(String, Bytes<'a>)> {
    let b = batch.len();
    let (h, a, l) = (
        learner.dims.action_horizon,
        learner.dims.action_dim,
        learner.dims.max_token_len,
    );
    let s = learner.dims.image_size;
    let of = |name: &str, dtype, shape: &[usize], data: Cow<'a, [u8]>| {
        let shape = shape.to_vec();
        (name.to_owned(), Bytes { dtype, shape, data })
    };
    fn plain<T: bytemuck::NoUninit>(values: &[T]) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(values))
    }
    let flags = |values: &[bool]| Cow::Owned(values.iter().map(|v| u8::from(*v)).collect());
    let mut all = vec![
        of("state", Dtype::F32, &[b, a], plain(&batch.state)),
        of("next_state", Dtype::F32, &[b, a], plain(&batch.next_state)),
        of("tokens", Dtype::I32, &[b, l], plain(&batch.tokens)),
        of("token_mask", Dtype::BOOL, &[b, l], flags(&batch.token_mask)),
        of("next_tokens", Dtype::I32, &[b, l], plain(&batch.next_tokens)),
        of("next_token_mask", Dtype::BOOL, &[b, l], flags(&batch.next_token_mask)),
        of("actions", Dtype::F32, &[b, h, a], plain(&batch.actions)),
        of("action_valid", Dtype::BOOL, &[b, h], flags(&batch.action_valid)),
        of("rewards", Dtype::F32, &[b, h], plain(&batch.rewards)),
        of("reward", Dtype::F32, &[b], plain(&batch.reward)),
        of("discount", Dtype::F32, &[b], plain(&batch.discount)),
        of("mask", Dtype::F32, &[b], plain(&batch.mask)),
        of("chunk_valid", Dtype::F32, &[b], plain(&batch.chunk_valid)),
        of("is_positive", Dtype::BOOL, &[b], flags(&batch.is_positive)),
        of("episode_index", Dtype::I64, &[b], plain(&batch.episode_index)),
        of("frame_index", Dtype::I64, &[b], plain(&batch.frame_index)),
        of("index", Dtype::I64, &[b], plain(&batch.index)),
        of("next_index", Dtype::I64, &[b], plain(&batch.next_index)),
    ];
    for camera in &batch.images {
        let name = |part: &str| format!("{}/{part}", camera.name);
        all.push(of(&name("current"), Dtype::U8, &[b, s, s, 3], plain(&camera.current)));
        all.push(of(&name("next"), Dtype::U8, &[b, s, s, 3], plain(&camera.next)));
        all.push(of(
            &name("current_mask"),
            Dtype::BOOL,
            &[b],
            flags(&camera.current_mask),
        ));
        all.push(of(&name("next_mask"), Dtype::BOOL, &[b], flags(&camera.next_mask)));
    }
    all
}

/// The batch of a dump, which must be one of a learner of these sizes.
fn read_batch(path: &Path, cameras: &[String], dims: &Pi0Dims) -> Result<ChunkBatch> {
    let wrong = |why: String| TrainError::Dump {
        path: path.to_owned(),
        why,
    };
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let view = |name: &str| file.tensor(name).map_err(|e| wrong(e.to_string()));
    let b = view("index")?.shape().first().copied().unwrap_or(0);
    if b == 0 || *cameras != dims.cameras {
        return Err(wrong(format!(
            "{b} chunks of the cameras {cameras:?} are no batch for {:?}",
            dims.cameras
        )));
    }
    let (h, a, l, s) = (
        dims.action_horizon,
        dims.action_dim,
        dims.max_token_len,
        dims.image_size,
    );
    let tensor = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<&[u8]> {
        let view = view(name)?;
        match view.dtype() == dtype && view.shape() == shape {
            true => Ok(view.data()),
            false => Err(wrong(format!(
                "`{name}` is {:?} {:?} instead of {dtype:?} {shape:?}",
                view.dtype(),
                view.shape()
            ))),
        }
    };
    let flags = |name: &str, shape: &[usize]| -> Result<Vec<bool>> {
        Ok(tensor(name, Dtype::BOOL, shape)?.iter().map(|v| *v != 0).collect())
    };
    let f32s = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        Ok(bytemuck::pod_collect_to_vec(tensor(name, Dtype::F32, shape)?))
    };
    let i32s = |name: &str, shape: &[usize]| -> Result<Vec<i32>> {
        Ok(bytemuck::pod_collect_to_vec(tensor(name, Dtype::I32, shape)?))
    };
    let i64s = |name: &str| -> Result<Vec<i64>> { Ok(bytemuck::pod_collect_to_vec(tensor(name, Dtype::I64, &[b])?)) };
    let pixels = |name: &str| -> Result<Vec<u8>> { Ok(tensor(name, Dtype::U8, &[b, s, s, 3])?.to_vec()) };
    let camera = |name: &String| {
        Ok(CameraBatch {
            name: name.clone(),
            current: pixels(&format!("{name}/current"))?,
            next: pixels(&format!("{name}/next"))?,
            current_mask: flags(&format!("{name}/current_mask"), &[b])?,
            next_mask: flags(&format!("{name}/next_mask"), &[b])?,
        })
    };
    Ok(ChunkBatch {
        images: cameras.iter().map(camera).collect::<Result<_>>()?,
        state: f32s("state", &[b, a])?,
        next_state: f32s("next_state", &[b, a])?,
        tokens: i32s("tokens", &[b, l])?,
        token_mask: flags("token_mask", &[b, l])?,
        next_tokens: i32s("next_tokens", &[b, l])?,
        next_token_mask: flags("next_token_mask", &[b, l])?,
        actions: f32s("actions", &[b, h, a])?,
        action_valid: flags("action_valid", &[b, h])?,
        rewards: f32s("rewards", &[b, h])?,
        reward: f32s("reward", &[b])?,
        discount: f32s("discount", &[b])?,
        mask: f32s("mask", &[b])?,
        chunk_valid: f32s("chunk_valid", &[b])?,
        is_positive: flags("is_positive", &[b])?,
        episode_index: i64s("episode_index")?,
        frame_index: i64s("frame_index")?,
        index: i64s("index")?,
        next_index: i64s("next_index")?,
    })
}
