//! Pure networks: sizes, parameters, forward and backward. No training, no files, no ranks.
//!
//! - [`dims`], [`tables`], [`params`], [`bind`]: how large, called what, where in memory, as which matrices.
//! - [`lookup`]: the prompt table, of which only rows that have occurred learn.
//! - [`freeze`]: which parameters learn, and how far gradients have to travel for them.
//! - [`projection`]: a weight matrix with its low-rank adapter, forward and backward.
//! - [`merge`]: adapters into the matrices they are for.
//! - [`siglip`]: pictures to tokens. [`gemma`]: one transformer block, used by the language stream and the expert.
//! - [`stream`]: how activations are stored, and the gradients of residual streams.
//! - [`prefix`]: everything about an observation, once: tokens, keys and values of every layer, pooled features.
//! - [`suffix`]: action tokens over a cached prefix: the velocity field, its sampling and its backward.
//! - [`critic`]: the ensemble. [`critic_networks`]: what its members can be.

pub mod bind;
pub mod critic;
pub mod critic_networks;
pub mod critic_residual;
pub mod dims;
pub mod flow_time;
pub mod freeze;
pub mod gemma;
pub mod layout;
pub mod lookup;
pub mod merge;
pub mod params;
mod placement;
pub mod prefix;
mod prefix_backward;
pub mod projection;
pub mod remat;
pub mod siglip;
mod store;
pub mod stream;
pub mod suffix;
pub mod suffix_backward;
pub mod tables;
