//! Reading weights by name, one tensor at a time.
//!
//! Files are mapped, not read: a tensor is copied out, widened to f32, when it is asked for. Names are those of an
//! openpi PyTorch checkpoint; what other programs call them is in `names`, and where they are in a checkpoint of the
//! JAX model is in [`jax`].

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytemuck::try_cast_slice;
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use super::error::{CheckpointError, Result};
use super::jax::{self, Layout, Origin};
use super::names::{self, EMBEDDING, TIED};
use super::orbax::{self, Orbax};
use super::{shards, state};
use crate::model::merge;
use crate::model::params::ParamTensor;

pub(super) const SINGLE: &str = "model.safetensors";

/// Values of a tensor that are read at a time, if nothing else is said.
pub const PIECE: usize = 4 << 20;

/// Whether a folder holds a model as other programs save it.
pub(super) fn is_model(folder: &Path) -> bool {
    let file = [SINGLE.to_owned(), shards::index_of(SINGLE)];
    let is_there = file.iter().any(|name| folder.join(name).is_file());
    is_there || orbax::locate(folder).is_ok_and(|found| found.is_some())
}

/// The tensors of one safetensors file, of the shards of one model, or of an Orbax checkpoint. None of the files may
/// change while this lives.
#[derive(Debug, Default)]
pub struct Weights {
    root: PathBuf,
    /// Values that are read at a time, where that is not [`PIECE`].
    piece: Option<usize>,
    pub(super) files: Vec<(PathBuf, Mmap)>,
    arrays: Option<Orbax>,
    pub(super) tensors: BTreeMap<String, Stored>,
    /// What openpi calls a tensor, and what it is called here.
    names: HashMap<String, String>,
}

/// Type and shape of a tensor, and where it lies.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub(super) place: Place,
}

#[derive(Clone, Debug)]
pub(super) enum Place {
    /// Bytes of a file.
    File { file: usize, bytes: Range<usize> },
    /// In the array at `path`; `order` is the array's number.
    Array { path: String, order: usize, origin: Origin },
}

/// Name, type, shape and size of a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: u64,
}

/// A tensor of `elements` takes these bytes.
fn bytes_of(dtype: Dtype, elements: usize) -> u64 {
    (elements * dtype.bitsize() / 8) as u64
}

