//! Products with operands larger than what one kernel may bind: cut in halves until they fit.

use super::{Act, Gemm, Mat, RowMap};
use crate::gpu::Gpu;

/// Which dimension a product is cut along.
enum Axis {
    M,
    N,
    K,
}

impl Gemm {
    /// Where an operand is larger than one binding may be, the product is done in two halves.
    pub(super) fn split_over_binding_limit(&self, gpu: &Gpu, c: &Mat, accumulate: bool) -> bool {
        let caps = gpu.caps();
        let over = |m: &Mat| m.span() as u64 * m.tensor.dtype().bytes() + caps.alignment > caps.max_binding_bytes;
        let over_opt = |m: Option<&Mat>| m.is_some_and(over);
        // Matrices of a batch that stand next to each other are cut together. Others are of activations only, which the
        // micro-batch bounds.
        let whole = |m: &Mat| over(m) && m.batch > 1 && m.stride >= m.ld;
        if self.groups.is_some() || [&self.a, &self.b, c].into_iter().any(whole) {
            return false;
        }
        let (cut_a, cut_b) = (over(&self.a), over(&self.b));
        let axis = match (cut_a && self.a_transposed) || (cut_b && !self.b_transposed) {
            true => Axis::K,
            false if cut_b => Axis::N,
            false if cut_a || over(c) || over_opt(self.extra.as_ref().map(|e| &e.0)) || over_opt(self.pre.as_ref()) => {
                Axis::M
            }
            false => return false,
        };
        let (size, granule) = match (&axis, &self.extra) {
            (Axis::M, Some((_, RowMap::Modulo(period)))) => (c.rows, *period),
            (Axis::M, _) => (c.rows, 2),
            (Axis::N, _) => (c.cols, 2),
            (Axis::K, _) => (if self.a_transposed { self.a.rows } else { self.a.cols }, 2),
        };
        let half = (size / 2).next_multiple_of(granule);
        if half == 0 || half >= size {
            return false; // cannot be cut: the launch layer will refuse it by name
        }
        for (start, len) in [(0, half), (half, size - half)] {
            let mut part = self.shallow();
            match axis {
                Axis::M => {
                    part.a = if self.a_transposed {
                        part.a.columns(start, len)
                    } else {
                        part.a.row_range(start, len)
                    };
                    part.extra = part.extra.map(|(m, map)| match map {
                        RowMap::Same => (m.row_range(start, len), map),
                        RowMap::Index(index) => (m, RowMap::Index(index.slice(start, [len]))),
                        RowMap::Modulo(_) => (m, map),
                    });
                    part.pre = part.pre.map(|m| m.row_range(start, len));
                    part.run(gpu, c.clone().row_range(start, len), accumulate);
                }
                Axis::N => {
                    part.b = if self.b_transposed {
                        part.b.row_range(start, len)
                    } else {
                        part.b.columns(start, len)
                    };
                    part.bias = part.bias.map(|m| m.columns(start, len));
                    part.extra = part.extra.map(|(m, map)| (m.columns(start, len), map));
                    part.pre = part.pre.map(|m| m.columns(start, len));
                    part.run(gpu, c.clone().columns(start, len), accumulate);
                }
                Axis::K => {
                    assert!(self.act == Act::None && self.pre.is_none(), "cut along k");
                    part.a = if self.a_transposed {
                        part.a.row_range(start, len)
                    } else {
                        part.a.columns(start, len)
                    };
                    part.b = if self.b_transposed {
                        part.b.columns(start, len)
                    } else {
                        part.b.row_range(start, len)
                    };
                    if start > 0 {
                        (part.bias, part.extra) = (None, None);
                    }
                    part.run(gpu, c.clone(), accumulate || start > 0);
                }
            }
        }
        true
    }

    fn shallow(&self) -> Gemm {
        Gemm {
            a: self.a.clone(),
            b: self.b.clone(),
            bias: self.bias.clone(),
            extra: self.extra.clone(),
            pre: self.pre.clone(),
            groups: self.groups.clone(),
            ..*self
        }
    }
}
