//! What the passes are made of: where the queries and the keys of a sequence lie, and what a pair of them gives.
//!
//! Query heads that share keys are rows of one matrix: its line `l` is head `l % group` of row `l / group`. Keys are lines
//! alone, `group` 1. A workgroup is one block of lines, for one sequence or run of keys (`CUBE_POS_Y`) and one head of
//! keys (`CUBE_POS_Z`).

use cubecl::prelude::*;

use crate::gpu::launch::View;
use crate::ops::attention::{Columns, Keys};
use crate::ops::rope::Heads;

/// Words of a sequence in the table of a plan, and of a run of keys in that of a plan of keys.
pub(super) const SEQUENCE: usize = 6;
pub(super) const KEY_RUN: usize = 4;

/// Lines of heads in memory: line `l` of the `count` that there are begins at `base + l / group · ld + l % group · dim`.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Lines {
    base: usize,
    ld: usize,
    /// Of the block that is looked at.
    first: usize,
    pub count: usize,
    #[cube(comptime)]
    group: usize,
    #[cube(comptime)]
    pub dim: usize,
}

#[cube]
impl Lines {
    /// The block from line `first` on.
    pub fn block(&self, first: usize) -> Lines {
        Lines {
            base: self.base,
            ld: self.ld,
            first,
            count: self.count,
            group: comptime!(self.group),
            dim: comptime!(self.dim),
        }
    }

    /// Is there a line `i` in the block?
    pub fn holds(&self, i: usize) -> bool {
        self.first + i < self.count
    }

    /// Where line `i` of the block begins. What would lie beyond the last line is the last one again.
    pub fn at(&self, i: usize) -> usize {
        let line = min(self.first + i, self.count - 1);
        let (group, dim) = comptime!((self.group, self.dim));
        self.base + line / group * self.ld + line % group * dim
    }
}

/// Rows and columns of query heads: elements from one row to the next, and the first column.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct QueryColumns {
    ld: usize,
    q: usize,
}

/// Those of keys and values.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub struct KeyColumns {
    ld: usize,
    k: usize,
    v: usize,
}

impl Columns<'_> {
    /// For a kernel.
    pub(super) fn places<R: Runtime>(&self) -> QueryColumnsLaunch<R> {
        QueryColumnsLaunch::new(self.ld(), self.column)
    }
}

impl Keys<'_> {
    /// For a kernel.
    pub(super) fn places<R: Runtime>(&self) -> KeyColumnsLaunch<R> {
        KeyColumnsLaunch::new(self.ld(), self.k, self.v)
    }
}

/// Consecutive rows of queries, for the heads that share one of keys.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Queries {
    row0: usize,
    /// Lines: rows times heads.
    pub count: usize,
    #[cube(comptime)]
    heads: Heads,
}

/// Those whose first row and number of rows a table has at `at`.
#[cube]
pub(super) fn queries_at(table: &View<u32>, at: usize, #[comptime] heads: Heads) -> Queries {
    Queries {
        row0: table.get(at) as usize,
        count: table.get(at + 1) as usize * comptime!(heads.group()),
        heads,
    }
}

#[cube]
impl Queries {
    /// Their lines, from `first` on, in these columns of `x`.
    pub fn columns<X: Numeric>(&self, x: &View<X>, places: &QueryColumns, first: usize) -> Lines {
        let (group, dim) = comptime!((self.heads.group(), self.heads.dim));
        Lines {
            base: x.start() + self.row0 * places.ld + places.q + CUBE_POS_Z as usize * comptime!(group * dim),
            // Not the scalar itself, which is a load wherever it is used.
            ld: places.ld * 1,
            first,
            count: self.count,
            group,
            dim,
        }
    }

    /// Their lines, from `first` on, in rows that hold query heads and nothing else: outputs and their gradients.
    pub fn rows<X: Numeric>(&self, x: &View<X>, first: usize) -> Lines {
        let (group, dim) = comptime!((self.heads.group(), self.heads.dim));
        Lines {
            base: x.start() + (self.row0 * comptime!(self.heads.q) + CUBE_POS_Z as usize * group) * dim,
            ld: comptime!(self.heads.q_width()),
            first,
            count: self.count,
            group,
            dim,
        }
    }

    /// Which one line `l` is of all query heads of all rows: `lse` and `delta` have an element each. What would lie beyond
    /// the last line is the last one again.
    pub fn index(&self, l: usize) -> usize {
        let line = min(l, self.count - 1);
        let (heads, group) = comptime!((self.heads.q, self.heads.group()));
        (self.row0 + line / group) * heads + CUBE_POS_Z as usize * group + line % group
    }
}

/// Consecutive rows of keys.
#[derive(CubeType, Clone, Copy)]
pub(super) struct KeyRows {
    row0: usize,
    pub count: usize,
}

/// Those whose first row and number of rows a table has at `at`.
#[cube]
pub(super) fn keys_at(table: &View<u32>, at: usize) -> KeyRows {
    KeyRows {
        row0: table.get(at) as usize,
        count: table.get(at + 1) as usize,
    }
}

/// Keys and values, or their gradients.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Run {
    pub k: Lines,
    pub v: Lines,
}

#[cube]
impl KeyRows {
    /// Their lines, from `first` on, in these columns of `x`.
    pub fn columns<X: Numeric>(&self, x: &View<X>, places: &KeyColumns, first: usize, #[comptime] dim: usize) -> Run {
        let base = x.start() + self.row0 * places.ld + CUBE_POS_Z as usize * dim;
        let k = Lines {
            base: base + places.k,
            ld: places.ld * 1,
            first,
            count: self.count,
            group: 1usize,
            dim,
        };
        let v = Lines {
            base: base + places.v,
            ld: k.ld,
            first,
            count: self.count,
            group: 1usize,
            dim,
        };
        Run { k, v }
    }
}

/// Probability of a pair, and the gradient at its score, from the score and `do · v`; of no pair (`inside` false) zero.
#[cube]
pub(super) fn pair_gradient(score: f32, d_p: f32, lse: f32, delta: f32, inside: bool) -> (f32, f32) {
    let p = select(inside, f32::exp(score - lse), 0.0);
    (p, p * (d_p - delta))
}
