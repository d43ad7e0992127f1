//! Backward of the keys and values: a block of keys meets its queries in the order of the list.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tiles::{add_weighted, clear, scores, store_lines};
use super::{Form, KEYS_BACK, PITCH_BACK, QUERIES, SIDE, UNITS, stage_len};
use crate::gpu::launch::View;
use crate::ops::attention::flash::parts::{KEY_RUN, KeyColumns, QueryColumns, keys_at, pair_gradient, queries_at};

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
    q_places: QueryColumns,
    key_places: KeyColumns,
    dkey_places: KeyColumns,
    scale: f32,
    #[comptime] form: Form,
    #[define(Q, K, DO, DK)] _types: [StorageType; 4],
) {
    let heads = comptime!(form.heads);
    let dim = comptime!(heads.dim);
    let across = comptime!(dim.div_ceil(SIDE));
    let col = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let entry = CUBE_POS_Y as usize * KEY_RUN;
    let first = CUBE_POS_X as usize * KEYS_BACK;
    let rows = keys_at(runs, entry);
    let mut stage = SharedMemory::<f32>::new(comptime!(stage_len(heads.dim)));
    // Probabilities and gradients of scores, query by query.
    let mut tile_p = SharedMemory::<f32>::new(comptime!(QUERIES * PITCH_BACK));
    let mut tile_ds = SharedMemory::<f32>::new(comptime!(QUERIES * PITCH_BACK));
    if first < rows.count {
        let run = rows.columns::<K>(keys, &key_places, first, dim);
        let mut s = Array::<f32>::new(comptime!(QUERIES * KEYS_BACK / UNITS));
        let mut dp = Array::<f32>::new(comptime!(QUERIES * KEYS_BACK / UNITS));
        let len = comptime!(KEYS_BACK / SIDE * across);
        let mut dk = Array::<f32>::new(len);
        let mut dv = Array::<f32>::new(len);
        clear(&mut dk, len);
        clear(&mut dv, len);
        let from = runs.get(entry + 2) as usize;
        let to = from + runs.get(entry + 3) as usize;
        for segment in from..to {
            let queries = queries_at(segments, 2 * segment, heads);
            let blocks = queries.count.div_ceil(QUERIES);
            for block in 0..blocks {
                let q0 = block * QUERIES;
                let (of_q, of_do) = (queries.columns::<Q>(q, &q_places, q0), queries.rows::<DO>(d_o, q0));
                scores::<Q, K>(q, &of_q, keys, &run.k, &mut s, &mut stage, QUERIES, KEYS_BACK);
                scores::<DO, K>(d_o, &of_do, keys, &run.v, &mut dp, &mut stage, QUERIES, KEYS_BACK);
                #[unroll]
                for i in 0..comptime!(QUERIES / SIDE) {
                    let query = row + comptime!(i * SIDE);
                    let at = queries.index(q0 + query);
                    let (l, d) = (lse.get(at), delta.get(at));
                    #[unroll]
                    for j in 0..comptime!(KEYS_BACK / SIDE) {
                        let e = comptime!(i * KEYS_BACK / SIDE + j);
                        let (p, ds) = pair_gradient(s[e] * scale, dp[e], l, d, of_q.holds(query));
                        let place = query * PITCH_BACK + col + comptime!(j * SIDE);
                        tile_p[place] = p;
                        tile_ds[place] = ds;
                    }
                }
                let there = min(QUERIES, queries.count - q0);
                add_weighted::<DO>(
                    &tile_p, d_o, &of_do, there, &mut dv, &mut stage, KEYS_BACK, 1usize, PITCH_BACK,
                );
                add_weighted::<Q>(
                    &tile_ds, q, &of_q, there, &mut dk, &mut stage, KEYS_BACK, 1usize, PITCH_BACK,
                );
                sync_cube();
            }
        }
        let of_d = rows.columns::<DK>(dkeys, &dkey_places, first, dim);
        store_lines::<DK>(dkeys, &of_d.k, &dk, scale, KEYS_BACK, form.add);
        store_lines::<DK>(dkeys, &of_d.v, &dv, 1.0, KEYS_BACK, form.add);
    }
}
