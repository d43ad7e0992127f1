//! Backward of the queries: dq, and `delta = Σ do·o` for [`keys`](super::keys).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tiles::{Lines, add_scores, add_weighted, clear, store_lines};
use super::{Form, KEYS, QUERIES, SIDE, TILE_PITCH, UNITS, stage_len};
use crate::gpu::launch::View;

/// One run of keys: adds to dq (still to be scaled).
#[cube]
#[allow(clippy::too_many_arguments)]
fn pull_back<Q: Numeric, DO: Numeric, K: Numeric>(
    q: &View<Q>,
    of_q: &Lines,
    d_o: &View<DO>,
    of_do: &Lines,
    keys: &View<K>,
    row0: usize,
    rows: usize,
    ld: usize,
    k_col: usize,
    v_col: usize,
    scale: f32,
    known: &SharedMemory<f32>,
    dq: &mut Array<f32>,
    tile: &mut SharedMemory<f32>,
    stage: &mut SharedMemory<f32>,
    #[comptime] form: Form,
) {
    let dim = comptime!(form.dim);
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let base = keys.start() + row0 * ld;
    let own = comptime!(QUERIES * KEYS / UNITS);
    let mut s = Array::<f32>::new(own);
    let mut dp = Array::<f32>::new(own);
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
        clear(&mut s, own);
        clear(&mut dp, own);
        add_scores::<Q, K>(q, of_q, keys, &of_k, &mut s, stage, QUERIES, KEYS, form.group, dim);
        add_scores::<DO, K>(d_o, of_do, keys, &of_v, &mut dp, stage, QUERIES, KEYS, form.group, dim);
        #[unroll]
        for i in 0..comptime!(QUERIES / SIDE) {
            let query = row + comptime!(i * SIDE);
            let lse = known[query];
            let delta = known[QUERIES + query];
            #[unroll]
            for j in 0..comptime!(KEYS / SIDE) {
                let key = col + comptime!(j * SIDE);
                let at = comptime!(i * KEYS / SIDE + j);
                let p = f32::exp(s[at] * scale - lse);
                tile[query * TILE_PITCH + key] = select(k0 + key < rows, p * (dp[at] - delta), 0.0);
            }
        }
        add_weighted::<K>(
            tile,
            keys,
            &of_k,
            min(KEYS, rows - k0),
            dq,
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
    o_ld: usize,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, W, O, DO, DQ)] _types: [StorageType; 6],
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
    let mut tile = SharedMemory::<f32>::new(comptime!(QUERIES * TILE_PITCH));
    // lse, then delta of each query.
    let mut known = SharedMemory::<f32>::new(comptime!(2 * QUERIES));
    if first < queries {
        let mut sums = Array::<f32>::new(comptime!(QUERIES / SIDE * across));
        clear(&mut sums, comptime!(QUERIES / SIDE * across));
        let heads = (q_row0 * form.q_heads + kv_head * group) * dim;
        let of_do = Lines {
            base: d_o.start() + heads,
            ld: o_ld * 1,
            first,
            count: queries,
        };
        let of_q = Lines {
            base: q.start() + q_row0 * q_ld + q_col + kv_head * comptime!(group * dim),
            ld: q_ld * 1,
            first,
            count: queries,
        };
        // Four units a query add up delta, in the order of their parts.
        let query = min(first + unit / 4, queries - 1);
        let line = query / group * comptime!(form.q_heads * dim) + query % group * dim;
        let mut part = 0.0f32;
        for e in 0..comptime!(dim.div_ceil(4)) {
            let d = e * 4 + unit % 4;
            let at = line + min(d, comptime!(dim - 1));
            let product = f32::cast_from(o.raw(o.start() + heads + at)) * f32::cast_from(d_o.raw(of_do.base + at));
            part += select(d < dim, product, 0.0);
        }
        stage[unit] = part;
        sync_cube();
        if unit < QUERIES {
            let wanted = first + unit;
            let here = min(wanted, queries - 1);
            let at = (q_row0 + here / group) * form.q_heads + kv_head * group + here % group;
            let dot = stage[4 * unit] + stage[4 * unit + 1] + stage[4 * unit + 2] + stage[4 * unit + 3];
            known[unit] = lse.get(at);
            known[QUERIES + unit] = dot;
            if wanted < queries {
                delta.set(at, dot);
            }
        }
        sync_cube();
        pull_back::<Q, DO, K>(
            q,
            &of_q,
            d_o,
            &of_do,
            keys,
            plan.get(entry + 2) as usize,
            plan.get(entry + 3) as usize,
            k_ld * 1,
            k_col + kv_head * dim,
            v_col + kv_head * dim,
            scale,
            &known,
            &mut sums,
            &mut tile,
            &mut stage,
            form,
        );
        if comptime!(form.own) {
            pull_back::<Q, DO, W>(
                q,
                &of_q,
                d_o,
                &of_do,
                own,
                plan.get(entry + 4) as usize,
                plan.get(entry + 5) as usize,
                own_ld * 1,
                own_k_col + kv_head * dim,
                own_v_col + kv_head * dim,
                scale,
                &known,
                &mut sums,
                &mut tile,
                &mut stage,
                form,
            );
        }
        let of_dq = Lines {
            base: dq.start() + q_row0 * dq_ld + dq_col + kv_head * comptime!(group * dim),
            ld: dq_ld * 1,
            first,
            count: queries,
        };
        store_lines::<DQ>(dq, &of_dq, &sums, scale, QUERIES, group, dim, false);
    }
}
