//! The fused ACRLPD step.
//!
//! [`schedule`] reads top to bottom: one micro-batch from observations to gradients, in five stages with a file each.
//! [`optimizer`] turns the sum of the micro-batches' gradients into an update. Nothing here waits for the device.

pub mod act;
mod action_losses;
pub mod batch;
mod candidates;
mod choice;
pub mod config;
mod critics;
mod features;
pub mod learner;
pub mod metrics;
mod observe;
pub mod optimizer;
mod packing;
mod replay;
mod sampling;
pub mod schedule;
mod temperature;

pub use batch::{MicroBatch, Noise, Observations, Pictures, Totals};
pub use config::StepConfig;
pub use learner::Learner;
