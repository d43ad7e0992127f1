//! Backward of the keys and values: a block of keys meets the queries that saw it, in order.

use cubecl::prelude::CubeCount;

use super::super::BackwardKeys;
use super::{Form, HOPPER_DIM, Tiles, aligned, hopper, kernel, place, places, scale};
use crate::gpu::{Forms, Gpu};

const SOURCE: &str = source!("attention_backward_keys.cu");
const HOPPER: &str = source!("attention_backward_keys_hopper.cu");

/// A warpgroup for dv, one for dk, and one that loads.
const HOPPER_TILES: Tiles = Tiles::new(12, 64, 64, 2);
/// Keys of a run from which on a warpgroup's 64 are not mostly empty.
const MANY_KEYS: usize = 64;

/// Shared memory of the Hopper kernel: k and v; two stages of q and do, of probabilities (f32) and of two statistics of
/// each item; nine barriers.
fn hopper_bytes() -> usize {
    let Tiles { rows, columns, .. } = HOPPER_TILES;
    (2 * rows + 4 * columns) * HOPPER_DIM * 2 + 2 * columns * (rows + 2) * 4 + 9 * 8
}

/// Warps that share 16 keys.
fn split(tiles: Tiles) -> usize {
    tiles.warps * 16 / tiles.rows
}

fn shared_bytes(tiles: Tiles, dim: usize) -> usize {
    // Two statistics of each item; probabilities and gradients of scores, where warps share them.
    let shared = if split(tiles) > 1 {
        2 * tiles.rows * (tiles.columns + 8) * 2
    } else {
        0
    };
    tiles.shared_bytes(dim, 2, 8) + shared
}

/// The smallest: fits into any device. Above 128 elements dk and dv of 16 keys fill the registers of two warps.
fn smallest(dim: usize) -> Tiles {
    Tiles::new(4, if dim > 128 { 32 } else { 64 }, 32, 1)
}

fn tiles(gpu: &Gpu, dim: usize) -> Tiles {
    let choices = if dim > 128 {
        [Tiles::new(8, 64, 64, 2), Tiles::new(8, 64, 32, 2), smallest(dim)]
    } else {
        [Tiles::new(4, 64, 64, 2), Tiles::new(4, 64, 32, 2), smallest(dim)]
    };
    Tiles::first(gpu, &choices, |t| shared_bytes(t, dim))
}

pub(in super::super) fn backward_keys(gpu: &Gpu, call: &BackwardKeys<'_>) {
    let BackwardKeys {
        a,
        plan,
        q,
        keys,
        saved,
        d_o,
        delta,
        dkeys,
        add,
    } = *call;
    let heads = a.heads;
    let of_q = aligned(q.rows, &[q.column], heads);
    let of_keys = aligned(keys.rows, &[keys.k, keys.v], heads);
    let of_do = aligned(d_o, &[0], heads);
    let hopper = plan.longest() >= MANY_KEYS && hopper(gpu, heads, &[of_q, of_keys, of_do], hopper_bytes());
    let tiles = if hopper { HOPPER_TILES } else { tiles(gpu, heads.dim) };
    static FORMS: Forms<(&str, Form<5>)> = Forms::new();
    let more = [
        ("SPLIT", split(tiles) as u32),
        ("ADD", add as u32),
        ("Q_ALIGNED", of_q),
        ("KV_ALIGNED", of_keys),
        ("DO_ALIGNED", of_do),
    ];
    let (file, shared) = if hopper {
        (("attention_backward_keys_hopper", HOPPER), hopper_bytes())
    } else {
        (("attention_backward_keys", SOURCE), shared_bytes(tiles, heads.dim))
    };
    let form = Form::new(heads, tiles, more).gradient(dkeys.rows);
    let kernel = kernel(&FORMS, file, form, shared);
    let ([q_at, q_ld], [k, v, kv_ld], [dk, dv, dkv_ld]) = (place(q), places(keys), places(dkeys));
    gpu.launch_raw(
        call.cost(),
        &kernel,
        CubeCount::Static(
            plan.longest().div_ceil(tiles.rows) as u32,
            plan.host.len() as u32,
            heads.kv as u32,
        ),
        &[
            q.rows,
            keys.rows,
            &plan.runs,
            &plan.queries,
            saved.lse,
            d_o,
            delta,
            dkeys.rows,
        ],
        &[
            plan.runs.at() as u32,
            plan.queries.at() as u32,
            q_at,
            q_ld,
            k,
            v,
            kv_ld,
            saved.lse.at() as u32,
            d_o.at() as u32,
            delta.at() as u32,
            dk,
            dv,
            dkv_ld,
            scale(heads),
        ],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_tiles_fit_into_any_device() {
        for dim in 1..=super::super::MAX_DIM {
            assert!(shared_bytes(smallest(dim), dim) <= super::super::LEAST_SHARED, "{dim}");
        }
    }
}
