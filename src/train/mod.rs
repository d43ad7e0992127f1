//! The training run: data in, steps, numbers and checkpoints out.
//!
//! | file | what it does |
//! |---|---|
//! | [`setup`] | dataset, statistics, batches; the learner |
//! | [`recipe`] | what the configuration means for the step |
//! | [`feed`], [`collate`] | batches on their way to the device, with every random number |
//! | [`run()`] | preparation, then the loop in `steps` |
//! | [`interval`], [`row`] | numbers averaged over an interval, and what a row of them holds |
//! | [`metrics`] | `metrics.jsonl` |
//! | [`guard`] | what the numbers say against going on |
//! | [`diagnose`], [`dump`] | a step that was not finite, done again, and kept for a closer look |
//! | [`eval`] | the policy on held-out episodes |
//! | [`snapshot`] | the learner in and out of checkpoints |
//! | `saver` | when checkpoints are saved, and what a full disk means |
//! | `lock` | one trainer in a run's folder |
//! | [`phases`] | where the time of one step went |
//! | [`plan`] | what a step costs, without a device |
//! | [`signals`] | Ctrl-C and `kill` |

pub mod collate;
pub mod diagnose;
pub mod dump;
mod error;
pub mod eval;
pub mod feed;
pub mod guard;
pub mod handover;
pub mod interval;
mod lock;
pub mod metrics;
pub mod phases;
pub mod plan;
mod prompt_rows;
pub mod recipe;
pub mod row;
mod run;
mod saver;
pub mod setup;
pub mod signals;
pub mod snapshot;
mod steps;

pub use error::{Result, TrainError};
pub use run::{Finish, Observer, Options, Preparation, Start, run};
