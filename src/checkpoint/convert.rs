//! Weights from one program's files into another's: read, renamed, rounded and written piece by piece.
//!
//! Whatever is written appears under its name when it is complete: until then it is in a folder with a dot in front.

use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::error::{CheckpointError, Result};
use super::names::{EMBEDDING, TIED, UNUSED};
use super::shards;
use super::weights::{SINGLE, Weights};
use super::writer::{Planned, TensorWriter};
use crate::files;
use crate::model::dims::Adapters;
use crate::model::merge;
use crate::model::params::{ParamTable, ParamTensor};
use crate::model::tables;

/// In front of the names of what is being written.
const WRITING: &str = ".writing-";

/// Whose names tensors get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Those that [`Weights`] know them by.
    Plain,
    /// Those of openpi's PyTorch model, with the expert's unused output layer (zeros), without which openpi's loader
    /// refuses a file; the embedding as the output layer that it is tied to, as openpi saves it.
    Openpi,
    /// The same with lerobot's `model.` in front.
    Lerobot,
}

/// What becomes of low-rank adapters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LowRank {
    /// They are tensors like others.
    Keep,
    /// The matrices they are for are written with what they add, with the α given here.
    Merge(Adapters),
    /// They alone are written.
    Only,
}

/// Where weights go, and how.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// A folder to be made, or a file if the name ends in `.safetensors`.
    pub path: &'a Path,
    pub names: Names,
    /// The type of all tensors; none keeps each one's.
    pub dtype: Option<Dtype>,
    pub lora: LowRank,
    /// Most bytes of tensors in a file of a folder.
    pub shard: u64,
    /// More files of the folder: path in it, content.
    pub texts: &'a [(PathBuf, String)],
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Files of tensors.
    pub files: Vec<PathBuf>,
    pub tensors: usize,
    pub parameters: usize,
    /// Of all tensors.
    pub bytes: u64,
    /// What was read and is not part of π₀.
    pub left: Vec<String>,
}

/// A tensor to be written, and where its values are from: none are zeros.
struct Item {
    planned: Planned,
    from: Option<ParamTensor>,
}

impl Item {
    fn len(&self) -> usize {
        self.planned.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        (self.len() * self.planned.dtype.bitsize() / 8) as u64
    }
}

/// Converts all of π₀ in `weights`. `progress` is told the parameters done and all of them. Memory holds a piece of a tensor
/// at a time, see [`Weights::pieces`].
///
/// # Errors
/// Weights that are not all of π₀ or π₀.₅, a path that exists, values that the type cannot hold, a disk that fails.
pub fn convert(weights: &Weights, target: &Target, mut progress: impl FnMut(usize, usize)) -> Result<Converted> {
    let table = tables::pi0(&weights.dims()?);
    let left = weights.check(&table, "")?.into_iter().map(String::from).collect();
    let wanted = |tensor: &&ParamTensor| match target.lora {
        LowRank::Keep => true,
        LowRank::Merge(_) => !merge::is_adapter(&tensor.name),
        LowRank::Only => merge::is_adapter(&tensor.name),
    };
    let mut tensors: Vec<&ParamTensor> = table.tensors().filter(wanted).collect();
    if tensors.is_empty() {
        return Err(CheckpointError::NotPi0 {
            path: weights.path().to_owned(),
            reason: "has no adapters; leave out --adapters-only".into(),
        });
    }
    tensors.sort_by_key(|tensor| weights.position(&tensor.name));
    let mut items: Vec<Item> = tensors
        .into_iter()
        .map(|tensor| item(weights, tensor, target))
        .collect();
    if target.lora != LowRank::Only {
        items.extend(unused(weights, target)?);
    }

    let draft = Draft::begin(target.path)?;
    let parts = parts(&items, target);
    let all = items.iter().map(Item::len).sum();
    let mut done = 0;
    for (name, items) in &parts {
        let planned: Vec<Planned> = items.iter().map(|item| item.planned.clone()).collect();
        let mut file = TensorWriter::create_as(&draft.folder.join(name), &planned)?;
        for item in *items {
            write(&mut file, weights, item, &table, target.lora)?;
            done += item.len();
            progress(done, all);
        }
        file.finish()?;
    }
    if parts.len() > 1 {
        files::write(&draft.folder.join(shards::index_of(SINGLE)), index(&parts).as_bytes())?;
    }
    for (path, text) in target.texts {
        let path = draft.folder.join(path);
        path.parent().map_or(Ok(()), files::create_folder)?;
        files::write(&path, text.as_bytes())?;
    }
    let names = parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    Ok(Converted {
        files: draft.commit(target.path, &names)?,
        tensors: items.len(),
        parameters: all,
        bytes: items.iter().map(Item::bytes).sum(),
        left,
    })
}