impl Weights {
    /// Opens a `.safetensors` file or the index of its shards, a folder with `model.safetensors`, a folder with
    /// `model.safetensors.index.json` and its shards, a checkpoint of ours (its `params.safetensors`), or an Orbax
    /// checkpoint of the JAX model (its `params`, a step, or all steps: the newest).
    ///
    /// # Errors
    /// Files that are missing, cut short or in no format that can be read, and shards that do not hold what the index
    /// says.
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        let mut weights = Weights::found(path)?;
        weights.root = path.to_owned();
        for stored in weights.tensors.keys() {
            let name = names::openpi(stored);
            if name == stored.as_str() || !weights.names.contains_key(&*name) {
                weights.names.insert(name.into_owned(), stored.clone());
            }
        }
        Ok(weights)
    }

    /// The same, read in pieces of at most this many values in place of [`PIECE`].
    #[must_use]
    pub fn in_pieces(self, values: usize) -> Weights {
        let piece = Some(values.max(1));
        Weights { piece, ..self }
    }

    /// Values that are read at a time.
    pub fn piece(&self) -> usize {
        self.piece.unwrap_or(PIECE)
    }

    fn found(path: &Path) -> Result<Weights> {
        if !path.is_dir() {
            return match shards::index_at(path) {
                Some(index) => Weights::sharded(&index),
                None => Weights::single(path),
            };
        }
        for name in [SINGLE, state::PARAMS] {
            let file = path.join(name);
            if file.is_file() {
                return Weights::single(&file);
            }
        }
        for name in [SINGLE, state::PARAMS] {
            let index = path.join(shards::index_of(name));
            if index.is_file() {
                return Weights::sharded(&index);
            }
        }
        if let Some(folder) = orbax::locate(path)? {
            return Weights::of_arrays(Orbax::open(&folder)?);
        }
        Err(CheckpointError::NoWeights {
            path: path.to_owned(),
            reason: format!(
                "neither {SINGLE} nor {} nor an Orbax checkpoint is in it",
                shards::index_of(SINGLE)
            ),
        })
    }

    fn single(file: &Path) -> Result<Weights> {
        let mut weights = Weights::default();
        weights.tensors = weights.add(file)?;
        Ok(weights)
    }

    /// Arrays that the model does not have keep their path as name.
    fn of_arrays(arrays: Orbax) -> Result<Weights> {
        let mut weights = Weights::default();
        for (order, array) in arrays.arrays().enumerate() {
            let known = jax::tensors(array.path, array.shape);
            let tensors = known.unwrap_or_else(|| vec![(array.path.to_owned(), Origin::whole(array.shape))]);
            for (name, origin) in tensors {
                let stored = Stored {
                    dtype: array.dtype,
                    shape: origin.shape.clone(),
                    place: Place::Array {
                        path: array.path.to_owned(),
                        order,
                        origin,
                    },
                };
                weights.tensors.insert(name, stored);
            }
        }
        weights.arrays = Some(arrays);
        Ok(weights)
    }

    /// The values of a parameter.
    ///
    /// # Errors
    /// As [`Weights::pieces`].
    pub fn tensor(&self, tensor: &ParamTensor) -> Result<Vec<f32>> {
        self.values(&tensor.name, &tensor.shape)
    }

    /// The values of the tensor `name` (as openpi calls it, with a section such as `online/` in front where the file
    /// has sections), `[product of shape]`, row by row.
    ///
    /// # Errors
    /// As [`Weights::pieces`].
    pub fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(shape.iter().product());
        self.pieces(name, shape, |piece| {
            values.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(values)
    }

    /// Whether [`Weights::pieces`] would give the tensor `name`.
    ///
    /// # Errors
    /// A tensor that is missing, has another shape, or is not F32, F16 or BF16.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.stored(name, shape).map(|_| ())
    }

    /// Gives `take` the values of the tensor `name` piece by piece, in their order. Memory holds a piece, or, of an array whose
    /// elements are in another order, a layer, twice.
    ///
    /// # Errors
    /// As [`Weights::expect`], arrays that cannot be read, and what `take` says.
    pub fn pieces(&self, name: &str, shape: &[usize], mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let stored = self.stored(name, shape)?;
        match (&stored.place, &self.arrays) {
            (Place::File { file, bytes }, _) => {
                let data = &self.files[*file].1[bytes.clone()];
                let block = self.piece() * stored.dtype.bitsize() / 8;
                data.chunks(block)
                    .try_for_each(|part| take(&widened(stored.dtype, part)))
            }
            (Place::Array { path, origin, .. }, Some(arrays)) => {
                read(arrays, path, origin, stored.dtype, self.piece(), take)
            }
            (Place::Array { .. }, None) => Ok(()),
        }
    }

    /// Values `range` of the tensor `name`, without those before and behind where it lies in a file.
    ///
    /// # Errors
    /// As [`Weights::pieces`].
    ///
    /// # Panics
    /// If the tensor has fewer.
    pub fn range(&self, name: &str, shape: &[usize], range: Range<usize>) -> Result<Vec<f32>> {
        assert!(range.end <= shape.iter().product(), "{range:?} of {name} {shape:?}");
        let stored = self.stored(name, shape)?;
        if let Place::File { file, bytes } = &stored.place {
            let size = stored.dtype.bitsize() / 8;
            let data = &self.files[*file].1[bytes.clone()];
            let part = &data[range.start * size..range.end * size];
            return Ok(widened(stored.dtype, part).into_owned());
        }
        let (mut values, mut at) = (Vec::with_capacity(range.len()), 0);
        self.pieces(name, shape, |piece| {
            let within = |i: usize| i.clamp(at, at + piece.len()) - at;
            values.extend_from_slice(&piece[within(range.start)..within(range.end)]);
            at += piece.len();
            Ok(())
        })?;
        Ok(values)
    }

    fn stored(&self, name: &str, shape: &[usize]) -> Result<&Stored> {
        let (_, stored) = self.find(name, shape)?;
        match is_float(stored.dtype) {
            true => Ok(stored),
            false => Err(CheckpointError::Dtype {
                path: self.path_of(stored).to_owned(),
                tensor: name.into(),
                found: format!("{:?}", stored.dtype),
            }),
        }
    }

    /// The file or folder that a tensor is in.
    pub(super) fn path_of(&self, stored: &Stored) -> &Path {
        match stored.place {
            Place::File { file, .. } => &self.files[file].0,
            Place::Array { .. } => &self.root,
        }
    }

    /// The stored bytes of the tensor of exactly this name.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        match &self.tensors.get(name)?.place {
            Place::File { file, bytes } => Some(&self.files[*file].1[bytes.clone()]),
            Place::Array { .. } => None,
        }
    }

    /// Where a tensor lies among the others: read in this order, files and arrays are read from front to back, and no
    /// chunk of an array twice.
    pub fn position(&self, name: &str) -> (usize, usize, usize) {
        match self.lookup(name).map(|(_, stored)| &stored.place) {
            Some(Place::File { file, bytes }) => (*file, bytes.start, 0),
            Some(Place::Array { order, origin, .. }) => (*order, origin.rows.start, origin.elements.start),
            None => (usize::MAX, 0, 0),
        }
    }

    /// Everything stored, by name.
    pub fn iter(&self) -> impl Iterator<Item = TensorInfo<'_>> {
        self.tensors.iter().map(|(name, stored)| TensorInfo {
            name,
            dtype: stored.dtype,
            shape: &stored.shape,
            bytes: bytes_of(stored.dtype, stored.shape.iter().product()),
        })
    }

    /// Are there low-rank adapters among them?
    pub fn has_adapters(&self) -> bool {
        self.names.keys().any(|name| merge::is_adapter(name))
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The tensor `name` with the name it has here, if it has this shape.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&str, &Stored)> {
        let found = self.lookup(name).ok_or_else(|| CheckpointError::Missing {
            path: self.root.clone(),
            tensor: name.to_owned(),
            expected: shape.to_vec(),
        })?;
        if found.1.shape != shape {
            return Err(CheckpointError::Shape {
                path: self.path_of(found.1).to_owned(),
                tensor: name.into(),
                expected: shape.to_vec(),
                found: found.1.shape.clone(),
            });
        }
        Ok(found)
    }

    /// The tensor under any of the names it may have.
    pub(super) fn lookup(&self, name: &str) -> Option<(&str, &Stored)> {
        let tied = (name == EMBEDDING).then_some(TIED);
        let mut names = [Some(name), tied].into_iter().flatten();
        let (stored, info) = names.find_map(|name| self.tensors.get_key_value(self.names.get(name)?))?;
        Some((stored, info))
    }
}

