//! What a training checkpoint consists of: the names of its files, and the small facts in `state.json`.
//!
//! | file | content |
//! |---|---|
//! | `params.safetensors` | π₀, under openpi's names |
//! | `ema.safetensors` | its moving average, if one is kept, under the same names |
//! | `critic.safetensors` | `online/NAME` and `target/NAME` |
//! | `optimizer.safetensors` | `pi0_m/NAME`, `pi0_v/NAME`, `critic_m/NAME`, `critic_v/NAME`, `temperature/NAME` |
//! | `config.toml` | the effective configuration |
//! | `norm_stats.json` | the statistics the data was normalised with |
//! | `state.json` | [`RunState`] |
//! | `manifest.json` | sizes and xxh3 of all of the above and of their tensors; written last, so a checkpoint without one is not one |
//!
//! A file of tensors that is too large is in shards instead, with an index (`shards`).
//!
//! Batches, noise and learning rates are functions of the seed and the step, so there is nothing else to store.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::{CheckpointError, Result};
use crate::files;

pub const PARAMS: &str = "params.safetensors";
pub const EMA: &str = "ema.safetensors";
pub const CRITIC: &str = "critic.safetensors";
pub const OPTIMIZER: &str = "optimizer.safetensors";
pub const CONFIG: &str = "config.toml";
pub const NORM_STATS: &str = "norm_stats.json";
pub const STATE: &str = "state.json";

/// Sections of `critic.safetensors`.
pub const ONLINE: &str = "online/";
pub const TARGET: &str = "target/";
/// Sections of `optimizer.safetensors`: first and second moments, and the temperature's state.
pub const PI0_M: &str = "pi0_m/";
pub const PI0_V: &str = "pi0_v/";
pub const CRITIC_M: &str = "critic_m/";
pub const CRITIC_V: &str = "critic_v/";
pub const TEMPERATURE: &str = "temperature/";

/// Version of this layout.
pub const FORMAT: u32 = 3;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunState {
    /// Version of the layout.
    pub format: u32,
    /// Optimizer steps done; training goes on with the step of this number.
    pub step: u64,
    pub seed: u64,
    /// Name of the configuration.
    pub config: String,
    /// Version of the program.
    pub version: String,
    /// Steps whose gradients were not finite; they changed nothing.
    pub skipped: u64,
    /// When it was saved, in seconds since 1970 (UTC).
    pub saved_unix_s: u64,
    /// Rows of the prompt table that the moments of it are of, in their order; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_rows: Option<Vec<u32>>,
}

impl RunState {
    /// The state now, after `step` steps.
    pub fn now(step: u64, seed: u64, config: &str) -> RunState {
        RunState {
            format: FORMAT,
            step,
            seed,
            config: config.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            skipped: 0,
            saved_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            prompt_rows: None,
        }
    }

    /// Reads the state of the checkpoint in `folder`.
    ///
    /// # Errors
    /// Unreadable JSON, and formats of later versions.
    pub fn read(folder: &Path) -> Result<RunState> {
        let text = files::read(&folder.join(STATE))?;
        let damaged = |e: serde_json::Error| CheckpointError::Damaged {
            path: folder.to_owned(),
            reason: format!("{STATE} cannot be read ({e})"),
        };
        // The version first: what it does not know it need not understand.
        let value: serde_json::Value = serde_json::from_str(&text).map_err(damaged)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(found) if found > u64::from(FORMAT) => Err(CheckpointError::TooNew {
                path: folder.to_owned(),
                found,
                known: FORMAT,
            }),
            _ => serde_json::from_value(value).map_err(damaged),
        }
    }
}
