//! An entropy estimate from the spread of the candidates, and the temperature's loss.
//!
//! ```text
//! var[b] = mean_p var_n s[n, b, p]            entropy = mean_b log(var[b] + 1e-8)
//! loss = exp(log_alpha) · (entropy - target)  d log_alpha = loss
//! ```
//! `s [N, B, P]` f32 (P = H·A). A reported quantity: in training its gradient goes to `log_alpha` only.
//! Source: the original's adaptive temperature.
//!
//! Cost: memory bound.

use cubecl::prelude::*;

use super::rows::{RowLayout, row_of_unit, team_sum};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Keeps the logarithm finite when all candidates agree.
const FLOOR: f32 = 1e-8;
/// Units of a workgroup of the backward pass.
const UNITS: usize = 64;

/// `log_var [B]` and `var [B]` of each sample.
pub fn forward(gpu: &Gpu, s: &Tensor, log_var: &Tensor, var: &Tensor) {
    let [n, b, p] = *s.shape() else {
        panic!("candidates are [N, B, P], not {s:?}")
    };
    let layout = RowLayout::pick(gpu, p);
    launch!(
        gpu,
        Cost::moving("entropy", s.bytes()),
        entropy_forward,
        layout.count(gpu, b),
        layout.dim(),
        [s, log_var, var],
        (n, b, p, layout),
    );
}

/// `ds` from `dlog_var [B]` and the `var [B]` of the forward pass.
pub fn backward(gpu: &Gpu, s: &Tensor, var: &Tensor, dlog_var: &Tensor, ds: &Tensor) {
    let [n, b, p] = *s.shape() else {
        panic!("candidates are [N, B, P], not {s:?}")
    };
    launch!(
        gpu,
        Cost::moving("entropy_backward", 2 * s.bytes()),
        entropy_backward,
        gpu.cubes(b * p, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [s, var, dlog_var, ds],
        (n, b, p),
    );
}

/// `loss[0] = dlog_alpha[0] = exp(log_alpha) (entropy - target)`; all `[1]`.
pub fn temperature(gpu: &Gpu, log_alpha: &Tensor, entropy: &Tensor, target: f32, loss: &Tensor, dlog_alpha: &Tensor) {
    launch!(
        gpu,
        Cost::moving("temperature", 16),
        temperature_kernel,
        CubeCount::Static(1, 1, 1),
        CubeDim::new_1d(1),
        [log_alpha, entropy, loss, dlog_alpha],
        (target),
    );
}

/// Mean over the candidates of coordinate p of sample b.
#[cube]
fn mean_of(s: &View<f32>, n: usize, b: usize, p: usize, sample: usize, i: usize) -> f32 {
    let mut sum = 0.0f32;
    for k in 0..n {
        sum += s.get((k * b + sample) * p + i);
    }
    sum / f32::cast_from(n as u32)
}

#[cube(launch_unchecked)]
fn entropy_forward(
    s: &View<f32>,
    log_var: &mut View<f32>,
    var: &mut View<f32>,
    n: usize,
    b: usize,
    p: usize,
    #[comptime] layout: RowLayout,
) {
    let (row, unit) = row_of_unit(layout);
    let sample = min(row, b - 1);
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < p {
        let mean = mean_of(s, n, b, p, sample, i);
        for k in 0..n {
            let d = s.get((k * b + sample) * p + i) - mean;
            sum += d * d;
        }
        i += comptime!(layout.team);
    }
    let total = team_sum(sum, layout) / f32::cast_from((n * p) as u32);
    if row < b {
        if unit == 0 {
            var.set(row, total);
            log_var.set(row, f32::ln(total + FLOOR));
        }
    }
}

#[cube(launch_unchecked)]
fn entropy_backward(
    s: &View<f32>,
    var: &View<f32>,
    dlog_var: &View<f32>,
    ds: &mut View<f32>,
    n: usize,
    b: usize,
    p: usize,
) {
    if ABSOLUTE_POS < b * p {
        let sample = ABSOLUTE_POS / p;
        let i = ABSOLUTE_POS % p;
        let mean = mean_of(s, n, b, p, sample, i);
        let slope = dlog_var.get(sample) / (var.get(sample) + FLOOR) * 2.0 / f32::cast_from((n * p) as u32);
        for k in 0..n {
            let at = (k * b + sample) * p + i;
            ds.set(at, slope * (s.get(at) - mean));
        }
    }
}

#[cube(launch_unchecked)]
fn temperature_kernel(
    log_alpha: &View<f32>,
    entropy: &View<f32>,
    loss: &mut View<f32>,
    dlog_alpha: &mut View<f32>,
    target: f32,
) {
    let value = f32::exp(log_alpha.get(0)) * (entropy.get(0) - target);
    loss.set(0, value);
    dlog_alpha.set(0, value);
}
