//! Attention with scores in registers: one unit per query (or per key, for dk and dv), keys passed around by
//! broadcast. For heads up to [`MAX_DIM`]; larger ones do not fit into registers.
//!
//! A workgroup is one plane. It walks over the keys of its sequence a plane at a time: each unit loads one key, and
//! every unit then meets all of them: by register broadcast where planes are known, else through shared memory.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::{Attention, Columns, KeyPlan, Keys, Plan, Saved};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};
use crate::ops::pair::{Pair, load2, storage, store2};

/// Largest head this implementation takes.
pub const MAX_DIM: usize = 32;
/// Queries of one unit in the forward pass: more of them share each loaded key.
const QUERIES: usize = 2;
/// Below every score: the start of a running maximum.
const LOWEST: f32 = -1.0e30;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    q_heads: usize,
    group: usize,
    dim: usize,
    /// Units of a workgroup.
    units: usize,
    /// Broadcast between registers; else through shared memory.
    plane: bool,
    own: bool,
    lse: bool,
    add: bool,
    wide_q: bool,
    wide_k: bool,
    wide_own: bool,
    wide_o: bool,
    wide_d: bool,
}

impl Form {
    fn new(gpu: &Gpu, a: &Attention) -> Form {
        let caps = gpu.caps();
        let plane = caps.plane.is_some() && (caps.software || matches!(caps.plane, Some(32)));
        Form {
            q_heads: a.heads.q,
            group: a.heads.group(),
            dim: a.heads.dim,
            units: if plane { caps.plane.unwrap_or(32) as usize } else { 32 },
            plane,
            own: false,
            lse: false,
            add: false,
            wide_q: false,
            wide_k: false,
            wide_own: false,
            wide_o: false,
            wide_d: false,
        }
    }
}

/// May the heads in these columns be moved as pairs?
fn wide(gpu: &Gpu, rows: &Tensor, columns: &[usize], dim: usize) -> bool {
    gpu.caps().wide_loads
        && rows.pairs()
        && dim.is_multiple_of(2)
        && rows.dim(1).is_multiple_of(2)
        && columns.iter().all(|c| c.is_multiple_of(2))
}

