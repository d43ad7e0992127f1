//! Moments in 8 bits, a block at a time: a code of each value, and the block's largest magnitude.
//!
//! ```text
//! block   256 neighbouring values: 64 words of four codes each, and one word with s = max |x| (f32)
//! first   code = sign · 128 + c      m = ± s u⁴      u = (c + 1) / 128, or 0 where c = 0      c in 0..=127
//! second  code = c                   v =   s u⁸      u = (c + 1) / 256, or 0 where c = 0      c in 0..=255
//! ```
//! 260 bytes for 256 values, 2.03 a weight for both moments. Steps are fine where values are large (1 % of the largest;
//! 4 % of typical ones) and never end: m reaches down to 6e-8 of the largest, v to 1.4e-17, so that `m / sqrt(v)` has no
//! holes. A second moment that is not zero never becomes zero.
//!
//! An update decodes, moves as the optimizer says, and encodes again, all in one pass; what it moves weights by is not
//! rounded. Encoding rounds up or down at random, with the odds that keep the mean: rounding to the nearest would hold a
//! moment in place as soon as its decay is less than half a step. The odds are a hash of element and update, so the same
//! run has the same bits. Encoding what was decoded gives the same codes, so checkpoints can hold plain f32.
//!
//! Cost: memory bound: what the optimizer moves, with 1.016 bytes a moment in place of 4.
//! Source of the idea: Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization"; codes and rounding are our
//! own. Hash: C. Wellons' lowbias32.

mod codes;
#[cfg(test)]
mod tests;
pub use codes::{BLOCK, Moment, WORDS};
use codes::{CODES, chance, decoded, encoded};
use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::clip::Control;
use super::lanes::{Lanes, load, store};
use super::optimizers::Kind;
use super::rows::{RowLayout, row_of_unit, team_max};
use super::update::{Flat, Form, Numbers, moved, new_moments, new_weight, weights};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// How moments are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Float32,
    /// In blocks of 8 bits.
    Blockwise8,
}

/// Memory for `n` moments, a multiple of [`BLOCK`].
pub fn words(n: usize) -> usize {
    assert!(n.is_multiple_of(BLOCK), "{n} moments are not whole blocks");
    n / BLOCK * WORDS
}

/// Are these moments in 8 bits? Whole ones are f32.
pub fn holds(moment: &Tensor) -> bool {
    moment.dtype() == DType::U32
}

/// One update of `flat`, whose moments are blocks.
pub(super) fn step(gpu: &Gpu, kind: Kind, numbers: Numbers, t: u64, control: &Control, group: usize, flat: Flat<'_>) {
    assert!(flat.v.is_some() || !kind.second_moment(), "{kind:?} has two moments");
    let n = flat.p.len();
    let v = flat.v.unwrap_or(flat.m);
    assert!(
        flat.m.len() == words(n) && v.len() == words(n),
        "{n} weights have {} and {} words of moments",
        flat.m.len(),
        v.len()
    );
    let plan = flat.plan(gpu);
    let lanes = plan.lanes.at_most(CODES);
    let layout = RowLayout::of_lanes(gpu, BLOCK, lanes);
    let blocks = n / BLOCK;
    let moments = 2 * (flat.m.bytes() + flat.v.map_or(0, |v| v.bytes()));
    launch!(
        gpu,
        Cost::moving(kind.name(), plan.bytes + moments),
        blockwise_kernel,
        layout.count(gpu, blocks),
        layout.dim(),
        [
            flat.p,
            plan.low,
            flat.g,
            flat.m,
            v,
            plan.average,
            plan.compute,
            &control.values
        ],
        (
            blocks,
            group,
            control.groups,
            numbers.argument(),
            seed(t),
            kind,
            plan.form,
            layout,
            lanes,
            plan.types,
            lanes.sizes(),
        ),
    );
}

