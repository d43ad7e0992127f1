//! A product with the gated GELU of [`crate::ops::geglu`] behind it, in one launch where a kernel has that.

use super::{Act, Call, Gemm, Kernel, Mat, wgmma};
use crate::gpu::Gpu;
use crate::ops::geglu;

impl Gemm {
    /// B's rows are a gate's, then as many of an up projection: `C [m, n/2] = gelu(gate) · up`.
    /// [`Gemm::save_pre`] then takes both halves `[m, n]`, for backward. Only for [`super::nt`], without bias, extra rows,
    /// scale, activation or batch, and C must be contiguous.
    #[must_use]
    pub fn gated(mut self) -> Gemm {
        self.gated = true;
        self
    }

    pub(super) fn run_gated(mut self, gpu: &Gpu, c: &Mat, accumulate: bool) {
        let (m, k, f) = (self.a.rows, self.a.cols, self.b.rows / 2);
        assert!(
            !accumulate
                && self.plain_nt()
                && self.b.rows == 2 * f
                && self.b.cols == k
                && (c.rows, c.cols, c.ld, c.batch) == (m, f, f, 1)
                && self
                    .pre
                    .as_ref()
                    .is_none_or(|p| (p.rows, p.cols, p.ld) == (m, 2 * f, 2 * f)),
            "not a gated product: {self:?} into {c:?}"
        );
        if m * f == 0 {
            return;
        }
        let kernel = self.kernel.unwrap_or_else(|| Kernel::pick(gpu.caps(), &self, c));
        if kernel == Kernel::Wgmma {
            let config = self.config(gpu.caps(), c, accumulate);
            let call = Call::new(&self, c, [m, f, k], config);
            let parts = wgmma::launch_wgmma(gpu, self.cost([m, 2 * f, k], c, accumulate), &call);
            assert!(parts.is_none(), "gated products are not cut along k");
            return;
        }
        let both = match self.pre.take() {
            Some(pre) => pre.tensor.view([m, 2 * f]),
            None => gpu.alloc(c.tensor.dtype(), [m, 2 * f]),
        };
        self.gated = false;
        self.to(gpu, &both);
        geglu::forward(gpu, &both, &c.tensor.view([m, f]));
    }

    fn plain_nt(&self) -> bool {
        !self.a_transposed
            && self.b_transposed
            && (self.a.batch, self.b.batch) == (1, 1)
            && (self.bias.is_none() && self.extra.is_none() && self.groups.is_none())
            && (self.scale.is_none() && self.act == Act::None)
    }
}
