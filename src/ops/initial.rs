//! Initial weights, drawn on the device: a pure function of key and position, the same bits everywhere.
//!
//! ```text
//! 64 random bits of element i:  sign (1) | u (63), u in [0, 1)
//! normal    x = ± σ · z(u)      z(u) = Q⁻¹(u / 2), the upper tail's quantile
//! uniform   x = ± bound · u     to 32 bits
//! ```
//! `z` is read from a table: 32 octaves of `u`, 64 segments each, a parabola through start, middle and end of every
//! segment (off by less than 2·10⁻⁷). Below u = 2⁻³² it stays where it is, at 6.3 σ.
//!
//! Everything is 32-bit integer arithmetic on fixed-point numbers, the rounding to f32 included. So host, CUDA and WGSL
//! agree bit for bit by construction: no rounding mode, contraction or flushing of a floating-point unit takes part. The
//! host alone makes the table, from `libm`.
//!
//! Sources: Threefry ([`crate::rng`]); quantiles by Newton's method from Abramowitz & Stegun 26.2.23.
//!
//! Cost: about 200 integer operations an element, and its bytes once; halves pass through f32.

use std::sync::LazyLock;

use cubecl::prelude::*;

use super::fill;
use super::split::Values;
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};
use crate::rng::Key;

/// Units of a workgroup.
const UNITS: usize = 64;
/// Elements of a launch where the memory holds f32, and where they pass through f32 on the way into halves.
const WHOLE: usize = 1 << 28;
const HALVES: usize = 1 << 22;

const OCTAVES: usize = 32;
/// Segments of an octave, as a power of two.
const SEGMENT_BITS: u32 = 6;
const SEGMENTS: usize = 1 << SEGMENT_BITS;
/// Fraction bits of quantiles in the table.
const QUANTILE_BITS: u32 = 29;
/// The lowest bit of a fraction of an f32 that is not hidden is worth 2⁻²³.
const HIDDEN: u32 = 1 << 23;

/// How the elements of a tensor are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    Constant(f32),
    /// Around zero, with this standard deviation.
    Normal(f32),
    /// Between ± this bound.
    Uniform(f32),
}

/// The table of quantiles on a device.
pub struct Quantiles(Tensor);

impl Quantiles {
    /// Uploads it.
    pub fn new(gpu: &Gpu) -> Quantiles {
        Quantiles(gpu.upload_u32(&TABLE, [TABLE.len()]))
    }
}

impl Law {
    /// Element `i` of the tensor that `key` stands for.
    pub fn at(self, key: Key, i: u64) -> f32 {
        let (scale, normal) = match self {
            Law::Constant(value) => return value,
            Law::Normal(scale) => (scale, true),
            Law::Uniform(scale) => (scale, false),
        };
        let [a, b] = key.bits(i);
        let upper = (a << 1) | (b >> 31);
        let size = if normal { quantile(upper, b & !SIGN) } else { upper };
        let (mantissa, exponent) = parts(scale, normal);
        f32::from_bits(assembled(high(size, mantissa), exponent) | (a & SIGN))
    }

    /// Sets `values` to elements `first..` of the tensor that `key` stands for.
    pub fn fill(self, gpu: &Gpu, quantiles: &Quantiles, key: Key, first: u64, values: &Values) {
        let (scale, normal) = match self {
            Law::Constant(value) => return constant(gpu, value, values),
            Law::Normal(scale) => (scale, true),
            Law::Uniform(scale) => (scale, false),
        };
        // Halves, or high halves alone, are made of f32.
        let whole = values.is_whole();
        let most = if whole { WHOLE } else { HALVES };
        let most = most.min((gpu.caps().max_binding_bytes / 8) as usize).max(1);
        for start in (0..values.len()).step_by(most) {
            let part = values.slice(start, most.min(values.len() - start));
            let x = match whole {
                true => part.high.clone(),
                false => gpu.f32([part.len()]),
            };
            let at = first + start as u64;
            let ([key_0, key_1], (mantissa, exponent)) = (key.words(), parts(scale, normal));
            launch!(
                gpu,
                Cost::moving("initial", x.bytes()),
                initial_kernel,
                gpu.cubes(x.len(), UNITS),
                CubeDim::new_1d(UNITS as u32),
                [&x, &quantiles.0],
                (
                    x.len(),
                    (at >> 32) as u32,
                    at as u32,
                    key_0,
                    key_1,
                    mantissa,
                    exponent,
                    normal
                ),
            );
            if !whole {
                part.copy_from(gpu, &x);
            }
        }
    }
}

