//! Weights and checkpoints on disk.
//!
//! | file | what it does |
//! |---|---|
//! | [`weights`] | opens safetensors and Orbax checkpoints, yields one tensor at a time as f32 |
//! | [`shards`], `names` | safetensors in several files; what other programs call the tensors |
//! | [`orbax`], [`jax`] | arrays of JAX checkpoints; which of them are which tensors |
//! | `fit`, `infer` | whether weights are those of a model; the sizes of the model that weights are |
//! | [`convert`] | weights for other programs |
//! | [`writer`] | writes safetensors as a stream, in constant memory |
//! | [`state`] | what a training checkpoint consists of |
//! | `manifest` | sizes and hashes of its files and tensors |
//! | [`commit`] | saves one completely or not at all, and keeps the newest few |
//! | [`background`] | the same on threads of its own, in bounded memory |
//! | [`resume`] | finds and opens saved ones |
//! | [`mod@inspect`], [`norms`] | a summary for people; how large weights are, and how far apart |
//!
//! Saving:
//! ```no_run
//! # use acrlpd::checkpoint::{CheckpointError, RunState, begin, plan, state};
//! # use acrlpd::model::params::ParamTable;
//! # fn f(dir: &std::path::Path, table: &ParamTable) -> Result<(), CheckpointError> {
//! let mut draft = begin(dir, RunState::now(1000, 42, "rl_fold_box"))?;
//! let mut file = draft.tensors(state::PARAMS, &plan("", table))?;
//! for tensor in table.tensors() {
//!     file.write(&tensor.name, &vec![0.0; tensor.len()])?;
//! }
//! draft.keep(file)?;
//! draft.commit(5)?;
//! # Ok(())
//! # }
//! ```

pub mod background;
mod channel;
pub mod commit;
pub mod convert;
mod error;
mod fit;
mod infer;
pub mod inspect;
pub mod jax;
mod manifest;
mod names;
pub mod norms;
pub mod orbax;
pub mod resume;
pub mod shards;
pub mod state;
pub mod weights;
pub mod writer;

pub use background::{Background, Saving};
pub use commit::{Draft, begin, discard, recover};
pub use error::CheckpointError;
pub use inspect::{Summary, inspect};
pub use resume::{Saved, latest, newest, open, resolve, steps};
pub use state::RunState;
pub use weights::Weights;
pub use writer::{TensorWriter, WrittenTensors, plan};
