//! What a user should know about the names in their files: which mean another key, which are ignored.

use std::fmt;

use toml::Value;

use super::error::Place;
use super::foreign::Foreign;

/// Something about one key of a file.
#[derive(Clone, Debug)]
pub struct Note {
    /// Where it is written.
    pub place: Place,
    /// As it is written.
    pub key: String,
    /// What it is.
    pub what: What,
}

/// What a key of the original is here.
#[derive(Clone, Debug)]
pub enum What {
    /// Another name of this key.
    Means(String),
    /// Nothing: its value asks for nothing.
    Ignored {
        /// What is known about the key.
        foreign: &'static Foreign,
        /// `None`: null.
        value: Option<Value>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Note { place, key, what } = self;
        match what {
            What::Means(means) => write!(f, "{place}: `{key}` is {means}"),
            What::Ignored { foreign, .. } => write!(f, "{place}: `{key}` is ignored: {}", foreign.why),
        }
    }
}
