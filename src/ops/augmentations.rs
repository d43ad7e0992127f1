//! The augmentations a configuration can add to openpi's ([`image`](super::image)), one line each. docs/EXTENDING.md
//! adds one step by step.

use serde::{Deserialize, Serialize};

pub use super::erase::Erase;
use crate::gpu::{Gpu, Tensor};
use crate::rng::Key;

/// What happens to pictures that are on the device already, as f32 in [-1, 1].
pub trait Augmentation {
    /// What will happen to one picture of `size` × `size` pixels: four numbers of its own choice. All zero must leave
    /// the picture as it is.
    fn draw(key: Key, size: usize) -> [f32; 4];

    /// Changes `pictures [n, S, S, 3]` in place by `draws [n, 4]`.
    fn apply(gpu: &Gpu, pictures: &Tensor, draws: &Tensor);
}

/// What one augmentation does to each of several pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    pub kind: Kind,
    /// A draw for each picture.
    pub draws: Vec<[f32; 4]>,
}

/// Makes the choice of a configuration of the lines below.
macro_rules! augmentations {
    ($($(#[$doc:meta])* $augmentation:ident = $name:literal;)+) => {
        /// Names of the augmentations in a configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $name)] $augmentation,)+
        }

        impl Kind {
            /// [`Augmentation::draw`]; `key` names the picture, and each augmentation has numbers of its own.
            pub fn draw(self, key: Key, size: usize) -> [f32; 4] {
                let key = key.fold(self as u64);
                match self { $(Kind::$augmentation => $augmentation::draw(key, size),)+ }
            }

            /// [`Augmentation::apply`] of draws from the host.
            pub fn apply(self, gpu: &Gpu, pictures: &Tensor, draws: &[[f32; 4]]) {
                let draws = gpu.upload_f32(draws.as_flattened(), [draws.len(), 4]);
                match self { $(Kind::$augmentation => $augmentation::apply(gpu, pictures, &draws),)+ }
            }
        }
    };
}

// New lines go to the end: the place of a line keys its random numbers.
augmentations! {
    /// A grey rectangle.
    Erase = "erase";
}