fn constant(gpu: &Gpu, value: f32, values: &Values) {
    // Halves of a number that bf16 holds are itself and zero.
    debug_assert!(values.low.is_none() || value.to_bits() & 0xffff == 0);
    fill::set(gpu, &values.high, value);
    if let Some(low) = &values.low {
        fill::zero(gpu, low);
    }
}

const SIGN: u32 = 1 << 31;

/// Fraction of a positive `scale` with its leading one at the top, and the exponent field of the f32 that a product with
/// this fraction becomes if its leading one is at the top.
///
/// # Panics
/// If `scale` is not positive, or so small or large that results would not be normal numbers.
fn parts(scale: f32, normal: bool) -> (u32, u32) {
    assert!((1e-20..1e20).contains(&scale), "{scale} is no scale of weights");
    let bits = scale.to_bits();
    // The upper half of (size · 2³²⁻ᵇ) (fraction · 2³¹) is worth 2^(b - 1) less than the product, b being the bits before
    // the point of `size`.
    let below = if normal { QUANTILE_BITS - 1 } else { 31 };
    (((bits | HIDDEN) << 8), (bits >> 23) + 31 - below)
}

/// Upper half of a product.
fn high(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

/// The f32 with the value of `whole`, rounded to nearest, ties up; `exponent` is the field for a whole with the top bit set.
fn assembled(whole: u32, exponent: u32) -> u32 {
    if whole == 0 {
        return 0;
    }
    let zeros = whole.leading_zeros();
    let top = whole << zeros;
    // A carry out of the fraction raises the exponent, which is right.
    ((exponent - zeros) << 23) + (top >> 8) + ((top >> 7) & 1) - HIDDEN
}

/// The quantile of u = `upper`.`lower` (32 and 31 bits), in units of 2^-[`QUANTILE_BITS`].
fn quantile(upper: u32, lower: u32) -> u32 {
    let upper = upper.max(1);
    let octave = upper.leading_zeros();
    let bits = (upper << octave) | (lower >> (31 - octave));
    let segment = ((octave << SEGMENT_BITS) | ((bits >> 25) & (SEGMENTS as u32 - 1))) as usize;
    let t = bits << (SEGMENT_BITS + 1);
    let [start, slope, bend] = [0, 1, 2].map(|k| TABLE[3 * segment + k]);
    start - high(t, slope - high(t, bend))
}

/// Of every segment: `z` at its start, and the slope and bend of `start - t (slope - t bend)`, t in [0, 1).
static TABLE: LazyLock<Vec<u32>> = LazyLock::new(|| {
    let fixed = |x: f64| {
        // Never zero, so that truncation in the last segment stays on this side of it.
        let scaled = upper_quantile(x) * f64::from(1u32 << QUANTILE_BITS);
        libm::round(scaled).max(4.0) as u32
    };
    let mut table = Vec::with_capacity(3 * OCTAVES * SEGMENTS);
    for octave in 0..OCTAVES {
        let low = libm::ldexp(1.0, -(octave as i32) - 1);
        for segment in 0..SEGMENTS {
            let u = |t: f64| low * (1.0 + (segment as f64 + t) / SEGMENTS as f64);
            let [start, middle, end] = [0.0, 0.5, 1.0].map(|t| fixed(u(t) / 2.0));
            let bend = (2 * (u64::from(start) + u64::from(end))).saturating_sub(4 * u64::from(middle)) as u32;
            table.extend([start, start - end + bend, bend]);
        }
    }
    table
});

/// Where a standard normal is exceeded with probability `p`, for p up to one half.
fn upper_quantile(p: f64) -> f64 {
    if p >= 0.5 {
        return 0.0;
    }
    let t = libm::sqrt(-2.0 * libm::log(p));
    let mut z = t - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    for _ in 0..4 {
        let tail = 0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2);
        let density = libm::exp(-0.5 * z * z) / libm::sqrt(std::f64::consts::TAU);
        z += (tail - p) / density;
    }
    z.max(0.0)
}

