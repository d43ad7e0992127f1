//! A weight matrix of a transformer block, with or without a low-rank adapter.
//!
//! ```text
//! y = x Wᵀ + s · (x Aᵀ) Bᵀ        s = α / r
//! du = s · dy B        dx = dy W + du A        dA = duᵀ x        dB = s · dyᵀ (x Aᵀ)
//! ```
//! An adapter may consist of several of them, each for some of the outputs: heads and the two halves of a gated MLP have
//! their own A and B, one below the other. Of the heads that end in the same outputs (attention's last projection) openpi
//! multiplies `(Σ_h x_h A_hᵀ)` with every head's B and adds up: one A over all inputs and the sum of the Bs.
//! The small product goes into the output first and the large one is added to it, so the output is not passed over again.
//! Source: LoRA (<https://arxiv.org/abs/2106.09685>) in the form of openpi's einsums.

use super::dims::Lora;
use crate::gpu::{Gpu, Tensor};
use crate::ops::gemm::{self, Mat, Sum};
use crate::ops::{geglu, head_sum};

/// A weight `[out, in]` and what is added to it.
#[derive(Clone)]
pub struct Projection {
    pub weight: Tensor,
    pub adapter: Option<Adapter>,
}

/// A and B of a projection, or their gradients; empty where they do not learn.
#[derive(Clone)]
pub struct Adapter {
    /// `[groups · r, in]`
    pub a: Tensor,
    /// `[out, r]`; of heads that are summed `[out, heads · r]`.
    pub b: Tensor,
    /// `[out, r]`: the sum over heads, where there is one.
    pub sum: Option<Tensor>,
    /// Adapters that share the input, each with as many of the outputs.
    pub groups: usize,
    pub outputs: usize,
    pub rank: usize,
    pub scale: f32,
}

impl Adapter {
    /// Handles of `groups` adapters of `outputs` each.
    pub fn new(a: Tensor, b: Tensor, [groups, outputs]: [usize; 2], lora: Lora) -> Adapter {
        Adapter {
            a,
            b,
            sum: None,
            groups,
            outputs,
            rank: lora.rank,
            scale: lora.scale() as f32,
        }
    }

    /// B as it is multiplied with, by groups.
    fn b(&self) -> Tensor {
        let b = self.sum.as_ref().unwrap_or(&self.b);
        b.view([self.groups, self.outputs, self.rank])
    }

    /// `x Aᵀ`
    fn down(&self, gpu: &Gpu, x: &Tensor) -> Tensor {
        let u = gpu.alloc(x.dtype(), [x.dim(0), self.groups * self.rank]);
        gemm::nt(x, &self.a).named("lora").to(gpu, &u);
        u
    }

    /// `s · dy B`
    fn backward_down(&self, gpu: &Gpu, dy: &Tensor) -> Tensor {
        let du = gpu.alloc(dy.dtype(), [dy.dim(0), self.groups * self.rank]);
        let product = gemm::nn(self.columns(dy), &self.b()).scale(self.scale);
        product.named("lora").to(gpu, self.columns(&du));
        du
    }

    /// A matrix whose columns are those of the groups, one after the other.
    fn columns(&self, t: &Tensor) -> Mat {
        Mat::from(t).column_blocks(self.groups)
    }
}

impl Projection {
    /// Width of the outputs.
    pub fn outputs(&self) -> usize {
        self.weight.dim(0)
    }

    /// Width of the inputs.
    pub fn inputs(&self) -> usize {
        self.weight.dim(1)
    }

    /// The outputs from `skip` on: whole groups. Also of gradients.
    #[must_use]
    pub fn outputs_from(&self, skip: usize) -> Projection {
        let rest = |t: &Tensor, skip: usize| {
            if t.is_empty() {
                t.clone()
            } else {
                t.rows(skip..t.dim(0))
            }
        };
        let adapter = self.adapter.as_ref().map(|adapter| {
            let skipped = skip / adapter.outputs;
            Adapter {
                a: rest(&adapter.a, skipped * adapter.rank),
                b: rest(&adapter.b, skip),
                groups: adapter.groups - skipped,
                ..adapter.clone()
            }
        });
        Projection {
            weight: rest(&self.weight, skip),
            adapter,
        }
    }

