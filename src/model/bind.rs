//! Parameter stores as the matrices the networks use. Weights and gradients have the same shape of handles.

use super::dims::{CriticDims, Lora, Pi0Dims, StackDims};
use super::params::ParamStore;
use super::projection::{Adapter, Projection};
use super::tables::Pi0Units;
use crate::gpu::{Gpu, Tensor};

/// Weight and bias.
pub type Linear = (Tensor, Tensor);

/// One SigLIP block.
#[derive(Clone)]
pub struct VisionBlock {
    pub norm1: Linear,
    /// `[3W, W]`, `[3W]`: q | k | v
    pub qkv: Linear,
    pub out: Linear,
    pub norm2: Linear,
    pub fc1: Linear,
    pub fc2: Linear,
}

impl VisionBlock {
    /// The same handles, each tensor replaced.
    pub fn map(&self, mut f: impl FnMut(&Tensor) -> Tensor) -> VisionBlock {
        let mut both = |l: &Linear| (f(&l.0), f(&l.1));
        VisionBlock {
            norm1: both(&self.norm1),
            qkv: both(&self.qkv),
            out: both(&self.out),
            norm2: both(&self.norm2),
            fc1: both(&self.fc1),
            fc2: both(&self.fc2),
        }
    }
}

/// The vision tower and its projection.
#[derive(Clone)]
pub struct Vision {
    /// `[W, 3, p, p]`, `[W]`
    pub patch: Linear,
    /// `[t, W]`
    pub position: Tensor,
    pub blocks: Vec<VisionBlock>,
    pub post_norm: Linear,
    pub projector: Linear,
}

/// An RMS norm's parameters.
#[derive(Clone)]
pub enum Norm {
    /// Scale `[D]`.
    Plain(Tensor),
    /// The linear map from the condition to scale | shift | gate: `[3D, D]`, `[3D]`.
    Adaptive(Linear),
}

/// One block of the language stream or of the expert.
#[derive(Clone)]
pub struct GemmaBlock {
    pub norm1: Norm,
    /// `[(Hq + 2 Hkv) K, D]`: q | k | v
    pub qkv: Projection,
    /// `[D, Hq K]`
    pub out: Projection,
    pub norm2: Norm,
    /// `[2F, D]`: gate | up
    pub gate_up: Projection,
    /// `[D, F]`
    pub down: Projection,
}

impl GemmaBlock {
    /// The matrices that may have adapters.
    pub fn projections(&self) -> [&Projection; 4] {
        [&self.qkv, &self.out, &self.gate_up, &self.down]
    }
}

/// Projections of state, actions and time.
#[derive(Clone)]
pub struct ActionHeads {
    pub action_in: Linear,
    /// π₀ only.
    pub state: Option<Linear>,
    /// `[E, 2E]` (action | time) for π₀, `[E, E]` for π₀.₅
    pub time_in: Linear,
    pub time_out: Linear,
    pub action_out: Linear,
}

/// All of π₀.
#[derive(Clone)]
pub struct Pi0Params {
    pub vision: Vision,
    /// The prompt table, in parts: (first row, `[rows, D]`); the rows that learn apart from it come behind it.
    pub embedding: Vec<(usize, Tensor)>,
    pub language: Vec<GemmaBlock>,
    pub language_norm: Norm,
    pub expert: Vec<GemmaBlock>,
    pub expert_norm: Norm,
    pub heads: ActionHeads,
}

/// Reads the groups of a unit in the order of its table.
struct Groups<'a> {
    store: &'a ParamStore,
    unit: usize,
    next: usize,
}

impl Groups<'_> {
    fn one(&mut self) -> Tensor {
        self.next += 1;
        self.store.group(self.unit, self.next - 1)
    }

    fn linear(&mut self) -> Linear {
        (self.one(), self.one())
    }

    fn norm(&mut self, adaptive: bool) -> Norm {
        if adaptive {
            Norm::Adaptive(self.linear())
        } else {
            Norm::Plain(self.one())
        }
    }
}