/// What the odds of an update start from.
fn seed(t: u64) -> u32 {
    (t as u32).wrapping_mul(0x9e37_79b9) ^ (t >> 32) as u32
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn blockwise_kernel<P: Numeric, L: Numeric, S: Numeric, C: Numeric, W: Size, N: Size>(
    p: &mut View<Vector<P, W>>,
    low: &mut View<Vector<L, W>>,
    g: &mut View<Vector<S, W>>,
    m: &mut View<u32>,
    v: &mut View<u32>,
    average: &mut View<Vector<S, W>>,
    compute: &mut View<Vector<C, W>>,
    control: &View<f32>,
    blocks: usize,
    group: usize,
    groups: usize,
    numbers: Numbers,
    seed: u32,
    #[comptime] kind: Kind,
    #[comptime] form: Form,
    #[comptime] layout: RowLayout,
    #[comptime] lanes: Lanes,
    #[define(P, L, S, C)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (block, unit) = row_of_unit(layout);
    let two = comptime!(kind.second_moment());
    let per_word = comptime!(CODES / lanes.count);
    let apply = control.get(groups) == 1.0;
    let factor = control.get(group);
    let live = block < blocks;
    let (first, words) = (block * BLOCK, block * WORDS);
    let mut scale_m = 0.0f32;
    let mut scale_v = 0.0f32;
    let mut top_m = 0.0f32;
    let mut top_v = 0.0f32;
    // Weights move; of the new moments only the largest are kept, because codes need them.
    if live && apply {
        scale_m = f32::reinterpret(m.get(words + comptime!(WORDS - 1)));
        if two {
            scale_v = f32::reinterpret(v.get(words + comptime!(WORDS - 1)));
        }
        let mut word = unit;
        while word < comptime!(BLOCK / CODES) {
            let codes_m = m.get(words + word);
            let mut codes_v = 0u32;
            if two {
                codes_v = v.get(words + word);
            }
            #[unroll]
            for part in 0..per_word {
                let i = first + word * CODES + comptime!(part * lanes.count);
                let gg = load::<S, W, N>(g, g.start() + i, lanes);
                let mut pp = weights::<P, L, W, N>(p, low, i, form, lanes);
                #[unroll]
                for k in 0..lanes.count {
                    let place = comptime!(part * lanes.count + k);
                    let c = gg[k] * factor;
                    let mm = decoded(codes_m, place, scale_m, Moment::First);
                    let mut vv = 0.0f32;
                    if two {
                        vv = decoded(codes_v, place, scale_v, Moment::Second);
                    }
                    let (one, other) = new_moments(mm, vv, c, &numbers, kind);
                    pp[k] = new_weight(pp[k], mm, c, one, other, &numbers, kind);
                    top_m = max(top_m, f32::abs(one));
                    if two {
                        top_v = max(top_v, other);
                    }
                }
                moved::<P, L, S, C, W, N>(p, low, average, compute, i, pp, numbers.rate, form, lanes);
            }
            word += comptime!(layout.team);
        }
    }
    let top_m = team_max(top_m, layout);
    let mut top_second = 0.0f32;
    if two {
        top_second = team_max(top_v, layout);
    }
    if live {
        let mut word = unit;
        while word < comptime!(BLOCK / CODES) {
            if apply {
                let codes_m = m.get(words + word);
                let mut codes_v = 0u32;
                if two {
                    codes_v = v.get(words + word);
                }
                let mut new_m = 0u32;
                let mut new_v = 0u32;
                #[unroll]
                for part in 0..per_word {
                    let i = first + word * CODES + comptime!(part * lanes.count);
                    let gg = load::<S, W, N>(g, g.start() + i, lanes);
                    #[unroll]
                    for k in 0..lanes.count {
                        let place = comptime!(part * lanes.count + k);
                        let shift = comptime!(8 * (part * lanes.count + k) as u32);
                        let c = gg[k] * factor;
                        let mm = decoded(codes_m, place, scale_m, Moment::First);
                        let mut vv = 0.0f32;
                        if two {
                            vv = decoded(codes_v, place, scale_v, Moment::Second);
                        }
                        let (one, other) = new_moments(mm, vv, c, &numbers, kind);
                        let odds = chance(i + k, seed, 0u32);
                        new_m |= encoded(one, top_m, odds, Moment::First) << shift;
                        if two {
                            let odds = chance(i + k, seed, 1u32);
                            new_v |= encoded(other, top_second, odds, Moment::Second) << shift;
                        }
                    }
                }
                m.set(words + word, new_m);
                if two {
                    v.set(words + word, new_v);
                }
            }
            #[unroll]
            for part in 0..per_word {
                let i = first + word * CODES + comptime!(part * lanes.count);
                store::<S, W, N>(g, g.start() + i, Vector::zeroed(), lanes);
            }
            word += comptime!(layout.team);
        }
        if apply && unit == 0 {
            m.set(words + comptime!(WORDS - 1), u32::reinterpret(top_m));
            if two {
                v.set(words + comptime!(WORDS - 1), u32::reinterpret(top_second));
            }
        }
    }
}
