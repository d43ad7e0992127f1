//! Temporal difference: the critics' target and loss.
//!
//! ```text
//! y[b] = reward[b] + discount[b] · agg_i Q̄_i(s'_b, a'_b)
//! e = q[i, b] - y[b]        ℓ(e) = e²   |   ½ e² for |e| ≤ δ, δ (|e| - ½ δ) beyond (Huber)
//! loss[b] = weight[b] · mean_i ℓ(e)          dq[i, b] = factor · weight[b] · ℓ'(e) / E
//! ```
//! `q`, `dq` `[E, B]`; `next_q [E, B']`, where column `next[b]` belongs to sample b, or [`TERMINAL`]: then y is the
//! reward alone and no action was sampled at s'. Everything f32.
//!
//! Cost: `E·B` values.

use cubecl::prelude::*;

use super::ensemble::{Aggregate, Rule, aggregate};
use super::math::limited;
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 32;
/// Stands for "no next action": the chunk ended the episode.
pub const TERMINAL: u32 = u32::MAX;

/// The loss of one TD error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TdLoss {
    /// `e²`
    Square,
    /// Quadratic up to δ, linear beyond.
    Huber(f32),
}

impl TdLoss {
    fn huber(self) -> bool {
        matches!(self, TdLoss::Huber(_))
    }

    fn delta(self) -> f32 {
        match self {
            TdLoss::Square => 0.0,
            TdLoss::Huber(delta) => delta,
        }
    }
}

/// Inputs of the target, per sample `[B]`.
#[derive(Clone, Copy)]
pub struct Transition<'a> {
    /// Discounted sum of rewards in the chunk.
    pub reward: &'a Tensor,
    /// What the next value counts: γⁿ, or 0 at a true end.
    pub discount: &'a Tensor,
    /// Column of `next_q`, u32.
    pub next: &'a Tensor,
    /// Weight of the sample in the loss.
    pub weight: &'a Tensor,
}

/// `target [B]`, `loss [B]` and, where asked, `dq [E, B]`.
#[allow(clippy::too_many_arguments)]
pub fn run(
    gpu: &Gpu,
    q: &Tensor,
    next_q: &Tensor,
    rule: Rule<'_>,
    t: Transition<'_>,
    loss_kind: TdLoss,
    factor: f32,
    target: &Tensor,
    loss: &Tensor,
    dq: Option<&Tensor>,
) {
    let [e, b] = *q.shape() else {
        panic!("q is [E, B], not {q:?}")
    };
    let next_ld = next_q.dim(1);
    launch!(
        gpu,
        Cost::moving("td_loss", 2 * q.bytes() + next_q.bytes()),
        td_kernel,
        gpu.cubes(b, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [
            q,
            next_q,
            rule.weights,
            t.reward,
            t.discount,
            t.next,
            t.weight,
            target,
            loss,
            dq.unwrap_or(target)
        ],
        (
            e,
            b,
            next_ld,
            loss_kind.delta(),
            factor,
            rule.how,
            loss_kind.huber(),
            dq.is_some()
        ),
    );
}

/// `y = ℓ(e)` elementwise.
pub fn forward(gpu: &Gpu, kind: TdLoss, e: &Tensor, y: &Tensor) {
    elementwise(gpu, kind, e, e, y, false);
}

/// `de = dy ℓ'(e)` elementwise.
pub fn backward(gpu: &Gpu, kind: TdLoss, e: &Tensor, dy: &Tensor, de: &Tensor) {
    elementwise(gpu, kind, e, dy, de, true);
}

fn elementwise(gpu: &Gpu, kind: TdLoss, e: &Tensor, dy: &Tensor, out: &Tensor, back: bool) {
    launch!(
        gpu,
        Cost::moving("td_error", e.bytes() + out.bytes()),
        error_kernel,
        gpu.cubes(e.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [e, dy, out],
        (e.len(), kind.delta(), kind.huber(), back),
    );
}

#[cube]
fn penalty(e: f32, delta: f32, #[comptime] huber: bool) -> f32 {
    if comptime!(huber) {
        let a = f32::abs(e);
        select(a <= delta, 0.5 * e * e, delta * (a - 0.5 * delta))
    } else {
        e * e
    }
}

#[cube]
fn penalty_slope(e: f32, delta: f32, #[comptime] huber: bool) -> f32 {
    if comptime!(huber) { limited(e, delta) } else { 2.0 * e }
}

#[cube(launch_unchecked)]
fn error_kernel(
    e: &View<f32>,
    dy: &View<f32>,
    out: &mut View<f32>,
    n: usize,
    delta: f32,
    #[comptime] huber: bool,
    #[comptime] back: bool,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        if comptime!(back) {
            out.set(i, dy.get(i) * penalty_slope(e.get(i), delta, huber));
        } else {
            out.set(i, penalty(e.get(i), delta, huber));
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn td_kernel(
    q: &View<f32>,
    next_q: &View<f32>,
    weights: &View<f32>,
    reward: &View<f32>,
    discount: &View<f32>,
    next: &View<u32>,
    weight: &View<f32>,
    target: &mut View<f32>,
    loss: &mut View<f32>,
    dq: &mut View<f32>,
    e: usize,
    b: usize,
    next_ld: usize,
    delta: f32,
    factor: f32,
    #[comptime] how: Aggregate,
    #[comptime] huber: bool,
    #[comptime] gradient: bool,
) {
    let sample = ABSOLUTE_POS;
    if sample < b {
        let mut y = reward.get(sample);
        let column = next.get(sample);
        if column != TERMINAL {
            y += discount.get(sample) * aggregate(next_q, weights, column as usize, next_ld, e, how);
        }
        target.set(sample, y);
        let w = weight.get(sample);
        let members = f32::cast_from(e as u32);
        let mut sum = 0.0f32;
        for i in 0..e {
            let error = q.get(i * b + sample) - y;
            sum += penalty(error, delta, huber);
            if comptime!(gradient) {
                dq.set(
                    i * b + sample,
                    factor * w * penalty_slope(error, delta, huber) / members,
                );
            }
        }
        loss.set(sample, w * sum / members);
    }
}
