//! Opening safetensors: one file, or the shards of one model.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::{CheckpointError, Result};
use super::weights::{INDEX, Place, Stored, Weights};
use crate::files;

/// The part of an index of shards that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
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
    /// Opens the shards in `root`, as its index lists them.
    pub(super) fn sharded(root: &Path) -> Result<Weights> {
        let path = root.join(INDEX);
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
