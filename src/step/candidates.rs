//! Candidates of s and the policy's actions at s', in the same launches.

use super::observe::Seen;
use super::packing::{initial_noise, pick_times};
use super::sampling;
use super::schedule::Pass;
use crate::gpu::Tensor;
use crate::model::flow_time::FlowTimes;
use crate::model::layout::CachedRun;
use crate::model::suffix::Rows;

/// What the policy did.
pub(super) struct Sampled {
    /// Of all Euler steps, then of the cloned samples.
    pub(super) times: FlowTimes,
    /// States of all sequences `[T + 1, M, A]`: N candidates of every actor, then the actions at s'.
    pub(super) states: Tensor,
    /// What came out: `[N·actors·H, A]` and `[boots·H, A]`.
    pub(super) candidates: Tensor,
    pub(super) next_actions: Tensor,
}

pub(super) fn run(pass: &Pass<'_>, seen: &Seen) -> Sampled {
    let &Pass {
        learner,
        batch,
        b,
        h,
        a,
        n,
        ..
    } = pass;
    let (gpu, who, net) = (&learner.gpu, &pass.who, &pass.net);
    let of_candidates = n * who.actors.len();
    let sequences = of_candidates + who.boots.len();
    let share = of_candidates as f64 / (sequences.max(1)) as f64;
    gpu.phase(&[("candidates forward", share), ("target suffix", 1.0 - share)]);
    let t = learner.config.euler_steps;
    let all = [sampling::euler_times(t), pick_times(&batch.noise.bc_time, &who.cloned)].concat();
    let times = FlowTimes::new(gpu, net, &all);
    let runs: Vec<CachedRun> = (0..n)
        .flat_map(|_| who.actors.iter().map(|&i| seen.layout.cached[i]))
        .chain(seen.next.iter().copied())
        .collect();
    let states = gpu.f32([t + 1, sequences * h * a]);
    let state_at = |i: usize| states.rows(i..i + 1).view([sequences * h, a]);
    if sequences > 0 {
        let rows = Rows::new(gpu, h, &runs);
        let noise = initial_noise(batch, who, n, b, h * a);
        gpu.copy(&gpu.upload_f32(&noise, [sequences * h, a]), &state_at(0));
        sampling::euler(gpu, net, &rows, &times, &seen.cache, &states);
    }
    let result = state_at(t);
    Sampled {
        times,
        candidates: result.rows(0..of_candidates * h),
        next_actions: result.rows(of_candidates * h..sequences * h),
        states: states.view([t + 1, sequences * h, a]),
    }
}
