//! Forward: a running softmax over blocks of keys.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tiles::{add_weighted, clear, scores, store_lines};
use super::{Form, KEYS, QUERIES, SIDE, TILE_PITCH, UNITS, stage_len};
use crate::gpu::launch::View;
use crate::ops::attention::flash::LOWEST;
use crate::ops::attention::flash::parts::{KeyColumns, Lines, QueryColumns, Run, SEQUENCE, keys_at, queries_at};

/// What is known of each query, in shared memory.
#[derive(CubeType)]
struct Running {
    /// Scores of a block, then probabilities.
    tile: SharedMemory<f32>,
    top: SharedMemory<f32>,
    sum: SharedMemory<f32>,
    /// What earlier sums are multiplied by, because the maximum rose.
    shrink: SharedMemory<f32>,
    /// Of every unit: four of them share a query.
    partial: SharedMemory<f32>,
}

/// Scores of one block become probabilities, below a maximum that may rise.
#[cube]
fn soften(r: &mut Running) {
    let unit = UNIT_POS as usize;
    let query = unit / 4;
    let line = query * TILE_PITCH + unit % 4;
    let mut largest = r.tile[line];
    #[unroll]
    for j in 1..comptime!(KEYS / 4) {
        largest = max(largest, r.tile[line + comptime!(4 * j)]);
    }
    r.partial[unit] = largest;
    sync_cube();
    let before = r.top[query];
    let mut now = before;
    #[unroll]
    for i in 0..4 {
        now = max(now, r.partial[query * 4 + i]);
    }
    let mut total = 0.0f32;
    #[unroll]
    for j in 0..comptime!(KEYS / 4) {
        let p = f32::exp(r.tile[line + comptime!(4 * j)] - now);
        r.tile[line + comptime!(4 * j)] = p;
        total += p;
    }
    sync_cube();
    r.partial[unit] = total;
    sync_cube();
    let lane = unit % 4;
    if lane == 0 {
        let keep = f32::exp(before - now);
        r.shrink[query] = keep;
        r.top[query] = now;
        r.sum[query] =
            r.sum[query] * keep + r.partial[unit] + r.partial[unit + 1] + r.partial[unit + 2] + r.partial[unit + 3];
    }
    sync_cube();
}

/// One run of keys.
#[cube]
#[allow(clippy::too_many_arguments)]
fn attend<Q: Numeric, K: Numeric>(
    q: &View<Q>,
    of_q: &Lines,
    keys: &View<K>,
    of: &Run,
    scale: f32,
    acc: &mut Array<f32>,
    r: &mut Running,
    stage: &mut SharedMemory<f32>,
) {
    let across = comptime!(of_q.dim.div_ceil(SIDE));
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let rows = of.k.count;
    let mut s = Array::<f32>::new(comptime!(QUERIES * KEYS / UNITS));
    let blocks = rows.div_ceil(KEYS);
    for block in 0..blocks {
        let k0 = block * KEYS;
        scores::<Q, K>(q, of_q, keys, &of.k.block(k0), &mut s, stage, QUERIES, KEYS);
        #[unroll]
        for i in 0..comptime!(QUERIES / SIDE) {
            #[unroll]
            for j in 0..comptime!(KEYS / SIDE) {
                let key = col + comptime!(j * SIDE);
                let score = s[comptime!(i * KEYS / SIDE + j)] * scale;
                r.tile[(row + comptime!(i * SIDE)) * TILE_PITCH + key] = select(k0 + key < rows, score, LOWEST);
            }
        }
        sync_cube();
        soften(r);
        #[unroll]
        for i in 0..comptime!(QUERIES / SIDE) {
            let keep = r.shrink[row + comptime!(i * SIDE)];
            #[unroll]
            for j in 0..across {
                acc[comptime!(i * across + j)] *= keep;
            }
        }
        let there = min(KEYS, rows - k0);
        add_weighted::<K>(
            &r.tile,
            keys,
            &of.v.block(k0),
            there,
            acc,
            stage,
            QUERIES,
            TILE_PITCH,
            1usize,
        );
        sync_cube();
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn flash_wide_forward<Q: Numeric, K: Numeric, W: Numeric, O: Numeric>(
    q: &View<Q>,
    keys: &View<K>,
    own: &View<W>,
    plan: &View<u32>,
    o: &mut View<O>,
    lse: &mut View<f32>,
    q_places: QueryColumns,
    key_places: KeyColumns,
    own_places: KeyColumns,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O)] _types: [StorageType; 4],
) {
    let heads = comptime!(form.heads);
    let dim = comptime!(heads.dim);
    let across = comptime!(dim.div_ceil(SIDE));
    let unit = UNIT_POS as usize;
    let entry = CUBE_POS_Y as usize * SEQUENCE;
    let queries = queries_at(plan, entry, heads);
    let first = CUBE_POS_X as usize * QUERIES;
    let mut stage = SharedMemory::<f32>::new(comptime!(stage_len(heads.dim)));
    let mut r = Running {
        tile: SharedMemory::<f32>::new(comptime!(QUERIES * TILE_PITCH)),
        top: SharedMemory::<f32>::new(QUERIES),
        sum: SharedMemory::<f32>::new(QUERIES),
        shrink: SharedMemory::<f32>::new(QUERIES),
        partial: SharedMemory::<f32>::new(UNITS),
    };
    // Uniform over the workgroup: the whole block lies beyond the queries of a shorter sequence.
    if first < queries.count {
        let mut acc = Array::<f32>::new(comptime!(QUERIES / SIDE * across));
        clear(&mut acc, comptime!(QUERIES / SIDE * across));
        if unit < QUERIES {
            r.top[unit] = LOWEST;
            r.sum[unit] = 0.0;
        }
        let of_q = queries.columns::<Q>(q, &q_places, first);
        let seen = keys_at(plan, entry + 2).columns::<K>(keys, &key_places, 0, dim);
        attend::<Q, K>(q, &of_q, keys, &seen, scale, &mut acc, &mut r, &mut stage);
        if comptime!(form.own) {
            let seen = keys_at(plan, entry + 4).columns::<W>(own, &own_places, 0, dim);
            attend::<Q, W>(q, &of_q, own, &seen, scale, &mut acc, &mut r, &mut stage);
        }
        #[unroll]
        for i in 0..comptime!(QUERIES / SIDE) {
            let part = 1.0 / r.sum[unit / SIDE + comptime!(i * SIDE)];
            #[unroll]
            for j in 0..across {
                acc[comptime!(i * across + j)] *= part;
            }
        }
        let of_o = queries.rows::<O>(o, first);
        store_lines::<O>(o, &of_o, &acc, 1.0, QUERIES, false);
        if comptime!(form.lse) {
            if unit < QUERIES && of_q.holds(unit) {
                lse.set(queries.index(first + unit), r.top[unit] + f32::ln(r.sum[unit]));
            }
        }
    }
}
