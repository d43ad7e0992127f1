//! `run.json` in a run's folder: who the run is, with the configuration it last went on with.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

/// Who a run is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Of the run at wandb; the same for all programs that go on with it.
    pub id: String,
    /// `--exp-name`.
    pub name: String,
    /// Of the run at wandb.
    pub project: String,
    /// All keys, with the values in effect.
    pub config: Value,
}

impl RunFile {
    /// Name of the file in the run's folder.
    pub const NAME: &'static str = "run.json";

    /// The file in `dir`, if there is one that can be read.
    pub fn read(dir: &Path) -> Option<RunFile> {
        let text = fs::read_to_string(dir.join(RunFile::NAME)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the file for a program that begins after `step` steps: the run keeps its id unless it starts anew.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub fn update(dir: &Path, step: u64, name: &str, project: &str, config: &impl Serialize) -> io::Result<RunFile> {
        let known = RunFile::read(dir).filter(|_| step > 0);
        let file = RunFile {
            id: known.map_or_else(|| new_id(dir), |run| run.id),
            name: name.into(),
            project: project.into(),
            config: serde_json::to_value(config)?,
        };
        let fresh = dir.join("run.json.tmp");
        fs::write(&fresh, serde_json::to_string_pretty(&file)? + "\n")?;
        fs::rename(&fresh, dir.join(RunFile::NAME))?;
        Ok(file)
    }
}

/// Eight letters and digits that no other run has: wandb's ids are like that.
fn new_id(dir: &Path) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = format!("{} {} {}", dir.display(), now.as_nanos(), std::process::id());
    let mut hash = xxh3_64(seed.as_bytes());
    let mut digit = || {
        let digit = (hash % 36) as u32;
        hash /= 36;
        char::from_digit(digit, 36).unwrap_or('0')
    };
    (0..8).map(|_| digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_its_id_until_it_starts_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = serde_json::json!({"batch_size": 8});
        let update = |step| RunFile::update(dir.path(), step, "a", "p", &config).expect("written");
        let first = update(0);
        assert!(first.id.len() == 8 && first.id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()));
        assert_eq!(update(10), first);
        assert_eq!(RunFile::read(dir.path()), Some(first.clone()));
        assert_ne!(update(0).id, first.id);
    }
}
