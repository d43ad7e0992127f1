//! AdamW: Adam with decoupled weight decay.
//!
//! ```text
//! m ← β₁ m + (1 - β₁) c      v ← β₂ v + (1 - β₂) c²      c: the gradient, clipped
//! p ← p - lr ( m / (1 - β₁ᵗ) / (sqrt(v / (1 - β₂ᵗ)) + ε) + λ p )
//! ```
//! Source: Loshchilov & Hutter 2019 (decoupled decay on every tensor, as the reference does). What the pass does
//! besides, and what it costs: [`update`](super::update).

use cubecl::prelude::*;

use super::optimizers::{Hyper, Kind, Rule};
use super::update::{Numbers, Update};

/// Hyperparameters of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

impl Rule for AdamW {
    const KIND: Kind = Kind::AdamW;
    const SECOND_MOMENT: bool = true;

    fn new(hyper: Hyper) -> AdamW {
        AdamW {
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            weight_decay: hyper.weight_decay,
        }
    }

    fn numbers(self, update: Update) -> Numbers {
        let unbias = |beta: f32| (1.0 / (1.0 - libm::pow(beta as f64, update.t as f64))) as f32;
        Numbers {
            lr: update.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            decay: self.weight_decay,
            unbias1: unbias(self.beta1),
            unbias2: unbias(self.beta2),
            rate: update.rate,
        }
    }
}

/// The new moments, from the gradient `c`.
#[cube]
pub(super) fn adamw_moments(m: f32, v: f32, c: f32, n: &Numbers) -> (f32, f32) {
    (n.beta1 * m + (1.0 - n.beta1) * c, n.beta2 * v + (1.0 - n.beta2) * c * c)
}

/// The new weight, from the new moments.
#[cube]
pub(super) fn adamw_weight(p: f32, first: f32, second: f32, n: &Numbers) -> f32 {
    let step = first * n.unbias1 / (f32::sqrt(second * n.unbias2) + n.eps);
    p - n.lr * (step + n.decay * p)
}
