//! Everything about an observation, once: embedded tokens, keys and values of every layer, and the state token.
//!
//! The prefix never sees the actions, and the state token sees the prefix and itself only. So one pass serves the
//! critics' features, every candidate, the target and behaviour cloning; and one backward pass takes the sum of all
//! gradients that reach its keys and values. Of the last layer only keys and values are used: its queries, attention
//! and MLP are not computed, and its other weights get no gradient (features from the language model's output need
//! the whole layer: [`Depth::Whole`]).

use super::bind::Pi0Params;
use super::dims::Pi0Dims;
use super::gemma::{self, BlockGrads, BlockTape};
use super::layout::PrefixLayout;
use super::remat::Remat;
use super::siglip;
use crate::gpu::{DType, Gpu, Tensor};
use crate::ops::attention::{Attention, Columns, Keys, Saved};
use crate::ops::column_sum::{self, Term};
use crate::ops::gemm;
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::rope::{self, Cache, Heads, Table};
use crate::ops::{blocks, embedding, fill};

/// Which parameters learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trainable {
    pub vision: bool,
    pub language: bool,
    pub expert: bool,
}

impl Trainable {
    /// Everything learns.
    pub const ALL: Trainable = Trainable {
        vision: true,
        language: true,
        expert: true,
    };

    /// Does any gradient have to travel through the prefix rows?
    pub fn prefix(self) -> bool {
        self.vision || self.language
    }
}

/// How much of the last language layer is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Keys and values.
    KeysOnly,
    /// All of it, and the final norm: the language model's output.
    Whole,
}

/// The network, as the passes use it.
pub struct Net<'a> {
    pub dims: &'a Pi0Dims,
    pub params: &'a Pi0Params,
    /// Rotations for every position of a prefix and its actions.
    pub rope: &'a Table,
    /// Storage of activations.
    pub dtype: DType,
}

impl Net<'_> {
    /// Positions a rotation table must hold.
    pub fn positions(d: &Pi0Dims) -> usize {
        d.prefix_len() + d.state_tokens() + d.action_horizon
    }

    fn heads(&self) -> Heads {
        self.dims.attention()
    }

    /// The last layer's heads: keys and values only.
    fn key_heads(&self) -> Heads {
        Heads { q: 0, ..self.heads() }
    }
}

/// One layer's stored values.
enum LayerTape {
    Whole {
        joint: Joint,
        prefix: BlockTape,
        state: Option<BlockTape>,
    },
    /// Inputs of prefix and state.
    KeysOnly { x: Tensor, state: Option<Tensor> },
}

/// Rows of prefix and state in the same tensors: they attend in one launch.
struct Joint {
    qkv: Tensor,
    o: Tensor,
    lse: Tensor,
}

/// What backward needs.
pub struct Tape {
    vision: Option<siglip::Saved>,
    layers: Vec<LayerTape>,
    /// Inputs of the final norms of prefix and state, where they were computed.
    last: Option<(Tensor, Option<Tensor>)>,
}

impl Tape {
    /// The residual streams of prefix and state behind layer `l`, as far as they were computed.
    pub fn hidden(&self, l: usize) -> Option<(&Tensor, Option<&Tensor>)> {
        match self.layers.get(l + 1) {
            Some(LayerTape::Whole { prefix, state, .. }) => Some((&prefix.x, state.as_ref().map(|s| &s.x))),
            Some(LayerTape::KeysOnly { x, state }) => Some((x, state.as_ref())),
            None => self.last.as_ref().map(|(x, state)| (x, state.as_ref())),
        }
    }

    /// The embedded state tokens.
    pub fn state(&self) -> Option<&Tensor> {
        match self.layers.first()? {
            LayerTape::Whole { state, .. } => state.as_ref().map(|s| &s.x),
            LayerTape::KeysOnly { state, .. } => state.as_ref(),
        }
    }
}

/// The outcome of a prefix pass; keys and values are in the cache.
pub struct Prefix {
    /// Embedded prefix tokens `[R, D]`.
    pub tokens: Tensor,
    /// The language model's output `[R, D]`, if asked for.
    pub out: Option<Tensor>,
    pub tape: Option<Tape>,
}

/// What to keep and compute.
#[derive(Clone, Copy, Debug)]
pub struct PassOptions {
    pub keep: Option<Remat>,
    pub depth: Depth,
    pub trainable: Trainable,
}

