//! Layer normalisation, optionally with ReLU and dropout behind it (the critics' hidden layers).
//!
//! ```text
//! x̂ = (x - mean) / sqrt(var + ε)      y = x̂ w + b      ε = 1e-6, statistics over the width D
//! g = dy w      dx = (g - mean(g) - x̂ mean(g x̂)) / sqrt(var + ε)      dw += Σ dy x̂      db += Σ dy
//! ```
//! x, y `[M, D]`. `w`, `b` are `[D]`, or `[E, D]` for rows that come in E equal runs (an ensemble).
//! With `relu`, y is cut at zero; with dropout `p`, kept values are divided by `1 - p` and the mask is `keep`
//! (u32 bits, element `i` is bit `i % 32` of word `i / 32`). Backward recomputes both from x.
//! Source: Ba et al. 2016.
//!
//! Cost: memory bound, as rms_norm.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::column_sum::{self, Term};
use super::lanes::{Lanes, load, store, total};
use super::rows::{RowLayout, row_of_unit, team_sum};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Added to the variance.
pub const EPS: f32 = 1e-6;

/// Parameters of a norm and what follows it.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `[D]` or `[E, D]`
    pub weight: &'a Tensor,
    /// like `weight`
    pub bias: &'a Tensor,
    /// Cut negative results to zero.
    pub relu: bool,
    /// Bits of the kept elements and the share that is dropped.
    pub dropout: Option<(&'a Tensor, f32)>,
}

/// What [`LayerNorm::backward`] reads and writes.
pub struct Backward<'a> {
    pub x: &'a Tensor,
    pub dy: &'a Tensor,
    /// Gradient that reaches x around the norm (the residual), added to dx.
    pub around: Option<&'a Tensor>,
    pub dx: &'a Tensor,
    /// dx again in another type, for products that read it.
    pub rounded: Option<&'a Tensor>,
    /// The forward result again, for the weight gradient of the layer behind the norm.
    pub y: Option<&'a Tensor>,
    /// Mean and 1/std of each row `[M, 2]` f32, for [`LayerNorm::backward_params`].
    pub stats: Option<&'a Tensor>,
}

impl<'a> LayerNorm<'a> {
    /// A norm alone.
    pub fn new(weight: &'a Tensor, bias: &'a Tensor) -> Self {
        LayerNorm {
            weight,
            bias,
            relu: false,
            dropout: None,
        }
    }

    fn behind(&self) -> Behind {
        Behind {
            relu: self.relu,
            dropout: self.dropout.is_some(),
        }
    }

    fn keep(&self) -> (&'a Tensor, f32) {
        self.dropout
            .map_or((self.bias, 1.0), |(bits, p)| (bits, 1.0 / (1.0 - p)))
    }

    /// `y = norm(x)`
    pub fn forward(&self, gpu: &Gpu, x: &Tensor, y: &Tensor) {
        let [m, d] = *x.shape() else {
            panic!("x is [M, D], not {x:?}")
        };
        let tensors = [x, self.weight, self.bias, y];
        let lanes = Lanes::pick(gpu, &[d], &tensors);
        let layout = RowLayout::of_lanes(gpu, d, lanes);
        let (keep, factor) = self.keep();
        launch!(
            gpu,
            Cost::moving("layer_norm", x.bytes() + y.bytes()),
            layer_norm_forward,
            layout.count(gpu, m),
            layout.dim(),
            [x, self.weight, self.bias, keep, y],
            (
                m,
                d,
                m * d / self.weight.len(),
                factor,
                layout,
                self.behind(),
                lanes,
                lanes.types(tensors),
                lanes.sizes()
            ),
        );
    }

    /// Gradient with respect to x; with ReLU or dropout, dy is overwritten by the gradient at the norm itself.
    pub fn backward(&self, gpu: &Gpu, b: Backward<'_>) {
        let [m, d] = *b.x.shape() else {
            panic!("x is [M, D], not {:?}", b.x)
        };
        let (keep, factor) = self.keep();
        let parts = BackwardParts {
            around: b.around.is_some(),
            rounded: b.rounded.is_some(),
            y: b.y.is_some(),
            stats: b.stats.is_some(),
        };
        let moved: u64 = [Some(b.x), Some(b.dy), b.around, Some(b.dx), b.rounded, b.y]
            .into_iter()
            .flatten()
            .map(|t| t.bytes())
            .sum();
        let (x, dy, dx) = (b.x, b.dy, b.dx);
        let (around, rounded, y) = (b.around.unwrap_or(dy), b.rounded.unwrap_or(dx), b.y.unwrap_or(dx));
        let tensors = [x, self.weight, self.bias, dy, around, dx, rounded, y];
        let lanes = Lanes::pick(gpu, &[d], &tensors);
        let layout = RowLayout::of_lanes(gpu, d, lanes);
        launch!(
            gpu,
            Cost::moving("layer_norm_backward", moved),
            layer_norm_backward,
            layout.count(gpu, m),
            layout.dim(),
            [
                x,
                self.weight,
                self.bias,
                keep,
                dy,
                around,
                dx,
                rounded,
                y,
                b.stats.unwrap_or(dx)
            ],
            (
                m,
                d,
                m * d / self.weight.len(),
                factor,
                layout,
                self.behind(),
                parts,
                lanes,
                lanes.types(tensors),
                lanes.sizes()
            ),
        );
    }

