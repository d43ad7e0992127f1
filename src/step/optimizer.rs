//! From the sum of the micro-batches' gradients to new weights, targets and averages. No host sync.

use super::learner::{CRITIC, Group, Learner, PI0, TEMPERATURE};
use super::metrics::{Metrics, Slot};
use crate::gpu::Tensor;
use crate::ops::adamw::{self, Flat, Update};
use crate::ops::{fill, reduce};

/// Learning rates of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    pub pi0: f64,
    pub critic: f64,
    pub temperature: f64,
}

/// Applies the gradients as update number `step` (from 0). Gradients are zero afterwards. If any is not finite,
/// nothing else changes and the update counts as skipped.
pub fn update(learner: &Learner, metrics: &Metrics, step: u64, rates: Rates) {
    let (gpu, config) = (&learner.gpu, &learner.config);
    gpu.phase(&[("optimizer", 1.0)]);
    let caps = gpu.caps();
    let squares = metrics.squares();
    let pi0 = config.updates_pi0(step);
    for (group, index) in [(&learner.pi0, PI0), (&learner.critic, CRITIC)] {
        let out = squares.rows(index..index + 1);
        if index == PI0 && !pi0 {
            fill::zero(gpu, &out);
            continue;
        }
        let segments = group.grads.placement().segments(caps);
        let flat: Vec<Tensor> = segments.into_iter().map(|s| group.grads.segment(s)).collect();
        reduce::squares(gpu, &flat, &out);
    }
    let out = squares.rows(TEMPERATURE..TEMPERATURE + 1);
    match &learner.temperature {
        Some(t) if pi0 => reduce::squares(gpu, std::slice::from_ref(&t.grad), &out),
        _ => fill::zero(gpu, &out),
    }
    learner.control.decide(gpu, &squares, &learner.clip_limits);
    gpu.copy(&learner.control.skipped(), &metrics.slot(Slot::Skipped));

    let t = step + 1;
    // π₀'s own count of updates, for the bias corrections.
    let t_pi0 = step / config.actor_update_freq + 1;
    if pi0 {
        let rate = config.ema_decay.map_or(0.0, |decay| 1.0 - decay);
        let update = Update {
            lr: rates.pi0 as f32,
            t: t_pi0,
            rate,
        };
        apply(learner, &learner.pi0, PI0, config.pi0.adam, update);
    }
    let update = Update {
        lr: rates.critic as f32,
        t,
        rate: config.target_rate,
    };
    apply(learner, &learner.critic, CRITIC, config.critic.adam, update);
    if let (Some(temperature), Some(c), true) = (&learner.temperature, &config.temperature, pi0) {
        let flat = Flat {
            p: &temperature.log_alpha,
            g: &temperature.grad,
            m: &temperature.m,
            v: &temperature.v,
            average: None,
            compute: None,
        };
        let update = Update {
            lr: rates.temperature as f32,
            t: t_pi0,
            rate: 0.0,
        };
        adamw::step(gpu, c.group.adam, update, &learner.control, TEMPERATURE, flat);
    }
    if let Some(temperature) = &learner.temperature {
        gpu.copy(&temperature.log_alpha, &metrics.slot(Slot::LogAlpha));
    }
}

fn apply(learner: &Learner, group: &Group, index: usize, adam: adamw::AdamW, update: Update) {
    let gpu = &learner.gpu;
    for s in group.grads.placement().segments(gpu.caps()) {
        let part = |store: &crate::model::params::ParamStore| store.segment(s);
        let (average, compute) = (group.average.as_ref().map(part), group.compute.as_ref().map(part));
        let flat = Flat {
            p: &part(&group.weights),
            g: &part(&group.grads),
            m: &part(&group.m),
            v: &part(&group.v),
            average: average.as_ref(),
            compute: compute.as_ref(),
        };
        adamw::step(gpu, adam, update, &learner.control, index, flat);
    }
}
