//! Backward of the velocity field, with the Euler chain pulled through step by step and everything else at once.
//!
//! Rows of a replayed trajectory come in blocks, one per Euler step. The gradient of x travels from the last block to
//! the first ([`SuffixBackward::pull`]), one block at a time: that is all that is sequential. Each pull leaves the
//! gradients at its products behind; [`SuffixBackward::finish`] then makes the weight gradients and the gradients of
//! the cached keys and values of *all* blocks in one go.

use std::ops::Range;

use super::bind::{Linear, Norm, Pi0Params};
use super::flow_time::{FlowTimes, learns, linear_params};
use super::freeze::Reach;
use super::gemma::{self, BlockGrads, BlockModulation, Modulated, TimeGroups};
use super::prefix::Net;
use super::stream::StreamGrad;
use super::suffix::{RowTimes, Rows, Tape, TimeView, action_half, final_modulation};
use crate::gpu::{Gpu, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::attention::{Attention, Columns, KeyPlan, KeyRun, Keys, Saved};
use crate::ops::column_sum::{self, Term};
use crate::ops::gemm;
use crate::ops::rms_norm;
use crate::ops::rope;

/// Row groups by time value, on the device.
pub struct TimeIndex {
    /// Time value of each row, u32 `[M]`.
    pub groups: Tensor,
    /// First row of each time value, u32 `[G + 1]`; rows of a value are contiguous.
    pub starts: Tensor,
    /// f32 `[M]` of ones.
    pub ones: Tensor,
}

impl TimeIndex {
    /// From the number of rows of each time value, in row order.
    pub fn new(gpu: &Gpu, counts: &[usize]) -> TimeIndex {
        let (mut groups, mut starts) = (Vec::new(), vec![0u32]);
        for (g, &n) in counts.iter().enumerate() {
            groups.extend(std::iter::repeat_n(g as u32, n));
            starts.push(groups.len() as u32);
        }
        let m = groups.len();
        TimeIndex {
            groups: gpu.upload_u32(&groups, [m]),
            starts: gpu.upload_u32(&starts, [starts.len()]),
            ones: gpu.upload_f32(&vec![1.0; m], [m]),
        }
    }

    fn time_groups(&self, wanted: bool) -> TimeGroups<'_> {
        TimeGroups {
            starts: &self.starts,
            ones: &self.ones,
            wanted,
        }
    }
}

/// The gradients on their way.
pub struct SuffixBackward<'a> {
    gpu: &'a Gpu,
    net: &'a Net<'a>,
    rows: &'a Rows,
    times: &'a FlowTimes,
    index: &'a TimeIndex,
    cache: &'a [Tensor],
    tape: Tape,
    layers: Vec<BlockGrads>,
    own_keys: KeyPlan,
    /// Gradient at the velocity `[M, A]` f32: filled block by block before each pull.
    pub dv: Tensor,
    dnormed: Tensor,
    rstd: Tensor,
    /// Gradients at the tokens, in front of the time MLP's activation, at the action embedding, `[M, E]`.
    pub dtokens: StreamGrad,
    dpre: Option<Tensor>,
    da: Tensor,
}

impl<'a> SuffixBackward<'a> {
    /// Starts backward over all rows of a tape.
    pub fn new(
        gpu: &'a Gpu,
        net: &'a Net<'a>,
        rows: &'a Rows,
        times: &'a FlowTimes,
        index: &'a TimeIndex,
        cache: &'a [Tensor],
        mut tape: Tape,
    ) -> Self {
        let (m, e, heads) = (rows.len, net.dims.expert.width, net.dims.attention());
        let view = TimeView::new(times, RowTimes::Each { groups: &index.groups });
        let mut layers = Vec::new();
        for (l, (block, tape)) in net.params.expert.iter().zip(&mut tape.layers).enumerate() {
            let modulation = view.block(l);
            let modulated = modulation.as_ref().map(|block| Modulated {
                block,
                groups: &index.groups,
            });
            tape.complete_middle(gpu, block, modulated);
            let d_o = gpu.alloc(net.dtype, [m, heads.q_width()]);
            let dqkv = gpu.alloc(net.dtype, [m, heads.fused()]);
            let mut g = BlockGrads::new(gpu, block, m, net.residual, d_o, dqkv, gpu.f32([m, heads.q]));
            if let Some(first) = layers.first()
                && g.dy.rounded().is_some()
            {
                // Weights wait for the operands alone; the sums are used up on their way down.
                let BlockGrads { dy, dmiddle, .. }: &BlockGrads = first;
                g.dy.sum = dy.sum.clone();
                g.dmiddle.sum = dmiddle.sum.clone();
            }
            if tape.gate_up.is_none() {
                // Of all layers they would be as much again as their gradients: until these come they have their place, and
                // the weights' own gradients have them computed once more, a layer at a time.
                tape.gate_up_again(gpu, block, modulated, &g.dgate_up);
            }
            layers.push(g);
        }
        let h = net.dims.action_horizon;
        let own = |i: usize| KeyRun {
            k_row0: i * h,
            k_rows: h,
            queries: vec![(i * h, h)],
        };
        let room = || gpu.alloc(net.dtype, [m, e]);
        let dtokens = StreamGrad::new(gpu, net.residual, net.dtype, [m, e]);
        SuffixBackward {
            own_keys: KeyPlan::new(gpu, (0..rows.sequences).map(own).collect()),
            dv: gpu.f32([m, net.dims.action_dim]),
            dnormed: room(),
            rstd: rms_norm::rstd(gpu, m),
            dpre: tape.pre.as_ref().map(|_| room()),
            da: match &tape.pre {
                Some(_) => room(),
                None => dtokens.operand.clone(),
            },
            dtokens,
            gpu,
            net,
            rows,
            times,
            index,
            cache,
            tape,
            layers,
        }
    }