/// Whether values of this type can be widened to f32.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

/// Little-endian numbers as f32, which is exact: as they lie there, where that is possible.
fn widened(dtype: Dtype, data: &[u8]) -> Cow<'_, [f32]> {
    match dtype {
        Dtype::F16 => data
            .as_chunks()
            .0
            .iter()
            .map(|b| f16::from_le_bytes(*b).to_f32())
            .collect(),
        Dtype::BF16 => data
            .as_chunks()
            .0
            .iter()
            .map(|b| bf16::from_le_bytes(*b).to_f32())
            .collect(),
        _ => match try_cast_slice(data) {
            Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
            _ => data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        },
    }
}

/// Gives `take` a tensor from an array: in blocks of rows where their order stays as it is, else as a whole.
fn read(
    arrays: &Orbax,
    path: &str,
    origin: &Origin,
    dtype: Dtype,
    piece: usize,
    mut take: impl FnMut(&[f32]) -> Result<()>,
) -> Result<()> {
    let size = dtype.bitsize() / 8;
    let row = origin.part.iter().product::<usize>() / origin.rows.len().max(1);
    let block = match origin.rows.len() {
        1 => 1,
        _ => (piece / row.max(1)).max(1),
    };
    let keeps_order = matches!(origin.layout, Layout::Same | Layout::Flat | Layout::Squeezed);
    let mut values = Vec::new();
    for first in origin.rows.clone().step_by(block) {
        let rows = first..origin.rows.end.min(first + block);
        let bytes = arrays.rows(path, rows)?;
        let own = match origin.rows.len() {
            1 => &bytes[origin.elements.start * size..origin.elements.end * size],
            _ => &bytes,
        };
        match keeps_order {
            true => take(&widened(dtype, own))?,
            false => values.extend_from_slice(&widened(dtype, own)),
        }
    }
    match keeps_order {
        true => Ok(()),
        false => take(&origin.layout.arrange(values, &origin.part)),
    }
}
