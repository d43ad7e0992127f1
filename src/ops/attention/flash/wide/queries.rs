//! Backward of the queries: dq, and `delta = Σ do·o` for [`keys`](super::keys).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tiles::{add_weighted, clear, scores, store_lines};
use super::{Form, KEYS, QUERIES, SIDE, TILE_PITCH, UNITS, stage_len};
use crate::gpu::launch::View;
use crate::ops::attention::flash::parts::{
    KeyColumns, Lines, QueryColumns, Run, SEQUENCE, keys_at, pair_gradient, queries_at,
};

/// One run of keys: adds to dq (still to be scaled).
#[cube]
#[allow(clippy::too_many_arguments)]
fn pull_back<Q: Numeric, DO: Numeric, K: Numeric>(
    q: &View<Q>,
    of_q: &Lines,
    d_o: &View<DO>,
    of_do: &Lines,
    keys: &View<K>,
    of: &Run,
    scale: f32,
    known: &SharedMemory<f32>,
    dq: &mut Array<f32>,
    tile: &mut SharedMemory<f32>,
    stage: &mut SharedMemory<f32>,
) {
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let rows = of.k.count;
    let mut s = Array::<f32>::new(comptime!(QUERIES * KEYS / UNITS));
    let mut dp = Array::<f32>::new(comptime!(QUERIES * KEYS / UNITS));
    let blocks = rows.div_ceil(KEYS);
    for block in 0..blocks {
        let k0 = block * KEYS;
        let (of_k, of_v) = (of.k.block(k0), of.v.block(k0));
        scores::<Q, K>(q, of_q, keys, &of_k, &mut s, stage, QUERIES, KEYS);
        scores::<DO, K>(d_o, of_do, keys, &of_v, &mut dp, stage, QUERIES, KEYS);
        #[unroll]
        for i in 0..comptime!(QUERIES / SIDE) {
            let query = row + comptime!(i * SIDE);
            let lse = known[query];
            let delta = known[QUERIES + query];
            #[unroll]
            for j in 0..comptime!(KEYS / SIDE) {
                let key = col + comptime!(j * SIDE);
                let at = comptime!(i * KEYS / SIDE + j);
                let (_p, ds) = pair_gradient(s[at] * scale, dp[at], lse, delta, k0 + key < rows);
                tile[query * TILE_PITCH + key] = ds;
            }
        }
        let there = min(KEYS, rows - k0);
        add_weighted::<K>(tile, keys, &of_k, there, dq, stage, QUERIES, TILE_PITCH, 1usize);
        sync_cube();
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn flash_wide_backward_queries<Q: Numeric, K: Numeric, W: Numeric, O: Numeric, DO: Numeric, DQ: Numeric>(
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
    let across = comptime!(dim.div_ceil(SIDE));
    let unit = UNIT_POS as usize;
    let entry = CUBE_POS_Y as usize * SEQUENCE;
    let queries = queries_at(plan, entry, heads);
    let first = CUBE_POS_X as usize * QUERIES;
    let mut stage = SharedMemory::<f32>::new(comptime!(stage_len(heads.dim)));
    let mut tile = SharedMemory::<f32>::new(comptime!(QUERIES * TILE_PITCH));
    // lse, then delta of each query.
    let mut known = SharedMemory::<f32>::new(comptime!(2 * QUERIES));
    if first < queries.count {
        let mut sums = Array::<f32>::new(comptime!(QUERIES / SIDE * across));
        clear(&mut sums, comptime!(QUERIES / SIDE * across));
        let (of_q, of_o, of_do) = (
            queries.columns::<Q>(q, &q_places, first),
            queries.rows::<O>(o, first),
            queries.rows::<DO>(d_o, first),
        );
        // Four units a query add up delta, in the order of their parts.
        let (o_at, do_at) = (of_o.at(unit / 4), of_do.at(unit / 4));
        let mut part = 0.0f32;
        for e in 0..comptime!(dim.div_ceil(4)) {
            let d = e * 4 + unit % 4;
            let inside = min(d, comptime!(dim - 1));
            let product = f32::cast_from(o.raw(o_at + inside)) * f32::cast_from(d_o.raw(do_at + inside));
            part += select(d < dim, product, 0.0);
        }
        stage[unit] = part;
        sync_cube();
        if unit < QUERIES {
            let dot = stage[4 * unit] + stage[4 * unit + 1] + stage[4 * unit + 2] + stage[4 * unit + 3];
            let at = queries.index(first + unit);
            known[unit] = lse.get(at);
            known[QUERIES + unit] = dot;
            if of_q.holds(unit) {
                delta.set(at, dot);
            }
        }
        sync_cube();
        let seen = keys_at(plan, entry + 2).columns::<K>(keys, &key_places, 0, dim);
        pull_back::<Q, DO, K>(
            q, &of_q, d_o, &of_do, keys, &seen, scale, &known, &mut sums, &mut tile, &mut stage,
        );
        if comptime!(form.own) {
            let seen = keys_at(plan, entry + 4).columns::<W>(own, &own_places, 0, dim);
            pull_back::<Q, DO, W>(
                q, &of_q, d_o, &of_do, own, &seen, scale, &known, &mut sums, &mut tile, &mut stage,
            );
        }
        let of_dq = queries.columns::<DQ>(dq, &dq_places, first);
        store_lines::<DQ>(dq, &of_dq, &sums, scale, QUERIES, false);
    }
}