impl Pi0Params {
    /// Handles into a store whose table is [`tables::pi0`](super::tables::pi0) of these sizes.
    pub fn bind(store: &ParamStore, d: &Pi0Dims) -> Pi0Params {
        let units = Pi0Units::new(d);
        let open = |unit: usize| Groups { store, unit, next: 0 };
        let heads = d.attention();
        let gemma = |unit: usize, adaptive: bool, dims: StackDims, lora: Option<Lora>| {
            let mut g = open(unit);
            let (norm1, qkv, out) = (g.norm(adaptive), g.one(), g.one());
            let (norm2, gate_up, down) = (g.norm(adaptive), g.one(), g.one());
            let mut adapted = |weight: Tensor, groups: [usize; 2]| Projection {
                weight,
                adapter: lora.map(|lora| Adapter::new(g.one(), g.one(), groups, lora)),
            };
            GemmaBlock {
                norm1,
                qkv: adapted(qkv, [heads.q + 2 * heads.kv, heads.dim]),
                out: adapted(out, [1, dims.width]),
                norm2,
                gate_up: adapted(gate_up, [2, dims.mlp]),
                down: adapted(down, [1, dims.width]),
            }
        };
        let mut patches = open(units.patches());
        let mut projector = open(units.projector());
        let mut action = open(units.heads());
        Pi0Params {
            vision: Vision {
                patch: patches.linear(),
                position: patches.one(),
                blocks: (0..d.vision_depth)
                    .map(|i| {
                        let mut g = open(units.vision(i));
                        VisionBlock {
                            norm1: g.linear(),
                            qkv: g.linear(),
                            out: g.linear(),
                            norm2: g.linear(),
                            fc1: g.linear(),
                            fc2: g.linear(),
                        }
                    })
                    .collect(),
                post_norm: projector.linear(),
                projector: projector.linear(),
            },
            embedding: store.parts(units.embedding(), 0),
            language: (0..d.depth)
                .map(|i| gemma(units.language(i), false, d.language, d.lora.language))
                .collect(),
            language_norm: open(units.language_norm()).norm(false),
            expert: (0..d.depth)
                .map(|i| gemma(units.expert(i), d.pi05, d.expert, d.lora.expert))
                .collect(),
            expert_norm: open(units.expert_norm()).norm(d.pi05),
            heads: ActionHeads {
                action_in: action.linear(),
                state: (!d.pi05).then(|| action.linear()),
                time_in: action.linear(),
                time_out: action.linear(),
                action_out: action.linear(),
            },
        }
    }

    /// The same weights with room for what is made of them: [`Pi0Params::refresh`].
    #[must_use]
    pub fn with_sums(mut self, gpu: &Gpu) -> Pi0Params {
        for block in self.language.iter_mut().chain(&mut self.expert) {
            block.out = block.out.clone().with_sum(gpu);
        }
        self
    }

    /// Makes again what depends on weights that have changed: the sums over heads of the adapters.
    pub fn refresh(&self, gpu: &Gpu) {
        for block in self.language.iter().chain(&self.expert) {
            block.out.sum_heads(gpu);
        }
    }
}

/// One hidden layer of the critics.
#[derive(Clone)]
pub struct CriticLayer {
    /// `[E, h, in]`, `[E, h]`
    pub linear: Linear,
    /// `[E, h]` each
    pub norm: Linear,
}

/// The critic ensemble.
#[derive(Clone)]
pub struct CriticParams {
    pub layers: Vec<CriticLayer>,
    /// `[E, 1, h]`, `[E, 1]`
    pub out: Linear,
}

impl CriticParams {
    /// Handles into a store whose table is [`tables::critic`](super::tables::critic) of these sizes.
    pub fn bind(store: &ParamStore, d: &CriticDims) -> CriticParams {
        let open = |unit: usize| Groups { store, unit, next: 0 };
        CriticParams {
            layers: (0..d.hidden.len())
                .map(|i| {
                    let mut g = open(i);
                    CriticLayer {
                        linear: g.linear(),
                        norm: g.linear(),
                    }
                })
                .collect(),
            out: open(d.hidden.len()).linear(),
        }
    }
}
