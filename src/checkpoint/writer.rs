//! Writing safetensors as a stream: the header first, then the values in the announced order, in constant memory.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use xxhash_rust::xxh3::Xxh3;

use super::error::{CheckpointError, Result};
use crate::files::{HashedFile, Written};
use crate::model::params::ParamTable;

/// Values converted, hashed and written at a time: what fits into a cache beside what is being done with it.
const BLOCK: usize = 1 << 17;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub name: String,
    pub shape: Vec<usize>,
    /// F32, or F16 or BF16, to which values are rounded.
    pub dtype: Dtype,
}

/// A safetensors file in the making.
pub struct TensorWriter {
    file: HashedFile,
    /// Names, element counts and types still to come, the next one last.
    plan: Vec<(String, usize, Dtype)>,
    /// Elements of the current tensor written so far, and the hash of their bytes.
    done: usize,
    hash: Xxh3,
    /// Tensors that are complete.
    hashes: Vec<(String, u64)>,
    block: Vec<u8>,
}

/// What is known of a file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenTensors {
    pub file: Written,
    /// Hash of the bytes of every tensor that has any.
    pub tensors: Vec<(String, u64)>,
}

/// Names and shapes of a table, with `section` in front of the names.
pub fn plan(section: &str, table: &ParamTable) -> Vec<(String, Vec<usize>)> {
    table
        .tensors()
        .map(|t| (format!("{section}{}", t.name), t.shape.clone()))
        .collect()
}

impl TensorWriter {
    /// Creates `path` and writes the header for `tensors` (name, shape), all F32, in whose order the values must follow.
    ///
    /// # Errors
    /// A file that cannot be created, and names that occur twice.
    pub fn create(path: &Path, tensors: &[(String, Vec<usize>)]) -> Result<TensorWriter> {
        let planned = |(name, shape): &(String, Vec<usize>)| Planned {
            name: name.clone(),
            shape: shape.clone(),
            dtype: Dtype::F32,
        };
        TensorWriter::create_as(path, &tensors.iter().map(planned).collect::<Vec<_>>())
    }

    /// The same, with a type of its own for every tensor.
    ///
    /// # Errors
    /// As [`TensorWriter::create`].
    pub fn create_as(path: &Path, tensors: &[Planned]) -> Result<TensorWriter> {
        let planned = |reason: String| CheckpointError::Plan {
            path: path.to_owned(),
            reason,
        };
        let (mut names, mut offset, mut infos, mut plan) = (HashSet::new(), 0usize, Vec::new(), Vec::new());
        for Planned { name, shape, dtype } in tensors {
            if !names.insert(name) {
                return Err(planned(format!("`{name}` occurs twice")));
            }
            let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
            let end = count
                .and_then(|n| n.checked_mul(dtype.bitsize() / 8))
                .and_then(|bytes| offset.checked_add(bytes));
            let (Some(count), Some(end)) = (count, end) else {
                return Err(planned(format!("`{name}` of shape {shape:?} has too many elements")));
            };
            let info = TensorInfo {
                dtype: *dtype,
                shape: shape.clone(),
                data_offsets: (offset, end),
            };
            infos.push((name.clone(), info));
            plan.push((name.clone(), count, *dtype));
            offset = end;
        }
        // What Hugging Face's loaders ask for.
        let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let metadata = Metadata::new(Some(about), infos).map_err(|e| planned(e.to_string()))?;
        let mut header = serde_json::to_vec(&metadata).map_err(|e| planned(e.to_string()))?;
        // Spaces up to a multiple of 8 align the data.
        header.resize(header.len().next_multiple_of(8), b' ');

        let mut file = HashedFile::create(path)?;
        file.write(&(header.len() as u64).to_le_bytes())?;
        file.write(&header)?;
        plan.reverse();
        Ok(TensorWriter {
            file,
            plan,
            done: 0,
            hash: Xxh3::new(),
            hashes: Vec::new(),
            block: Vec::with_capacity(4 * BLOCK),
        })
    }

