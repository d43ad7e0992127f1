//! Forward: a running softmax over blocks of keys.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tiles::{Lines, add_scores, add_weighted, clear, store_lines};
use super::{Form, KEYS, QUERIES, SIDE, TILE_PITCH, UNITS, stage_len};
use crate::gpu::launch::View;
use crate::ops::attention::flash::LOWEST;

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
    row0: usize,
    rows: usize,
    ld: usize,
    k_col: usize,
    v_col: usize,
    scale: f32,
    acc: &mut Array<f32>,
    r: &mut Running,
    stage: &mut SharedMemory<f32>,
    #[comptime] form: Form,
) {
    let dim = comptime!(form.dim);
    let across = comptime!(dim.div_ceil(SIDE));
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let base = keys.start() + row0 * ld;
    let mut s = Array::<f32>::new(comptime!(QUERIES * KEYS / UNITS));
    let blocks = rows.div_ceil(KEYS);
    for block in 0..blocks {
        let k0 = block * KEYS;
        let of_k = Lines {
            base: base + k_col,
            ld,
            first: k0,
            count: rows,
        };
        let of_v = Lines {
            base: base + v_col,
            ld,
            first: k0,
            count: rows,
        };
        clear(&mut s, comptime!(QUERIES * KEYS / UNITS));
        add_scores::<Q, K>(q, of_q, keys, &of_k, &mut s, stage, QUERIES, KEYS, form.group, dim);
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
        add_weighted::<K>(
            &r.tile,
            keys,
            &of_v,
            min(KEYS, rows - k0),
            acc,
            stage,
            QUERIES,
            TILE_PITCH,
            1usize,
            1usize,
            dim,
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
    q_ld: usize,
    q_col: usize,
    k_ld: usize,
    k_col: usize,
    v_col: usize,
    own_ld: usize,
    own_k_col: usize,
    own_v_col: usize,
    o_ld: usize,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O)] _types: [StorageType; 4],
) {
    let dim = comptime!(form.dim);
    let group = comptime!(form.group);
    let across = comptime!(dim.div_ceil(SIDE));
    let unit = UNIT_POS as usize;
    let entry = CUBE_POS_Y as usize * 6;
    let kv_head = CUBE_POS_Z as usize;
    let q_row0 = plan.get(entry) as usize;
    let queries = plan.get(entry + 1) as usize * group;
    let first = CUBE_POS_X as usize * QUERIES;
    let mut stage = SharedMemory::<f32>::new(comptime!(stage_len(form.dim)));
    let mut r = Running {
        tile: SharedMemory::<f32>::new(comptime!(QUERIES * TILE_PITCH)),
        top: SharedMemory::<f32>::new(QUERIES),
        sum: SharedMemory::<f32>::new(QUERIES),
        shrink: SharedMemory::<f32>::new(QUERIES),
        partial: SharedMemory::<f32>::new(UNITS),
    };
    // Uniform over the workgroup: the whole block lies beyond the queries of a shorter sequence.
    if first < queries {
        let mut acc = Array::<f32>::new(comptime!(QUERIES / SIDE * across));
        clear(&mut acc, comptime!(QUERIES / SIDE * across));
        if unit < QUERIES {
            r.top[unit] = LOWEST;
            r.sum[unit] = 0.0;
        }
        let of_q = Lines {
            base: q.start() + q_row0 * q_ld + q_col + kv_head * comptime!(group * dim),
            ld: q_ld * 1,
            first,
            count: queries,
        };
        attend::<Q, K>(
            q,
            &of_q,
            keys,
            plan.get(entry + 2) as usize,
            plan.get(entry + 3) as usize,
            k_ld * 1,
            k_col + kv_head * dim,
            v_col + kv_head * dim,
            scale,
            &mut acc,
            &mut r,
            &mut stage,
            form,
        );
        if comptime!(form.own) {
            attend::<Q, W>(
                q,
                &of_q,
                own,
                plan.get(entry + 4) as usize,
                plan.get(entry + 5) as usize,
                own_ld * 1,
                own_k_col + kv_head * dim,
                own_v_col + kv_head * dim,
                scale,
                &mut acc,
                &mut r,
                &mut stage,
                form,
            );
        }
        #[unroll]
        for i in 0..comptime!(QUERIES / SIDE) {
            let part = 1.0 / r.sum[unit / SIDE + comptime!(i * SIDE)];
            #[unroll]
            for j in 0..across {
                acc[comptime!(i * across + j)] *= part;
            }
        }
        let of_o = Lines {
            base: o.start() + (q_row0 * form.q_heads + kv_head * group) * dim,
            ld: o_ld * 1,
            first,
            count: queries,
        };
        store_lines::<O>(o, &of_o, &acc, 1.0, QUERIES, group, dim, false);
        if comptime!(form.lse) {
            let query = first + unit;
            if unit < QUERIES && query < queries {
                let at = (q_row0 + query / group) * form.q_heads + kv_head * group + query % group;
                lse.set(at, r.top[unit] + f32::ln(r.sum[unit]));
            }
        }
    }
}
