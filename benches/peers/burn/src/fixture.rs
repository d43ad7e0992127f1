//! The training fixture: sizes, weights, batches, and what must come out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// Sizes of π₀ and of the critics, under the names of the fixtures.
#[derive(Clone, Debug, Deserialize)]
pub struct Dims {
    pub image_size: usize,
    pub patch: usize,
    pub vit_depth: usize,
    pub vit_heads: usize,
    pub vlm_width: usize,
    pub expert_width: usize,
    pub depth: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub cameras: Vec<String>,
    pub action_dim: usize,
    pub action_horizon: usize,
    pub pi05: bool,
    pub real_action_dim: usize,
    pub critic_hidden: Vec<usize>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Hyper {
    pub discount: f64,
    pub euler_steps: usize,
    pub critic_loss: String,
    pub huber_delta: f64,
    pub target_q_agg: String,
    pub actor_q_agg: String,
    pub critic_weight: f64,
    pub actor_weight: f64,
    pub bc_weight: f64,
    pub target_entropy_multiplier: f64,
    pub target_tau: f64,
    pub ema_decay: f64,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub clip_norm: f64,
    pub pi0_weight_decay: f32,
    pub critic_weight_decay: f32,
}

/// Rates and norms of one update.
#[derive(Clone, Debug, Deserialize)]
pub struct Logged {
    pub pi0_lr: f64,
    pub critic_lr: f64,
    pub pi0_grad_norm: f64,
    pub critic_grad_norm: f64,
}

#[derive(Debug, Deserialize)]
struct Training {
    log: Vec<Logged>,
}

#[derive(Debug, Deserialize)]
struct Told {
    dims: Dims,
    hyper: Hyper,
    batch: usize,
    candidates: usize,
    log_alpha: f64,
    grad_norms: BTreeMap<String, f64>,
    training: Training,
}

/// Values on the host. Indices and masks are floats here, too.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

pub type Arrays = BTreeMap<String, Array>;

/// All files of a group.
#[derive(Debug)]
pub struct Golden {
    pub name: String,
    pub dims: Dims,
    pub hyper: Hyper,
    pub samples: usize,
    pub candidates: usize,
    pub log_alpha: f64,
    pub norms: BTreeMap<String, f64>,
    pub log: Vec<Logged>,
    pub weights: Arrays,
    pub critic: Arrays,
    pub batches: Arrays,
    pub losses: Arrays,
    pub grads: Arrays,
    pub post: Arrays,
}

impl Golden {
    /// Reads a group, e.g. `tests/golden/acrlpd_tiny`.
    pub fn read(stem: &Path) -> anyhow::Result<Golden> {
        let name = stem.file_name().context("the fixture has no name")?.to_string_lossy();
        let name = name.trim_end_matches(".json").to_owned();
        let file = |end: &str| stem.with_file_name(format!("{name}.{end}"));
        let path = file("json");
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let told: Told = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        ensure!(!told.dims.pi05, "the peers know π₀ only, not π₀.₅");
        ensure!(
            told.dims.kv_heads == 1,
            "this peer knows one head of keys and values only"
        );
        let part = |part: &str| arrays(file(&format!("{part}.safetensors")));
        Ok(Golden {
            dims: told.dims,
            hyper: told.hyper,
            samples: told.batch,
            candidates: told.candidates,
            log_alpha: told.log_alpha,
            norms: told.grad_norms,
            log: told.training.log,
            weights: part("weights")?,
            critic: part("critic")?,
            batches: part("batches")?,
            losses: part("losses")?,
            grads: part("grads")?,
            post: part("post")?,
            name,
        })
    }

    pub fn batch(&self, step: usize) -> Arrays {
        under(&self.batches, &format!("step{step}/"))
    }
}

/// What stands under a prefix, without it.
pub fn under(all: &Arrays, prefix: &str) -> Arrays {
    all.iter()
        .filter_map(|(name, x)| Some((name.strip_prefix(prefix)?.to_owned(), x.clone())))
        .collect()
}

/// One of them, or which is missing.
pub fn array<'a>(all: &'a Arrays, name: &str) -> anyhow::Result<&'a Array> {
    all.get(name).with_context(|| format!("the fixture has no {name}"))
}

fn arrays(path: PathBuf) -> anyhow::Result<Arrays> {
    let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    file.iter()
        .map(|(name, view)| {
            let raw = view.data();
            let words = raw.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
            let values = match view.dtype() {
                Dtype::F32 => words.map(f32::from_le_bytes).collect(),
                Dtype::I32 => words.map(|word| i32::from_le_bytes(word) as f32).collect(),
                Dtype::BOOL => raw.iter().map(|&b| f32::from(b != 0)).collect(),
                other => bail!("{}: {name} is {other:?}", path.display()),
            };
            let shape = view.shape().to_vec();
            Ok((name.to_owned(), Array { shape, values }))
        })
        .collect()
}
