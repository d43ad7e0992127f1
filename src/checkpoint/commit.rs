//! Saving a checkpoint so that it is there completely or not at all.
//!
//! Files are written into a folder with a dot in front of its name, each one durable before the next; the manifest
//! comes last; then the folder gets its number as name. Being killed at any point leaves the checkpoints that were
//! there, and a dotted folder that the next [`begin`] removes. Old checkpoints go only after the new one is there, and
//! are renamed before they are deleted, so that half-deleted ones do not look like broken ones. One that is replaced by
//! another of the same step is renamed too; if its name is free when a run begins, it gets it back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::error::{CheckpointError, Result};
use super::manifest::Manifest;
use super::resume::complete_steps;
use super::state::{RunState, STATE};
use super::writer::{TensorWriter, WrittenTensors};
use crate::files;

/// In front of the names of folders that are being written, deleted or replaced.
const WRITING: &str = ".writing-";
const REMOVING: &str = ".removing-";
const REPLACED: &str = ".replaced-";

/// A checkpoint in the making. Dropped before [`Draft::commit`], it leaves nothing.
pub struct Draft {
    /// The run's folder, where steps lie.
    dir: PathBuf,
    /// Where this one is being written.
    folder: PathBuf,
    state: RunState,
    manifest: Manifest,
    /// Files begun and not kept yet.
    open: BTreeSet<String>,
    committed: bool,
}

/// Starts the checkpoint `state.step` of the run in `dir` (which is created), and removes what a killed run left there.
///
/// # Errors
/// A folder that cannot be written.
pub fn begin(dir: &Path, state: RunState) -> Result<Draft> {
    files::create_folder(dir)?;
    recover(dir)?;
    let folder = dir.join(format!("{WRITING}{}", state.step));
    files::create_folder(&folder)?;
    Ok(Draft {
        dir: dir.to_owned(),
        folder,
        state,
        manifest: Manifest::default(),
        open: BTreeSet::new(),
        committed: false,
    })
}

/// Puts in order what an interrupted run left in `dir`: checkpoints that were about to be replaced get their names back,
/// half-written and half-deleted ones go.
///
/// # Errors
/// A folder that cannot be written.
pub fn recover(dir: &Path) -> Result<()> {
    let names = files::list(dir)?;
    for name in names
        .iter()
        .filter(|n| n.starts_with(WRITING) || n.starts_with(REMOVING))
    {
        let path = dir.join(name);
        tracing::info!("removing `{}`, which an interrupted run left", path.display());
        files::remove_folder(&path)?;
    }
    for step in names.iter().filter_map(|name| name.strip_prefix(REPLACED)) {
        let (hidden, home) = (dir.join(format!("{REPLACED}{step}")), dir.join(step));
        if home.exists() {
            retire(&hidden, &dir.join(format!("{REMOVING}{step}")))?;
        } else {
            tracing::info!("step {step}, which an interrupted run was about to replace, is back");
            files::rename(&hidden, &home)?;
            files::sync_folder(dir)?;
        }
    }
    Ok(())
}

/// Deletes all checkpoints of the run in `dir`, the oldest first, so that what remains of an interrupted deletion is
/// whole.
///
/// # Errors
/// A folder that cannot be listed or deleted.
pub fn discard(dir: &Path) -> Result<()> {
    recover(dir)?;
    for step in super::resume::steps(dir)? {
        delete(dir, step)?;
    }
    Ok(())
}

/// Deletes a checkpoint, which takes its name off first.
fn retire(folder: &Path, hidden: &Path) -> Result<()> {
    files::rename(folder, hidden)?;
    hidden.parent().map_or(Ok(()), files::sync_folder)?;
    Ok(files::remove_folder(hidden)?)
}

/// Deletes the checkpoint `step`.
fn delete(dir: &Path, step: u64) -> Result<()> {
    retire(&dir.join(step.to_string()), &dir.join(format!("{REMOVING}{step}")))
}

impl Draft {
    /// Starts a file of tensors (name, shape); give the writer to [`Draft::keep`] when all are written.
    ///
    /// # Errors
    /// As [`TensorWriter::create`].
    pub fn tensors(&mut self, name: &str, plan: &[(String, Vec<usize>)]) -> Result<TensorWriter> {
        let writer = TensorWriter::create(&self.folder.join(name), plan)?;
        self.open.insert(name.into());
        Ok(writer)
    }

    /// Finishes a file of tensors.
    ///
    /// # Errors
    /// As [`TensorWriter::finish`].
    pub fn keep(&mut self, writer: TensorWriter) -> Result<()> {
        let name = writer.name();
        let written = writer.finish()?;
        self.kept(&name, &written);
        Ok(())
    }

    /// Takes note of a file of tensors that is finished.
    pub(super) fn kept(&mut self, name: &str, written: &WrittenTensors) {
        self.open.remove(name);
        self.manifest.add(name, written.file, &written.tensors);
    }

    /// Writes a text file.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn text(&mut self, name: &str, text: &str) -> Result<()> {
        let written = files::write(&self.folder.join(name), text.as_bytes())?;
        self.manifest.add(name, written, &[]);
        Ok(())
    }

    /// Where the files of this checkpoint are, for now.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes the checkpoint visible under its step and removes the oldest ones so that `keep` (at least 1) remain.
    /// Returns its folder.
    ///
    /// # Errors
    /// Anything that keeps it from being complete on the disk; what was there before is untouched then. Trouble with
    /// removing old checkpoints is only logged.
    pub fn commit(mut self, keep: usize) -> Result<PathBuf> {
        if let Some(name) = self.open.first() {
            let path = self.folder.join(name);
            let reason = "it was begun and not finished".into();
            return Err(CheckpointError::Plan { path, reason });
        }
        let state = serde_json::to_string_pretty(&self.state).map_err(|e| CheckpointError::Plan {
            path: self.folder.join(STATE),
            reason: e.to_string(),
        })?;
        self.text(STATE, &state)?;
        self.manifest.write(&self.folder)?;
        files::sync_folder(&self.folder)?;

        let home = self.dir.join(self.state.step.to_string());
        // An incomplete one of this step, or one that a run resumed from an earlier step has reached again.
        let replaced = if home.exists() {
            let hidden = self.dir.join(format!("{REPLACED}{}", self.state.step));
            files::rename(&home, &hidden)?;
            Some(hidden)
        } else {
            None
        };
        if let Err(error) = files::rename(&self.folder, &home) {
            if let Some(hidden) = replaced {
                files::rename(&hidden, &home)?;
            }
            return Err(error.into());
        }
        self.committed = true;
        files::sync_folder(&self.dir)?;
        if let Err(error) = self.prune(keep, replaced) {
            tracing::warn!("old checkpoints could not be removed: {error}");
        }
        Ok(home)
    }

    fn prune(&self, keep: usize, replaced: Option<PathBuf>) -> Result<()> {
        if let Some(folder) = replaced {
            let hidden = self.dir.join(format!("{REMOVING}{}", self.state.step));
            retire(&folder, &hidden)?;
        }
        let steps = complete_steps(&self.dir)?;
        let old = steps.iter().rev().skip(keep.max(1));
        for step in old.filter(|step| **step != self.state.step) {
            delete(&self.dir, *step)?;
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.committed {
            // Nothing depends on it: the next `begin` removes what remains.
            let _ = files::remove_folder(&self.folder);
        }
    }
}
