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

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::adamw::{Control, Flat, Form, Update, adam_moments, adam_step, moved, weights};
use super::lanes::{Lanes, load, store};
use super::lion::{lion_direction, lion_moment};
use super::rows::{RowLayout, row_of_unit, team_max};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Values of a block.
pub const BLOCK: usize = 256;
/// Words of a block: four codes each, and the scale.
pub const WORDS: usize = BLOCK / CODES + 1;
/// Codes of a word.
const CODES: usize = 4;
/// Values this close to the largest are the largest: another pass over the same numbers may round them differently.
const LARGEST: f32 = 1.0 - 1.0 / (1u32 << 20) as f32;

/// How moments are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Float32,
    /// In blocks of 8 bits.
    Blockwise8,
}

/// Which moment a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// Signed.
    First,
    /// Never negative.
    Second,
}

impl Moment {
    /// Steps from zero to the largest magnitude; a power of two, so that `u` is exact.
    const fn steps(self) -> u32 {
        match self {
            Moment::First => 128,
            Moment::Second => 256,
        }
    }

    /// `u⁴` or `u⁸` of `k` steps.
    fn magnitude(self, k: u32) -> f32 {
        let u = k as f32 / self.steps() as f32;
        let u4 = (u * u) * (u * u);
        match self {
            Moment::First => u4,
            Moment::Second => u4 * u4,
        }
    }

    /// The value of a code in a block with the largest magnitude `scale`.
    pub fn decode(self, code: u8, scale: f32) -> f32 {
        let (sign, c) = match self {
            Moment::First if code >= 128 => (-1.0, u32::from(code) - 128),
            _ => (1.0, u32::from(code)),
        };
        sign * scale * self.magnitude(c + u32::from(c > 0))
    }

    /// The code nearest to a value.
    pub fn encode(self, x: f32, scale: f32) -> u8 {
        let size = x.abs();
        if scale <= 0.0 || size == 0.0 {
            return 0;
        }
        let last = (self.steps() - 1) as u8;
        let of = |c: u8| scale * self.magnitude(u32::from(c) + u32::from(c > 0));
        // The first code that is not below.
        let above = (0..last).find(|&c| of(c) >= size).unwrap_or(last);
        let below = above.saturating_sub(1);
        let nearer = if of(above) - size <= size - of(below) {
            above
        } else {
            below
        };
        match self {
            Moment::First if x < 0.0 && nearer > 0 => nearer + 128,
            Moment::Second => nearer.max(1),
            Moment::First => nearer,
        }
    }

    /// The words of a block of values.
    pub fn encode_block(self, values: &[f32; BLOCK]) -> [u32; WORDS] {
        let scale = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let mut words = [0; WORDS];
        for (word, four) in words.iter_mut().zip(values.as_chunks::<CODES>().0) {
            *word = u32::from_le_bytes(four.map(|x| self.encode(x, scale)));
        }
        words[WORDS - 1] = scale.to_bits();
        words
    }

    /// The values of the words of a block.
    pub fn decode_block(self, words: &[u32; WORDS]) -> [f32; BLOCK] {
        let scale = f32::from_bits(words[WORDS - 1]);
        let mut values = [0.0; BLOCK];
        for (four, word) in values.as_chunks_mut::<CODES>().0.iter_mut().zip(words) {
            *four = word.to_le_bytes().map(|code| self.decode(code, scale));
        }
        values
    }
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

/// The rule of an optimizer, with its numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub rule: Rule8,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub decay: f32,
    /// `1 / (1 - βᵗ)` of both moments.
    pub unbias: [f32; 2],
}

/// Whose rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Rule8 {
    AdamW,
    Lion,
}

