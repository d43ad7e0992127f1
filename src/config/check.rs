//! What is contradictory or out of range, a rule a statement: the key it is reported at, and what would be right.

mod dataset;
mod network;
mod rules;

use super::error::ConfigError;
use super::notes::{Note, What};
use super::range::Range;
use super::schema::{Config, Optimizer};
use crate::model::critic_networks::Network;
use rules::Rules;

impl Config {
    /// Whether the values make sense, alone and together. [`Config::load`] has done this; it is needed after
    /// [`Config::set`] and after changing fields.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first rule that is broken, with the place where the key was written.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for Note { place, key, what } in &self.origins.notes {
            let What::Ignored { foreign, value } = what else {
                continue;
            };
            let agrees = |value| foreign.agrees(value, |key| self.value(key));
            if !foreign.ignores(value.as_ref()) && !value.as_ref().is_some_and(agrees) {
                let (place, key, why) = (place.clone(), key.clone(), foreign.why);
                return Err(ConfigError::Unsupported { place, key, why });
            }
        }
        match self.rules().broken {
            None => Ok(()),
            Some((key, reason)) => Err(ConfigError::Value {
                place: self.origins.of(&key),
                key,
                reason,
            }),
        }
    }

    /// The range of each key that has one, whatever the others say.
    pub(super) fn ranges() -> Vec<(String, Range)> {
        Config::default().rules().ranges
    }

    fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        self.run(&mut rules);
        self.network(&mut rules);
        self.critics(&mut rules);
        self.actor(&mut rules);
        self.optimizers(&mut rules);
        rules.at_least_one("memory.prompt_rows", self.memory.prompt_rows);
        self.dataset(&mut rules);
        rules
    }

    fn run(&self, r: &mut Rules) {
        let (batch, parts) = (self.batch_size, self.accumulation());
        let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        let a_folder = !self.name.is_empty() && !self.name.starts_with('.') && self.name.chars().all(plain);
        r.forbid(!a_folder, "name", || {
            format!("{:?} names a folder: use letters, digits, `-`, `_`, `.`", self.name)
        });
        r.at_least_one("batch_size", batch);
        r.at_least_one("acrlpd.gradient_accumulation_steps", parts);
        r.forbid(parts > 0 && !batch.is_multiple_of(parts), "batch_size", || {
            let fix = "make it a multiple of acrlpd.gradient_accumulation_steps";
            format!("{batch} samples do not divide into {parts} micro-batches; {fix}")
        });
        let chain = self.acrlpd.chain_batches;
        r.at_least_one("acrlpd.chain_batches", chain);
        let micro = batch / parts.max(1);
        r.forbid(
            chain > 0 && !micro.is_multiple_of(chain),
            "acrlpd.chain_batches",
            || {
                let fix = "use a divisor, or 1";
                format!("micro-batches of {micro} samples do not divide into chains of {chain} chunks; {fix}")
            },
        );
        r.forbid(
            chain > 1 && self.acrlpd.separate_prefixes,
            "acrlpd.chain_batches",
            || "it lets chunks share prefixes, which acrlpd.separate_prefixes forbids; set one of them back".into(),
        );
        r.at_least_one("num_train_steps", self.num_train_steps);
        r.at_least_one("log_interval", self.log_interval);
        let fix = "; set it to num_train_steps to save at the end only";
        r.at_least_one_or("save_interval", self.save_interval, fix);
        r.at_least_one("keep_checkpoints", self.keep_checkpoints);
        r.forbid(self.seed > i64::MAX as u64, "seed", || {
            "it must be below 2^63, the largest number of TOML".into()
        });
        r.forbid(
            self.wandb_enabled && self.project_name.trim().is_empty(),
            "project_name",
            || "it is empty; name the project, or set wandb_enabled = false".into(),
        );
    }

    fn critics(&self, r: &mut Rules) {
        let (a, q, h) = (&self.acrlpd, &self.qchunking, self.model.action_horizon);
        let length = a.chunk_length.unwrap_or(h);
        r.forbid(length != h, "acrlpd.chunk_length", || {
            let fix = "make them equal, or leave it out";
            format!("{length} steps differ from model.action_horizon = {h}, the chunk that the model predicts; {fix}")
        });
        r.within("acrlpd.discount", a.discount, Range::UpToOne, "");
        r.share("acrlpd.target_update_rate", a.target_update_rate);
        r.at_least_one("acrlpd.num_critics", a.num_critics);
        r.ranges.push(("acrlpd.critic_hidden_dims".into(), Range::AtLeastOne));
        let no_layers = a.critic_hidden_dims.is_empty() || a.critic_hidden_dims.contains(&0);
        r.forbid(no_layers, "acrlpd.critic_hidden_dims", || {
            "it must list at least one layer, each at least 1 wide".into()
        });
        let no_pair = !a.critic_hidden_dims.windows(2).any(|w| w[0] == w[1]);
        let residual = a.critic_network == Network::Residual;
        r.forbid(residual && no_pair, "acrlpd.critic_network", || {
            let why = "no two neighbouring layers of acrlpd.critic_hidden_dims have the same width";
            format!("`residual` adds nothing where {why}; use `mlp`, or widths such as [256, 256]")
        });
        r.ranges
            .push(("acrlpd.q_aggregation_weights".into(), Range::NotNegative));
        if let Some(weights) = &a.q_aggregation_weights {
            let key = "acrlpd.q_aggregation_weights";
            r.forbid(weights.len() != a.num_critics, key, || {
                let (n, members) = (weights.len(), a.num_critics);
                format!("it lists {n} weights for acrlpd.num_critics = {members} members; give one each")
            });
            let wrong = weights.iter().find(|w| !Range::NotNegative.holds(**w));
            r.forbid(wrong.is_some(), key, || {
                format!("{} is {}", wrong.unwrap_or(&0.0), Range::NotNegative.complaint())
            });
            r.forbid(weights.iter().sum::<f64>() == 0.0, key, || {
                "all weights are 0; give one above 0".into()
            });
        }
        r.positive("acrlpd.huber_delta", a.huber_delta);
        r.not_negative("acrlpd.critic_loss_weight", a.critic_loss_weight);
        r.below_one("critic.dropout_rate", self.critic.dropout_rate, "0 turns dropout off");
        r.at_least_one("qchunking.action_dim", q.action_dim);
        r.forbid(q.action_dim > self.model.action_dim, "qchunking.action_dim", || {
            let (real, width) = (q.action_dim, self.model.action_dim);
            format!(
                "the robot's {real} coordinates do not fit into model.action_dim = {width}; it must be at most that"
            )
        });
        r.finite("qchunking.reward_scale", q.reward_scale);
        r.finite("qchunking.terminal_reward", q.terminal_reward);
    }

    fn actor(&self, r: &mut Rules) {
        let a = &self.acrlpd;
        r.not_negative("acrlpd.actor_loss_weight", a.actor_loss_weight);
        r.not_negative("acrlpd.bc_loss_weight", a.bc_loss_weight);
        r.not_negative("acrlpd.smoothness_weight", a.smoothness_weight);
        let no_steps = a.smoothness_weight > 0.0 && self.model.action_horizon == 1;
        r.forbid(no_steps, "acrlpd.smoothness_weight", || {
            "a chunk of model.action_horizon = 1 has no step between actions; set it to 0, or make chunks longer".into()
        });
        r.at_least_one("acrlpd.actor_update_freq", a.actor_update_freq);
        let why = ": the best of no candidates has no value";
        r.at_least_one_or("acrlpd.num_action_samples", a.num_action_samples, why);
        r.positive("acrlpd.action_sampling_temperature", a.action_sampling_temperature);
        r.at_least_one("acrlpd.diffusion_steps", a.diffusion_steps);
        self.frozen(r);
        r.below_one(
            "acrlpd.pi0_ema_decay",
            a.pi0_ema_decay,
            "set acrlpd.use_ema = false to keep no average",
        );
        r.positive("acrlpd.target_entropy_multiplier", a.target_entropy_multiplier);
        r.not_negative("acrlpd.temperature_lr", a.temperature_lr);
        let no_spread = a.use_adaptive_temperature && a.num_action_samples == 1;
        r.forbid(no_spread, "acrlpd.use_adaptive_temperature", || {
            let why = "the entropy is the candidates' variance, and acrlpd.num_action_samples = 1 has none";
            format!("{why}; set it to false, or draw more candidates")
        });
        r.share("acrlpd.positive_batch_ratio", a.positive_batch_ratio);
    }

    fn optimizers(&self, r: &mut Rules) {
        let a = &self.acrlpd;
        r.positive("acrlpd.max_grad_norm", a.max_grad_norm);
        r.not_negative("acrlpd.actor_lr", a.actor_lr);
        r.not_negative("acrlpd.critic_lr", a.critic_lr);
        for (group, o) in [("actor", &self.optimizer.actor), ("critic", &self.optimizer.critic)] {
            let Optimizer {
                warmup_steps: warmup,
                decay_steps: decay,
                ..
            } = *o;
            let key = |field: &str| format!("optimizer.{group}.{field}");
            r.below_one(key("b1"), o.b1, "0.9 is usual");
            r.below_one(key("b2"), o.b2, "0.95 is usual");
            r.positive(key("eps"), o.eps);
            r.not_negative(key("weight_decay"), o.weight_decay);
            r.share(key("lr_min_factor"), o.lr_min_factor);
            r.forbid(decay <= warmup, key("decay_steps"), || {
                let fix = format!("make it greater than {}", key("warmup_steps"));
                format!("the decay would end at step {decay}, before the warm-up of {warmup} steps has; {fix}")
            });
        }
    }
}
