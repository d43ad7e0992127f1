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

use super::pair::{Pair, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

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
    let even = d.is_multiple_of(2) && ld.is_multiple_of(2) && rows.pairs() && pool.pairs();
    let wide = gpu.caps().wide_loads && even && rows.dtype() == DType::F32 && pool.dtype() == DType::F32;
    let types = [storage(rows, wide), storage(pool, wide)];
    launch!(
        gpu,
        Cost::moving(
            "mean_pool",
            rows.bytes() * if back { 2 } else { 1 } + (b * d) as u64 * pool.dtype().bytes()
        ),
        mean_pool_kernel,
        CubeCount::Static(d.div_ceil(2 * UNITS) as u32, b as u32, 1),
        CubeDim::new_1d(UNITS as u32),
        [rows, runs.starts, runs.lens, pool],
        (d, ld, back, wide, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn mean_pool_kernel<X: Numeric, P: Numeric>(
    rows: &mut View<X>,
    starts: &View<u32>,
    lens: &View<u32>,
    pool: &mut View<P>,
    d: usize,
    ld: usize,
    #[comptime] back: bool,
    #[comptime] wide: bool,
    #[define(X, P)] _types: [StorageType; 2],
) {
    let i = 2 * ABSOLUTE_POS_X as usize;
    let b = CUBE_POS_Y as usize;
    let d = d * 1;
    if i < d {
        let more = i + 1 < d;
        let first = starts.get(b) as usize;
        let len = lens.get(b) as usize;
        let factor = 1.0 / f32::cast_from(max(len, 1) as u32);
        let base = rows.start() + first * d + i;
        let at = pool.start() + b * ld + i;
        if comptime!(back) {
            let g = load2::<P>(pool, at, more, wide);
            for r in 0..len {
                let old = load2::<X>(rows, base + r * d, more, wide);
                let sum = Pair {
                    a: old.a + g.a * factor,
                    b: old.b + g.b * factor,
                };
                store2::<X>(rows, base + r * d, more, sum, wide);
            }
        } else {
            let mut sum = Pair { a: 0.0, b: 0.0 };
            for r in 0..len {
                let v = load2::<X>(rows, base + r * d, more, wide);
                sum.a += v.a;
                sum.b += v.b;
            }
            store2::<P>(
                pool,
                at,
                more,
                Pair {
                    a: sum.a * factor,
                    b: sum.b * factor,
                },
                wide,
            );
        }
    }
}
