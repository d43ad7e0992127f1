//! Elementwise activations: tanh-GELU (SigLIP's MLP), swish (time MLPs), ReLU.
//!
//! `y = f(x)`, `dx = dy f'(x)` from the value *before* the activation. Forward is usually fused into the product in
//! front ([`gemm`](super::gemm)); backward can leave y again, for the weight gradient of the product behind.
//!
//! Cost: memory bound.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::math::{gelu, gelu_slope, relu, swish, swish_slope};
use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// The function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// tanh form of GELU.
    Gelu,
    /// `x · sigmoid(x)`.
    Swish,
    /// `max(x, 0)`.
    Relu,
}

/// `y = f(x)`
pub fn forward(gpu: &Gpu, f: Activation, x: &Tensor, y: &Tensor) {
    assert_eq!(x.len(), y.len());
    let wide = is_wide(gpu, x.len(), &[x, y]);
    launch!(
        gpu,
        Cost::moving("activation", x.bytes() + y.bytes()),
        activation_forward,
        gpu.cubes(x.len().div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [x, y],
        (x.len(), f, wide, [storage(x, wide), storage(y, wide)]),
    );
}

/// `dx = dy f'(x)`; with `y`, also the forward result again. `dx` may be `dy`.
pub fn backward(gpu: &Gpu, f: Activation, x: &Tensor, dy: &Tensor, dx: &Tensor, y: Option<&Tensor>) {
    assert!(x.len() == dy.len() && dx.len() == x.len());
    let again = y.is_some();
    let y = y.unwrap_or(dx);
    let wide = is_wide(gpu, x.len(), &[x, dy, dx, y]);
    let types = [x, dy, dx, y].map(|t| storage(t, wide));
    launch!(
        gpu,
        Cost::moving(
            "activation_backward",
            x.bytes() + dy.bytes() + dx.bytes() + if again { y.bytes() } else { 0 }
        ),
        activation_backward,
        gpu.cubes(x.len().div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [x, dy, dx, y],
        (x.len(), f, again, wide, types),
    );
}

#[cube]
fn value(x: f32, #[comptime] f: Activation) -> f32 {
    match f {
        Activation::Gelu => gelu(x),
        Activation::Swish => swish(x),
        Activation::Relu => relu(x),
    }
}

#[cube]
fn slope(x: f32, #[comptime] f: Activation) -> f32 {
    match f {
        Activation::Gelu => gelu_slope(x),
        Activation::Swish => swish_slope(x),
        Activation::Relu => select(x > 0.0, 1.0, 0.0),
    }
}

#[cube(launch_unchecked)]
fn activation_forward<X: Numeric, Y: Numeric>(
    x: &View<X>,
    y: &mut View<Y>,
    n: usize,
    #[comptime] f: Activation,
    #[comptime] wide: bool,
    #[define(X, Y)] _types: [StorageType; 2],
) {
    let i = 2 * ABSOLUTE_POS;
    if i < n {
        let more = i + 1 < n;
        let v = load2::<X>(x, x.start() + i, more, wide);
        store2::<Y>(
            y,
            y.start() + i,
            more,
            Pair {
                a: value(v.a, f),
                b: value(v.b, f),
            },
            wide,
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn activation_backward<X: Numeric, D: Numeric, DX: Numeric, Y: Numeric>(
    x: &View<X>,
    dy: &View<D>,
    dx: &mut View<DX>,
    y: &mut View<Y>,
    n: usize,
    #[comptime] f: Activation,
    #[comptime] again: bool,
    #[comptime] wide: bool,
    #[define(X, D, DX, Y)] _types: [StorageType; 4],
) {
    let i = 2 * ABSOLUTE_POS;
    if i < n {
        let more = i + 1 < n;
        let v = load2::<X>(x, x.start() + i, more, wide);
        let d = load2::<D>(dy, dy.start() + i, more, wide);
        store2::<DX>(
            dx,
            dx.start() + i,
            more,
            Pair {
                a: d.a * slope(v.a, f),
                b: d.b * slope(v.b, f),
            },
            wide,
        );
        if comptime!(again) {
            store2::<Y>(
                y,
                y.start() + i,
                more,
                Pair {
                    a: value(v.a, f),
                    b: value(v.b, f),
                },
                wide,
            );
        }
    }
}
