//! From the sum of the micro-batches' gradients to new weights, targets and averages. No host sync.

use super::learner::{CRITIC, Group, Learner, PI0, TEMPERATURE};
use super::metrics::{Metrics, Slot};
use crate::gpu::{Gpu, Tensor};
use crate::model::params::{ParamStore, Room};
use crate::ops::optimizers::{Flat, Optimizer, Update};
use crate::ops::reduce;

/// Updates in a row with gradients that are not finite after which nothing is applied any more: one may be bad luck.
pub const PATIENCE: u32 = 3;

/// Learning rates of one update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
    let gradients = metrics.gradients();
    let pi0 = config.updates_pi0(step);
    for (i, room) in Room::ALL.into_iter().enumerate() {
        let store = match room {
            Room::Critic => Some(&learner.critic.grads),
            _ => Some(&learner.pi0.grads).filter(|_| pi0),
        };
        squares(gpu, store, room, &gradients.rows(i..i + 1));
    }
    let of_temperature = learner.temperature.iter().filter(|_| pi0).map(|t| t.grad.clone());
    let out = gradients.rows(Room::ALL.len()..Room::ALL.len() + 1);
    reduce::squares(gpu, &of_temperature.collect::<Vec<_>>(), &out);
    learner.control.decide(gpu, &gradients, &learner.clip_limits);
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
        apply(learner, &learner.pi0, PI0, config.pi0.optimizer, update);
    }
    let update = Update {
        lr: rates.critic as f32,
        t,
        rate: config.target_rate,
    };
    apply(learner, &learner.critic, CRITIC, config.critic.optimizer, update);
    if let (Some(temperature), Some(c), true) = (&learner.temperature, &config.temperature, pi0) {
        let flat = Flat {
            p: &temperature.log_alpha,
            low: None,
            g: &temperature.grad,
            m: &temperature.m,
            v: c.group.optimizer.second_moment().then_some(&temperature.v),
            average: None,
            compute: None,
        };
        let update = Update {
            lr: rates.temperature as f32,
            t: t_pi0,
            rate: 0.0,
        };
        c.group.optimizer.step(gpu, update, &learner.control, TEMPERATURE, flat);
    }
    if let Some(temperature) = &learner.temperature {
        gpu.copy(&temperature.log_alpha, &metrics.slot(Slot::LogAlpha));
    }
}

/// Measures the weights of each room, for a step whose numbers will be shown.
pub fn weight_norms(learner: &Learner, metrics: &Metrics) {
    let gpu = &learner.gpu;
    gpu.phase(&[("metrics", 1.0)]);
    let out = metrics.weights();
    for (i, room) in Room::ALL.into_iter().enumerate() {
        let group = if room == Room::Critic {
            &learner.critic
        } else {
            &learner.pi0
        };
        squares(gpu, Some(&group.weights), room, &out.rows(i..i + 1));
    }
}

/// `out [1, 2]`: Σ x² and the non-finite elements of a room.
fn squares(gpu: &Gpu, store: Option<&ParamStore>, room: Room, out: &Tensor) {
    let flat = store.map_or(Vec::new(), |store| store.room(gpu, room));
    let prompts = store.filter(|_| room == Room::Language);
    let prompts = prompts.and_then(|store| store.looked_up(gpu));
    reduce::squares_with(gpu, &flat, prompts.as_ref(), out);
}

fn apply(learner: &Learner, group: &Group, index: usize, optimizer: Optimizer, update: Update) {
    let gpu = &learner.gpu;
    for s in group.grads.placement().segments(gpu.caps()) {
        let weights = group.weights.segment(s);
        let part = |store: &ParamStore| store.segment(s).high;
        let [v, compute] = [&group.v, &group.compute].map(|store| store.as_ref().map(part));
        let average = group.average.as_ref().filter(|store| store.host().is_none()).map(part);
        let flat = Flat {
            p: &weights.high,
            low: weights.low.as_ref(),
            g: &part(&group.grads),
            m: &part(&group.m),
            v: v.as_ref(),
            average: average.as_ref(),
            compute: compute.as_ref(),
        };
        optimizer.step(gpu, update, &learner.control, index, flat);
    }
    if let Some(host) = group.average.as_ref().and_then(ParamStore::host) {
        let segments = group.grads.placement().segments(gpu.caps()).into_iter();
        let weights: Vec<_> = segments.map(|s| (s.0, s.1, group.weights.segment(s))).collect();
        host.update(&learner.control.applies(), &weights, update.rate);
    }
}
