//! What was measured of steps, as a file: this program's and its peers'.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bench::results::{FORMAT, ResultsError, Status};
use crate::bench::timing::Spread;
use crate::files;
use crate::gpu::{Profile, Roofline};

/// Tells these files from those of kernels.
const KIND: &str = "step";

/// A phase, each of its launches measured alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseRow {
    pub name: String,
    pub launches: u64,
    pub tflop: f64,
    pub ms: f64,
}

/// Memory in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemoryRow {
    /// Most in use at once by the plan, and as it was. Only steps that can be planned have a plan.
    pub planned: Option<u64>,
    pub used: u64,
    /// Weights, gradients and optimizer states; activations and workspaces.
    pub states: u64,
    pub activations: u64,
    /// Taken from the driver.
    pub reserved: u64,
}

impl MemoryRow {
    /// Use beside the plan: 1 where the plan is right.
    pub fn of_plan(&self) -> Option<f64> {
        self.planned.map(|planned| self.used as f64 / planned.max(1) as f64)
    }
}

/// One case. Of peers only the first half is there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRow {
    pub name: String,
    /// Which of a peer's ways it is.
    #[serde(default)]
    pub way: String,
    pub status: Status,
    /// Why it was not measured.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub why: Option<String>,
    /// Samples of an optimizer step, and candidates of each.
    pub samples: usize,
    #[serde(default)]
    pub candidates: usize,
    #[serde(default)]
    pub step: Spread,
    #[serde(default)]
    pub samples_per_s: f64,
    #[serde(default)]
    pub first_step_ms: f64,
    /// Most memory a peer had in use.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub peak_bytes: Option<u64>,

    #[serde(default)]
    pub micro_batches: usize,
    #[serde(default)]
    pub launches: u64,
    /// Waits for the device inside of a step, before its end.
    #[serde(default)]
    pub waits: u64,
    /// The host's time for a step: issuing its launches while no queue is full, driver and all (GPUs only); and the same
    /// code on a device that only counts.
    #[serde(default)]
    pub host_ms: Option<f64>,
    #[serde(default)]
    pub code_ms: f64,
    /// Sum of all launches, each alone.
    #[serde(default)]
    pub kernels_ms: f64,
    /// Work of a step: what ran, and what the algorithm asks for, which recomputation does not add to.
    #[serde(default)]
    pub tflop: f64,
    #[serde(default)]
    pub algorithm_tflop: f64,
    /// The algorithm's work in the step's time, as a share of the rate of a large product.
    #[serde(default)]
    pub of_peak: f64,
    #[serde(default)]
    pub memory: Option<MemoryRow>,
    #[serde(default)]
    pub phases: Vec<PhaseRow>,
    /// By phase and op, for tables.
    #[serde(skip)]
    pub profile: Option<Profile>,
}

impl PartialEq for Profile {
    fn eq(&self, other: &Self) -> bool {
        (&self.rows, self.wall_ms, &self.roofline) == (&other.rows, other.wall_ms, &other.roofline)
    }
}

impl StepRow {
    /// A case that was not measured.
    pub fn without(name: &str, samples: usize, candidates: usize, status: Status, why: &str) -> StepRow {
        StepRow {
            name: name.into(),
            way: String::new(),
            status,
            why: Some(why.into()),
            samples,
            candidates,
            step: Spread::default(),
            samples_per_s: 0.0,
            first_step_ms: 0.0,
            peak_bytes: None,
            micro_batches: 0,
            launches: 0,
            waits: 0,
            host_ms: None,
            code_ms: 0.0,
            kernels_ms: 0.0,
            tflop: 0.0,
            algorithm_tflop: 0.0,
            of_peak: 0.0,
            memory: None,
            phases: Vec::new(),
            profile: None,
        }
    }

    /// The host's time as a share of the step's: what is above a tenth is in danger of being waited for.
    pub fn of_host(&self) -> Option<f64> {
        self.host_ms.map(|host| host / self.step.median_ms.max(1e-9))
    }

    fn timed(&self) -> bool {
        self.status == Status::Ok && self.step.median_ms > 0.0
    }
}

/// All cases of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepResults {
    pub format: u32,
    pub kind: String,
    pub program: String,
    pub device: String,
    #[serde(default)]
    pub api: String,
    pub dtype: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub roofline: Option<Roofline>,
    pub rows: Vec<StepRow>,
}

