//! The product with nothing but registers: each unit computes a 4 × 4 block. For devices without fixed planes or
//! shared memory worth having, and the plainest statement of what the other kernels must compute.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::epilogue::{Sizes, extra_row, locate, pre_row, store, strides};
use super::{Call, Config};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu};

/// Side of a unit's block.
const BLOCK: usize = 4;
/// Units along the columns and along the rows of a workgroup.
const UNITS_X: usize = 8;
const UNITS_Y: usize = 8;

pub(super) fn launch_portable(gpu: &Gpu, cost: Cost, call: &Call<'_>) {
    let [m, n, z] = call.grid;
    let count = CubeCount::Static(
        n.div_ceil(BLOCK * UNITS_X) as u32,
        m.div_ceil(BLOCK * UNITS_Y) as u32,
        z as u32,
    );
    let cfg = call.config.narrow();
    let types = [call.a, call.b, call.c, call.bias, call.extra].map(|t| t.dtype().storage());
    launch!(
        gpu,
        cost,
        gemm_portable,
        count,
        CubeDim::new_2d(UNITS_X as u32, UNITS_Y as u32),
        [
            call.a, call.b, call.c, call.bias, call.extra, call.pre, call.index, call.table
        ],
        (call.sizes.launch(), call.scale, cfg, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gemm_portable<A: Numeric, B: Numeric, C: Numeric, Y: Numeric, X: Numeric>(
    a: &View<A>,
    b: &View<B>,
    c: &mut View<C>,
    bias: &View<Y>,
    extra: &View<X>,
    pre: &mut View<C>,
    index: &View<u32>,
    table: &View<u32>,
    sizes: &Sizes,
    scale: f32,
    #[comptime] cfg: Config,
    #[define(A, B, C, Y, X)] _types: [StorageType; 5],
) {
    let place = locate(
        table,
        sizes,
        a.start(),
        b.start(),
        c.start(),
        bias.start(),
        extra.start(),
        pre.start(),
        cfg,
    );
    let (m, n, k) = (place.m, place.n, place.k);
    let ld_a = sizes.ld_a * 1;
    let ld_b = sizes.ld_b * 1;
    let m0 = (CUBE_POS_Y as usize * UNITS_Y + UNIT_POS_Y as usize) * BLOCK;
    let n0 = (CUBE_POS_X as usize * UNITS_X + UNIT_POS_X as usize) * BLOCK;

    let mut acc = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    #[unroll]
    for i in 0..comptime!(BLOCK * BLOCK) {
        acc[i] = 0.0;
    }
    let mut av = Array::<f32>::new(comptime!(BLOCK));
    let mut bv = Array::<f32>::new(comptime!(BLOCK));
    for r in 0..k {
        #[unroll]
        for i in 0..comptime!(BLOCK) {
            let row = min(m0 + i, m - 1);
            let at = if comptime!(cfg.a_transposed) {
                r * ld_a + row
            } else {
                row * ld_a + r
            };
            av[i] = f32::cast_from(a.raw(place.a + at));
            let col = min(n0 + i, n - 1);
            let at = if comptime!(cfg.b_transposed) {
                col * ld_b + r
            } else {
                r * ld_b + col
            };
            bv[i] = f32::cast_from(b.raw(place.b + at));
        }
        #[unroll]
        for i in 0..comptime!(BLOCK) {
            #[unroll]
            for j in 0..comptime!(BLOCK) {
                acc[comptime!(i * BLOCK + j)] = fma(av[i], bv[j], acc[comptime!(i * BLOCK + j)]);
            }
        }
    }
    let strides = strides(sizes, cfg);
    let ld_c = sizes.ld_c * 1;
    #[unroll]
    for i in 0..comptime!(BLOCK) {
        let row = m0 + i;
        if row < m {
            let c_row = place.c + row * ld_c;
            let pre_row = pre_row(&strides, &place, row, cfg);
            let x_row = extra_row(index, &strides, &place, row, cfg);
            #[unroll]
            for j in 0..comptime!(BLOCK) {
                let col = n0 + j;
                if col < n {
                    store::<C, Y, X>(
                        c,
                        pre,
                        bias,
                        extra,
                        acc[comptime!(i * BLOCK + j)],
                        scale,
                        c_row + col,
                        pre_row + col,
                        place.bias + col,
                        x_row + col,
                        cfg,
                    );
                }
            }
        }
    }
}
