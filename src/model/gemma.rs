//! One transformer block of the language stream or the action expert, in pieces.
//!
//! ```text
//! q | k | v = norm₁(x) Wqkvᵀ      → rope, attention (done by the caller: streams attend together) → o
//! middle = x + g₁ · (o Woᵀ)       y = middle + g₂ · ((gelu(gate) · up) Wdᵀ),  gate | up = norm₂(middle) Wguᵀ
//! ```
//! The gates g are one in plain blocks and a function of the flow time in adaptive ones (π₀.₅). x, middle and y are the
//! residual stream, which may be of a wider type than the rest ([`super::stream`]).
//!
//! Backward is split so that it can run over the Euler steps: [`backward_out`] and [`backward_in`] pull a gradient
//! through the block for some rows (the chain, step by step) and leave the gradients at its products in a
//! [`BlockGrads`]; [`backward_params`] then makes all weight gradients from all rows at once.

use super::bind::{GemmaBlock, Norm};
use super::stream::StreamGrad;
use crate::gpu::{DType, Gpu, Tensor};
use crate::ops::gemm::Sum;
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::{gated_residual, geglu};

/// The time-dependent part of one adaptive block.
#[derive(Clone)]
pub struct BlockModulation {
    /// `[G, 3D]`: scale | shift | gate of each norm.
    pub norm1: Tensor,
    pub norm2: Tensor,
}

/// Modulation of rows: line `groups[m]` of the tables belongs to row m.
#[derive(Clone, Copy)]
pub struct Modulated<'a> {
    pub block: &'a BlockModulation,
    /// u32 `[M]`
    pub groups: &'a Tensor,
}

/// The two norms as the op wants them.
fn norms<'a>(p: &'a GemmaBlock, time: Option<Modulated<'a>>) -> (Modulation<'a>, Modulation<'a>) {
    let one = |norm: &'a Norm, table: Option<&'a Tensor>| match (norm, time, table) {
        (Norm::Plain(scale), _, _) => Modulation::Plain(scale),
        (Norm::Adaptive(_), Some(t), Some(table)) => Modulation::Adaptive {
            table,
            groups: t.groups,
        },
        _ => panic!("an adaptive block needs its modulation"),
    };
    (
        one(&p.norm1, time.map(|t| &t.block.norm1)),
        one(&p.norm2, time.map(|t| &t.block.norm2)),
    )
}

/// What a block keeps for backward, all `[M, ·]`.
pub struct BlockTape {
    /// Input.
    pub x: Tensor,
    /// Rotated q | k | v.
    pub qkv: Tensor,
    /// Attention's output, and its softmax denominators.
    pub o: Tensor,
    pub lse: Tensor,
    /// Stream between attention and MLP; absent: computed again.
    pub middle: Option<Tensor>,
    /// gate | up; absent: computed again.
    pub gate_up: Option<Tensor>,
    /// Adaptive blocks: the two branches in front of their gates.
    pub branches: Option<(Tensor, Tensor)>,
}

/// q | k | v of the stream `x`, which is returned, before rotation: all, or k | v alone for the last layer of a prefix.
pub fn project(gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>, x: Sum, qkv: &Tensor) -> Tensor {
    let normed = gpu.alloc(qkv.dtype(), [qkv.dim(0), p.qkv.inputs()]);
    let x = rms_norm::forward_sum(gpu, x, norms(p, time).0, &normed);
    let skip = p.qkv.outputs() - qkv.dim(1);
    p.qkv.outputs_from(skip).forward(gpu, &normed, None, qkv);
    x
}

/// Everything behind attention: the block's output, and what [`BlockTape`] keeps.
pub struct Finished {
    pub y: Sum,
    pub middle: Tensor,
    /// If asked for.
    pub gate_up: Option<Tensor>,
    pub branches: Option<(Tensor, Tensor)>,
}

/// `middle` from the input and attention's output.
fn middle(gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>, x: &Tensor, o: &Tensor) -> (Sum, Option<Tensor>) {
    let out = gpu.alloc(x.dtype(), x.shape());
    match time {
        None => (p.out.forward_sum(gpu, o, Some(x), &out), None),
        Some(t) => {
            let branch = gpu.alloc(o.dtype(), x.shape());
            p.out.forward(gpu, o, None, &branch);
            gated_residual::forward(gpu, x, &branch, &t.block.norm1, t.groups, &out);
            (Sum::from(&out), Some(branch))
        }
    }
}

