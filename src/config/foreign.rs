//! Keys of the original that mean nothing here: what to do instead, and which values ask for nothing.
//!
//! A written-out configuration of the original has them all. A value that asks for what happens here anyway, or that
//! the original has by default and never uses, is ignored with a note; any other is refused with the reason.

use toml::Value;

/// A key of the original without a meaning here.
#[derive(Debug)]
pub struct Foreign {
    /// Its dotted name.
    pub key: &'static str,
    /// Why it means nothing, and what to do instead.
    pub why: &'static str,
    /// Every value asks for nothing.
    pub(super) always: bool,
    /// Values, as TOML, that ask for nothing.
    pub(super) harmless: &'static [&'static str],
    /// The value asks for nothing if all of these keys have it too.
    pub(super) same_as: &'static [&'static str],
}

impl Foreign {
    pub(super) fn values(&self) -> Vec<Value> {
        self.harmless.iter().filter_map(|text| text.parse().ok()).collect()
    }

    /// Whether `value` asks for nothing, whatever else is written; an unset one does.
    pub(super) fn ignores(&self, value: Option<&Value>) -> bool {
        let Some(value) = value else { return true };
        self.always || self.values().iter().any(|harmless| equal(harmless, value))
    }

    /// Whether `value` asks for nothing beside the values of other keys, which `of` tells.
    pub(super) fn agrees(&self, value: &Value, of: impl Fn(&str) -> Option<Value>) -> bool {
        let same = |key: &&str| of(key).is_some_and(|other| equal(&other, value));
        !self.same_as.is_empty() && self.same_as.iter().all(same)
    }
}

/// `1` and `1.0` are equal here.
fn equal(a: &Value, b: &Value) -> bool {
    let number = |v: &Value| v.as_float().or(v.as_integer().map(|i| i as f64));
    a == b || number(a).is_some() && number(a) == number(b)
}

/// Every value asks for nothing.
const fn ignored(key: &'static str, why: &'static str) -> Foreign {
    Foreign {
        key,
        why,
        always: true,
        harmless: &[],
        same_as: &[],
    }
}

/// Only these values ask for nothing.
const fn only(key: &'static str, harmless: &'static [&'static str], why: &'static str) -> Foreign {
    Foreign {
        key,
        why,
        always: false,
        harmless,
        same_as: &[],
    }
}

/// These values ask for nothing, and that of other keys.
const fn or_as(
    key: &'static str,
    harmless: &'static [&'static str],
    same_as: &'static [&'static str],
    why: &'static str,
) -> Foreign {
    Foreign {
        key,
        why,
        always: false,
        harmless,
        same_as,
    }
}

const AHEAD: &str = "batches are made ahead always; see data.queue_depth";
const STATISTICS: &str = "statistics are computed at the start, or given by data.norm_stats";
const GROUPS: &str = "each group has its own; set optimizer.actor and optimizer.critic";
const EPOCHS: &str = "schedules count steps, not epochs; remove the line";
const NORM_STATS: &str = "give data.norm_stats, the path of a norm_stats.json";
const FEATURES: &str = "name the dataset's features in data.cameras, data.state_key and data.action_key";
const NO_TRANSFORMS: &str = "{ inputs = [], outputs = [] }";

