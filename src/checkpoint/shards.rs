//! Opening safetensors: one file, or the shards of one; and how tensors are divided among shards.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::error::{CheckpointError, Result};
use super::weights::{Place, Stored, Weights};
use crate::files;

/// Behind the name of a file that is divided into shards: the name of their index.
const INDEX: &str = ".index.json";

/// The part of an index of shards that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The index of the shards of `file`.
pub fn index_of(file: &str) -> String {
    format!("{file}{INDEX}")
}

/// What stands at `path`: a file, or the index that it is or has.
pub(super) fn index_at(path: &Path) -> Option<PathBuf> {
    let is_index = path.to_string_lossy().ends_with(INDEX);
    let beside = || PathBuf::from(index_of(&path.to_string_lossy()));
    match is_index {
        true => Some(path.to_owned()),
        false => Some(beside()).filter(|index| !path.exists() && index.is_file()),
    }
}

/// Divides tensors of these sizes in bytes, in their order, into shards of at most `most` bytes or one tensor.
pub fn divide(sizes: impl IntoIterator<Item = u64>, most: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let (mut shard, mut bytes) = (0..0, 0);
    for size in sizes {
        if bytes > 0 && bytes + size > most {
            let end = shard.end;
            shards.push(std::mem::replace(&mut shard, end..end));
            bytes = 0;
        }
        bytes += size;
        shard.end += 1;
    }
    shards.push(shard);
    shards
}

/// The name of shard `i` of `n` of a file: the file's own where there is one.
pub fn shard_name(file: &str, i: usize, n: usize) -> String {
    match file.strip_suffix(".safetensors") {
        Some(stem) if n > 1 => format!("{stem}-{:05}-of-{n:05}.safetensors", i + 1),
        _ => file.to_owned(),
    }
}

/// The text of an index: which file each tensor is in, and the bytes of all tensors.
pub fn index<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a str)>, total: u64) -> String {
    #[derive(Serialize)]
    struct Written<'a> {
        metadata: serde_json::Value,
        weight_map: BTreeMap<&'a str, &'a str>,
    }
    let index = Written {
        metadata: serde_json::json!({ "total_size": total }),
        weight_map: tensors.into_iter().collect(),
    };
    format!("{:#}\n", serde_json::json!(index))
}

/// Number of keys of a JSON object, the same ones counted as often as they occur.
struct Entries(usize);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Entries, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut count = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Entries(count))
            }
        }
        deserializer.deserialize_map(Count)
    }
}

impl Weights {
    /// Opens the shards beside the index at `path`, as it lists them.
    pub(super) fn sharded(path: &Path) -> Result<Weights> {
        let path = path.to_owned();
        let root = path.parent().unwrap_or(Path::new(""));
        let index: Index = serde_json::from_str(&files::read(&path)?).map_err(|e| CheckpointError::NoWeights {
            path: path.clone(),
            reason: format!("it is not an index of shards ({e})"),
        })?;
        let mut weights = Weights::default();
        let mut shards: BTreeMap<&str, BTreeMap<String, Stored>> = BTreeMap::new();
        for (tensor, shard) in &index.weight_map {
            let wrong = |reason: &str| CheckpointError::Shard {
                path: path.clone(),
                tensor: tensor.clone(),
                shard: shard.clone(),
                reason: reason.into(),
            };
            // An index is data from elsewhere: it must not lead out of its folder.
            if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
                return Err(wrong("that is not the name of a file beside it"));
            }
            if !shards.contains_key(shard.as_str()) {
                let file = root.join(shard);
                if !file.is_file() {
                    return Err(wrong("that file does not exist"));
                }
                shards.insert(shard, weights.add(&file)?);
            }
            let found = shards
                .get_mut(shard.as_str())
                .and_then(|tensors| tensors.remove(tensor));
            let stored = found.ok_or_else(|| wrong("that file does not hold it"))?;
            weights.tensors.insert(tensor.clone(), stored);
        }
        Ok(weights)
    }

    /// Maps a file and lists what is in it.
    pub(super) fn add(&mut self, path: &Path) -> Result<BTreeMap<String, Stored>> {
        let not_whole = |reason: String| CheckpointError::Safetensors {
            path: path.to_owned(),
            reason,
        };
        let map = files::map(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map).map_err(|e| not_whole(e.to_string()))?;
        // The length of the header itself is 8 bytes.
        let data = 8 + header;
        let entries: Entries = serde_json::from_slice(&map[8..data]).map_err(|e| not_whole(e.to_string()))?;
        if entries.0 != metadata.tensors().len() + usize::from(metadata.metadata().is_some()) {
            return Err(not_whole("a name occurs twice in its header".into()));
        }
        let file = self.files.len();
        let tensors = metadata.tensors().into_iter().map(|(name, info)| {
            let (from, to) = info.data_offsets;
            let stored = Stored {
                dtype: info.dtype,
                shape: info.shape.clone(),
                place: Place::File {
                    file,
                    bytes: data + from..data + to,
                },
            };
            (name, stored)
        });
        let tensors = tensors.collect();
        self.files.push((path.to_owned(), map));
        Ok(tensors)
    }
}