/// The input of gate and up from `middle`, of type `dtype`.
fn normed2(gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>, middle: &Tensor, dtype: DType) -> Tensor {
    let normed = gpu.alloc(dtype, middle.shape());
    rms_norm::forward(gpu, middle, norms(p, time).1, &normed);
    normed
}

/// Room for gate | up.
fn gate_up_rows(gpu: &Gpu, p: &GemmaBlock, o: &Tensor) -> Tensor {
    gpu.alloc(o.dtype(), [o.dim(0), p.gate_up.outputs()])
}

/// `y` from the input `x` and attention's output `o`; gate | up only if `keep_gate_up`.
pub fn finish(
    gpu: &Gpu,
    p: &GemmaBlock,
    time: Option<Modulated<'_>>,
    x: &Tensor,
    o: &Tensor,
    y: &Tensor,
    keep_gate_up: bool,
) -> Finished {
    let (middle, branch1) = middle(gpu, p, time, x, o);
    let kept = keep_gate_up.then(|| gate_up_rows(gpu, p, o));
    let act = gpu.alloc(o.dtype(), [x.dim(0), p.down.inputs()]);
    let normed = gpu.alloc(o.dtype(), x.shape());
    let middle = rms_norm::forward_sum(gpu, middle, norms(p, time).1, &normed);
    p.gate_up.gated(gpu, &normed, kept.as_ref(), &act);
    drop(normed);
    let (y, branches) = match (time, branch1) {
        (Some(t), Some(branch1)) => {
            let branch2 = gpu.alloc(o.dtype(), x.shape());
            p.down.forward(gpu, &act, None, &branch2);
            gated_residual::forward(gpu, &middle, &branch2, &t.block.norm2, t.groups, y);
            (Sum::from(y), Some((branch1, branch2)))
        }
        _ => (p.down.forward_sum(gpu, &act, Some(&middle), y), None),
    };
    Finished {
        y,
        middle,
        gate_up: kept,
        branches,
    }
}

impl BlockTape {
    /// Computes again what was not kept.
    pub fn complete(&mut self, gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>) {
        self.complete_middle(gpu, p, time);
        self.gate_up = Some(self.gate_up(gpu, p, time));
    }

    /// Computes `middle` again, with the branch that leads to it, if it was not kept.
    pub fn complete_middle(&mut self, gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>) {
        if self.middle.is_none() {
            let (middle, branch1) = middle(gpu, p, time, &self.x, &self.o);
            if let (Some(branch1), Some((kept, _))) = (branch1, &mut self.branches) {
                *kept = branch1;
            }
            self.middle = Some(middle.whole(gpu));
        }
    }

    /// Computes gate | up again, into `rows`.
    pub fn gate_up_again(&self, gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>, rows: &Tensor) {
        let normed = normed2(gpu, p, time, self.middle(), rows.dtype());
        p.gate_up.forward(gpu, &normed, None, rows);
    }

    /// gate | up as kept, or computed again.
    fn gate_up(&self, gpu: &Gpu, p: &GemmaBlock, time: Option<Modulated<'_>>) -> Tensor {
        self.gate_up.clone().unwrap_or_else(|| {
            let rows = gate_up_rows(gpu, p, &self.o);
            self.gate_up_again(gpu, p, time, &rows);
            rows
        })
    }

    fn middle(&self) -> &Tensor {
        self.middle.as_ref().expect("completed")
    }
}

/// Gradients at the products of a block, all `[M, ·]`, kept until [`backward_params`].
pub struct BlockGrads {
    /// At the block's output; behind the gates of adaptive blocks: `(at the MLP branch, at the attention branch)`.
    pub dy: StreamGrad,
    pub gated: Option<(Tensor, Tensor)>,
    pub dgate_up: Tensor,
    /// At the outputs of the norms.
    pub dnormed1: Tensor,
    pub dnormed2: Tensor,
    pub rstd1: Tensor,
    pub rstd2: Tensor,
    pub dmiddle: StreamGrad,
    pub d_o: Tensor,
    /// At q | k | v before rotation.
    pub dqkv: Tensor,
    pub delta: Tensor,
}

