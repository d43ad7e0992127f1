//! Sizes of the networks. Everything that depends on them is derived here and nowhere else.

use serde::{Deserialize, Serialize};

use super::critic_networks::Network;
use crate::ops::rope::Heads;

/// Side of an image patch of π₀, in pixels.
pub const PATCH: usize = 14;

/// One transformer stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StackDims {
    /// Width of the residual stream (D).
    pub width: usize,
    /// Width of the MLP (F).
    pub mlp: usize,
}

/// Sizes of π₀ or π₀.₅.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pi0Dims {
    /// Side of the square input images, in pixels; a multiple of `patch`.
    pub image_size: usize,
    /// Side of a patch, in pixels: [`PATCH`] for every published model.
    pub patch: usize,
    /// SigLIP: width and MLP.
    pub vision: StackDims,
    pub vision_depth: usize,
    pub vision_heads: usize,
    /// Language stream (Gemma).
    pub language: StackDims,
    /// Action expert.
    pub expert: StackDims,
    /// Layers of both the language stream and the expert: they attend together, layer by layer.
    pub depth: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Rows of the prompt embedding table.
    pub vocab: usize,
    /// Prompt tokens (L), padding included.
    pub max_token_len: usize,
    /// Camera names in the order of the prefix (C of them).
    pub cameras: Vec<String>,
    /// Model action dim (A): states and actions are padded to it.
    pub action_dim: usize,
    /// Actions in a chunk (H).
    pub action_horizon: usize,
    /// π₀.₅: no state token, adaptive norms in the expert.
    pub pi05: bool,
    /// Low-rank adapters.
    #[serde(default)]
    pub lora: Adapters,
}

/// Which stacks have low-rank adapters at their attention and MLPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapters {
    pub language: Option<Lora>,
    pub expert: Option<Lora>,
}

/// A low-rank adapter: `W + α/r · B A`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    /// r
    pub rank: usize,
    /// α
    pub alpha: f64,
}

impl Lora {
    /// Factor of the product of A and B.
    pub fn scale(self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// The camera names of π₀, in the order of its prefix.
pub const CAMERAS: [&str; 3] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

impl Pi0Dims {
    /// The 3.2 B model: SigLIP So400m/14, Gemma 2B, the 300 M expert.
    pub fn full(action_horizon: usize, pi05: bool) -> Pi0Dims {
        Pi0Dims {
            image_size: 224,
            patch: PATCH,
            vision: StackDims { width: 1152, mlp: 4304 },
            vision_depth: 27,
            vision_heads: 16,
            language: StackDims {
                width: 2048,
                mlp: 16384,
            },
            expert: StackDims { width: 1024, mlp: 4096 },
            depth: 18,
            heads: 8,
            kv_heads: 1,
            head_dim: 256,
            vocab: 257_152,
            max_token_len: if pi05 { 200 } else { 48 },
            cameras: CAMERAS.map(String::from).to_vec(),
            action_dim: 32,
            action_horizon,
            pi05,
            lora: Adapters::default(),
        }
    }

    /// Tokens of one image.
    pub fn image_tokens(&self) -> usize {
        (self.image_size / self.patch).pow(2)
    }

    /// Longest prefix: all cameras, the whole prompt.
    pub fn prefix_len(&self) -> usize {
        self.cameras.len() * self.image_tokens() + self.max_token_len
    }

    /// Heads of the language stream and the expert.
    pub fn attention(&self) -> Heads {
        Heads {
            q: self.heads,
            kv: self.kv_heads,
            dim: self.head_dim,
        }
    }

    /// Heads of SigLIP.
    pub fn vision_attention(&self) -> Heads {
        Heads {
            q: self.vision_heads,
            kv: self.vision_heads,
            dim: self.vision.width / self.vision_heads,
        }
    }

    /// State tokens in front of the actions: one for π₀, none for π₀.₅.
    pub fn state_tokens(&self) -> usize {
        if self.pi05 { 0 } else { 1 }
    }

    /// What is inconsistent about these sizes, if anything.
    pub fn problem(&self) -> Option<String> {
        let checks = [
            (
                self.patch == 0 || self.image_size == 0 || !self.image_size.is_multiple_of(self.patch),
                "image_size must be a multiple of the patch size",
            ),
            (
                self.vision_heads == 0 || !self.vision.width.is_multiple_of(self.vision_heads),
                "vision.width must be a multiple of vision_heads",
            ),
            (
                self.kv_heads == 0 || self.heads == 0 || !self.heads.is_multiple_of(self.kv_heads),
                "heads must be a multiple of kv_heads",
            ),
            (
                self.head_dim < 2 || !self.head_dim.is_multiple_of(2),
                "head_dim must be even",
            ),
            (!self.expert.width.is_multiple_of(2), "expert.width must be even"),
            (
                self.depth == 0 || self.vision_depth == 0,
                "depth and vision_depth must be at least 1",
            ),
            (
                [self.lora.language, self.lora.expert]
                    .iter()
                    .flatten()
                    .any(|l| l.rank == 0),
                "the rank of an adapter must be at least 1",
            ),
            (self.cameras.is_empty(), "at least one camera is needed"),
            (
                self.vocab == 0 || self.action_dim == 0 || self.action_horizon == 0 || self.max_token_len == 0,
                "vocab, action_dim, action_horizon and max_token_len must be at least 1",
            ),
        ];
        checks.into_iter().find(|(bad, _)| *bad).map(|(_, why)| why.to_string())
    }
}

/// Sizes of the critic ensemble.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CriticDims {
    /// Members of the ensemble (E).
    pub critics: usize,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// What stands between them.
    pub network: Network,
    /// Width of the pooled prefix features, without the state.
    pub feature_width: usize,
    /// Leading coordinates of state and actions that the robot really has.
    pub real_action_dim: usize,
    /// Actions in a chunk (H).
    pub action_horizon: usize,
}

impl CriticDims {
    /// Pooled features and state.
    pub fn observation(&self) -> usize {
        self.feature_width + self.real_action_dim
    }

    /// Flattened actions.
    pub fn actions(&self) -> usize {
        self.action_horizon * self.real_action_dim
    }

    /// Width of the critic's input.
    pub fn input(&self) -> usize {
        self.observation() + self.actions()
    }
}
