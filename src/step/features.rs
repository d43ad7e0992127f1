//! What the critics see: the mean of an observation's prefix rows, and the real coordinates of its state.

use super::batch::Who;
use super::config::Features;
use super::learner::Learner;
use crate::gpu::Tensor;
use crate::model::layout::PrefixLayout;
use crate::model::prefix::Prefix;
use crate::ops::blocks::{self, Rect};
use crate::ops::{fill, mean_pool};

/// `[B, F + real]` of the observations of a prefix.
pub fn forward(learner: &Learner, layout: &PrefixLayout, prefix: &Prefix, state: &Tensor) -> Tensor {
    let (gpu, d) = (&learner.gpu, &learner.critic_dims);
    let rows = match learner.config.features {
        Features::Embedding => &prefix.tokens,
        Features::Llm => prefix.out.as_ref().expect("the whole last layer was asked for"),
    };
    let features = gpu.f32([state.dim(0), d.observation()]);
    mean_pool::forward(gpu, rows, layout.pool(), &features);
    let (from, to) = (
        Rect::rows(state, state.dim(1)),
        Rect::from(&features, d.observation(), d.feature_width),
    );
    blocks::copy(gpu, from, to, state.dim(0), d.real_action_dim, false);
    features
}

/// Gradient at the rows under the mean `[R, D]`, from that at the features of K chosen candidates of every actor
/// `[K·actors, F + real]`. The state is data and gets none.
pub fn backward(learner: &Learner, layout: &PrefixLayout, who: &Who, k: usize, dfeatures: &Tensor) -> Tensor {
    let (gpu, d) = (&learner.gpu, &learner.critic_dims);
    let width = d.observation();
    let dpool = gpu.f32([layout.samples.len(), width]);
    fill::zero(gpu, &dpool);
    for i in 0..k {
        for (j, &sample) in who.actors.iter().enumerate() {
            let from = dfeatures.rows(i * who.actors.len() + j..i * who.actors.len() + j + 1);
            let to = dpool.rows(sample..sample + 1);
            blocks::copy(gpu, Rect::rows(&from, width), Rect::rows(&to, width), 1, width, true);
        }
    }
    let dtype = match learner.config.features {
        // The embedded tokens begin a residual stream, the output of a norm does not.
        Features::Embedding => learner.config.storage().residual(),
        Features::Llm => learner.config.dtype,
    };
    let drows = gpu.alloc(dtype, [layout.rows, d.feature_width]);
    fill::zero(gpu, &drows);
    mean_pool::backward(gpu, &dpool, layout.pool(), &drows);
    drows
}