    /// Pulls `dv` of sequences `range` back to x: `dx = around + J(dv)`, f32 `[rows, A]`, for the first rows of the
    /// range, as many as `dx` has. The others (behaviour cloning) end at the embedding: their x is data.
    pub fn pull(&self, range: Range<usize>, dx: Option<(&Tensor, &Tensor)>) {
        let (gpu, net) = (self.gpu, self.net);
        let h = net.dims.action_horizon;
        let rows = range.start * h..range.end * h;
        let part = |t: &Tensor| t.rows(rows.clone());
        let heads = net.dims.attention();
        let groups = part(&self.index.groups);
        let view = TimeView::new(
            self.times,
            RowTimes::Each {
                groups: &self.index.groups,
            },
        );

        // Velocity head and final norm.
        let dnormed = part(&self.dnormed);
        gemm::nn(&part(&self.dv), &net.params.heads.action_out.0).to(gpu, &dnormed);
        let depth = self.layers.len();
        let table = view.last();
        let top = self.layers[depth - 1].dy.rows(rows.clone());
        rms_norm::backward(
            gpu,
            rms_norm::Backward {
                x: &part(&self.tape.last),
                modulation: final_modulation(&net.params.expert_norm, table.as_ref(), &groups),
                dy: &dnormed,
                around: None,
                dx: &top.sum,
                rounded: top.rounded(),
                y: None,
                rstd: Some(&part(&self.rstd)),
            },
        );
        // Blocks.
        let (plan, own_keys) = (self.rows.plan.part(range.clone()), self.own_keys.part(range.clone()));
        let attention = Attention::new(heads);
        for l in (0..depth).rev() {
            let (block, tape, g) = (&net.params.expert[l], &self.tape.layers[l], &self.layers[l]);
            let modulation = view.block(l);
            let modulated = modulation.as_ref().map(|block| Modulated {
                block,
                groups: &self.index.groups,
            });
            gemma::backward_out(gpu, block, modulated, tape, g, rows.clone());
            let (q, own) = (Columns::all(&tape.qkv), Keys::fused(&tape.qkv, heads));
            let keys = Keys::cache(&self.cache[l], heads);
            let saved = Saved {
                o: &tape.o,
                lse: &tape.lse,
            };
            let dq = Columns::all(&g.dqkv);
            attention.backward_queries(gpu, &plan, q, keys, Some(own), saved, &g.d_o, dq, &g.delta);
            let dkeys = Keys::fused(&g.dqkv, heads);
            attention.backward_keys(gpu, &own_keys, q, own, saved, &g.d_o, &g.delta, dkeys, false);
            rope::backward(gpu, heads, net.rope, &part(&self.rows.positions), &part(&g.dqkv), None);
            let below = if l > 0 {
                self.layers[l - 1].dy.rows(rows.clone())
            } else {
                self.dtokens.rows(rows.clone())
            };
            gemma::backward_in(gpu, block, modulated, tape, g, rows.clone(), &below);
        }
        // Action embedding.
        let heads = &net.params.heads;
        let da = part(&self.da);
        if let (Some(pre), Some(dpre)) = (&self.tape.pre, &self.dpre) {
            let dpre = part(dpre);
            gemm::nn(&part(&self.dtokens.operand), &heads.time_out.0).to(gpu, &dpre);
            activation::backward(gpu, Activation::Swish, &part(pre), &dpre, &dpre, None);
            gemm::nn(&dpre, action_half(&heads.time_in.0, net.dims.expert.width)).to(gpu, &da);
        }
        if let Some((around, dx)) = dx {
            gemm::nn(&da.rows(0..dx.dim(0)), &heads.action_in.0)
                .residual(around)
                .to(gpu, dx);
        }
    }

