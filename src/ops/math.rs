//! Scalar functions used inside kernels, and their derivatives.
//!
//! NaN must reach the gradient norm, where it stops the update. `min`, `max` and `clamp` drop it on some devices and keep
//! it on others, and compilers may assume that comparisons never see one; so what may meet a NaN looks at the bits.

use cubecl::prelude::*;

/// `sqrt(2/π)`, of the tanh approximation of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
/// The cubic coefficient of the tanh approximation of GELU (Hendrycks & Gimpel 2016).
const GELU_CUBIC: f32 = 0.044_715;

/// GELU, tanh form: `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`.
#[cube]
pub fn gelu(x: f32) -> f32 {
    let inner = GELU_SCALE * (x + GELU_CUBIC * x * x * x);
    0.5 * x * (1.0 + tanh(inner))
}

/// Derivative of [`gelu`].
#[cube]
pub fn gelu_slope(x: f32) -> f32 {
    let t = tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x)
}

/// All exponent bits set, and some of the fraction.
#[cube]
pub fn is_nan(x: f32) -> bool {
    (u32::reinterpret(x) & 0x7fff_ffff) > 0x7f80_0000
}

/// The smaller one; NaN if either is.
#[cube]
pub fn lesser(a: f32, b: f32) -> f32 {
    select(is_nan(a) || is_nan(b), a + b, min(a, b))
}

/// `x` limited to ± `limit`; NaN stays.
#[cube]
pub fn limited(x: f32, limit: f32) -> f32 {
    select(is_nan(x), x, clamp(x, -limit, limit))
}

/// `max(x, 0)`; NaN stays.
#[cube]
pub fn relu(x: f32) -> f32 {
    select(is_nan(x), x, max(x, 0.0))
}

/// `1 / (1 + e^-x)`, without overflow on either side.
#[cube]
pub fn sigmoid(x: f32) -> f32 {
    0.5 * (tanh(0.5 * x) + 1.0)
}

/// `x · sigmoid(x)`.
#[cube]
pub fn swish(x: f32) -> f32 {
    x * sigmoid(x)
}

/// Derivative of [`swish`].
#[cube]
pub fn swish_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

/// `tanh` without the overflow of naive formulas and accurate to a few ulp near zero: drivers differ, this does not.
#[cube]
pub fn tanh(x: f32) -> f32 {
    // For |x| > 9, 1 - tanh|x| is below half an ulp of 1.
    let y = clamp(x, -9.0, 9.0);
    let e = f32::exp(2.0 * y);
    let big = (e - 1.0) / (e + 1.0);
    // Below 0.15 the subtraction above loses bits; the series x - x³/3 + 2x⁵/15 - 17x⁷/315 does not.
    let y2 = y * y;
    let small = y * (1.0 + y2 * (-0.333_333_34 + y2 * (0.133_333_34 - y2 * 0.053_968_254)));
    select(f32::abs(y) < 0.15, small, big)
}
