//! Softmax along rows of different lengths.
//!
//! ```text
//! p[r, i] = exp(scale z[r, i]) / Σ_{i < len_r} exp(scale z[r, i])      i < len_r, else 0
//! lse[r]  = log of that sum                                            (with the row's maximum taken out first)
//! dz      = scale p (dp - Σ p dp)
//! ```
//! z, p `[R, W]` f32; `lens [R]` u32; lse `[R]` f32. In place is fine: p may be z, dz may be dp.
//!
//! Cost: memory bound.

use cubecl::prelude::*;

use super::rows::{RowLayout, row_of_unit, team_max, team_sum};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// `p`, and `lse` where asked.
pub fn forward(gpu: &Gpu, z: &Tensor, lens: &Tensor, scale: f32, p: &Tensor, lse: Option<&Tensor>) {
    let [r, w] = *z.shape() else {
        panic!("z is [R, W], not {z:?}")
    };
    let layout = RowLayout::pick(gpu, w);
    launch!(
        gpu,
        Cost::moving("softmax", z.bytes() + p.bytes()),
        softmax_forward,
        layout.count(gpu, r),
        layout.dim(),
        [z, lens, p, lse.unwrap_or(p)],
        (r, w, scale, lse.is_some(), layout),
    );
}

/// `dz` from p and dp.
pub fn backward(gpu: &Gpu, p: &Tensor, lens: &Tensor, dp: &Tensor, scale: f32, dz: &Tensor) {
    let [r, w] = *p.shape() else {
        panic!("p is [R, W], not {p:?}")
    };
    let layout = RowLayout::pick(gpu, w);
    launch!(
        gpu,
        Cost::moving("softmax_backward", p.bytes() + dp.bytes() + dz.bytes()),
        softmax_backward,
        layout.count(gpu, r),
        layout.dim(),
        [p, lens, dp, dz],
        (r, w, scale, layout),
    );
}

/// From scores and what a forward pass kept: `p = exp(scale z - lse)` over z, `dz = scale p (dp - delta)` over dp.
/// `lse` and `delta` are `[R]`.
pub fn recompute(gpu: &Gpu, z: &Tensor, lens: &Tensor, lse: &Tensor, delta: &Tensor, scale: f32, dp: &Tensor) {
    let [r, w] = *z.shape() else {
        panic!("z is [R, W], not {z:?}")
    };
    let layout = RowLayout::pick(gpu, w);
    launch!(
        gpu,
        Cost::moving("softmax_backward", 2 * z.bytes() + 2 * dp.bytes()),
        softmax_recompute,
        layout.count(gpu, r),
        layout.dim(),
        [z, lens, lse, delta, dp],
        (r, w, scale, layout),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn softmax_forward(
    z: &View<f32>,
    lens: &View<u32>,
    p: &mut View<f32>,
    lse: &mut View<f32>,
    r: usize,
    w: usize,
    scale: f32,
    #[comptime] keep_lse: bool,
    #[comptime] layout: RowLayout,
) {
    let (row, unit) = row_of_unit(layout);
    let safe = min(row, r - 1);
    let w = w * 1;
    let scale = scale * 1.0;
    let len = lens.get(safe) as usize;
    let at = z.start() + safe * w;
    let mut top = f32::min_value();
    let mut i = unit;
    while i < len {
        top = max(top, z.raw(at + i) * scale);
        i += comptime!(layout.team);
    }
    let top = team_max(top, layout);
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < len {
        sum += f32::exp(z.raw(at + i) * scale - top);
        i += comptime!(layout.team);
    }
    let sum = team_sum(sum, layout);
    if row < r {
        let to = p.start() + row * w;
        let mut i = unit;
        while i < w {
            let value = f32::exp(z.raw(at + i) * scale - top) / sum;
            p.raw_set(to + i, select(i < len, value, 0.0));
            i += comptime!(layout.team);
        }
        if comptime!(keep_lse) {
            if unit == 0 {
                lse.set(row, top + f32::ln(sum));
            }
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn softmax_backward(
    p: &View<f32>,
    lens: &View<u32>,
    dp: &View<f32>,
    dz: &mut View<f32>,
    r: usize,
    w: usize,
    scale: f32,
    #[comptime] layout: RowLayout,
) {
    let (row, unit) = row_of_unit(layout);
    let safe = min(row, r - 1);
    let w = w * 1;
    let len = lens.get(safe) as usize;
    let p_at = p.start() + safe * w;
    let dp_at = dp.start() + safe * w;
    let mut dot = 0.0f32;
    let mut i = unit;
    while i < len {
        dot += p.raw(p_at + i) * dp.raw(dp_at + i);
        i += comptime!(layout.team);
    }
    let dot = team_sum(dot, layout);
    if row < r {
        let to = dz.start() + row * w;
        let mut i = unit;
        while i < w {
            let value = scale * p.raw(p_at + i) * (dp.raw(dp_at + i) - dot);
            dz.raw_set(to + i, select(i < len, value, 0.0));
            i += comptime!(layout.team);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn softmax_recompute(
    z: &mut View<f32>,
    lens: &View<u32>,
    lse: &View<f32>,
    delta: &View<f32>,
    dp: &mut View<f32>,
    r: usize,
    w: usize,
    scale: f32,
    #[comptime] layout: RowLayout,
) {
    let (row, unit) = row_of_unit(layout);
    if row < r {
        let w = w * 1;
        let scale = scale * 1.0;
        let len = lens.get(row) as usize;
        let l = lse.get(row);
        let d = delta.get(row);
        let z_at = z.start() + row * w;
        let dp_at = dp.start() + row * w;
        let mut i = unit;
        while i < w {
            let inside = i < len;
            let p = select(inside, f32::exp(z.raw(z_at + i) * scale - l), 0.0);
            let ds = scale * p * (dp.raw(dp_at + i) - d);
            z.raw_set(z_at + i, p);
            dp.raw_set(dp_at + i, select(inside, ds, 0.0));
            i += comptime!(layout.team);
        }
    }
}