/// Keys of the original that mean nothing here, and what to do instead.
pub const FOREIGN: &[Foreign] = &[
    ignored("exp_name", "give --exp-name on the command line"),
    only("overwrite", &["false"], "give --overwrite on the command line"),
    only("resume", &["false"], "give --resume on the command line"),
    only("fsdp_devices", &["1"], "a run uses one device; remove the line"),
    ignored(
        "episodes_per_memory_pool",
        "frames are read from all episodes at any time; remove the line",
    ),
    ignored("async_loading_enabled", AHEAD),
    ignored("async_trigger_ratio", AHEAD),
    only("enable_perf_analysis", &["false"], "use `acrlpd bench`"),
    ignored("policy_metadata", "it says nothing to training"),
    ignored("assets_base_dir", STATISTICS),
    only(
        "keep_period",
        &["5000"],
        "the newest keep_checkpoints stay, no others; set that",
    ),
    only(
        "freeze_filter",
        &[],
        "name what is fixed in acrlpd.freeze or acrlpd.freeze_filter",
    ),
    only("ema_decay", &["0.99"], "set acrlpd.pi0_ema_decay"),
    ignored(
        "pi0_weight_loader.params_path",
        "weights come from weight_loader.params_path, or model.weights",
    ),
    or_as(
        "model.discrete_state_input",
        &[],
        &["model.pi05"],
        "it follows from model.pi05; remove the line",
    ),
    or_as(
        "critic.action_dim",
        &[],
        &["qchunking.action_dim"],
        "critics see the robot's own coordinates, qchunking.action_dim; remove the line",
    ),
    only(
        "optimizer.b1",
        &["0.9"],
        "each group has its own; set optimizer.actor.b1 and optimizer.critic.b1",
    ),
    only(
        "optimizer.b2",
        &["0.95"],
        "each group has its own; set optimizer.actor.b2 and optimizer.critic.b2",
    ),
    only(
        "optimizer.eps",
        &["1e-8"],
        "each group has its own; set optimizer.actor.eps and optimizer.critic.eps",
    ),
    only(
        "optimizer.weight_decay",
        &["1e-10"],
        "each group has its own; set optimizer.actor.weight_decay and optimizer.critic.weight_decay",
    ),
    only("optimizer.clip_gradient_norm", &["1.0"], "set acrlpd.max_grad_norm"),
    or_as(
        "actor_optimizer.clip_gradient_norm",
        &["1.0"],
        &["acrlpd.max_grad_norm"],
        "set acrlpd.max_grad_norm",
    ),
    or_as(
        "critic_optimizer.clip_gradient_norm",
        &["1.0"],
        &["acrlpd.max_grad_norm"],
        "set acrlpd.max_grad_norm",
    ),
    only("lr_schedule.warmup_steps", &["1000"], GROUPS),
    only("lr_schedule.peak_lr", &["2.5e-5"], GROUPS),
    only("lr_schedule.decay_steps", &["30000"], GROUPS),
    only("lr_schedule.decay_lr", &["2.5e-6"], GROUPS),
    or_as(
        "actor_lr_schedule.warmup_steps",
        &["20000"],
        &["optimizer.actor.warmup_steps"],
        "set optimizer.actor.warmup_steps",
    ),
    or_as(
        "actor_lr_schedule.decay_steps",
        &["200000"],
        &["optimizer.actor.decay_steps"],
        "set optimizer.actor.decay_steps",
    ),
    or_as(
        "actor_lr_schedule.peak_lr",
        &["1e-4"],
        &["acrlpd.actor_lr"],
        "set acrlpd.actor_lr",
    ),
    only(
        "actor_lr_schedule.decay_lr",
        &["2.5e-6"],
        "the end is a share of the peak; set optimizer.actor.lr_min_factor",
    ),
    or_as(
        "critic_lr_schedule.warmup_steps",
        &["20000"],
        &["optimizer.critic.warmup_steps"],
        "set optimizer.critic.warmup_steps",
    ),
    or_as(
        "critic_lr_schedule.decay_steps",
        &["200000"],
        &["optimizer.critic.decay_steps"],
        "set optimizer.critic.decay_steps",
    ),
    or_as(
        "critic_lr_schedule.peak_lr",
        &["3e-4"],
        &["acrlpd.critic_lr"],
        "set acrlpd.critic_lr",
    ),
    only(
        "critic_lr_schedule.decay_lr",
        &["2.5e-6"],
        "the end is a share of the peak; set optimizer.critic.lr_min_factor",
    ),
    or_as(
        "acrlpd.bootstrap_length",
        &[],
        &["model.action_horizon"],
        "the target bootstraps after the whole chunk, model.action_horizon steps; remove the line",
    ),
    only(
        "acrlpd.utd_ratio",
        &["1"],
        "one critic update per step; remove the line",
    ),
    only(
        "acrlpd.critic_ema_decay",
        &["0.99"],
        "the target critics are the critics' average; set acrlpd.target_update_rate",
    ),
    ignored(
        "acrlpd.use_ema_for_inference",
        "checkpoints hold the weights and their average; choose when you use them",
    ),
    only(
        "acrlpd.positive_episode_ratio",
        &["0.4"],
        "there is no pool of episodes; set acrlpd.positive_batch_ratio",
    ),
    ignored(
        "acrlpd.enable_reward_balanced_episodes",
        "there is no pool of episodes; set acrlpd.enable_batch_ratio_control",
    ),
    or_as(
        "acrlpd.save_frequency",
        &["50000"],
        &["save_interval"],
        "set save_interval, at the top of the file",
    ),
    only(
        "acrlpd.lr_decay_strategy",
        &["\"cosine\""],
        "the schedule is warm-up and cosine; set optimizer.actor and optimizer.critic",
    ),
    or_as(
        "acrlpd.lr_min_factor",
        &[],
        &["optimizer.actor.lr_min_factor", "optimizer.critic.lr_min_factor"],
        "each group has its own; set optimizer.actor.lr_min_factor and optimizer.critic.lr_min_factor",
    ),
    only("acrlpd.enable_epoch_based_lr_schedule", &["false"], EPOCHS),
    ignored(
        "acrlpd.lr_decay_factor",
        "schedules count steps, not epochs; set optimizer.actor.decay_steps",
    ),
    ignored(
        "acrlpd.warmup_epochs",
        "schedules count steps, not epochs; set optimizer.actor.warmup_steps",
    ),
    ignored(
        "acrlpd.total_epochs",
        "schedules count steps, not epochs; set optimizer.actor.decay_steps",
    ),
    ignored("acrlpd.steps_per_epoch", EPOCHS),
    ignored("acrlpd.intra_epoch_lr_decay", EPOCHS),
    ignored("acrlpd.intra_epoch_strategy", EPOCHS),
    ignored("acrlpd.intra_epoch_min_factor", EPOCHS),
    ignored(
        "acrlpd.lr_absolute_min",
        "the lowest rate is a share of the peak; set optimizer.actor.lr_min_factor",
    ),
    only(
        "qchunking.bootstrap_type",
        &["\"standard\""],
        "the target is the chunk's discounted reward plus one value after it; remove the line",
    ),
    only(
        "qchunking.mask_invalid_actions",
        &["true"],
        "steps after the end of an episode are masked always; remove the line",
    ),
    only(
        "qchunking.episode_timeout_penalty",
        &["0"],
        "chunks cut by a time limit carry no weight; remove the line",
    ),
    only(
        "critic.activation",
        &["\"relu\""],
        "it is ReLU after a LayerNorm; remove the line",
    ),
    only(
        "critic.use_layer_norm",
        &["true"],
        "every hidden layer has a LayerNorm; remove the line",
    ),
    only("data.assets.assets_dir", &[], NORM_STATS),
    ignored("data.assets.asset_id", STATISTICS),
    only("data.assets_dir", &[], NORM_STATS),
    ignored("data.asset_id", STATISTICS),
    only("data.repack", &[], FEATURES),
    only("data.repack_transforms", &[NO_TRANSFORMS], FEATURES),
    only(
        "data.action_sequence_keys",
        &["[\"action\"]", "[\"actions\"]"],
        "name the dataset's action in data.action_key",
    ),
    or_as("data.base_config.repo_id", &[], &["data.repo_id"], "set data.repo_id"),
    ignored("data.base_config.asset_id", STATISTICS),
    only("data.base_config.norm_stats", &[], NORM_STATS),
    only("data.base_config.use_quantile_norm", &["false"], "set data.norm"),
    only(
        "data.base_config.action_sequence_keys",
        &["[\"action\"]", "[\"actions\"]"],
        "name the dataset's action in data.action_key",
    ),
    only("data.base_config.repack_transforms", &[NO_TRANSFORMS], FEATURES),
    only("data.base_config.data_transforms", &[NO_TRANSFORMS], FEATURES),
    only("data.base_config.model_transforms", &[NO_TRANSFORMS], FEATURES),
];
