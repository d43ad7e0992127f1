//! A product as a kernel sees it.

use super::{Act, Config, Gemm, Mat, RowMap};
use crate::gpu::Tensor;

/// What a kernel launch needs: operands, sizes and strides, ready to pass on.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) a: &'a Tensor,
    pub(super) b: &'a Tensor,
    pub(super) c: &'a Tensor,
    /// Absent operands are stood in for by `c`; the kernel does not touch them.
    pub(super) bias: &'a Tensor,
    pub(super) extra: &'a Tensor,
    pub(super) pre: &'a Tensor,
    pub(super) index: &'a Tensor,
    pub(super) table: &'a Tensor,
    /// Size of the launch: rows, columns, matrices.
    pub(super) grid: [usize; 3],
    pub(super) sizes: Sizes,
    pub(super) scale: f32,
    pub(super) config: Config,
}

/// Scalars of a launch, in elements.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) ld_a: usize,
    pub(super) ld_b: usize,
    pub(super) ld_c: usize,
    pub(super) ld_extra: usize,
    pub(super) ld_pre: usize,
    pub(super) stride_a: usize,
    pub(super) stride_b: usize,
    pub(super) stride_c: usize,
    pub(super) stride_bias: usize,
    pub(super) stride_extra: usize,
    pub(super) stride_pre: usize,
    pub(super) period: usize,
}

impl<'a> Call<'a> {
    pub(super) fn new(gemm: &'a Gemm, c: &'a Mat, [m, n, k]: [usize; 3], config: Config) -> Call<'a> {
        let (extra, map) = gemm
            .extra
            .as_ref()
            .map_or((None, None), |(e, map)| (Some(e), Some(map)));
        let period = if let Some(RowMap::Modulo(period)) = map {
            *period
        } else {
            1
        };
        let index = if let Some(RowMap::Index(index)) = map {
            index
        } else {
            &c.tensor
        };
        let ld = |m: Option<&Mat>| m.map_or(0, |m| m.ld);
        let stride = |m: Option<&Mat>| m.map_or(0, |m| if m.batch == 1 { 0 } else { m.stride });
        let grid = gemm.groups.as_ref().map_or([m, n, c.batch], |_| gemm.grid(c));
        // Without k there is nothing to read: the sums are zero.
        let read = |m: &'a Mat| if k == 0 { &c.tensor } else { &m.tensor };
        Call {
            a: read(&gemm.a),
            b: read(&gemm.b),
            c: &c.tensor,
            bias: gemm.bias.as_ref().map_or(&c.tensor, |m| &m.tensor),
            extra: extra.map_or(&c.tensor, |m| &m.tensor),
            pre: gemm.pre.as_ref().map_or(&c.tensor, |m| &m.tensor),
            index,
            table: gemm.groups.as_ref().map_or(&c.tensor, |g| &g.table),
            grid,
            sizes: Sizes {
                m,
                n,
                k,
                ld_a: gemm.a.ld,
                ld_b: gemm.b.ld,
                ld_c: c.ld,
                ld_extra: ld(extra),
                ld_pre: ld(gemm.pre.as_ref()),
                stride_a: stride(Some(&gemm.a)),
                stride_b: stride(Some(&gemm.b)),
                stride_c: stride(Some(c)),
                stride_bias: stride(gemm.bias.as_ref()),
                stride_extra: stride(extra),
                stride_pre: stride(gemm.pre.as_ref()),
                period,
            },
            scale: gemm.scale.unwrap_or(1.0),
            config,
        }
    }

    /// Strides and first elements, as both hand-written sources have them, in this order. All are below 2^32 because
    /// operands are.
    pub(super) fn places(&self) -> [usize; 20] {
        let s = &self.sizes;
        [
            s.ld_a,
            s.ld_b,
            s.ld_c,
            s.ld_extra,
            s.ld_pre,
            s.stride_a,
            s.stride_b,
            s.stride_c,
            s.stride_bias,
            s.stride_extra,
            s.stride_pre,
            self.a.at(),
            self.b.at(),
            self.c.at(),
            self.bias.at(),
            self.extra.at(),
            self.pre.at(),
            self.index.at(),
            self.table.at(),
            s.period,
        ]
    }

    /// The same product without an epilogue, into the first of `parts [splits, m, n]` f32.
    pub(super) fn sums<'b>(&self, parts: &'b Tensor) -> Call<'b>
    where
        'a: 'b,
    {
        Call {
            c: parts,
            bias: parts,
            extra: parts,
            pre: parts,
            index: parts,
            sizes: Sizes {
                ld_c: self.sizes.n,
                ld_extra: 0,
                ld_pre: 0,
                stride_c: 0,
                stride_bias: 0,
                stride_extra: 0,
                stride_pre: 0,
                ..self.sizes
            },
            config: Config {
                bias: false,
                extra: None,
                act: Act::None,
                pre: false,
                accumulate: false,
                scaled: false,
                ..self.config
            },
            ..*self
        }
    }
}
