//! Backward of the queries: one query a unit, keys passed around. Leaves `delta` for [`keys`](super::keys).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::Form;
use super::registers::{load_head, peek_plane, peek_shared, publish, store_head};
use crate::gpu::launch::View;

/// One run of keys: adds to dq (still to be scaled).
#[cube]
#[allow(clippy::too_many_arguments)]
fn pull_back<K: Numeric>(
    keys: &View<K>,
    row0: usize,
    rows: usize,
    ld: usize,
    k_col: usize,
    v_col: usize,
    q: &Array<f32>,
    d_o: &Array<f32>,
    lse: f32,
    delta: f32,
    dq: &mut Array<f32>,
    shared: &mut SharedMemory<f32>,
    #[comptime] form: Form,
    #[comptime] wide: bool,
) {
    let dim = comptime!(form.dim);
    let units = comptime!(form.units);
    let unit = UNIT_POS as usize;
    let base = keys.start();
    // k, then v.
    let mut tile = Array::<f32>::new(comptime!(2 * dim));
    let blocks = rows.div_ceil(units);
    for block in 0..blocks {
        let k0 = block * units;
        let line = base + (row0 + min(k0 + unit, rows - 1)) * ld;
        load_head::<K>(keys, line + k_col, &mut tile, 1.0, 0usize, dim, wide);
        load_head::<K>(keys, line + v_col, &mut tile, 1.0, dim, dim, wide);
        publish(&tile, shared, comptime!(2 * dim), form);
        let mut key = Array::<f32>::new(comptime!(2 * dim));
        if comptime!(form.plane) {
            #[unroll]
            for j in 0..units {
                peek_plane(&tile, &mut key, j, comptime!(2 * dim));
                pull_back_key(&key, k0 + j < rows, q, d_o, lse, delta, dq, dim);
            }
        } else {
            for j in 0..min(units, rows - k0) {
                peek_shared(shared, &mut key, j, comptime!(2 * dim));
                pull_back_key(&key, true, q, d_o, lse, delta, dq, dim);
            }
        }
    }
}

/// One key (its k, then its v): adds to dq.
#[cube]
#[allow(clippy::too_many_arguments)]
fn pull_back_key(
    key: &Array<f32>,
    inside: bool,
    q: &Array<f32>,
    d_o: &Array<f32>,
    lse: f32,
    delta: f32,
    dq: &mut Array<f32>,
    #[comptime] dim: usize,
) {
    let mut s = 0.0f32;
    let mut dp = 0.0f32;
    #[unroll]
    for i in 0..dim {
        s = fma(q[i], key[i], s);
        dp = fma(d_o[i], key[comptime!(dim + i)], dp);
    }
    let p = select(inside, f32::exp(s - lse), 0.0);
    let ds = p * (dp - delta);
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
    q_ld: usize,
    q_col: usize,
    k_ld: usize,
    k_col: usize,
    v_col: usize,
    own_ld: usize,
    own_k_col: usize,
    own_v_col: usize,
    dq_ld: usize,
    dq_col: usize,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O, DO, DQ)] _types: [StorageType; 6],
) {
    let dim = comptime!(form.dim);
    let units = comptime!(form.units);
    let group = comptime!(form.group);
    let entry = CUBE_POS_Y as usize * 6;
    let kv_head = CUBE_POS_Z as usize;
    let q_row0 = plan.get(entry) as usize;
    let queries = plan.get(entry + 1) as usize * group;
    let wanted = CUBE_POS_X as usize * units + UNIT_POS as usize;
    let mut shared = SharedMemory::<f32>::new(comptime!(if form.plane { 1 } else { 2 * units * dim }));
    if CUBE_POS_X as usize * units < queries {
        let query = min(wanted, queries - 1);
        let head = kv_head * group + query % group;
        let row = q_row0 + query / group;
        let mut qv = Array::<f32>::new(dim);
        let mut dov = Array::<f32>::new(dim);
        let mut ov = Array::<f32>::new(dim);
        let mut dqv = Array::<f32>::new(dim);
        load_head::<Q>(
            q,
            q.start() + row * q_ld + q_col + head * dim,
            &mut qv,
            scale,
            0usize,
            dim,
            form.wide_q,
        );
        let o_at = (row * form.q_heads + head) * dim;
        load_head::<O>(o, o.start() + o_at, &mut ov, 1.0, 0usize, dim, form.wide_o);
        load_head::<DO>(d_o, d_o.start() + o_at, &mut dov, 1.0, 0usize, dim, form.wide_o);
        let mut dot = 0.0f32;
        #[unroll]
        for i in 0..dim {
            dot = fma(ov[i], dov[i], dot);
            dqv[i] = 0.0;
        }
        let l = lse.get(row * form.q_heads + head);
        pull_back::<K>(
            keys,
            plan.get(entry + 2) as usize,
            plan.get(entry + 3) as usize,
            k_ld * 1,
            k_col + kv_head * dim,
            v_col + kv_head * dim,
            &qv,
            &dov,
            l,
            dot,
            &mut dqv,
            &mut shared,
            form,
            form.wide_k,
        );
        if comptime!(form.own) {
            pull_back::<W>(
                own,
                plan.get(entry + 4) as usize,
                plan.get(entry + 5) as usize,
                own_ld * 1,
                own_k_col + kv_head * dim,
                own_v_col + kv_head * dim,
                &qv,
                &dov,
                l,
                dot,
                &mut dqv,
                &mut shared,
                form,
                form.wide_own,
            );
        }
        if wanted < queries {
            let at = dq.start() + row * dq_ld + dq_col + head * dim;
            store_head::<DQ>(dq, at, &dqv, scale, 0usize, dim, false, form.wide_d);
            delta.set(row * form.q_heads + head, dot);
        }
    }
}
