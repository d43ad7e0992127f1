//! `manifest.json`: which files a checkpoint has, how long they are, and what their bytes hash to.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{CheckpointError, Result};
use super::files::{self, Written};

pub const MANIFEST: &str = "manifest.json";

/// The files of a checkpoint, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    /// 16 hexadecimal digits.
    xxh3: String,
}

impl Entry {
    fn of(written: Written) -> Entry {
        Entry {
            bytes: written.bytes,
            xxh3: format!("{:016x}", written.xxh3),
        }
    }
}

impl Manifest {
    pub fn add(&mut self, name: &str, written: Written) {
        self.files.insert(name.into(), Entry::of(written));
    }

    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Names and sizes in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, entry)| (name.as_str(), entry.bytes))
    }

    /// Writes it into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_string_pretty(self).map_err(|e| CheckpointError::Plan {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        files::write(&path, text.as_bytes()).map(drop)
    }

    /// Reads that of `folder` and holds it against the sizes of the files, which is quick.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] says what is missing.
    pub fn read(folder: &Path) -> Result<Manifest> {
        let incomplete = |reason: String| CheckpointError::Incomplete {
            path: folder.to_owned(),
            reason,
        };
        let path = folder.join(MANIFEST);
        if !path.is_file() {
            return Err(incomplete(format!("it has no {MANIFEST}, which is written last")));
        }
        let text = files::read(&path)?;
        let manifest: Manifest =
            serde_json::from_str(&text).map_err(|e| incomplete(format!("{MANIFEST} cannot be read ({e})")))?;
        for (name, entry) in &manifest.files {
            match files::size(&folder.join(name)) {
                Ok(size) if size == entry.bytes => {}
                Ok(size) => {
                    return Err(incomplete(format!(
                        "{name} has {size} bytes instead of {}",
                        entry.bytes
                    )));
                }
                Err(_) => return Err(incomplete(format!("{name} cannot be found"))),
            }
        }
        Ok(manifest)
    }

    /// Reads every file and compares its bytes with the hash.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] names the first file that differs.
    pub fn verify(&self, folder: &Path) -> Result<()> {
        for (name, entry) in &self.files {
            let found = Entry::of(files::hash(&folder.join(name), false)?);
            if found != *entry {
                let (path, wanted) = (folder.to_owned(), &entry.xxh3);
                let reason = format!("the bytes of {name} hash to {} instead of {wanted}", found.xxh3);
                return Err(CheckpointError::Damaged { path, reason });
            }
        }
        Ok(())
    }
}
