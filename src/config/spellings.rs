//! What else keys are called, and the keys of the original that mean nothing here.

use toml::Value;

/// Other spellings: the original's synonyms, the flat names of its command line, and its switches that became choices.
pub const ALIASES: &[(&str, &str, Translate)] = &[
    ("max_steps", "num_train_steps", same),
    ("max_checkpoints_to_keep", "keep_checkpoints", same),
    ("weights", "model.weights", same),
    ("action_horizon", "model.action_horizon", same),
    ("action_dim", "qchunking.action_dim", same),
    ("pi0_lr", "acrlpd.actor_lr", same),
    ("critic_lr", "acrlpd.critic_lr", same),
    ("num_critics", "acrlpd.num_critics", same),
    ("critic_hidden_dims", "acrlpd.critic_hidden_dims", same),
    ("best_of_n", "acrlpd.num_action_samples", same),
    ("bc_weight", "acrlpd.bc_loss_weight", same),
    ("acrlpd.pi0_lr", "acrlpd.actor_lr", same),
    ("acrlpd.best_of_n", "acrlpd.num_action_samples", same),
    ("acrlpd.bc_weight", "acrlpd.bc_loss_weight", same),
    ("acrlpd.target_update_tau", "acrlpd.target_update_rate", same),
    ("acrlpd.batch_size", "batch_size", same),
    ("acrlpd.eval_frequency", "eval_interval", same),
    ("acrlpd.use_best_of_n", "acrlpd.actor_objective", |v| {
        choose(v, "best_of_n", "mean_n")
    }),
    ("qchunking.horizon_length", "acrlpd.chunk_length", same),
    ("qchunking.discount", "acrlpd.discount", same),
    ("qchunking.use_sparse_rewards", "qchunking.reward_mode", |v| {
        choose(v, "terminal", "dataset")
    }),
    ("critic.q_aggregation", "acrlpd.q_aggregation", same),
    ("critic.hidden_dims", "acrlpd.critic_hidden_dims", same),
    ("critic.features", "acrlpd.features", same),
];

/// Turns the value of an alias into that of the key it stands for; `None`: it must be true or false.
pub type Translate = fn(Value) -> Option<Value>;

pub fn same(value: Value) -> Option<Value> {
    Some(value)
}

fn choose(value: Value, yes: &str, no: &str) -> Option<Value> {
    value
        .as_bool()
        .map(|on| Value::String(if on { yes } else { no }.into()))
}

/// Keys of the original that mean nothing here, and what to do instead. A key that ends in `.` stands for its table.
pub const UNSUPPORTED: &[(&str, &str)] = &[
    ("project_name", "give --wandb-project on the command line"),
    ("exp_name", "give --exp-name on the command line"),
    ("overwrite", "give --overwrite on the command line"),
    ("resume", "give --resume on the command line"),
    ("wandb_enabled", "give --no-wandb on the command line"),
    ("fsdp_devices", "a run uses one device; remove the line"),
    (
        "episodes_per_memory_pool",
        "frames are read from all episodes at any time; remove the line",
    ),
    (
        "acrlpd.bootstrap_length",
        "the target bootstraps after the whole chunk, model.action_horizon steps; remove the line",
    ),
    ("acrlpd.utd_ratio", "one critic update per step; remove the line"),
    (
        "acrlpd.critic_ema_decay",
        "the target critics are the critics' average; set acrlpd.target_update_rate",
    ),
    (
        "acrlpd.use_ema_for_inference",
        "checkpoints hold the weights and their average; choose when you use them",
    ),
    (
        "acrlpd.positive_episode_ratio",
        "there is no pool of episodes; set acrlpd.positive_batch_ratio",
    ),
    (
        "acrlpd.enable_reward_balanced_episodes",
        "there is no pool of episodes; set acrlpd.enable_batch_ratio_control",
    ),
    ("acrlpd.save_frequency", "set save_interval, at the top of the file"),
    (
        "acrlpd.lr_decay_strategy",
        "the schedule is warm-up and cosine; set optimizer.actor and optimizer.critic",
    ),
    (
        "acrlpd.lr_min_factor",
        "each group has its own; set optimizer.actor.lr_min_factor and optimizer.critic.lr_min_factor",
    ),
    (
        "acrlpd.enable_epoch_based_lr_schedule",
        "schedules count steps, not epochs; remove the line",
    ),
    (
        "acrlpd.lr_decay_factor",
        "schedules count steps, not epochs; set optimizer.actor.decay_steps",
    ),
    (
        "acrlpd.warmup_epochs",
        "schedules count steps, not epochs; set optimizer.actor.warmup_steps",
    ),
    (
        "acrlpd.total_epochs",
        "schedules count steps, not epochs; set optimizer.actor.decay_steps",
    ),
    (
        "acrlpd.steps_per_epoch",
        "schedules count steps, not epochs; remove the line",
    ),
    (
        "acrlpd.intra_epoch_lr_decay",
        "schedules count steps, not epochs; remove the line",
    ),
    (
        "acrlpd.intra_epoch_strategy",
        "schedules count steps, not epochs; remove the line",
    ),
    (
        "acrlpd.intra_epoch_min_factor",
        "schedules count steps, not epochs; remove the line",
    ),
    (
        "acrlpd.lr_absolute_min",
        "the lowest rate is a share of the peak; set optimizer.actor.lr_min_factor",
    ),
    (
        "qchunking.bootstrap_type",
        "the target is the chunk's discounted reward plus one value after it; remove the line",
    ),
    (
        "qchunking.mask_invalid_actions",
        "steps after the end of an episode are masked always; remove the line",
    ),
    (
        "qchunking.pad_episodes",
        "write qchunking.boundary = \"pad\" for true and \"drop\" for false",
    ),
    (
        "qchunking.episode_timeout_penalty",
        "chunks cut by a time limit carry no weight; remove the line",
    ),
    ("critic.activation", "it is ReLU after a LayerNorm; remove the line"),
    (
        "critic.use_layer_norm",
        "every hidden layer has a LayerNorm; remove the line",
    ),
    ("data.assets.", "give data.norm_stats, the path of a norm_stats.json"),
    ("data.assets_dir", "give data.norm_stats, the path of a norm_stats.json"),
    ("data.asset_id", "give data.norm_stats, the path of a norm_stats.json"),
    (
        "data.repack.",
        "name the dataset's features in data.cameras, data.state_key and data.action_key",
    ),
    (
        "data.repack_transforms.",
        "name the dataset's features in data.cameras, data.state_key and data.action_key",
    ),
];
