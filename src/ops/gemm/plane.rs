//! The product for CPUs that pose as GPUs: one plane per 16 × (4·plane) tile, no shared memory, no barriers.
//!
//! Software Vulkan runs a plane as one SIMD register and turns every load into a loop over its units, each with a
//! bounds check: a load costs as much as some sixteen multiply-adds, however many bits it moves. So the kernel
//! minimises loads per multiply-add: two neighbouring f32 per 64-bit load of `B` (and of `A` where its rows are
//! neighbours), and the operand that all units need (`A`) is loaded once by different units and broadcast from register to
//! register.
//!
//! Unit `l` holds columns `n0 + 2·plane·p + 2·l` and the next one for each pair `p`, so that stores are pairs too.

use cubecl::ir::{ElemType, StorageType, UIntKind};
use cubecl::prelude::*;

use super::epilogue::{Sizes, activate, extra_row, locate, pre_row, store, strides};
use super::{Act, Call, Config};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu};
use crate::ops::wide::{high, join, low};

/// Rows of a tile.
const ROWS: usize = 16;
/// Columns of a tile held by one unit.
const COLUMNS: usize = 4;

pub(super) fn launch_plane(gpu: &Gpu, cost: Cost, call: &Call<'_>) {
    let plane = gpu.caps().plane.unwrap_or(8) as usize;
    let [m, n, z] = call.grid;
    let count = CubeCount::Static(n.div_ceil(plane * COLUMNS) as u32, m.div_ceil(ROWS) as u32, z as u32);
    let cfg = call.config;
    let step = step(cfg, plane);
    let tail = cfg.grouped || !call.sizes.k.is_multiple_of(step);
    let ty = |wide: bool, t: &crate::gpu::Tensor| -> StorageType {
        if wide {
            ElemType::UInt(UIntKind::U64).into()
        } else {
            t.dtype().storage()
        }
    };
    let types = [
        ty(cfg.wide_a, call.a),
        ty(cfg.wide_b, call.b),
        ty(cfg.wide_c, call.c),
        call.bias.dtype().storage(),
        ty(cfg.wide_extra, call.extra),
    ];
    launch!(
        gpu,
        cost,
        gemm_plane,
        count,
        CubeDim::new_1d(plane as u32),
        [
            call.a, call.b, call.c, call.bias, call.extra, call.pre, call.index, call.table
        ],
        (call.sizes.launch(), call.scale, cfg, plane, tail, types),
    );
}

