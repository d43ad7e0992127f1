//! Forward: a running softmax over the keys, [`QUERIES`] queries a unit.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::registers::{load_head, peek_shared, publish, store_head};
use super::{Form, LOWEST, QUERIES};
use crate::gpu::launch::View;

/// One run of keys against the queries of all units: the running softmax.
#[cube]
#[allow(clippy::too_many_arguments)]
fn attend<K: Numeric>(
    keys: &View<K>,
    row0: usize,
    rows: usize,
    ld: usize,
    k_col: usize,
    v_col: usize,
    q: &Array<f32>,
    acc: &mut Array<f32>,
    top: &mut Array<f32>,
    sum: &mut Array<f32>,
    shared: &mut SharedMemory<f32>,
    #[comptime] form: Form,
    #[comptime] wide: bool,
) {
    let dim = comptime!(form.dim);
    let units = comptime!(form.units);
    let unit = UNIT_POS as usize;
    let base = keys.start();
    let mut tile = Array::<f32>::new(comptime!(2 * dim));
    let blocks = rows.div_ceil(units);
    for block in 0..blocks {
        let k0 = block * units;
        let line = base + (row0 + min(k0 + unit, rows - 1)) * ld;
        load_head::<K>(keys, line + k_col, &mut tile, 1.0, 0usize, dim, wide);
        load_head::<K>(keys, line + v_col, &mut tile, 1.0, dim, dim, wide);
        publish(&tile, shared, comptime!(2 * dim), form);
        if comptime!(form.plane) {
            attend_block(&tile, k0, rows, q, acc, top, sum, form);
        } else {
            let mut key = Array::<f32>::new(comptime!(2 * dim));
            for j in 0..min(units, rows - k0) {
                peek_shared(shared, &mut key, j, comptime!(2 * dim));
                attend_key(&key, q, acc, top, sum, form);
            }
        }
    }
}

/// A plane of keys at once: one change of the running maximum for all of them.
#[cube]
#[allow(clippy::too_many_arguments)]
fn attend_block(
    tile: &Array<f32>,
    k0: usize,
    rows: usize,
    q: &Array<f32>,
    acc: &mut Array<f32>,
    top: &mut Array<f32>,
    sum: &mut Array<f32>,
    #[comptime] form: Form,
) {
    let dim = comptime!(form.dim);
    let units = comptime!(form.units);
    let mut score = Array::<f32>::new(comptime!(QUERIES * units));
    #[unroll]
    for j in 0..units {
        #[unroll]
        for t in 0..QUERIES {
            score[comptime!(t * units + j)] = 0.0;
        }
        #[unroll]
        for i in 0..dim {
            let x = plane_broadcast(tile[i], comptime!(j as u32));
            #[unroll]
            for t in 0..QUERIES {
                score[comptime!(t * units + j)] = fma(q[comptime!(t * dim + i)], x, score[comptime!(t * units + j)]);
            }
        }
        #[unroll]
        for t in 0..QUERIES {
            score[comptime!(t * units + j)] = select(k0 + j < rows, score[comptime!(t * units + j)], LOWEST);
        }
    }
    #[unroll]
    for t in 0..QUERIES {
        let mut largest = top[t];
        #[unroll]
        for j in 0..units {
            largest = max(largest, score[comptime!(t * units + j)]);
        }
        let shrink = f32::exp(top[t] - largest);
        top[t] = largest;
        let mut total = sum[t] * shrink;
        #[unroll]
        for j in 0..units {
            let p = f32::exp(score[comptime!(t * units + j)] - largest);
            score[comptime!(t * units + j)] = p;
            total += p;
        }
        sum[t] = total;
        #[unroll]
        for i in 0..dim {
            acc[comptime!(t * dim + i)] *= shrink;
        }
    }
    #[unroll]
    for j in 0..units {
        #[unroll]
        for i in 0..dim {
            let x = plane_broadcast(tile[comptime!(dim + i)], comptime!(j as u32));
            #[unroll]
            for t in 0..QUERIES {
                acc[comptime!(t * dim + i)] = fma(score[comptime!(t * units + j)], x, acc[comptime!(t * dim + i)]);
            }
        }
    }
}

