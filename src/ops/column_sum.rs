//! Sums over rows: gradients of biases, norm scales and modulations.
//!
//! ```text
//! plain        out[d] += Σ_m dy[m, d]
//! product      out[d] += Σ_m dy[m, d] x[m, d] rstd[m]                  (rms_norm scale)
//! centred      out[d] += Σ_m dy[m, d] (x[m, d] - mean[m]) rstd[m]      (layer_norm weight)
//! ```
//! Each column is summed in the order of its rows. Long columns are cut into chunks of rows whose sums are then
//! summed, so the order depends on the shape and the kind of device alone. Sums over *groups* of contiguous rows write one line each.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Rows that one unit sums at most, and those of a chunk where there are more, whose sum then goes through memory: few on
/// GPUs, so that there are many units.
fn rows_of_unit(gpu: &Gpu) -> (usize, usize) {
    if gpu.caps().software { (512, 512) } else { (128, 64) }
}

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
    let (most, chunk) = rows_of_unit(gpu);
    if m <= most {
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
    let chunks = m.div_ceil(chunk);
    let partial = gpu.f32([chunks, d]);
    run(
        gpu,
        term,
        Lines {
            grouping: Grouping::Even,
            starts: dy,
            lines: chunks,
            size: chunk,
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
    let tensors = [dy, x, out];
    let lanes = Lanes::pick(gpu, &[d, first, stride], &tensors);
    let read = dy.bytes() + if kind == Kind::Plain { 0 } else { x.bytes() };
    let count = CubeCount::Static(d.div_ceil(lanes.count * UNITS) as u32, lines.lines as u32, 1);
    launch!(
        gpu,
        Cost::moving("column_sum", read + (lines.lines * d * 4) as u64),
        column_sum_kernel,
        count,
        CubeDim::new_1d(UNITS as u32),
        [dy, x, stats, lines.starts, out],
        (
            m,
            d,
            lines.size,
            first,
            stride,
            kind,
            lines.grouping,
            add,
            lanes,
            lanes.types(tensors),
            lanes.sizes()
        ),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn column_sum_kernel<DY: Numeric, X: Numeric, O: Numeric, W: Size, N: Size>(
    dy: &View<Vector<DY, W>>,
    x: &View<Vector<X, W>>,
    stats: &View<f32>,
    starts: &View<u32>,
    out: &mut View<Vector<O, W>>,
    m: usize,
    d: usize,
    size: usize,
    first: usize,
    stride: usize,
    #[comptime] kind: Kind,
    #[comptime] grouping: Grouping,
    #[comptime] add: bool,
    #[comptime] lanes: Lanes,
    #[define(DY, X, O)] _types: [StorageType; 3],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let col = ABSOLUTE_POS_X as usize * lanes.count;
    let line = CUBE_POS_Y as usize;
    let d = d * 1;
    if col < d {
        let mut begin = line * size;
        let mut end = min(begin + size, m);
        if comptime!(grouping == Grouping::Starts) {
            begin = starts.get(line) as usize;
            end = starts.get(line + 1) as usize;
        }
        let dy_at = dy.start() + col;
        let x_at = x.start() + col;
        let stats_at = stats.start();
        let mut sum = Vector::<f32, N>::zeroed();
        for row in begin..end {
            let g = load::<DY, W, N>(dy, dy_at + row * d, lanes);
            match comptime!(kind) {
                Kind::Plain => {
                    sum += g;
                }
                Kind::Product => {
                    let v = load::<X, W, N>(x, x_at + row * d, lanes);
                    let r = stats.raw(stats_at + row);
                    sum += g * v * Vector::new(r);
                }
                Kind::Centred => {
                    let v = load::<X, W, N>(x, x_at + row * d, lanes);
                    let mean = stats.raw(stats_at + 2 * row);
                    let r = stats.raw(stats_at + 2 * row + 1);
                    sum += g * (v - Vector::new(mean)) * Vector::new(r);
                }
            }
        }
        let at = out.start() + line * stride + first + col;
        if comptime!(add) {
            sum += load::<O, W, N>(out, at, lanes);
        }
        store::<O, W, N>(out, at, sum, lanes);
    }
}
