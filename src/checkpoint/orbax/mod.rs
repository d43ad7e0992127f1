//! Checkpoints of JAX programs as Orbax saves them: arrays in zarr, in an OCDBT store, named by a tree.
//!
//! | file | what it does |
//! |---|---|
//! | `cursor` | numbers, strings and checksums of the store's files |
//! | `ocdbt` | the store: manifest, B-tree, values |
//! | `zarr` | arrays in chunks, read by rows |
//! | `tree` | which array belongs where |
//!
//! Everything here reads files from elsewhere: lengths are compared with what is there, sizes and depths have limits,
//! and no path leads out of the folder.

mod cursor;
mod ocdbt;
mod tree;
mod zarr;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use safetensors::Dtype;

use super::error::{CheckpointError, Result};
use super::resume;
use crate::files;

/// Where openpi's training keeps the parameters of a step.
const PARAMS: &str = "params";

/// The folder of arrays that `path` means: itself, its `params`, or the `params` of its newest step.
///
/// # Errors
/// A folder that cannot be listed.
pub fn locate(path: &Path) -> Result<Option<PathBuf>> {
    let is_one = |folder: &Path| folder.join(ocdbt::MANIFEST).is_file() || folder.join(tree::METADATA).is_file();
    if is_one(path) {
        return Ok(Some(path.to_owned()));
    }
    let newest = resume::steps(path)?
        .into_iter()
        .rev()
        .map(|step| path.join(step.to_string()));
    let mut folders = std::iter::once(path.to_owned())
        .chain(newest)
        .map(|folder| folder.join(PARAMS));
    Ok(folders.find(|folder| is_one(folder)))
}

/// The arrays of a checkpoint, of which none is in memory. Its files must not change while this lives.
pub struct Orbax {
    folder: PathBuf,
    store: ocdbt::Store,
    arrays: BTreeMap<String, zarr::Array>,
    /// Where reading has come to.
    stream: Mutex<Option<zarr::Stream>>,
}

/// Type and shape of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayInfo<'a> {
    /// Path in the tree, without a `params` around it and a `value` at its end: `PaliGemma/img/pos_embedding`.
    pub path: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
}

impl Orbax {
    /// Opens the checkpoint in `folder`, as [`locate`] finds it.
    ///
    /// # Errors
    /// Files that are missing, damaged or in a format that cannot be read.
    pub fn open(folder: &Path) -> Result<Orbax> {
        let bad = |name: &str, reason: String| {
            let path = folder.join(name);
            CheckpointError::Orbax { path, reason }
        };
        let listed = tree::arrays(&files::read_bytes(&folder.join(tree::METADATA))?);
        let listed = listed.map_err(|reason| bad(tree::METADATA, reason))?;
        let store = ocdbt::open(folder)?;
        let mut arrays = BTreeMap::new();
        for (path, key) in listed {
            let array = zarr::Array::open(&store, &key);
            let array = array.map_err(|reason| bad("", format!("of the array `{key}`: {reason}")))?;
            if arrays.insert(path.clone(), array).is_some() {
                return Err(bad(tree::METADATA, format!("`{path}` occurs twice")));
            }
        }
        Ok(Orbax {
            folder: folder.to_owned(),
            store,
            arrays,
            stream: Mutex::new(None),
        })
    }

    /// Every array, in order of the paths.
    pub fn arrays(&self) -> impl Iterator<Item = ArrayInfo<'_>> {
        self.arrays.iter().map(|(path, array)| ArrayInfo {
            path,
            dtype: array.dtype,
            shape: &array.shape,
        })
    }

    /// Rows (indices of the first axis) of an array as they are stored, little-endian, in C order; a scalar is one row.
    /// Rows that follow those read before cost least, see `zarr`.
    ///
    /// # Errors
    /// Arrays and rows that do not exist, and chunks that are damaged.
    pub fn rows(&self, path: &str, rows: Range<usize>) -> Result<Vec<u8>> {
        let bad = |reason: String| CheckpointError::Orbax {
            path: self.folder.clone(),
            reason: format!("of the array `{path}`: {reason}"),
        };
        let array = self.arrays.get(path).ok_or_else(|| bad("it does not exist".into()))?;
        if rows.start > rows.end || rows.end > array.rows() {
            return Err(bad(format!("it has no rows {} to {}", rows.start, rows.end)));
        }
        let mut stream = self.stream.lock().unwrap_or_else(|e| e.into_inner());
        zarr::read(&self.store, array, rows, &mut stream).map_err(bad)
    }
}

impl fmt::Debug for Orbax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Orbax")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}
