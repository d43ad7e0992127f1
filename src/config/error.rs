//! Everything that can be wrong with a configuration. Each message is one sentence: what, where, why, what to do.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error(
        "there is no configuration `{name}`{wanted_by}; give one of {presets}, or the path of a .toml or .json file{nearest}"
    )]
    NoSuchConfig {
        name: String,
        wanted_by: String,
        presets: String,
        nearest: String,
    },
    #[error("cannot read the configuration `{path}`{wanted_by}: {source}; check the path and its permissions")]
    Read {
        path: PathBuf,
        wanted_by: String,
        source: std::io::Error,
    },
    #[error("{place} is not {format}: {reason}; correct the line")]
    Syntax {
        place: Place,
        format: &'static str,
        reason: String,
    },
    #[error("{place}: unknown key `{key}`{nearest}")]
    UnknownKey { place: Place, key: String, nearest: String },
    #[error("{place}: {key} is not supported: {why}")]
    Unsupported {
        place: Place,
        key: String,
        why: &'static str,
    },
    #[error("{place}: `{key}` cannot be used: {reason}")]
    Value { place: Place, key: String, reason: String },
    #[error("{place}: `{key}` sets `{means}`, which {other} sets to another value; keep one of the two")]
    Twice {
        place: Place,
        key: String,
        means: String,
        other: Box<Place>,
    },
    #[error("{place}: `base` leads back to {to}; a configuration cannot inherit from itself")]
    Cycle { place: Place, to: String },
    #[error("configuration `{name}` has no {key}: {fix}")]
    Missing {
        name: String,
        key: &'static str,
        fix: String,
    },
}

/// The flag that sets any key.
pub const SET: &str = "--set";

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, at a line counted from 1.
    File { path: PathBuf, line: usize },
    /// In a preset of the program, at a line counted from 1.
    Preset { name: String, line: usize },
    /// By a flag, or [`Config::set`](super::Config::set).
    Flag {
        flag: &'static str,
        key: String,
        value: String,
    },
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File { path, line } => write!(f, "`{}` line {line}", path.display()),
            Place::Preset { name, line } => write!(f, "preset `{name}` line {line}"),
            Place::Flag { flag, key, value } if *flag == SET => write!(f, "setting `{key}={value}`"),
            Place::Flag { flag, value, .. } => write!(f, "`{flag} {value}`"),
            Place::Default => f.write_str("the default"),
        }
    }
}
