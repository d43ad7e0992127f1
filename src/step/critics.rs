//! What the critics learn: values of the recorded chunks, from rewards and the targets' values of what comes after.

use super::candidates::Sampled;
use super::metrics::Slot;
use super::observe::Seen;
use super::schedule::Pass;
use crate::gpu::Tensor;
use crate::model::critic::{self, Dropout, Rows, Wanted};
use crate::ops::ensemble::Rule;
use crate::ops::td::{self, TERMINAL, Transition};

/// What the critics make of the batch.
pub(super) struct Judged {
    /// Their first layer's half for the observations `[E, B, h]`.
    pub(super) half: Tensor,
    /// `[E, B]`; `[E, boots]` of the targets; `[B]`.
    pub(super) q: Tensor,
    pub(super) next_q: Tensor,
    pub(super) target: Tensor,
}

/// Chunks of actions `[rows·H, A]` as critics read them, `[rows, H·real]`.
pub(super) fn flat(pass: &Pass<'_>, actions: &Tensor) -> Tensor {
    let (gpu, dims) = (&pass.learner.gpu, &pass.learner.critic_dims);
    let flat = gpu.f32([actions.dim(0) / pass.h, dims.actions()]);
    critic::flatten(gpu, dims, actions, pass.a, &flat);
    flat
}

/// Target, TD loss and gradients.
pub(super) fn run(pass: &Pass<'_>, seen: &Seen, sampled: &Sampled) -> Judged {
    let &Pass {
        learner,
        batch,
        b,
        h,
        a,
        ..
    } = pass;
    let (gpu, config, dims, who) = (&learner.gpu, &learner.config, &learner.critic_dims, &pass.who);
    gpu.phase(&[("critics", 1.0)]);
    let (e, boots, first) = (dims.critics, who.boots.len(), dims.hidden[0]);
    let next_q = gpu.f32([e, boots]);
    if boots > 0 {
        let half = gpu.f32([e, boots, first]);
        critic::observe(gpu, &learner.targets, dims, &seen.next_features, &half);
        let rows = Rows {
            half: &half,
            sample: &pass.u32s(0..boots),
            actions: &flat(pass, &sampled.next_actions),
        };
        critic::forward(gpu, &learner.targets, dims, rows, None, &next_q);
    }
    let half = gpu.f32([e, b, first]);
    critic::observe(gpu, &learner.critics, dims, &seen.features, &half);
    let upload = |bits: &Vec<u32>| gpu.upload_u32(bits, [bits.len()]);
    let keep: Vec<Tensor> = batch.dropout.iter().map(upload).collect();
    let dropout = (!keep.is_empty()).then_some(Dropout {
        keep: &keep,
        rate: config.dropout,
    });
    let data = Rows {
        half: &half,
        sample: &pass.u32s(0..b),
        actions: &flat(pass, &gpu.upload_f32(&batch.actions, [b * h, a])),
    };
    let q = gpu.f32([e, b]);
    let tape = critic::forward(gpu, &learner.critics, dims, data, dropout, &q);
    let (target, td_loss, dq) = (gpu.f32([b]), gpu.f32([b]), gpu.f32([e, b]));
    let column = |i| who.boots.iter().position(|&j| j == i);
    let next: Vec<u32> = (0..b).map(|i| column(i).map_or(TERMINAL, |c| c as u32)).collect();
    let transition = Transition {
        reward: &pass.f32s(&batch.reward),
        discount: &pass.f32s(&batch.discount),
        next: &gpu.upload_u32(&next, [b]),
        weight: &pass.f32s(&batch.chunk_valid),
    };
    let rule = Rule {
        how: config.target_rule,
        weights: &learner.rule_weights,
    };
    let samples = batch.totals.samples as f32;
    let factor = config.weights.critic / samples;
    td::run(
        gpu,
        &q,
        &next_q,
        rule,
        transition,
        config.critic_loss,
        factor,
        &target,
        &td_loss,
        Some(&dq),
    );
    let wanted = Wanted {
        params: Some((&learner.critic_grads, &seen.features)),
        ..Wanted::default()
    };
    critic::backward(gpu, &learner.critics, dims, data, dropout, &tape, &dq, wanted);
    drop(tape);
    pass.add_to(Slot::CriticLoss, &td_loss, None, 1.0 / samples);
    pass.metrics.keep(gpu, &q, &target);
    Judged {
        half,
        q,
        next_q,
        target,
    }
}
