//! Action tokens over a cached prefix: the velocity field.
//!
//! ```text
//! a = W_in x_t + b        tokens = π₀:  W_out swish(W_a a + row(t)) + b      π₀.₅: a
//! expert layers: attention over the sample's cached keys (prefix, state) and the chunk's own tokens
//! v = W_v norm(tokens_L) + b
//! ```
//! Rows are action steps: sequences of H rows, each with its sample's cache lines. Sequences of different kinds
//! (candidates, target, replayed winner, behaviour cloning) share launches; [`Rows`] says which is which.

use super::bind::Norm;
use super::flow_time::FlowTimes;
use super::gemma::{self, BlockTape, Modulated};
use super::layout::CachedRun;
use super::prefix::Net;
use super::remat::Remat;
use crate::gpu::{Gpu, Tensor};
use crate::ops::attention::{Attention, Columns, Keys, Plan, Sequence};
use crate::ops::gemm::{self, Act, Mat, RowMap, Sum};
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::rope;

/// Sequences of H action tokens, in row order.
pub struct Rows {
    /// Number of sequences.
    pub sequences: usize,
    /// Rows: sequences × H.
    pub len: usize,
    /// u32 `[M]`
    pub positions: Tensor,
    pub plan: Plan,
}

impl Rows {
    /// Sequences that read these runs of the cache.
    pub fn new(gpu: &Gpu, horizon: usize, runs: &[CachedRun]) -> Rows {
        let mut positions = Vec::with_capacity(runs.len() * horizon);
        let mut sequences = Vec::with_capacity(runs.len());
        for (i, run) in runs.iter().enumerate() {
            positions.extend((0..horizon).map(|h| (run.rows + h) as u32));
            let row0 = i * horizon;
            sequences.push(Sequence {
                q_row0: row0,
                q_rows: horizon,
                k_row0: run.row0,
                k_rows: run.rows,
                own_row0: row0,
                own_rows: horizon,
            });
        }
        let len = runs.len() * horizon;
        Rows {
            sequences: runs.len(),
            len,
            positions: gpu.upload_u32(&positions, [len]),
            plan: Plan::new(gpu, sequences),
        }
    }
}

/// The time value of each row.
#[derive(Clone, Copy)]
pub enum RowTimes<'a> {
    /// All rows have value `index`; `zeros [M]` (u32) is what says so to the norms.
    All { index: usize, zeros: &'a Tensor },
    /// Row m has value `groups[m]` (u32 `[M]`).
    Each { groups: &'a Tensor },
}

/// Lines of a table that belong to rows, and the index into them.
pub(super) struct TimeView<'a> {
    times: &'a FlowTimes,
    rows: RowTimes<'a>,
}

impl<'a> TimeView<'a> {
    pub(super) fn new(times: &'a FlowTimes, rows: RowTimes<'a>) -> Self {
        TimeView { times, rows }
    }

    fn lines(&self, table: &Tensor) -> Tensor {
        match self.rows {
            RowTimes::All { index, .. } => table.rows(index..index + 1),
            RowTimes::Each { .. } => table.clone(),
        }
    }

    pub(super) fn groups(&self) -> &'a Tensor {
        match self.rows {
            RowTimes::All { zeros, .. } => zeros,
            RowTimes::Each { groups } => groups,
        }
    }

    fn row_map(&self) -> RowMap {
        match self.rows {
            RowTimes::All { .. } => RowMap::Modulo(1),
            RowTimes::Each { groups } => RowMap::Index(groups.clone()),
        }
    }

    /// The modulation of block `l` for these rows.
    pub(super) fn block(&self, l: usize) -> Option<gemma::BlockModulation> {
        let m = self.times.block(l)?;
        Some(gemma::BlockModulation {
            norm1: self.lines(&m.norm1),
            norm2: self.lines(&m.norm2),
        })
    }

    pub(super) fn last(&self) -> Option<Tensor> {
        self.times.last().map(|t| self.lines(t))
    }
}

