//! Which fixture groups there are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Result, VerifyError, published};

/// What lies in a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Groups by their paths without extensions, in order.
    pub groups: Vec<PathBuf>,
    /// Everything else, which nothing here judges.
    pub skipped: Vec<PathBuf>,
}

/// The groups of a folder, or the one that `path` names: GROUP, GROUP.json, or one of its safetensors.
pub(super) fn find(path: &Path) -> Result<Found> {
    let found = if path.is_dir() { folder(path)? } else { one(path)? };
    if found.groups.is_empty() {
        return Err(VerifyError::NothingFound { path: path.into() });
    }
    Ok(found)
}

fn folder(path: &Path) -> Result<Found> {
    let file_error = |e: std::io::Error| VerifyError::File {
        path: path.into(),
        why: e.to_string(),
    };
    let (mut found, mut tensors) = (Found::default(), Vec::new());
    for entry in std::fs::read_dir(path).map_err(file_error)? {
        let file = entry.map_err(file_error)?.path();
        let extension = file.extension().and_then(|e| e.to_str()).unwrap_or_default();
        match extension {
            "json" if is_group(&file.with_extension(""))? => found.groups.push(file.with_extension("")),
            "safetensors" if file.is_file() => tensors.push(file),
            _ => found.skipped.push(file),
        }
    }
    // Numbers that nobody judges must not look judged.
    for file in tensors {
        let described = |g: &PathBuf| name_of(&file).starts_with(&format!("{}.", name_of(g)));
        if !found.groups.iter().any(described) {
            return Err(VerifyError::File {
                path: file,
                why: "the description of its group, NAME.json, is not beside it".into(),
            });
        }
    }
    found.groups.sort();
    found.skipped.sort();
    Ok(found)
}

fn one(path: &Path) -> Result<Found> {
    let mut stem = path.to_path_buf();
    loop {
        if json_of(&stem).is_file() && is_group(&stem)? {
            return Ok(Found {
                groups: vec![stem],
                skipped: Vec::new(),
            });
        }
        let shorter = stem.with_extension("");
        if shorter == stem {
            return Ok(Found::default());
        }
        stem = shorter;
    }
}

/// Is `stem`.json a description: are there tensors beside it, or is it a table of shapes?
fn is_group(stem: &Path) -> Result<bool> {
    Ok(!tensor_files(stem)?.is_empty() || description(stem).is_ok_and(|json| published::is_table(&json)))
}

fn json_of(stem: &Path) -> PathBuf {
    stem.with_file_name(format!("{}.json", name_of(stem)))
}

/// The description of a group.
pub(super) fn description(stem: &Path) -> Result<Value> {
    let path = json_of(stem);
    let broken = |why: String| VerifyError::File {
        path: path.clone(),
        why,
    };
    let bytes = std::fs::read(&path).map_err(|e| broken(e.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))
}

/// The last component of a path.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `GROUP.safetensors` and `GROUP.*.safetensors`.
pub(super) fn tensor_files(stem: &Path) -> Result<Vec<(String, PathBuf)>> {
    let folder = stem
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = name_of(stem);
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(files);
    };
    for entry in entries.flatten() {
        let file = name_of(&entry.path());
        let Some(rest) = file.strip_prefix(&name).and_then(|r| r.strip_suffix(".safetensors")) else {
            continue;
        };
        match rest.strip_prefix('.') {
            None if rest.is_empty() => files.push((String::new(), entry.path())),
            Some(part) if !part.contains('.') => files.push((part.to_string(), entry.path())),
            _ => {}
        }
    }
    files.sort();
    Ok(files)
}
