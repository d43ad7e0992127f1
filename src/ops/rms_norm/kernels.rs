//! The kernels: a team of units for each row, which reads it twice.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::EPS;
use crate::gpu::launch::View;
use crate::ops::lanes::{Lanes, load, store, total};
use crate::ops::rows::{RowLayout, row_of_unit, team_sum};

/// Which of the operands that may be absent are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BackwardParts {
    pub around: bool,
    pub rounded: bool,
    pub y: bool,
    pub rstd: bool,
}

/// First element of the scale of a row; the shift lies `d` further.
#[cube]
fn scale_start<T: Numeric, W: Size>(
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    row: usize,
    d: usize,
    #[comptime] adaptive: bool,
) -> usize {
    let mut at = table.start();
    if comptime!(adaptive) {
        at += groups.get(row) as usize * 3 * d;
    }
    at
}

/// `x̂ (1 + w)`, and the shift, of the elements `i..` of a row whose scale starts at `at`.
#[cube]
fn modulated<T: Numeric, W: Size, N: Size>(
    normed: Vector<f32, N>,
    table: &View<Vector<T, W>>,
    at: usize,
    d: usize,
    #[comptime] adaptive: bool,
    #[comptime] lanes: Lanes,
) -> Vector<f32, N> {
    let scale = load::<T, W, N>(table, at, lanes);
    let mut out = normed * (scale + Vector::new(1.0));
    if comptime!(adaptive) {
        out += load::<T, W, N>(table, at + d, lanes);
    }
    out
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn rms_norm_forward<X: Numeric, T: Numeric, Y: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    y: &mut View<Vector<Y, W>>,
    m: usize,
    d: usize,
    #[comptime] layout: RowLayout,
    #[comptime] adaptive: bool,
    #[comptime] lanes: Lanes,
    #[define(X, T, Y)] _types: [StorageType; 3],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    forward_row::<X, T, Y, W, N>(x, table, groups, y, row, unit, m, d * 1, layout, adaptive, lanes);
}

