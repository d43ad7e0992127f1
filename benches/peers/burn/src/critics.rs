//! The critics.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::backend::Backend;

use crate::fixture::Dims;
use crate::layers::normalized;
use crate::weights::Loader;

#[derive(Module, Debug)]
struct CriticLayer<B: Backend> {
    weight: Param<Tensor<B, 3>>,
    bias: Param<Tensor<B, 2>>,
    norm_weight: Param<Tensor<B, 2>>,
    norm_bias: Param<Tensor<B, 2>>,
}

/// Critics, side by side.
#[derive(Module, Debug)]
pub struct Critics<B: Backend> {
    layers: Vec<CriticLayer<B>>,
    weight: Param<Tensor<B, 3>>,
    bias: Param<Tensor<B, 2>>,
}

impl<B: Backend> Critics<B> {
    pub fn load(w: &mut Loader<'_, B>, d: &Dims) -> anyhow::Result<Self> {
        let layer = |w: &mut Loader<'_, B>, i: usize| {
            let at = format!("critic.layers.{i}.");
            anyhow::Ok(CriticLayer {
                weight: w.matrices(&format!("{at}linear.weight"))?,
                bias: w.plain(&format!("{at}linear.bias"))?,
                norm_weight: w.plain(&format!("{at}norm.weight"))?,
                norm_bias: w.plain(&format!("{at}norm.bias"))?,
            })
        };
        Ok(Critics {
            layers: (0..d.critic_hidden.len())
                .map(|i| layer(w, i))
                .collect::<Result<_, _>>()?,
            weight: w.matrices("critic.out.weight")?,
            bias: w.plain("critic.out.bias")?,
        })
    }

    /// `[B, F]`, `[B, H, A]` → `[E, B]`
    pub fn forward(&self, features: Tensor<B, 2>, actions: Tensor<B, 3>, d: &Dims) -> Tensor<B, 2> {
        let flat = actions.narrow(2, 0, d.real_action_dim).flatten(1, 2);
        let mut x = Tensor::cat(vec![features, flat], 1).unsqueeze::<3>();
        let row = |x: &Param<Tensor<B, 2>>| x.val().unsqueeze_dim::<3>(1);
        for layer in &self.layers {
            let y = x.matmul(layer.weight.val()).add(row(&layer.bias));
            let y = normalized(y).mul(row(&layer.norm_weight)).add(row(&layer.norm_bias));
            x = relu(y);
        }
        x.matmul(self.weight.val()).add(row(&self.bias)).squeeze_dim(2)
    }
}

/// What critics see of an observation: the mean of its valid tokens, and its state.
pub fn features<B: Backend>(tokens: Tensor<B, 3>, valid: Tensor<B, 2>, state: Tensor<B, 2>, d: &Dims) -> Tensor<B, 2> {
    let valid = valid.unsqueeze_dim::<3>(2);
    let sum = tokens.mul(valid.clone()).sum_dim(1);
    let mean = sum.div(valid.sum_dim(1).clamp_min(1.0)).squeeze_dim(1);
    Tensor::cat(vec![mean, state.narrow(1, 0, d.real_action_dim)], 1)
}
