//! The critic networks a configuration can name, one line each. docs/EXTENDING.md adds one step by step.
//!
//! A network is a stack of the layers of [`critic`](super::critic) and what stands between them.

use serde::{Deserialize, Serialize};

pub use super::critic::Mlp;
pub use super::critic_residual::Residual;
use crate::gpu::{Gpu, Tensor};

/// What stands between a hidden layer and the one below it. R rows, E members.
pub trait CriticNetwork {
    /// Parameters are called `critic.LAYERS.I.…`: what was trained as one network is not taken for another.
    const LAYERS: &'static str;

    /// What the next layer reads, made in place of what the layer has put out, `hidden [E, R, h]`; `below [E, R, h']` is
    /// what the layer has read.
    fn join(gpu: &Gpu, below: &Tensor, hidden: &Tensor);

    /// Backward of [`join`](Self::join): `dhidden [E, R, h]` is the gradient at what it has made and goes on to the layer
    /// as it is; what reaches `below` beside the layer is written to `dbelow [E, R, h']`. False: nothing does.
    fn split(gpu: &Gpu, dhidden: &Tensor, dbelow: &Tensor) -> bool;
}

/// Makes the choice of a configuration of the lines below.
macro_rules! networks {
    ($($(#[$doc:meta])* $network:ident = $name:literal;)+) => {
        /// Names of the critic networks in a configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Network {
            $($(#[$doc])* #[serde(rename = $name)] $network,)+
        }

        impl Network {
            /// [`CriticNetwork::LAYERS`].
            pub fn layers(self) -> &'static str {
                match self { $(Network::$network => $network::LAYERS,)+ }
            }

            /// [`CriticNetwork::join`].
            pub fn join(self, gpu: &Gpu, below: &Tensor, hidden: &Tensor) {
                match self { $(Network::$network => $network::join(gpu, below, hidden),)+ }
            }

            /// [`CriticNetwork::split`].
            pub fn split(self, gpu: &Gpu, dhidden: &Tensor, dbelow: &Tensor) -> bool {
                match self { $(Network::$network => $network::split(gpu, dhidden, dbelow),)+ }
            }
        }
    };
}

networks! {
    /// Each layer reads the one below.
    Mlp = "mlp";
    /// Each layer adds to what it reads.
    Residual = "residual";
}
