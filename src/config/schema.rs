//! The fields of a configuration, their types and defaults. `configs/*.toml` explain each one to users.
//!
//! Group and field names are those of the original (openpi's `TrainConfig` and its ACRLPD extension). A field is here
//! only if something reads it; [`FOREIGN`](super::FOREIGN) says what became of the others.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::choices::{
    ActorObjective, CriticLoss, ExpertVariant, Features, MemoryPreset, Moments, PaligemmaVariant, Part, Precision,
    PromptStates, QAggregation, Remat, ResidualPrecision,
};
use super::layers::Origins;
use crate::data::{Boundary, EpisodeEnd, NormKind, Parts, RewardMode, transforms};
use crate::model::critic_networks::Network;
use crate::ops::{augmentations, optimizers};

/// Everything a run is told. Made by [`Config::load`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Names the folder of the run's checkpoints; without one in the file, the file's own name.
    pub name: String,
    /// Samples of an optimizer step.
    pub batch_size: usize,
    pub num_train_steps: u64,
    /// Steps between two rows of metrics.
    pub log_interval: u64,
    /// Steps between two checkpoints.
    pub save_interval: u64,
    /// Steps between two evaluations on held-out episodes; 0: none.
    pub eval_interval: u64,
    pub seed: u64,
    /// Complete checkpoints kept on disk.
    pub keep_checkpoints: usize,
    /// Most host memory in 10⁶ bytes that a checkpoint on its way to the disk may take; 0: half of what is free.
    pub save_memory_mb: usize,
    /// Root of all checkpoints, relative to the current folder.
    pub checkpoint_dir: PathBuf,
    /// Project of the run at wandb.
    pub project_name: String,
    /// Write a run for `wandb sync` beside the metrics.
    pub wandb_enabled: bool,
    pub model: Model,
    pub acrlpd: Acrlpd,
    pub qchunking: QChunking,
    pub critic: Critic,
    pub optimizer: Optimizers,
    pub memory: Memory,
    pub data: Data,
    /// Where each value was written, for error messages.
    #[serde(skip)]
    pub(super) origins: Origins,
}

/// `[model]`: π₀ or π₀.₅.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    pub paligemma_variant: PaligemmaVariant,
    pub action_expert_variant: ExpertVariant,
    /// A: states and actions are padded to this width.
    pub action_dim: usize,
    /// H: actions of a chunk.
    pub action_horizon: usize,
    /// L: prompt tokens; `None`: 48 for π₀, 200 for π₀.₅.
    pub max_token_len: Option<usize>,
    pub dtype: Precision,
    pub residual_dtype: ResidualPrecision,
    pub pi05: bool,
    /// Side of the input images in pixels.
    pub image_size: usize,
    /// Of openpi (JAX or PyTorch), of lerobot, or a checkpoint of ours; `None`: random weights from the seed.
    pub weights: Option<PathBuf>,
    pub dims: DimsOverride,
    pub lora: LoraOverride,
}

/// `[model.lora]`: adapters that differ from the variant's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraOverride {
    pub language_rank: Option<usize>,
    pub language_alpha: Option<f64>,
    pub expert_rank: Option<usize>,
    pub expert_alpha: Option<f64>,
}

/// `[model.dims]`: sizes that differ from the variant's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DimsOverride {
    pub vision_width: Option<usize>,
    pub vision_mlp: Option<usize>,
    pub vision_depth: Option<usize>,
    pub vision_heads: Option<usize>,
    pub language_width: Option<usize>,
    pub language_mlp: Option<usize>,
    pub expert_width: Option<usize>,
    pub expert_mlp: Option<usize>,
    pub depth: Option<usize>,
    pub heads: Option<usize>,
    pub kv_heads: Option<usize>,
    pub head_dim: Option<usize>,
    pub vocab: Option<usize>,
    pub cameras: Option<Vec<String>>,
}

