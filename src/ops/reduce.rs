//! Sums of flat memory: gradient norms with their non-finite count, and small weighted sums for losses.
//!
//! Squares are summed in rows of [`ROW`] elements, rows of row sums, and so on: a tree whose shape depends on the
//! length alone, so the same gradients give the same norm whatever the device. A non-finite element counts one and
//! adds nothing, so that the norm stays usable in the report of what went wrong.
//!
//! Cost: memory bound; each element is read once.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, load_words, total};
use super::rows::{RowLayout, row_of_unit, team_sum};
use super::split::{self, Values, whole_of};
use super::{blocks, fill};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Elements summed into one.
pub const ROW: usize = 1024;

/// A matrix some of whose rows lie apart. Where neither `parts` nor `moved` has a row, it is zero.
pub struct Scattered {
    pub rows: usize,
    pub width: usize,
    /// (first row, flat values of some rows)
    pub parts: Vec<(usize, Values)>,
    /// (numbers of some rows, u32, and their flat values): these count in place of those in `parts`.
    pub moved: Vec<(Tensor, Values)>,
}

/// `out [2]` = (Σ x², number of non-finite elements) over all the flat tensors, whole or in halves.
pub fn squares<T>(gpu: &Gpu, xs: &[T], out: &Tensor)
where
    Values: for<'a> From<&'a T>,
{
    squares_with(gpu, xs, None, out);
}

/// The same over a matrix too: one sum for each of its rows, then a tree over the rows in order, so that it does not matter
/// where they lie, nor whether rows of zeros lie anywhere.
pub fn squares_with<T>(gpu: &Gpu, xs: &[T], matrix: Option<&Scattered>, out: &Tensor)
where
    Values: for<'a> From<&'a T>,
{
    let xs: Vec<Values> = xs.iter().map(Values::from).collect();
    let rows: usize = xs.iter().map(|x| x.len().div_ceil(ROW)).sum();
    let all = rows + usize::from(matrix.is_some());
    if all == 0 {
        // Nothing learns: no row would write the partial sums.
        return fill::zero(gpu, out);
    }
    let partial = gpu.f32([all, 2]);
    let mut first = 0;
    if let Some(matrix) = matrix {
        squares_of_rows(gpu, matrix, &partial.rows(0..1));
        first = 1;
    }
    for x in &xs {
        let rows = x.len().div_ceil(ROW);
        squares_of(gpu, x, ROW, &partial.rows(first..first + rows));
        first += rows;
    }
    tree(gpu, partial, &out.view([1, 2]));
}

fn squares_of_rows(gpu: &Gpu, matrix: &Scattered, out: &Tensor) {
    let partial = gpu.f32([matrix.rows, 2]);
    if matrix.parts.is_empty() {
        fill::zero(gpu, &partial);
    }
    for (first, x) in &matrix.parts {
        let rows = x.len() / matrix.width;
        squares_of(gpu, x, matrix.width, &partial.rows(*first..first + rows));
    }
    for (numbers, x) in &matrix.moved {
        let sums = gpu.f32([numbers.len(), 2]);
        squares_of(gpu, x, matrix.width, &sums);
        blocks::scatter(gpu, &sums, numbers, &partial);
    }
    tree(gpu, partial, out);
}

/// Sums of pairs, [`ROW`] at a time, until one is left.
fn tree(gpu: &Gpu, mut partial: Tensor, out: &Tensor) {
    while partial.dim(0) > ROW {
        let next = gpu.f32([partial.dim(0).div_ceil(ROW), 2]);
        pairs(gpu, &partial, &next);
        partial = next;
    }
    pairs(gpu, &partial, out);
}

/// `out[0] (+)= factor · Σ_i weight[i] x[i]`, in the order of i; `weight` defaults to one.
pub fn weighted_sum(gpu: &Gpu, x: &Tensor, weight: Option<&Tensor>, factor: f32, out: &Tensor, add: bool) {
    let layout = RowLayout::pick(gpu, x.len());
    launch!(
        gpu,
        Cost::moving("sum", x.bytes() * if weight.is_some() { 2 } else { 1 }),
        weighted_sum_kernel,
        CubeCount::Static(1, 1, 1),
        layout.dim(),
        [x, weight.unwrap_or(x), out],
        (x.len(), factor, weight.is_some(), add, layout),
    );
}

