//! What else keys are called.

use toml::Value;

/// Other spellings: the original's synonyms, the flat names of its command line, its switches that became choices, and
/// keys that moved.
pub const ALIASES: &[(&str, &str, Translate)] = &[
    ("max_steps", "num_train_steps", same),
    ("max_checkpoints_to_keep", "keep_checkpoints", same),
    ("weights", "model.weights", same),
    ("pi0_checkpoint_path", "model.weights", same),
    ("weight_loader.params_path", "model.weights", same),
    ("checkpoint_base_dir", "checkpoint_dir", same),
    ("num_workers", "data.loader_threads", same),
    ("discount", "acrlpd.discount", same),
    ("target_update_tau", "acrlpd.target_update_rate", same),
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
    ("qchunking.pad_episodes", "qchunking.boundary", |v| {
        choose(v, "pad", "drop")
    }),
    ("data.base_config.prompt_from_task", "data.prompt_from_task", same),
    ("data.adapt_to_pi", "data.transforms", |v| {
        let names = |on: bool| {
            if on {
                vec![Value::String("aloha".into())]
            } else {
                Vec::new()
            }
        };
        v.as_bool().map(|on| Value::Array(names(on)))
    }),
    ("data.extra_delta_transform", "data.use_delta_joint_actions", same),
    ("actor_optimizer.b1", "optimizer.actor.b1", same),
    ("actor_optimizer.b2", "optimizer.actor.b2", same),
    ("actor_optimizer.eps", "optimizer.actor.eps", same),
    ("actor_optimizer.weight_decay", "optimizer.actor.weight_decay", same),
    ("critic_optimizer.b1", "optimizer.critic.b1", same),
    ("critic_optimizer.b2", "optimizer.critic.b2", same),
    ("critic_optimizer.eps", "optimizer.critic.eps", same),
    ("critic_optimizer.weight_decay", "optimizer.critic.weight_decay", same),
    ("critic.num_critics", "acrlpd.num_critics", same),
    ("critic.q_aggregation", "acrlpd.q_aggregation", same),
    ("critic.hidden_dims", "acrlpd.critic_hidden_dims", same),
    ("critic.features", "acrlpd.features", same),
    ("acrlpd.remat", "memory.remat", same),
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
