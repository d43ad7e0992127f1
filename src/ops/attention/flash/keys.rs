//! Backward of the keys and values: one key a unit, queries passed around.
//!
//! This kernel has no register to spare: with the addresses of [`parts`](super::parts) it spills on compute capability 8.0,
//! so it computes its own.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::Form;
use super::registers::{load_head, peek_plane, peek_shared, publish, store_head};
use crate::gpu::launch::View;

/// One query (q, do, lse, delta): adds to dk, dv.
#[cube]
fn push_back_query(query: &Array<f32>, inside: bool, kv: &Array<f32>, dkv: &mut Array<f32>, #[comptime] dim: usize) {
    let mut s = 0.0f32;
    let mut dp = 0.0f32;
    #[unroll]
    for i in 0..dim {
        s = fma(kv[i], query[i], s);
        dp = fma(kv[comptime!(dim + i)], query[comptime!(dim + i)], dp);
    }
    let p = select(inside, f32::exp(s - query[comptime!(2 * dim)]), 0.0);
    let ds = p * (dp - query[comptime!(2 * dim + 1)]);
    #[unroll]
    for i in 0..dim {
        // The query comes as q · scale, so dk comes out scaled.
        dkv[i] = fma(ds, query[i], dkv[i]);
        dkv[comptime!(dim + i)] = fma(p, query[comptime!(dim + i)], dkv[comptime!(dim + i)]);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn flash_backward_keys<Q: Numeric, K: Numeric, DO: Numeric, DK: Numeric>(
    q: &View<Q>,
    keys: &View<K>,
    runs: &View<u32>,
    segments: &View<u32>,
    lse: &View<f32>,
    d_o: &View<DO>,
    delta: &View<f32>,
    dkeys: &mut View<DK>,
    q_ld: usize,
    q_col: usize,
    k_ld: usize,
    k_col: usize,
    v_col: usize,
    dk_ld: usize,
    dk_col: usize,
    dv_col: usize,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, DO, DK)] _types: [StorageType; 4],
) {
    let dim = comptime!(form.heads.dim);
    let units = comptime!(form.units);
    let group = comptime!(form.heads.group());
    // q, do, lse, delta of one query.
    let len = comptime!(2 * dim + 2);
    let entry = CUBE_POS_Y as usize * 4;
    let kv_head = CUBE_POS_Z as usize;
    let k_row0 = runs.get(entry) as usize;
    let k_rows = runs.get(entry + 1) as usize;
    let wanted = CUBE_POS_X as usize * units + UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(comptime!(if form.plane { 1 } else { units * len }));
    if CUBE_POS_X as usize * units < k_rows {
        let line = k_row0 + min(wanted, k_rows - 1);
        let mut kv = Array::<f32>::new(comptime!(2 * dim));
        let mut dkv = Array::<f32>::new(comptime!(2 * dim));
        let at = keys.start() + line * k_ld + kv_head * dim;
        load_head::<K>(keys, at + k_col, &mut kv, 1.0, 0usize, dim, form.wide_k);
        load_head::<K>(keys, at + v_col, &mut kv, 1.0, dim, dim, form.wide_k);
        #[unroll]
        for i in 0..comptime!(2 * dim) {
            dkv[i] = 0.0;
        }
        let q_base = q.start() + q_col + kv_head * comptime!(group * dim);
        let o_base = d_o.start() + kv_head * comptime!(group * dim);
        let q_ld = q_ld * 1;
        let mut tile = Array::<f32>::new(len);
        let mut other = Array::<f32>::new(len);
        let from = runs.get(entry + 2) as usize;
        let to = from + runs.get(entry + 3) as usize;
        for segment in from..to {
            let q_row0 = segments.get(2 * segment) as usize;
            let queries = segments.get(2 * segment + 1) as usize * group;
            let blocks = queries.div_ceil(units);
            for block in 0..blocks {
                let q0 = block * units;
                let query = min(q0 + UNIT_POS as usize, queries - 1);
                let row = q_row0 + query / group;
                let head = query % group;
                load_head::<Q>(
                    q,
                    q_base + row * q_ld + head * dim,
                    &mut tile,
                    scale,
                    0usize,
                    dim,
                    form.wide_q,
                );
                let o_row = o_base + (row * form.heads.q + head) * dim;
                load_head::<DO>(d_o, o_row, &mut tile, 1.0, dim, dim, form.wide_o);
                let stat = row * form.heads.q + kv_head * group + head;
                tile[comptime!(2 * dim)] = lse.get(stat);
                tile[comptime!(2 * dim + 1)] = delta.get(stat);
                publish(&tile, &mut shared, len, form);
                if comptime!(form.plane) {
                    #[unroll]
                    for j in 0..units {
                        peek_plane(&tile, &mut other, j, len);
                        push_back_query(&other, q0 + j < queries, &kv, &mut dkv, dim);
                    }
                } else {
                    for j in 0..min(units, queries - q0) {
                        peek_shared(&shared, &mut other, j, len);
                        push_back_query(&other, true, &kv, &mut dkv, dim);
                    }
                }
            }
        }
        if wanted < k_rows {
            let at = dkeys.start() + line * dk_ld + kv_head * dim;
            store_head::<DK>(dkeys, at + dk_col, &dkv, 1.0, 0usize, dim, form.add, form.wide_d);
            store_head::<DK>(dkeys, at + dv_col, &dkv, 1.0, dim, dim, form.add, form.wide_d);
        }
    }
}
