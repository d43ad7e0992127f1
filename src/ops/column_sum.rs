//! Sums over rows: gradients of biases, norm scales and modulations.
//!
//! ```text
//! plain        out[d] += Σ_m dy[m, d]
//! product      out[d] += Σ_m dy[m, d] x[m, d] rstd[m]                  (rms_norm scale)
//! centred      out[d] += Σ_m dy[m, d] (x[m, d] - mean[m]) rstd[m]      (layer_norm weight)
//! ```
//! Each column is summed in the order of its rows. Long columns are cut into chunks of [`CHUNK`] rows whose sums are
//! then summed, so the order depends on the shape alone. Sums over *groups* of contiguous rows write one line each.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Rows summed by one unit before the result goes through memory.
pub const CHUNK: usize = 512;
/// Units of a workgroup.
const UNITS: usize = 32;

/// What is summed. `dy`, `x` are `[M, D]`, `rstd` `[M]`, `stats` `[M, 2]` = mean, rstd.
#[derive(Clone, Copy, Debug)]
pub enum Term<'a> {
    Plain {
        dy: &'a Tensor,
    },
    Product {
        dy: &'a Tensor,
        x: &'a Tensor,
        rstd: &'a Tensor,
    },
    Centred {
        dy: &'a Tensor,
        x: &'a Tensor,
        stats: &'a Tensor,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Plain,
    Product,
    Centred,
}

impl<'a> Term<'a> {
    fn parts(&self) -> (Kind, &'a Tensor, &'a Tensor, &'a Tensor) {
        match *self {
            Term::Plain { dy } => (Kind::Plain, dy, dy, dy),
            Term::Product { dy, x, rstd } => (Kind::Product, dy, x, rstd),
            Term::Centred { dy, x, stats } => (Kind::Centred, dy, x, stats),
        }
    }
}

/// How rows are gathered into lines of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Grouping {
    /// Line `g` sums rows `g·size ..`.
    Even,
    /// Line `g` sums rows `starts[g]..starts[g + 1]`.
    Starts,
}

/// `out [D] += Σ_m term`
pub fn accumulate(gpu: &Gpu, term: Term<'_>, out: &Tensor) {
    let (_, dy, _, _) = term.parts();
    let [m, d] = *dy.shape() else {
        panic!("dy is [M, D], not {dy:?}")
    };
    assert_eq!(out.len(), d, "{out:?}");
    if m <= CHUNK {
        return run(
            gpu,
            term,
            Lines {
                grouping: Grouping::Even,
                starts: dy,
                lines: 1,
                size: m,
            },
            out,
            0,
            d,
            true,
        );
    }
    let chunks = m.div_ceil(CHUNK);
    let partial = gpu.f32([chunks, d]);
    run(
        gpu,
        term,
        Lines {
            grouping: Grouping::Even,
            starts: dy,
            lines: chunks,
            size: CHUNK,
        },
        &partial,
        0,
        d,
        false,
    );
    accumulate(gpu, Term::Plain { dy: &partial }, out);
}

/// `out[e, :] += Σ` over the `e`-th of `lines` equal runs of rows; `out [lines, D]`.
pub fn accumulate_even(gpu: &Gpu, term: Term<'_>, lines: usize, out: &Tensor) {
    let (_, dy, _, _) = term.parts();
    let [m, d] = *dy.shape() else {
        panic!("dy is [M, D], not {dy:?}")
    };
    assert!(m.is_multiple_of(lines) && out.len() == lines * d);
    run(
        gpu,
        term,
        Lines {
            grouping: Grouping::Even,
            starts: dy,
            lines,
            size: m / lines,
        },
        out,
        0,
        d,
        true,
    );
}

/// `out[g, first..first + D] = Σ` over the rows `starts[g]..starts[g + 1]`; lines of `out` are `stride` apart.
pub fn grouped(gpu: &Gpu, term: Term<'_>, starts: &Tensor, out: &Tensor, first: usize, stride: usize) {
    let lines = starts.len() - 1;
    run(
        gpu,
        term,
        Lines {
            grouping: Grouping::Starts,
            starts,
            lines,
            size: 0,
        },
        out,
        first,
        stride,
        false,
    );
}

struct Lines<'a> {
    grouping: Grouping,
    starts: &'a Tensor,
    lines: usize,
    size: usize,
}

fn run(gpu: &Gpu, term: Term<'_>, lines: Lines<'_>, out: &Tensor, first: usize, stride: usize, add: bool) {
    let (kind, dy, x, stats) = term.parts();
    let [m, d] = *dy.shape() else {
        panic!("dy is [M, D], not {dy:?}")
    };
    let wide = is_wide(gpu, d, &[dy, x, out]) && first.is_multiple_of(2) && stride.is_multiple_of(2);
    let types = [storage(dy, wide), storage(x, wide), storage(out, wide)];
    let operands = if kind == Kind::Plain { 1 } else { 2 };
    let count = CubeCount::Static(d.div_ceil(2 * UNITS) as u32, lines.lines as u32, 1);
    launch!(
        gpu,
        Cost::moving("column_sum", operands * dy.bytes() + (lines.lines * d * 4) as u64),
        column_sum_kernel,
        count,
        CubeDim::new_1d(UNITS as u32),
        [dy, x, stats, lines.starts, out],
        (m, d, lines.size, first, stride, kind, lines.grouping, add, wide, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn column_sum_kernel<DY: Numeric, X: Numeric, O: Numeric>(
    dy: &View<DY>,
    x: &View<X>,
    stats: &View<f32>,
    starts: &View<u32>,
    out: &mut View<O>,
    m: usize,
    d: usize,
    size: usize,
    first: usize,
    stride: usize,
    #[comptime] kind: Kind,
    #[comptime] grouping: Grouping,
    #[comptime] add: bool,
    #[comptime] wide: bool,
    #[define(DY, X, O)] _types: [StorageType; 3],
) {
    let col = 2 * ABSOLUTE_POS_X as usize;
    let line = CUBE_POS_Y as usize;
    let d = d * 1;
    if col < d {
        let more = col + 1 < d;
        let mut begin = line * size;
        let mut end = min(begin + size, m);
        if comptime!(grouping == Grouping::Starts) {
            begin = starts.get(line) as usize;
            end = starts.get(line + 1) as usize;
        }
        let dy_at = dy.start() + col;
        let x_at = x.start() + col;
        let stats_at = stats.start();
        let mut sum = Pair { a: 0.0, b: 0.0 };
        for row in begin..end {
            let g = load2::<DY>(dy, dy_at + row * d, more, wide);
            match comptime!(kind) {
                Kind::Plain => {
                    sum.a += g.a;
                    sum.b += g.b;
                }
                Kind::Product => {
                    let v = load2::<X>(x, x_at + row * d, more, wide);
                    let r = stats.raw(stats_at + row);
                    sum.a += g.a * v.a * r;
                    sum.b += g.b * v.b * r;
                }
                Kind::Centred => {
                    let v = load2::<X>(x, x_at + row * d, more, wide);
                    let mean = stats.raw(stats_at + 2 * row);
                    let r = stats.raw(stats_at + 2 * row + 1);
                    sum.a += g.a * (v.a - mean) * r;
                    sum.b += g.b * (v.b - mean) * r;
                }
            }
        }
        let at = out.start() + line * stride + first + col;
        if comptime!(add) {
            let old = load2::<O>(out, at, more, wide);
            sum.a += old.a;
            sum.b += old.b;
        }
        store2::<O>(out, at, more, sum, wide);
    }
}
