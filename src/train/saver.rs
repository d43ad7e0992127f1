//! When checkpoints are saved, and what happens if the disk does not take them.

use std::path::PathBuf;

use super::error::{Result, TrainError};
use super::handover::{Cut, Handover, Identity};
use super::run::Observer;
use crate::checkpoint::Saving;
use crate::step::Learner;

/// Saves a run's checkpoints, one at a time, while training goes on. A save that fails is warned about and tried again
/// after 1, 2, 4, … log intervals, with the state of that time; training ends with an error only if the last one fails.
pub(super) struct Saver<'a> {
    learner: &'a Learner,
    identity: Identity<'a>,
    /// What is still being read from the device.
    reading: Option<Handover>,
    under_way: Option<Saving>,
    /// Newest checkpoint that is complete.
    kept: Option<PathBuf>,
    /// Saves in a row that failed, and the step to try again at.
    failed: u32,
    again: Option<u64>,
}

impl<'a> Saver<'a> {
    pub fn new(learner: &'a Learner, identity: Identity<'a>, kept: Option<PathBuf>) -> Saver<'a> {
        Saver {
            learner,
            identity,
            reading: None,
            under_way: None,
            kept,
            failed: 0,
            again: None,
        }
    }

    pub fn identity(&self) -> &Identity<'a> {
        &self.identity
    }

    /// Is a checkpoint to be saved after `done` steps? Also takes note of one that is complete by now.
    pub fn due(&mut self, done: u64, observer: &mut dyn Observer) -> bool {
        if self.under_way.as_ref().is_some_and(Saving::is_done) {
            self.settle(done, observer);
        }
        done.is_multiple_of(self.identity.config.save_interval) || self.again.is_some_and(|step| done >= step)
    }

    /// Starts saving the state after `done` steps, of which `skipped` changed nothing; waits for the save before. The state
    /// must not change until [`Saver::hold`].
    ///
    /// # Errors
    /// A device that failed.
    pub fn start(&mut self, done: u64, skipped: u64, observer: &mut dyn Observer) -> Result<()> {
        self.hold()?;
        self.settle(done, observer);
        self.again = None;
        let cut = Cut::new(self.identity.config.save_memory_mb);
        self.reading = Some(Handover::begin(self.learner, &self.identity, done, skipped, cut)?);
        self.advance()
    }

    /// Whether a state is being read.
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Goes on reading as far as there is room.
    ///
    /// # Errors
    /// A device that failed.
    pub fn advance(&mut self) -> Result<()> {
        let complete = match &mut self.reading {
            Some(reading) => reading.advance()?,
            None => false,
        };
        if complete { self.hold() } else { Ok(()) }
    }

    /// Reads what is left, before the state changes: waits for the disk if there is no room.
    ///
    /// # Errors
    /// A device that failed.
    pub fn hold(&mut self) -> Result<()> {
        if let Some(reading) = self.reading.take() {
            self.under_way = Some(reading.finish()?);
        }
        Ok(())
    }

    /// The newest complete checkpoint, after waiting for the one under way.
    pub fn newest(&mut self, done: u64, observer: &mut dyn Observer) -> Option<PathBuf> {
        // Without its device, a state that is half read is lost.
        let _ = self.hold();
        self.settle(done, observer);
        self.kept.clone()
    }

    /// Waits for the last save; returns the newest checkpoint.
    ///
    /// # Errors
    /// The last save failed.
    pub fn finish(&mut self, observer: &mut dyn Observer) -> Result<Option<PathBuf>> {
        self.hold()?;
        if let Some(saving) = self.under_way.take() {
            let step = saving.step();
            let (folder, took) = saving.wait().map_err(|source| TrainError::Unsaved {
                step,
                source: source.into(),
                kept: shown(&self.kept),
            })?;
            observer.saved(&folder, took);
            self.kept = Some(folder);
        }
        Ok(self.kept.take())
    }

    /// Waits for the save under way, after `done` steps, and takes in its result.
    fn settle(&mut self, done: u64, observer: &mut dyn Observer) {
        let Some(saving) = self.under_way.take() else { return };
        let step = saving.step();
        match saving.wait() {
            Ok((folder, took)) => {
                observer.saved(&folder, took);
                (self.kept, self.failed) = (Some(folder), 0);
            }
            Err(error) => {
                let interval = self.identity.config.log_interval;
                let again = (done / interval + (1 << self.failed.min(16))) * interval;
                tracing::warn!("step {step} could not be saved ({error}); training goes on, and a later step is saved");
                self.failed += 1;
                self.again = Some(again);
            }
        }
    }
}

impl Drop for Saver<'_> {
    /// A run that ends with an error still lets the disk finish.
    fn drop(&mut self) {
        let _ = self.hold();
        if let Some(saving) = self.under_way.take() {
            let _ = saving.wait();
        }
    }
}

/// Where a checkpoint is, in a message.
pub(super) fn shown(kept: &Option<PathBuf>) -> String {
    kept.as_ref()
        .map_or("none yet".into(), |folder| folder.display().to_string())
}
