//! A run's folder: its rows by column, its configuration.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ReportError;
use crate::monitor::{RunFile, rows};
use crate::train::metrics::Log;
use crate::train::phases::PhaseTimes;

/// A number of the rows: steps and finite values, by step.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    pub name: String,
    pub points: Vec<(u64, f64)>,
}

impl Series {
    /// The value of the last row that has one.
    pub fn last(&self) -> f64 {
        self.points.last().map_or(f64::NAN, |p| p.1)
    }

    /// Step and value where it is least.
    pub fn least(&self) -> (u64, f64) {
        let least = self.points.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        least.copied().unwrap_or((0, f64::NAN))
    }

    /// Step and value where it is greatest.
    pub fn greatest(&self) -> (u64, f64) {
        let greatest = self.points.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        greatest.copied().unwrap_or((0, f64::NAN))
    }

    /// The value in the middle of all.
    pub fn median(&self) -> f64 {
        let mut values: Vec<f64> = self.points.iter().map(|p| p.1).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// What a report shows of a run.
#[derive(Clone, Debug)]
pub struct Run {
    pub dir: PathBuf,
    /// Short name; two runs of a report have different ones.
    pub label: String,
    pub rows: usize,
    pub last_step: u64,
    /// In the order in which the rows name them.
    pub series: Vec<Series>,
    /// One step's time by phase, if one was timed.
    pub phases: Option<PhaseTimes>,
    /// Keys with dots and their values; empty if the folder has none.
    pub config: Vec<(String, String)>,
}

impl Run {
    /// Reads the run in `dir`.
    ///
    /// # Errors
    /// A folder without `metrics.jsonl`, or one without rows.
    pub fn read(dir: &Path) -> Result<Run, ReportError> {
        let path = dir.join(Log::NAME);
        if !path.is_file() {
            return Err(ReportError::NotARun(dir.to_owned()));
        }
        let points = rows::read(&path).map_err(|source| ReportError::Read {
            path: path.clone(),
            source,
        })?;
        let (mut series, mut known) = (Vec::<Series>::new(), HashMap::<String, usize>::new());
        let (mut count, mut last_step) = (0, 0);
        for point in points {
            count += 1;
            last_step = point.step.max(last_step);
            for (name, value) in point.scalars {
                let i = *known.entry(name).or_insert_with_key(|name| {
                    series.push(Series {
                        name: name.clone(),
                        points: Vec::new(),
                    });
                    series.len() - 1
                });
                series[i].points.push((point.step, value));
            }
        }
        if count == 0 {
            return Err(ReportError::NoRows(path));
        }
        series.iter_mut().for_each(|s| s.points.sort_by_key(|p| p.0));
        let name = dir.canonicalize().unwrap_or(dir.to_owned());
        Ok(Run {
            label: name
                .file_name()
                .unwrap_or(dir.as_os_str())
                .to_string_lossy()
                .into_owned(),
            dir: dir.to_owned(),
            rows: count,
            last_step,
            series,
            phases: PhaseTimes::read(dir),
            config: RunFile::read(dir).map_or_else(Vec::new, |run| keys(&run.config)),
        })
    }

    /// Reads several runs; where folders have the same name the paths tell them apart.
    ///
    /// # Errors
    /// As [`Run::read`].
    pub fn read_all(dirs: &[PathBuf]) -> Result<Vec<Run>, ReportError> {
        let mut runs = dirs.iter().map(|dir| Run::read(dir)).collect::<Result<Vec<_>, _>>()?;
        let labels: Vec<String> = runs.iter().map(|run| run.label.clone()).collect();
        for run in &mut runs {
            if labels.iter().filter(|label| **label == run.label).count() > 1 {
                run.label = run.dir.display().to_string();
            }
        }
        Ok(runs)
    }

    /// The series of a name.
    pub fn series(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|s| s.name == name)
    }
}

/// The values of a configuration by key, tables taken apart.
fn keys(config: &Value) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let mut walk = vec![(String::new(), config)];
    while let Some((path, value)) = walk.pop() {
        match value {
            Value::Object(fields) => {
                let dot = if path.is_empty() { "" } else { "." };
                // The last is taken first.
                walk.extend(
                    fields
                        .iter()
                        .rev()
                        .map(|(key, value)| (format!("{path}{dot}{key}"), value)),
                );
            }
            Value::String(text) => keys.push((path, text.clone())),
            value => keys.push((path, value.to_string())),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = "{\"step\":2,\"q\":1.0}\n{\"step\":1,\"q\":3.0,\"bc_loss\":null}\n{\"step\":3,\"q\":2.0,\"e\":{\"x\":5}}\n{\"st";
        std::fs::write(dir.path().join(Log::NAME), log).expect("written");
        let run = Run::read(dir.path()).expect("a run");
        assert_eq!((run.rows, run.last_step, run.series.len()), (3, 3, 2));
        let q = run.series("train/q").expect("q");
        assert_eq!(q.points, [(1, 3.0), (2, 1.0), (3, 2.0)]);
        assert_eq!(
            (q.last(), q.least(), q.greatest(), q.median()),
            (2.0, (2, 1.0), (1, 3.0), 2.0)
        );
    }

    #[test]
    fn configurations_are_flat_and_in_order() {
        let config = serde_json::json!({"a": 1, "model": {"dtype": "f32", "dims": {"depth": 2}}, "z": [1, null]});
        let expected = [
            ("a", "1"),
            ("model.dtype", "f32"),
            ("model.dims.depth", "2"),
            ("z", "[1,null]"),
        ];
        assert_eq!(keys(&config), expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }
}
