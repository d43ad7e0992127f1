//! JSON files with errors that name the file and the line.

use std::fs;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::DataError;

/// The text of a file; `role` says in a message what it is for.
pub(super) fn read(path: &Path, role: &'static str) -> Result<String, DataError> {
    fs::read_to_string(path).map_err(|source| DataError::Read {
        path: path.to_owned(),
        role,
        source,
    })
}

/// Parses `text`, which starts at line `first_line` of the file.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, first_line: usize, text: &str) -> Result<T, DataError> {
    serde_json::from_str(text).map_err(|e| {
        let full = e.to_string();
        // serde_json appends its own position, which counts from the start of `text`.
        let reason = full
            .rsplit_once(" at line ")
            .map_or(full.as_str(), |(reason, _)| reason)
            .to_owned();
        DataError::Json {
            path: path.to_owned(),
            line: first_line + e.line().max(1) - 1,
            reason,
        }
    })
}

/// The objects of a JSON-lines file with their line numbers, counted from 1.
pub(super) fn lines<T: DeserializeOwned>(path: &Path, role: &'static str) -> Result<Vec<(usize, T)>, DataError> {
    let text = read(path, role)?;
    let numbered = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    numbered.map(|(i, l)| Ok((i + 1, parse(path, i + 1, l)?))).collect()
}
