//! `phases.json`: where the time of one step went, for reports.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::Result;
use crate::files;
use crate::gpu::Profile;

/// Name of the file in the run's folder.
pub const NAME: &str = "phases.json";

/// One step with every launch timed by itself: the sum is more than an ordinary step takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseTimes {
    pub device: String,
    /// The step, as a count of steps.
    pub step: u64,
    pub phases: Vec<PhaseTime>,
}

/// One phase of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseTime {
    pub name: String,
    pub launches: u64,
    pub tflop: f64,
    pub gigabytes: f64,
    pub ms: f64,
}

impl PhaseTimes {
    /// From the profile of step number `step`.
    pub fn new(device: &str, step: u64, profile: &Profile) -> PhaseTimes {
        let phase = |row: crate::gpu::ProfileRow| PhaseTime {
            name: row.phase.to_owned(),
            launches: row.launches,
            tflop: row.flops / 1e12,
            gigabytes: row.bytes / 1e9,
            ms: row.ms,
        };
        PhaseTimes {
            device: device.to_owned(),
            step,
            phases: profile.phases().into_iter().map(phase).collect(),
        }
    }

    /// Writes it into a run's folder.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        Ok(files::replace(&dir.join(NAME), text.as_bytes())?)
    }

    /// That of a run's folder, if there is one that can be read.
    pub fn read(dir: &Path) -> Option<PhaseTimes> {
        let text = std::fs::read_to_string(dir.join(NAME)).ok()?;
        serde_json::from_str(&text).ok()
    }
}
