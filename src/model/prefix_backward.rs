//! Backward of [`prefix`](super::prefix): from the gradients of its keys and values to those of its weights.

use std::ops::Range;

use super::bind::{GemmaBlock, Norm, Pi0Params};
use super::flow_time::linear_params;
use super::freeze::Reach;
use super::gemma::{self, BlockGrads, BlockTape};
use super::layout::PrefixLayout;
use super::prefix::{LayerTape, Net, Prefix, Tape, WholeTape, language_norm, prompt_scale};
use super::siglip;
use super::stream::StreamGrad;
use crate::gpu::{Gpu, Tensor};
use crate::ops::attention::{Attention, Columns, Keys, Saved};
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::rope::{self, Cache};
use crate::ops::{blocks, embedding};

/// Gradients that enter a prefix from above.
#[derive(Clone, Copy, Default)]
pub struct Incoming<'a> {
    /// At the embedded tokens `[R, D]`, added to what comes through the layers.
    pub tokens: Option<&'a Tensor>,
    /// At the language model's output `[R, D]`.
    pub out: Option<&'a Tensor>,
}

/// Gradients at the embedded tokens, as far as they were needed.
#[derive(Default)]
pub struct TokenGrads {
    /// `[R, D]`
    pub prefix: Option<Tensor>,
    /// `[B, E]`
    pub state: Option<Tensor>,
}

/// Weight gradients of the whole prefix, added to those of `grads` that learn, from the gradients of keys and values (`dcache`, one f32
/// tensor per layer, in the lines of the cache; overwritten).
#[allow(clippy::too_many_arguments)]
pub fn backward(
    gpu: &Gpu,
    net: &Net<'_>,
    grads: &Pi0Params,
    layout: &PrefixLayout,
    prefix: Prefix,
    state: &Tensor,
    cache: &[Tensor],
    dcache: &[Tensor],
    incoming: Incoming<'_>,
    reach: Reach,
) -> TokenGrads {
    let Some(Tape {
        vision,
        first,
        mut layers,
        last,
    }) = prefix.tape
    else {
        return TokenGrads::default();
    };
    // Gradients at the output of the layer that is next.
    let mut dx: Option<StreamGrad> = None;
    let mut ds: Option<StreamGrad> = None;
    if let Some((x, _)) = last.filter(|_| reach.prefix(net.dims.depth)) {
        let d = stream(gpu, net, &x);
        match incoming.out {
            Some(dout) => final_norm_backward(gpu, net, grads, &x, dout, &d),
            None => d.zero(gpu),
        }
        dx = Some(d);
    }
    while let Some(tape) = layers.pop() {
        let l = first + layers.len();
        (dx, ds) = match tape {
            LayerTape::KeysOnly { x, state } => {
                keys_backward(gpu, net, grads, layout, l, &x, state.as_ref(), &dcache[l], reach)
            }
            LayerTape::Whole(below) => {
                layer_backward(gpu, net, grads, layout, l, *below, dx, ds, &cache[l], &dcache[l], reach)
            }
        };
    }
    let ds = ds.map(|ds| ds.sum);
    if let (Some(ds), Some(heads)) = (&ds, &grads.heads.state) {
        linear_params(gpu, ds, state, heads);
    }
    let Some(StreamGrad { sum: dx, .. }) = dx.filter(|_| reach.tokens()) else {
        return TokenGrads {
            prefix: None,
            state: ds,
        };
    };
    if let Some(more) = incoming.tokens {
        let (from, to) = (
            blocks::Rect::rows(more, more.dim(1)),
            blocks::Rect::rows(&dx, dx.dim(1)),
        );
        blocks::copy(gpu, from, to, more.dim(0), more.dim(1), true);
    }
    if reach.embedding && !layout.prompt.is_empty() {
        embedding::backward(gpu, &grads.embedding, &layout.prompt, prompt_scale(net.dims), &dx);
    }
    if let Some(saved) = vision {
        let dseen = gpu.alloc(net.dtype, [layout.images.rows(), dx.dim(1)]);
        blocks::gather(gpu, &dx, &layout.image_lines, &dseen);
        let heads = net.dims.vision_attention();
        siglip::backward(
            gpu,
            &net.params.vision,
            &grads.vision,
            heads,
            &layout.images,
            saved,
            &dseen,
        );
    }
    TokenGrads {
        prefix: Some(dx),
        state: ds,
    }
}

/// Room for the gradient of a stream like `x`.
fn stream(gpu: &Gpu, net: &Net<'_>, x: &Tensor) -> StreamGrad {
    StreamGrad::new(gpu, net.residual, net.dtype, x.shape())
}

fn final_norm_backward(gpu: &Gpu, net: &Net<'_>, grads: &Pi0Params, x: &Tensor, dout: &Tensor, dx: &StreamGrad) {
    let rstd = rms_norm::rstd(gpu, x.dim(0));
    rms_norm::backward(
        gpu,
        rms_norm::Backward {
            x,
            modulation: Modulation::Plain(language_norm(net.params)),
            dy: dout,
            around: None,
            dx: &dx.sum,
            rounded: dx.rounded(),
            y: None,
            rstd: Some(&rstd),
        },
    );
    let dscale = language_norm(grads);
    if !dscale.is_empty() {
        rms_norm::backward_scale(gpu, x, &rstd, dout, dscale);
    }
}

