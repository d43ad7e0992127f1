//! The optimizers a configuration can name, one line each. docs/EXTENDING.md adds one step by step.

use serde::{Deserialize, Serialize};

pub use super::adamw::{AdamW, Control, Flat, Update};
pub use super::lion::Lion;
use crate::gpu::Gpu;

/// Hyperparameters as a configuration gives them; an optimizer takes those it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// What an optimizer is: how it is made, what it keeps, and one pass over flat memory.
pub trait Rule: Copy {
    /// Does it keep a second moment beside the first? If not, there is no memory for one.
    const SECOND_MOMENT: bool;

    /// From hyperparameters.
    fn new(hyper: Hyper) -> Self;

    /// One update of `flat`, which belongs to group `group` of `control`: new weights, moments, average and compute
    /// copies where `control` says so, and zero gradients always.
    fn step(self, gpu: &Gpu, update: Update, control: &Control, group: usize, flat: Flat<'_>);
}

/// Makes the choice of a configuration, and the optimizer it stands for, of the lines below.
macro_rules! optimizers {
    ($($(#[$doc:meta])* $rule:ident = $name:literal;)+) => {
        /// Names of the optimizers in a configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $name)] $rule,)+
        }

        impl Kind {
            /// The optimizer with these hyperparameters.
            pub fn with(self, hyper: Hyper) -> Optimizer {
                match self { $(Kind::$rule => $rule::new(hyper).into(),)+ }
            }
        }

        /// An optimizer with its hyperparameters.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Optimizer {
            $($(#[$doc])* $rule($rule),)+
        }

        impl Optimizer {
            /// Does it keep a second moment?
            pub fn second_moment(self) -> bool {
                match self { $(Optimizer::$rule(_) => <$rule as Rule>::SECOND_MOMENT,)+ }
            }

            /// [`Rule::step`] of the one chosen.
            pub fn step(self, gpu: &Gpu, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
                match self { $(Optimizer::$rule(rule) => rule.step(gpu, update, control, group, flat),)+ }
            }
        }

        $(impl From<$rule> for Optimizer {
            fn from(rule: $rule) -> Optimizer {
                Optimizer::$rule(rule)
            }
        })+
    };
}

optimizers! {
    /// Adam with decoupled weight decay.
    AdamW = "adamw";
    /// The sign of a momentum.
    Lion = "lion";
}