/// One update of `flat`, whose moments are blocks.
pub(super) fn step(gpu: &Gpu, numbers: Numbers, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
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
    let op = match numbers.rule {
        Rule8::AdamW => "adamw",
        Rule8::Lion => "lion",
    };
    launch!(
        gpu,
        Cost::moving(op, plan.bytes + moments),
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
            update.lr,
            numbers.beta1,
            numbers.beta2,
            numbers.eps,
            numbers.decay,
            numbers.unbias[0],
            numbers.unbias[1],
            update.rate,
            seed(update.t),
            numbers.rule,
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

/// Bits that depend on every bit of `x`.
#[cube]
fn mixed(x: u32) -> u32 {
    let a = (x ^ (x >> 16)) * 0x7feb_352du32;
    let b = (a ^ (a >> 15)) * 0x846c_a68bu32;
    b ^ (b >> 16)
}

/// A number in [0, 1) for element `i` of the range: of the second moment where `stream` is 1.
#[cube]
fn chance(i: usize, seed: u32, #[comptime] stream: u32) -> f32 {
    let bits = mixed(mixed(i as u32 + comptime!(stream * 0x85eb_ca6b)) + seed);
    f32::cast_from(bits >> 8) * comptime!(1.0 / (1u32 << 24) as f32)
}

/// `u⁴` or `u⁸` of `k` steps.
#[cube]
fn magnitude(k: u32, #[comptime] moment: Moment) -> f32 {
    let u = f32::cast_from(k) * comptime!(1.0 / moment.steps() as f32);
    let u4 = (u * u) * (u * u);
    if comptime!(moment == Moment::Second) {
        u4 * u4
    } else {
        u4
    }
}

/// The value of code `place` of a word.
#[cube]
fn decoded(word: u32, place: usize, scale: f32, #[comptime] moment: Moment) -> f32 {
    let code = (word >> (8 * place as u32)) & 0xff;
    if comptime!(moment == Moment::First) {
        let c = code & 0x7f;
        let size = scale * magnitude(select(c > 0, c + 1, 0), moment);
        select(code > 0x7f, -size, size)
    } else {
        scale * magnitude(select(code > 0, code + 1, 0), moment)
    }
}

/// The code of a value: that of one of its neighbours, the upper one if `odds` are below the way to it.
#[cube]
fn encoded(x: f32, scale: f32, odds: f32, #[comptime] moment: Moment) -> u32 {
    let size = f32::abs(x);
    let mut code = 0u32;
    if scale > 0.0 {
        let steps = comptime!(moment.steps());
        let mut root = f32::sqrt(f32::sqrt(size / scale));
        if comptime!(moment == Moment::Second) {
            root = f32::sqrt(root);
        }
        let mut k = min(u32::cast_from(root * comptime!(steps as f32)), steps);
        // Quotients and roots are a little off on some devices; products are not.
        k = select(scale * magnitude(k, moment) > size, max(k, 1) - 1, k);
        let next = min(k + 1, steps);
        k = select(scale * magnitude(next, moment) <= size, next, k);
        // There is no code of one step: zero is below two.
        let below = select(k < 2, 0, k);
        let above = min(max(k + 1, 2), steps);
        let (low, high) = (scale * magnitude(below, moment), scale * magnitude(above, moment));
        let up = below < steps && odds * (high - low) < size - low;
        k = select(up, above, below);
        k = select(size >= scale * LARGEST, steps, k);
        if comptime!(moment == Moment::Second) {
            k = select(size > 0.0, max(k, 2), k);
        }
        code = select(k > 0, k - 1, 0);
        if comptime!(moment == Moment::First) {
            code = select(x < 0.0 && code > 0, code + 128, code);
        }
    }
    code
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
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    unbias1: f32,
    unbias2: f32,
    rate: f32,
    seed: u32,
    #[comptime] rule: Rule8,
    #[comptime] form: Form,
    #[comptime] layout: RowLayout,
    #[comptime] lanes: Lanes,
    #[define(P, L, S, C)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (block, unit) = row_of_unit(layout);
    let two = comptime!(rule == Rule8::AdamW);
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
                    if two {
                        let vv = decoded(codes_v, place, scale_v, Moment::Second);
                        let (one, other) = adam_moments(mm, vv, c, beta1, beta2);
                        pp[k] = adam_step(pp[k], one, other, lr, eps, decay, unbias1, unbias2);
                        top_m = max(top_m, f32::abs(one));
                        top_v = max(top_v, other);
                    } else {
                        pp[k] = pp[k] - lr * (lion_direction(mm, c, beta1) + decay * pp[k]);
                        top_m = max(top_m, f32::abs(lion_moment(mm, c, beta2)));
                    }
                }
                moved::<P, L, S, C, W, N>(p, low, average, compute, i, pp, rate, form, lanes);
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
                        let odds = chance(i + k, seed, 0u32);
                        if two {
                            let vv = decoded(codes_v, place, scale_v, Moment::Second);
                            let (one, other) = adam_moments(mm, vv, c, beta1, beta2);
                            new_m |= encoded(one, top_m, odds, Moment::First) << shift;
                            let odds = chance(i + k, seed, 1u32);
                            new_v |= encoded(other, top_second, odds, Moment::Second) << shift;
                        } else {
                            let one = lion_moment(mm, c, beta2);
                            new_m |= encoded(one, top_m, odds, Moment::First) << shift;
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

#[cfg(test)]
mod tests;
