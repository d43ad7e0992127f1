//! SigLIP and the projection of its tokens to the language stream.
//!
//! ```text
//! x = patches Wᵀ + b + position                      per block:
//! h = x + out(attention(q, k, v of LN₁ x))           y = h + fc2(gelu(fc1(LN₂ h)))
//! tokens = projector(LN(x))
//! ```
//! Pictures attend to themselves; all pictures of a micro-batch are rows of the same matrices `[n·t, W]`. x, h and y are
//! the residual stream, stored as the tokens are; operands of products have the type of the weights ([`super::stream`]).

pub use super::bind::VisionBlock;
use super::bind::{Linear, Vision};
use super::flow_time::{learns, linear_params};
use super::remat::Remat;
use super::stream::StreamGrad;
use crate::gpu::{DType, Gpu, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::attention::{Attention, Columns, KeyPlan, KeyRun, Keys, Plan, Saved as Softmax, Sequence};
use crate::ops::column_sum::{self, Term};
use crate::ops::gemm::{self, Act};
use crate::ops::layer_norm::{self, LayerNorm};
use crate::ops::patch_embed;
use crate::ops::rope::Heads;

/// Which rows belong to which picture.
pub struct ImageLayout {
    images: usize,
    tokens: usize,
    plan: Plan,
    keys: KeyPlan,
}

impl ImageLayout {
    /// `images` pictures of `tokens` tokens each.
    pub fn new(gpu: &Gpu, images: usize, tokens: usize) -> ImageLayout {
        let first = |i: usize| i * tokens;
        let sequence = |i| Sequence {
            q_row0: first(i),
            q_rows: tokens,
            k_row0: first(i),
            k_rows: tokens,
            ..Default::default()
        };
        let run = |i| KeyRun {
            k_row0: first(i),
            k_rows: tokens,
            queries: vec![(first(i), tokens)],
        };
        ImageLayout {
            images,
            tokens,
            plan: Plan::new(gpu, (0..images).map(sequence).collect()),
            keys: KeyPlan::new(gpu, (0..images).map(run).collect()),
        }
    }

    /// Which queries see which keys, and the reverse.
    pub fn plans(&self) -> (&Plan, &KeyPlan) {
        (&self.plan, &self.keys)
    }

    /// Rows of all pictures.
    pub fn rows(&self) -> usize {
        self.images * self.tokens
    }
}

/// What a block keeps for backward; `None` fields are computed again there.
pub struct BlockSaved {
    attention: Option<AttentionSaved>,
    /// Value in front of the MLP's activation, `[M, F]`.
    pre: Option<Tensor>,
}

struct AttentionSaved {
    qkv: Tensor,
    o: Tensor,
    lse: Tensor,
    /// The stream between attention and MLP.
    middle: Tensor,
}

/// `y` from `x [M, W]`; keeps what `remat` says, or nothing without `keep`.
pub fn block_forward(
    gpu: &Gpu,
    p: &VisionBlock,
    heads: Heads,
    layout: &ImageLayout,
    x: &Tensor,
    y: &Tensor,
    keep: Option<Remat>,
) -> Option<BlockSaved> {
    let attention = attention_forward(gpu, p, heads, layout, x, keep.is_some());
    let dtype = operands(p);
    let normed = gpu.alloc(dtype, x.shape());
    LayerNorm::new(&p.norm2.0, &p.norm2.1).forward(gpu, &attention.middle, &normed);
    let act = gpu.alloc(dtype, [x.dim(0), p.fc1.0.dim(0)]);
    let pre = (keep == Some(Remat::None)).then(|| gpu.alloc(dtype, act.shape()));
    let mut up = gemm::nt(&normed, &p.fc1.0).bias(&p.fc1.1).act(Act::Gelu);
    if let Some(pre) = &pre {
        up = up.save_pre(pre);
    }
    up.to(gpu, &act);
    gemm::nt(&act, &p.fc2.0)
        .bias(&p.fc2.1)
        .residual(&attention.middle)
        .to(gpu, y);
    let keep = keep?;
    Some(BlockSaved {
        attention: (keep != Remat::Full).then_some(attention),
        pre,
    })
}

/// The type of a block's operands.
fn operands(p: &VisionBlock) -> DType {
    p.qkv.0.dtype()
}

fn attention_forward(
    gpu: &Gpu,
    p: &VisionBlock,
    heads: Heads,
    layout: &ImageLayout,
    x: &Tensor,
    for_backward: bool,
) -> AttentionSaved {
    let [m, w] = *x.shape() else {
        panic!("x is [M, W], not {x:?}")
    };
    let rows = |width: usize| gpu.alloc(operands(p), [m, width]);
    let (normed, qkv, o, middle) = (rows(w), rows(3 * w), rows(w), gpu.alloc(x.dtype(), [m, w]));
    let lse = gpu.f32([m, heads.q]);
    LayerNorm::new(&p.norm1.0, &p.norm1.1).forward(gpu, x, &normed);
    gemm::nt(&normed, &p.qkv.0).bias(&p.qkv.1).to(gpu, &qkv);
    let keys = Keys::fused(&qkv, heads);
    let kept = for_backward.then_some(&lse);
    Attention::new(heads).forward(gpu, &layout.plan, Columns::all(&qkv), keys, None, &o, kept);
    gemm::nt(&o, &p.out.0).bias(&p.out.1).residual(x).to(gpu, &middle);
    AttentionSaved { qkv, o, lse, middle }
}

/// `dx` from `dy`, where it is wanted; gradients of what learns are added to `g`.
#[allow(clippy::too_many_arguments)]
pub fn block_backward(
    gpu: &Gpu,
    p: &VisionBlock,
    g: &VisionBlock,
    heads: Heads,
    layout: &ImageLayout,
    x: &Tensor,
    saved: BlockSaved,
    dy: &StreamGrad,
    dx: Option<&StreamGrad>,
) {
    let [m, w] = *x.shape() else {
        panic!("x is [M, W], not {x:?}")
    };
    let dtype = operands(p);
    let rows = |width: usize| gpu.alloc(dtype, [m, width]);
    let stream = || StreamGrad::new(gpu, x.dtype(), dtype, [m, w]);
    let a = saved
        .attention
        .unwrap_or_else(|| attention_forward(gpu, p, heads, layout, x, true));
    let stats = layer_norm::stats(gpu, m);
    let normed = rows(w);

    // MLP
    let norm2 = LayerNorm::new(&p.norm2.0, &p.norm2.1);
    let pre = saved.pre.unwrap_or_else(|| {
        let pre = rows(p.fc1.0.dim(0));
        norm2.forward(gpu, &a.middle, &normed);
        gemm::nt(&normed, &p.fc1.0).bias(&p.fc1.1).to(gpu, &pre);
        pre
    });
    let (dpre, act) = (gpu.alloc(dtype, pre.shape()), gpu.alloc(dtype, pre.shape()));
    gemm::nn(&dy.operand, &p.fc2.0).to(gpu, &dpre);
    activation::backward(gpu, Activation::Gelu, &pre, &dpre, &dpre, Some(&act));
    linear_params(gpu, &dy.operand, &act, &g.fc2);
    let (dnormed, dmiddle) = (rows(w), stream());
    gemm::nn(&dpre, &p.fc1.0).to(gpu, &dnormed);
    norm2.backward(
        gpu,
        layer_norm::Backward {
            x: &a.middle,
            dy: &dnormed,
            around: Some(&dy.sum),
            dx: &dmiddle.sum,
            rounded: dmiddle.rounded(),
            y: Some(&normed),
            stats: Some(&stats),
        },
    );
    norm_params(gpu, &a.middle, &stats, &dnormed, &g.norm2);
    linear_params(gpu, &dpre, &normed, &g.fc1);

    // Attention
    let (d_o, dqkv) = (rows(w), rows(3 * w));
    let delta = gpu.f32([m, heads.q]);
    gemm::nn(&dmiddle.operand, &p.out.0).to(gpu, &d_o);
    linear_params(gpu, &dmiddle.operand, &a.o, &g.out);
    let (attention, keys) = (Attention::new(heads), Keys::fused(&a.qkv, heads));
    let softmax = Softmax { o: &a.o, lse: &a.lse };
    let (q, dq) = (Columns::all(&a.qkv), Columns::all(&dqkv));
    attention.backward_queries(gpu, &layout.plan, q, keys, None, softmax, &d_o, dq, &delta);
    let dkeys = Keys::fused(&dqkv, heads);
    attention.backward_keys(gpu, &layout.keys, q, keys, softmax, &d_o, &delta, dkeys, false);
    let norm1 = LayerNorm::new(&p.norm1.0, &p.norm1.1);
    if dx.is_some() || learns(&g.norm1) {
        let out = dx.cloned().unwrap_or_else(stream);
        gemm::nn(&dqkv, &p.qkv.0).to(gpu, &dnormed);
        norm1.backward(
            gpu,
            layer_norm::Backward {
                x,
                dy: &dnormed,
                around: Some(&dmiddle.sum),
                dx: &out.sum,
                rounded: out.rounded(),
                y: Some(&normed),
                stats: Some(&stats),
            },
        );
        norm_params(gpu, x, &stats, &dnormed, &g.norm1);
    } else if learns(&g.qkv) {
        norm1.forward(gpu, x, &normed);
    }
    linear_params(gpu, &dqkv, &normed, &g.qkv);
}

/// Gradients of a norm's weight and bias, as far as they learn.
fn norm_params(gpu: &Gpu, x: &Tensor, stats: &Tensor, dy: &Tensor, g: &Linear) {
    if !g.0.is_empty() {
        column_sum::accumulate(gpu, Term::Centred { dy, x, stats }, &g.0);
    }
    if !g.1.is_empty() {
        column_sum::accumulate(gpu, Term::Plain { dy }, &g.1);
    }
}

/// What the tower keeps for backward.
pub struct Saved {
    /// If their projection learns.
    patches: Option<Tensor>,
    /// Input of every block that backward comes to, then the input of the last norm.
    streams: Vec<Tensor>,
    blocks: Vec<BlockSaved>,
}

/// `tokens [n·t, D]` from `images [n, S, S, 3]` f32; keeps what backward needs if `keep` says how, and what the lowest
/// part is that learns: 0 the patches, 1 + i block i, then the last norm and the projection.
pub fn forward(
    gpu: &Gpu,
    p: &Vision,
    heads: Heads,
    layout: &ImageLayout,
    images: &Tensor,
    tokens: &Tensor,
    keep: Option<(Remat, usize)>,
) -> Option<Saved> {
    let (m, w) = (layout.rows(), p.position.dim(1));
    // The tokens begin the language stream: this one is stored like it.
    let (dtype, residual) = (p.projector.0.dtype(), tokens.dtype());
    let patch = p.patch.0.dim(3);
    let patches = gpu.alloc(dtype, [m, 3 * patch * patch]);
    patch_embed::cut(gpu, images, patch, &patches);
    let mut x = gpu.alloc(residual, [m, w]);
    patch_embed::forward(gpu, &patches, &p.patch.0, &p.patch.1, Some(&p.position), &x);
    let (mut streams, mut blocks) = (Vec::new(), Vec::new());
    for (i, block) in p.blocks.iter().enumerate() {
        let y = gpu.alloc(residual, [m, w]);
        let keep = keep.filter(|(_, lowest)| *lowest <= 1 + i).map(|(remat, _)| remat);
        blocks.extend(block_forward(gpu, block, heads, layout, &x, &y, keep));
        if keep.is_some() {
            streams.push(x);
        }
        x = y;
    }
    let normed = gpu.alloc(dtype, [m, w]);
    LayerNorm::new(&p.post_norm.0, &p.post_norm.1).forward(gpu, &x, &normed);
    gemm::nt(&normed, &p.projector.0).bias(&p.projector.1).to(gpu, tokens);
    let (_, lowest) = keep?;
    streams.push(x);
    Some(Saved {
        patches: (lowest == 0).then_some(patches),
        streams,
        blocks,
    })
}

/// Gradients of the tower from `dtokens`, added to `g`.
pub fn backward(gpu: &Gpu, p: &Vision, g: &Vision, heads: Heads, layout: &ImageLayout, saved: Saved, dtokens: &Tensor) {
    let Saved {
        patches,
        mut streams,
        mut blocks,
    } = saved;
    let x = streams.pop().expect("the input of the last norm was kept");
    let (residual, dtype) = (x.dtype(), p.projector.0.dtype());
    let (dnormed, normed) = (gpu.alloc(dtype, x.shape()), gpu.alloc(dtype, x.shape()));
    let mut dx = StreamGrad::new(gpu, residual, dtype, x.shape());
    let stats = layer_norm::stats(gpu, x.dim(0));
    gemm::nn(dtokens, &p.projector.0).to(gpu, &dnormed);
    let norm = LayerNorm::new(&p.post_norm.0, &p.post_norm.1);
    norm.backward(
        gpu,
        layer_norm::Backward {
            x: &x,
            dy: &dnormed,
            around: None,
            dx: &dx.sum,
            rounded: dx.rounded(),
            y: Some(&normed),
            stats: Some(&stats),
        },
    );
    norm_params(gpu, &x, &stats, &dnormed, &g.post_norm);
    linear_params(gpu, dtokens, &normed, &g.projector);
    drop((dnormed, normed, x));
    for (block, grads) in p.blocks.iter().zip(&g.blocks).rev() {
        let (Some(x), Some(saved)) = (streams.pop(), blocks.pop()) else {
            break;
        };
        let wanted = !blocks.is_empty() || patches.is_some();
        let below = wanted.then(|| StreamGrad::new(gpu, residual, dtype, x.shape()));
        block_backward(gpu, block, grads, heads, layout, &x, saved, &dx, below.as_ref());
        if let Some(below) = below {
            dx = below;
        }
    }
    if let Some(patches) = patches {
        patch_embed::backward(gpu, &patches, &dx.operand, &g.patch.0, &g.patch.1, Some(&g.position));
    }
}
