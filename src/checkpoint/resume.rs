//! Finding and opening saved checkpoints.

use std::path::{Path, PathBuf};

use super::error::{CheckpointError, Result};
use super::manifest::{MANIFEST, Manifest};
use super::shards::index_of;
use super::state::{CONFIG, RunState, STATE};
use super::weights::Weights;
use crate::files;

/// A checkpoint whose every byte has been verified.
#[derive(Clone, Debug)]
pub struct Saved {
    folder: PathBuf,
    manifest: Manifest,
    state: RunState,
}

/// Opens the checkpoint in `folder` (`…/STEP`) and verifies it, which reads all of it.
///
/// # Errors
/// Files that are missing, cut short or changed, and formats of later versions.
pub fn open(folder: &Path) -> Result<Saved> {
    if !folder.is_dir() {
        return Err(CheckpointError::NotACheckpoint {
            path: folder.to_owned(),
            reason: "there is no such folder".into(),
        });
    }
    let manifest = Manifest::read(folder)?;
    // The format before the many bytes of a layout that may be another one.
    manifest.verify(folder, |name| name == STATE)?;
    let state = RunState::read(folder)?;
    manifest.verify(folder, |name| name != STATE)?;
    Ok(Saved {
        folder: folder.to_owned(),
        manifest,
        state,
    })
}

/// The folder of the newest complete checkpoint of the run in `dir`; `None` if there is none. Incomplete ones are
/// passed over with a warning that names them. Only sizes are compared here: [`open`] looks at the bytes.
///
/// # Errors
/// A folder that cannot be listed.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    for step in steps(dir)?.into_iter().rev() {
        let folder = dir.join(step.to_string());
        match Manifest::read(&folder) {
            Ok(_) => return Ok(Some(folder)),
            Err(error) => tracing::warn!("passing over step {step}: {error}"),
        }
    }
    Ok(None)
}

/// The newest checkpoint of the run in `dir` that is whole to the last bit; `None` if the run has none at all. Those
/// that are not are passed over with a warning that says what is wrong with them.
///
/// # Errors
/// A folder that cannot be listed, a checkpoint of a later format, and checkpoints none of which is whole.
pub fn newest(dir: &Path) -> Result<Option<Saved>> {
    let mut first_error = None;
    for step in steps(dir)?.into_iter().rev() {
        match open(&dir.join(step.to_string())) {
            Ok(saved) => return Ok(Some(saved)),
            Err(error @ CheckpointError::TooNew { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!("passing over step {step}: {error}");
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(None), |newest| {
        Err(CheckpointError::NoneWhole {
            path: dir.to_owned(),
            newest: newest.into(),
        })
    })
}

/// The checkpoint that `path` means: itself if it is one, else the newest one of the run in it.
///
/// # Errors
/// A path that is neither.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    // A number that is not complete is still meant as a checkpoint, and opening it says what it lacks.
    if path.join(MANIFEST).is_file() || (path.is_dir() && step_of(path).is_some()) {
        return Ok(path.to_owned());
    }
    latest(path)?.ok_or_else(|| CheckpointError::NotACheckpoint {
        path: path.to_owned(),
        reason: format!("it has neither {MANIFEST} nor folders of complete steps"),
    })
}

/// The steps saved in `dir`, complete or not, ascending.
///
/// # Errors
/// A folder that cannot be listed.
pub fn steps(dir: &Path) -> Result<Vec<u64>> {
    let names = files::list(dir)?;
    let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(Path::new(name))).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Those of [`steps`] whose files are all there.
pub(super) fn complete_steps(dir: &Path) -> Result<Vec<u64>> {
    let mut steps = steps(dir)?;
    steps.retain(|step| Manifest::read(&dir.join(step.to_string())).is_ok());
    Ok(steps)
}

/// The step that a folder is named after.
pub(super) fn step_of(folder: &Path) -> Option<u64> {
    let name = folder.file_name()?.to_str()?;
    // Only the spelling that we write, so that `007` cannot stand beside `7`.
    name.parse().ok().filter(|step: &u64| step.to_string() == name)
}

impl Saved {
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn state(&self) -> &RunState {
        &self.state
    }

    /// Whether it has a file of this name, or shards of one.
    pub fn has(&self, name: &str) -> bool {
        self.manifest.has(name) || self.manifest.has(&index_of(name))
    }

    /// The path of one of its files; of one that is in shards, that of their index.
    ///
    /// # Errors
    /// A file that this checkpoint does not have.
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        for name in [name, &index_of(name)] {
            if self.manifest.has(name) {
                return Ok(self.folder.join(name));
            }
        }
        Err(CheckpointError::Incomplete {
            path: self.folder.clone(),
            reason: format!("it was saved without {name}"),
        })
    }

    /// One of its files of tensors.
    ///
    /// # Errors
    /// As [`Saved::file`] and [`Weights::open`].
    pub fn tensors(&self, name: &str) -> Result<Weights> {
        Weights::open(self.file(name)?)
    }

    /// The text of its configuration.
    ///
    /// # Errors
    /// As [`Saved::file`].
    pub fn config(&self) -> Result<String> {
        Ok(files::read(&self.file(CONFIG)?)?)
    }
}
