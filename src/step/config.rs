//! What a step computes: every switch of the algorithm, and nothing about files, devices or loops.

use crate::gpu::DType;
use crate::model::freeze::Freeze;
use crate::model::prefix::Depth;
use crate::model::remat::Remat;
use crate::model::stream::Storage;
use crate::ops::blockwise::Format;
use crate::ops::ensemble::Aggregate;
use crate::ops::optimizers::Optimizer;
use crate::ops::td::TdLoss;

/// Which candidates the actor loss improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objective {
    /// The one the critics rate highest: `-max_n agg Q`.
    BestOfN,
    /// All of them: `-mean_n agg Q`. Costs N times the backward.
    MeanN,
}

/// What the critics see of the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// Mean of the embedded tokens, before the language model.
    Embedding,
    /// Mean of the language model's output.
    Llm,
}

impl Features {
    /// How much of the last language layer they need.
    pub fn depth(self) -> Depth {
        match self {
            Features::Embedding => Depth::KeysOnly,
            Features::Llm => Depth::Whole,
        }
    }
}

/// Weights of the losses in the total.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossWeights {
    pub critic: f32,
    pub actor: f32,
    pub bc: f32,
    /// Squared steps between the chosen candidates' actions; zero: not computed.
    pub smoothness: f32,
}

/// One parameter group's optimizer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupConfig {
    pub optimizer: Optimizer,
    /// Limit of the group's gradient norm.
    pub clip: f32,
}

/// The adaptive temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TemperatureConfig {
    /// What the entropy estimate is drawn to.
    pub target_entropy: f32,
    pub group: GroupConfig,
}

/// Everything about a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StepConfig {
    /// Euler steps from noise to action (T).
    pub euler_steps: usize,
    /// Candidates per sample (N).
    pub candidates: usize,
    pub objective: Objective,
    pub critic_loss: TdLoss,
    /// How the target critics become one value, and the online critics in the actor loss.
    pub target_rule: Aggregate,
    pub actor_rule: Aggregate,
    /// Weights of [`Aggregate::Weighted`], one per member, summing to one.
    pub rule_weights: Vec<f32>,
    pub weights: LossWeights,
    pub features: Features,
    /// Let the actor loss reach the prefix through the critics' features (as the original does by accident).
    pub feature_grad: bool,
    /// What does not learn.
    pub freeze: Freeze,
    pub remat: Remat,
    /// A prefix pass of its own for behaviour cloning: the same numbers at twice the cost, for comparison.
    pub separate_prefixes: bool,
    /// Leave out rows whose weight is zero. Off: everything is computed, for comparison with references.
    pub skip_dead_rows: bool,
    /// Share of hidden units dropped in the critic loss.
    pub dropout: f32,
    pub temperature: Option<TemperatureConfig>,
    pub pi0: GroupConfig,
    pub critic: GroupConfig,
    /// Rate of the target critics.
    pub target_rate: f32,
    /// Decay of the weight average, if one is kept.
    pub ema_decay: Option<f32>,
    /// π₀ is updated at every k-th step.
    pub actor_update_freq: u64,
    /// Storage of activations and compute weights.
    pub dtype: DType,
    /// How π₀'s moments are kept.
    pub moments: Format,
    /// Keep π₀'s average in the host's memory.
    pub ema_on_host: bool,
    /// Rows of the prompt table that can learn, as those that occur do; `None`: all. Updates must leave rows that never
    /// occurred as they are ([`lookup::stands_still`](crate::model::lookup::stands_still)) for both to be the same.
    pub prompt_rows: Option<usize>,
    /// Keep parameters that nothing computes with on the host, where they stay as they are. Updates must do the same
    /// to be the same.
    pub unused_on_host: bool,
    /// Residual streams and their gradients in f32, whatever `dtype` is.
    pub f32_residual: bool,
}

impl StepConfig {
    /// How activations are stored.
    pub fn storage(&self) -> Storage {
        Storage {
            dtype: self.dtype,
            f32_residual: self.f32_residual,
        }
    }

    /// Does update number `step` (from 0) change π₀?
    pub fn updates_pi0(&self, step: u64) -> bool {
        step.is_multiple_of(self.actor_update_freq)
    }
}
