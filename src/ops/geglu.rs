//! Gated GELU of the Gemma MLP: `act = gelu(gate) · up`.
//!
//! `gate_up [M, 2F]` holds the gate's F columns, then the up projection's; act `[M, F]`.
//! `dgate = dact · up · gelu'(gate)`, `dup = dact · gelu(gate)`.
//! Source: Shazeer 2020 (GEGLU), tanh form of GELU.
//!
//! Cost: memory bound; backward can leave act again (for the weight gradient of the down projection).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use super::math::{gelu, gelu_slope};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// `act = gelu(gate) · up`
pub fn forward(gpu: &Gpu, gate_up: &Tensor, act: &Tensor) {
    let (m, f) = shape(gate_up, act);
    let lanes = Lanes::pick(gpu, &[f], &[gate_up, act]);
    let (count, dim) = lanes.grid(gpu, m * f);
    launch!(
        gpu,
        Cost::moving("geglu", gate_up.bytes() + act.bytes()),
        geglu_forward,
        count,
        dim,
        [gate_up, act],
        (m, f, lanes, lanes.types([gate_up, act]), lanes.sizes()),
    );
}

/// `dgate_up` from `dact`; with `act`, also the forward result again.
pub fn backward(gpu: &Gpu, gate_up: &Tensor, dact: &Tensor, dgate_up: &Tensor, act: Option<&Tensor>) {
    let (m, f) = shape(gate_up, dact);
    let again = act.is_some();
    let act = act.unwrap_or(dact);
    let tensors = [gate_up, dact, dgate_up, act];
    let lanes = Lanes::pick(gpu, &[f], &tensors);
    let (count, dim) = lanes.grid(gpu, m * f);
    let moved = gate_up.bytes() + dact.bytes() * (1 + again as u64) + dgate_up.bytes();
    launch!(
        gpu,
        Cost::moving("geglu_backward", moved),
        geglu_backward,
        count,
        dim,
        [gate_up, dact, dgate_up, act],
        (m, f, again, lanes, lanes.types(tensors), lanes.sizes()),
    );
}

fn shape(gate_up: &Tensor, act: &Tensor) -> (usize, usize) {
    let [m, f2] = *gate_up.shape() else {
        panic!("gate_up is [M, 2F], not {gate_up:?}")
    };
    assert_eq!(act.shape(), [m, f2 / 2]);
    (m, f2 / 2)
}

#[cube(launch_unchecked)]
fn geglu_forward<X: Numeric, Y: Numeric, W: Size, N: Size>(
    gate_up: &View<Vector<X, W>>,
    act: &mut View<Vector<Y, W>>,
    m: usize,
    f: usize,
    #[comptime] lanes: Lanes,
    #[define(X, Y)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let per_row = f / lanes.count;
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * lanes.count;
    if row < m {
        let at = gate_up.start() + row * 2 * f + i;
        let gate = load::<X, W, N>(gate_up, at, lanes);
        let up = load::<X, W, N>(gate_up, at + f, lanes);
        let mut out = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..lanes.count {
            out[k] = gelu(gate[k]) * up[k];
        }
        store::<Y, W, N>(act, act.start() + row * f + i, out, lanes);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn geglu_backward<X: Numeric, D: Numeric, DX: Numeric, Y: Numeric, W: Size, N: Size>(
    gate_up: &View<Vector<X, W>>,
    dact: &View<Vector<D, W>>,
    dgate_up: &mut View<Vector<DX, W>>,
    act: &mut View<Vector<Y, W>>,
    m: usize,
    f: usize,
    #[comptime] again: bool,
    #[comptime] lanes: Lanes,
    #[define(X, D, DX, Y)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let per_row = f / lanes.count;
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * lanes.count;
    if row < m {
        let at = gate_up.start() + row * 2 * f + i;
        let gate = load::<X, W, N>(gate_up, at, lanes);
        let up = load::<X, W, N>(gate_up, at + f, lanes);
        let d = load::<D, W, N>(dact, dact.start() + row * f + i, lanes);
        let mut dgate = Vector::<f32, N>::empty();
        let mut dup = Vector::<f32, N>::empty();
        let mut out = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..lanes.count {
            let value = gelu(gate[k]);
            dgate[k] = d[k] * up[k] * gelu_slope(gate[k]);
            dup[k] = d[k] * value;
            if comptime!(again) {
                out[k] = value * up[k];
            }
        }
        let to = dgate_up.start() + row * 2 * f + i;
        store::<DX, W, N>(dgate_up, to, dgate, lanes);
        store::<DX, W, N>(dgate_up, to + f, dup, lanes);
        if comptime!(again) {
            store::<Y, W, N>(act, act.start() + row * f + i, out, lanes);
        }
    }
}
