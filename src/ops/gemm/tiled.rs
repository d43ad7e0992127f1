//! The product for GPUs: 64 × 64 tiles of C, slices of 16 along k staged in shared memory, a 4 × 4 block per unit.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::epilogue::{Sizes, extra_row, locate, pre_row, store, strides};
use super::{Call, Config};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu};

/// Side of a workgroup's tile of C.
const TILE: usize = 64;
/// Depth of a slice along k.
const DEPTH: usize = 16;
/// Side of a unit's block.
const BLOCK: usize = 4;
/// Units along each side of a workgroup.
const SIDE: usize = TILE / BLOCK;
/// Units of a workgroup.
pub(super) const UNITS: u32 = (SIDE * SIDE) as u32;
/// Rows of the staged slices are padded by this many elements, so that transposing stores hit different banks.
const PAD: usize = 1;
/// Shared memory of a workgroup.
pub(super) const SHARED_BYTES: u32 = (2 * DEPTH * (TILE + PAD) * 4) as u32;

pub(super) fn launch_tiled(gpu: &Gpu, cost: Cost, call: &Call<'_>) {
    let [m, n, z] = call.grid;
    let count = CubeCount::Static(n.div_ceil(TILE) as u32, m.div_ceil(TILE) as u32, z as u32);
    let cfg = call.config.narrow();
    let types = [call.a, call.b, call.c, call.bias, call.extra].map(|t| t.dtype().storage());
    launch!(
        gpu,
        cost,
        gemm_tiled,
        count,
        CubeDim::new_1d(UNITS),
        [
            call.a, call.b, call.c, call.bias, call.extra, call.pre, call.index, call.table
        ],
        (call.sizes.launch(), call.scale, cfg, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gemm_tiled<A: Numeric, B: Numeric, C: Numeric, Y: Numeric, X: Numeric>(
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
    let unit = UNIT_POS as usize;
    let m0 = CUBE_POS_Y as usize * TILE;
    let n0 = CUBE_POS_X as usize * TILE;
    let row0 = unit / SIDE * BLOCK;
    let col0 = unit % SIDE * BLOCK;
    let width = comptime!(TILE + PAD);

    // Slices, k outermost: every unit then reads a row of each.
    let mut tile_a = SharedMemory::<f32>::new(comptime!(DEPTH * width));
    let mut tile_b = SharedMemory::<f32>::new(comptime!(DEPTH * width));
    let mut acc = Array::<f32>::new(comptime!(BLOCK * BLOCK));
    #[unroll]
    for i in 0..comptime!(BLOCK * BLOCK) {
        acc[i] = 0.0;
    }
    let slices = k.div_ceil(DEPTH);
    for slice in 0..slices {
        let k0 = slice * DEPTH;
        // Neighbouring units load neighbours in memory, whichever way the operand lies.
        #[unroll]
        for part in 0..comptime!(DEPTH * TILE / UNITS as usize) {
            let e = unit + comptime!(part * UNITS as usize);
            let (i, r) = if comptime!(cfg.a_transposed) {
                (e % TILE, e / TILE)
            } else {
                (e / DEPTH, e % DEPTH)
            };
            let row = m0 + i;
            let at = if comptime!(cfg.a_transposed) {
                (k0 + r) * ld_a + row
            } else {
                row * ld_a + k0 + r
            };
            let inside = row < m && k0 + r < k;
            let x = f32::cast_from(a.raw(select(inside, place.a + at, place.a)));
            tile_a[r * width + i] = select(inside, x, 0.0);

            let (j, r) = if comptime!(cfg.b_transposed) {
                (e / DEPTH, e % DEPTH)
            } else {
                (e % TILE, e / TILE)
            };
            let col = n0 + j;
            let at = if comptime!(cfg.b_transposed) {
                col * ld_b + k0 + r
            } else {
                (k0 + r) * ld_b + col
            };
            let inside = col < n && k0 + r < k;
            let x = f32::cast_from(b.raw(select(inside, place.b + at, place.b)));
            tile_b[r * width + j] = select(inside, x, 0.0);
        }
        sync_cube();
        #[unroll]
        for r in 0..comptime!(DEPTH) {
            #[unroll]
            for i in 0..comptime!(BLOCK) {
                let x = tile_a[comptime!(r * width) + row0 + i];
                #[unroll]
                for j in 0..comptime!(BLOCK) {
                    acc[comptime!(i * BLOCK + j)] = fma(
                        x,
                        tile_b[comptime!(r * width) + col0 + j],
                        acc[comptime!(i * BLOCK + j)],
                    );
                }
            }
        }
        sync_cube();
    }
    let strides = strides(sizes, cfg);
    let ld_c = sizes.ld_c * 1;
    #[unroll]
    for i in 0..comptime!(BLOCK) {
        let row = m0 + row0 + i;
        if row < m {
            let c_row = place.c + row * ld_c;
            let pre_row = pre_row(&strides, &place, row, cfg);
            let x_row = extra_row(index, &strides, &place, row, cfg);
            #[unroll]
            for j in 0..comptime!(BLOCK) {
                let col = n0 + col0 + j;
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
