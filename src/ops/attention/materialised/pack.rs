//! Rows of heads into packed order and back, and sums over heads.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::tables::Part;
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};
use crate::ops::attention::{Attention, Columns, Plan};

/// Units of a workgroup.
const UNITS: usize = 64;

/// Rows of heads into packed order.
pub(super) fn pack(gpu: &Gpu, part: &Part, a: &Attention, from: Columns<'_>, to: &Tensor) {
    move_heads(gpu, part, a, from, to, false);
}

/// Packed rows back to their heads.
pub(super) fn unpack(gpu: &Gpu, part: &Part, a: &Attention, from: &Tensor, to: Columns<'_>) {
    move_heads(gpu, part, a, to, from, true);
}

fn move_heads(gpu: &Gpu, part: &Part, a: &Attention, rows: Columns<'_>, packed: &Tensor, unpack: bool) {
    let dim = a.heads.dim;
    let types = [rows.rows.dtype().storage(), packed.dtype().storage()];
    launch!(
        gpu,
        Cost::moving("attention_pack", 2 * packed.bytes()),
        move_heads_kernel,
        gpu.cubes(part.rows * dim, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [rows.rows, packed, &part.origin],
        (part.rows, dim, rows.ld(), rows.column, unpack, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn move_heads_kernel<R: Numeric, P: Numeric>(
    rows: &mut View<R>,
    packed: &mut View<P>,
    origin: &View<u32>,
    n: usize,
    dim: usize,
    ld: usize,
    column: usize,
    #[comptime] unpack: bool,
    #[define(R, P)] _types: [StorageType; 2],
) {
    let line = ABSOLUTE_POS / dim;
    let i = ABSOLUTE_POS % dim;
    if line < n {
        let at = origin.get(2 * line) as usize * ld + column + origin.get(2 * line + 1) as usize * dim + i;
        if comptime!(unpack) {
            rows.set(at, R::cast_from(packed.get(line * dim + i)));
        } else {
            packed.set(line * dim + i, P::cast_from(rows.get(at)));
        }
    }
}

/// One f32 per head `[M, Hq]` into packed order.
pub(super) fn gather(gpu: &Gpu, part: &Part, a: &Attention, from: &Tensor, to: &Tensor) {
    move_scalars(gpu, part, a, from, to, false);
}

/// One f32 per packed row back to `[M, Hq]`.
pub(super) fn scatter(gpu: &Gpu, part: &Part, a: &Attention, from: &Tensor, to: &Tensor) {
    move_scalars(gpu, part, a, to, from, true);
}

fn move_scalars(gpu: &Gpu, part: &Part, a: &Attention, heads: &Tensor, packed: &Tensor, scatter: bool) {
    let f32_type = DType::F32.storage();
    launch!(
        gpu,
        Cost::moving("attention_pack", 2 * packed.bytes()),
        move_heads_kernel,
        gpu.cubes(part.rows, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [heads, packed, &part.origin],
        (part.rows, 1, a.heads.q, 0, scatter, [f32_type, f32_type]),
    );
}

/// `delta[r, h] = Σ_i o[r, h, i] do[r, h, i]` for the query rows of the plan.
pub(super) fn row_dots(gpu: &Gpu, a: &Attention, o: &Tensor, d_o: &Tensor, plan: &Plan, delta: &Tensor) {
    // Rows outside of the plan may hold anything: results for them are not used.
    let rows = plan.sequences.iter().map(|s| s.q_row0 + s.q_rows).max().unwrap_or(0);
    let lines = rows * a.heads.q;
    launch!(
        gpu,
        Cost::moving("attention_delta", o.bytes() + d_o.bytes()),
        row_dots_kernel,
        gpu.cubes(lines, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [o, d_o, delta],
        (lines, a.heads.dim, [o.dtype().storage(), d_o.dtype().storage()]),
    );
}

#[cube(launch_unchecked)]
fn row_dots_kernel<O: Numeric, D: Numeric>(
    o: &View<O>,
    d_o: &View<D>,
    delta: &mut View<f32>,
    lines: usize,
    dim: usize,
    #[define(O, D)] _types: [StorageType; 2],
) {
    if ABSOLUTE_POS < lines {
        let mut dot = 0.0f32;
        let dim = dim * 1;
        let o_at = o.start() + ABSOLUTE_POS * dim;
        let d_at = d_o.start() + ABSOLUTE_POS * dim;
        for i in 0..dim {
            dot = fma(f32::cast_from(o.raw(o_at + i)), f32::cast_from(d_o.raw(d_at + i)), dot);
        }
        delta.set(ABSOLUTE_POS, dot);
    }
}
