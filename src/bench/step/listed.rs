//! What a peer needs to do the same step: sizes, hyperparameters, batch, under the names of the training fixtures.

use serde::Serialize;
use serde_json::{Value, json};

use super::ladder::Case;
use crate::bench::results::FORMAT;
use crate::config::{ActorObjective, Config, CriticLoss, Features, QAggregation};
use crate::gpu::Caps;
use crate::model::critic_networks::Network;
use crate::train::Result;
use crate::train::plan;

/// A list of cases.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    pub format: u32,
    pub kind: &'static str,
    pub dtype: String,
    pub cases: Vec<ListedCase>,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct ListedCase {
    pub name: String,
    pub samples: usize,
    pub micro_batches: usize,
    pub candidates: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    pub tflop_per_sample: f64,
    pub dims: Value,
    pub hyper: Value,
    /// What of the configuration the peers do not know; nothing if they can do the same.
    pub peers_lack: Vec<&'static str>,
}

/// The list of `cases` with prompts of `tokens`.
///
/// # Errors
/// A case that is inconsistent.
pub fn listed(cases: &[Case], tokens: usize) -> Result<Listed> {
    let dtype = cases
        .first()
        .map_or(String::new(), |case| case.config.model.dtype.to_string());
    let cases = cases.iter().map(|case| one(case, tokens)).collect::<Result<_>>()?;
    Ok(Listed {
        format: FORMAT,
        kind: "step",
        dtype,
        cases,
    })
}

fn one(case: &Case, tokens: usize) -> Result<ListedCase> {
    let config = &case.config;
    let plan = plan::plan(config, Caps::planning(), tokens)?;
    Ok(ListedCase {
        name: case.name.clone(),
        samples: plan.samples,
        micro_batches: plan.micro_batches,
        candidates: config.acrlpd.num_action_samples,
        prompt_tokens: plan.prompt_tokens,
        tflop_per_sample: plan.tflop_per_sample,
        dims: dims(config),
        hyper: hyper(config),
        peers_lack: lacking(config),
    })
}

fn dims(config: &Config) -> Value {
    let (d, c) = (config.pi0_dims(), config.critic_dims());
    json!({
        "image_size": d.image_size, "patch": d.patch,
        "vit_width": d.vision.width, "vit_depth": d.vision_depth, "vit_mlp": d.vision.mlp, "vit_heads": d.vision_heads,
        "vlm_width": d.language.width, "vlm_mlp": d.language.mlp,
        "expert_width": d.expert.width, "expert_mlp": d.expert.mlp,
        "depth": d.depth, "heads": d.heads, "kv_heads": d.kv_heads, "head_dim": d.head_dim,
        "vocab": d.vocab, "max_token_len": d.max_token_len,
        // Cameras that the robot has not are not computed.
        "cameras": d.cameras.iter().filter(|name| config.data.cameras.contains_key(*name)).collect::<Vec<_>>(),
        "action_dim": d.action_dim, "action_horizon": d.action_horizon, "pi05": d.pi05,
        "real_action_dim": c.real_action_dim, "num_critics": c.critics, "critic_hidden": c.hidden,
    })
}

fn rule(rule: QAggregation) -> &'static str {
    match rule {
        QAggregation::Min => "min",
        QAggregation::Mean | QAggregation::Weighted => "mean",
    }
}

fn hyper(config: &Config) -> Value {
    let (a, actor, critic) = (&config.acrlpd, &config.optimizer.actor, &config.optimizer.critic);
    json!({
        "discount": a.discount, "euler_steps": a.diffusion_steps,
        "critic_loss": if a.critic_loss == CriticLoss::Mse { "mse" } else { "huber" }, "huber_delta": a.huber_delta,
        "target_q_agg": rule(a.q_aggregation), "actor_q_agg": rule(config.actor_q_aggregation()),
        "critic_weight": a.critic_loss_weight, "actor_weight": a.actor_loss_weight, "bc_weight": a.bc_loss_weight,
        "alpha_weight": if a.use_adaptive_temperature { 1.0 } else { 0.0 },
        "target_entropy_multiplier": a.target_entropy_multiplier,
        "target_tau": a.target_update_rate, "ema_decay": a.use_ema.then_some(a.pi0_ema_decay),
        "beta1": actor.b1, "beta2": actor.b2, "eps": actor.eps, "clip_norm": a.max_grad_norm,
        "pi0_weight_decay": actor.weight_decay, "critic_weight_decay": critic.weight_decay,
    })
}

fn lacking(config: &Config) -> Vec<&'static str> {
    let (a, m) = (&config.acrlpd, &config.model);
    let variants = [m.paligemma_variant.to_string(), m.action_expert_variant.to_string()];
    let absent = [
        (config.model.pi05, "π₀.₅"),
        (a.features == Features::Llm, "features = \"llm\""),
        (a.feature_grad, "feature_grad"),
        (
            a.actor_objective == ActorObjective::MeanN,
            "actor_objective = \"mean_n\"",
        ),
        (a.smoothness_weight > 0.0, "smoothness_weight"),
        (!a.freeze.is_empty() || !a.freeze_filter.is_empty(), "freeze"),
        (variants.iter().any(|name| name.ends_with("_lora")), "adapters"),
        (a.chain_batches > 1, "chain_batches"),
        (config.critic.dropout_rate > 0.0, "dropout"),
        (a.critic_network != Network::Mlp, "critic_network"),
        (a.q_aggregation == QAggregation::Weighted, "weighted aggregation"),
    ];
    absent.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::step::cases;

    #[test]
    fn peers_are_told_the_sizes_of_the_model() {
        let config = Config::load("rl_fold_box").expect("a preset");
        let list = listed(&cases(&config, &[1, 64], &[4]), 8).expect("they are consistent");
        let (full, small) = (&list.cases[0], &list.cases[1]);
        assert_eq!(
            (full.name.as_str(), full.samples, full.micro_batches, full.candidates),
            ("rl_fold_box N4", 32, 4, 4)
        );
        assert_eq!(
            (full.dims["vlm_width"].as_u64(), small.dims["vlm_width"].as_u64()),
            (Some(2048), Some(32))
        );
        assert_eq!(full.dims["cameras"].as_array().map(Vec::len), Some(3));
        assert_eq!(full.hyper["euler_steps"], 10);
        assert!((15.0..17.0).contains(&full.tflop_per_sample));
        let mut other = config;
        other.model.pi05 = true;
        assert_eq!(lacking(&other)[0], "π₀.₅");
    }
}
