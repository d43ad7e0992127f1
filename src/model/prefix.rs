//! Everything about an observation, once: embedded tokens, keys and values of every layer, and the state token.
//!
//! The prefix never sees the actions, and the state token sees the prefix and itself only. So one pass serves the
//! critics' features, every candidate, the target and behaviour cloning; and one backward pass takes the sum of all
//! gradients that reach its keys and values. Of the last layer only keys and values are used: its queries, attention
//! and MLP are not computed, and its other weights get no gradient (features from the language model's output need
//! the whole layer: [`Depth::Whole`]).

use super::bind::Pi0Params;
use super::dims::Pi0Dims;
use super::freeze::Reach;
use super::gemma::{self, BlockTape};
use super::layout::PrefixLayout;
pub use super::prefix_backward::{Incoming, TokenGrads, backward};
use super::remat::Remat;
use super::siglip;
use crate::gpu::{DType, Gpu, Tensor};
use crate::ops::attention::{Attention, Columns, Keys};
use crate::ops::gemm;
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::rope::{self, Cache, Heads, Table};
use crate::ops::{blocks, embedding};

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
    /// Storage of activations, and of the residual streams.
    pub dtype: DType,
    pub residual: DType,
}

impl Net<'_> {
    /// Positions a rotation table must hold.
    pub fn positions(d: &Pi0Dims) -> usize {
        d.prefix_len() + d.state_tokens() + d.action_horizon
    }

    pub(super) fn heads(&self) -> Heads {
        self.dims.attention()
    }

    /// The last layer's heads: keys and values only.
    pub(super) fn key_heads(&self) -> Heads {
        Heads { q: 0, ..self.heads() }
    }
}

/// One layer's stored values.
pub(super) enum LayerTape {
    Whole(Box<WholeTape>),
    /// Inputs of prefix and state.
    KeysOnly {
        x: Tensor,
        state: Option<Tensor>,
    },
}

/// Attention of a layer, and the rest of its block in both streams.
pub(super) struct WholeTape {
    pub(super) joint: Joint,
    pub(super) prefix: BlockTape,
    pub(super) state: Option<BlockTape>,
}

/// Rows of prefix and state in the same tensors: they attend in one launch.
pub(super) struct Joint {
    pub(super) qkv: Tensor,
    pub(super) o: Tensor,
    pub(super) lse: Tensor,
}

/// What backward needs.
pub struct Tape {
    pub(super) vision: Option<siglip::Saved>,
    /// Layers below `first` are not kept: no gradient travels there.
    pub(super) first: usize,
    pub(super) layers: Vec<LayerTape>,
    /// Inputs of the final norms of prefix and state, where they were computed.
    pub(super) last: Option<(Tensor, Option<Tensor>)>,
}

impl Tape {
    /// The residual streams of prefix and state behind layer `l`, as far as they were kept.
    pub fn hidden(&self, l: usize) -> Option<(&Tensor, Option<&Tensor>)> {
        match self.layers.get((l + 1).checked_sub(self.first)?) {
            Some(LayerTape::Whole(w)) => Some((&w.prefix.x, w.state.as_ref().map(|s| &s.x))),
            Some(LayerTape::KeysOnly { x, state }) => Some((x, state.as_ref())),
            None => self.last.as_ref().map(|(x, state)| (x, state.as_ref())),
        }
    }

    /// The embedded state tokens.
    pub fn state(&self) -> Option<&Tensor> {
        match self.layers.first()? {
            LayerTape::Whole(w) => w.state.as_ref().map(|s| &s.x),
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
    pub reach: Reach,
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
    let reach = options.reach;
    let keep = options.keep.filter(|_| reach.any());
    let (tokens, vision) = embed(gpu, net, layout, images, keep.zip(reach.vision));
    let mut x = tokens.clone();
    let mut s = embed_state(gpu, net, layout, state);
    let mut layers = Vec::new();
    let has_state = s.is_some();
    let visited = |l: usize| reach.prefix(l) || (has_state && reach.state(l));
    let first = (0..d.depth).find(|l| visited(*l)).unwrap_or(d.depth);
    for (l, cache) in cache.iter().enumerate() {
        let (language, expert) = (&p.language[l], &p.expert[l]);
        let keep = keep.filter(|_| l >= first);
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
            let y = gpu.alloc(net.residual, input.shape());
            let o = joint.o.rows(range.clone());
            let done = gemma::finish(gpu, block, None, input, &o, &y, keep == Some(Remat::None));
            let tape = BlockTape {
                x: input.clone(),
                qkv: joint.qkv.rows(range.clone()),
                o,
                lse: joint.lse.rows(range),
                middle: (keep != Some(Remat::Full)).then_some(done.middle),
                gate_up: done.gate_up,
                branches: None,
            };
            (done.y.whole(gpu), tape)
        };
        // Where nothing of the prefix learns, backward goes through the state's rows alone.
        let keep_prefix = keep.filter(|_| reach.prefix(l)).or(Some(Remat::Full));
        let (x_next, prefix) = step(language, &x, 0..r, keep_prefix);
        let after = s.as_ref().map(|s| step(expert, s, r..r + layout.states, keep));
        x = x_next;
        let (s_next, state) = after.map_or((None, None), |(y, t)| (Some(y), Some(t)));
        s = s_next;
        if keep.is_some() {
            layers.push(LayerTape::Whole(Box::new(WholeTape { joint, prefix, state })));
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
    let tape = keep.map(|_| Tape {
        vision,
        first,
        layers,
        last,
    });
    Prefix { tokens, out, tape }
}

pub(super) fn language_norm(p: &Pi0Params) -> &Tensor {
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
    keep: Option<(Remat, usize)>,
) -> (Tensor, Option<siglip::Saved>) {
    let d = net.dims;
    let tokens = gpu.alloc(net.residual, [layout.rows, d.language.width]);
    let mut saved = None;
    if layout.images.rows() > 0 {
        let seen = gpu.alloc(net.residual, [layout.images.rows(), d.language.width]);
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

pub(super) fn prompt_scale(d: &Pi0Dims) -> f32 {
    (d.language.width as f32).sqrt()
}

fn embed_state(gpu: &Gpu, net: &Net<'_>, layout: &PrefixLayout, state: &Tensor) -> Option<Tensor> {
    let (weight, bias) = net.params.heads.state.as_ref()?;
    let s = gpu.alloc(net.residual, [layout.states, net.dims.expert.width]);
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
    gemma::project(gpu, &net.params.language[layer], None, x.into(), &qkv.rows(0..r));
    if let Some(s) = s {
        gemma::project(gpu, &net.params.expert[layer], None, s.into(), &qkv.rows(r..m));
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
    gemma::project(gpu, &net.params.language[last], None, x.into(), &kv.rows(0..r));
    if let Some(s) = s {
        gemma::project(gpu, &net.params.expert[last], None, s.into(), &kv.rows(r..m));
    }
    let lines = Cache {
        kv: cache,
        lines: &layout.lines,
    };
    rope::forward(gpu, heads, net.rope, &layout.positions, &kv, Some(lines));
}
