//! `manifest.json`: which files a checkpoint has, how long they are, and what their bytes and those of their tensors
//! hash to. It holds the hash of itself, so that no bit of a checkpoint can change unnoticed.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::error::{CheckpointError, Result};
use super::weights::Weights;
use crate::files::{self, Written};

pub const MANIFEST: &str = "manifest.json";

/// The files of a checkpoint, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    files: BTreeMap<String, Entry>,
    /// Of the compact JSON of `files`.
    xxh3: String,
}

/// Hashes are 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    bytes: u64,
    xxh3: String,
    /// Hash of every tensor's bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tensors: BTreeMap<String, String>,
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

impl Manifest {
    pub fn add(&mut self, name: &str, written: Written, tensors: &[(String, u64)]) {
        let tensors = tensors.iter().map(|(tensor, hash)| (tensor.clone(), hex(*hash)));
        let entry = Entry {
            bytes: written.bytes,
            xxh3: hex(written.xxh3),
            tensors: tensors.collect(),
        };
        self.files.insert(name.into(), entry);
    }

    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Names and sizes in bytes.
    pub fn files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.files.iter().map(|(name, entry)| (name.as_str(), entry.bytes))
    }

    /// The text of the file, its own hash included.
    fn text(&self) -> serde_json::Result<String> {
        let sealed = Manifest {
            files: self.files.clone(),
            xxh3: hex(xxh3_64(&serde_json::to_vec(&self.files)?)),
        };
        serde_json::to_string_pretty(&sealed)
    }

    /// Writes it into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(MANIFEST);
        let text = self.text().map_err(|e| CheckpointError::Plan {
            path: path.clone(),
            reason: e.to_string(),
        })?;
        files::write(&path, text.as_bytes())?;
        Ok(())
    }

    /// Reads that of `folder` and holds it against its own hash and the sizes of the files, which is quick.
    ///
    /// # Errors
    /// [`CheckpointError::Incomplete`] says what is missing, [`CheckpointError::Damaged`] that it was changed.
    pub fn read(folder: &Path) -> Result<Manifest> {
        let incomplete = |reason: String| CheckpointError::Incomplete {
            path: folder.to_owned(),
            reason,
        };
        let path = folder.join(MANIFEST);
        if !path.is_file() {
            return Err(incomplete(format!("it has no {MANIFEST}, which is written last")));
        }
        let unreadable = |e: String| incomplete(format!("{MANIFEST} cannot be read ({e})"));
        let text = std::fs::read(&path).map_err(|e| unreadable(e.to_string()))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| unreadable(e.to_string()))?;
        if manifest.text().ok().as_deref().map(str::as_bytes) != Some(&text) {
            return Err(CheckpointError::Damaged {
                path: folder.to_owned(),
                reason: format!("{MANIFEST} has other bytes than were saved"),
            });
        }
        for (name, entry) in &manifest.files {
            // A checkpoint is data from elsewhere: nothing in it may lead out of its folder.
            if Path::new(name).file_name().is_none_or(|plain| plain != name.as_str()) {
                return Err(CheckpointError::Damaged {
                    path: folder.to_owned(),
                    reason: format!("{MANIFEST} names `{name}`, which is not a file beside it"),
                });
            }
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

    /// Reads the files for which `which` holds, several at a time, and compares their bytes with the hashes.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] names the first file that differs, and the tensor in it.
    pub fn verify(&self, folder: &Path, which: impl Fn(&str) -> bool) -> Result<()> {
        /// Files read at the same time, at most.
        const READERS: usize = 4;
        let chosen: Vec<_> = self.files.iter().filter(|(name, _)| which(name)).collect();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let readers = READERS.min(processors).min(chosen.len()).max(1);
        // Each reader has every so many files and ends with its first one that is wrong.
        let read = |reader: usize| {
            let own = chosen.iter().enumerate().skip(reader).step_by(readers);
            own.map(|(i, (name, entry))| (i, entry.verify(folder, name)))
                .find(|(_, result)| result.is_err())
        };
        let mut wrong: Vec<(usize, Result<()>)> = std::thread::scope(|scope| {
            let others: Vec<_> = (1..readers).map(|reader| scope.spawn(move || read(reader))).collect();
            let own = read(0);
            let others = others.into_iter().map(|reader| {
                let panicked = |_| Some((usize::MAX, Err(unread(folder))));
                reader.join().unwrap_or_else(panicked)
            });
            others.chain([own]).flatten().collect()
        });
        wrong.sort_by_key(|(i, _)| *i);
        wrong.into_iter().next().map_or(Ok(()), |(_, result)| result)
    }
}

fn unread(folder: &Path) -> CheckpointError {
    CheckpointError::Damaged {
        path: folder.to_owned(),
        reason: "a thread that reads it panicked".into(),
    }
}

impl Entry {
    fn verify(&self, folder: &Path, name: &str) -> Result<()> {
        let path = folder.join(name);
        if hex(files::hash(&path)?.xxh3) == self.xxh3 {
            return Ok(());
        }
        let part = match self.tensors.is_empty() {
            true => name.to_owned(),
            false => format!("{} in {name}", self.changed(&path)),
        };
        Err(CheckpointError::Damaged {
            path: folder.to_owned(),
            reason: format!("{part} has other bytes than were saved"),
        })
    }

    /// What has changed in a file of tensors: one of them, or else what describes them.
    fn changed(&self, path: &Path) -> String {
        const HEADER: &str = "the header";
        let Ok(weights) = Weights::open(path) else {
            return HEADER.into();
        };
        let differs = |tensor: &str, hash: &str| weights.bytes(tensor).is_none_or(|data| hex(xxh3_64(data)) != hash);
        let mut tensors = self.tensors.iter();
        let found = tensors.find(|(tensor, hash)| differs(tensor, hash));
        found.map_or(HEADER.into(), |(tensor, _)| format!("`{tensor}`"))
    }
}