/// What to make of the velocity.
#[derive(Clone, Copy)]
pub enum Output<'a> {
    /// `v` f32 of the last rows, as many as it has: `[rows, A]`.
    Velocity(&'a Tensor),
    /// `x + step · v` f32: an Euler step.
    Step { next: &'a Tensor, step: f32 },
    /// Nothing: only the tape is wanted.
    Nothing,
}

/// Stored values of a pass.
pub struct Tape {
    /// `x_t [M, A]` f32.
    pub x: Tensor,
    /// Action embedding `[M, E]`, and the time MLP's value in front of its activation (π₀).
    pub a: Tensor,
    pub pre: Option<Tensor>,
    pub layers: Vec<BlockTape>,
    /// Input of the final norm.
    pub last: Tensor,
}

/// One evaluation of the velocity field for all rows.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    gpu: &Gpu,
    net: &Net<'_>,
    rows: &Rows,
    x: &Tensor,
    times: &FlowTimes,
    row_times: RowTimes<'_>,
    cache: &[Tensor],
    keep: Option<Remat>,
    output: Output<'_>,
) -> Option<Tape> {
    let heads = net.dims.attention();
    let time = TimeView::new(times, row_times);
    let (tokens, a, pre) = embed(gpu, net, x, &time, keep.is_some());
    // A layer's output may lie in parts, which the norm of the next adds up.
    let mut h = Sum::from(&tokens);
    let mut layers = Vec::new();
    for (l, (block, cache)) in net.params.expert.iter().zip(cache).enumerate() {
        let modulation = time.block(l);
        let modulated = modulation.as_ref().map(|block| Modulated {
            block,
            groups: time.groups(),
        });
        let qkv = gpu.alloc(net.dtype, [rows.len, heads.fused()]);
        let (o, lse) = (
            gpu.alloc(net.dtype, [rows.len, heads.q_width()]),
            gpu.f32([rows.len, heads.q]),
        );
        let input = gemma::project(gpu, block, modulated, h, &qkv);
        rope::forward(gpu, heads, net.rope, &rows.positions, &qkv, None);
        let (keys, own) = (Keys::cache(cache, heads), Keys::fused(&qkv, heads));
        let kept = keep.map(|_| &lse);
        Attention::new(heads).forward(gpu, &rows.plan, Columns::all(&qkv), keys, Some(own), &o, kept);
        let y = gpu.alloc(net.residual, input.shape());
        let done = gemma::finish(gpu, block, modulated, &input, &o, &y, keep == Some(Remat::None));
        if let Some(keep) = keep {
            layers.push(BlockTape {
                x: input,
                qkv,
                o,
                lse,
                middle: (keep != Remat::Full).then_some(done.middle),
                gate_up: done.gate_up,
                branches: done.branches,
            });
        }
        h = done.y;
    }
    let h = h.whole(gpu);
    head(gpu, net, x, &h, &time, output);
    keep?;
    Some(Tape {
        x: x.clone(),
        a,
        pre,
        layers,
        last: h,
    })
}

/// Action tokens, and what their backward needs.
fn embed(gpu: &Gpu, net: &Net<'_>, x: &Tensor, time: &TimeView<'_>, keep: bool) -> (Tensor, Tensor, Option<Tensor>) {
    let heads = &net.params.heads;
    let e = net.dims.expert.width;
    let room = |dtype| gpu.alloc(dtype, [x.dim(0), e]);
    // Without a time MLP the action embedding begins the residual stream.
    let a = room(if time.times.row().is_some() {
        net.dtype
    } else {
        net.residual
    });
    gemm::nt(x, &heads.action_in.0).bias(&heads.action_in.1).to(gpu, &a);
    let Some(row) = time.times.row() else {
        return (a.clone(), a, None);
    };
    let (hidden, tokens) = (room(net.dtype), room(net.residual));
    let pre = keep.then(|| room(net.dtype));
    let mut mix = gemm::nt(&a, action_half(&heads.time_in.0, e))
        .extra(&time.lines(row), time.row_map())
        .act(Act::Swish);
    if let Some(pre) = &pre {
        mix = mix.save_pre(pre);
    }
    mix.to(gpu, &hidden);
    gemm::nt(&hidden, &heads.time_out.0)
        .bias(&heads.time_out.1)
        .to(gpu, &tokens);
    (tokens, a, pre)
}

/// Columns of the action-time MLP's first weight that read the action.
pub(super) fn action_half(weight: &Tensor, e: usize) -> Mat {
    Mat::from(weight).columns(0, e)
}

/// The final norm's modulation.
pub(super) fn final_modulation<'a>(norm: &'a Norm, table: Option<&'a Tensor>, groups: &'a Tensor) -> Modulation<'a> {
    match (norm, table) {
        (Norm::Plain(scale), _) => Modulation::Plain(scale),
        (Norm::Adaptive(_), Some(table)) => Modulation::Adaptive { table, groups },
        (Norm::Adaptive(_), None) => unreachable!("an adaptive norm comes with its table"),
    }
}

fn head(gpu: &Gpu, net: &Net<'_>, x: &Tensor, h: &Tensor, time: &TimeView<'_>, output: Output<'_>) {
    if matches!(output, Output::Nothing) {
        return;
    }
    let (weight, bias) = &net.params.heads.action_out;
    let first = if let Output::Velocity(v) = output {
        h.dim(0) - v.dim(0)
    } else {
        0
    };
    let (h, groups) = (h.rows(first..h.dim(0)), time.groups());
    let groups = groups.rows(first..groups.dim(0));
    let normed = gpu.alloc(net.dtype, h.shape());
    let table = time.last();
    rms_norm::forward(
        gpu,
        &h,
        final_modulation(&net.params.expert_norm, table.as_ref(), &groups),
        &normed,
    );
    let product = gemm::nt(&normed, weight).bias(bias);
    match output {
        Output::Velocity(v) => product.to(gpu, v),
        Output::Step { next, step } => product.scale(step).residual(x).to(gpu, next),
        Output::Nothing => {}
    }
}
