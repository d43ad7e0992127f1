//! What the critics make of the candidates: the best of each actor's, and how its value changes with its actions.

use super::batch::pick_rows;
use super::candidates::Sampled;
use super::critics::flat;
use super::metrics::Slot;
use super::schedule::Pass;
use super::{action_losses, temperature};
use crate::gpu::{DType, Tensor};
use crate::model::critic::{self, Rows, Wanted};
use crate::ops::ensemble::{self, Rule};
use crate::ops::flow;

/// Values of the candidates, and the chosen ones. Without actors everything is empty.
pub(super) struct Choice {
    /// `[E, N·actors]`, `[N·actors]`, `[actors]` (u32).
    pub(super) candidate_q: Tensor,
    pub(super) value: Tensor,
    pub(super) winner: Tensor,
    /// States of the K chosen candidates of every actor over the Euler steps, `[T + 1, K·actors·H·A]`.
    pub(super) states: Tensor,
    /// Gradient of the actor loss at their actions `[K·actors·H, A]`, and at the features they were rated with.
    pub(super) daction: Option<Tensor>,
    pub(super) dfeatures: Option<Tensor>,
}

/// `half [E, B, h]` is what the critics' first layer makes of the observations.
pub(super) fn run(pass: &Pass<'_>, sampled: &Sampled, half: &Tensor) -> Choice {
    let &Pass {
        learner,
        metrics,
        batch,
        h,
        a,
        n,
        ..
    } = pass;
    let (gpu, config, dims) = (&learner.gpu, &learner.config, &learner.critic_dims);
    let (e, t, k) = (dims.critics, config.euler_steps, pass.chosen());
    let who = &pass.who.actors;
    let actors = who.len();
    let mut choice = Choice {
        candidate_q: gpu.f32([e, n * actors]),
        value: gpu.f32([n * actors]),
        winner: gpu.alloc(DType::U32, [actors]),
        states: gpu.f32([t + 1, k * actors * h * a]),
        daction: None,
        dfeatures: None,
    };
    if actors == 0 {
        return choice;
    }
    let rule = Rule {
        how: config.actor_rule,
        weights: &learner.rule_weights,
    };
    let times = |repeats: usize| pass.u32s((0..repeats).flat_map(|_| who.iter().copied()));
    let rated = Rows {
        half,
        sample: &times(n),
        actions: &flat(pass, &sampled.candidates),
    };
    critic::forward(gpu, &learner.critics, dims, rated, None, &choice.candidate_q);
    ensemble::forward(gpu, &choice.candidate_q, rule, &choice.value);
    let best = gpu.f32([actors]);
    ensemble::best_of_n(gpu, &choice.value, &best, &choice.winner);
    let weight = pass.f32s(&pick_rows(&batch.chunk_valid, 1, who));
    let per_actor = 1.0 / batch.totals.actors.max(1) as f32;
    pass.add_to(Slot::BestQ, &best, None, per_actor);
    pass.add_to(Slot::CandidateQ, &choice.value, None, per_actor / n as f32);
    temperature::losses(learner, metrics, &sampled.candidates, per_actor);

    let by_winner = (k == 1).then_some(&choice.winner);
    let sequences = sampled.states.view([t + 1, sampled.states.len() / (t + 1)]);
    ensemble::gather_trajectories(gpu, &sequences, by_winner, h * a, &choice.states);
    let actions = choice.states.rows(t..t + 1).view([k * actors * h, a]);
    let chosen = Rows {
        half,
        sample: &times(k),
        actions: &flat(pass, &actions),
    };
    let [q, dq] = [(); 2].map(|()| gpu.f32([e, k * actors]));
    let [value, dvalue] = [(); 2].map(|()| gpu.f32([k * actors]));
    let tape = critic::forward(gpu, &learner.critics, dims, chosen, None, &q);
    ensemble::forward(gpu, &q, rule, &value);
    // loss = -1/B Σ_b weight_b mean_k agg Q
    let factor = -1.0 / (batch.totals.samples * k) as f32;
    for i in 0..k {
        let of = |t: &Tensor| t.slice(i * actors, [actors]);
        pass.add_to(Slot::ActorLoss, &of(&value), Some(&weight), factor);
        flow::scaled(gpu, &weight, factor * config.weights.actor, &of(&dvalue));
    }
    ensemble::backward(gpu, &q, rule, &dvalue, &dq);
    let dflat = gpu.f32([k * actors, dims.actions()]);
    let dfeatures = config.feature_grad.then(|| gpu.f32([k * actors, dims.observation()]));
    let wanted = Wanted {
        actions: Some(&dflat),
        features: dfeatures.as_ref(),
        ..Wanted::default()
    };
    critic::backward(gpu, &learner.critics, dims, chosen, None, &tape, &dq, wanted);
    let daction = gpu.f32([k * actors * h, a]);
    critic::unflatten(gpu, dims, &dflat, a, &daction);
    action_losses::add(learner, metrics, &actions, &weight, -factor, &daction);
    choice.daction = Some(daction);
    choice.dfeatures = dfeatures;
    choice
}