    /// `y = x Wᵀ + s (x Aᵀ) Bᵀ (+ residual)`
    pub fn forward(&self, gpu: &Gpu, x: &Tensor, residual: Option<&Tensor>, y: &Tensor) {
        let _ = self.forward_sum(gpu, x, residual, y).whole(gpu);
    }

    /// [`Projection::forward`], for who can add up its parts.
    pub fn forward_sum(&self, gpu: &Gpu, x: &Tensor, residual: Option<&Tensor>, y: &Tensor) -> Sum {
        let mut product = gemm::nt(x, &self.weight);
        if let Some(residual) = residual {
            product = product.residual(residual);
        }
        let Some(adapter) = &self.adapter else {
            return product.sum_to(gpu, y);
        };
        let small = gemm::nt(adapter.columns(&adapter.down(gpu, x)), &adapter.b());
        small.scale(adapter.scale).named("lora").to(gpu, adapter.columns(y));
        product.add_to(gpu, y);
        Sum::from(y)
    }

    /// `act = gelu(gate) · up` of a projection to gate | up; these in `kept`, if it is there.
    pub fn gated(&self, gpu: &Gpu, x: &Tensor, kept: Option<&Tensor>, act: &Tensor) {
        if self.adapter.is_none() {
            let mut product = gemm::nt(x, &self.weight).gated();
            if let Some(kept) = kept {
                product = product.save_pre(kept);
            }
            return product.to(gpu, act);
        }
        let rows = || gpu.alloc(x.dtype(), [x.dim(0), self.outputs()]);
        let both = kept.cloned().unwrap_or_else(rows);
        self.forward(gpu, x, None, &both);
        geglu::forward(gpu, &both, act);
    }

    /// `dx = dy W + s (dy B) A`
    pub fn backward(&self, gpu: &Gpu, dy: &Tensor, dx: &Tensor) {
        let _ = self.backward_sum(gpu, dy, dx).whole(gpu);
    }

    /// [`Projection::backward`], for who can add up its parts.
    pub fn backward_sum(&self, gpu: &Gpu, dy: &Tensor, dx: &Tensor) -> Sum {
        let product = gemm::nn(dy, &self.weight);
        let Some(adapter) = &self.adapter else {
            return product.sum_to(gpu, dx);
        };
        let du = adapter.backward_down(gpu, dy);
        gemm::nn(&du, &adapter.a).named("lora").to(gpu, dx);
        product.add_to(gpu, dx);
        Sum::from(dx)
    }

    /// Does anything of these gradients learn?
    pub fn learns(&self) -> bool {
        let adapter = |a: &Adapter| !a.a.is_empty() || !a.b.is_empty();
        !self.weight.is_empty() || self.adapter.as_ref().is_some_and(adapter)
    }

    /// Adds to the gradients `g` of what learns, from those at the outputs and from the inputs.
    pub fn backward_params(&self, gpu: &Gpu, g: &Projection, dy: &Tensor, x: &Tensor) {
        if !g.weight.is_empty() {
            gemm::tn(dy, x).add_to(gpu, &g.weight);
        }
        let (Some(adapter), Some(g)) = (&self.adapter, &g.adapter) else {
            return;
        };
        if !g.b.is_empty() {
            let u = adapter.down(gpu, x);
            let product = gemm::tn(adapter.columns(dy), adapter.columns(&u));
            let product = product.scale(adapter.scale).named("lora");
            if adapter.sum.is_some() {
                // Every head's B has the gradient of the sum.
                let db = gpu.f32([g.b.dim(0), adapter.rank]);
                product.to(gpu, &db);
                head_sum::backward(gpu, &db, &g.b);
            } else {
                product.add_to(gpu, &g.b.view([adapter.groups, adapter.outputs, adapter.rank]));
            }
        }
        if !g.a.is_empty() {
            let du = adapter.backward_down(gpu, dy);
            gemm::tn(&du, x).named("lora").add_to(gpu, &g.a);
        }
    }

