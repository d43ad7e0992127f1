//! Matrix products as a case: one form, one shape, one epilogue.

use serde::Serialize;

use super::check::{Expected, Sum};
use super::reference::{gelu, swish};
use super::work::{Operand, Room, Work};
use crate::gpu::DType;
use crate::ops::gemm::{self, Act, RowMap};

/// Which operand is transposed, as in [`gemm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// `[m, k] · [n, k]ᵀ`: forward.
    Nt,
    /// `[m, k] · [k, n]`: dx.
    Nn,
    /// `[k, m]ᵀ · [k, n]`, added to f32: dW.
    Tn,
}

/// What is applied to the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    #[default]
    None,
    Gelu,
    Swish,
}

/// One product, or a batch of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Product {
    pub form: Form,
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub bias: bool,
    pub residual: bool,
    pub activation: Activation,
    /// Also stores the value in front of the activation.
    pub keep: bool,
    /// Everything in f32, whatever the step computes in: critics.
    pub f32: bool,
}

impl Product {
    /// A plain product.
    pub fn new(form: Form, m: usize, n: usize, k: usize) -> Product {
        Product {
            form,
            batch: 1,
            m,
            n,
            k,
            bias: false,
            residual: false,
            activation: Activation::None,
            keep: false,
            f32: false,
        }
    }

    /// Whether the result is added to what is there.
    fn accumulates(&self) -> bool {
        self.form == Form::Tn
    }

    /// The operands, and element `at` of their product.
    pub(super) fn operands(&self, room: &mut Room<'_>) -> (Operand, Operand, impl Fn(usize) -> Sum + Clone + 'static) {
        let p = self.clone();
        let (e, m, n, k) = (p.batch, p.m, p.n, p.k);
        let (a_shape, b_shape) = match p.form {
            Form::Nt => ([e, m, k], [e, n, k]),
            Form::Nn => ([e, m, k], [e, k, n]),
            Form::Tn => ([e, k, m], [e, k, n]),
        };
        // Results of about one, so that activations are where they bend.
        let scale = (-0.5 * (k as f64).log2()).round().max(-6.0).exp2() as f32;
        let (a, b) = (room.input(a_shape, 1.0), room.input(b_shape, scale));
        let sum = {
            let (a, b) = (a.clone(), b.clone());
            move |at: usize| -> Sum {
                let (x, i, j) = (at / (m * n), at / n % m, at % n);
                let of_a = |q| match p.form {
                    Form::Tn => a.at((x * k + q) * m + i),
                    _ => a.at((x * m + i) * k + q),
                };
                let of_b = |q| match p.form {
                    Form::Nt => b.at((x * n + j) * k + q),
                    _ => b.at((x * k + q) * n + j),
                };
                (0..k).map(|q| of_a(q) * of_b(q)).collect()
            }
        };
        (a, b, sum)
    }

    /// Floating point operations: a multiply-add is two.
    pub(super) fn flops(&self) -> f64 {
        2.0 * (self.batch * self.m) as f64 * (self.n * self.k) as f64
    }

    /// The type of the operands where the step computes in `dtype`.
    pub(super) fn dtype(&self, dtype: DType) -> DType {
        if self.f32 { DType::F32 } else { dtype }
    }

    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        let mut room = room;
        room.dtype = self.dtype(room.dtype);
        let p = self.clone();
        let (e, m, n) = (p.batch, p.m, p.n);
        let (a, b, product) = p.operands(&mut room);
        let bias = p.bias.then(|| room.input([e, n], 1.0));
        let residual = p.residual.then(|| room.input([e, m, n], 1.0));
        let accumulated = p.accumulates().then(|| room.in_place(DType::F32, [e, m, n], 1.0, 0.0));
        let c = match &accumulated {
            Some(c) => c.tensor.clone(),
            None => room.output([e, m, n]),
        };
        let pre = p.keep.then(|| room.output([e, m, n]));

        let sum = {
            let (bias, residual) = (bias.clone(), residual.clone());
            move |at: usize| -> Sum {
                let mut sum = product(at);
                if let Some(bias) = &bias {
                    sum.add(bias.at(at / (m * n) * n + at % n));
                }
                if let Some(residual) = &residual {
                    sum.add(residual.at(at));
                }
                if let Some(before) = &accumulated {
                    sum.add(before.at(at));
                }
                sum
            }
        };
        let activation = p.activation;
        let result = {
            let sum = sum.clone();
            // GELU rises by at most 1.13, swish by 1.1.
            move |at: usize| match activation {
                Activation::None => sum(at),
                Activation::Gelu => sum(at).through(gelu, 1.13),
                Activation::Swish => sum(at).through(swish, 1.1),
            }
        };
        let mut expected = vec![Expected::new("C", &c, result)];
        expected.extend(pre.as_ref().map(|pre| Expected::new("before the activation", pre, sum)));
        let flops = p.flops();
        let launch = move |gpu: &crate::gpu::Gpu| {
            let mut product = match p.form {
                Form::Nt => gemm::nt(&a.tensor, &b.tensor),
                Form::Nn => gemm::nn(&a.tensor, &b.tensor),
                Form::Tn => return gemm::tn(&a.tensor, &b.tensor).add_to(gpu, &c),
            };
            if let Some(bias) = &bias {
                product = product.bias(&bias.tensor);
            }
            if let Some(residual) = &residual {
                product = product.extra(&residual.tensor, RowMap::Same);
            }
            if let Some(pre) = &pre {
                product = product.save_pre(pre);
            }
            product
                .act(match p.activation {
                    Activation::None => Act::None,
                    Activation::Gelu => Act::Gelu,
                    Activation::Swish => Act::Swish,
                })
                .to(gpu, &c);
        };
        room.work(launch, expected).flops(flops)
    }
}
