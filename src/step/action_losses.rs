//! Losses of the chosen candidates' actions beside the actor's, one line each. docs/EXTENDING.md adds one step by step.

use super::config::LossWeights;
use super::learner::Learner;
use super::metrics::{Metrics, Slot};
use crate::gpu::{Gpu, Tensor};
use crate::ops::{reduce, smoothness};

/// `(gpu, actions [R, H, A], J, weight [W], factor, error [R], dactions [R, H, A])`: the error of each chunk, and the
/// gradient of `factor Σ_r weight[r mod W] error[r]` added to `dactions`.
type Run = fn(&Gpu, &Tensor, usize, &Tensor, f32, &Tensor, &Tensor);

/// Where a loss is reported, its weight in the total, and what computes it. A weight of zero launches nothing.
struct Term(Slot, fn(&LossWeights) -> f32, Run);

const TERMS: &[Term] = &[Term(
    Slot::SmoothnessLoss,
    |weights| weights.smoothness,
    smoothness::run,
)];

/// Adds every term's gradient at `actions [K·actors·H, A]` to `dactions`. `weight [actors]`; the loss of a term is
/// `factor` times the weighted sum of its errors.
pub(super) fn add(
    learner: &Learner,
    metrics: &Metrics,
    actions: &Tensor,
    weight: &Tensor,
    factor: f32,
    dactions: &Tensor,
) {
    let (gpu, dims) = (&learner.gpu, &learner.dims);
    let (h, a, actors) = (dims.action_horizon, dims.action_dim, weight.len());
    let chunks = actions.len() / (h * a);
    for Term(slot, weight_of, run) in TERMS {
        let term = weight_of(&learner.config.weights);
        if term == 0.0 {
            continue;
        }
        let error = gpu.f32([chunks]);
        let [actions, dactions] = [actions, dactions].map(|t| t.view([chunks, h, a]));
        let joints = learner.critic_dims.real_action_dim;
        run(gpu, &actions, joints, weight, factor * term, &error, &dactions);
        for of_each in (0..chunks).step_by(actors).map(|first| error.slice(first, [actors])) {
            reduce::weighted_sum(gpu, &of_each, Some(weight), factor, &metrics.slot(*slot), true);
        }
    }
}