/// One pass. `images [n, S, S, 3]` f32 are the pictures of the layout, `state [B, A]` f32; `cache` holds one
/// `[lines, 2 Hkv K]` tensor per layer.
pub fn forward(
    gpu: &Gpu,
    net: &Net<'_>,
    layout: &PrefixLayout,
    images: &Tensor,
    state: &Tensor,
    cache: &[Tensor],
    options: PassOptions,
) -> Prefix {
    let (d, p) = (net.dims, net.params);
    let keep = options
        .keep
        .filter(|_| options.trainable.prefix() || options.trainable.expert);
    let (tokens, vision) = embed(gpu, net, layout, images, keep.filter(|_| options.trainable.vision));
    let mut x = tokens.clone();
    let mut s = embed_state(gpu, net, layout, state);
    let mut layers = Vec::new();
    for (l, cache) in cache.iter().enumerate() {
        let (language, expert) = (&p.language[l], &p.expert[l]);
        if l + 1 == d.depth && options.depth == Depth::KeysOnly {
            keys_of_last(gpu, net, layout, &x, s.as_ref(), cache);
            if keep.is_some() {
                layers.push(LayerTape::KeysOnly {
                    x: x.clone(),
                    state: s.clone(),
                });
            }
            break;
        }
        let joint = attend(gpu, net, layout, l, &x, s.as_ref(), cache, keep.is_some());
        let r = layout.rows;
        let step = |block: &super::bind::GemmaBlock, input: &Tensor, range: std::ops::Range<usize>, keep| {
            let y = gpu.alloc(net.dtype, input.shape());
            let o = joint.o.rows(range.clone());
            let done = gemma::finish(gpu, block, None, input, &o, &y);
            let tape = BlockTape {
                x: input.clone(),
                qkv: joint.qkv.rows(range.clone()),
                o,
                lse: joint.lse.rows(range),
                middle: (keep != Some(Remat::Full)).then_some(done.middle),
                gate_up: (keep == Some(Remat::None)).then_some(done.gate_up),
                branches: None,
            };
            (y, tape)
        };
        // With vision and language frozen, backward goes through the state's rows alone.
        let keep_prefix = keep.filter(|_| options.trainable.prefix()).or(Some(Remat::Full));
        let (x_next, prefix) = step(language, &x, 0..r, keep_prefix);
        let after = s.as_ref().map(|s| step(expert, s, r..r + layout.states, keep));
        x = x_next;
        let (s_next, state) = after.map_or((None, None), |(y, t)| (Some(y), Some(t)));
        s = s_next;
        if keep.is_some() {
            layers.push(LayerTape::Whole { joint, prefix, state });
        }
    }
    let (out, last) = match options.depth {
        Depth::KeysOnly => (None, None),
        Depth::Whole => {
            let out = gpu.alloc(net.dtype, x.shape());
            rms_norm::forward(gpu, &x, Modulation::Plain(language_norm(p)), &out);
            (Some(out), Some((x, s)))
        }
    };
    let tape = keep.map(|_| Tape { vision, layers, last });
    Prefix { tokens, out, tape }
}

fn language_norm(p: &Pi0Params) -> &Tensor {
    match &p.language_norm {
        super::bind::Norm::Plain(scale) => scale,
        super::bind::Norm::Adaptive(_) => unreachable!("the language stream has plain norms"),
    }
}

/// Picture tokens and prompt embeddings in their packed rows.
fn embed(
    gpu: &Gpu,
    net: &Net<'_>,
    layout: &PrefixLayout,
    images: &Tensor,
    keep: Option<Remat>,
) -> (Tensor, Option<siglip::Saved>) {
    let d = net.dims;
    let tokens = gpu.alloc(net.dtype, [layout.rows, d.language.width]);
    let mut saved = None;
    if layout.images.rows() > 0 {
        let seen = gpu.alloc(net.dtype, [layout.images.rows(), d.language.width]);
        saved = siglip::forward(
            gpu,
            &net.params.vision,
            d.vision_attention(),
            &layout.images,
            images,
            &seen,
            keep,
        );
        blocks::scatter(gpu, &seen, &layout.image_lines, &tokens);
    }
    embedding::forward(gpu, &net.params.embedding, &layout.prompt, prompt_scale(d), &tokens);
    (tokens, saved)
}

fn prompt_scale(d: &Pi0Dims) -> f32 {
    (d.language.width as f32).sqrt()
}

fn embed_state(gpu: &Gpu, net: &Net<'_>, layout: &PrefixLayout, state: &Tensor) -> Option<Tensor> {
    let (weight, bias) = net.params.heads.state.as_ref()?;
    let s = gpu.alloc(net.dtype, [layout.states, net.dims.expert.width]);
    gemm::nt(state, weight).bias(bias).to(gpu, &s);
    Some(s)
}

