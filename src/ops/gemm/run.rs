//! From a product to the launch of its kernel.

use super::call::Call;
use super::{Config, Gemm, Kernel, Map, Mat, RowMap, blocked, cooperative, mma, plane, portable, reduce, tiled, wgmma};
use crate::gpu::{Caps, Cost, Gpu, Tensor};

impl Gemm {
    pub(super) fn run(self, gpu: &Gpu, c: Mat, accumulate: bool) {
        if self.gated {
            return self.run_gated(gpu, &c, accumulate);
        }
        if let Some(sums) = self.launch(gpu, &c, accumulate) {
            self.finish(gpu, &sums, &c, accumulate);
        }
    }

    /// m, n and k.
    pub(super) fn sizes(&self, c: &Mat) -> [usize; 3] {
        let (m, k) = if self.a_transposed {
            (self.a.cols, self.a.rows)
        } else {
            (self.a.rows, self.a.cols)
        };
        let (n, k_b) = if self.b_transposed {
            (self.b.rows, self.b.cols)
        } else {
            (self.b.cols, self.b.rows)
        };
        let batch = c.batch;
        assert!(
            self.groups.is_some()
                || (k == k_b && (c.rows, c.cols) == (m, n) && self.a.batch == batch && self.b.batch == batch),
            "shapes do not fit: {self:?} into {c:?}"
        );
        [m, n, k]
    }

    /// The product, or, where the device cuts it along k, the sums of its parts `[splits, m, n]` f32, which are all that has
    /// been written then.
    pub(super) fn launch(&self, gpu: &Gpu, c: &Mat, accumulate: bool) -> Option<Tensor> {
        let sizes = self.sizes(c);
        if c.rows * c.cols * c.batch == 0 || self.split_over_binding_limit(gpu, c, accumulate) {
            return None;
        }
        let caps = gpu.caps();
        let kernel = self.kernel.unwrap_or_else(|| Kernel::pick(caps, self, c));
        let config = self.config(caps, c, accumulate);
        let cost = self.cost(sizes, c, accumulate);
        let call = Call::new(self, c, sizes, config);
        match kernel {
            Kernel::Wgmma => return wgmma::launch_wgmma(gpu, cost, &call),
            Kernel::Mma => return mma::launch_mma(gpu, cost, &call),
            Kernel::Plane => plane::launch_plane(gpu, cost, &call),
            Kernel::Cooperative => cooperative::launch_cooperative(gpu, cost, &call),
            Kernel::Blocked => blocked::launch_blocked(gpu, cost, &call),
            Kernel::Tiled => tiled::launch_tiled(gpu, cost, &call),
            Kernel::Portable => portable::launch_portable(gpu, cost, &call),
        }
        None
    }

    /// Adds up the parts of a product and applies its epilogue.
    pub(super) fn finish(&self, gpu: &Gpu, sums: &Tensor, c: &Mat, accumulate: bool) {
        let config = self.config(gpu.caps(), c, accumulate);
        let call = Call::new(self, c, [c.rows, c.cols, 0], config);
        reduce::launch_reduce(gpu, sums, &call);
    }

    /// Rows and columns of the launch, and how many matrices.
    pub(super) fn grid(&self, c: &Mat) -> [usize; 3] {
        match &self.groups {
            None => [c.rows, c.cols, c.batch],
            Some(groups) => [groups.max_m, groups.max_n, groups.table.dim(0)],
        }
    }

    pub(super) fn config(&self, caps: &Caps, c: &Mat, accumulate: bool) -> Config {
        // Groups may start and end anywhere.
        let wide = |m: &Mat| self.groups.is_none() && m.wide(caps);
        let wide_c = wide(c) && self.pre.as_ref().is_none_or(wide);
        Config {
            a_transposed: self.a_transposed,
            b_transposed: self.b_transposed,
            // Pairs of untransposed A double the unrolled loop: no faster, and twice as much to compile.
            wide_a: self.a_transposed && wide(&self.a),
            wide_b: wide(&self.b),
            wide_c,
            // Both are stored and read by the same code: in pairs, or one by one.
            wide_extra: wide_c && self.extra.as_ref().is_some_and(|(e, _)| wide(e)),
            batched: c.batch > 1,
            grouped: self.groups.is_some(),
            bias: self.bias.is_some(),
            extra: self.extra.as_ref().map(|(_, map)| match map {
                RowMap::Same => Map::Same,
                RowMap::Modulo(_) => Map::Modulo,
                RowMap::Index(_) => Map::Index,
            }),
            act: self.act,
            pre: self.pre.is_some(),
            accumulate,
            scaled: self.scale.is_some(),
            gated: self.gated,
        }
    }

    pub(super) fn cost(&self, [m, n, k]: [usize; 3], c: &Mat, accumulate: bool) -> Cost {
        let all = (m * n * k * c.batch) as f64;
        let products = self.groups.as_ref().map_or(all, |g| g.products);
        let parts = [
            Some(&self.a),
            Some(&self.b),
            self.bias.as_ref(),
            self.extra.as_ref().map(|e| &e.0),
            self.pre.as_ref(),
            Some(c),
            accumulate.then_some(c),
        ];
        let bytes: u64 = parts.into_iter().flatten().map(Mat::bytes).sum();
        Cost::new(self.name, 2.0 * products, bytes)
    }
}
