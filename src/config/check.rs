//! What is contradictory or out of range, a rule a statement: the key it is reported at, and what would be right.

use super::error::ConfigError;
use super::names::nearest_of;
use super::notes::{Note, What};
use super::range::Range;
use super::schema::{Config, ExpertVariant, Features, Optimizer, PaligemmaVariant, Part};
use super::source::is_address;
use crate::model::critic_networks::Network;
use crate::model::dims::PATCH;
use crate::model::freeze::{Freeze, Reach};
use crate::model::tables;

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

    fn network(&self, r: &mut Rules) {
        let (m, dims) = (&self.model, self.pi0_dims());
        r.forbid(
            m.image_size == 0 || !m.image_size.is_multiple_of(PATCH),
            "model.image_size",
            || {
                let fix = "use 224 (π₀'s), or another multiple of 14";
                format!("{} pixels do not divide into patches of {PATCH}; {fix}", m.image_size)
            },
        );
        r.ranges.push(("model.image_size".into(), Range::MultipleOf(PATCH)));
        let address = m
            .weights
            .as_ref()
            .is_some_and(|path| is_address(&path.to_string_lossy()));
        r.forbid(address, "model.weights", || {
            "it is an address; download the weights and give their folder, e.g. with --set model.weights=DIR".into()
        });
        r.at_least_one("model.action_horizon", m.action_horizon);
        r.at_least_one("model.action_dim", m.action_dim);
        r.at_least_one("model.max_token_len", dims.max_token_len);
        let (vlm, expert) = (m.paligemma_variant, m.action_expert_variant);
        let tiny = matches!(vlm, PaligemmaVariant::Tiny | PaligemmaVariant::TinyLora);
        let mixed = tiny != matches!(expert, ExpertVariant::Tiny | ExpertVariant::TinyLora);
        r.forbid(mixed, "model.action_expert_variant", || {
            let why = format!("which has other layers than model.paligemma_variant `{vlm}`");
            format!("`{expert}` cannot be used, {why}; make both `tiny` or neither")
        });
        self.adapters(r);
        for (key, size) in m.dims.sizes() {
            r.at_least_one(key, size.unwrap_or(1));
        }
        let repeated = dims
            .cameras
            .iter()
            .enumerate()
            .any(|(i, camera)| dims.cameras[..i].contains(camera));
        r.forbid(repeated, "model.dims.cameras", || {
            "it names a camera twice; keep one".into()
        });
        let problem = dims.problem();
        r.forbid(problem.is_some(), "model.dims", || problem.unwrap_or_default());
    }

    fn adapters(&self, r: &mut Rules) {
        let (m, has) = (&self.model, self.pi0_dims().lora);
        let stacks = [
            (
                "language",
                m.lora.language_rank,
                m.lora.language_alpha,
                has.language.is_some(),
                "paligemma_variant",
            ),
            (
                "expert",
                m.lora.expert_rank,
                m.lora.expert_alpha,
                has.expert.is_some(),
                "action_expert_variant",
            ),
        ];
        for (stack, rank, alpha, has, variant) in stacks {
            let (of_rank, of_alpha) = (format!("model.lora.{stack}_rank"), format!("model.lora.{stack}_alpha"));
            r.at_least_one(&of_rank, rank.unwrap_or(1));
            r.positive(of_alpha.as_str(), alpha.unwrap_or(1.0));
            for (key, given) in [(of_rank, rank.is_some()), (of_alpha, alpha.is_some())] {
                r.forbid(given && !has, key, || {
                    format!(
                        "there are no adapters; set model.{variant} to a variant that ends in _lora, or leave it out"
                    )
                });
            }
        }
    }

    /// What is held fixed.
    fn frozen(&self, r: &mut Rules) {
        let (a, freeze) = (&self.acrlpd, self.freeze());
        let repeated = a
            .freeze
            .iter()
            .enumerate()
            .find(|(i, part)| a.freeze[..*i].contains(part));
        r.forbid(repeated.is_some(), "acrlpd.freeze", || {
            let part = repeated.map_or(Part::Vision, |(_, part)| *part);
            format!("it names `{part}` twice; keep one")
        });
        let dims = self.pi0_dims();
        if dims.problem().is_some() {
            return; // Another rule says so, and there are no names to compare with.
        }
        let table = tables::pi0(&dims);
        let filters = a
            .freeze_filter
            .iter()
            .fold(Freeze::NOTHING, |all, pattern| all.names(pattern));
        let idle = filters.idle(&table).map(String::from);
        r.forbid(idle.is_some(), "acrlpd.freeze_filter", || {
            let pattern = idle.unwrap_or_default();
            format!("no parameter has a name like `{pattern}`; * stands for any text, as in \"*.self_attn.*\"")
        });
        let divided = freeze.divided(&table);
        r.forbid(divided.is_some(), "acrlpd.freeze_filter", || {
            let (learns, frozen) = divided.unwrap_or_default();
            format!("`{frozen}` and `{learns}` are one matrix here, of which it freezes a part; name both or neither")
        });
        let reach = Reach::of(&freeze.mark(table), &dims);
        let fixed = match a.features {
            Features::Embedding => !reach.tokens(),
            Features::Llm => !reach.prefix(dims.depth),
        };
        r.forbid(a.feature_grad && fixed, "acrlpd.feature_grad", || {
            let why = "it trains vision and prompt embedding through the critics' features";
            format!("{why}, but acrlpd.freeze holds both fixed; set it to false, or thaw one")
        });
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

    fn dataset(&self, r: &mut Rules) {
        let (d, cameras, real) = (&self.data, self.pi0_dims().cameras, self.qchunking.action_dim);
        let list = || cameras.iter().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(", ");
        for name in d.cameras.keys() {
            r.forbid(!cameras.contains(name), "data.cameras", || {
                match nearest_of(name, cameras.iter().map(String::as_str)) {
                    Some(near) => format!("the model has no camera `{name}`; did you mean `{near}`?"),
                    None => format!("the model has no camera `{name}`; it has {}", list()),
                }
            });
        }
        r.forbid(d.cameras.is_empty(), "data.cameras", || {
            format!(
                "the model would see nothing; give the dataset feature of at least one of {}",
                list()
            )
        });
        let blank = d.default_prompt.as_ref().is_some_and(|text| text.trim().is_empty());
        r.forbid(blank, "data.default_prompt", || {
            "it is empty; write what the robot shall do, or leave it out and set data.prompt_from_task = true".into()
        });
        r.forbid(
            !d.prompt_from_task && d.default_prompt.is_none(),
            "data.default_prompt",
            || "there is no prompt; give one, or set data.prompt_from_task = true".into(),
        );
        for (i, transform) in d.transforms.iter().enumerate() {
            let (name, width) = (transform.name(), transform.width().unwrap_or(real));
            r.forbid(width != real, "data.transforms", || {
                format!("`{name}` is for {width} coordinates, but qchunking.action_dim is {real}; take it out")
            });
            r.forbid(d.transforms[..i].contains(transform), "data.transforms", || {
                format!("it names `{name}` twice; keep one")
            });
        }
        if let Some(runs) = &d.delta_mask {
            let width = runs.iter().fold(0u64, |sum, n| sum.saturating_add(n.unsigned_abs()));
            r.forbid(width > real as u64, "data.delta_mask", || {
                format!("it speaks of {width} coordinates, but qchunking.action_dim is {real}; shorten it")
            });
        }
        for (key, parts) in [("data.state_key", &d.state_key), ("data.action_key", &d.action_key)] {
            r.forbid(
                parts.0.is_empty() || parts.0.iter().any(|p| p.feature.is_empty()),
                key,
                || "it must name a feature of the dataset".into(),
            );
        }
        r.ranges.push(("data.mix_weights".into(), Range::NotNegative));
        let (weights, datasets) = (d.mix_weights.len(), 1 + d.mix.len());
        r.forbid(weights > 0 && weights != datasets, "data.mix_weights", || {
            format!("it lists {weights} weights for {datasets} datasets; give one each, that of data.path first")
        });
        let wrong = d.mix_weights.iter().find(|w| !Range::NotNegative.holds(**w));
        r.forbid(wrong.is_some(), "data.mix_weights", || {
            format!("{} is {}", wrong.unwrap_or(&0.0), Range::NotNegative.complaint())
        });
        r.forbid(
            weights > 0 && d.mix_weights.iter().sum::<f64>() == 0.0,
            "data.mix_weights",
            || "all weights are 0; give one above 0".into(),
        );
        r.forbid(d.mix.iter().any(String::is_empty), "data.mix", || {
            "it lists an empty path; name a dataset or leave it out".into()
        });
        r.at_least_one("data.loader_threads", d.loader_threads);
        r.at_least_one("data.queue_depth", d.queue_depth);
        r.below_one(
            "data.eval_fraction",
            d.eval_fraction,
            "some episodes must remain to train on",
        );
        r.forbid(
            self.eval_interval > 0 && d.eval_fraction == 0.0,
            "data.eval_fraction",
            || {
                "with 0 no episode is left to evaluate on; set eval_interval = 0, or hold out a share of the episodes"
                    .into()
            },
        );
    }
}