/// q | k | v of both streams, rotation, cache, attention.
#[allow(clippy::too_many_arguments)]
fn attend(
    gpu: &Gpu,
    net: &Net<'_>,
    layout: &PrefixLayout,
    layer: usize,
    x: &Tensor,
    s: Option<&Tensor>,
    cache: &Tensor,
    for_backward: bool,
) -> Joint {
    let (heads, r) = (net.heads(), layout.rows);
    let m = r + layout.states;
    let qkv = gpu.alloc(net.dtype, [m, heads.fused()]);
    gemma::project(gpu, &net.params.language[layer], None, x, &qkv.rows(0..r));
    if let Some(s) = s {
        gemma::project(gpu, &net.params.expert[layer], None, s, &qkv.rows(r..m));
    }
    let (o, lse) = (gpu.alloc(net.dtype, [m, heads.q_width()]), gpu.f32([m, heads.q]));
    let lines = Cache {
        kv: cache,
        lines: &layout.lines,
    };
    rope::forward(gpu, heads, net.rope, &layout.positions, &qkv, Some(lines));
    let kept = for_backward.then_some(&lse);
    let keys = Keys::cache(cache, heads);
    Attention::new(heads).forward(gpu, &layout.plan, Columns::all(&qkv), keys, None, &o, kept);
    Joint { qkv, o, lse }
}

fn keys_of_last(gpu: &Gpu, net: &Net<'_>, layout: &PrefixLayout, x: &Tensor, s: Option<&Tensor>, cache: &Tensor) {
    let (heads, r) = (net.key_heads(), layout.rows);
    let m = r + layout.states;
    let last = net.dims.depth - 1;
    let kv = gpu.alloc(net.dtype, [m, heads.fused()]);
    gemma::project(gpu, &net.params.language[last], None, x, &kv.rows(0..r));
    if let Some(s) = s {
        gemma::project(gpu, &net.params.expert[last], None, s, &kv.rows(r..m));
    }
    let lines = Cache {
        kv: cache,
        lines: &layout.lines,
    };
    rope::forward(gpu, heads, net.rope, &layout.positions, &kv, Some(lines));
}

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