/// One row of [`rms_norm_forward`], of which `unit` is one of a team.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn forward_row<X: Numeric, T: Numeric, Y: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    y: &mut View<Vector<Y, W>>,
    row: usize,
    unit: usize,
    m: usize,
    d: usize,
    #[comptime] layout: RowLayout,
    #[comptime] adaptive: bool,
    #[comptime] lanes: Lanes,
) {
    // Rows beyond the end take part in the sums and store nothing.
    let safe = min(row, m - 1);
    let x_at = x.start() + safe * d;
    let y_at = y.start() + safe * d;
    let w_at = scale_start::<T, W>(table, groups, safe, d, adaptive);
    let mut squares = Vector::<f32, N>::zeroed();
    let mut i = unit * lanes.count;
    while i < d {
        let v = load::<X, W, N>(x, x_at + i, lanes);
        squares += v * v;
        i += comptime!(layout.team * lanes.count);
    }
    let r = f32::inverse_sqrt(team_sum(total(squares, lanes), layout) / d as f32 + EPS);
    if row < m {
        let mut i = unit * lanes.count;
        while i < d {
            let normed = load::<X, W, N>(x, x_at + i, lanes) * Vector::new(r);
            let out = modulated::<T, W, N>(normed, table, w_at + i, d, adaptive, lanes);
            store::<Y, W, N>(y, y_at + i, out, lanes);
            i += comptime!(layout.team * lanes.count);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
pub(super) fn rms_norm_backward<
    X: Numeric,
    T: Numeric,
    DY: Numeric,
    R: Numeric,
    DX: Numeric,
    DR: Numeric,
    Y: Numeric,
    W: Size,
    N: Size,
>(
    x: &View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    dy: &View<Vector<DY, W>>,
    around: &View<Vector<R, W>>,
    dx: &mut View<Vector<DX, W>>,
    rounded: &mut View<Vector<DR, W>>,
    y: &mut View<Vector<Y, W>>,
    rstd: &mut View<f32>,
    m: usize,
    d: usize,
    #[comptime] layout: RowLayout,
    #[comptime] adaptive: bool,
    #[comptime] parts: BackwardParts,
    #[comptime] lanes: Lanes,
    #[define(X, T, DY, R, DX, DR, Y)] _types: [StorageType; 7],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    backward_row::<X, T, DY, R, DX, DR, Y, W, N>(
        x,
        table,
        groups,
        dy,
        around,
        dx,
        rounded,
        y,
        rstd,
        row,
        unit,
        m,
        d * 1,
        layout,
        adaptive,
        parts,
        lanes,
    );
}

/// One row of [`rms_norm_backward`], of which `unit` is one of a team.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn backward_row<
    X: Numeric,
    T: Numeric,
    DY: Numeric,
    R: Numeric,
    DX: Numeric,
    DR: Numeric,
    Y: Numeric,
    W: Size,
    N: Size,
>(
    x: &View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    dy: &View<Vector<DY, W>>,
    around: &View<Vector<R, W>>,
    dx: &mut View<Vector<DX, W>>,
    rounded: &mut View<Vector<DR, W>>,
    y: &mut View<Vector<Y, W>>,
    rstd: &mut View<f32>,
    row: usize,
    unit: usize,
    m: usize,
    d: usize,
    #[comptime] layout: RowLayout,
    #[comptime] adaptive: bool,
    #[comptime] parts: BackwardParts,
    #[comptime] lanes: Lanes,
) {
    let safe = min(row, m - 1);
    let x_at = x.start() + safe * d;
    let dy_at = dy.start() + safe * d;
    let w_at = scale_start::<T, W>(table, groups, safe, d, adaptive);

    let mut squares = Vector::<f32, N>::zeroed();
    let mut dots = Vector::<f32, N>::zeroed();
    let mut i = unit * lanes.count;
    while i < d {
        let v = load::<X, W, N>(x, x_at + i, lanes);
        let g = load::<DY, W, N>(dy, dy_at + i, lanes);
        let w = load::<T, W, N>(table, w_at + i, lanes);
        squares += v * v;
        dots += g * (w + Vector::new(1.0)) * v;
        i += comptime!(layout.team * lanes.count);
    }
    let r = f32::inverse_sqrt(team_sum(total(squares, lanes), layout) / d as f32 + EPS);
    // x̂ mean(g x̂) = x r² · r · Σ g x / D
    let slope = team_sum(total(dots, lanes), layout) / d as f32 * r * r * r;
    if row < m {
        let around_at = around.start() + row * d;
        let dx_at = dx.start() + row * d;
        let rounded_at = rounded.start() + row * d;
        let y_at = y.start() + row * d;
        let mut i = unit * lanes.count;
        while i < d {
            let v = load::<X, W, N>(x, x_at + i, lanes);
            let g = load::<DY, W, N>(dy, dy_at + i, lanes);
            let w = load::<T, W, N>(table, w_at + i, lanes);
            let mut out = g * (w + Vector::new(1.0)) * Vector::new(r) - v * Vector::new(slope);
            if comptime!(parts.around) {
                out += load::<R, W, N>(around, around_at + i, lanes);
            }
            store::<DX, W, N>(dx, dx_at + i, out, lanes);
            if comptime!(parts.rounded) {
                store::<DR, W, N>(rounded, rounded_at + i, out, lanes);
            }
            if comptime!(parts.y) {
                let again = modulated::<T, W, N>(v * Vector::new(r), table, w_at + i, d, adaptive, lanes);
                store::<Y, W, N>(y, y_at + i, again, lanes);
            }
            i += comptime!(layout.team * lanes.count);
        }
        if comptime!(parts.rstd) {
            if unit == 0 {
                rstd.set(row, r);
            }
        }
    }
}