fn bytes(tensors: &[&Tensor]) -> u64 {
    tensors.iter().map(|t| t.bytes()).sum()
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    gpu: &Gpu,
    a: &Attention,
    plan: &Plan,
    q: Columns<'_>,
    keys: Keys<'_>,
    own: Option<Keys<'_>>,
    o: &Tensor,
    lse: Option<&Tensor>,
) {
    let dim = a.heads.dim;
    let second = own.unwrap_or(keys);
    let form = Form {
        own: own.is_some(),
        lse: lse.is_some(),
        wide_q: wide(gpu, q.rows, &[q.column], dim),
        wide_k: wide(gpu, keys.rows, &[keys.k, keys.v], dim),
        wide_own: wide(gpu, second.rows, &[second.k, second.v], dim),
        wide_o: wide(gpu, o, &[], dim),
        ..Form::new(gpu, a)
    };
    let types = [
        storage(q.rows, form.wide_q),
        storage(keys.rows, form.wide_k),
        storage(second.rows, form.wide_own),
        storage(o, form.wide_o),
    ];
    let blocks = (plan.longest() * form.group).div_ceil(form.units * QUERIES);
    let count = CubeCount::Static(blocks as u32, plan.sequences.len() as u32, a.heads.kv as u32);
    launch!(
        gpu,
        Cost::new("attention", a.flops(plan.pairs(), 4.0), bytes(&[q.rows, keys.rows, o])),
        flash_forward,
        count,
        CubeDim::new_1d(form.units as u32),
        [q.rows, keys.rows, second.rows, &plan.table, o, lse.unwrap_or(o)],
        (
            q.ld(),
            q.column,
            keys.ld(),
            keys.k,
            keys.v,
            second.ld(),
            second.k,
            second.v,
            1.0 / (dim as f32).sqrt(),
            form,
            types,
        ),
    );
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward_queries(
    gpu: &Gpu,
    a: &Attention,
    plan: &Plan,
    q: Columns<'_>,
    keys: Keys<'_>,
    own: Option<Keys<'_>>,
    saved: Saved<'_>,
    d_o: &Tensor,
    dq: Columns<'_>,
    delta: &Tensor,
) {
    let dim = a.heads.dim;
    let second = own.unwrap_or(keys);
    let form = Form {
        own: own.is_some(),
        wide_q: wide(gpu, q.rows, &[q.column], dim),
        wide_k: wide(gpu, keys.rows, &[keys.k, keys.v], dim),
        wide_own: wide(gpu, second.rows, &[second.k, second.v], dim),
        wide_o: wide(gpu, saved.o, &[], dim) && wide(gpu, d_o, &[], dim),
        wide_d: wide(gpu, dq.rows, &[dq.column], dim),
        ..Form::new(gpu, a)
    };
    let types = [
        storage(q.rows, form.wide_q),
        storage(keys.rows, form.wide_k),
        storage(second.rows, form.wide_own),
        storage(saved.o, form.wide_o),
        storage(d_o, form.wide_o),
        storage(dq.rows, form.wide_d),
    ];
    let blocks = (plan.longest() * form.group).div_ceil(form.units);
    let count = CubeCount::Static(blocks as u32, plan.sequences.len() as u32, a.heads.kv as u32);
    launch!(
        gpu,
        // Of the ten multiply-adds of backward, dq is counted with the scores and do·v.
        Cost::new(
            "attention_backward",
            a.flops(plan.pairs(), 6.0),
            bytes(&[q.rows, keys.rows, d_o, dq.rows])
        ),
        flash_backward_queries,
        count,
        CubeDim::new_1d(form.units as u32),
        [
            q.rows,
            keys.rows,
            second.rows,
            &plan.table,
            saved.o,
            saved.lse,
            d_o,
            dq.rows,
            delta
        ],
        (
            q.ld(),
            q.column,
            keys.ld(),
            keys.k,
            keys.v,
            second.ld(),
            second.k,
            second.v,
            dq.ld(),
            dq.column,
            1.0 / (dim as f32).sqrt(),
            form,
            types,
        ),
    );
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward_keys(
    gpu: &Gpu,
    a: &Attention,
    plan: &KeyPlan,
    q: Columns<'_>,
    keys: Keys<'_>,
    saved: Saved<'_>,
    d_o: &Tensor,
    delta: &Tensor,
    dkeys: Keys<'_>,
    add: bool,
) {
    let dim = a.heads.dim;
    let form = Form {
        add,
        wide_q: wide(gpu, q.rows, &[q.column], dim),
        wide_k: wide(gpu, keys.rows, &[keys.k, keys.v], dim),
        wide_o: wide(gpu, d_o, &[], dim),
        wide_d: wide(gpu, dkeys.rows, &[dkeys.k, dkeys.v], dim),
        ..Form::new(gpu, a)
    };
    let types = [
        storage(q.rows, form.wide_q),
        storage(keys.rows, form.wide_k),
        storage(d_o, form.wide_o),
        storage(dkeys.rows, form.wide_d),
    ];
    let blocks = plan.longest().div_ceil(form.units);
    let count = CubeCount::Static(blocks as u32, plan.host.len() as u32, a.heads.kv as u32);
    launch!(
        gpu,
        // Scores and do·v are recomputed here; they are counted once, with dq.
        Cost::new(
            "attention_backward",
            a.flops(plan.pairs(), 4.0),
            bytes(&[q.rows, keys.rows, d_o, dkeys.rows])
        ),
        flash_backward_keys,
        count,
        CubeDim::new_1d(form.units as u32),
        [
            q.rows,
            keys.rows,
            &plan.runs,
            &plan.queries,
            saved.lse,
            d_o,
            delta,
            dkeys.rows
        ],
        (
            q.ld(),
            q.column,
            keys.ld(),
            keys.k,
            keys.v,
            dkeys.ld(),
            dkeys.k,
            dkeys.v,
            1.0 / (dim as f32).sqrt(),
            form,
            types,
        ),
    );
}

/// Loads one head (`dim` elements from `at`) into `out[first..]`.
#[cube]
fn load_head<X: Numeric>(
    x: &View<X>,
    at: usize,
    out: &mut Array<f32>,
    factor: f32,
    #[comptime] first: usize,
    #[comptime] dim: usize,
    #[comptime] wide: bool,
) {
    #[unroll]
    for p in 0..comptime!(dim.div_ceil(2)) {
        let more = comptime!(2 * p + 1 < dim);
        let v = load2::<X>(x, at + comptime!(2 * p), more, wide);
        out[comptime!(first + 2 * p)] = v.a * factor;
        if comptime!(more) {
            out[comptime!(first + 2 * p + 1)] = v.b * factor;
        }
    }
}

/// Stores one head, optionally adding.
#[cube]
#[allow(clippy::too_many_arguments)]
fn store_head<X: Numeric>(
    x: &mut View<X>,
    at: usize,
    values: &Array<f32>,
    factor: f32,
    #[comptime] first: usize,
    #[comptime] dim: usize,
    #[comptime] add: bool,
    #[comptime] wide: bool,
) {
    #[unroll]
    for p in 0..comptime!(dim.div_ceil(2)) {
        let more = comptime!(2 * p + 1 < dim);
        let a = values[comptime!(first + 2 * p)] * factor;
        let b = values[comptime!(if more { first + 2 * p + 1 } else { first + 2 * p })] * factor;
        let mut pair = Pair { a, b };
        if comptime!(add) {
            let old = load2::<X>(x, at + comptime!(2 * p), more, wide);
            pair.a += old.a;
            pair.b += old.b;
        }
        store2::<X>(x, at + comptime!(2 * p), more, pair, wide);
    }
}

/// Makes the registers `values` of every unit visible to all: nothing to do where registers can be broadcast.
#[cube]
fn publish(values: &Array<f32>, shared: &mut SharedMemory<f32>, #[comptime] len: usize, #[comptime] form: Form) {
    if comptime!(!form.plane) {
        sync_cube();
        #[unroll]
        for i in 0..len {
            shared[UNIT_POS as usize * len + i] = values[i];
        }
        sync_cube();
    }
}

/// Copies the registers of unit `owner` into `out`.
#[cube]
fn peek_plane(values: &Array<f32>, out: &mut Array<f32>, #[comptime] owner: usize, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        out[i] = plane_broadcast(values[i], comptime!(owner as u32));
    }
}

/// Copies what unit `owner` published into `out`.
#[cube]
fn peek_shared(shared: &SharedMemory<f32>, out: &mut Array<f32>, owner: usize, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        out[i] = shared[owner * len + i];
    }
}

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
fn flash_forward<Q: Numeric, K: Numeric, W: Numeric, O: Numeric>(
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
fn flash_backward_queries<Q: Numeric, K: Numeric, W: Numeric, O: Numeric, DO: Numeric, DQ: Numeric>(
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

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn flash_backward_keys<Q: Numeric, K: Numeric, DO: Numeric, DK: Numeric>(
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
    let dim = comptime!(form.dim);
    let units = comptime!(form.units);
    let group = comptime!(form.group);
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
                let o_row = o_base + (row * form.q_heads + head) * dim;
                load_head::<DO>(d_o, o_row, &mut tile, 1.0, dim, dim, form.wide_o);
                let stat = row * form.q_heads + kv_head * group + head;
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
