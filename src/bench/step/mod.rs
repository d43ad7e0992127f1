//! Whole training steps: how long, where the time goes, how near to what products reach, in how much memory, and what
//! the host does meanwhile.
//!
//! ```text
//! ladder   the same step at several sizes        batch    random batches of the fullest kind
//! measure  a learner on its batch                results  files, peers
//! listed   what a peer needs to do the same
//! ```

mod batch;
mod ladder;
mod listed;
mod measure;
mod results;

pub use batch::random_parts;
pub use ladder::{Case, cases};
pub use listed::{Listed, ListedCase, listed};
pub use measure::{Subject, measure};
pub use results::{MemoryRow, PhaseRow, StepResults, StepRow};
