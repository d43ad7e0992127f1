//! What depends on the flow time alone, once per value of it.
//!
//! π₀ mixes action and time in an MLP whose first layer is linear in both: the time's half is a row that is added per
//! time value. π₀.₅ turns the time into a condition that modulates every norm of the expert:
//!
//! ```text
//! π₀:    row = W_t temb + b            (W = W_a | W_t)
//! π₀.₅:  cond = swish(W₂ swish(W₁ temb + b₁) + b₂)      table = W_norm cond + b_norm, per norm
//! ```
//! Everything here is f32 and small: G lines, one per time value.

use super::bind::{ActionHeads, GemmaBlock, Linear, Norm};
use super::gemma::BlockModulation;
use super::prefix::Net;
use crate::gpu::{Gpu, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::column_sum::{self, Term};
use crate::ops::gemm::{self, Act, Mat};
use crate::ops::{fill, time_embedding};

/// Lines for G time values.
pub struct FlowTimes {
    /// Number of time values (G).
    pub len: usize,
    /// `[G, E]`
    embedding: Tensor,
    pub kind: TimeKind,
}

/// What the two models make of the time.
pub enum TimeKind {
    /// π₀: what is added in the action-time MLP, `[G, E]`.
    Row(Tensor),
    /// π₀.₅
    Modulation(Box<Modulations>),
}

/// Modulation of every norm of the expert, with the condition's own chain.
pub struct Modulations {
    pre1: Tensor,
    hidden: Tensor,
    pre2: Tensor,
    cond: Tensor,
    pub blocks: Vec<BlockModulation>,
    /// `[G, 3E]`
    pub last: Tensor,
}

impl Modulations {
    /// The condition `[G, E]` that the norms' maps read.
    pub fn condition(&self) -> &Tensor {
        &self.cond
    }
}

impl FlowTimes {
    /// Lines for these times.
    pub fn new(gpu: &Gpu, net: &Net<'_>, times: &[f64]) -> FlowTimes {
        let (g, e) = (times.len(), net.dims.expert.width);
        let embedding = gpu.upload_f32(&time_embedding::forward(times, e), [g, e]);
        let heads = &net.params.heads;
        let kind = if net.dims.pi05 {
            TimeKind::Modulation(Box::new(modulations(gpu, net, heads, &embedding)))
        } else {
            let row = gpu.f32([g, e]);
            gemm::nt(&embedding, time_half(&heads.time_in.0, e))
                .bias(&heads.time_in.1)
                .to(gpu, &row);
            TimeKind::Row(row)
        };
        FlowTimes {
            len: g,
            embedding,
            kind,
        }
    }

    /// The added row (π₀).
    pub fn row(&self) -> Option<&Tensor> {
        if let TimeKind::Row(row) = &self.kind {
            Some(row)
        } else {
            None
        }
    }

    /// The modulation of expert block `l` (π₀.₅).
    pub fn block(&self, l: usize) -> Option<&BlockModulation> {
        if let TimeKind::Modulation(m) = &self.kind {
            Some(&m.blocks[l])
        } else {
            None
        }
    }

    /// The modulation of the expert's final norm (π₀.₅).
    pub fn last(&self) -> Option<&Tensor> {
        if let TimeKind::Modulation(m) = &self.kind {
            Some(&m.last)
        } else {
            None
        }
    }

    /// Gradients of the π₀ time half: from the gradient of the rows `[G, E]`.
    pub fn backward_row(&self, gpu: &Gpu, drow: &Tensor, grads: &ActionHeads) {
        let e = drow.dim(1);
        let (weight, bias) = &grads.time_in;
        if !weight.is_empty() {
            gemm::tn(drow, &self.embedding).add_to(gpu, time_half(weight, e));
        }
        if !bias.is_empty() {
            column_sum::accumulate(gpu, Term::Plain { dy: drow }, bias);
        }
    }

    /// Gradients of the π₀.₅ condition and of the norms' own maps: for each norm its weights, their gradients, and the
    /// gradient of its modulation table.
    pub fn backward_modulation(
        &self,
        gpu: &Gpu,
        heads: &ActionHeads,
        grads: &ActionHeads,
        norms: &[(Linear, Linear, Tensor)],
    ) {
        let TimeKind::Modulation(m) = &self.kind else { return };
        let like = |t: &Tensor| gpu.f32(t.shape());
        let through = learns(&grads.time_in) || learns(&grads.time_out);
        let dcond = like(&m.cond);
        fill::zero(gpu, &dcond);
        for ((weight, _), grad, dtable) in norms {
            if through {
                gemm::nn(dtable, weight).add_to(gpu, &dcond);
            }
            linear_params(gpu, dtable, &m.cond, grad);
        }
        if !through {
            return;
        }
        let (dpre2, dhidden, dpre1) = (like(&m.pre2), like(&m.hidden), like(&m.pre1));
        activation::backward(gpu, Activation::Swish, &m.pre2, &dcond, &dpre2, None);
        linear_params(gpu, &dpre2, &m.hidden, &grads.time_out);
        gemm::nn(&dpre2, &heads.time_out.0).to(gpu, &dhidden);
        activation::backward(gpu, Activation::Swish, &m.pre1, &dhidden, &dpre1, None);
        linear_params(gpu, &dpre1, &self.embedding, &grads.time_in);
    }
}

/// Columns of the action-time MLP's first weight that read the time.
fn time_half(weight: &Tensor, e: usize) -> Mat {
    Mat::from(weight).columns(e, e)
}

/// `dW += dyᵀ x`, `db += Σ dy`, each if it learns.
pub(super) fn linear_params(gpu: &Gpu, dy: &Tensor, x: &Tensor, g: &Linear) {
    if !g.0.is_empty() {
        gemm::tn(dy, x).add_to(gpu, &g.0);
    }
    if !g.1.is_empty() {
        column_sum::accumulate(gpu, Term::Plain { dy }, &g.1);
    }
}

/// Has either of the two a gradient?
pub(super) fn learns(g: &Linear) -> bool {
    !g.0.is_empty() || !g.1.is_empty()
}

fn modulations(gpu: &Gpu, net: &Net<'_>, heads: &ActionHeads, embedding: &Tensor) -> Modulations {
    let like = || gpu.f32(embedding.shape());
    let (pre1, hidden, pre2, cond) = (like(), like(), like(), like());
    let layer = |x: &Tensor, l: &Linear, pre: &Tensor, y: &Tensor| {
        gemm::nt(x, &l.0).bias(&l.1).act(Act::Swish).save_pre(pre).to(gpu, y);
    };
    layer(embedding, &heads.time_in, &pre1, &hidden);
    layer(&hidden, &heads.time_out, &pre2, &cond);
    let table = |norm: &Norm| {
        let Norm::Adaptive((weight, bias)) = norm else {
            unreachable!("the expert of π₀.₅ has adaptive norms")
        };
        let table = gpu.f32([cond.dim(0), weight.dim(0)]);
        gemm::nt(&cond, weight).bias(bias).to(gpu, &table);
        table
    };
    let block = |b: &GemmaBlock| BlockModulation {
        norm1: table(&b.norm1),
        norm2: table(&b.norm2),
    };
    let blocks = net.params.expert.iter().map(block).collect();
    let last = table(&net.params.expert_norm);
    Modulations {
        pre1,
        hidden,
        pre2,
        cond,
        blocks,
        last,
    }
}