/// `[acrlpd]`: the algorithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Acrlpd {
    /// gamma of one environment step.
    pub discount: f64,
    /// tau: `target <- (1 - tau) target + tau online` after every step.
    pub target_update_rate: f64,
    /// Steps of an action chunk; must equal `model.action_horizon`, and need not be given.
    pub chunk_length: Option<usize>,

    /// Peak learning rate of the critics.
    pub critic_lr: f64,
    pub critic_hidden_dims: Vec<usize>,
    pub critic_network: Network,
    /// E: members of the ensemble.
    pub num_critics: usize,
    pub critic_loss: CriticLoss,
    /// Where Huber's parabola turns into a line.
    pub huber_delta: f64,
    pub critic_loss_weight: f64,
    /// How the target is made of the ensemble's values.
    pub q_aggregation: QAggregation,
    /// Weights of "weighted", one per member, in any scale; `None`: all equal.
    pub q_aggregation_weights: Option<Vec<f64>>,
    pub features: Features,

    /// Peak learning rate of π₀.
    pub actor_lr: f64,
    /// π₀ is updated at every k-th step.
    pub actor_update_freq: u64,
    /// N: candidate chunks per state.
    pub num_action_samples: usize,
    /// Scale of the candidates' initial noise.
    pub action_sampling_temperature: f64,
    /// Euler steps from noise to actions.
    pub diffusion_steps: usize,
    pub actor_objective: ActorObjective,
    /// `None`: as `q_aggregation`.
    pub actor_q_aggregation: Option<QAggregation>,
    pub actor_loss_weight: f64,
    /// Let the actor loss reach the vision tower through the critic's features, as the original does.
    pub feature_grad: bool,
    pub bc_loss_weight: f64,
    /// Factor of the chosen candidates' mean squared step between actions; 0: not computed.
    pub smoothness_weight: f64,

    pub use_ema: bool,
    pub pi0_ema_decay: f64,

    pub use_adaptive_temperature: bool,
    /// Target entropy per coordinate of the model's actions, negated.
    pub target_entropy_multiplier: f64,
    pub temperature_lr: f64,

    pub gradient_accumulation_steps: usize,
    /// `false` means one accumulation step.
    pub enable_gradient_accumulation: bool,
    /// Largest global gradient norm of each group.
    pub max_grad_norm: f64,
    /// Share of a batch that starts in successful episodes.
    pub positive_batch_ratio: f64,
    pub enable_batch_ratio_control: bool,
    /// Consecutive chunks of an episode drawn together; above 1 they share prefixes.
    pub chain_batches: usize,
    /// Compute a prefix for each loss, as the original does, instead of one for all.
    pub separate_prefixes: bool,
    /// Parts of π₀ that are not trained.
    pub freeze: Vec<Part>,
    /// Patterns of names of parameters that are not trained; with `!` in front, that are.
    pub freeze_filter: Vec<String>,
}

/// `[qchunking]`: rewards and chunks on the data side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QChunking {
    /// Coordinates that the robot's actions really have.
    pub action_dim: usize,
    pub reward_scale: f64,
    /// Reward of a success in reward mode "terminal", before scaling.
    pub terminal_reward: f64,
    pub reward_mode: RewardMode,
    pub boundary: Boundary,
    pub episode_end: EpisodeEnd,
}

/// `[critic]`: regularisation of the critics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Critic {
    pub dropout_rate: f64,
}

/// `[optimizer]`: two groups of parameters, an optimizer each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizers {
    pub actor: Optimizer,
    pub critic: Optimizer,
}

/// Decoupled weight decay, linear warm-up and cosine decay. The peak learning rate is in `[acrlpd]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    pub kind: optimizers::Kind,
    pub b1: f64,
    pub b2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Steps until the learning rate has reached its peak.
    pub warmup_steps: u64,
    /// Step at which it has fallen to `lr_min_factor` of the peak, counted from the start of the run.
    pub decay_steps: u64,
    pub lr_min_factor: f64,
}

/// `[memory]`: what lies in the device's memory, and how. What is `None` is as the preset says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Memory {
    pub preset: MemoryPreset,
    /// What backward recomputes instead of keeping it.
    pub remat: Option<Remat>,
    /// Keep π₀'s weight average in the host's memory.
    pub ema_on_host: Option<bool>,
    /// How π₀'s optimizer moments are kept.
    pub moments: Option<Moments>,
    /// Rows of the prompt table that have a gradient, moments and an average.
    pub prompt_states: PromptStates,
    /// Rows of "touched" there is room for, at least.
    pub prompt_rows: usize,
}

/// `[data]`: the dataset and how it is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder of a LeRobot dataset.
    pub path: Option<PathBuf>,
    /// The dataset's public name, for where there is no `path`.
    pub repo_id: Option<String>,
    /// Datasets that are mixed with it: folders, or public names.
    pub mix: Vec<String>,
    /// How often each is drawn from, the dataset of `path` or `repo_id` first; empty: all frames alike.
    pub mix_weights: Vec<f64>,
    pub default_prompt: Option<String>,
    pub prompt_from_task: bool,
    /// The robot's own transforms of state and action, in order.
    pub transforms: Vec<transforms::Kind>,
    /// Actions relative to the chunk's first state, where `delta_mask` says so.
    pub use_delta_joint_actions: bool,
    /// Coordinates that become deltas, as openpi's `make_bool_mask` counts them; `None`: all but the grippers.
    pub delta_mask: Option<Vec<i64>>,
    /// `None`: z-scores for π₀, quantiles for π₀.₅.
    pub norm: Option<NormKind>,
    /// An openpi `norm_stats.json`; `None`: computed at the start.
    pub norm_stats: Option<PathBuf>,
    /// A SentencePiece `.model`, or a `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// Dataset features of the state.
    pub state_key: Parts,
    /// Dataset features of the action.
    pub action_key: Parts,
    /// Success of episodes in a dataset that does not say.
    pub default_success: Option<bool>,
    /// Random crop, rotation and colours of the training images.
    pub augment: bool,
    /// What comes on top, in order.
    pub augmentations: Vec<augmentations::Kind>,
    pub loader_threads: usize,
    /// Batches made ahead of time.
    pub queue_depth: usize,
    /// Share of the episodes held out for evaluation.
    pub eval_fraction: f64,
    /// Dataset feature of each model camera; cameras left out are masked.
    pub cameras: BTreeMap<String, String>,
}