impl BlockGrads {
    /// Room for `m` rows of a block whose stream is stored as `residual`; the gradients at attention live in the caller's
    /// tensors, in the type of operands.
    pub fn new(
        gpu: &Gpu,
        p: &GemmaBlock,
        m: usize,
        residual: DType,
        d_o: Tensor,
        dqkv: Tensor,
        delta: Tensor,
    ) -> BlockGrads {
        let (d, dtype) = (p.out.outputs(), d_o.dtype());
        let rows = |width: usize| gpu.alloc(dtype, [m, width]);
        let adaptive = matches!(p.norm1, Norm::Adaptive(_));
        // Behind gates no product reads the stream's gradient itself.
        let stream = || StreamGrad::new(gpu, residual, if adaptive { residual } else { dtype }, [m, d]);
        BlockGrads {
            dy: stream(),
            gated: adaptive.then(|| (rows(d), rows(d))),
            dgate_up: rows(p.gate_up.outputs()),
            dnormed1: rows(d),
            dnormed2: rows(d),
            rstd1: rms_norm::rstd(gpu, m),
            rstd2: rms_norm::rstd(gpu, m),
            dmiddle: stream(),
            d_o,
            dqkv,
            delta,
        }
    }
}

/// From `dy` to `d_o` (and `dmiddle`) for rows `range` of the tape; `dy` of those rows must be in place, and gate | up, where
/// the tape has not got them, in `dgate_up`, to be replaced by their gradients.
pub fn backward_out(
    gpu: &Gpu,
    p: &GemmaBlock,
    time: Option<Modulated<'_>>,
    tape: &BlockTape,
    g: &BlockGrads,
    range: std::ops::Range<usize>,
) {
    let rows = |t: &Tensor| t.rows(range.clone());
    let dy = g.dy.rows(range.clone());
    let groups = time.map(|t| t.groups.rows(range.clone()));
    let time = time.zip(groups.as_ref()).map(|(t, groups)| Modulated { groups, ..t });
    let at_branch = |dout: &StreamGrad, which: usize| -> Tensor {
        let (Some(t), Some((mlp, attention))) = (time, &g.gated) else {
            return dout.operand.clone();
        };
        let (table, to) = if which == 2 {
            (&t.block.norm2, rows(mlp))
        } else {
            (&t.block.norm1, rows(attention))
        };
        gated_residual::backward(gpu, &dout.sum, table, t.groups, &to);
        to
    };
    let at_mlp = at_branch(&dy, 2);
    let dact = gpu.alloc(at_mlp.dtype(), [range.len(), p.down.inputs()]);
    p.down.backward(gpu, &at_mlp, &dact);
    let dgate_up = rows(&g.dgate_up);
    let gate_up = rows(tape.gate_up.as_ref().unwrap_or(&g.dgate_up));
    geglu::backward(gpu, &gate_up, &dact, &dgate_up, None);
    let (dnormed2, dmiddle) = (rows(&g.dnormed2), g.dmiddle.rows(range.clone()));
    rms_norm::backward_sum(
        gpu,
        p.gate_up.backward_sum(gpu, &dgate_up, &dnormed2),
        rms_norm::Backward {
            x: &rows(tape.middle()),
            modulation: norms(p, time).1,
            dy: &dnormed2,
            around: Some(&dy.sum),
            dx: &dmiddle.sum,
            rounded: dmiddle.rounded(),
            y: None,
            rstd: Some(&rows(&g.rstd2)),
        },
    );
    p.out.backward(gpu, &at_branch(&dmiddle, 1), &rows(&g.d_o));
}