fn item(weights: &Weights, tensor: &ParamTensor, target: &Target) -> Item {
    let name = match (target.names, tensor.name.as_str()) {
        (Names::Plain, name) => name.to_owned(),
        (Names::Openpi, EMBEDDING) => TIED.to_owned(),
        (Names::Openpi, name) => name.to_owned(),
        (Names::Lerobot, EMBEDDING) => format!("model.{TIED}"),
        (Names::Lerobot, name) => format!("model.{name}"),
    };
    let stored = weights
        .lookup(&tensor.name)
        .map_or(Dtype::F32, |(_, stored)| stored.dtype);
    let planned = Planned {
        name,
        shape: tensor.shape.clone(),
        dtype: target.dtype.unwrap_or(stored),
    };
    Item {
        planned,
        from: Some(tensor.clone()),
    }
}

/// The output layer of the expert, which the modules of others have and nothing reads.
fn unused(weights: &Weights, target: &Target) -> Result<Option<Item>> {
    let name = match target.names {
        Names::Plain => return Ok(None),
        Names::Openpi => UNUSED.to_owned(),
        Names::Lerobot => format!("model.{UNUSED}"),
    };
    let dims = weights.dims()?;
    let planned = Planned {
        name,
        shape: vec![dims.vocab, dims.expert.width],
        dtype: target.dtype.unwrap_or(Dtype::F32),
    };
    Ok(Some(Item { planned, from: None }))
}

fn write(file: &mut TensorWriter, weights: &Weights, item: &Item, table: &ParamTable, lora: LowRank) -> Result<()> {
    const ZEROS: usize = 1 << 20;
    if let Some(tensor) = &item.from {
        // Only what is merged is read as a whole: matrices of a layer.
        let adapted = tensor.name.strip_suffix(".weight").is_some_and(|stem| {
            let name = format!("{stem}{}", merge::A);
            table.tensors().any(|t| t.name == name)
        });
        if let (LowRank::Merge(adapters), true) = (lora, adapted) {
            let values = merge::merge(tensor, table, adapters, |t| weights.tensor(t))?;
            return file.write(&item.planned.name, &values);
        }
        return weights.pieces(&tensor.name, &tensor.shape, |piece| {
            file.write(&item.planned.name, piece)
        });
    }
    let zeros = vec![0.0; ZEROS.min(item.len())];
    for first in (0..item.len()).step_by(ZEROS) {
        file.write(&item.planned.name, &zeros[..ZEROS.min(item.len() - first)])?;
    }
    Ok(())
}

/// A file's name and what is in it.
type Part<'a> = (String, &'a [Item]);

/// Files of at most the target's size, or of one tensor.
fn parts<'a>(items: &'a [Item], target: &Target) -> Vec<Part<'a>> {
    if is_file(target.path) {
        let name = target.path.file_name().unwrap_or_default().to_string_lossy();
        return vec![(name.into_owned(), items)];
    }
    let shards = shards::divide(items.iter().map(Item::bytes), target.shard);
    let n = shards.len();
    let named = shards.into_iter().enumerate();
    named
        .map(|(i, range)| (shards::shard_name(SINGLE, i, n), &items[range]))
        .collect()
}

/// `model.safetensors.index.json`.
fn index(parts: &[Part]) -> String {
    let all = parts.iter().flat_map(|(file, items)| {
        items
            .iter()
            .map(move |item| (item.planned.name.as_str(), file.as_str()))
    });
    let total = parts.iter().flat_map(|(_, items)| *items).map(Item::bytes).sum();
    shards::index(all, total)
}

fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors")
}

/// What is being written. Dropped before it is committed, it leaves nothing.
struct Draft {
    folder: PathBuf,
}

impl Draft {
    fn begin(path: &Path) -> Result<Draft> {
        let taken = path.symlink_metadata().is_ok();
        let (Some(name), false) = (path.file_name(), taken) else {
            return Err(CheckpointError::Exists { path: path.to_owned() });
        };
        let folder = path.with_file_name(format!("{WRITING}{}", name.to_string_lossy()));
        if folder.is_dir() {
            // Of a program that was killed.
            files::remove_folder(&folder)?;
        }
        files::create_folder(&folder)?;
        Ok(Draft { folder })
    }

    /// Gives what was written its name: the folder, or the only file in it. Returns where the files are.
    fn commit(self, path: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
        let above = path
            .parent()
            .filter(|above| *above != Path::new(""))
            .unwrap_or(Path::new("."));
        files::sync_folder(&self.folder)?;
        if is_file(path) {
            for name in names {
                files::rename(&self.folder.join(name), path)?;
            }
            files::sync_folder(above)?;
            return Ok(vec![path.to_owned()]);
        }
        files::rename(&self.folder, path)?;
        files::sync_folder(above)?;
        Ok(names.iter().map(|name| path.join(name)).collect())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.folder.is_dir() && files::remove_folder(&self.folder).is_err() {
            tracing::warn!("`{}` could not be removed; it can be deleted", self.folder.display());
        }
    }
}
