//! Forward: a running softmax over the keys, [`QUERIES`] queries a unit.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::parts::{KeyColumns, QueryColumns, Run, SEQUENCE, keys_at, queries_at};
use super::registers::{load_head, load_key, peek_shared, publish, store_head};
use super::{Form, LOWEST, QUERIES};
use crate::gpu::launch::View;

/// What a unit knows of its queries.
#[derive(CubeType)]
struct Running {
    q: Array<f32>,
    /// The largest score so far.
    top: Array<f32>,
    /// Sums of `exp(score - top)`, and of the values that they weigh.
    sum: Array<f32>,
    acc: Array<f32>,
}

/// One run of keys against the queries of all units: the running softmax.
#[cube]
fn attend<K: Numeric>(
    keys: &View<K>,
    of: &Run,
    r: &mut Running,
    shared: &mut SharedMemory<f32>,
    #[comptime] form: Form,
    #[comptime] wide: bool,
) {
    let dim = comptime!(form.heads.dim);
    let units = comptime!(form.units);
    let rows = of.k.count;
    let mut tile = Array::<f32>::new(comptime!(2 * dim));
    let blocks = rows.div_ceil(units);
    for block in 0..blocks {
        let k0 = block * units;
        load_key::<K>(keys, of, k0 + UNIT_POS as usize, &mut tile, dim, wide);
        publish(&tile, shared, comptime!(2 * dim), form);
        if comptime!(form.plane) {
            attend_block(&tile, k0, rows, r, form);
        } else {
            let mut key = Array::<f32>::new(comptime!(2 * dim));
            for j in 0..min(units, rows - k0) {
                peek_shared(shared, &mut key, j, comptime!(2 * dim));
                attend_key(&key, r, dim);
            }
        }
    }
}

/// A plane of keys at once: one change of the running maximum for all of them.
#[cube]
fn attend_block(tile: &Array<f32>, k0: usize, rows: usize, r: &mut Running, #[comptime] form: Form) {
    let dim = comptime!(form.heads.dim);
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
                score[comptime!(t * units + j)] = fma(r.q[comptime!(t * dim + i)], x, score[comptime!(t * units + j)]);
            }
        }
        #[unroll]
        for t in 0..QUERIES {
            score[comptime!(t * units + j)] = select(k0 + j < rows, score[comptime!(t * units + j)], LOWEST);
        }
    }
    #[unroll]
    for t in 0..QUERIES {
        let mut largest = r.top[t];
        #[unroll]
        for j in 0..units {
            largest = max(largest, score[comptime!(t * units + j)]);
        }
        let shrink = f32::exp(r.top[t] - largest);
        r.top[t] = largest;
        let mut total = r.sum[t] * shrink;
        #[unroll]
        for j in 0..units {
            let p = f32::exp(score[comptime!(t * units + j)] - largest);
            score[comptime!(t * units + j)] = p;
            total += p;
        }
        r.sum[t] = total;
        #[unroll]
        for i in 0..dim {
            r.acc[comptime!(t * dim + i)] = r.acc[comptime!(t * dim + i)] * shrink;
        }
    }
    #[unroll]
    for j in 0..units {
        #[unroll]
        for i in 0..dim {
            let x = plane_broadcast(tile[comptime!(dim + i)], comptime!(j as u32));
            #[unroll]
            for t in 0..QUERIES {
                r.acc[comptime!(t * dim + i)] = fma(score[comptime!(t * units + j)], x, r.acc[comptime!(t * dim + i)]);
            }
        }
    }
}

/// One key (its k, then its v).
#[cube]
fn attend_key(key: &Array<f32>, r: &mut Running, #[comptime] dim: usize) {
    #[unroll]
    for t in 0..QUERIES {
        let mut s = 0.0f32;
        #[unroll]
        for i in 0..dim {
            s = fma(r.q[comptime!(t * dim + i)], key[i], s);
        }
        let largest = max(r.top[t], s);
        let shrink = f32::exp(r.top[t] - largest);
        let p = f32::exp(s - largest);
        r.top[t] = largest;
        r.sum[t] = r.sum[t] * shrink + p;
        #[unroll]
        for i in 0..dim {
            r.acc[comptime!(t * dim + i)] = fma(p, key[comptime!(dim + i)], r.acc[comptime!(t * dim + i)] * shrink);
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
    q_places: QueryColumns,
    key_places: KeyColumns,
    own_places: KeyColumns,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O)] _types: [StorageType; 4],
) {
    let heads = comptime!(form.heads);
    let dim = comptime!(heads.dim);
    let units = comptime!(form.units);
    let entry = CUBE_POS_Y as usize * SEQUENCE;
    let queries = queries_at(plan, entry, heads);
    let first = CUBE_POS_X as usize * comptime!(units * QUERIES);
    let mut shared = SharedMemory::<f32>::new(comptime!(if form.plane { 1 } else { 2 * units * dim }));
    // Uniform over the workgroup: the whole block lies beyond the queries of a shorter sequence.
    if first < queries.count {
        let mut r = Running {
            q: Array::<f32>::new(comptime!(QUERIES * dim)),
            top: Array::<f32>::new(QUERIES),
            sum: Array::<f32>::new(QUERIES),
            acc: Array::<f32>::new(comptime!(QUERIES * dim)),
        };
        let of_q = queries.columns::<Q>(q, &q_places, first);
        #[unroll]
        for t in 0..QUERIES {
            let at = of_q.at(UNIT_POS as usize + comptime!(t * units));
            load_head::<Q>(q, at, &mut r.q, scale, comptime!(t * dim), dim, form.wide_q);
            r.top[t] = LOWEST;
            r.sum[t] = 0.0;
            #[unroll]
            for i in 0..dim {
                r.acc[comptime!(t * dim + i)] = 0.0;
            }
        }
        let seen = keys_at(plan, entry + 2).columns::<K>(keys, &key_places, 0, dim);
        attend::<K>(keys, &seen, &mut r, &mut shared, form, form.wide_k);
        if comptime!(form.own) {
            let seen = keys_at(plan, entry + 4).columns::<W>(own, &own_places, 0, dim);
            attend::<W>(own, &seen, &mut r, &mut shared, form, form.wide_own);
        }
        let of_o = queries.rows::<O>(o, first);
        #[unroll]
        for t in 0..QUERIES {
            let i = UNIT_POS as usize + comptime!(t * units);
            if of_o.holds(i) {
                let part = 1.0 / r.sum[t];
                store_head::<O>(o, of_o.at(i), &r.acc, part, comptime!(t * dim), dim, false, form.wide_o);
                if comptime!(form.lse) {
                    lse.set(queries.index(first + i), r.top[t] + f32::ln(r.sum[t]));
                }
            }
        }
    }
}
