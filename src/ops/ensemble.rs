//! Combining an ensemble of critics, and choosing the best of N candidates.
//!
//! ```text
//! agg(q)[n] = min_e q[e, n]   |   mean_e q[e, n]   |   Σ_e w_e q[e, n]
//! best[b] = max_k agg(q)[k, b]        winner[b] = argmax_k
//! ```
//! Gradients of min and max go to the member that attains them (the first, if several do). `q [E, n]` f32, weights
//! `[E]` sum to one. Candidates are numbered k-major: candidate k of sample b is column `k·B + b`.
//! Source: clipped double Q (Fujimoto et al. 2018); best-of-N, Q-chunking (Li et al. 2025).
//!
//! Cost: `E·n` values.

use cubecl::prelude::*;

use super::math::lesser;
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 32;

/// How the members' values become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Aggregate {
    Min,
    Mean,
    /// A fixed convex combination.
    Weighted,
}

/// Rule and weights (`[E]`; read only by [`Aggregate::Weighted`]).
#[derive(Clone, Copy)]
pub struct Rule<'a> {
    pub how: Aggregate,
    pub weights: &'a Tensor,
}

/// `value [n]` from `q [E, n]`.
pub fn forward(gpu: &Gpu, q: &Tensor, rule: Rule<'_>, value: &Tensor) {
    let [e, n] = *q.shape() else {
        panic!("q is [E, n], not {q:?}")
    };
    launch!(
        gpu,
        Cost::moving("ensemble", q.bytes()),
        ensemble_forward,
        gpu.cubes(n, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [q, rule.weights, value],
        (e, n, rule.how),
    );
}

/// `dq [E, n]` from `dvalue [n]`.
pub fn backward(gpu: &Gpu, q: &Tensor, rule: Rule<'_>, dvalue: &Tensor, dq: &Tensor) {
    let [e, n] = *q.shape() else {
        panic!("q is [E, n], not {q:?}")
    };
    launch!(
        gpu,
        Cost::moving("ensemble_backward", 2 * q.bytes()),
        ensemble_backward,
        gpu.cubes(n, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [q, rule.weights, dvalue, dq],
        (e, n, rule.how),
    );
}

/// `best [B]` and `winner [B]` (u32) from `value [N·B]`.
pub fn best_of_n(gpu: &Gpu, value: &Tensor, best: &Tensor, winner: &Tensor) {
    let b = best.len();
    launch!(
        gpu,
        Cost::moving("best_of_n", value.bytes()),
        best_of_n_kernel,
        gpu.cubes(b, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [value, best, winner],
        (b, value.len() / b.max(1)),
    );
}

/// `dvalue [N·B]` from `dbest [B]`: all of it goes to the winner.
pub fn best_of_n_backward(gpu: &Gpu, dbest: &Tensor, winner: &Tensor, dvalue: &Tensor) {
    let n = dvalue.len();
    launch!(
        gpu,
        Cost::moving("best_of_n_backward", dvalue.bytes()),
        best_of_n_backward_kernel,
        gpu.cubes(n, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [dbest, winner, dvalue],
        (dbest.len(), n),
    );
}

/// The trajectories of the chosen candidates.
///
/// `states [T, S·R]` holds T states of S sequences of R elements; candidate k of sample i is sequence `k·B + i`.
/// `chosen [T, K·B·R]` gets, for each state, the winner of every sample (K = 1), or, without `winner`, the first K·B
/// sequences as they are.
pub fn gather_trajectories(gpu: &Gpu, states: &Tensor, winner: Option<&Tensor>, r: usize, chosen: &Tensor) {
    let (t, per_state, per_chosen) = (states.dim(0), states.dim(1), chosen.dim(1));
    assert_eq!(chosen.dim(0), t);
    launch!(
        gpu,
        Cost::moving("gather_trajectories", 2 * chosen.bytes()),
        gather_kernel,
        gpu.cubes(chosen.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [states, winner.unwrap_or(states), chosen],
        (chosen.len(), per_state, per_chosen, r, winner.is_some()),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gather_kernel(
    states: &View<f32>,
    winner: &View<u32>,
    chosen: &mut View<f32>,
    n: usize,
    per_state: usize,
    per_chosen: usize,
    r: usize,
    #[comptime] by_winner: bool,
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let state = at / per_chosen;
        let mut sequence = at % per_chosen / r;
        if comptime!(by_winner) {
            sequence += winner.get(sequence) as usize * (per_chosen / r);
        }
        chosen.set(at, states.get(state * per_state + sequence * r + at % r));
    }
}

/// Aggregate of column `n`, whose members are `ld` elements apart.
#[cube]
pub(crate) fn aggregate(
    q: &View<f32>,
    weights: &View<f32>,
    n: usize,
    ld: usize,
    e: usize,
    #[comptime] how: Aggregate,
) -> f32 {
    let base = q.start() + n;
    let mut value = q.raw(base);
    match comptime!(how) {
        Aggregate::Min => {
            for i in 1..e {
                value = lesser(value, q.raw(base + i * ld));
            }
        }
        Aggregate::Mean => {
            for i in 1..e {
                value += q.raw(base + i * ld);
            }
            value /= f32::cast_from(e as u32);
        }
        Aggregate::Weighted => {
            value *= weights.get(0);
            for i in 1..e {
                value += weights.get(i) * q.raw(base + i * ld);
            }
        }
    }
    value
}

#[cube(launch_unchecked)]
fn ensemble_forward(
    q: &View<f32>,
    weights: &View<f32>,
    value: &mut View<f32>,
    e: usize,
    n: usize,
    #[comptime] how: Aggregate,
) {
    if ABSOLUTE_POS < n {
        value.set(ABSOLUTE_POS, aggregate(q, weights, ABSOLUTE_POS, n, e, how));
    }
}

#[cube(launch_unchecked)]
fn ensemble_backward(
    q: &View<f32>,
    weights: &View<f32>,
    dvalue: &View<f32>,
    dq: &mut View<f32>,
    e: usize,
    n: usize,
    #[comptime] how: Aggregate,
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let d = dvalue.get(at);
        match comptime!(how) {
            Aggregate::Min => {
                let mut lowest = q.get(at);
                let mut member = 0usize;
                for i in 1..e {
                    let v = q.get(i * n + at);
                    if v < lowest {
                        lowest = v;
                        member = i;
                    }
                }
                for i in 0..e {
                    dq.set(i * n + at, select(i == member, d, 0.0));
                }
            }
            Aggregate::Mean => {
                for i in 0..e {
                    dq.set(i * n + at, d / f32::cast_from(e as u32));
                }
            }
            Aggregate::Weighted => {
                for i in 0..e {
                    dq.set(i * n + at, d * weights.get(i));
                }
            }
        }
    }
}

#[cube(launch_unchecked)]
fn best_of_n_kernel(value: &View<f32>, best: &mut View<f32>, winner: &mut View<u32>, b: usize, candidates: usize) {
    let at = ABSOLUTE_POS;
    if at < b {
        let mut top = value.get(at);
        let mut k = 0u32;
        for i in 1..candidates {
            let v = value.get(i * b + at);
            if v > top {
                top = v;
                k = i as u32;
            }
        }
        best.set(at, top);
        winner.set(at, k);
    }
}

#[cube(launch_unchecked)]
fn best_of_n_backward_kernel(dbest: &View<f32>, winner: &View<u32>, dvalue: &mut View<f32>, b: usize, n: usize) {
    let at = ABSOLUTE_POS;
    if at < n {
        let sample = at % b;
        let won = winner.get(sample) as usize == at / b;
        dvalue.set(at, select(won, dbest.get(sample), 0.0));
    }
}
