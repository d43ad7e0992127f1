//! Forward: a running softmax, keys a tile at a time.
//!
//! | kernel | where |
//! |---|---|
//! | `attention_forward` | everywhere; where its blocks cannot fill the device, several share the keys of a sequence, and `attention_combine` puts their sums together in order |
//! | `attention_forward_hopper` | compute capability 9.0, heads of 256, long sequences: the prefix |

use cubecl::prelude::CubeCount;

use super::super::{Attention, Forward, Plan, call};
use super::{Form, HOPPER_DIM, MANY_ITEMS, Tiles, aligned, hopper, kernel, place, places, scale};
use crate::gpu::{Cost, Forms, Gpu, Tensor};

const SOURCE: &str = source!("attention_forward.cu");
const COMBINE: &str = source!("attention_combine.cu");
const HOPPER: &str = source!("attention_forward_hopper.cu");

/// Two warpgroups of 64 items each, and one that loads.
const HOPPER_TILES: Tiles = Tiles::new(12, 128, 80, 2);
/// An item a warp.
const COMBINE_TILES: Tiles = Tiles::new(4, 4, 0, 0);
/// Blocks that may share the keys of a sequence, and the least tiles of keys each then has.
const MOST_PARTS: usize = 8;
const LEAST_TILES: usize = 2;

fn shared_bytes(tiles: Tiles, dim: usize) -> usize {
    tiles.shared_bytes(dim, 1, 0)
}

/// Tiles for sequences of up to `items` query rows times heads of a group.
fn tiles(gpu: &Gpu, dim: usize, items: usize) -> Tiles {
    let wide = [Tiles::new(8, 128, 64, 2), Tiles::new(8, 128, 32, 2)];
    let narrow = [Tiles::new(4, 64, 64, 2), Tiles::new(4, 64, 32, 2)];
    let fits = |t| shared_bytes(t, dim);
    if dim > 128 && items >= MANY_ITEMS {
        Tiles::first(gpu, &[wide, narrow].concat(), fits)
    } else {
        Tiles::first(gpu, &narrow, fits)
    }
}

/// Blocks that share the keys of a sequence: as many as let each multiprocessor have one, where the rest of the grid does
/// not.
fn parts(gpu: &Gpu, plan: &Plan, tiles: Tiles, blocks: usize) -> usize {
    let keys = plan.sequences.iter().map(|s| s.k_rows + s.own_rows).max().unwrap_or(0);
    let multiprocessors = gpu.caps().multiprocessors.unwrap_or(1) as usize;
    (multiprocessors / blocks.max(1))
        .min(keys.div_ceil(tiles.columns) / LEAST_TILES)
        .clamp(1, MOST_PARTS)
}

pub(in super::super) fn forward(gpu: &Gpu, call: &Forward<'_>) {
    let Forward {
        a,
        plan,
        q,
        keys,
        own,
        o,
        lse,
    } = *call;
    let (heads, sequences) = (a.heads, plan.sequences.len());
    let items = plan.longest() * heads.group();
    let second = own.unwrap_or(keys);
    let of_q = aligned(q.rows, &[q.column], heads);
    let of_keys = aligned(keys.rows, &[keys.k, keys.v], heads);
    let of_own = aligned(second.rows, &[second.k, second.v], heads);
    let hopper = items >= MANY_ITEMS && hopper(gpu, heads, &[of_q, of_keys, of_own], hopper_bytes());
    let tiles = if hopper {
        HOPPER_TILES
    } else {
        tiles(gpu, heads.dim, items)
    };
    let blocks = items.div_ceil(tiles.rows);
    let parts = if hopper {
        1
    } else {
        parts(gpu, plan, tiles, blocks * sequences * heads.kv)
    };
    static FORMS: Forms<(&str, Form<6>)> = Forms::new();
    let more = [
        ("OWN", own.is_some() as u32),
        ("LSE", lse.is_some() as u32),
        ("PARTS", parts as u32),
        ("Q_ALIGNED", of_q),
        ("KV_ALIGNED", of_keys),
        ("OWN_ALIGNED", of_own),
    ];
    let (file, shared) = if hopper {
        (("attention_forward_hopper", HOPPER), hopper_bytes())
    } else {
        (("attention_forward", SOURCE), shared_bytes(tiles, heads.dim))
    };
    let kernel = kernel(&FORMS, file, Form::new(heads, tiles, more), shared);
    let shared = (parts > 1).then(|| {
        let rows = parts * sequences * heads.kv * items;
        (gpu.f32([rows, heads.dim]), gpu.f32([rows, 2]))
    });
    let written = lse.unwrap_or(o);
    let (sums, statistics) = shared.as_ref().map_or((o, o), |(sums, statistics)| (sums, statistics));
    let ([q_at, q_ld], [k, v, kv_ld], [own_k, own_v, own_ld]) = (place(q), places(keys), places(second));
    gpu.launch_raw(
        call.cost(),
        &kernel,
        CubeCount::Static(blocks as u32, sequences as u32, (heads.kv * parts) as u32),
        &[
            q.rows,
            keys.rows,
            second.rows,
            &plan.table,
            o,
            written,
            sums,
            statistics,
        ],
        &[
            plan.table.at() as u32,
            q_at,
            q_ld,
            k,
            v,
            kv_ld,
            own_k,
            own_v,
            own_ld,
            o.at() as u32,
            written.at() as u32,
            scale(heads),
            items as u32,
            sums.at() as u32,
            statistics.at() as u32,
        ],
    );
    if let Some((sums, statistics)) = &shared {
        combine(gpu, a, plan, parts, o, lse, sums, statistics);
    }
}

/// `o` (and `lse`) from what the parts of the keys gave.
#[allow(clippy::too_many_arguments)]
fn combine(
    gpu: &Gpu,
    a: &Attention,
    plan: &Plan,
    parts: usize,
    o: &Tensor,
    lse: Option<&Tensor>,
    sums: &Tensor,
    statistics: &Tensor,
) {
    let (heads, tiles) = (a.heads, COMBINE_TILES);
    let items = plan.longest() * heads.group();
    let written = lse.unwrap_or(o);
    static FORMS: Forms<(&str, Form<2>)> = Forms::new();
    let more = [("PARTS", parts as u32), ("LSE", lse.is_some() as u32)];
    let form = Form::new(heads, tiles, more);
    gpu.launch_raw(
        Cost::moving("attention_combine", call::bytes(&[sums, statistics, o])),
        &kernel(&FORMS, ("attention_combine", COMBINE), form, 0),
        CubeCount::Static(
            items.div_ceil(tiles.rows) as u32,
            plan.sequences.len() as u32,
            heads.kv as u32,
        ),
        &[&plan.table, sums, statistics, o, written],
        &[
            plan.table.at() as u32,
            o.at() as u32,
            written.at() as u32,
            scale(heads),
            items as u32,
            sums.at() as u32,
            statistics.at() as u32,
        ],
    );
}

/// Shared memory of the Hopper kernel: queries, two stages of keys and of values, nine barriers.
fn hopper_bytes() -> usize {
    let Tiles { rows, columns, .. } = HOPPER_TILES;
    (rows + 4 * columns) * HOPPER_DIM * 2 + 9 * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_tiles_fit_into_any_device() {
        for dim in 1..=super::super::MAX_DIM {
            assert!(
                shared_bytes(Tiles::new(4, 64, 32, 2), dim) <= super::super::LEAST_SHARED,
                "{dim}"
            );
        }
    }
}
