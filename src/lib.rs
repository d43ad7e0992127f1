//! acrlpd fine-tunes the π₀ vision-language-action model with action-chunked actor-critic reinforcement learning
//! (ACRLPD), on one GPU interface for CUDA, Vulkan, Metal and DX12.
//!
//! The rooms of the crate, and which way data flows through them:
//!
//! ```text
//! train ── step ── model ── ops ── gpu
//!   ├── data         LeRobot episodes → chunk batches
//!   ├── checkpoint   weights and training state on disk
//!   ├── config       what a run is told
//!   └── monitor      its rows for TensorBoard and wandb
//! report             the numbers of runs as a page
//! verify             golden fixtures → ops, model, step
//! bench              every op on the shapes of the step, and whole steps: times, and whether they are right
//! files              every write to the disk
//! rng                every random number, by counter
//! ```
//! Nothing below [`train`] knows a file, a flag or a rank; nothing above [`ops`] knows a backend. The place to start
//! reading is [`step::schedule`]: one batch, from observations to gradients.

pub mod bench;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod files;
pub mod gpu;
pub mod host_memory;
pub mod model;
pub mod monitor;
pub mod ops;
pub mod report;
pub mod rng;
pub mod step;
pub mod train;
pub mod verify;
