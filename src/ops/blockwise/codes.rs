//! Codes of 8 bits, and the blocks they are kept in: on the host, and in kernels, which round at random.

use cubecl::prelude::*;

/// Values of a block.
pub const BLOCK: usize = 256;
/// Words of a block: four codes each, and the scale.
pub const WORDS: usize = BLOCK / CODES + 1;
/// Codes of a word.
pub(super) const CODES: usize = 4;
/// Values this close to the largest are the largest: another pass over the same numbers may round them differently.
const LARGEST: f32 = 1.0 - 1.0 / (1u32 << 20) as f32;

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
    pub(super) const fn steps(self) -> u32 {
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

/// Bits that depend on every bit of `x`.
#[cube]
fn mixed(x: u32) -> u32 {
    let a = (x ^ (x >> 16)) * 0x7feb_352du32;
    let b = (a ^ (a >> 15)) * 0x846c_a68bu32;
    b ^ (b >> 16)
}

/// A number in [0, 1) for element `i` of the range: of the second moment where `stream` is 1.
#[cube]
pub(super) fn chance(i: usize, seed: u32, #[comptime] stream: u32) -> f32 {
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
pub(super) fn decoded(word: u32, place: usize, scale: f32, #[comptime] moment: Moment) -> f32 {
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
pub(super) fn encoded(x: f32, scale: f32, odds: f32, #[comptime] moment: Moment) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::normals;

    #[test]
    fn what_was_decoded_has_its_own_code() {
        for moment in [Moment::First, Moment::Second] {
            for scale in [1.0f32, 3.3e-9, 7.7e5, 0.1] {
                let values: Vec<f32> = (0..=255).map(|code| moment.decode(code, scale)).collect();
                let largest = values.iter().fold(0.0f32, |most, v| most.max(*v));
                assert_eq!(largest, scale, "{moment:?}");
                for code in 0..=255u8 {
                    // The second zero has the code of the first.
                    let canonical = if moment == Moment::First && code == 128 {
                        0
                    } else {
                        code
                    };
                    assert_eq!(
                        moment.encode(values[code as usize], scale),
                        canonical,
                        "{moment:?}, {scale}"
                    );
                }
                let positive = if moment == Moment::First { 128 } else { 256 };
                assert!(values[..positive].windows(2).all(|w| w[0] < w[1]), "{moment:?}");
            }
            let block: [f32; BLOCK] = std::array::from_fn(|i| {
                let x = normals(3, BLOCK)[i] * 1e-3;
                if moment == Moment::First { x } else { x * x }
            });
            let words = moment.encode_block(&block);
            assert_eq!(moment.encode_block(&moment.decode_block(&words)), words, "{moment:?}");
            // Half a step at most: 4 c⁻¹ or 8 c⁻¹ of the value.
            for (x, y) in block.iter().zip(moment.decode_block(&words)) {
                let scale = f32::from_bits(words[WORDS - 1]);
                let (power, steps) = if moment == Moment::First {
                    (4.0, 128.0)
                } else {
                    (8.0, 256.0)
                };
                let u = (x.abs() / scale).powf(1.0 / power).max(2.0 / steps);
                assert!(
                    (x - y).abs() <= 0.6 * power / (u * steps) * x.abs() + 1e-7 * scale,
                    "{moment:?}: {x} is {y}"
                );
            }
        }
        assert_eq!(Moment::Second.encode(1e-30, 1.0), 1, "what is not zero stays so");
    }
}
