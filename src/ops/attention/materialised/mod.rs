//! Attention through the matrix product, with scores in memory: for heads of any size.
//!
//! Query rows are first packed so that all queries that share a k/v head of a sequence are neighbours: `[n, K]`, in
//! the order sequence (or key run), k/v head, row, head of the group. Scores of one such block are then one product
//! of a grouped launch. Scores never exceed a budget: longer plans are done in parts.

mod pack;
mod tables;

use pack::{gather, pack, row_dots, scatter, unpack};
pub(super) use tables::Tables;
use tables::{Part, parts_of_keys, parts_of_plan};

use super::{Attention, BackwardKeys, BackwardQueries, Columns, Forward, Keys};
use crate::gpu::{Cost, Gpu, Tensor};
use crate::ops::gemm::{self, Mat};
use crate::ops::{fill, softmax};

/// Names in the account: the products count no FLOPs of their own, but their time.
const FORWARD: &str = "attention";
const BACKWARD: &str = "attention_backward";

/// `[ld - column]`-wide rows from `column` on, as an operand of a grouped product.
fn from_column(rows: &Tensor, column: usize) -> Mat {
    let ld = rows.dim(1);
    Mat::from(rows).columns(column, ld - column)
}

fn account(gpu: &Gpu, a: &Attention, name: &'static str, pairs: f64, per_pair: f64) {
    gpu.account(&Cost::new(name, a.flops(pairs, per_pair), 0));
}

pub(super) fn forward(gpu: &Gpu, call: &Forward<'_>) {
    let Forward {
        a,
        plan,
        q,
        keys,
        own,
        o,
        lse,
    } = *call;
    let dim = a.heads.dim;
    let second = own.unwrap_or(keys);
    account(gpu, a, FORWARD, plan.pairs(), 4.0);
    for part in parts_of_plan(gpu, a, plan, [keys.ld(), second.ld()]).iter() {
        let packed = gpu.alloc(q.rows.dtype(), [part.rows, dim]);
        pack(gpu, part, a, q, &packed);
        let scores = gpu.f32([part.rows, part.width]);
        products_with_keys(gpu, part, &packed, keys, second, &scores, Side::Scores, FORWARD);
        let kept = lse.map(|_| gpu.f32([part.rows]));
        softmax::forward(
            gpu,
            &scores,
            &part.lens,
            1.0 / (dim as f32).sqrt(),
            &scores,
            kept.as_ref(),
        );
        products_with_values(gpu, part, &scores, [keys, second], |k| k.v, &packed, FORWARD);
        unpack(gpu, part, a, &packed, Columns::all(o));
        if let (Some(kept), Some(lse)) = (&kept, lse) {
            scatter(gpu, part, a, kept, lse);
        }
    }
}

pub(super) fn backward_queries(gpu: &Gpu, call: &BackwardQueries<'_>) {
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
    let second = own.unwrap_or(keys);
    account(gpu, a, BACKWARD, plan.pairs(), 6.0);
    row_dots(gpu, a, saved.o, d_o, plan, delta);
    for part in parts_of_plan(gpu, a, plan, [keys.ld(), second.ld()]).iter() {
        let (scores, dscores, packed) = recompute(gpu, a, part, q, keys, second, saved.lse, d_o, delta);
        drop(scores);
        products_with_values(gpu, part, &dscores, [keys, second], |k| k.k, &packed.q, BACKWARD);
        unpack(gpu, part, a, &packed.q, dq);
    }
}

pub(super) fn backward_keys(gpu: &Gpu, call: &BackwardKeys<'_>) {
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
    account(gpu, a, BACKWARD, plan.pairs(), 4.0);
    for part in parts_of_keys(gpu, a, plan, keys.ld(), dkeys.ld()).iter() {
        let (p, ds, packed) = recompute(gpu, a, part, q, keys, keys, saved.lse, d_o, delta);
        let Some(groups) = &part.keys else { continue };
        for (weights, rows, column) in [(&ds, &packed.q, dkeys.k), (&p, &packed.d_o, dkeys.v)] {
            let product = gemm::tn(weights, rows).grouped(groups.clone()).named(BACKWARD);
            let to = from_column(dkeys.rows, column);
            if add {
                product.add_to(gpu, to)
            } else {
                product.to(gpu, to)
            }
        }
    }
}

struct Packed {
    q: Tensor,
    d_o: Tensor,
}

/// Probabilities and the gradient of the scores, with the packed rows they came from.
#[allow(clippy::too_many_arguments)]
fn recompute(
    gpu: &Gpu,
    a: &Attention,
    part: &Part,
    q: Columns<'_>,
    keys: Keys<'_>,
    second: Keys<'_>,
    lse: &Tensor,
    d_o: &Tensor,
    delta: &Tensor,
) -> (Tensor, Tensor, Packed) {
    let dim = a.heads.dim;
    let packed = Packed {
        q: gpu.alloc(q.rows.dtype(), [part.rows, dim]),
        d_o: gpu.alloc(d_o.dtype(), [part.rows, dim]),
    };
    pack(gpu, part, a, q, &packed.q);
    pack(gpu, part, a, Columns::all(d_o), &packed.d_o);
    let (scores, dscores) = (gpu.f32([part.rows, part.width]), gpu.f32([part.rows, part.width]));
    products_with_keys(gpu, part, &packed.q, keys, second, &scores, Side::Scores, BACKWARD);
    products_with_keys(gpu, part, &packed.d_o, keys, second, &dscores, Side::Values, BACKWARD);
    let (l, d) = (gpu.f32([part.rows]), gpu.f32([part.rows]));
    gather(gpu, part, a, lse, &l);
    gather(gpu, part, a, delta, &d);
    softmax::recompute(gpu, &scores, &part.lens, &l, &d, 1.0 / (dim as f32).sqrt(), &dscores);
    (scores, dscores, packed)
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Scores,
    Values,
}

/// `out = packed · kᵀ` (or `vᵀ`) for both buffers of keys.
#[allow(clippy::too_many_arguments)]
fn products_with_keys(
    gpu: &Gpu,
    part: &Part,
    packed: &Tensor,
    keys: Keys<'_>,
    second: Keys<'_>,
    out: &Tensor,
    side: Side,
    name: &'static str,
) {
    for (groups, keys) in part.scores.iter().zip([keys, second]) {
        let Some(groups) = groups else { continue };
        let column = if side == Side::Scores { keys.k } else { keys.v };
        gemm::nt(packed, from_column(keys.rows, column))
            .grouped(groups.clone())
            .named(name)
            .to(gpu, out);
    }
}

/// `out = weights · v` (or `k`), summed over both buffers of keys.
fn products_with_values<'a>(
    gpu: &Gpu,
    part: &Part,
    weights: &Tensor,
    keys: [Keys<'a>; 2],
    column: impl Fn(Keys<'a>) -> usize,
    out: &Tensor,
    name: &'static str,
) {
    let mut written = false;
    for (groups, keys) in part.values.iter().zip(keys) {
        let Some(groups) = groups else { continue };
        let product = gemm::nn(weights, from_column(keys.rows, column(keys)))
            .grouped(groups.clone())
            .named(name);
        // A block without keys in the first buffer would keep what was there: clear it before.
        if written {
            product.add_to(gpu, out);
        } else {
            if groups.table.dim(0) < part.blocks() {
                fill::zero(gpu, out);
                product.add_to(gpu, out);
            } else {
                product.to(gpu, out);
            }
            written = true;
        }
    }
}
