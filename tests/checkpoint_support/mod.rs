//! Shared by the checkpoint tests: the tiny networks, the golden weights, and other ways to store them.
#![allow(dead_code)] // Each test file uses its own part.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use acrlpd::checkpoint::{CheckpointError, RunState, TensorWriter, begin, plan, state};
use acrlpd::config::Config;
use acrlpd::model::dims::Pi0Dims;
use acrlpd::model::params::ParamTable;
use acrlpd::model::tables;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{SafeTensors, TensorView};

pub const EMBEDDING: &str = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";
pub const TIED: &str = "paligemma_with_expert.paligemma.lm_head.weight";
pub const UNUSED: &str = "paligemma_with_expert.gemma_expert.lm_head.weight";

pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// The sizes of the golden fixtures.
pub fn tiny(pi05: bool) -> Pi0Dims {
    let mut config = Config::load("debug").unwrap();
    (config.model.pi05, config.model.max_token_len, config.model.dims.vocab) = (pi05, Some(12), Some(512));
    config.pi0_dims()
}

pub fn golden_weights(pi05: bool) -> PathBuf {
    golden(if pi05 {
        "pi05_tiny.weights.safetensors"
    } else {
        "pi0_tiny.weights.safetensors"
    })
}

/// Name -> shape and values of a file of F32, read by the safetensors crate alone.
pub type Plain = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

pub fn read_plain(path: impl AsRef<Path>) -> Plain {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter().map(|(name, view)| {
        assert_eq!(view.dtype(), Dtype::F32);
        let values = view
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect();
        (name.to_owned(), (view.shape().to_vec(), values))
    });
    tensors.collect()
}

/// Stores tensors with the safetensors crate alone.
pub fn write_plain(path: impl AsRef<Path>, tensors: &Plain, dtype: Dtype) {
    let bytes = |values: &[f32]| -> Vec<u8> {
        match dtype {
            Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Dtype::I32 => values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    };
    let data: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, bytes(values)))
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path.as_ref()).unwrap();
}

/// A small critic.
pub fn critic() -> ParamTable {
    tables::critic(&Config::load("debug").unwrap().critic_dims())
}

/// Some numbers, different in every tensor.
pub fn numbers(seed: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| (seed as f32 + 0.5) * (1.0 + i as f32)).collect()
}

/// Writes all tensors of a plan.
pub fn fill(file: &mut TensorWriter, plan: &[(String, Vec<usize>)], seed: usize) -> Result<(), CheckpointError> {
    for (i, (name, shape)) in plan.iter().enumerate() {
        file.write(name, &numbers(seed + i, shape.iter().product()))?;
    }
    Ok(())
}

/// Saves a complete checkpoint with a critic and a config.
pub fn save(run: &Path, step: u64, keep: usize) -> Result<PathBuf, CheckpointError> {
    let table = critic();
    let mut draft = begin(run, RunState::now(step, 7, "debug"))?;
    let sections = [plan(state::ONLINE, &table), plan(state::TARGET, &table)].concat();
    let mut file = draft.tensors(state::CRITIC, &sections)?;
    fill(&mut file, &sections, step as usize)?;
    draft.keep(file)?;
    draft.text(state::CONFIG, &Config::load("debug").unwrap().to_toml())?;
    draft.text(state::NORM_STATS, "{}")?;
    draft.commit(keep)
}
