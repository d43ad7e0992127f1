//! π₀: a prefix pass that is cached, and action tokens that see it.

use burn::module::{Module, Param};
use burn::nn::{LayerNorm, Linear};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::module::embedding;
use burn::tensor::{Int, Tensor};

use crate::fixture::Dims;
use crate::layers::{Angles, Bias, Block, Pair, VisionBlock, joined, rms_norm, silu};
use crate::weights::Loader;

const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
const PROJECTOR: &str = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear";
const LANGUAGE: &str = "paligemma_with_expert.paligemma.model.language_model.";
const EXPERT: &str = "paligemma_with_expert.gemma_expert.model.";

/// An observation on the device.
#[derive(Clone, Debug)]
pub struct Observation<B: Backend> {
    /// Of all cameras, one after the other.
    pub images: Tensor<B, 4>,
    pub tokens: Tensor<B, 2, Int>,
    pub state: Tensor<B, 2>,
    /// 1 where a token of the prefix is one, `[B, T]`.
    pub valid: Tensor<B, 2>,
    pub prefix_at: Angles<B>,
    pub state_at: Angles<B>,
    pub chunk_at: Angles<B>,
    /// For the keys of the prefix, with the state, and with the chunk.
    pub biases: [Bias<B>; 3],
}

/// What a pass over an observation leaves for the action tokens.
#[derive(Clone, Debug)]
pub struct Context<B: Backend> {
    /// Keys and values of the prefix and of the state.
    cache: Vec<Pair<B>>,
    at: Angles<B>,
    bias: Bias<B>,
}

impl<B: Backend> Context<B> {
    fn map<C: Backend>(
        self,
        three: impl Fn(Tensor<B, 3>) -> Tensor<C, 3>,
        four: impl Fn(Tensor<B, 4>) -> Tensor<C, 4>,
    ) -> Context<C> {
        let (cos, sin) = (four(self.at.cos), four(self.at.sin));
        Context {
            cache: self.cache.into_iter().map(|(k, v)| (three(k), three(v))).collect(),
            at: Angles { cos, sin },
            bias: self.bias.map(four),
        }
    }

    /// Of `times` candidates of each sample, candidate by candidate.
    pub fn repeated(self, times: usize) -> Self {
        self.map(|x| x.repeat_dim(0, times), |x| x.repeat_dim(0, times))
    }

    /// The rows of both.
    pub fn joined(self, other: Self) -> Self {
        let cat = |a, b| Tensor::cat(vec![a, b], 0);
        let pairs = self.cache.iter().zip(&other.cache);
        Context {
            cache: pairs.map(|(one, other)| joined(one, other, 0)).collect(),
            at: Angles {
                cos: cat(self.at.cos, other.at.cos),
                sin: cat(self.at.sin, other.at.sin),
            },
            bias: self.bias.zip(other.bias).map(|(a, b)| cat(a, b)),
        }
    }
}

impl<B: AutodiffBackend> Context<B> {
    /// Without gradients.
    pub fn inner(self) -> Context<B::InnerBackend> {
        self.map(Tensor::inner, Tensor::inner)
    }
}

/// π₀.
#[derive(Module, Debug)]
pub struct Pi0<B: Backend> {
    patches: Linear<B>,
    positions: Param<Tensor<B, 2>>,
    vision: Vec<VisionBlock<B>>,
    vision_norm: LayerNorm<B>,
    projector: Linear<B>,
    embeddings: Param<Tensor<B, 2>>,
    language: Vec<Block<B>>,
    language_norm: Param<Tensor<B, 1>>,
    expert: Vec<Block<B>>,
    expert_norm: Param<Tensor<B, 1>>,
    state: Linear<B>,
    action_in: Linear<B>,
    time_in: Linear<B>,
    time_out: Linear<B>,
    action_out: Linear<B>,
}

