//! One trainer in a run's folder at a time.

use std::fs::File;
use std::path::Path;

use super::error::{Result, TrainError};
use crate::files;

/// Holds a run's folder until it is dropped or the program ends, killed or not.
pub(super) struct Lock {
    /// None where the file system has no locks.
    _file: Option<File>,
}

impl Lock {
    /// Name of the file in the run's folder; the number of the process that holds it is in it.
    pub const NAME: &'static str = ".lock";

    /// Takes the run in `dir`, which is created.
    ///
    /// # Errors
    /// Another program has it, or the folder cannot be written.
    pub fn take(dir: &Path) -> Result<Lock> {
        files::create_folder(dir)?;
        match files::lock(&dir.join(Lock::NAME), &std::process::id().to_string())? {
            files::Lock::Ours(file) => Ok(Lock { _file: Some(file) }),
            files::Lock::Theirs(process) => Err(TrainError::Locked {
                path: dir.to_owned(),
                holder: match process.parse::<u32>() {
                    Ok(process) => format!("process {process}"),
                    Err(_) => "another process".into(),
                },
            }),
            files::Lock::Unsupported(error) => {
                let dir = dir.display();
                tracing::warn!("`{dir}` cannot be locked ({error}); let no second program train in it");
                Ok(Lock { _file: None })
            }
        }
    }
}
