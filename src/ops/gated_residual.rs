//! The residual connection of adaptive blocks: `out = x + gate_g · y`, the gate shared by a group of rows (π₀.₅).
//!
//! x, y, out `[M, D]`; `table [G, 3D]` holds scale | shift | gate, row `m` uses line `groups[m]` (u32 `[M]`).
//! `dy = gate · dout`, `dgate_g = Σ_{rows of g} dout · y`, dx is dout itself.
//!
//! Cost: memory bound.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::column_sum::{self, Term};
use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// `out = x + gate · y`
pub fn forward(gpu: &Gpu, x: &Tensor, y: &Tensor, table: &Tensor, groups: &Tensor, out: &Tensor) {
    run(gpu, Some(x), y, table, groups, out);
}

/// `dy = gate · dout`
pub fn backward(gpu: &Gpu, dout: &Tensor, table: &Tensor, groups: &Tensor, dy: &Tensor) {
    run(gpu, None, dout, table, groups, dy);
}

/// `dtable[g, 2D..3D] = Σ dout · y` over the rows of each group; `starts [G + 1]` are their first rows. `ones [M]` f32.
pub fn backward_gate(gpu: &Gpu, y: &Tensor, dout: &Tensor, ones: &Tensor, starts: &Tensor, dtable: &Tensor) {
    let d = y.dim(1);
    column_sum::grouped(
        gpu,
        Term::Product {
            dy: dout,
            x: y,
            rstd: ones,
        },
        starts,
        dtable,
        2 * d,
        3 * d,
    );
}

fn run(gpu: &Gpu, x: Option<&Tensor>, y: &Tensor, table: &Tensor, groups: &Tensor, out: &Tensor) {
    let [m, d] = *y.shape() else {
        panic!("y is [M, D], not {y:?}")
    };
    let add = x.is_some();
    let x = x.unwrap_or(y);
    let wide = is_wide(gpu, d, &[x, y, table, out]);
    let types = [x, y, table, out].map(|t| storage(t, wide));
    launch!(
        gpu,
        Cost::moving(
            "gated_residual",
            y.bytes() + out.bytes() + if add { x.bytes() } else { 0 }
        ),
        gated_residual_kernel,
        gpu.cubes(m * d.div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [x, y, table, groups, out],
        (m, d, add, wide, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gated_residual_kernel<X: Numeric, Y: Numeric, T: Numeric, O: Numeric>(
    x: &View<X>,
    y: &View<Y>,
    table: &View<T>,
    groups: &View<u32>,
    out: &mut View<O>,
    m: usize,
    d: usize,
    #[comptime] add: bool,
    #[comptime] wide: bool,
    #[define(X, Y, T, O)] _types: [StorageType; 4],
) {
    let per_row = d.div_ceil(2);
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * 2;
    if row < m {
        let more = i + 1 < d;
        let v = load2::<Y>(y, y.start() + row * d + i, more, wide);
        let gate = load2::<T>(
            table,
            table.start() + (groups.get(row) as usize * 3 + 2) * d + i,
            more,
            wide,
        );
        let mut result = Pair {
            a: v.a * gate.a,
            b: v.b * gate.b,
        };
        if comptime!(add) {
            let base = load2::<X>(x, x.start() + row * d + i, more, wide);
            result.a += base.a;
            result.b += base.b;
        }
        store2::<O>(out, out.start() + row * d + i, more, result, wide);
    }
}
