//! Operands of a product: matrices inside tensors.

use crate::gpu::{Caps, Tensor};

/// A matrix, or a batch of them, inside a tensor.
#[derive(Clone, Debug)]
pub struct Mat {
    pub(super) tensor: Tensor,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from one row to the next.
    pub(super) ld: usize,
    /// Number of matrices.
    pub(super) batch: usize,
    /// Elements from one matrix to the next; 0 repeats the same one.
    pub(super) stride: usize,
}

impl From<&Tensor> for Mat {
    /// `[rows, cols]`, or `[batch, rows, cols]`.
    fn from(t: &Tensor) -> Mat {
        let (batch, rows, cols) = match *t.shape() {
            [rows, cols] => (1, rows, cols),
            [batch, rows, cols] => (batch, rows, cols),
            ref shape => panic!("a matrix has two dimensions, or three with a batch, not {shape:?}"),
        };
        Mat {
            tensor: t.clone(),
            rows,
            cols,
            ld: cols,
            batch,
            stride: rows * cols,
        }
    }
}

impl Mat {
    /// Columns `start..start + cols` of every row.
    #[must_use]
    pub fn columns(self, start: usize, cols: usize) -> Mat {
        assert!(start + cols <= self.cols);
        let len = self.span() - (self.cols - cols);
        Mat {
            tensor: self.tensor.slice(start, [len]),
            cols,
            ..self
        }
    }

    /// Rows `start..start + rows` of every matrix.
    #[must_use]
    pub fn row_range(self, start: usize, rows: usize) -> Mat {
        assert!(start + rows <= self.rows);
        let from = start * self.ld;
        let len = self.span() - (self.rows - rows) * self.ld;
        Mat {
            tensor: self.tensor.slice(from, [len]),
            rows,
            ..self
        }
    }

    /// The columns in `blocks` equal parts, one next to the other, as a batch.
    #[must_use]
    pub fn column_blocks(self, blocks: usize) -> Mat {
        assert!(self.batch == 1 && self.cols.is_multiple_of(blocks));
        let cols = self.cols / blocks;
        Mat {
            cols,
            batch: blocks,
            stride: cols,
            ..self
        }
    }

    /// The same matrix for each of `batch` entries.
    #[must_use]
    pub fn repeat(self, batch: usize) -> Mat {
        assert_eq!(self.batch, 1);
        Mat {
            batch,
            stride: 0,
            ..self
        }
    }

    /// Elements from the first to the last one, inclusive.
    pub(super) fn span(&self) -> usize {
        if self.rows * self.cols * self.batch == 0 {
            return 0;
        }
        (self.batch - 1) * self.stride + (self.rows - 1) * self.ld + self.cols
    }

    pub(super) fn elements(&self) -> u64 {
        let batch = if self.stride == 0 { 1 } else { self.batch };
        (batch * self.rows * self.cols) as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.elements() * self.tensor.dtype().bytes()
    }

    /// May pairs of neighbours in a row be moved as one 64-bit word?
    pub(super) fn wide(&self, caps: &Caps) -> bool {
        caps.wide_loads
            && self.tensor.pairs()
            && self.cols.is_multiple_of(2)
            && self.ld.is_multiple_of(2)
            && self.stride.is_multiple_of(2)
    }
}