/// One key (its k, then its v).
#[cube]
fn attend_key(
    key: &Array<f32>,
    q: &Array<f32>,
    acc: &mut Array<f32>,
    top: &mut Array<f32>,
    sum: &mut Array<f32>,
    #[comptime] form: Form,
) {
    let dim = comptime!(form.dim);
    #[unroll]
    for t in 0..QUERIES {
        let mut s = 0.0f32;
        #[unroll]
        for i in 0..dim {
            s = fma(q[comptime!(t * dim + i)], key[i], s);
        }
        let largest = max(top[t], s);
        let shrink = f32::exp(top[t] - largest);
        let p = f32::exp(s - largest);
        top[t] = largest;
        sum[t] = sum[t] * shrink + p;
        #[unroll]
        for i in 0..dim {
            acc[comptime!(t * dim + i)] = fma(p, key[comptime!(dim + i)], acc[comptime!(t * dim + i)] * shrink);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn flash_forward<Q: Numeric, K: Numeric, W: Numeric, O: Numeric>(
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
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O)] _types: [StorageType; 4],
) {
    let dim = comptime!(form.dim);
    let units = comptime!(form.units);
    let group = comptime!(form.group);
    let entry = CUBE_POS_Y as usize * 6;
    let kv_head = CUBE_POS_Z as usize;
    let q_row0 = plan.get(entry) as usize;
    let queries = plan.get(entry + 1) as usize * group;
    let first = CUBE_POS_X as usize * comptime!(units * QUERIES) + UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(comptime!(if form.plane { 1 } else { 2 * units * dim }));
    // Uniform over the workgroup: the whole block lies beyond the queries of a shorter sequence.
    if CUBE_POS_X as usize * comptime!(units * QUERIES) < queries {
        let mut qv = Array::<f32>::new(comptime!(QUERIES * dim));
        let mut acc = Array::<f32>::new(comptime!(QUERIES * dim));
        let mut top = Array::<f32>::new(QUERIES);
        let mut sum = Array::<f32>::new(QUERIES);
        #[unroll]
        for t in 0..QUERIES {
            let query = min(first + comptime!(t * units), queries - 1);
            let head = kv_head * group + query % group;
            let at = q.start() + (q_row0 + query / group) * q_ld + q_col + head * dim;
            load_head::<Q>(q, at, &mut qv, scale, comptime!(t * dim), dim, form.wide_q);
            top[t] = LOWEST;
            sum[t] = 0.0;
            #[unroll]
            for i in 0..dim {
                acc[comptime!(t * dim + i)] = 0.0;
            }
        }
        attend::<K>(
            keys,
            plan.get(entry + 2) as usize,
            plan.get(entry + 3) as usize,
            k_ld * 1,
            k_col + kv_head * dim,
            v_col + kv_head * dim,
            &qv,
            &mut acc,
            &mut top,
            &mut sum,
            &mut shared,
            form,
            form.wide_k,
        );
        if comptime!(form.own) {
            attend::<W>(
                own,
                plan.get(entry + 4) as usize,
                plan.get(entry + 5) as usize,
                own_ld * 1,
                own_k_col + kv_head * dim,
                own_v_col + kv_head * dim,
                &qv,
                &mut acc,
                &mut top,
                &mut sum,
                &mut shared,
                form,
                form.wide_own,
            );
        }
        #[unroll]
        for t in 0..QUERIES {
            let query = first + comptime!(t * units);
            if query < queries {
                let head = kv_head * group + query % group;
                let row = q_row0 + query / group;
                let at = o.start() + (row * form.q_heads + head) * dim;
                store_head::<O>(o, at, &acc, 1.0 / sum[t], comptime!(t * dim), dim, false, form.wide_o);
                if comptime!(form.lse) {
                    lse.set(row * form.q_heads + head, top[t] + f32::ln(sum[t]));
                }
            }
        }
    }
}