/// Upper half of a product, by halves: not every device has wide integers.
#[cube]
fn high_word(a: u32, b: u32) -> u32 {
    let (a_low, a_high) = (a & 0xffff, a >> 16u32);
    let (b_low, b_high) = (b & 0xffff, b >> 16u32);
    let first = a_high * b_low + ((a_low * b_low) >> 16u32);
    let second = a_low * b_high + (first & 0xffff);
    a_high * b_high + (first >> 16u32) + (second >> 16u32)
}

/// Zeros before the first one; 31 if there is none.
#[cube]
fn zeros(x: u32) -> u32 {
    let mut rest = x;
    let mut count = 0u32;
    #[unroll]
    for i in 0..5u32 {
        let step = comptime!(16u32 >> i);
        let empty = (rest >> comptime!(32u32 - step)) == 0;
        count = select(empty, count + step, count);
        rest = select(empty, rest << step, rest);
    }
    count
}

/// Word `which` of the extended key.
#[cube]
fn key_word(key_0: u32, key_1: u32, #[comptime] which: u32) -> u32 {
    let mut word = key_0 ^ key_1 ^ 0x1BD1_1BDAu32;
    if comptime!(which == 0) {
        word = key_0;
    }
    if comptime!(which == 1) {
        word = key_1;
    }
    word
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn initial_kernel(
    x: &mut View<f32>,
    table: &View<u32>,
    n: usize,
    first_high: u32,
    first_low: u32,
    key_0: u32,
    key_1: u32,
    mantissa: u32,
    exponent: u32,
    #[comptime] normal: bool,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        // Threefry-2x32, 20 rounds, of the 64-bit position.
        let low = first_low + i as u32;
        let carry = select(low < first_low, 1u32, 0u32);
        let mut a = first_high + carry + key_0;
        let mut b = low + key_1;
        #[unroll]
        for block in 0..5u32 {
            #[unroll]
            for round in 0..4u32 {
                let left = comptime!(rotation(block, round));
                a += b;
                b = ((b << left) | (b >> comptime!(32u32 - left))) ^ a;
            }
            a += key_word(key_0, key_1, comptime!((block + 1) % 3));
            b += key_word(key_0, key_1, comptime!((block + 2) % 3)) + comptime!(block + 1);
        }

        let mut upper = (a << 1u32) | (b >> 31u32);
        if comptime!(normal) {
            upper = select(upper == 0, 1u32, upper);
            let octave = zeros(upper);
            let bits = (upper << octave) | ((b & 0x7fff_ffff) >> (31u32 - octave));
            let segment = (octave << comptime!(SEGMENT_BITS)) | ((bits >> 25u32) & comptime!(SEGMENTS as u32 - 1));
            let t = bits << comptime!(SEGMENT_BITS + 1);
            let at = segment as usize * 3;
            let slope = table.get(at + 1) - high_word(t, table.get(at + 2));
            upper = table.get(at) - high_word(t, slope);
        }
        let whole = high_word(upper, mantissa);
        let count = zeros(whole);
        let top = whole << count;
        let size = ((exponent - count) << 23u32) + (top >> 8u32) + ((top >> 7u32) & 1) - comptime!(HIDDEN);
        let sign = (a >> 31u32) << 31u32;
        x.set(i, f32::reinterpret(select(whole == 0, 0u32, size) | sign));
    }
}

/// How far a round of the cipher rotates.
fn rotation(block: u32, round: u32) -> u32 {
    const ROTATIONS: [[u32; 4]; 2] = [[13, 15, 26, 6], [17, 29, 16, 24]];
    ROTATIONS[block as usize % 2][round as usize]
}

#[cfg(test)]
mod tests;
