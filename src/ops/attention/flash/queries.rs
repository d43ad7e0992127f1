//! Backward of the queries: one query a unit, keys passed around. Leaves `delta` for [`keys`](super::keys).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::Form;
use super::parts::{KeyColumns, QueryColumns, Run, SEQUENCE, keys_at, queries_at};
use super::registers::{load_head, load_key, pair_of, peek_plane, peek_shared, publish, store_head};
use crate::gpu::launch::View;

/// One run of keys: adds to dq (still to be scaled).
#[cube]
#[allow(clippy::too_many_arguments)]
fn pull_back<K: Numeric>(
    keys: &View<K>,
    of: &Run,
    query: &Array<f32>,
    dq: &mut Array<f32>,
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
        let mut key = Array::<f32>::new(comptime!(2 * dim));
        if comptime!(form.plane) {
            #[unroll]
            for j in 0..units {
                peek_plane(&tile, &mut key, j, comptime!(2 * dim));
                pull_back_key(&key, k0 + j < rows, query, dq, dim);
            }
        } else {
            for j in 0..min(units, rows - k0) {
                peek_shared(shared, &mut key, j, comptime!(2 * dim));
                pull_back_key(&key, true, query, dq, dim);
            }
        }
    }
}

/// One key (its k, then its v): adds to dq.
#[cube]
fn pull_back_key(key: &Array<f32>, inside: bool, query: &Array<f32>, dq: &mut Array<f32>, #[comptime] dim: usize) {
    let (_p, ds) = pair_of(query, key, inside, dim);
    #[unroll]
    for i in 0..dim {
        dq[i] = fma(ds, key[i], dq[i]);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn flash_backward_queries<Q: Numeric, K: Numeric, W: Numeric, O: Numeric, DO: Numeric, DQ: Numeric>(
    q: &View<Q>,
    keys: &View<K>,
    own: &View<W>,
    plan: &View<u32>,
    o: &View<O>,
    lse: &View<f32>,
    d_o: &View<DO>,
    dq: &mut View<DQ>,
    delta: &mut View<f32>,
    q_places: QueryColumns,
    key_places: KeyColumns,
    own_places: KeyColumns,
    dq_places: QueryColumns,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O, DO, DQ)] _types: [StorageType; 6],
) {
    let heads = comptime!(form.heads);
    let dim = comptime!(heads.dim);
    let units = comptime!(form.units);
    let unit = UNIT_POS as usize;
    let entry = CUBE_POS_Y as usize * SEQUENCE;
    let queries = queries_at(plan, entry, heads);
    let first = CUBE_POS_X as usize * units;
    let mut shared = SharedMemory::<f32>::new(comptime!(if form.plane { 1 } else { 2 * units * dim }));
    if first < queries.count {
        // q · scale, do, lse, delta.
        let mut query = Array::<f32>::new(comptime!(2 * dim + 2));
        let mut out = Array::<f32>::new(dim);
        let mut sums = Array::<f32>::new(dim);
        let (of_q, of_o, of_do) = (
            queries.columns::<Q>(q, &q_places, first),
            queries.rows::<O>(o, first),
            queries.rows::<DO>(d_o, first),
        );
        load_head::<Q>(q, of_q.at(unit), &mut query, scale, 0usize, dim, form.wide_q);
        load_head::<O>(o, of_o.at(unit), &mut out, 1.0, 0usize, dim, form.wide_o);
        load_head::<DO>(d_o, of_do.at(unit), &mut query, 1.0, dim, dim, form.wide_o);
        let mut dot = 0.0f32;
        #[unroll]
        for i in 0..dim {
            dot = fma(out[i], query[comptime!(dim + i)], dot);
            sums[i] = 0.0;
        }
        query[comptime!(2 * dim)] = lse.get(queries.index(first + unit));
        query[comptime!(2 * dim + 1)] = dot;
        let seen = keys_at(plan, entry + 2).columns::<K>(keys, &key_places, 0, dim);
        pull_back::<K>(keys, &seen, &query, &mut sums, &mut shared, form, form.wide_k);
        if comptime!(form.own) {
            let seen = keys_at(plan, entry + 4).columns::<W>(own, &own_places, 0, dim);
            pull_back::<W>(own, &seen, &query, &mut sums, &mut shared, form, form.wide_own);
        }
        let of_dq = queries.columns::<DQ>(dq, &dq_places, first);
        if of_dq.holds(unit) {
            store_head::<DQ>(dq, of_dq.at(unit), &sums, scale, 0usize, dim, false, form.wide_d);
            delta.set(queries.index(first + unit), dot);
        }
    }
}