    /// Gradients of the cached keys and values (f32 `[lines, 2 KV]`, one per layer; written in those layers that gradients
    /// reach) for the runs of `keys`, and, with `grads`, those of all weights that learn. What a layer has kept is given
    /// back as soon as it is done.
    pub fn finish(mut self, keys: &KeyPlan, lines: usize, grads: Option<&Pi0Params>, reach: Reach) -> Vec<Tensor> {
        let (gpu, net) = (self.gpu, self.net);
        let heads = net.dims.attention();
        let tapes = std::mem::take(&mut self.tape.layers);
        let layers = std::mem::take(&mut self.layers);
        let mut dcache = Vec::new();
        let view = TimeView::new(
            self.times,
            RowTimes::Each {
                groups: &self.index.groups,
            },
        );
        let grads = grads.filter(|_| reach.suffix());
        let wanted = grads.is_some_and(modulation_learns);
        let with_state = net.dims.state_tokens() > 0;
        let mut dtables = Vec::new();
        for (l, (tape, g)) in tapes.into_iter().zip(layers).enumerate() {
            let block = &net.params.expert[l];
            let dkv = gpu.owned("gradients of keys and values", || {
                gpu.f32([lines, 2 * heads.kv_width()])
            });
            let saved = Saved {
                o: &tape.o,
                lse: &tape.lse,
            };
            if reach.prefix(l) || (with_state && reach.state(l)) {
                Attention::new(heads).backward_keys(
                    gpu,
                    keys,
                    Columns::all(&tape.qkv),
                    Keys::cache(&self.cache[l], heads),
                    saved,
                    &g.d_o,
                    &g.delta,
                    Keys::cache(&dkv, heads),
                    false,
                );
            }
            dcache.push(dkv);
            if let Some(grads) = grads {
                let modulation = view.block(l);
                let time = modulation.as_ref().map(|block| {
                    (
                        Modulated {
                            block,
                            groups: &self.index.groups,
                        },
                        self.index.time_groups(wanted),
                    )
                });
                dtables.extend(gemma::backward_params(gpu, block, &grads.expert[l], time, &tape, &g));
            }
        }
        if let Some(grads) = grads {
            self.head_params(grads, &view, dtables);
        }
        dcache
    }

    /// Velocity head, final norm, action embedding, time.
    fn head_params(&self, grads: &Pi0Params, view: &TimeView<'_>, dtables: Vec<BlockModulation>) {
        let (gpu, net) = (self.gpu, self.net);
        let (p, g, e) = (&net.params.heads, &grads.heads, net.dims.expert.width);
        let table = view.last();
        let normed = gpu.alloc(net.dtype, self.tape.last.shape());
        let modulation = final_modulation(&net.params.expert_norm, table.as_ref(), &self.index.groups);
        if learns(&g.action_out) {
            rms_norm::forward(gpu, &self.tape.last, modulation, &normed);
            linear_params(gpu, &self.dv, &normed, &g.action_out);
        }
        linear_params(gpu, &self.da, &self.tape.x, &g.action_in);
        match &grads.expert_norm {
            Norm::Plain(dscale) if !dscale.is_empty() => {
                rms_norm::backward_scale(gpu, &self.tape.last, &self.rstd, &self.dnormed, dscale);
            }
            _ => {}
        }
        let of_time = learns(&g.time_in) || learns(&g.time_out);
        if let (Some(pre), Some(dpre), true) = (&self.tape.pre, &self.dpre, of_time) {
            let hidden = gpu.alloc(net.dtype, pre.shape());
            activation::forward(gpu, Activation::Swish, pre, &hidden);
            linear_params(gpu, &self.dtokens.operand, &hidden, &g.time_out);
            if !g.time_in.0.is_empty() {
                gemm::tn(dpre, &self.tape.a).add_to(gpu, action_half(&g.time_in.0, e));
            }
            let drow = gpu.f32([self.times.len, e]);
            column_sum::grouped(gpu, Term::Plain { dy: dpre }, &self.index.starts, &drow, 0, e);
            self.times.backward_row(gpu, &drow, g);
        }
        if let (Norm::Adaptive(dlast), true) = (&grads.expert_norm, modulation_learns(grads)) {
            let dtable = gpu.f32([self.times.len, 3 * e]);
            crate::ops::fill::zero(gpu, &dtable);
            let starts = &self.index.starts;
            rms_norm::backward_modulation(gpu, &self.tape.last, &self.rstd, &self.dnormed, starts, &dtable);
            let adaptive = |n: &'_ Norm| -> Linear {
                let Norm::Adaptive(l) = n else {
                    unreachable!("the expert of π₀.₅ has adaptive norms")
                };
                l.clone()
            };
            let mut pairs: Vec<(Linear, Linear, Tensor)> = Vec::new();
            for (l, d) in dtables.into_iter().enumerate() {
                let (block, grad) = (&net.params.expert[l], &grads.expert[l]);
                pairs.push((adaptive(&block.norm1), adaptive(&grad.norm1), d.norm1));
                pairs.push((adaptive(&block.norm2), adaptive(&grad.norm2), d.norm2));
            }
            pairs.push((adaptive(&net.params.expert_norm), dlast.clone(), dtable));
            self.times.backward_modulation(gpu, p, g, &pairs);
        }
    }
}

/// Does any of the maps from the flow time's condition to a modulation learn, or what makes the condition?
fn modulation_learns(grads: &Pi0Params) -> bool {
    let of = |norm: &Norm| matches!(norm, Norm::Adaptive(map) if learns(map));
    let blocks = grads.expert.iter().any(|b| of(&b.norm1) || of(&b.norm2));
    blocks || of(&grads.expert_norm) || learns(&grads.heads.time_in) || learns(&grads.heads.time_out)
}
