//! `metrics.jsonl`: the rows of a run, one JSON object a line.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::error::{Result, TrainError};
pub use super::row::Row;

/// `metrics.jsonl` of a run.
pub struct Log {
    path: PathBuf,
    file: File,
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
        let wrong = |source| TrainError::Write {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(dir).map_err(wrong)?;
        let mut kept = String::new();
        if path.is_file() {
            for line in BufReader::new(File::open(&path).map_err(wrong)?).lines() {
                let line = line.map_err(wrong)?;
                // A line that is not a row is what a killed program was writing.
                let row = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
                if row["step"].as_u64().is_some_and(|done| done <= step) {
                    kept += &line;
                    kept.push('\n');
                }
            }
        }
        let fresh = path.with_extension("jsonl.tmp");
        fs::write(&fresh, kept).map_err(wrong)?;
        fs::rename(&fresh, &path).map_err(wrong)?;
        let file = OpenOptions::new().append(true).open(&path).map_err(wrong)?;
        Ok(Log { path, file })
    }

    /// Appends a row, as one write. A disk that fails is warned about: it should not end the training.
    pub fn write(&mut self, row: &Row) {
        let line = serde_json::to_string(row).unwrap_or_default() + "\n";
        if let Err(e) = self.file.write_all(line.as_bytes()) {
            tracing::warn!("a row of `{}` was lost: {e}", self.path.display());
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