/// Steps of `k` per turn of the loop: what one load of `A` brings for every row.
fn step(cfg: Config, plane: usize) -> usize {
    if cfg.a_transposed { 8 } else { plane }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gemm_plane<A: Numeric, B: Numeric, C: Numeric, Y: Numeric, X: Numeric>(
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
    #[comptime] plane: usize,
    #[comptime] tail: bool,
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
    let unit = UNIT_POS_X as usize;
    let m0 = CUBE_POS_Y as usize * ROWS;
    let n0 = CUBE_POS_X as usize * comptime!(plane * COLUMNS);
    let step = comptime!(step(cfg, plane));
    let pairs = comptime!(COLUMNS / 2);

    let mut acc = Array::<f32>::new(comptime!(ROWS * COLUMNS));
    #[unroll]
    for i in 0..comptime!(ROWS * COLUMNS) {
        acc[i] = 0.0;
    }
    // First column of each pair, kept inside the matrix: what lies beyond is computed from it and never stored.
    let mut column = Array::<usize>::new(comptime!(COLUMNS));
    #[unroll]
    for p in 0..pairs {
        let first = n0 + comptime!(2 * plane * p) + 2 * unit;
        column[comptime!(2 * p)] = min(
            first,
            if comptime!(cfg.wide_b && !cfg.b_transposed) {
                n - 2
            } else {
                n - 1
            },
        );
        column[comptime!(2 * p + 1)] = min(first + 1, n - 1);
    }
    // Where the rows of A begin (untransposed), and those of B (transposed): no driver moves this out of the loop.
    let mut a_row = Array::<usize>::new(comptime!(ROWS));
    if comptime!(!cfg.a_transposed) {
        #[unroll]
        for i in 0..comptime!(ROWS) {
            a_row[i] = place.a + min(m0 + i, m - 1) * ld_a + unit;
        }
    }
    let mut b_row = Array::<usize>::new(comptime!(COLUMNS));
    if comptime!(cfg.b_transposed) {
        #[unroll]
        for j in 0..comptime!(COLUMNS) {
            b_row[j] = place.b + column[j] * ld_b;
        }
    }
    // A of this turn, one value per row (untransposed); B of one or two steps.
    let mut av = Array::<f32>::new(comptime!(ROWS));
    let mut bv = Array::<f32>::new(comptime!(2 * COLUMNS));

    let turns = k.div_ceil(step);
    for turn in 0..turns {
        let k0 = turn * step;
        if comptime!(!cfg.a_transposed) {
            #[unroll]
            for i in 0..comptime!(ROWS) {
                let at = if comptime!(tail) {
                    a_row[i] + min(k0 + unit, k - 1) - unit
                } else {
                    a_row[i] + k0
                };
                av[i] = keep(f32::cast_from(a.raw(at)), k0 + unit < k, tail);
            }
        }
        #[unroll]
        for kk in 0..step {
            let r = if comptime!(tail) { min(k0 + kk, k - 1) } else { k0 + kk };
            // B at step r: bv[2·column + (r % 2)] when both steps of a pair come with one load, else bv[2·column].
            let odd = comptime!(if cfg.b_transposed && cfg.wide_b { kk % 2 } else { 0 });
            if comptime!(cfg.b_transposed) {
                if comptime!(odd == 0) {
                    #[unroll]
                    for j in 0..comptime!(COLUMNS) {
                        if comptime!(cfg.wide_b) {
                            let at = if comptime!(tail) { min(r, k - 2) } else { r };
                            let q = u64::cast_from(b.raw((b_row[j] + at) / 2));
                            bv[comptime!(2 * j)] = low(q);
                            bv[comptime!(2 * j + 1)] = high(q);
                        } else {
                            bv[comptime!(2 * j)] = f32::cast_from(b.raw(b_row[j] + r));
                        }
                    }
                }
            } else {
                let row = place.b + r * ld_b;
                #[unroll]
                for p in 0..pairs {
                    if comptime!(cfg.wide_b) {
                        let q = u64::cast_from(b.raw((row + column[comptime!(2 * p)]) / 2));
                        bv[comptime!(4 * p)] = low(q);
                        bv[comptime!(4 * p + 2)] = high(q);
                    } else {
                        bv[comptime!(4 * p)] = f32::cast_from(b.raw(row + column[comptime!(2 * p)]));
                        bv[comptime!(4 * p + 2)] = f32::cast_from(b.raw(row + column[comptime!(2 * p + 1)]));
                    }
                }
            }
            // A at step r, transposed: the rows of the tile are neighbours in memory.
            if comptime!(cfg.a_transposed) {
                let row = place.a + r * ld_a;
                let inside = k0 + kk < k;
                if comptime!(cfg.wide_a) {
                    #[unroll]
                    for part in 0..comptime!(ROWS.div_ceil(2 * plane)) {
                        let at = min(m0 + comptime!(2 * plane * part) + 2 * unit, m - 2);
                        let q = u64::cast_from(a.raw((row + at) / 2));
                        av[comptime!(2 * part)] = keep(low(q), inside, tail);
                        av[comptime!(2 * part + 1)] = keep(high(q), inside, tail);
                    }
                } else {
                    #[unroll]
                    for part in 0..comptime!(ROWS.div_ceil(plane)) {
                        let at = min(m0 + comptime!(plane * part) + unit, m - 1);
                        av[part] = keep(f32::cast_from(a.raw(row + at)), inside, tail);
                    }
                }
            }
            #[unroll]
            for i in 0..comptime!(ROWS) {
                // (slot of av, unit that holds it)
                let (slot, owner) = comptime!(match (cfg.a_transposed, cfg.wide_a) {
                    (false, _) => (i, kk),
                    (true, true) => (2 * (i / (2 * plane)) + i % 2, (i % (2 * plane)) / 2),
                    (true, false) => (i / plane, i % plane),
                });
                let x = plane_broadcast(av[slot], comptime!(owner as u32));
                #[unroll]
                for j in 0..comptime!(COLUMNS) {
                    acc[comptime!(i * COLUMNS + j)] =
                        fma(x, bv[comptime!(2 * j + odd)], acc[comptime!(i * COLUMNS + j)]);
                }
            }
        }
    }

    let ld_c = sizes.ld_c * 1;
    let strides = strides(sizes, cfg);
    #[unroll]
    for i in 0..comptime!(ROWS) {
        let row = m0 + i;
        if row < m {
            let c_row = place.c + row * ld_c;
            let pre_row = pre_row(&strides, &place, row, cfg);
            let x_row = extra_row(index, &strides, &place, row, cfg);
            #[unroll]
            for p in 0..pairs {
                let col = n0 + comptime!(2 * plane * p) + 2 * unit;
                let x0 = acc[comptime!(i * COLUMNS + 2 * p)];
                let x1 = acc[comptime!(i * COLUMNS + 2 * p + 1)];
                if comptime!(cfg.wide_c) {
                    if col < n {
                        store_pair::<C, Y, X>(
                            c,
                            pre,
                            bias,
                            extra,
                            x0,
                            x1,
                            scale,
                            c_row + col,
                            pre_row + col,
                            place.bias + col,
                            x_row + col,
                            cfg,
                        );
                    }
                } else {
                    if col < n {
                        store::<C, Y, X>(
                            c,
                            pre,
                            bias,
                            extra,
                            x0,
                            scale,
                            c_row + col,
                            pre_row + col,
                            place.bias + col,
                            x_row + col,
                            cfg,
                        );
                    }
                    if col + 1 < n {
                        store::<C, Y, X>(
                            c,
                            pre,
                            bias,
                            extra,
                            x1,
                            scale,
                            c_row + col + 1,
                            pre_row + col + 1,
                            place.bias + col + 1,
                            x_row + col + 1,
                            cfg,
                        );
                    }
                }
            }
        }
    }
}

/// `x`, or zero beyond the end of `k`: `B` is finite there (it repeats its last row), so the product adds nothing.
#[cube]
fn keep(x: f32, inside: bool, #[comptime] tail: bool) -> f32 {
    if comptime!(tail) { select(inside, x, 0.0) } else { x }
}

/// Two neighbouring columns as one 64-bit store.
#[cube]
#[allow(clippy::too_many_arguments)]
fn store_pair<C: Numeric, Y: Numeric, X: Numeric>(
    c: &mut View<C>,
    pre: &mut View<C>,
    bias: &View<Y>,
    extra: &View<X>,
    x0: f32,
    x1: f32,
    scale: f32,
    at_c: usize,
    at_pre: usize,
    at_bias: usize,
    at_extra: usize,
    #[comptime] cfg: Config,
) {
    let mut y0 = x0;
    let mut y1 = x1;
    if comptime!(cfg.bias) {
        y0 += f32::cast_from(bias.raw(at_bias));
        y1 += f32::cast_from(bias.raw(at_bias + 1));
    }
    if comptime!(cfg.scaled) {
        y0 *= scale;
        y1 *= scale;
    }
    if comptime!(cfg.extra.is_some()) {
        if comptime!(cfg.wide_extra) {
            let q = u64::cast_from(extra.raw(at_extra / 2));
            y0 += low(q);
            y1 += high(q);
        } else {
            y0 += f32::cast_from(extra.raw(at_extra));
            y1 += f32::cast_from(extra.raw(at_extra + 1));
        }
    }
    if comptime!(cfg.pre) {
        pre.raw_set(at_pre / 2, C::cast_from(join(y0, y1)));
    }
    if comptime!(cfg.act != Act::None) {
        y0 = activate(y0, cfg.act);
        y1 = activate(y1, cfg.act);
    }
    if comptime!(cfg.accumulate) {
        let q = u64::cast_from(c.raw(at_c / 2));
        y0 += low(q);
        y1 += high(q);
    }
    c.raw_set(at_c / 2, C::cast_from(join(y0, y1)));
}
