//! Fixtures shared by the data tests: where they lie, golden tensors, a ready-made spec, and datasets made on the spot.
#![allow(dead_code)] // Each test file uses its own part.

pub mod broken;
pub mod memory;
pub mod synthetic;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use acrlpd::data::labels::{EpisodeEnd, RewardMode};
use acrlpd::data::{
    Boundary, CameraSpec, DataSpec, Dataset, NormKind, NormStats, Parts, PromptSource, PromptTokenizer, Stats,
};
use safetensors::{Dtype, SafeTensors};

/// `tests/golden/NAME`, numbers of the reference implementation.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// `tests/data/NAME`, datasets and what lerobot reads from them.
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// `assets/NAME`, what the program ships with.
pub fn asset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

pub fn aloha() -> Arc<dyn Dataset> {
    acrlpd::data::open(asset("datasets/aloha_v21_image")).unwrap()
}

pub fn tokenizer() -> PromptTokenizer {
    PromptTokenizer::from_file(asset("tokenizer/tiny_paligemma.model")).unwrap()
}

pub fn json(path: impl AsRef<Path>) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The tensors of a safetensors file.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn open(path: impl AsRef<Path>) -> Self {
        Tensors(std::fs::read(path).unwrap())
    }

    fn all(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub fn names(&self) -> Vec<String> {
        self.all().names().iter().map(|n| n.to_string()).collect()
    }

    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.all().tensor(name).unwrap().shape().to_vec()
    }

    pub fn u8(&self, name: &str) -> Vec<u8> {
        let tensors = self.all();
        let tensor = tensors.tensor(name).unwrap();
        assert!(matches!(tensor.dtype(), Dtype::U8 | Dtype::BOOL), "{name}");
        tensor.data().to_vec()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let tensors = self.all();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32, "{name}");
        tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect()
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.f32(name).into_iter().map(f64::from).collect()
    }

    pub fn i64(&self, name: &str) -> Vec<i64> {
        let tensors = self.all();
        let tensor = tensors.tensor(name).unwrap();
        assert_eq!(tensor.dtype(), Dtype::I64, "{name}");
        tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|b| i64::from_le_bytes(*b))
            .collect()
    }
}

/// The largest `|a - b| / max(1, |b|)`; the lengths must agree.
pub fn distance(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>) -> f64 {
    let (a, b): (Vec<f64>, Vec<f64>) = (a.into_iter().collect(), b.into_iter().collect());
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty());
    a.iter()
        .zip(&b)
        .map(|(a, b)| (a - b).abs() / b.abs().max(1.0))
        .fold(0.0, |worst, d| if d > worst { d } else { worst })
}

/// ALOHA's names, no transforms, 10-step chunks, small pictures.
pub fn aloha_spec() -> DataSpec {
    let camera = |model: &str, dataset: &str| CameraSpec {
        model: model.to_owned(),
        dataset: Some(format!("observation.images.{dataset}")),
    };
    DataSpec {
        cameras: vec![
            camera("base_0_rgb", "cam_high"),
            camera("left_wrist_0_rgb", "cam_left_wrist"),
            camera("right_wrist_0_rgb", "cam_right_wrist"),
        ],
        state_key: Parts::feature("observation.state"),
        action_key: Parts::feature("action"),
        image_size: 56,
        action_dim: 32,
        real_action_dim: 14,
        horizon: 10,
        discount: 0.99,
        boundary: Boundary::Drop,
        episode_end: EpisodeEnd::Terminal,
        reward_mode: RewardMode::Terminal,
        terminal_reward: 1.0,
        reward_scale: 1.0,
        default_success: None,
        transforms: Vec::new(),
        delta_mask: None,
        norm: NormKind::ZScore,
        prompt: PromptSource::Task,
        state_in_prompt: false,
        token_len: 48,
    }
}

/// Statistics that change nothing: z-scores divide by `std + 1e-6`.
pub fn identity_stats(state: usize, actions: usize) -> NormStats {
    let stats = |width| Stats {
        mean: vec![0.0; width],
        std: vec![1.0 - 1e-6; width],
        q01: None,
        q99: None,
    };
    NormStats {
        state: stats(state),
        actions: stats(actions),
    }
}
