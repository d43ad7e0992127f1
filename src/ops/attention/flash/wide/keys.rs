//! Backward of the keys and values: a block of keys meets its queries in the order of the list.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tiles::{Lines, add_scores, add_weighted, clear, store_lines};
use super::{Form, KEYS_BACK, PITCH_BACK, QUERIES, SIDE, UNITS, stage_len};
use crate::gpu::launch::View;

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn flash_wide_backward_keys<Q: Numeric, K: Numeric, DO: Numeric, DK: Numeric>(
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
    o_ld: usize,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, DO, DK)] _types: [StorageType; 4],
) {
    let dim = comptime!(form.dim);
    let group = comptime!(form.group);
    let across = comptime!(dim.div_ceil(SIDE));
    let unit = UNIT_POS as usize;
    let col = unit % SIDE;
    let row = unit / SIDE;
    let entry = CUBE_POS_Y as usize * 4;
    let kv_head = CUBE_POS_Z as usize;
    let k_row0 = runs.get(entry) as usize;
    let k_rows = runs.get(entry + 1) as usize;
    let first = CUBE_POS_X as usize * KEYS_BACK;
    let mut stage = SharedMemory::<f32>::new(comptime!(stage_len(form.dim)));
    // Probabilities and gradients of scores, query by query.
    let mut tile_p = SharedMemory::<f32>::new(comptime!(QUERIES * PITCH_BACK));
    let mut tile_ds = SharedMemory::<f32>::new(comptime!(QUERIES * PITCH_BACK));
    if first < k_rows {
        let own = comptime!(QUERIES * KEYS_BACK / UNITS);
        let mut s = Array::<f32>::new(own);
        let mut dp = Array::<f32>::new(own);
        let len = comptime!(KEYS_BACK / SIDE * across);
        let mut dk = Array::<f32>::new(len);
        let mut dv = Array::<f32>::new(len);
        clear(&mut dk, len);
        clear(&mut dv, len);
        let line = keys.start() + k_row0 * k_ld + kv_head * dim;
        let of_k = Lines {
            base: line + k_col,
            ld: k_ld * 1,
            first,
            count: k_rows,
        };
        let of_v = Lines {
            base: line + v_col,
            ld: k_ld * 1,
            first,
            count: k_rows,
        };
        let from = runs.get(entry + 2) as usize;
        let to = from + runs.get(entry + 3) as usize;
        for segment in from..to {
            let q_row0 = segments.get(2 * segment) as usize;
            let queries = segments.get(2 * segment + 1) as usize * group;
            let blocks = queries.div_ceil(QUERIES);
            for block in 0..blocks {
                let q0 = block * QUERIES;
                let of_q = Lines {
                    base: q.start() + q_row0 * q_ld + q_col + kv_head * comptime!(group * dim),
                    ld: q_ld * 1,
                    first: q0,
                    count: queries,
                };
                let of_do = Lines {
                    base: d_o.start() + (q_row0 * form.q_heads + kv_head * group) * dim,
                    ld: o_ld * 1,
                    first: q0,
                    count: queries,
                };
                clear(&mut s, own);
                clear(&mut dp, own);
                add_scores::<Q, K>(
                    q, &of_q, keys, &of_k, &mut s, &mut stage, QUERIES, KEYS_BACK, group, dim,
                );
                add_scores::<DO, K>(
                    d_o, &of_do, keys, &of_v, &mut dp, &mut stage, QUERIES, KEYS_BACK, group, dim,
                );
                #[unroll]
                for i in 0..comptime!(QUERIES / SIDE) {
                    let query = row + comptime!(i * SIDE);
                    let here = min(q0 + query, queries - 1);
                    let at = (q_row0 + here / group) * form.q_heads + kv_head * group + here % group;
                    let (l, d) = (lse.get(at), delta.get(at));
                    #[unroll]
                    for j in 0..comptime!(KEYS_BACK / SIDE) {
                        let e = comptime!(i * KEYS_BACK / SIDE + j);
                        let p = select(q0 + query < queries, f32::exp(s[e] * scale - l), 0.0);
                        let place = query * PITCH_BACK + col + comptime!(j * SIDE);
                        tile_p[place] = p;
                        tile_ds[place] = p * (dp[e] - d);
                    }
                }
                let there = min(QUERIES, queries - q0);
                add_weighted::<DO>(
                    &tile_p, d_o, &of_do, there, &mut dv, &mut stage, KEYS_BACK, 1usize, PITCH_BACK, group, dim,
                );
                add_weighted::<Q>(
                    &tile_ds, q, &of_q, there, &mut dk, &mut stage, KEYS_BACK, 1usize, PITCH_BACK, group, dim,
                );
                sync_cube();
            }
        }
        let line = dkeys.start() + k_row0 * dk_ld + kv_head * dim;
        let of_dk = Lines {
            base: line + dk_col,
            ld: dk_ld * 1,
            first,
            count: k_rows,
        };
        let of_dv = Lines {
            base: line + dv_col,
            ld: dk_ld * 1,
            first,
            count: k_rows,
        };
        store_lines::<DK>(dkeys, &of_dk, &dk, scale, KEYS_BACK, 1usize, dim, form.add);
        store_lines::<DK>(dkeys, &of_dv, &dv, 1.0, KEYS_BACK, 1usize, dim, form.add);
    }
}
