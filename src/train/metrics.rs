//! `metrics.jsonl`: the rows of a run, one JSON object a line.

use std::path::Path;

use super::error::Result;
pub use super::row::Row;
use crate::files::{self, Lines};

/// `metrics.jsonl` of a run.
pub struct Log {
    lines: Lines,
}

impl Log {
    /// Name of the file in the run's folder.
    pub const NAME: &'static str = "metrics.jsonl";

    /// Opens the log of the run in `dir` to go on after `step` steps: rows of later steps, which will be done again,
    /// are removed.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(dir: &Path, step: u64) -> Result<Log> {
        let path = dir.join(Log::NAME);
        files::create_folder(dir)?;
        let mut kept = Vec::new();
        if path.is_file() {
            for line in files::read_bytes(&path)?.split(|byte| *byte == b'\n') {
                // A line that is not a row is what a killed program was writing.
                let row = serde_json::from_slice::<serde_json::Value>(line).unwrap_or_default();
                if row["step"].as_u64().is_some_and(|done| done <= step) {
                    kept.extend(line);
                    kept.push(b'\n');
                }
            }
        }
        files::replace(&path, &kept)?;
        let lines = Lines::open(&path)?;
        Ok(Log { lines })
    }

    /// Appends a row, as one write. A disk that fails is warned about: it should not end the training.
    pub fn write(&mut self, row: &Row) {
        let line = serde_json::to_string(row).unwrap_or_default();
        if let Err(e) = self.lines.write(&line) {
            tracing::warn!("a row of `{}` was lost: {e}", self.path().display());
        }
    }

    /// Waits until all rows are on the disk: a checkpoint must not outlive the rows before it.
    pub fn sync(&self) {
        if let Err(e) = self.lines.sync() {
            tracing::warn!("rows of `{}` may be lost: {e}", self.path().display());
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.lines.path()
    }
}
