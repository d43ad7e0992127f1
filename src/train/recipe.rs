//! What a configuration means for the step.

use crate::config::{self, ActorObjective, Config, CriticLoss, PromptStates, QAggregation, ResidualPrecision};
use crate::model::lookup;
use crate::model::remat::Remat;
use crate::ops::blockwise::Format;
use crate::ops::ensemble::Aggregate;
use crate::ops::optimizers::Hyper;
use crate::ops::td::TdLoss;
use crate::step::config::{Features, GroupConfig, LossWeights, Objective, StepConfig, TemperatureConfig};
use crate::step::optimizer::Rates;

/// The step that `config` describes.
pub fn step_config(config: &Config) -> StepConfig {
    let a = &config.acrlpd;
    let pi0 = group(&config.optimizer.actor, a.max_grad_norm);
    StepConfig {
        euler_steps: a.diffusion_steps,
        candidates: a.num_action_samples,
        objective: match a.actor_objective {
            ActorObjective::BestOfN => Objective::BestOfN,
            ActorObjective::MeanN => Objective::MeanN,
        },
        critic_loss: match a.critic_loss {
            CriticLoss::Huber => TdLoss::Huber(a.huber_delta as f32),
            CriticLoss::Mse => TdLoss::Square,
        },
        target_rule: aggregate(a.q_aggregation),
        actor_rule: aggregate(config.actor_q_aggregation()),
        rule_weights: config.q_weights().into_iter().map(|w| w as f32).collect(),
        weights: LossWeights {
            critic: a.critic_loss_weight as f32,
            actor: a.actor_loss_weight as f32,
            bc: a.bc_loss_weight as f32,
            smoothness: a.smoothness_weight as f32,
        },
        features: match a.features {
            config::Features::Embedding => Features::Embedding,
            config::Features::Llm => Features::Llm,
        },
        feature_grad: a.feature_grad,
        freeze: config.freeze(),
        remat: match config.remat() {
            config::Remat::None => Remat::None,
            config::Remat::Mlp => Remat::Mlp,
            config::Remat::Full => Remat::Full,
        },
        separate_prefixes: a.separate_prefixes,
        skip_dead_rows: true,
        dropout: config.critic.dropout_rate as f32,
        temperature: a.use_adaptive_temperature.then(|| TemperatureConfig {
            target_entropy: -(a.target_entropy_multiplier * config.model.action_dim as f64) as f32,
            group: pi0,
        }),
        pi0,
        critic: group(&config.optimizer.critic, a.max_grad_norm),
        target_rate: a.target_update_rate as f32,
        ema_decay: a.use_ema.then_some(a.pi0_ema_decay as f32),
        actor_update_freq: a.actor_update_freq,
        dtype: config.model.dtype.into(),
        ema_on_host: config.ema_on_host(),
        moments: match config.moments() {
            config::Moments::Float32 => Format::Float32,
            config::Moments::Blockwise8 => Format::Blockwise8,
        },
        prompt_rows: prompt_rows(config).ok(),
        unused_on_host: lookup::stands_still(a.actor_lr, config.optimizer.actor.weight_decay),
        f32_residual: config.model.residual_dtype == ResidualPrecision::Float32,
    }
}

/// How many rows of the prompt table can learn, as those that occur do; if all of them do, why.
pub fn prompt_rows(config: &Config) -> Result<usize, String> {
    let (lr, decay) = (config.acrlpd.actor_lr, config.optimizer.actor.weight_decay);
    let (rows, vocab) = (config.memory.prompt_rows, config.pi0_dims().vocab);
    if config.memory.prompt_states == PromptStates::Dense {
        return Err("memory.prompt_states is \"dense\"".into());
    }
    if !lookup::stands_still(lr, decay) {
        let product = lr * decay;
        return Err(format!(
            "acrlpd.actor_lr times optimizer.actor.weight_decay is {product:.1e}, which moves rows that never occur"
        ));
    }
    if rows >= vocab {
        return Err(format!("memory.prompt_rows = {rows} is all of its {vocab} rows"));
    }
    Ok(rows)
}

/// The learning rates of update number `step`, counted from 0.
pub fn rates(config: &Config, step: u64) -> Rates {
    Rates {
        pi0: config.actor_schedule().lr(step),
        critic: config.critic_schedule().lr(step),
        temperature: config.acrlpd.temperature_lr,
    }
}

fn group(chosen: &config::Optimizer, clip: f64) -> GroupConfig {
    let hyper = Hyper {
        beta1: chosen.b1 as f32,
        beta2: chosen.b2 as f32,
        eps: chosen.eps as f32,
        weight_decay: chosen.weight_decay as f32,
    };
    GroupConfig {
        optimizer: chosen.kind.with(hyper),
        clip: clip as f32,
    }
}

fn aggregate(rule: QAggregation) -> Aggregate {
    match rule {
        QAggregation::Min => Aggregate::Min,
        QAggregation::Mean => Aggregate::Mean,
        QAggregation::Weighted => Aggregate::Weighted,
    }
}