/// Weight gradients of the whole prefix, added to `grads`, from the gradients of keys and values (`dcache`, one f32
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
    trainable: Trainable,
) -> TokenGrads {
    let Some(Tape {
        vision,
        mut layers,
        last,
    }) = prefix.tape
    else {
        return TokenGrads::default();
    };
    let through = trainable.prefix();
    let like = |t: &Tensor| gpu.alloc(net.dtype, t.shape());
    // Gradients at the output of the layer that is next.
    let mut dx: Option<Tensor> = None;
    let mut ds: Option<Tensor> = None;
    if let Some((x, _)) = last.filter(|_| through) {
        let d = like(&x);
        match incoming.out {
            Some(dout) => final_norm_backward(gpu, net, grads, &x, dout, &d, trainable),
            None => fill::zero(gpu, &d),
        }
        dx = Some(d);
    }
    while let Some(tape) = layers.pop() {
        let l = layers.len();
        (dx, ds) = match tape {
            LayerTape::KeysOnly { x, state } => {
                keys_backward(gpu, net, grads, layout, l, &x, state.as_ref(), &dcache[l], trainable)
            }
            LayerTape::Whole { joint, prefix, state } => {
                let below = Below { joint, prefix, state };
                layer_backward(
                    gpu, net, grads, layout, l, below, dx, ds, &cache[l], &dcache[l], trainable,
                )
            }
        };
    }
    if let (Some(ds), Some((weight, bias))) = (&ds, &grads.heads.state)
        && trainable.expert
    {
        gemm::tn(ds, state).add_to(gpu, weight);
        column_sum::accumulate(gpu, Term::Plain { dy: ds }, bias);
    }
    let Some(dx) = dx.filter(|_| through) else {
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
    if trainable.language && !layout.prompt.is_empty() {
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

#[allow(clippy::too_many_arguments)]
fn final_norm_backward(
    gpu: &Gpu,
    net: &Net<'_>,
    grads: &Pi0Params,
    x: &Tensor,
    dout: &Tensor,
    dx: &Tensor,
    trainable: Trainable,
) {
    let rstd = rms_norm::rstd(gpu, x.dim(0));
    rms_norm::backward(
        gpu,
        rms_norm::Backward {
            x,
            modulation: Modulation::Plain(language_norm(net.params)),
            dy: dout,
            around: None,
            dx,
            y: None,
            rstd: Some(&rstd),
        },
    );
    if trainable.language {
        rms_norm::backward_scale(gpu, x, &rstd, dout, language_norm(grads));
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
    trainable: Trainable,
) -> (Option<Tensor>, Option<Tensor>) {
    let (heads, r) = (net.key_heads(), layout.rows);
    let m = r + layout.states;
    let dkv = gpu.alloc(net.dtype, [m, heads.fused()]);
    let lines = Cache {
        kv: dcache,
        lines: &layout.lines,
    };
    rope::backward(gpu, heads, net.rope, &layout.positions, &dkv, Some(lines));
    let one = |block: &super::bind::GemmaBlock, g: &super::bind::GemmaBlock, x: &Tensor, dkv: Tensor, learn: bool| {
        let skip = heads_rows(&block.qkv, &dkv);
        let (dnormed, dx, normed) = (
            gpu.alloc(net.dtype, x.shape()),
            gpu.alloc(net.dtype, x.shape()),
            gpu.alloc(net.dtype, x.shape()),
        );
        let rstd = rms_norm::rstd(gpu, x.dim(0));
        gemm::nn(&dkv, &block.qkv.rows(skip.clone())).to(gpu, &dnormed);
        let super::bind::Norm::Plain(scale) = &block.norm1 else {
            unreachable!("streams of a prefix are plain")
        };
        rms_norm::backward(
            gpu,
            rms_norm::Backward {
                x,
                modulation: Modulation::Plain(scale),
                dy: &dnormed,
                around: None,
                dx: &dx,
                y: Some(&normed),
                rstd: Some(&rstd),
            },
        );
        if learn {
            gemm::tn(&dkv, &normed).add_to(gpu, &g.qkv.rows(skip));
            if let super::bind::Norm::Plain(dscale) = &g.norm1 {
                rms_norm::backward_scale(gpu, x, &rstd, &dnormed, dscale);
            }
        }
        dx
    };
    let (p, g) = (net.params, grads);
    let dx = trainable
        .prefix()
        .then(|| one(&p.language[l], &g.language[l], x, dkv.rows(0..r), trainable.language));
    let ds = s.map(|s| one(&p.expert[l], &g.expert[l], s, dkv.rows(r..m), trainable.expert));
    (dx, ds)
}

/// The rows of a q | k | v weight that made `kv`: its last ones.
fn heads_rows(qkv: &Tensor, kv: &Tensor) -> std::ops::Range<usize> {
    qkv.dim(0) - kv.dim(1)..qkv.dim(0)
}

struct Below {
    joint: Joint,
    prefix: BlockTape,
    state: Option<BlockTape>,
}

/// A whole layer; `dx`, `ds` are the gradients at its outputs (absent: zero, or not needed).
#[allow(clippy::too_many_arguments)]
fn layer_backward(
    gpu: &Gpu,
    net: &Net<'_>,
    grads: &Pi0Params,
    layout: &PrefixLayout,
    l: usize,
    below: Below,
    dx: Option<Tensor>,
    ds: Option<Tensor>,
    cache: &Tensor,
    dcache: &Tensor,
    trainable: Trainable,
) -> (Option<Tensor>, Option<Tensor>) {
    let Below { joint, prefix, state } = below;
    let (heads, r) = (net.heads(), layout.rows);
    let m = r + layout.states;
    let through = trainable.prefix();
    let d_o = gpu.alloc(net.dtype, [m, heads.q_width()]);
    let dqkv = gpu.alloc(net.dtype, [m, heads.fused()]);
    let delta = gpu.f32([m, heads.q]);

    // Streams above attention.
    let open =
        |block: &super::bind::GemmaBlock, mut tape: BlockTape, dy: Option<Tensor>, range: std::ops::Range<usize>| {
            tape.complete(gpu, block, None);
            let parts = |t: &Tensor| t.rows(range.clone());
            let mut g = BlockGrads::new(
                gpu,
                block,
                range.len(),
                net.dtype,
                parts(&d_o),
                parts(&dqkv),
                parts(&delta),
            );
            match dy {
                Some(dy) => g.dy = dy,
                None => fill::zero(gpu, &g.dy),
            }
            gemma::backward_out(gpu, block, None, &tape, &g, 0..range.len());
            (tape, g)
        };
    let prefix = through.then(|| open(&net.params.language[l], prefix, dx, 0..r));
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
    let close = |block, g_block, (tape, g): (BlockTape, BlockGrads), learn: bool| {
        let dx = gpu.alloc(net.dtype, tape.x.shape());
        let all = 0..tape.x.dim(0);
        gemma::backward_in(gpu, block, None, &tape, &g, all, &dx);
        if learn {
            gemma::backward_params(gpu, block, g_block, None, &tape, &g);
        }
        dx
    };
    let dx = prefix.map(|p| close(&net.params.language[l], &grads.language[l], p, trainable.language));
    let ds = state.map(|s| close(&net.params.expert[l], &grads.expert[l], s, trainable.expert));
    (dx, ds)
}