/// From `dqkv` (before rotation) and `dmiddle` to `dx` for rows `range`.
pub fn backward_in(
    gpu: &Gpu,
    p: &GemmaBlock,
    time: Option<Modulated<'_>>,
    tape: &BlockTape,
    g: &BlockGrads,
    range: std::ops::Range<usize>,
    dx: &StreamGrad,
) {
    let rows = |t: &Tensor| t.rows(range.clone());
    let groups = time.map(|t| t.groups.rows(range.clone()));
    let time = time.zip(groups.as_ref()).map(|(t, groups)| Modulated { groups, ..t });
    let dnormed1 = rows(&g.dnormed1);
    rms_norm::backward_sum(
        gpu,
        p.qkv.backward_sum(gpu, &rows(&g.dqkv), &dnormed1),
        rms_norm::Backward {
            x: &rows(&tape.x),
            modulation: norms(p, time).0,
            dy: &dnormed1,
            around: Some(&rows(&g.dmiddle.sum)),
            dx: &dx.sum,
            rounded: dx.rounded(),
            y: None,
            rstd: Some(&rows(&g.rstd1)),
        },
    );
}

/// Row groups that share a flow time, for the gradients of modulations.
#[derive(Clone, Copy)]
pub struct TimeGroups<'a> {
    /// First row of each group, u32 `[G + 1]`; groups are contiguous.
    pub starts: &'a Tensor,
    /// f32 `[M]`, all one.
    pub ones: &'a Tensor,
    /// Does any map to a modulation, or the condition they read, learn?
    pub wanted: bool,
}

/// Weight gradients from all rows, added to those of `grads` that learn; gate | up that the tape has not got are computed
/// again. Returns the gradients of the modulation tables:
/// where the norms' own maps do not learn, the condition they belong to still may.
pub fn backward_params(
    gpu: &Gpu,
    p: &GemmaBlock,
    grads: &GemmaBlock,
    time: Option<(Modulated<'_>, TimeGroups<'_>)>,
    tape: &BlockTape,
    g: &BlockGrads,
) -> Option<BlockModulation> {
    let modulated = time.map(|t| t.0);
    let (norm1, norm2) = norms(p, modulated);
    let (mlp, attention) = g
        .gated
        .as_ref()
        .map_or((&g.dy.operand, &g.dmiddle.operand), |(mlp, attention)| (mlp, attention));
    if grads.down.learns() {
        let act = gpu.alloc(tape.o.dtype(), [tape.x.dim(0), p.down.inputs()]);
        geglu::forward(gpu, &tape.gate_up(gpu, p, modulated), &act);
        p.down.backward_params(gpu, &grads.down, mlp, &act);
    }
    let normed = gpu.alloc(tape.o.dtype(), tape.x.shape());
    if grads.gate_up.learns() {
        rms_norm::forward(gpu, tape.middle(), norm2, &normed);
        p.gate_up.backward_params(gpu, &grads.gate_up, &g.dgate_up, &normed);
    }
    p.out.backward_params(gpu, &grads.out, attention, &tape.o);
    if grads.qkv.learns() {
        rms_norm::forward(gpu, &tape.x, norm1, &normed);
        p.qkv.backward_params(gpu, &grads.qkv, &g.dqkv, &normed);
    }
    match (&grads.norm1, &grads.norm2) {
        (Norm::Plain(d1), Norm::Plain(d2)) => {
            if !d1.is_empty() {
                rms_norm::backward_scale(gpu, &tape.x, &g.rstd1, &g.dnormed1, d1);
            }
            if !d2.is_empty() {
                rms_norm::backward_scale(gpu, tape.middle(), &g.rstd2, &g.dnormed2, d2);
            }
            None
        }
        _ => {
            let (t, groups) = time.expect("an adaptive block needs its modulation");
            if !groups.wanted {
                return None;
            }
            let table = |like: &Tensor| gpu.f32(like.shape());
            let (d1, d2) = (table(&t.block.norm1), table(&t.block.norm2));
            rms_norm::backward_modulation(gpu, &tape.x, &g.rstd1, &g.dnormed1, groups.starts, &d1);
            rms_norm::backward_modulation(gpu, tape.middle(), &g.rstd2, &g.dnormed2, groups.starts, &d2);
            if let Some((branch1, branch2)) = &tape.branches {
                gated_residual::backward_gate(gpu, branch1, &g.dmiddle.sum, groups.ones, groups.starts, &d1);
                gated_residual::backward_gate(gpu, branch2, &g.dy.sum, groups.ones, groups.starts, &d2);
            }
            Some(BlockModulation { norm1: d1, norm2: d2 })
        }
    }
}
