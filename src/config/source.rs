//! Where configurations come from: files, and the presets inside the program.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Place};
use super::names;
use super::presets::{self, PRESETS};
use crate::data::hub::is_name;

const JSON: &str = ".json";

/// A text that may be a configuration, and how to speak of it.
pub struct Source {
    pub text: String,
    /// `None`: a preset of the program.
    pub path: Option<PathBuf>,
    pub name: String,
}

impl Source {
    /// Finds a configuration: a path, else `configs/NAME.toml` or `.json` in the current folder, else a preset of the program.
    /// A file in `above` is passed over for the preset of its name, so that `configs/debug.toml` can extend `debug`.
    /// `by` is the file that names it as its base, and where it does.
    pub fn find(wanted: &str, by: Option<(&Source, &Place)>, above: &[String]) -> Result<Source, ConfigError> {
        let wanted_by = by
            .map(|(_, place)| format!(", the base that {place} names"))
            .unwrap_or_default();
        let read = |path: PathBuf| match fs::read_to_string(&path) {
            Ok(text) => Ok(Source {
                text,
                name: stem(&path),
                path: Some(path),
            }),
            Err(source) => Err(ConfigError::Read {
                path,
                wanted_by: wanted_by.clone(),
                source,
            }),
        };
        if wanted.ends_with(".toml") || wanted.ends_with(JSON) || wanted.contains(['/', '\\']) {
            let beside = by.and_then(|(source, _)| source.path.as_deref()).and_then(Path::parent);
            let folder = beside.unwrap_or(Path::new(""));
            return read(folder.join(wanted));
        }
        for ending in [".toml", JSON] {
            let local = Path::new("configs").join(format!("{wanted}{ending}"));
            if local.is_file() && !above.contains(&id_of(&local)) {
                return read(local);
            }
        }
        if let Some(text) = presets::text(wanted) {
            return Ok(Source {
                text: text.into(),
                path: None,
                name: wanted.into(),
            });
        }
        let names = || PRESETS.iter().map(|p| p.0);
        Err(ConfigError::NoSuchConfig {
            name: wanted.into(),
            wanted_by,
            presets: names().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
            nearest: names::nearest_of(wanted, names())
                .map(|n| format!(" (did you mean `{n}`?)"))
                .unwrap_or_default(),
        })
    }

    /// Files are TOML unless they are called `.json`.
    pub fn is_json(&self) -> bool {
        self.path
            .as_ref()
            .is_some_and(|path| path.to_string_lossy().ends_with(JSON))
    }

    /// One text for each file, however its path is written.
    pub fn id(&self) -> String {
        match &self.path {
            Some(path) => id_of(path),
            None => format!("preset `{}`", self.name),
        }
    }

    pub fn place(&self, byte: usize) -> Place {
        let line = 1 + self.text.as_bytes()[..byte.min(self.text.len())]
            .iter()
            .filter(|b| **b == b'\n')
            .count();
        match &self.path {
            Some(path) => Place::File {
                path: path.clone(),
                line,
            },
            None => Place::Preset {
                name: self.name.clone(),
                line,
            },
        }
    }

    /// Where relative paths in this text start: beside the file, or beside its folder if that is called `configs`; for
    /// a preset the current folder.
    pub fn folder(&self) -> Option<PathBuf> {
        let path = std::path::absolute(self.path.as_deref()?).ok()?;
        let folder = path.parent()?;
        if folder.file_name().is_some_and(|n| n == "configs") {
            return folder.parent().map(Path::to_owned);
        }
        Some(folder.to_owned())
    }
}

fn id_of(path: &Path) -> String {
    format!(
        "`{}`",
        fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display()
    )
}

pub fn stem(path: &Path) -> String {
    path.file_stem()
        .map(|s| s.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `path` seen from `folder`, as an absolute path: a stored configuration means the same files wherever it is read.
/// Addresses (`gs://...`) stay as they are.
pub fn absolute(folder: Option<&Path>, path: String) -> String {
    if Path::new(&path).is_absolute() || is_address(&path) {
        return path;
    }
    let joined = folder.unwrap_or(Path::new("")).join(path);
    std::path::absolute(&joined)
        .unwrap_or(joined)
        .to_string_lossy()
        .into_owned()
}

/// The folder of a dataset, as [`absolute`] sees it, or its public name where there is no such folder.
pub fn dataset_of(folder: Option<&Path>, text: String) -> String {
    let there = absolute(folder, text.clone());
    if !Path::new(&there).exists() && is_name(&text) {
        text
    } else {
        there
    }
}

/// Whether `path` names something on another machine.
pub fn is_address(path: &str) -> bool {
    path.contains("://")
}
