//! Heads in registers: loading, storing, showing them to the other units of a workgroup, and what a pair of them gives.

use cubecl::prelude::*;

use super::Form;
use super::parts::{Run, pair_gradient};
use crate::gpu::launch::View;
use crate::ops::pair::{Pair, load2, store2};

/// Loads one head (`dim` elements from `at`) into `out[first..]`.
#[cube]
pub(super) fn load_head<X: Numeric>(
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

/// Loads k, then v, of key `i` of a block.
#[cube]
pub(super) fn load_key<K: Numeric>(
    keys: &View<K>,
    of: &Run,
    i: usize,
    out: &mut Array<f32>,
    #[comptime] dim: usize,
    #[comptime] wide: bool,
) {
    load_head::<K>(keys, of.k.at(i), out, 1.0, 0usize, dim, wide);
    load_head::<K>(keys, of.v.at(i), out, 1.0, dim, dim, wide);
}

/// Stores one head, optionally adding.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn store_head<X: Numeric>(
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
pub(super) fn publish(
    values: &Array<f32>,
    shared: &mut SharedMemory<f32>,
    #[comptime] len: usize,
    #[comptime] form: Form,
) {
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
pub(super) fn peek_plane(values: &Array<f32>, out: &mut Array<f32>, #[comptime] owner: usize, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        out[i] = plane_broadcast(values[i], comptime!(owner as u32));
    }
}

/// Copies what unit `owner` published into `out`.
#[cube]
pub(super) fn peek_shared(shared: &SharedMemory<f32>, out: &mut Array<f32>, owner: usize, #[comptime] len: usize) {
    #[unroll]
    for i in 0..len {
        out[i] = shared[owner * len + i];
    }
}

/// Probability of a pair, and the gradient at its score: a query comes as q · scale, do, lse and delta, a key as k and v.
#[cube]
pub(super) fn pair_of(query: &Array<f32>, key: &Array<f32>, inside: bool, #[comptime] dim: usize) -> (f32, f32) {
    let mut score = 0.0f32;
    let mut d_p = 0.0f32;
    #[unroll]
    for i in 0..dim {
        score = fma(query[i], key[i], score);
        d_p = fma(query[comptime!(dim + i)], key[comptime!(dim + i)], d_p);
    }
    pair_gradient(
        score,
        d_p,
        query[comptime!(2 * dim)],
        query[comptime!(2 * dim + 1)],
        inside,
    )
}
