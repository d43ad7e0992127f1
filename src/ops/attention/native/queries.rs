//! Backward of the queries: dq, and `delta` for [`keys`](super::keys).

use cubecl::prelude::CubeCount;

use super::super::BackwardQueries;
use super::{Form, HOPPER_DIM, MANY_ITEMS, Tiles, aligned, hopper, kernel, place, places, scale};
use crate::gpu::{Forms, Gpu};

const SOURCE: &str = source!("attention_backward_queries.cu");
const HOPPER: &str = source!("attention_backward_queries_hopper.cu");

/// Two warpgroups of 64 items each, and one that loads.
const HOPPER_TILES: Tiles = Tiles::new(12, 128, 64, 2);

/// Shared memory of the Hopper kernel: q and do, two stages of keys and one of values, seven barriers.
fn hopper_bytes() -> usize {
    let Tiles { rows, columns, .. } = HOPPER_TILES;
    (2 * rows + 3 * columns) * HOPPER_DIM * 2 + 7 * 8
}

fn shared_bytes(tiles: Tiles, dim: usize) -> usize {
    tiles.shared_bytes(dim, 2, 0)
}

/// The smallest: fits into any device.
const SMALLEST: Tiles = Tiles::new(4, 64, 32, 1);

/// Tiles for sequences of up to `items` query rows times heads of a group.
fn tiles(gpu: &Gpu, dim: usize, items: usize) -> Tiles {
    let fits = |t| shared_bytes(t, dim);
    let choices = match (dim > 128, items >= MANY_ITEMS) {
        (true, true) => vec![Tiles::new(8, 128, 32, 2), Tiles::new(4, 64, 32, 2), SMALLEST],
        (true, false) => vec![Tiles::new(4, 64, 32, 2), SMALLEST],
        (false, _) => vec![Tiles::new(4, 64, 64, 2), Tiles::new(4, 64, 32, 2), SMALLEST],
    };
    Tiles::first(gpu, &choices, fits)
}

pub(in super::super) fn backward_queries(gpu: &Gpu, call: &BackwardQueries<'_>) {
    let BackwardQueries {
        a,
        plan,
        q,
        keys,
        own,
        saved,
        d_o,
        dq,
        delta,
    } = *call;
    let heads = a.heads;
    let items = plan.longest() * heads.group();
    let second = own.unwrap_or(keys);
    let of_q = aligned(q.rows, &[q.column], heads);
    let of_keys = aligned(keys.rows, &[keys.k, keys.v], heads);
    let of_own = aligned(second.rows, &[second.k, second.v], heads);
    let of_do = aligned(d_o, &[0], heads);
    let hopper = items >= MANY_ITEMS && hopper(gpu, heads, &[of_q, of_keys, of_own, of_do], hopper_bytes());
    let tiles = if hopper {
        HOPPER_TILES
    } else {
        tiles(gpu, heads.dim, items)
    };
    static FORMS: Forms<(&str, Form<5>)> = Forms::new();
    let more = [
        ("OWN", own.is_some() as u32),
        ("Q_ALIGNED", of_q),
        ("KV_ALIGNED", of_keys),
        ("OWN_ALIGNED", of_own),
        ("DO_ALIGNED", of_do),
    ];
    let (file, shared) = if hopper {
        (("attention_backward_queries_hopper", HOPPER), hopper_bytes())
    } else {
        (("attention_backward_queries", SOURCE), shared_bytes(tiles, heads.dim))
    };
    let form = Form::new(heads, tiles, more).gradient(dq.rows);
    let kernel = kernel(&FORMS, file, form, shared);
    let ([q_at, q_ld], [k, v, kv_ld], [own_k, own_v, own_ld]) = (place(q), places(keys), places(second));
    let [dq_at, dq_ld] = place(dq);
    gpu.launch_raw(
        call.cost(),
        &kernel,
        CubeCount::Static(
            items.div_ceil(tiles.rows) as u32,
            plan.sequences.len() as u32,
            heads.kv as u32,
        ),
        &[
            q.rows,
            keys.rows,
            second.rows,
            &plan.table,
            saved.o,
            saved.lse,
            d_o,
            dq.rows,
            delta,
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
            saved.o.at() as u32,
            saved.lse.at() as u32,
            d_o.at() as u32,
            dq_at,
            dq_ld,
            delta.at() as u32,
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
            assert!(shared_bytes(SMALLEST, dim) <= super::super::LEAST_SHARED, "{dim}");
        }
    }
}
