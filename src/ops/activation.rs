//! Elementwise activations: tanh-GELU (SigLIP's MLP), swish (time MLPs), ReLU.
//!
//! `y = f(x)`, `dx = dy f'(x)` from the value *before* the activation. Forward is usually fused into the product in
//! front ([`gemm`](super::gemm)); backward can leave y again, for the weight gradient of the product behind.
//!
//! Cost: memory bound.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use super::math::{gelu, gelu_slope, relu, swish, swish_slope};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

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
    let lanes = Lanes::pick(gpu, &[x.len()], &[x, y]);
    let (count, dim) = lanes.grid(gpu, x.len());
    launch!(
        gpu,
        Cost::moving("activation", x.bytes() + y.bytes()),
        activation_forward,
        count,
        dim,
        [x, y],
        (x.len(), f, lanes, lanes.types([x, y]), lanes.sizes()),
    );
}

/// `dx = dy f'(x)`; with `y`, also the forward result again. `dx` may be `dy`.
pub fn backward(gpu: &Gpu, f: Activation, x: &Tensor, dy: &Tensor, dx: &Tensor, y: Option<&Tensor>) {
    assert!(x.len() == dy.len() && dx.len() == x.len());
    let again = y.is_some();
    let y = y.unwrap_or(dx);
    let tensors = [x, dy, dx, y];
    let lanes = Lanes::pick(gpu, &[x.len()], &tensors);
    let (count, dim) = lanes.grid(gpu, x.len());
    launch!(
        gpu,
        Cost::moving(
            "activation_backward",
            x.bytes() + dy.bytes() + dx.bytes() + if again { y.bytes() } else { 0 }
        ),
        activation_backward,
        count,
        dim,
        [x, dy, dx, y],
        (x.len(), f, again, lanes, lanes.types(tensors), lanes.sizes()),
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
fn activation_forward<X: Numeric, Y: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    y: &mut View<Vector<Y, W>>,
    n: usize,
    #[comptime] f: Activation,
    #[comptime] lanes: Lanes,
    #[define(X, Y)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS * lanes.count;
    if i < n {
        let v = load::<X, W, N>(x, x.start() + i, lanes);
        let mut out = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..lanes.count {
            out[k] = value(v[k], f);
        }
        store::<Y, W, N>(y, y.start() + i, out, lanes);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn activation_backward<X: Numeric, D: Numeric, DX: Numeric, Y: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    dy: &View<Vector<D, W>>,
    dx: &mut View<Vector<DX, W>>,
    y: &mut View<Vector<Y, W>>,
    n: usize,
    #[comptime] f: Activation,
    #[comptime] again: bool,
    #[comptime] lanes: Lanes,
    #[define(X, D, DX, Y)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS * lanes.count;
    if i < n {
        let v = load::<X, W, N>(x, x.start() + i, lanes);
        let mut d = load::<D, W, N>(dy, dy.start() + i, lanes);
        let mut out = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..lanes.count {
            d[k] *= slope(v[k], f);
            if comptime!(again) {
                out[k] = value(v[k], f);
            }
        }
        store::<DX, W, N>(dx, dx.start() + i, d, lanes);
        if comptime!(again) {
            store::<Y, W, N>(y, y.start() + i, out, lanes);
        }
    }
}