impl StepResults {
    /// Of this program.
    pub fn new(device: &str, api: &str, dtype: &str, roofline: Option<Roofline>) -> StepResults {
        StepResults {
            format: FORMAT,
            kind: KIND.into(),
            program: format!("acrlpd {}", env!("CARGO_PKG_VERSION")),
            device: device.into(),
            api: api.into(),
            dtype: dtype.into(),
            roofline,
            rows: Vec::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of ours.
    pub fn read(path: &Path) -> Result<StepResults, ResultsError> {
        let text = files::read(path)?;
        let content = |why: serde_json::Error| ResultsError::Content { path: path.into(), why };
        let results: StepResults = serde_json::from_str(&text).map_err(content)?;
        match (results.format, results.kind.as_str()) {
            (FORMAT, KIND) => Ok(results),
            (FORMAT, _) => Err(content(serde::de::Error::custom("they are not of steps"))),
            (found, _) => Err(ResultsError::Format {
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

    /// Refuses a peer's results (of `path`) that were measured in another type.
    ///
    /// # Errors
    /// Another type.
    pub fn comparable(&self, other: &StepResults, path: &Path) -> Result<(), ResultsError> {
        if self.dtype == other.dtype {
            return Ok(());
        }
        Err(ResultsError::Differs {
            path: path.into(),
            theirs: other.dtype.clone(),
            ours: self.dtype.clone(),
        })
    }

    /// The ways in which this peer did a case, and how many times as fast `row` is as each.
    pub fn beside<'a>(&'a self, row: &'a StepRow) -> impl Iterator<Item = (&'a StepRow, Option<f64>)> {
        let of_case = self.rows.iter().filter(|theirs| theirs.name == row.name);
        of_case.map(|theirs| {
            let same = theirs.samples == row.samples && (theirs.candidates == row.candidates || theirs.candidates == 0);
            let ratio = (same && theirs.timed() && row.timed()).then(|| theirs.step.median_ms / row.step.median_ms);
            (theirs, ratio)
        })
    }

    /// For each case that differs from an earlier one in nothing but its candidates: both, and how much longer it takes.
    pub fn growth(&self) -> Vec<(&StepRow, &StepRow, f64)> {
        let size = |row: &StepRow| row.name.rsplit_once(" N").map(|(size, _)| size.to_owned());
        let rows: Vec<&StepRow> = self
            .rows
            .iter()
            .filter(|row| row.timed() && size(row).is_some())
            .collect();
        let first = |row: &StepRow| rows.iter().copied().find(|other| size(other) == size(row));
        rows.iter()
            .filter_map(|&row| {
                let base = first(row).filter(|base| base.candidates != row.candidates)?;
                Some((base, row, row.step.median_ms / base.step.median_ms))
            })
            .collect()
    }

    /// Did nothing go wrong?
    pub fn passed(&self) -> bool {
        self.rows
            .iter()
            .all(|row| matches!(row.status, Status::Ok | Status::Skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, candidates: usize, ms: f64) -> StepRow {
        let step = Spread {
            median_ms: ms,
            p10_ms: ms,
            p90_ms: ms,
        };
        StepRow {
            step,
            status: Status::Ok,
            why: None,
            host_ms: Some(1.0),
            ..StepRow::without(name, 8, candidates, Status::Ok, "")
        }
    }

    fn results(rows: Vec<StepRow>) -> StepResults {
        StepResults {
            rows,
            ..StepResults::new("device", "none", "float32", None)
        }
    }

    #[test]
    fn a_peer_is_compared_way_by_way() {
        let mut slow = row("full", 4, 30.0);
        slow.way = "original".into();
        let failed = StepRow::without("full", 8, 4, Status::Failed, "out of memory");
        let other = row("full", 32, 30.0);
        let peer = results(vec![row("full", 4, 10.0), slow, failed, other, row("1/4", 4, 1.0)]);
        let ours = row("full", 4, 5.0);
        let ratios: Vec<_> = peer.beside(&ours).map(|(_, ratio)| ratio).collect();
        assert_eq!(ratios, [Some(2.0), Some(6.0), None, None]);
        assert!((ours.of_host().expect("a host") - 0.2).abs() < 1e-12);
    }

    #[test]
    fn growth_is_measured_from_the_first_of_a_size() {
        let all = results(vec![
            row("a N4", 4, 10.0),
            row("a N32", 32, 13.0),
            row("b N4", 4, 1.0),
            row("c", 4, 2.0),
            StepRow::without("b N32", 8, 32, Status::Skipped, "too large"),
        ]);
        let told: Vec<_> = all
            .growth()
            .iter()
            .map(|(a, b, g)| (a.name.clone(), b.name.clone(), *g))
            .collect();
        assert_eq!(told, [("a N4".to_owned(), "a N32".to_owned(), 1.3)]);
        assert!(all.passed());
    }

    #[test]
    fn files_come_back_and_strangers_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("steps.json");
        let all = results(vec![row("a", 4, 3.0)]);
        all.write(&path).expect("it is written");
        assert_eq!(StepResults::read(&path).expect("it is read"), all);
        let told = |results: &StepResults| {
            results.write(&path).expect("it is written");
            StepResults::read(&path).expect_err("a stranger").to_string()
        };
        assert!(
            told(&StepResults {
                format: 9,
                ..all.clone()
            })
            .contains("format 9")
        );
        let kernels = StepResults {
            kind: "kernels".into(),
            ..all.clone()
        };
        assert!(told(&kernels).contains("not of steps"));
        // A peer says no more than this.
        let least = r#"{"format": 1, "kind": "step", "program": "p", "device": "d", "dtype": "bfloat16",
            "rows": [{"name": "a", "way": "w", "status": "ok", "samples": 8, "step": {"median_ms": 1, "p10_ms": 1, "p90_ms": 1}}]}"#;
        std::fs::write(&path, least).expect("it is written");
        let peer = StepResults::read(&path).expect("it is read");
        assert!(all.comparable(&peer, &path).is_err());
    }
}