    /// Appends values to the tensor `name`: all of them, or its next part.
    ///
    /// # Errors
    /// A name out of turn, more values than announced, values that are too large for float16, or a file that cannot be
    /// written.
    pub fn write(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let dtype = self.next(name, values.len())?;
        if dtype == Dtype::F32 && cfg!(target_endian = "little") {
            return self.append(name, bytemuck::cast_slice(values));
        }
        let mut block = std::mem::take(&mut self.block);
        for part in values.chunks(BLOCK) {
            match dtype {
                Dtype::F16 => encode(part, &mut block, |v| f16::from_f32(v).to_le_bytes()),
                Dtype::BF16 => encode(part, &mut block, |v| bf16::from_f32(v).to_le_bytes()),
                _ => encode(part, &mut block, f32::to_le_bytes),
            }
            let lost = |v: &&f32| dtype == Dtype::F16 && v.is_finite() && f16::from_f32(**v).is_infinite();
            if let Some(value) = part.iter().find(lost) {
                return Err(CheckpointError::TooLarge {
                    path: self.file.path().to_owned(),
                    tensor: name.into(),
                    value: *value,
                });
            }
            self.append(name, &block)?;
        }
        self.block = block;
        match values.is_empty() {
            true => self.append(name, &[]),
            false => Ok(()),
        }
    }

    /// Appends values as they will be in the file, little-endian: all of them, or the next part.
    ///
    /// # Errors
    /// A name out of turn, more values than announced or half of one, or a file that cannot be written.
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.skip_empty(name);
        let size = self.plan.last().map_or(4, |(_, _, dtype)| dtype.bitsize() / 8);
        if !bytes.len().is_multiple_of(size) {
            return Err(self.out_of_order(format!(
                "`{name}` gets {} bytes, which are not whole values",
                bytes.len()
            )));
        }
        self.next(name, bytes.len() / size)?;
        self.append(name, bytes)
    }

    /// The type of the tensor whose turn it is, which must be `name` and have room for `more` values.
    fn next(&mut self, name: &str, more: usize) -> Result<Dtype> {
        self.skip_empty(name);
        let Some((expected, count, dtype)) = self.plan.last() else {
            return Err(self.out_of_order(format!("`{name}` follows the last tensor")));
        };
        if expected != name {
            let reason = format!(
                "`{name}` comes where `{expected}` should, of which {} of {count} are written",
                self.done
            );
            return Err(self.out_of_order(reason));
        }
        let total = self.done + more;
        if total > *count {
            return Err(self.out_of_order(format!("`{name}` gets {total} values, but was announced with {count}")));
        }
        Ok(*dtype)
    }

    /// Hashes and writes bytes of the current tensor, and ends it where they are its last.
    fn append(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let Some((_, count, dtype)) = self.plan.last() else {
            return Ok(());
        };
        let (count, size) = (*count, dtype.bitsize() / 8);
        for part in bytes.chunks(BLOCK * size) {
            self.file.write(part)?;
            self.hash.update(part);
        }
        self.done += bytes.len() / size;
        if self.done == count {
            self.plan.pop();
            self.done = 0;
            self.hashes.push((name.into(), self.hash.digest()));
            self.hash.reset();
        }
        Ok(())
    }

    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// Tensors that were announced and not written, or a disk that fails.
    pub fn finish(mut self) -> Result<WrittenTensors> {
        self.skip_empty("");
        if let Some((name, count, _)) = self.plan.last() {
            let left = self.plan.len();
            let reason = format!(
                "{left} tensors are missing, the first one `{name}` after {} of {count} values",
                self.done
            );
            return Err(self.out_of_order(reason));
        }
        Ok(WrittenTensors {
            file: self.file.finish()?,
            tensors: self.hashes,
        })
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        let name = self.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Tensors without elements need not be written, except that `name` may be.
    fn skip_empty(&mut self, name: &str) {
        while self
            .plan
            .last()
            .is_some_and(|(next, count, _)| *count == 0 && next != name)
        {
            self.plan.pop();
        }
    }

    fn out_of_order(&self, reason: String) -> CheckpointError {
        let path = self.file.path().to_owned();
        CheckpointError::Plan { path, reason }
    }
}

/// Makes `block` the bytes of `values`.
fn encode<const N: usize>(values: &[f32], block: &mut Vec<u8>, bytes: impl Fn(f32) -> [u8; N]) {
    block.resize(N * values.len(), 0);
    let places = block.as_chunks_mut().0.iter_mut();
    places.zip(values).for_each(|(place, v)| *place = bytes(*v));
}
