//! What the passes over wide heads share: products of tiles in shared memory.
//!
//! 256 units are 16 × 16. Unit (x, y) has rows `y + 16 i` and columns `x + 16 j` of every tile.

use cubecl::prelude::*;

use super::{CHUNK, DEPTH, PITCH, SIDE, UNITS};
use crate::gpu::launch::View;
use crate::ops::attention::flash::parts::Lines;

/// Loads elements `d0 .. d0 + DEPTH` of `lines` lines to `stage[offset..]`, each line PITCH apart; zero beyond the head.
#[cube]
fn load_part<X: Numeric>(
    x: &View<X>,
    of: &Lines,
    d0: usize,
    stage: &mut SharedMemory<f32>,
    #[comptime] offset: usize,
    #[comptime] lines: usize,
) {
    let dim = comptime!(of.dim);
    let unit = UNIT_POS as usize;
    #[unroll]
    for part in 0..comptime!(lines * DEPTH / UNITS) {
        let e = unit + comptime!(part * UNITS);
        let d = d0 + e % DEPTH;
        let value = f32::cast_from(x.raw(of.at(e / DEPTH) + min(d, comptime!(dim - 1))));
        stage[offset + e / DEPTH * PITCH + e % DEPTH] = select(d < dim, value, 0.0);
    }
}

/// `s = x · yᵀ`: line `y + 16 i` of `x` by line `x + 16 j` of `y`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn scores<X: Numeric, Y: Numeric>(
    x: &View<X>,
    of_x: &Lines,
    y: &View<Y>,
    of_y: &Lines,
    s: &mut Array<f32>,
    stage: &mut SharedMemory<f32>,
    #[comptime] x_lines: usize,
    #[comptime] y_lines: usize,
) {
    let down = comptime!(x_lines / SIDE);
    let across = comptime!(y_lines / SIDE);
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let mut a = Array::<f32>::new(down);
    clear(s, comptime!(down * across));
    let parts = comptime!(of_x.dim.div_ceil(DEPTH));
    for part in 0..parts {
        sync_cube();
        load_part::<X>(x, of_x, part * DEPTH, stage, 0usize, x_lines);
        load_part::<Y>(y, of_y, part * DEPTH, stage, comptime!(x_lines * PITCH), y_lines);
        sync_cube();
        for d in 0..DEPTH {
            #[unroll]
            for i in 0..down {
                a[i] = stage[(row + comptime!(i * SIDE)) * PITCH + d];
            }
            #[unroll]
            for j in 0..across {
                let b = stage[comptime!(x_lines * PITCH) + (col + comptime!(j * SIDE)) * PITCH + d];
                #[unroll]
                for i in 0..down {
                    s[comptime!(i * across + j)] = fma(a[i], b, s[comptime!(i * across + j)]);
                }
            }
        }
    }
}

/// Adds `tile · x` to `sums`, over the first `count` lines of a block of `x`. Row `r`, line `l` of the tile is
/// `tile[r · by_row + l · by_line]`.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn add_weighted<X: Numeric>(
    tile: &SharedMemory<f32>,
    x: &View<X>,
    of: &Lines,
    count: usize,
    sums: &mut Array<f32>,
    stage: &mut SharedMemory<f32>,
    #[comptime] rows: usize,
    #[comptime] by_row: usize,
    #[comptime] by_line: usize,
) {
    let dim = comptime!(of.dim);
    let down = comptime!(rows / SIDE);
    let across = comptime!(dim.div_ceil(SIDE));
    let unit = UNIT_POS as usize;
    let col = unit % SIDE;
    let row = unit / SIDE;
    let mut a = Array::<f32>::new(down);
    let chunks = count.div_ceil(CHUNK);
    for chunk in 0..chunks {
        sync_cube();
        #[unroll]
        for part in 0..comptime!((CHUNK * dim).div_ceil(UNITS)) {
            let e = unit + comptime!(part * UNITS);
            if e < comptime!(CHUNK * dim) {
                stage[e] = f32::cast_from(x.raw(of.at(chunk * CHUNK + e / dim) + e % dim));
            }
        }
        sync_cube();
        for c in 0..CHUNK {
            let line = chunk * CHUNK + c;
            #[unroll]
            for i in 0..down {
                a[i] = tile[(row + comptime!(i * SIDE)) * by_row + line * by_line];
            }
            #[unroll]
            for j in 0..across {
                // Columns beyond the head are read from what lies behind it, and never stored.
                let b = stage[c * dim + col + comptime!(j * SIDE)];
                #[unroll]
                for i in 0..down {
                    sums[comptime!(i * across + j)] = fma(a[i], b, sums[comptime!(i * across + j)]);
                }
            }
        }
    }
}

/// Stores rows of sums as lines of heads, or adds them.
#[cube]
pub(super) fn store_lines<X: Numeric>(
    x: &mut View<X>,
    of: &Lines,
    sums: &Array<f32>,
    factor: f32,
    #[comptime] rows: usize,
    #[comptime] add: bool,
) {
    let dim = comptime!(of.dim);
    let across = comptime!(dim.div_ceil(SIDE));
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    #[unroll]
    for i in 0..comptime!(rows / SIDE) {
        let line = row + comptime!(i * SIDE);
        if of.holds(line) {
            let at = of.at(line);
            #[unroll]
            for j in 0..across {
                let d = col + comptime!(j * SIDE);
                if d < dim {
                    let mut value = sums[comptime!(i * across + j)] * factor;
                    if comptime!(add) {
                        value += f32::cast_from(x.raw(at + d));
                    }
                    x.raw_set(at + d, X::cast_from(value));
                }
            }
        }
    }
}

/// All zero.
#[cube]
pub(super) fn clear(values: &mut Array<f32>, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        values[i] = 0.0;
    }
}