    /// Makes room for the sum over heads of an adapter that has several; [`Projection::sum_heads`] fills it.
    #[must_use]
    pub fn with_sum(mut self, gpu: &Gpu) -> Projection {
        if let Some(adapter) = &mut self.adapter
            && adapter.groups == 1
            && adapter.b.dim(1) > adapter.rank
        {
            let shape = [adapter.b.dim(0), adapter.rank];
            adapter.sum = Some(gpu.alloc_in(gpu.states(), adapter.b.dtype(), shape));
        }
        self
    }

    /// Adds up B over heads again: it has changed.
    pub fn sum_heads(&self, gpu: &Gpu) {
        if let Some(Adapter { b, sum: Some(sum), .. }) = &self.adapter {
            head_sum::forward(gpu, b, sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, DType};
    use crate::ops::blocks::{self, Rect};
    use crate::ops::testing::{close, f64s, gpu, normals};

    const M: usize = 37;

    /// `[m, k] · [k, n]`, each given by its element.
    fn times(
        m: usize,
        k: usize,
        n: usize,
        a: impl Fn(usize, usize) -> f64,
        b: impl Fn(usize, usize) -> f64,
    ) -> Vec<f64> {
        let one = |i: usize| (0..k).map(|l| a(i / n, l) * b(l, i % n)).sum();
        (0..m * n).map(one).collect()
    }

    /// Sizes of a projection in a test.
    #[derive(Clone, Copy)]
    struct Sizes {
        inputs: usize,
        groups: usize,
        /// Outputs of a group.
        per_group: usize,
        /// Heads whose Bs are added up.
        heads: usize,
        rank: usize,
    }

    /// A matrix of random numbers in this type, and its values.
    fn matrix(gpu: &Gpu, dtype: DType, seed: u64, shape: [usize; 2]) -> (Tensor, Vec<f64>) {
        let n = shape[0] * shape[1];
        let mut t = gpu.upload_f32(&normals(seed, n), shape);
        if dtype != DType::F32 {
            let narrow = gpu.alloc(dtype, shape);
            blocks::copy(gpu, Rect::rows(&t, n), Rect::rows(&narrow, n), 1, n, false);
            t = narrow;
        }
        let values = f64s(&gpu.read_f32(&t).unwrap());
        (t, values)
    }

    /// Adapters against the matrix they amount to.
    fn against_float64(gpu: &Gpu, sizes: Sizes, dtype: DType, tolerance: f64) {
        let Sizes {
            inputs,
            groups,
            per_group,
            heads,
            rank: r,
        } = sizes;
        let lora = Lora {
            rank: r,
            alpha: 1.5 * r as f64,
        };
        let (outputs, s) = (groups * per_group, lora.scale());
        let random = |seed: u64, rows: usize, columns: usize| matrix(gpu, dtype, seed, [rows, columns]);
        let (gw, w) = random(1, outputs, inputs);
        let (ga, a) = random(2, groups * r, inputs);
        let (gb, b) = random(3, outputs, heads * r);
        let ((gx, x), (gdy, dy)) = (random(4, M, inputs), random(5, M, outputs));
        let (gresidual, residual) = random(6, M, outputs);
        let adapter = |a, b| Adapter::new(a, b, [groups, per_group], lora);
        let projection = Projection {
            weight: gw,
            adapter: Some(adapter(ga, gb)),
        };
        let projection = projection.with_sum(gpu);
        projection.sum_heads(gpu);
        let summed = |o: usize, l: usize| (0..heads).map(|h| b[(o * heads + h) * r + l]).sum::<f64>();
        let a_of = |o: usize, l: usize, i: usize| a[(o / per_group * r + l) * inputs + i];
        let whole = |o: usize, i: usize| {
            let delta: f64 = (0..r).map(|l| summed(o, l) * a_of(o, l, i)).sum();
            w[o * inputs + i] + s * delta
        };
        let check = |what: &str, got: &Tensor, want: &[f64]| {
            gpu.check().unwrap();
            close(what, &gpu.read_f32(got).unwrap(), want, tolerance);
        };
        let (at_x, at_dy) = (
            |m: usize, i: usize| x[m * inputs + i],
            |m: usize, o: usize| dy[m * outputs + o],
        );

        let y = gpu.alloc(dtype, [M, outputs]);
        let mut want = times(M, inputs, outputs, at_x, |i, o| whole(o, i));
        projection.forward(gpu, &gx, None, &y);
        check("y", &y, &want);
        projection.forward(gpu, &gx, Some(&gresidual), &y);
        want.iter_mut().zip(&residual).for_each(|(y, r)| *y += r);
        check("y + residual", &y, &want);

        let dx = gpu.alloc(dtype, [M, inputs]);
        projection.backward(gpu, &gdy, &dx);
        check("dx", &dx, &times(M, outputs, inputs, at_dy, whole));

        let zeros = |rows: usize, columns: usize| gpu.upload_f32(&vec![0.0; rows * columns], [rows, columns]);
        let g = Projection {
            weight: zeros(outputs, inputs),
            adapter: Some(adapter(zeros(groups * r, inputs), zeros(outputs, heads * r))),
        };
        projection.backward_params(gpu, &g, &gdy, &gx);
        let dw = times(outputs, M, inputs, |o, m| at_dy(m, o), at_x);
        check("dW", &g.weight, &dw);
        // Through W' = W + s B A: dA = s Bᵀ dW', dB = s dW' Aᵀ.
        let mut da = vec![0.0; a.len()];
        let mut db = vec![0.0; b.len()];
        for o in 0..outputs {
            for (l, i) in (0..r).flat_map(|l| (0..inputs).map(move |i| (l, i))) {
                let slope = s * dw[o * inputs + i];
                da[(o / per_group * r + l) * inputs + i] += slope * summed(o, l);
                (0..heads).for_each(|h| db[(o * heads + h) * r + l] += slope * a_of(o, l, i));
            }
        }
        let adapter = g.adapter.as_ref().unwrap();
        check("dA", &adapter.a, &da);
        check("dB", &adapter.b, &db);

        // Groups from the second on, as the keys and values of a layer.
        if groups > 1 {
            let rest = projection.outputs_from(per_group);
            let y = gpu.alloc(dtype, [M, outputs - per_group]);
            rest.forward(gpu, &gx, None, &y);
            let want = times(M, inputs, outputs - per_group, at_x, |i, o| whole(o + per_group, i));
            check("the rest", &y, &want);
        }
    }

    #[test]
    fn adapters_are_what_they_amount_to() {
        let gpu = gpu();
        let sizes = |groups: usize, heads: usize| Sizes {
            inputs: 24,
            groups,
            per_group: 16,
            heads,
            rank: 2,
        };
        // Also where bindings are so small that products are cut.
        for most in [gpu.caps().max_binding_bytes, 4096] {
            let gpu = gpu.with_caps(|c| Caps {
                max_binding_bytes: most,
                ..c
            });
            for (groups, heads) in [(1, 1), (3, 1), (1, 4)] {
                against_float64(&gpu, sizes(groups, heads), DType::F32, 3e-6);
            }
        }
    }

    /// The kernels of CUDA devices, Ampere's and Hopper's: ranks that the copy engine can address, and one that it cannot.
    #[test]
    fn projections_in_bf16_on_cuda() {
        for arch in [80, 90] {
            let gpu = Gpu::emulated_cuda(arch).expect("a C++ compiler");
            for (groups, heads, rank) in [(2, 1, 16), (1, 2, 16), (3, 1, 32), (2, 1, 3)] {
                let sizes = Sizes {
                    inputs: 64,
                    groups,
                    per_group: 64,
                    heads,
                    rank,
                };
                against_float64(&gpu, sizes, DType::Bf16, 1e-2);
            }
        }
    }
}
