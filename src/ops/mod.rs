//! One operation a file: the maths, the shapes, forward, backward, cost and test.
//!
//! Invariants of the whole room:
//! - Backward of a *parameter* adds into its gradient (`+=`), so accumulation over micro-batches is free; backward of
//!   an *activation* writes its gradient (`=`).
//! - Tensors are row-major and contiguous. Kernels compute in f32 whatever the storage is.
//! - No atomics: every sum has a fixed order that depends on shapes alone, so the same inputs give the same bits.
//! - Names carry shape letters in docs: B batch, C cameras, S prefix tokens, N candidates, H horizon, A action dim,
//!   D width, F mlp width, K head dim, E ensemble, T Euler steps; M rows of a packed matrix.

// `#[cube]` takes functions apart: `x * 1` makes a scalar, which is a load, a register before a loop, and a condition
// that is known at compile time must not be joined with one that is not.
#![allow(clippy::identity_op, clippy::collapsible_if)]

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod augmentations;
pub mod blocks;
pub mod blockwise;
pub mod clip;
pub mod column_sum;
pub mod embedding;
pub mod ensemble;
pub mod entropy;
pub mod erase;
pub mod fill;
pub mod flow;
pub mod gated_residual;
pub mod geglu;
pub mod gemm;
pub mod head_sum;
pub mod host_average;
pub mod image;
pub mod initial;
mod lanes;
pub mod layer_norm;
pub mod lion;
pub mod lr_schedule;
mod math;
pub mod mean_pool;
pub mod noise;
pub mod optimizers;
pub mod packed;
mod pair;
pub mod patch_embed;
pub mod reduce;
pub mod rms_norm;
pub mod roofline;
pub mod rope;
mod rows;
pub mod smoothness;
pub mod soft_update;
pub mod softmax;
pub mod split;
pub mod td;
#[cfg(test)]
pub(crate) mod testing;
pub mod time_embedding;
pub mod update;
pub mod watch;
mod wide;
