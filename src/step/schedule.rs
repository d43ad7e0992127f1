//! One micro-batch, from observations to gradients, in the order in which it happens.
//!
//! ```text
//! prefix of s ─┬─ features ── critics ── target, TD loss ── critic gradients
//! prefix of s' ┘      │          │
//!      │   │          │          └── best candidate ── dQ/da
//!      │   └ candidates and targets: T Euler steps, one launch per op for all rows
//!      │                                    │
//!      └ winner replayed over all T steps, with the cloned rows in the same launches
//!                                           │
//!        chain of T pulls of dx ── weights, keys and values of all steps at once ── prefix backward
//! ```
//! Every pass over observations happens once; every gradient is exact. docs/ARCHITECTURE.md derives the order.

use super::batch::{MicroBatch, Who};
use super::config::Objective;
use super::critics::Judged;
use super::learner::Learner;
use super::metrics::{Metrics, Slot};
use super::replay::Replayed;
use super::{candidates, choice, critics, observe, replay};
use crate::gpu::Tensor;
use crate::model::layout::PrefixLayout;
use crate::model::prefix::Net;
use crate::ops::reduce;

/// Intermediate values of a micro-batch, for checks and reports. Small; dropped unread in training.
pub struct Outcome {
    pub who: Who,
    /// `[B, F + real]`, and of the samples that bootstrap.
    pub features: Tensor,
    pub next_features: Tensor,
    /// `[E, B']` of the targets, `[B]`, `[E, B]`
    pub next_q: Tensor,
    pub target: Tensor,
    pub q: Tensor,
    /// States of all sequences `[T + 1, M, A]`: N candidates of every actor, then the bootstrapped actions.
    pub states: Tensor,
    /// `[E, N·B]`, `[N·B]`, `[B]` (u32) over the actors.
    pub candidate_q: Tensor,
    pub candidate_value: Tensor,
    pub winner: Tensor,
    /// `[n, H]` and `[n·H, A]` of the cloned samples.
    pub bc_error: Tensor,
    pub velocity: Tensor,
    /// Gradient at the chosen candidates' actions and at their noise, `[K·B·H, A]`.
    pub daction: Option<Tensor>,
    pub dnoise: Option<Tensor>,
    /// Gradient at the embedded prefix tokens `[R, D]`, and where they are.
    pub dtokens: Option<Tensor>,
    pub layout: PrefixLayout,
}

/// One micro-batch under way: what every stage needs.
pub(super) struct Pass<'a> {
    pub(super) learner: &'a Learner,
    pub(super) metrics: &'a Metrics,
    pub(super) batch: &'a MicroBatch,
    pub(super) net: Net<'a>,
    pub(super) who: Who,
    /// Samples (B), steps of a chunk (H), coordinates of an action (A), candidates of an actor (N).
    pub(super) b: usize,
    pub(super) h: usize,
    pub(super) a: usize,
    pub(super) n: usize,
}

impl Pass<'_> {
    /// Does π₀ learn anything from this micro-batch?
    pub(super) fn learns(&self) -> bool {
        !self.who.actors.is_empty() || !self.who.cloned.is_empty()
    }

    /// Candidates of an actor that are replayed (K).
    pub(super) fn chosen(&self) -> usize {
        match self.learner.config.objective {
            Objective::BestOfN => 1,
            _ => self.n,
        }
    }

    pub(super) fn f32s(&self, values: &[f32]) -> Tensor {
        self.learner.gpu.upload_f32(values, [values.len()])
    }

    pub(super) fn u32s(&self, values: impl IntoIterator<Item = usize>) -> Tensor {
        let values: Vec<u32> = values.into_iter().map(|v| v as u32).collect();
        self.learner.gpu.upload_u32(&values, [values.len()])
    }

    /// Adds `factor · Σ values · weights` to a metric.
    pub(super) fn add_to(&self, slot: Slot, values: &Tensor, weights: Option<&Tensor>, factor: f32) {
        let gpu = &self.learner.gpu;
        reduce::weighted_sum(gpu, values, weights, factor, &self.metrics.slot(slot), true);
    }
}

/// Adds the gradients of one micro-batch; `update_pi0` false leaves out all that only π₀ learns from.
pub fn micro_batch(learner: &Learner, metrics: &Metrics, batch: &MicroBatch, update_pi0: bool) -> Outcome {
    learner.gpu.phase(&[("current prefix forward", 1.0)]);
    let pass = Pass {
        learner,
        metrics,
        batch,
        net: learner.net(),
        who: Who::new(batch, learner.config.skip_dead_rows, update_pi0),
        b: batch.len(),
        h: learner.dims.action_horizon,
        a: learner.dims.action_dim,
        n: learner.config.candidates,
    };

    // Every observation once: keys and values of all layers, what the critics see, and of s what backward needs.
    let (seen, kept) = observe::run(&pass);
    // Candidates of s and the policy's actions at s': T Euler steps, all rows in the same launches.
    let sampled = candidates::run(&pass, &seen);
    // Target, TD loss and gradients of the critics, which have not moved yet.
    let Judged {
        half,
        q,
        next_q,
        target,
    } = critics::run(&pass, &seen, &sampled);
    // The candidates' values, the best of them, and dQ/da there.
    let choice = choice::run(&pass, &sampled, &half);
    drop(half);
    // The chosen ones once more over all T steps and the cloned rows with them, forward and backward.
    let Replayed {
        bc_error,
        velocity,
        dnoise,
        dcache,
    } = replay::run(&pass, &seen, &sampled.times, &choice);
    // One prefix backward with all that reached the keys and values.
    let dtokens = dcache.and_then(|dcache| observe::backward(&pass, &seen, kept, &dcache, choice.dfeatures));
    Outcome {
        who: pass.who,
        features: seen.features,
        next_features: seen.next_features,
        next_q,
        target,
        q,
        states: sampled.states,
        candidate_q: choice.candidate_q,
        candidate_value: choice.value,
        winner: choice.winner,
        bc_error,
        velocity,
        daction: choice.daction,
        dnoise,
        dtokens,
        layout: seen.layout,
    }
}