/// The first broken rule: its key, and what would be right. And the ranges met on the way, for the schema.
#[derive(Default)]
struct Rules {
    broken: Option<(String, String)>,
    ranges: Vec<(String, Range)>,
}

impl Rules {
    fn forbid(&mut self, broken: bool, key: impl Into<String>, fix: impl FnOnce() -> String) {
        if broken && self.broken.is_none() {
            self.broken = Some((key.into(), fix()));
        }
    }

    fn at_least_one<N: Default + PartialEq>(&mut self, key: &str, n: N) {
        self.at_least_one_or(key, n, "");
    }

    fn at_least_one_or<N: Default + PartialEq>(&mut self, key: &str, n: N, why: &str) {
        self.ranges.push((key.into(), Range::AtLeastOne));
        self.forbid(n == N::default(), key, || format!("it must be at least 1{why}"));
    }

    fn within(&mut self, key: impl Into<String>, x: f64, range: Range, fix: &str) {
        let key = key.into();
        self.forbid(!range.holds(x), key.as_str(), || {
            format!("{x} is {}{fix}", range.complaint())
        });
        self.ranges.push((key, range));
    }

    fn share(&mut self, key: impl Into<String>, x: f64) {
        self.within(key, x, Range::Share, "");
    }

    fn below_one(&mut self, key: impl Into<String>, x: f64, fix: &str) {
        self.within(key, x, Range::BelowOne, &format!("; {fix}"));
    }

    fn positive(&mut self, key: impl Into<String>, x: f64) {
        self.within(key, x, Range::Positive, "");
    }

    fn not_negative(&mut self, key: impl Into<String>, x: f64) {
        self.within(key, x, Range::NotNegative, "");
    }

    fn finite(&mut self, key: impl Into<String>, x: f64) {
        self.forbid(!x.is_finite(), key, || format!("{x} is not a finite number"));
    }
}
