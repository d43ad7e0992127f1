//! What forward passes keep for backward.

use serde::{Deserialize, Serialize};

/// How much is computed again instead of kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Remat {
    /// Keep everything: fastest.
    #[default]
    None,
    /// Compute the MLPs' wide intermediate values again.
    Mlp,
    /// Keep only the stream between blocks: least memory.
    Full,
}
