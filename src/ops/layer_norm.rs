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
use super::pair::{Pair, is_wide, load2, storage, store2};
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
        let layout = RowLayout::pick(gpu, d);
        let wide = is_wide(gpu, d, &[x, self.weight, self.bias, y]);
        let types = [x, self.weight, self.bias, y].map(|t| storage(t, wide));
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
                wide,
                types
            ),
        );
    }

    /// Gradient with respect to x. `stats [M, 2]` receives mean and 1/std for [`LayerNorm::backward_params`]; with
    /// ReLU or dropout, `dy` is overwritten by the gradient at the norm itself. `around` is added to dx. `y` receives
    /// the forward result again.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        gpu: &Gpu,
        x: &Tensor,
        dy: &Tensor,
        around: Option<&Tensor>,
        dx: &Tensor,
        y: Option<&Tensor>,
        stats: Option<&Tensor>,
    ) {
        let [m, d] = *x.shape() else {
            panic!("x is [M, D], not {x:?}")
        };
        let layout = RowLayout::pick(gpu, d);
        let (keep, factor) = self.keep();
        let parts = BackwardParts {
            around: around.is_some(),
            y: y.is_some(),
            stats: stats.is_some(),
        };
        let (around, y) = (around.unwrap_or(dy), y.unwrap_or(dx));
        let wide = is_wide(gpu, d, &[x, self.weight, self.bias, dy, around, dx, y]);
        let types = [x, self.weight, self.bias, dy, around, dx, y].map(|t| storage(t, wide));
        let moved = x.bytes() + dy.bytes() + dx.bytes() * (1 + parts.around as u64 + parts.y as u64);
        launch!(
            gpu,
            Cost::moving("layer_norm_backward", moved),
            layer_norm_backward,
            layout.count(gpu, m),
            layout.dim(),
            [x, self.weight, self.bias, keep, dy, around, dx, y, stats.unwrap_or(dx)],
            (
                m,
                d,
                m * d / self.weight.len(),
                factor,
                layout,
                self.behind(),
                parts,
                wide,
                types
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
    y: bool,
    stats: bool,
}

/// Mean and 1/std of the row that starts at `at`: two passes, as the reference, because `mean(x²) - mean²` cancels.
#[cube]
fn statistics<X: Numeric>(
    x: &View<X>,
    at: usize,
    d: usize,
    unit: usize,
    #[comptime] layout: RowLayout,
    #[comptime] wide: bool,
) -> (f32, f32) {
    let mut sum = 0.0f32;
    let mut i = 2 * unit;
    while i < d {
        let more = i + 1 < d;
        let v = load2::<X>(x, at + i, more, wide);
        sum += v.a + select(more, v.b, 0.0);
        i += comptime!(2 * layout.team);
    }
    let mean = team_sum(sum, layout) / d as f32;
    let mut square = 0.0f32;
    let mut i = 2 * unit;
    while i < d {
        let more = i + 1 < d;
        let v = load2::<X>(x, at + i, more, wide);
        let (a, b) = (v.a - mean, v.b - mean);
        square += a * a + select(more, b * b, 0.0);
        i += comptime!(2 * layout.team);
    }
    let variance = team_sum(square, layout) / d as f32;
    (mean, f32::inverse_sqrt(variance + EPS))
}

/// What ReLU and dropout multiply element `i` by, given the value in front of them.
#[cube]
fn gain(value: f32, keep: &View<u32>, i: usize, factor: f32, #[comptime] behind: Behind) -> f32 {
    let mut gain = 1.0f32;
    if comptime!(behind.relu) {
        gain = select(value > 0.0, 1.0, 0.0);
    }
    if comptime!(behind.dropout) {
        let bit = (keep.get(i / 32) >> (i % 32) as u32) & 1;
        gain *= select(bit == 1, factor, 0.0);
    }
    gain
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn layer_norm_forward<X: Numeric, W: Numeric, B: Numeric, Y: Numeric>(
    x: &View<X>,
    weight: &View<W>,
    bias: &View<B>,
    keep: &View<u32>,
    y: &mut View<Y>,
    m: usize,
    d: usize,
    rows_per_weight: usize,
    factor: f32,
    #[comptime] layout: RowLayout,
    #[comptime] behind: Behind,
    #[comptime] wide: bool,
    #[define(X, W, B, Y)] _types: [StorageType; 4],
) {
    let (row, unit) = row_of_unit(layout);
    let safe = min(row, m - 1);
    let d = d * 1;
    let x_at = x.start() + safe * d;
    let (mean, r) = statistics::<X>(x, x_at, d, unit, layout, wide);
    if row < m {
        let w_at = weight.start() + row / rows_per_weight * d;
        let b_at = bias.start() + row / rows_per_weight * d;
        let y_at = y.start() + row * d;
        let mut i = 2 * unit;
        while i < d {
            let more = i + 1 < d;
            let v = load2::<X>(x, x_at + i, more, wide);
            let w = load2::<W>(weight, w_at + i, more, wide);
            let b = load2::<B>(bias, b_at + i, more, wide);
            let mut out = Pair {
                a: (v.a - mean) * r * w.a + b.a,
                b: (v.b - mean) * r * w.b + b.b,
            };
            out.a *= gain(out.a, keep, row * d + i, factor, behind);
            out.b *= gain(out.b, keep, row * d + i + 1, factor, behind);
            store2::<Y>(y, y_at + i, more, out, wide);
            i += comptime!(2 * layout.team);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn layer_norm_backward<X: Numeric, W: Numeric, B: Numeric, DY: Numeric, R: Numeric, DX: Numeric, Y: Numeric>(
    x: &View<X>,
    weight: &View<W>,
    bias: &View<B>,
    keep: &View<u32>,
    dy: &mut View<DY>,
    around: &View<R>,
    dx: &mut View<DX>,
    y: &mut View<Y>,
    stats: &mut View<f32>,
    m: usize,
    d: usize,
    rows_per_weight: usize,
    factor: f32,
    #[comptime] layout: RowLayout,
    #[comptime] behind: Behind,
    #[comptime] parts: BackwardParts,
    #[comptime] wide: bool,
    #[define(X, W, B, DY, R, DX, Y)] _types: [StorageType; 7],
) {
    let (row, unit) = row_of_unit(layout);
    let safe = min(row, m - 1);
    let d = d * 1;
    let gated = comptime!(behind.relu || behind.dropout);
    let x_at = x.start() + safe * d;
    let dy_at = dy.start() + safe * d;
    let w_at = weight.start() + safe / rows_per_weight * d;
    let b_at = bias.start() + safe / rows_per_weight * d;
    let (mean, r) = statistics::<X>(x, x_at, d, unit, layout, wide);

    let mut sum_g = 0.0f32;
    let mut sum_gx = 0.0f32;
    let mut i = 2 * unit;
    while i < d {
        let more = i + 1 < d;
        let v = load2::<X>(x, x_at + i, more, wide);
        let w = load2::<W>(weight, w_at + i, more, wide);
        let mut g = load2::<DY>(dy, dy_at + i, more, wide);
        let (xa, xb) = ((v.a - mean) * r, (v.b - mean) * r);
        if comptime!(gated) {
            let b = load2::<B>(bias, b_at + i, more, wide);
            g.a *= gain(xa * w.a + b.a, keep, safe * d + i, factor, behind);
            g.b *= gain(xb * w.b + b.b, keep, safe * d + i + 1, factor, behind);
            if row < m {
                store2::<DY>(dy, dy_at + i, more, g, wide);
            }
        }
        sum_g += g.a * w.a + select(more, g.b * w.b, 0.0);
        sum_gx += g.a * w.a * xa + select(more, g.b * w.b * xb, 0.0);
        i += comptime!(2 * layout.team);
    }
    let mean_g = team_sum(sum_g, layout) / d as f32;
    let mean_gx = team_sum(sum_gx, layout) / d as f32;
    if row < m {
        let around_at = around.start() + row * d;
        let dx_at = dx.start() + row * d;
        let y_at = y.start() + row * d;
        let mut i = 2 * unit;
        while i < d {
            let more = i + 1 < d;
            let v = load2::<X>(x, x_at + i, more, wide);
            let w = load2::<W>(weight, w_at + i, more, wide);
            // After the pass above dy is the gradient at the norm, for this unit's own elements.
            let g = load2::<DY>(dy, dy_at + i, more, wide);
            let (xa, xb) = ((v.a - mean) * r, (v.b - mean) * r);
            let mut out = Pair {
                a: (g.a * w.a - mean_g - xa * mean_gx) * r,
                b: (g.b * w.b - mean_g - xb * mean_gx) * r,
            };
            if comptime!(parts.around) {
                let add = load2::<R>(around, around_at + i, more, wide);
                out.a += add.a;
                out.b += add.b;
            }
            store2::<DX>(dx, dx_at + i, more, out, wide);
            if comptime!(parts.y) {
                let b = load2::<B>(bias, b_at + i, more, wide);
                let mut again = Pair {
                    a: xa * w.a + b.a,
                    b: xb * w.b + b.b,
                };
                again.a *= gain(again.a, keep, row * d + i, factor, behind);
                again.b *= gain(again.b, keep, row * d + i + 1, factor, behind);
                store2::<Y>(y, y_at + i, more, again, wide);
            }
            i += comptime!(2 * layout.team);
        }
        if comptime!(parts.stats) {
            if unit == 0 {
                stats.set(2 * row, mean);
                stats.set(2 * row + 1, r);
            }
        }
    }
}