/// The last layer, of which only keys and values were used.
#[allow(clippy::too_many_arguments)]
fn keys_backward(
    gpu: &Gpu,
    net: &Net<'_>,
    grads: &Pi0Params,
    layout: &PrefixLayout,
    l: usize,
    x: &Tensor,
    s: Option<&Tensor>,
    dcache: &Tensor,
    reach: Reach,
) -> (Option<StreamGrad>, Option<StreamGrad>) {
    let (heads, r) = (net.key_heads(), layout.rows);
    let m = r + layout.states;
    let dkv = gpu.alloc(net.dtype, [m, heads.fused()]);
    let lines = Cache {
        kv: dcache,
        lines: &layout.lines,
    };
    rope::backward(gpu, heads, net.rope, &layout.positions, &dkv, Some(lines));
    let one = |block: &GemmaBlock, g: &GemmaBlock, x: &Tensor, dkv: Tensor| {
        let skip = block.qkv.outputs() - dkv.dim(1);
        let (kv, dkv_weights) = (block.qkv.outputs_from(skip), g.qkv.outputs_from(skip));
        let (dnormed, normed) = (gpu.alloc(net.dtype, x.shape()), gpu.alloc(net.dtype, x.shape()));
        let dx = stream(gpu, net, x);
        let rstd = rms_norm::rstd(gpu, x.dim(0));
        kv.backward(gpu, &dkv, &dnormed);
        let Norm::Plain(scale) = &block.norm1 else {
            unreachable!("streams of a prefix are plain")
        };
        rms_norm::backward(
            gpu,
            rms_norm::Backward {
                x,
                modulation: Modulation::Plain(scale),
                dy: &dnormed,
                around: None,
                dx: &dx.sum,
                rounded: dx.rounded(),
                y: Some(&normed),
                rstd: Some(&rstd),
            },
        );
        kv.backward_params(gpu, &dkv_weights, &dkv, &normed);
        match &g.norm1 {
            Norm::Plain(dscale) if !dscale.is_empty() => rms_norm::backward_scale(gpu, x, &rstd, &dnormed, dscale),
            _ => {}
        }
        dx
    };
    let (p, g) = (net.params, grads);
    let dx = reach
        .prefix(l)
        .then(|| one(&p.language[l], &g.language[l], x, dkv.rows(0..r)));
    let s = s.filter(|_| reach.state(l));
    let ds = s.map(|s| one(&p.expert[l], &g.expert[l], s, dkv.rows(r..m)));
    (dx, ds)
}

/// A whole layer; `dx`, `ds` are the gradients at its outputs (absent: zero, or not needed).
#[allow(clippy::too_many_arguments)]
fn layer_backward(
    gpu: &Gpu,
    net: &Net<'_>,
    grads: &Pi0Params,
    layout: &PrefixLayout,
    l: usize,
    below: WholeTape,
    dx: Option<StreamGrad>,
    ds: Option<StreamGrad>,
    cache: &Tensor,
    dcache: &Tensor,
    reach: Reach,
) -> (Option<StreamGrad>, Option<StreamGrad>) {
    let WholeTape { joint, prefix, state } = below;
    let (heads, r) = (net.heads(), layout.rows);
    let m = r + layout.states;
    let through = reach.prefix(l);
    let d_o = gpu.alloc(net.dtype, [m, heads.q_width()]);
    let dqkv = gpu.alloc(net.dtype, [m, heads.fused()]);
    let delta = gpu.f32([m, heads.q]);

    // Streams above attention.
    let open = |block: &GemmaBlock, mut tape: BlockTape, dy: Option<StreamGrad>, range: Range<usize>| {
        tape.complete(gpu, block, None);
        let parts = |t: &Tensor| t.rows(range.clone());
        let mut g = BlockGrads::new(
            gpu,
            block,
            range.len(),
            net.residual,
            parts(&d_o),
            parts(&dqkv),
            parts(&delta),
        );
        match dy {
            Some(dy) => g.dy = dy,
            None => g.dy.zero(gpu),
        }
        gemma::backward_out(gpu, block, None, &tape, &g, 0..range.len());
        (tape, g)
    };
    let prefix = through.then(|| open(&net.params.language[l], prefix, dx, 0..r));
    let state = state.filter(|_| reach.state(l));
    let state = state.map(|tape| open(&net.params.expert[l], tape, ds, r..m));

    // Attention of both.
    let (plan, key_plan) = if through {
        (&layout.plan, &layout.keys)
    } else {
        (&layout.state_plan, &layout.state_keys)
    };
    let attention = Attention::new(heads);
    let saved = Saved {
        o: &joint.o,
        lse: &joint.lse,
    };
    let (q, keys) = (Columns::all(&joint.qkv), Keys::cache(cache, heads));
    attention.backward_queries(gpu, plan, q, keys, None, saved, &d_o, Columns::all(&dqkv), &delta);
    attention.backward_keys(
        gpu,
        key_plan,
        q,
        keys,
        saved,
        &d_o,
        &delta,
        Keys::cache(dcache, heads),
        true,
    );
    let lines = Cache {
        kv: dcache,
        lines: &layout.lines,
    };
    rope::backward(gpu, heads, net.rope, &layout.positions, &dqkv, Some(lines));

    // Streams below attention, and weights.
    let close = |block, g_block: &GemmaBlock, (tape, g): (BlockTape, BlockGrads), wanted: bool| {
        let of_norm = matches!(&g_block.norm1, Norm::Plain(scale) if !scale.is_empty());
        let dx = (wanted || of_norm).then(|| stream(gpu, net, &tape.x));
        if let Some(dx) = &dx {
            let all = 0..tape.x.dim(0);
            gemma::backward_in(gpu, block, None, &tape, &g, all, dx);
        }
        gemma::backward_params(gpu, block, g_block, None, &tape, &g);
        dx.filter(|_| wanted)
    };
    let (below, state_below) = (reach.below_prefix(l), reach.below_state(l));
    let dx = prefix.and_then(|p| close(&net.params.language[l], &grads.language[l], p, below));
    let ds = state.and_then(|s| close(&net.params.expert[l], &grads.expert[l], s, state_below));
    (dx, ds)
}
