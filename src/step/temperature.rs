//! The adaptive temperature: a reported quantity, as in the original; it scales no other loss.

use super::learner::Learner;
use super::metrics::{Metrics, Slot};
use crate::gpu::Tensor;
use crate::ops::{entropy, reduce};

/// Entropy estimate of the candidates, and the temperature's loss and gradient.
pub(super) fn losses(learner: &Learner, metrics: &Metrics, candidates: &Tensor, per_actor: f32) {
    let (Some(temperature), Some(config)) = (&learner.temperature, &learner.config.temperature) else {
        return;
    };
    let (gpu, n) = (&learner.gpu, learner.config.candidates);
    let width = learner.dims.action_horizon * learner.dims.action_dim;
    let actors = candidates.len() / (n * width);
    let (log_var, var) = (gpu.f32([actors]), gpu.f32([actors]));
    entropy::forward(gpu, &candidates.view([n, actors, width]), &log_var, &var);
    let slot = metrics.slot(Slot::Entropy);
    reduce::weighted_sum(gpu, &log_var, None, per_actor, &slot, true);
    // The estimate is complete after the last micro-batch; until then this is overwritten.
    let loss = metrics.slot(Slot::TemperatureLoss);
    entropy::temperature(
        gpu,
        &temperature.log_alpha,
        &slot,
        config.target_entropy,
        &loss,
        &temperature.grad,
    );
}