    /// `dw += Σ dy x̂`, `db += Σ dy` from what [`LayerNorm::backward`] left in `dy` and `stats`.
    pub fn backward_params(gpu: &Gpu, x: &Tensor, stats: &Tensor, dy: &Tensor, dw: &Tensor, db: &Tensor) {
        let lines = dw.len() / x.dim(1);
        if lines == 1 {
            column_sum::accumulate(gpu, Term::Centred { dy, x, stats }, dw);
            column_sum::accumulate(gpu, Term::Plain { dy }, db);
        } else {
            column_sum::accumulate_even(gpu, Term::Centred { dy, x, stats }, lines, dw);
            column_sum::accumulate_even(gpu, Term::Plain { dy }, lines, db);
        }
    }
}

/// A tensor for the statistics of `rows` rows.
pub fn stats(gpu: &Gpu, rows: usize) -> Tensor {
    gpu.alloc(DType::F32, [rows, 2])
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Behind {
    relu: bool,
    dropout: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct BackwardParts {
    around: bool,
    rounded: bool,
    y: bool,
    stats: bool,
}

/// Mean and 1/std of the row that starts at `at`: two passes, as the reference, because `mean(x²) - mean²` cancels.
#[cube]
fn statistics<X: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    at: usize,
    d: usize,
    unit: usize,
    #[comptime] layout: RowLayout,
    #[comptime] lanes: Lanes,
) -> (f32, f32) {
    let mut sums = Vector::<f32, N>::zeroed();
    let mut i = unit * lanes.count;
    while i < d {
        sums += load::<X, W, N>(x, at + i, lanes);
        i += comptime!(layout.team * lanes.count);
    }
    let mean = team_sum(total(sums, lanes), layout) / d as f32;
    let mut squares = Vector::<f32, N>::zeroed();
    let mut i = unit * lanes.count;
    while i < d {
        let v = load::<X, W, N>(x, at + i, lanes) - Vector::new(mean);
        squares += v * v;
        i += comptime!(layout.team * lanes.count);
    }
    let variance = team_sum(total(squares, lanes), layout) / d as f32;
    (mean, f32::inverse_sqrt(variance + EPS))
}

/// What ReLU and dropout multiply elements `i..` by, given the values in front of them.
#[cube]
fn gains<N: Size>(
    values: Vector<f32, N>,
    keep: &View<u32>,
    i: usize,
    factor: f32,
    #[comptime] behind: Behind,
    #[comptime] lanes: Lanes,
) -> Vector<f32, N> {
    let mut gains = Vector::<f32, N>::new(1.0);
    #[unroll]
    for k in 0..lanes.count {
        let mut gain = 1.0f32;
        if comptime!(behind.relu) {
            gain = select(values[k] > 0.0, 1.0, 0.0);
        }
        if comptime!(behind.dropout) {
            let bit = (keep.get((i + k) / 32) >> ((i + k) % 32) as u32) & 1;
            gain *= select(bit == 1, factor, 0.0);
        }
        gains[k] = gain;
    }
    gains
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn layer_norm_forward<X: Numeric, T: Numeric, B: Numeric, Y: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    weight: &View<Vector<T, W>>,
    bias: &View<Vector<B, W>>,
    keep: &View<u32>,
    y: &mut View<Vector<Y, W>>,
    m: usize,
    d: usize,
    rows_per_weight: usize,
    factor: f32,
    #[comptime] layout: RowLayout,
    #[comptime] behind: Behind,
    #[comptime] lanes: Lanes,
    #[define(X, T, B, Y)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    let gated = comptime!(behind.relu || behind.dropout);
    let safe = min(row, m - 1);
    let d = d * 1;
    let x_at = x.start() + safe * d;
    let (mean, r) = statistics::<X, W, N>(x, x_at, d, unit, layout, lanes);
    if row < m {
        let w_at = weight.start() + row / rows_per_weight * d;
        let b_at = bias.start() + row / rows_per_weight * d;
        let y_at = y.start() + row * d;
        let mut i = unit * lanes.count;
        while i < d {
            let v = load::<X, W, N>(x, x_at + i, lanes);
            let w = load::<T, W, N>(weight, w_at + i, lanes);
            let b = load::<B, W, N>(bias, b_at + i, lanes);
            let mut out = (v - Vector::new(mean)) * Vector::new(r) * w + b;
            if comptime!(gated) {
                out *= gains::<N>(out, keep, row * d + i, factor, behind, lanes);
            }
            store::<Y, W, N>(y, y_at + i, out, lanes);
            i += comptime!(layout.team * lanes.count);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn layer_norm_backward<
    X: Numeric,
    T: Numeric,
    B: Numeric,
    DY: Numeric,
    R: Numeric,
    DX: Numeric,
    DR: Numeric,
    Y: Numeric,
    W: Size,
    N: Size,
>(
    x: &View<Vector<X, W>>,
    weight: &View<Vector<T, W>>,
    bias: &View<Vector<B, W>>,
    keep: &View<u32>,
    dy: &mut View<Vector<DY, W>>,
    around: &View<Vector<R, W>>,
    dx: &mut View<Vector<DX, W>>,
    rounded: &mut View<Vector<DR, W>>,
    y: &mut View<Vector<Y, W>>,
    stats: &mut View<f32>,
    m: usize,
    d: usize,
    rows_per_weight: usize,
    factor: f32,
    #[comptime] layout: RowLayout,
    #[comptime] behind: Behind,
    #[comptime] parts: BackwardParts,
    #[comptime] lanes: Lanes,
    #[define(X, T, B, DY, R, DX, DR, Y)] _types: [StorageType; 8],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    let safe = min(row, m - 1);
    let d = d * 1;
    let gated = comptime!(behind.relu || behind.dropout);
    let x_at = x.start() + safe * d;
    let dy_at = dy.start() + safe * d;
    let w_at = weight.start() + safe / rows_per_weight * d;
    let b_at = bias.start() + safe / rows_per_weight * d;
    let (mean, r) = statistics::<X, W, N>(x, x_at, d, unit, layout, lanes);

    let mut sums = Vector::<f32, N>::zeroed();
    let mut dots = Vector::<f32, N>::zeroed();
    let mut i = unit * lanes.count;
    while i < d {
        let normed = (load::<X, W, N>(x, x_at + i, lanes) - Vector::new(mean)) * Vector::new(r);
        let w = load::<T, W, N>(weight, w_at + i, lanes);
        let mut g = load::<DY, W, N>(dy, dy_at + i, lanes);
        if comptime!(gated) {
            let value = normed * w + load::<B, W, N>(bias, b_at + i, lanes);
            g *= gains::<N>(value, keep, safe * d + i, factor, behind, lanes);
            if row < m {
                store::<DY, W, N>(dy, dy_at + i, g, lanes);
            }
        }
        sums += g * w;
        dots += g * w * normed;
        i += comptime!(layout.team * lanes.count);
    }
    let mean_g = team_sum(total(sums, lanes), layout) / d as f32;
    let mean_gx = team_sum(total(dots, lanes), layout) / d as f32;
    if row < m {
        let around_at = around.start() + row * d;
        let dx_at = dx.start() + row * d;
        let rounded_at = rounded.start() + row * d;
        let y_at = y.start() + row * d;
        let mut i = unit * lanes.count;
        while i < d {
            let normed = (load::<X, W, N>(x, x_at + i, lanes) - Vector::new(mean)) * Vector::new(r);
            let w = load::<T, W, N>(weight, w_at + i, lanes);
            // After the pass above dy is the gradient at the norm, for this unit's own elements.
            let g = load::<DY, W, N>(dy, dy_at + i, lanes);
            let mut out = (g * w - Vector::new(mean_g) - normed * Vector::new(mean_gx)) * Vector::new(r);
            if comptime!(parts.around) {
                out += load::<R, W, N>(around, around_at + i, lanes);
            }
            store::<DX, W, N>(dx, dx_at + i, out, lanes);
            if comptime!(parts.rounded) {
                store::<DR, W, N>(rounded, rounded_at + i, out, lanes);
            }
            if comptime!(parts.y) {
                let mut again = normed * w + load::<B, W, N>(bias, b_at + i, lanes);
                if comptime!(gated) {
                    again *= gains::<N>(again, keep, row * d + i, factor, behind, lanes);
                }
                store::<Y, W, N>(y, y_at + i, again, lanes);
            }
            i += comptime!(layout.team * lanes.count);
        }
        if comptime!(parts.stats) {
            if unit == 0 {
                stats.set(2 * row, mean);
                stats.set(2 * row + 1, r);
            }
        }
    }
}
