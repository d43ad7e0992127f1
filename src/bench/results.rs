//! What was measured, as a file: this program's and its peers'.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::check::Check;
use super::timing::Spread;
use crate::files::{self, FileError};
use crate::gpu::Roofline;

/// Version of the format.
pub const FORMAT: u32 = 1;

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Measured, and right.
    Ok,
    /// Measured, but what came out is not right.
    Wrong,
    /// The device or the program failed.
    Failed,
    /// Not measured: the device cannot do it.
    Skipped,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// The kernel that was picked.
    #[serde(default)]
    pub kernel: String,
    pub status: Status,
    /// Why it is not ok.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Useful floating point operations, and bytes moved at least.
    pub flops: f64,
    pub bytes: f64,
    #[serde(flatten)]
    pub spread: Spread,
    #[serde(default)]
    pub copies: usize,
    /// Kernel launches of one run.
    #[serde(default)]
    pub launches: u64,
    /// Share of the roofline, 1 at best.
    #[serde(default)]
    pub of_roofline: f64,
    #[serde(default)]
    pub check: Check,
}

impl Row {
    /// 10¹² FLOPs in a second.
    pub fn tflops(&self) -> f64 {
        self.flops / self.spread.median_ms.max(1e-9) * 1e-9
    }

    /// 10⁹ bytes in a second.
    pub fn gigabytes_per_s(&self) -> f64 {
        self.bytes / self.spread.median_ms.max(1e-9) * 1e-6
    }

    /// Was it measured?
    pub fn timed(&self) -> bool {
        matches!(self.status, Status::Ok | Status::Wrong)
    }
}

/// All cases of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    /// Who measured.
    pub program: String,
    pub device: String,
    #[serde(default)]
    pub api: String,
    pub dtype: String,
    /// Whether the shapes are scaled down.
    pub quick: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub roofline: Option<Roofline>,
    /// A peer may do a case in several ways: several rows of one name.
    pub rows: Vec<Row>,
}

/// Why results cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{path}` holds no results ({why}); give a file that `acrlpd bench kernels --save` or a peer wrote")]
    Content { path: PathBuf, why: serde_json::Error },
    #[error("`{path}` has format {found}, this program knows {FORMAT}; measure again")]
    Format { path: PathBuf, found: u32 },
    #[error(
        "`{path}` was measured in {theirs}, this is {ours}: they cannot be compared; choose the same --dtype and sizes"
    )]
    Differs {
        path: PathBuf,
        theirs: String,
        ours: String,
    },
}

impl ResultsError {
    /// The exit code that tells it to a script.
    pub fn exit_code(&self) -> u8 {
        match self {
            ResultsError::File(_) | ResultsError::Content { .. } | ResultsError::Format { .. } => 3,
            ResultsError::Differs { .. } => 2,
        }
    }
}

impl Results {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of ours.
    pub fn read(path: &Path) -> Result<Results, ResultsError> {
        let text = files::read(path)?;
        let results: Results =
            serde_json::from_str(&text).map_err(|why| ResultsError::Content { path: path.into(), why })?;
        match results.format {
            FORMAT => Ok(results),
            found => Err(ResultsError::Format {
                path: path.into(),
                found,
            }),
        }
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ResultsError> {
        let text = serde_json::to_vec_pretty(self).map_err(|why| ResultsError::Content { path: path.into(), why })?;
        Ok(files::replace(path, &text)?)
    }

    /// What a comparison must agree on.
    fn terms(&self) -> String {
        format!("{}{}", self.dtype, if self.quick { ", quick sizes" } else { "" })
    }

    /// Refuses results (of `path`) that mean something else than these.
    ///
    /// # Errors
    /// Another type, or other sizes.
    pub fn comparable(&self, other: &Results, path: &Path) -> Result<(), ResultsError> {
        if self.terms() == other.terms() {
            return Ok(());
        }
        Err(ResultsError::Differs {
            path: path.into(),
            theirs: other.terms(),
            ours: self.terms(),
        })
    }

    /// The fastest right row of a name.
    pub fn best(&self, name: &str) -> Option<&Row> {
        let rows = self
            .rows
            .iter()
            .filter(|row| row.name == name && row.status == Status::Ok);
        rows.min_by(|a, b| a.spread.median_ms.total_cmp(&b.spread.median_ms))
    }

    /// How fast `row` is beside this file's best row of the same name: 2 is twice as fast.
    pub fn ratio(&self, row: &Row) -> Option<f64> {
        let theirs = self.best(&row.name).filter(|_| row.timed())?;
        Some(theirs.spread.median_ms / row.spread.median_ms.max(1e-9))
    }

    /// Did nothing go wrong?
    pub fn passed(&self) -> bool {
        self.rows
            .iter()
            .all(|row| matches!(row.status, Status::Ok | Status::Skipped))
    }
}

/// A ratio below this is a regression: 5 % slower.
pub const REGRESSION: f64 = 1.0 / 1.05;

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn row(name: &str, ms: f64, status: Status) -> Row {
        Row {
            name: name.into(),
            kernel: String::new(),
            status,
            why: None,
            flops: 2e9,
            bytes: 1e6,
            spread: Spread {
                median_ms: ms,
                p10_ms: ms,
                p90_ms: ms,
            },
            copies: 1,
            launches: 1,
            of_roofline: 0.0,
            check: Check::default(),
        }
    }

    fn results(rows: Vec<Row>) -> Results {
        Results {
            format: FORMAT,
            program: "test".into(),
            device: "device".into(),
            api: String::new(),
            dtype: "float32".into(),
            quick: false,
            roofline: None,
            rows,
        }
    }

    #[test]
    fn the_best_of_several_ways_is_the_fastest_that_is_right() {
        let peer = results(vec![
            row("a", 3.0, Status::Ok),
            row("a", 2.0, Status::Ok),
            row("a", 1.0, Status::Wrong),
            row("b", 1.0, Status::Failed),
        ]);
        let ours = row("a", 4.0, Status::Ok);
        assert_eq!(peer.ratio(&ours), Some(0.5));
        assert_eq!(peer.ratio(&row("b", 1.0, Status::Ok)), None);
        assert_eq!(peer.ratio(&row("c", 1.0, Status::Ok)), None);
        assert_eq!(peer.ratio(&row("a", 0.0, Status::Failed)), None);
        assert!(!peer.passed());
        assert!((ours.tflops() - 0.5).abs() < 1e-12 && (ours.gigabytes_per_s() - 0.25).abs() < 1e-12);
    }

    #[test]
    fn files_come_back_as_they_were_and_strangers_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("results.json");
        let all = results(vec![row("a", 3.0, Status::Ok)]);
        all.write(&path).expect("it is written");
        assert_eq!(Results::read(&path).expect("it is read"), all);
        let later = Results {
            format: 9,
            ..all.clone()
        };
        later.write(&path).expect("it is written");
        assert!(
            Results::read(&path)
                .expect_err("another format")
                .to_string()
                .contains("format 9")
        );
        std::fs::write(&path, "{}").expect("it is written");
        assert!(
            Results::read(&path)
                .expect_err("no results")
                .to_string()
                .contains("missing field")
        );
        let other = Results {
            quick: true,
            ..all.clone()
        };
        let refused = all.comparable(&other, &path).expect_err("other sizes").to_string();
        assert!(refused.contains("float32, quick sizes"), "{refused}");
        assert!(all.comparable(&all, &path).is_ok());
    }
}
