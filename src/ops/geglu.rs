//! Gated GELU of the Gemma MLP: `act = gelu(gate) · up`.
//!
//! `gate_up [M, 2F]` holds the gate's F columns, then the up projection's; act `[M, F]`.
//! `dgate = dact · up · gelu'(gate)`, `dup = dact · gelu(gate)`.
//! Source: Shazeer 2020 (GEGLU), tanh form of GELU.
//!
//! Cost: memory bound; backward can leave act again (for the weight gradient of the down projection).

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::math::{gelu, gelu_slope};
use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// `act = gelu(gate) · up`
pub fn forward(gpu: &Gpu, gate_up: &Tensor, act: &Tensor) {
    let (m, f) = shape(gate_up, act);
    let wide = is_wide(gpu, f, &[gate_up, act]);
    launch!(
        gpu,
        Cost::moving("geglu", gate_up.bytes() + act.bytes()),
        geglu_forward,
        gpu.cubes(m * f.div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [gate_up, act],
        (m, f, wide, [storage(gate_up, wide), storage(act, wide)]),
    );
}

/// `dgate_up` from `dact`; with `act`, also the forward result again.
pub fn backward(gpu: &Gpu, gate_up: &Tensor, dact: &Tensor, dgate_up: &Tensor, act: Option<&Tensor>) {
    let (m, f) = shape(gate_up, dact);
    let again = act.is_some();
    let act = act.unwrap_or(dact);
    let wide = is_wide(gpu, f, &[gate_up, dact, dgate_up, act]);
    let types = [gate_up, dact, dgate_up, act].map(|t| storage(t, wide));
    let moved = gate_up.bytes() + dact.bytes() * (1 + again as u64) + dgate_up.bytes();
    launch!(
        gpu,
        Cost::moving("geglu_backward", moved),
        geglu_backward,
        gpu.cubes(m * f.div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [gate_up, dact, dgate_up, act],
        (m, f, again, wide, types),
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
fn geglu_forward<X: Numeric, Y: Numeric>(
    gate_up: &View<X>,
    act: &mut View<Y>,
    m: usize,
    f: usize,
    #[comptime] wide: bool,
    #[define(X, Y)] _types: [StorageType; 2],
) {
    let per_row = f.div_ceil(2);
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * 2;
    if row < m {
        let more = i + 1 < f;
        let at = gate_up.start() + row * 2 * f + i;
        let gate = load2::<X>(gate_up, at, more, wide);
        let up = load2::<X>(gate_up, at + f, more, wide);
        let out = Pair {
            a: gelu(gate.a) * up.a,
            b: gelu(gate.b) * up.b,
        };
        store2::<Y>(act, act.start() + row * f + i, more, out, wide);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn geglu_backward<X: Numeric, D: Numeric, DX: Numeric, Y: Numeric>(
    gate_up: &View<X>,
    dact: &View<D>,
    dgate_up: &mut View<DX>,
    act: &mut View<Y>,
    m: usize,
    f: usize,
    #[comptime] again: bool,
    #[comptime] wide: bool,
    #[define(X, D, DX, Y)] _types: [StorageType; 4],
) {
    let per_row = f.div_ceil(2);
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * 2;
    if row < m {
        let more = i + 1 < f;
        let at = gate_up.start() + row * 2 * f + i;
        let gate = load2::<X>(gate_up, at, more, wide);
        let up = load2::<X>(gate_up, at + f, more, wide);
        let d = load2::<D>(dact, dact.start() + row * f + i, more, wide);
        let value = Pair {
            a: gelu(gate.a),
            b: gelu(gate.b),
        };
        let to = dgate_up.start() + row * 2 * f + i;
        let dgate = Pair {
            a: d.a * up.a * gelu_slope(gate.a),
            b: d.b * up.b * gelu_slope(gate.b),
        };
        store2::<DX>(dgate_up, to, more, dgate, wide);
        store2::<DX>(
            dgate_up,
            to + f,
            more,
            Pair {
                a: d.a * value.a,
                b: d.b * value.b,
            },
            wide,
        );
        if comptime!(again) {
            let out = Pair {
                a: value.a * up.a,
                b: value.b * up.b,
            };
            store2::<Y>(act, act.start() + row * f + i, more, out, wide);
        }
    }
}