impl<B: Backend> Pi0<B> {
    pub fn load(w: &mut Loader<'_, B>, d: &Dims) -> anyhow::Result<Self> {
        let layers =
            |stream: &str, depth: usize| (0..depth).map(|i| format!("{stream}layers.{i}.")).collect::<Vec<_>>();
        Ok(Pi0 {
            patches: w.linear(&format!("{VISION}embeddings.patch_embedding"))?,
            positions: w.plain(&format!("{VISION}embeddings.position_embedding.weight"))?,
            vision: (layers(&format!("{VISION}encoder."), d.vit_depth).iter())
                .map(|at| VisionBlock::load(w, at))
                .collect::<Result<_, _>>()?,
            vision_norm: w.layer_norm(&format!("{VISION}post_layernorm"))?,
            projector: w.linear(PROJECTOR)?,
            embeddings: w.plain(&format!("{LANGUAGE}embed_tokens.weight"))?,
            language: (layers(LANGUAGE, d.depth).iter())
                .map(|at| Block::load(w, at))
                .collect::<Result<_, _>>()?,
            language_norm: w.plain(&format!("{LANGUAGE}norm.weight"))?,
            expert: (layers(EXPERT, d.depth).iter())
                .map(|at| Block::load(w, at))
                .collect::<Result<_, _>>()?,
            expert_norm: w.plain(&format!("{EXPERT}norm.weight"))?,
            state: w.linear("state_proj")?,
            action_in: w.linear("action_in_proj")?,
            time_in: w.linear("action_time_mlp_in")?,
            time_out: w.linear("action_time_mlp_out")?,
            action_out: w.linear("action_out_proj")?,
        })
    }

    /// `[n, S, S, 3]` → `[n, tokens, language width]`
    fn see(&self, images: Tensor<B, 4>, d: &Dims) -> Tensor<B, 3> {
        let [n, size, _, _] = images.dims();
        let (g, p) = (size / d.patch, d.patch);
        let patches: Tensor<B, 6> = images.reshape([n, g, p, g, p, 3]);
        let patches = patches.permute([0, 1, 3, 5, 2, 4]).reshape([n, g * g, 3 * p * p]);
        let mut x = self.patches.forward(patches).add(self.positions.val().unsqueeze());
        for block in &self.vision {
            x = block.forward(x, d.vit_heads);
        }
        self.projector.forward(self.vision_norm.forward(x))
    }

    /// One pass over an observation; its embedded tokens and what action tokens see of it.
    pub fn context(&self, seen: &Observation<B>, d: &Dims) -> (Tensor<B, 3>, Context<B>) {
        let b = seen.tokens.dims()[0];
        let mut parts = self.see(seen.images.clone(), d).split(b, 0);
        let prompt = embedding(self.embeddings.val(), seen.tokens.clone());
        parts.push(prompt.mul_scalar((d.vlm_width as f64).sqrt()));
        let tokens = Tensor::cat(parts, 1);
        let [prefix, with_state, with_chunk] = &seen.biases;
        let (mut x, mut cache) = (tokens.clone(), Vec::new());
        for (i, block) in self.language.iter().enumerate() {
            // Of the last layer nobody needs more than keys and values.
            if i + 1 == self.language.len() {
                cache.push(block.keys(x.clone(), &seen.prefix_at).1);
            } else {
                let own;
                (x, own) = block.forward(x, &seen.prefix_at, None, prefix, d);
                cache.push(own);
            }
        }
        let mut x = self.state.forward(seen.state.clone()).unsqueeze_dim(1);
        for (block, cache) in self.expert.iter().zip(&mut cache) {
            let own;
            (x, own) = block.forward(x, &seen.state_at, Some(cache), with_state, d);
            *cache = joined(cache, &own, 1);
        }
        let (at, bias) = (seen.chunk_at.clone(), with_chunk.clone());
        (tokens, Context { cache, at, bias })
    }

    /// v(x, t) `[B, H, A]`; embedded times `[1 or B, 1, width]`.
    pub fn velocity(&self, context: &Context<B>, x: Tensor<B, 3>, time: Tensor<B, 3>, d: &Dims) -> Tensor<B, 3> {
        let x = self.action_in.forward(x);
        let time = time.expand(x.dims());
        let x = self.time_in.forward(Tensor::cat(vec![x, time], 2));
        let mut x = self.time_out.forward(silu(x));
        for (block, cache) in self.expert.iter().zip(&context.cache) {
            (x, _) = block.forward(x, &context.at, Some(cache), &context.bias, d);
        }
        self.action_out.forward(rms_norm(x, &self.expert_norm))
    }

    /// Euler steps from noise to actions.
    pub fn sample(&self, context: &Context<B>, noise: Tensor<B, 3>, times: &[Tensor<B, 3>], d: &Dims) -> Tensor<B, 3> {
        times.iter().fold(noise, |x, time| {
            let v = self.velocity(context, x.clone(), time.clone(), d);
            x.sub(v.div_scalar(times.len() as f64))
        })
    }
}
