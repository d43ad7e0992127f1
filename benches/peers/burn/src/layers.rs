//! Layers of SigLIP, of Gemma and of the action expert.

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use burn::tensor::backend::Backend;

use crate::fixture::Dims;
use crate::weights::{EPS, Loader};

/// The tanh form.
fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let inner = x.clone().square().mul_scalar(0.044_715 * scale).add_scalar(scale);
    inner.mul(x.clone()).tanh().mul_scalar(0.5).add_scalar(0.5).mul(x)
}

/// `x · sigmoid x`, by tanh: burn's sigmoid is six kernels with a logarithm among them.
pub fn silu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let half = x.clone().mul_scalar(0.5);
    half.tanh().mul_scalar(0.5).add_scalar(0.5).mul(x)
}

/// `x` with mean 0 and variance 1 along its last axis.
pub fn normalized<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let centred = x.clone().sub(x.mean_dim(D - 1));
    let variance = centred.clone().square().mean_dim(D - 1);
    centred.div(variance.add_scalar(EPS).sqrt())
}

pub fn rms_norm<B: Backend>(x: Tensor<B, 3>, offset: &Param<Tensor<B, 1>>) -> Tensor<B, 3> {
    let size = x.clone().square().mean_dim(2).add_scalar(EPS).sqrt();
    x.div(size).mul(offset.val().add_scalar(1.0).unsqueeze())
}

#[derive(Module, Debug)]
pub struct VisionBlock<B: Backend> {
    before: LayerNorm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    between: LayerNorm<B>,
    fc1: Linear<B>,
    fc2: Linear<B>,
}

impl<B: Backend> VisionBlock<B> {
    pub fn load(w: &mut Loader<'_, B>, at: &str) -> anyhow::Result<Self> {
        Ok(VisionBlock {
            before: w.layer_norm(&format!("{at}layer_norm1"))?,
            q: w.linear(&format!("{at}self_attn.q_proj"))?,
            k: w.linear(&format!("{at}self_attn.k_proj"))?,
            v: w.linear(&format!("{at}self_attn.v_proj"))?,
            o: w.linear(&format!("{at}self_attn.out_proj"))?,
            between: w.layer_norm(&format!("{at}layer_norm2"))?,
            fc1: w.linear(&format!("{at}mlp.fc1"))?,
            fc2: w.linear(&format!("{at}mlp.fc2"))?,
        })
    }

    pub fn forward(&self, x: Tensor<B, 3>, heads: usize) -> Tensor<B, 3> {
        let [n, t, width] = x.dims();
        let split = |y: Tensor<B, 3>| y.reshape([n, t, heads, width / heads]).swap_dims(1, 2);
        let y = self.before.forward(x.clone());
        let scale = ((width / heads) as f64).powf(-0.5);
        let q = split(self.q.forward(y.clone())).mul_scalar(scale);
        let k = split(self.k.forward(y.clone()));
        let v = split(self.v.forward(y));
        let seen = softmax(q.matmul(k.transpose()), 3).matmul(v);
        let x = x.add(self.o.forward(seen.swap_dims(1, 2).reshape([n, t, width])));
        let y = self.between.forward(x.clone());
        x.add(self.fc2.forward(gelu(self.fc1.forward(y))))
    }
}

/// Angles of positions, `[B, T, 1, head dim]`; the first half of the sines is negative.
#[derive(Clone, Debug)]
pub struct Angles<B: Backend> {
    pub cos: Tensor<B, 4>,
    pub sin: Tensor<B, 4>,
}

impl<B: Backend> Angles<B> {
    fn turn(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let half = x.dims()[3] / 2;
        let halves = [x.clone().narrow(3, half, half), x.clone().narrow(3, 0, half)];
        let other = Tensor::cat(halves.into(), 3);
        x.mul(self.cos.clone()).add(other.mul(self.sin.clone()))
    }
}

/// Keys and values of a layer, `[B, T, head dim]`.
pub type Pair<B> = (Tensor<B, 3>, Tensor<B, 3>);

/// What is added to the scores of `[B, 1, 1, T]` keys: nothing, or so much that they vanish.
pub type Bias<B> = Option<Tensor<B, 4>>;

/// A layer of Gemma or of the expert.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    before: Param<Tensor<B, 1>>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    o: Linear<B>,
    between: Param<Tensor<B, 1>>,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: Backend> Block<B> {
    pub fn load(w: &mut Loader<'_, B>, at: &str) -> anyhow::Result<Self> {
        Ok(Block {
            before: w.plain(&format!("{at}input_layernorm.weight"))?,
            q: w.linear(&format!("{at}self_attn.q_proj"))?,
            k: w.linear(&format!("{at}self_attn.k_proj"))?,
            v: w.linear(&format!("{at}self_attn.v_proj"))?,
            o: w.linear(&format!("{at}self_attn.o_proj"))?,
            between: w.plain(&format!("{at}post_attention_layernorm.weight"))?,
            gate: w.linear(&format!("{at}mlp.gate_proj"))?,
            up: w.linear(&format!("{at}mlp.up_proj"))?,
            down: w.linear(&format!("{at}mlp.down_proj"))?,
        })
    }

    /// Normalised tokens, and their keys and values.
    pub fn keys(&self, x: Tensor<B, 3>, at: &Angles<B>) -> (Tensor<B, 3>, Pair<B>) {
        let y = rms_norm(x, &self.before);
        let k = at.turn(self.k.forward(y.clone()).unsqueeze_dim(2)).squeeze_dim(2);
        let v = self.v.forward(y.clone());
        (y, (k, v))
    }

    /// Tokens that see `cache` and each other, as far as `bias` lets them; their own keys and values, too.
    pub fn forward(
        &self,
        x: Tensor<B, 3>,
        at: &Angles<B>,
        cache: Option<&Pair<B>>,
        bias: &Bias<B>,
        d: &Dims,
    ) -> (Tensor<B, 3>, Pair<B>) {
        let [b, t, _] = x.dims();
        let (y, own) = self.keys(x.clone(), at);
        let (k, v) = cache.map_or_else(|| own.clone(), |cache| joined(cache, &own, 1));
        let q = at.turn(self.q.forward(y).reshape([b, t, d.heads, d.head_dim]));
        // One head of keys and values serves all heads of queries: they are rows of one product.
        let q = q
            .mul_scalar((d.head_dim as f64).powf(-0.5))
            .reshape([b, t * d.heads, d.head_dim]);
        let mut scores = q.matmul(k.transpose());
        if let Some(bias) = bias {
            let keys = scores.dims()[2];
            let scored = scores.reshape([b, t, d.heads, keys]).add(bias.clone());
            scores = scored.reshape([b, t * d.heads, keys]);
        }
        let seen = softmax(scores, 2).matmul(v).reshape([b, t, d.heads * d.head_dim]);
        let x = x.add(self.o.forward(seen));
        let y = rms_norm(x.clone(), &self.between);
        let inner = gelu(self.gate.forward(y.clone())).mul(self.up.forward(y));
        (x.add(self.down.forward(inner)), own)
    }
}

pub fn joined<B: Backend>(one: &Pair<B>, other: &Pair<B>, axis: usize) -> Pair<B> {
    let cat = |a: &Tensor<B, 3>, b: &Tensor<B, 3>| Tensor::cat(vec![a.clone(), b.clone()], axis);
    (cat(&one.0, &other.0), cat(&one.1, &other.1))
}
