//! Norm stats: openpi's `norm_stats.json`, and how its numbers are computed.
//!
//! The statistics describe what the normaliser will see: state and actions after the data transforms, the actions of
//! every chunk that begins at any frame, with the last action repeated past the end of an episode. Actions relative to
//! their chunk's first state therefore have statistics that depend on H.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::running_stats::RunningStats;
use super::transforms::DataTransforms;
use super::{DataError, DataSpec, Dataset, json};
use crate::files;

/// The statistics of a dataset under a [`DataSpec`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NormStats {
    pub state: Stats,
    pub actions: Stats,
}

/// Statistics of each coordinate, all `[width]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stats {
    pub mean: Vec<f64>,
    /// Population standard deviation.
    pub std: Vec<f64>,
    /// 1 % quantile; old files lack it.
    pub q01: Option<Vec<f64>>,
    /// 99 % quantile; old files lack it.
    pub q99: Option<Vec<f64>>,
}

impl NormStats {
    /// Reads openpi's format: `{"norm_stats": {"state": {"mean": [..], "std": [..], "q01": .., "q99": ..}, "actions": ..}}`.
    ///
    /// # Errors
    /// Unreadable files and JSON; missing keys; lists of different lengths; numbers no statistic can have.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let file: Value = json::parse(path, 1, &json::read(path, "norm stats")?)?;
        let group = |name| Stats::read(path, name, file.pointer(&format!("/norm_stats/{name}")));
        Ok(NormStats {
            state: group("state")?,
            actions: group("actions")?,
        })
    }

    /// Writes openpi's format.
    ///
    /// # Errors
    /// A file that cannot be written..
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), DataError> {
        files::replace(path.as_ref(), self.to_json().as_bytes()).map_err(DataError::File)
    }

    /// openpi's format.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", serde_json::json!({ "norm_stats": self }))
    }

    /// Computes them from all episodes of a dataset, without touching an image. `progress` is told the frames done and
    /// the frames in all after each episode.
    ///
    /// # Errors
    /// Settings that do not fit the dataset, and values that are not finite.
    pub fn compute(
        dataset: &dyn Dataset,
        spec: &DataSpec,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, DataError> {
        let (state, action) = spec.check_vectors(dataset)?;
        let (state_column, action_column) = (&dataset.columns()[state], &dataset.columns()[action]);
        let transforms = DataTransforms::of(spec);
        let (state_width, width, horizon) = (state_column.width, action_column.width, spec.horizon);
        let mut state_stats = RunningStats::new(state_width);
        let mut action_stats = RunningStats::new(width);
        for episode in dataset.episodes() {
            let end = episode.start + episode.length;
            let mut states = Vec::with_capacity(episode.length * state_width);
            let mut actions = Vec::with_capacity(episode.length * horizon * width);
            for frame in episode.start..end {
                let from = states.len();
                states.extend(state_column.row(frame).iter().map(|v| f64::from(*v)));
                transforms.state(&mut states[from..]);
                let chunk = actions.len();
                for h in 0..horizon {
                    actions.extend(
                        action_column
                            .row((frame + h).min(end - 1))
                            .iter()
                            .map(|v| f64::from(*v)),
                    );
                }
                transforms.actions(&mut actions[chunk..], width, &states[from..]);
            }
            state_stats.update(&states);
            action_stats.update(&actions);
            progress(end, dataset.info().total_frames);
        }
        Ok(NormStats {
            state: state_stats.finish(),
            actions: action_stats.finish(),
        })
    }
}

impl Stats {
    fn read(path: &Path, name: &str, value: Option<&Value>) -> Result<Self, DataError> {
        let wrong = |field: Option<&str>, reason: String| {
            let key = field.map_or(format!("norm_stats.{name}"), |f| format!("norm_stats.{name}.{f}"));
            DataError::StatsFile {
                path: path.to_owned(),
                key,
                reason,
            }
        };
        let group = value.ok_or_else(|| wrong(None, "is missing".to_owned()))?;
        let list = |field: &str| match group.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let numbers = value
                    .as_array()
                    .and_then(|a| a.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>());
                numbers
                    .map(Some)
                    .ok_or_else(|| wrong(Some(field), "is not a list of numbers".to_owned()))
            }
        };
        let needed = |field: &str| list(field)?.ok_or_else(|| wrong(Some(field), "is missing".to_owned()));
        let stats = Stats {
            mean: needed("mean")?,
            std: needed("std")?,
            q01: list("q01")?,
            q99: list("q99")?,
        };
        let width = stats.mean.len();
        for (field, values) in [
            ("std", Some(&stats.std)),
            ("q01", stats.q01.as_ref()),
            ("q99", stats.q99.as_ref()),
        ] {
            if let Some(values) = values.filter(|v| v.len() != width) {
                return Err(wrong(
                    Some(field),
                    format!("has {} numbers, but `mean` has {width}", values.len()),
                ));
            }
        }
        for (field, values) in [
            ("mean", Some(&stats.mean)),
            ("std", Some(&stats.std)),
            ("q01", stats.q01.as_ref()),
            ("q99", stats.q99.as_ref()),
        ] {
            let wide = |v: &f64| v.abs() > f64::from(f32::MAX);
            if let Some((i, v)) = values.into_iter().flatten().enumerate().find(|(_, v)| wide(v)) {
                return Err(wrong(
                    Some(field),
                    format!("has the entry {v:e} at {i}, which no float32 of a dataset can have led to"),
                ));
            }
        }
        if let Some(i) = stats.std.iter().position(|s| *s < 0.0) {
            return Err(wrong(
                Some("std"),
                format!("has the negative entry {} at {i}", stats.std[i]),
            ));
        }
        if let (Some(low), Some(high)) = (&stats.q01, &stats.q99)
            && let Some(i) = low.iter().zip(high).position(|(l, h)| l > h)
        {
            return Err(wrong(Some("q01"), format!("is above `q99` at {i}")));
        }
        Ok(stats)
    }
}
