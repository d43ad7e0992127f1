//! Mean over the rows of each packed sequence: the critics' view of the prefix.
//!
//! `pool[b, d] = Σ_{r in b} x[r, d] / n_b`, `dx[r, d] += dpool[b, d] / n_b`.
//! Rows of sequence b are `starts[b] .. starts[b] + lens[b]` (u32 `[B]` each). The pooled row lands in the first D
//! columns of lines of width `ld`, where the critic's input is put together. Padding was never packed, so this is the
//! masked mean; a sequence without rows gives zero.
//!
//! Cost: memory bound.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 32;

/// Runs of rows.
#[derive(Clone, Copy)]
pub struct Runs<'a> {
    /// First row of each, u32 `[B]`.
    pub starts: &'a Tensor,
    /// Number of rows of each, u32 `[B]`.
    pub lens: &'a Tensor,
}

/// `pool[b, 0..D] = mean of the rows`; `pool [B, ld]`.
pub fn forward(gpu: &Gpu, x: &Tensor, runs: Runs<'_>, pool: &Tensor) {
    run(gpu, x, runs, pool, false);
}

/// `dx += dpool / n` on the rows of each run.
pub fn backward(gpu: &Gpu, dpool: &Tensor, runs: Runs<'_>, dx: &Tensor) {
    run(gpu, dx, runs, dpool, true);
}

fn run(gpu: &Gpu, rows: &Tensor, runs: Runs<'_>, pool: &Tensor, back: bool) {
    let (b, d, ld) = (runs.lens.len(), rows.dim(1), pool.dim(1));
    if b == 0 {
        return;
    }
    let lanes = Lanes::pick(gpu, &[d, ld], &[rows, pool]);
    launch!(
        gpu,
        Cost::moving(
            "mean_pool",
            rows.bytes() * if back { 2 } else { 1 } + (b * d) as u64 * pool.dtype().bytes()
        ),
        mean_pool_kernel,
        CubeCount::Static(d.div_ceil(lanes.count * UNITS) as u32, b as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        [rows, runs.starts, runs.lens, pool],
        (d, ld, back, lanes, lanes.types([rows, pool]), lanes.sizes()),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn mean_pool_kernel<X: Numeric, P: Numeric, W: Size, N: Size>(
    rows: &mut View<Vector<X, W>>,
    starts: &View<u32>,
    lens: &View<u32>,
    pool: &mut View<Vector<P, W>>,
    d: usize,
    ld: usize,
    #[comptime] back: bool,
    #[comptime] lanes: Lanes,
    #[define(X, P)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS_X as usize * lanes.count;
    let b = CUBE_POS_Y as usize;
    let d = d * 1;
    if i < d {
        let first = starts.get(b) as usize;
        let len = lens.get(b) as usize;
        let factor = Vector::<f32, N>::new(1.0 / f32::cast_from(max(len, 1) as u32));
        let base = rows.start() + first * d + i;
        let at = pool.start() + b * ld + i;
        if comptime!(back) {
            let g = load::<P, W, N>(pool, at, lanes) * factor;
            for r in 0..len {
                let old = load::<X, W, N>(rows, base + r * d, lanes);
                store::<X, W, N>(rows, base + r * d, old + g, lanes);
            }
        } else {
            let mut sum = Vector::<f32, N>::zeroed();
            for r in 0..len {
                sum += load::<X, W, N>(rows, base + r * d, lanes);
            }
            store::<P, W, N>(pool, at, sum * factor, lanes);
        }
    }
}
