//! The residual connection of adaptive blocks: `out = x + gate_g · y`, the gate shared by a group of rows (π₀.₅).
//!
//! x, y, out `[M, D]`; `table [G, 3D]` holds scale | shift | gate, row `m` uses line `groups[m]` (u32 `[M]`).
//! `dy = gate · dout`, `dgate_g = Σ_{rows of g} dout · y`, dx is dout itself.
//!
//! Cost: memory bound.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::column_sum::{self, Term};
use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

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
    let tensors = [x, y, table, out];
    let lanes = Lanes::pick(gpu, &[d], &tensors);
    let (count, dim) = lanes.grid(gpu, m * d);
    launch!(
        gpu,
        Cost::moving(
            "gated_residual",
            y.bytes() + out.bytes() + if add { x.bytes() } else { 0 }
        ),
        gated_residual_kernel,
        count,
        dim,
        [x, y, table, groups, out],
        (m, d, add, lanes, lanes.types(tensors), lanes.sizes()),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gated_residual_kernel<X: Numeric, Y: Numeric, T: Numeric, O: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    y: &View<Vector<Y, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    out: &mut View<Vector<O, W>>,
    m: usize,
    d: usize,
    #[comptime] add: bool,
    #[comptime] lanes: Lanes,
    #[define(X, Y, T, O)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let per_row = d / lanes.count;
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * lanes.count;
    if row < m {
        let line = table.start() + (groups.get(row) as usize * 3 + 2) * d;
        let mut result = load::<Y, W, N>(y, y.start() + row * d + i, lanes);
        let gate = load::<T, W, N>(table, line + i, lanes);
        result *= gate;
        if comptime!(add) {
            result += load::<X, W, N>(x, x.start() + row * d + i, lanes);
        }
        store::<O, W, N>(out, out.start() + row * d + i, result, lanes);
    }
}
