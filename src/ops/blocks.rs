//! Moving rectangles and rows: concatenate, split, pad, flatten, gather, scatter.
//!
//! [`copy`] moves an `[rows, cols]` rectangle between tensors with different row widths: a column range of one into a
//! column range of the other. [`gather`] picks rows, [`scatter`] places them. Each is the other's backward.
//!
//! Cost: memory bound.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Columns `column..` of the rows of a `[_, ld]` tensor.
#[derive(Clone, Copy)]
pub struct Rect<'a> {
    pub tensor: &'a Tensor,
    pub ld: usize,
    pub column: usize,
}

impl<'a> Rect<'a> {
    /// All columns of rows of this width.
    pub fn rows(tensor: &'a Tensor, ld: usize) -> Self {
        Rect { tensor, ld, column: 0 }
    }

    /// From this column on.
    pub fn from(tensor: &'a Tensor, ld: usize, column: usize) -> Self {
        Rect { tensor, ld, column }
    }
}

/// `to[r, i] = from[r, i]` for `rows` rows and `cols` columns; with `add`, `+=`.
pub fn copy(gpu: &Gpu, from: Rect<'_>, to: Rect<'_>, rows: usize, cols: usize, add: bool) {
    run(
        gpu,
        from,
        to,
        None,
        rows,
        cols,
        Move {
            indexed: Indexed::No,
            add,
        },
    );
}

/// `to[r, :] = from[index[r], :]`, rows of `cols` elements; `index` u32.
pub fn gather(gpu: &Gpu, from: &Tensor, index: &Tensor, to: &Tensor) {
    let cols = to.len() / index.len().max(1);
    let (from, to) = (Rect::rows(from, cols), Rect::rows(to, cols));
    run(
        gpu,
        from,
        to,
        Some(index),
        index.len(),
        cols,
        Move {
            indexed: Indexed::Source,
            add: false,
        },
    );
}

/// `to[index[r], :] = from[r, :]`; the index must not name a row twice.
pub fn scatter(gpu: &Gpu, from: &Tensor, index: &Tensor, to: &Tensor) {
    let cols = from.len() / index.len().max(1);
    let (from, to) = (Rect::rows(from, cols), Rect::rows(to, cols));
    run(
        gpu,
        from,
        to,
        Some(index),
        index.len(),
        cols,
        Move {
            indexed: Indexed::Target,
            add: false,
        },
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Indexed {
    No,
    Source,
    Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Move {
    indexed: Indexed,
    add: bool,
}

fn run(gpu: &Gpu, from: Rect<'_>, to: Rect<'_>, index: Option<&Tensor>, rows: usize, cols: usize, form: Move) {
    if rows * cols == 0 {
        return;
    }
    let tensors = [from.tensor, to.tensor];
    let mut widths = vec![cols, from.column, to.column];
    if rows > 1 {
        widths.extend([from.ld, to.ld]);
    }
    let lanes = Lanes::pick(gpu, &widths, &tensors);
    let (count, dim) = lanes.grid(gpu, rows * cols);
    let bytes = (rows * cols) as u64 * (from.tensor.dtype().bytes() + to.tensor.dtype().bytes());
    launch!(
        gpu,
        Cost::moving("copy_rows", bytes),
        move_rows,
        count,
        dim,
        [from.tensor, to.tensor, index.unwrap_or(from.tensor)],
        (
            rows,
            cols,
            from.ld,
            from.column,
            to.ld,
            to.column,
            form,
            lanes,
            lanes.types(tensors),
            lanes.sizes(),
        ),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn move_rows<X: Numeric, Y: Numeric, W: Size, N: Size>(
    from: &View<Vector<X, W>>,
    to: &mut View<Vector<Y, W>>,
    index: &View<u32>,
    rows: usize,
    cols: usize,
    from_ld: usize,
    from_col: usize,
    to_ld: usize,
    to_col: usize,
    #[comptime] form: Move,
    #[comptime] lanes: Lanes,
    #[define(X, Y)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let per_row = cols / lanes.count;
    let row = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * lanes.count;
    if row < rows {
        let mut source = row;
        let mut target = row;
        if comptime!(form.indexed == Indexed::Source) {
            source = index.get(row) as usize;
        }
        if comptime!(form.indexed == Indexed::Target) {
            target = index.get(row) as usize;
        }
        let mut v = load::<X, W, N>(from, from.start() + source * from_ld + from_col + i, lanes);
        let at = to.start() + target * to_ld + to_col + i;
        if comptime!(form.add) {
            v += load::<Y, W, N>(to, at, lanes);
        }
        store::<Y, W, N>(to, at, v, lanes);
    }
}
