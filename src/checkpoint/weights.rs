//! Reading weights by name, one tensor at a time.
//!
//! Files are mapped, not read: a tensor is copied out, widened to f32, when it is asked for. Names are those of an
//! openpi PyTorch checkpoint; three variations of such files are understood: a `model.` in front of every name (saved
//! from a wrapping module), the prompt embedding under the name of the tied output layer, and weights divided into
//! shards.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::error::{CheckpointError, Result};
use super::state;
use crate::files;
use crate::model::params::{ParamTable, ParamTensor};

const EMBEDDING: &str = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";
/// PaliGemma's output layer shares the embedding's numbers, and some checkpoints store them under its name only.
const TIED_EMBEDDING: &str = "paligemma_with_expert.paligemma.lm_head.weight";
/// What `torch.save` of a module inside another one puts in front of every name.
const WRAPPER: &str = "model.";

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Whether a folder holds a model as other programs save it.
pub(super) fn is_model(folder: &Path) -> bool {
    [SINGLE, INDEX].iter().any(|name| folder.join(name).is_file())
}

/// The tensors of one safetensors file, or of the shards of one model. None of the files may change while this lives.
#[derive(Debug)]
pub struct Weights {
    root: PathBuf,
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Stored>,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Stored {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// Name, type, shape and size of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: u64,
}

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
    /// Opens a `.safetensors` file, a folder with `model.safetensors`, a folder with `model.safetensors.index.json` and
    /// its shards, or a checkpoint of ours (its `params.safetensors`).
    ///
    /// # Errors
    /// Files that are missing, cut short or not safetensors, and shards that do not hold what the index says.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Weights::single(path, path);
        }
        for name in [SINGLE, state::PARAMS] {
            let file = path.join(name);
            if file.is_file() {
                return Weights::single(path, &file);
            }
        }
        if path.join(INDEX).is_file() {
            return Weights::sharded(path);
        }
        let orbax = ["_METADATA", "manifest.ocdbt", "params"]
            .iter()
            .any(|name| path.join(name).exists());
        let reason = if orbax {
            "it looks like a JAX checkpoint (Orbax), which has to be converted to PyTorch first".into()
        } else {
            format!("neither {SINGLE} nor {INDEX} is in it")
        };
        let path = path.to_owned();
        Err(CheckpointError::NoWeights { path, reason })
    }

    fn single(root: &Path, file: &Path) -> Result<Weights> {
        let mut weights = Weights {
            root: root.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        weights.tensors = weights.add(file)?;
        Ok(weights)
    }

    fn sharded(root: &Path) -> Result<Weights> {
        let path = root.join(INDEX);
        let index: Index = serde_json::from_str(&files::read(&path)?).map_err(|e| CheckpointError::NoWeights {
            path: path.clone(),
            reason: format!("it is not an index of shards ({e})"),
        })?;
        let mut weights = Weights {
            root: root.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
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
    fn add(&mut self, path: &Path) -> Result<BTreeMap<String, Stored>> {
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
                file,
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: data + from..data + to,
            };
            (name, stored)
        });
        let tensors = tensors.collect();
        self.files.push((path.to_owned(), map));
        Ok(tensors)
    }

    /// The values of a parameter.
    ///
    /// # Errors
    /// As [`Weights::values`].
    pub fn tensor(&self, tensor: &ParamTensor) -> Result<Vec<f32>> {
        self.values(&tensor.name, &tensor.shape)
    }

    /// The values of the tensor `name` (as openpi calls it, with a section such as `online/` in front where the file
    /// has sections), `[product of shape]`, row by row.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or is not F32, F16 or BF16.
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let (_, stored) = self.find(name, shape)?;
        let data = &self.files[stored.file].1[stored.bytes.clone()];
        match stored.dtype {
            Dtype::F32 => Ok(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::F16 => Ok(data
                .as_chunks()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect()),
            Dtype::BF16 => Ok(data
                .as_chunks()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect()),
            other => Err(CheckpointError::Dtype {
                path: self.files[stored.file].0.clone(),
                tensor: name.into(),
                found: format!("{other:?}"),
            }),
        }
    }

    /// The stored bytes of the tensor of exactly this name.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let stored = self.tensors.get(name)?;
        Some(&self.files[stored.file].1[stored.bytes.clone()])
    }

    /// Whether every tensor of `table` is there in its shape, under `section` in front of its name; returns the names
    /// in the file (below `section`) that the table does not use. Call this before touching a device.
    ///
    /// # Errors
    /// As [`Weights::values`], for the first tensor that fails.
    pub fn check(&self, table: &ParamTable, section: &str) -> Result<Vec<&str>> {
        let mut used = HashSet::new();
        for tensor in table.tensors() {
            let (name, stored) = self.find(&format!("{section}{}", tensor.name), &tensor.shape)?;
            if !matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(CheckpointError::Dtype {
                    path: self.files[stored.file].0.clone(),
                    tensor: name.into(),
                    found: format!("{:?}", stored.dtype),
                });
            }
            used.insert(name);
        }
        let names = self.tensors.keys().map(String::as_str);
        Ok(names
            .filter(|name| name.starts_with(section) && !used.contains(name))
            .collect())
    }

    /// Everything stored, by name.
    pub fn iter(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, stored)| TensorInfo {
            name,
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: stored.bytes.len() as u64,
        })
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// π₀ or π₀.₅, by the layers that only one of them has.
    pub fn architecture(&self) -> Option<&'static str> {
        let has = |name: &str| self.lookup(name).is_some();
        match (has("action_time_mlp_in.weight"), has("time_mlp_in.weight")) {
            (true, false) => Some(PI0),
            (false, true) => Some(PI05),
            _ => None,
        }
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(&str, &Stored)> {
        let Some((stored_name, stored)) = self.lookup(name) else {
            return Err(self.lacks(name, shape));
        };
        if stored.shape != shape {
            return Err(CheckpointError::Shape {
                path: self.files[stored.file].0.clone(),
                tensor: name.into(),
                expected: shape.to_vec(),
                found: stored.shape.clone(),
            });
        }
        Ok((stored_name, stored))
    }

    /// The tensor under any of the names it may have.
    fn lookup(&self, name: &str) -> Option<(&str, &Stored)> {
        let tied = (name == EMBEDDING).then_some(TIED_EMBEDDING);
        let plain = [Some(name), tied].into_iter().flatten();
        let wrapped = plain.clone().map(|name| format!("{WRAPPER}{name}"));
        let names = plain.map(String::from).chain(wrapped);
        let mut found = names.filter_map(|name| self.tensors.get_key_value(&name));
        found.next().map(|(name, stored)| (name.as_str(), stored))
    }

    fn lacks(&self, name: &str, shape: &[usize]) -> CheckpointError {
        let (path, tensor) = (self.root.clone(), name.to_owned());
        let wanted = if name.starts_with("state_proj.") || name.starts_with("action_time_mlp_") {
            Some(PI0)
        } else if name.starts_with("time_mlp_") || name.contains("norm.dense.") {
            Some(PI05)
        } else {
            // A plain norm of the expert is π₀'s, where π₀.₅ has an adaptive one.
            (name.contains("gemma_expert.") && name.ends_with("norm.weight")).then_some(PI0)
        };
        match (self.architecture(), wanted) {
            (Some(found), Some(wanted)) if found != wanted => CheckpointError::Architecture {
                path,
                found,
                wanted,
                tensor,
                fix: found == PI05,
            },
            _ => CheckpointError::Missing {
                path,
                tensor,
                expected: shape.to_vec(),
            },
        }
    }
}

const PI0: &str = "π₀";
const PI05: &str = "π₀.₅";