/// One pair for each `width` elements.
fn squares_of(gpu: &Gpu, x: &Values, width: usize, out: &Tensor) {
    let rows = x.len().div_ceil(width);
    let low = x.low.as_ref().unwrap_or(&x.high);
    let halves = x.low.is_some();
    // Halves in the vectors of whole numbers, so that both give the same sums.
    let lanes = Lanes::pick(gpu, &[x.len(), width], &[&x.high, low]).at_most(4);
    let layout = RowLayout::of_lanes(gpu, width, lanes);
    let types = if halves {
        [split::words(&x.high), split::words(low)]
    } else {
        lanes.types([&x.high, low])
    };
    launch!(
        gpu,
        Cost::moving(
            "sum_of_squares",
            x.high.bytes() + x.low.as_ref().map_or(0, |low| low.bytes())
        ),
        squares_kernel,
        layout.count(gpu, rows),
        layout.dim(),
        [&x.high, low, out],
        (rows, width, x.len(), layout, halves, lanes, types, lanes.sizes()),
    );
}

fn pairs(gpu: &Gpu, x: &Tensor, out: &Tensor) {
    let layout = RowLayout::pick(gpu, ROW);
    let rows = out.dim(0);
    launch!(
        gpu,
        Cost::moving("sum_of_squares", x.bytes()),
        pairs_kernel,
        layout.count(gpu, rows),
        layout.dim(),
        [x, out],
        (rows, x.dim(0), layout),
    );
}

/// All exponent bits set: infinite or not a number.
#[cube]
fn is_finite(x: f32) -> bool {
    (u32::reinterpret(x) & 0x7f80_0000) != 0x7f80_0000
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn squares_kernel<X: Numeric, L: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    low: &View<Vector<L, W>>,
    out: &mut View<f32>,
    rows: usize,
    width: usize,
    n: usize,
    #[comptime] layout: RowLayout,
    #[comptime] halves: bool,
    #[comptime] lanes: Lanes,
    #[define(X, L)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    let end = min((row + 1) * width, n);
    let x_at = x.start();
    let mut sums = Vector::<f32, N>::zeroed();
    let mut bads = Vector::<f32, N>::zeroed();
    let mut i = row * width + unit * lanes.count;
    while i < end {
        let mut v = Vector::<f32, N>::empty();
        if comptime!(halves) {
            let highs = load_words::<X, W, N>(x, x_at + i, lanes);
            let lows = load_words::<L, W, N>(low, low.start() + i, lanes);
            #[unroll]
            for k in 0..lanes.count {
                v[k] = whole_of(highs[k], lows[k]);
            }
        } else {
            v = load::<X, W, N>(x, x_at + i, lanes);
        }
        #[unroll]
        for k in 0..lanes.count {
            let fine = is_finite(v[k]);
            sums[k] += select(fine, v[k] * v[k], 0.0);
            bads[k] += select(fine, 0.0, 1.0);
        }
        i += comptime!(layout.team * lanes.count);
    }
    let sum = team_sum(total(sums, lanes), layout);
    let bad = team_sum(total(bads, lanes), layout);
    if row < rows {
        if unit == 0 {
            out.set(2 * row, sum);
            out.set(2 * row + 1, bad);
        }
    }
}

#[cube(launch_unchecked)]
fn pairs_kernel(x: &View<f32>, out: &mut View<f32>, rows: usize, n: usize, #[comptime] layout: RowLayout) {
    let (row, unit) = row_of_unit(layout);
    let end = min((row + 1) * ROW, n);
    let mut sum = 0.0f32;
    let mut bad = 0.0f32;
    let mut i = row * ROW + unit;
    while i < end {
        sum += x.get(2 * i);
        bad += x.get(2 * i + 1);
        i += comptime!(layout.team);
    }
    let sum = team_sum(sum, layout);
    let bad = team_sum(bad, layout);
    if row < rows {
        if unit == 0 {
            out.set(2 * row, sum);
            out.set(2 * row + 1, bad);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn weighted_sum_kernel(
    x: &View<f32>,
    weight: &View<f32>,
    out: &mut View<f32>,
    n: usize,
    factor: f32,
    #[comptime] weighted: bool,
    #[comptime] add: bool,
    #[comptime] layout: RowLayout,
) {
    let (row, unit) = row_of_unit(layout);
    let mut sum = 0.0f32;
    let mut i = unit;
    while i < n {
        if comptime!(weighted) {
            sum += x.get(i) * weight.get(i);
        } else {
            sum += x.get(i);
        }
        i += comptime!(layout.team);
    }
    let sum = team_sum(sum, layout) * factor;
    if row == 0 {
        if unit == 0 {
            if comptime!(add) {
                out.set(0, out.get(0) + sum);
            } else {
                out.set(0, sum);
            }
        }
    }
}
