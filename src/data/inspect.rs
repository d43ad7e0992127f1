//! A summary of a dataset for people, and as data for programs.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::dataset::{Column, DatasetInfo, Feature, FeatureKind, Footage};
use super::labels::{DONE_KEYS, REWARD_KEYS, SUCCESS_KEYS};
use super::{DataError, Dataset};

/// What `data inspect` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    #[serde(flatten)]
    pub info: DatasetInfo,
    pub episodes: usize,
    /// Keys of the image features.
    pub cameras: Vec<String>,
    /// How the filmed ones among them were filmed.
    pub footage: BTreeMap<String, Footage>,
    /// Frames of the shortest episode.
    pub shortest: usize,
    /// Frames of the median episode (the lower one of an even number).
    pub median: usize,
    /// Frames of the longest episode.
    pub longest: usize,
    /// Total duration in seconds.
    pub seconds: f64,
    /// Episodes known to have succeeded; `None` where the dataset does not tell.
    pub successes: Option<usize>,
    /// Columns found that hold rewards, done marks and success marks.
    pub reward_columns: Vec<String>,
    pub done_columns: Vec<String>,
    pub success_columns: Vec<String>,
    /// Value ranges of the numeric features.
    pub columns: Vec<ColumnSummary>,
}

/// Values of one numeric feature, each list `[width]`, over its finite values.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ColumnSummary {
    pub key: String,
    pub min: Vec<f32>,
    pub max: Vec<f32>,
    pub mean: Vec<f64>,
    /// How many values are NaN or infinite: training refuses a state or action with any.
    pub not_finite: usize,
}

impl Summary {
    /// Summarises what is in memory and decodes the first picture of every camera.
    ///
    /// # Errors
    /// Pictures that cannot be read.
    pub fn of(dataset: &dyn Dataset) -> Result<Self, DataError> {
        let (info, episodes, columns) = (dataset.info(), dataset.episodes(), dataset.columns());
        let mut footage = BTreeMap::new();
        for camera in info.cameras() {
            dataset.image(camera, 0)?;
            footage.extend(dataset.footage(camera)?.map(|footage| (camera.to_owned(), footage)));
        }
        let mut lengths: Vec<usize> = episodes.iter().map(|e| e.length).collect();
        lengths.sort_unstable();
        let at = |i: usize| lengths.get(i).copied().unwrap_or(0);
        let success: Vec<bool> = episodes.iter().filter_map(|e| e.success).collect();
        let present = |keys: &[&str]| {
            let found = keys.iter().filter(|k| Column::find_scalar(columns, &[**k]).is_some());
            found.map(|k| (*k).to_owned()).collect()
        };
        Ok(Summary {
            info: info.clone(),
            episodes: episodes.len(),
            cameras: info.cameras().map(str::to_owned).collect(),
            footage,
            shortest: at(0),
            median: at(lengths.len().saturating_sub(1) / 2),
            longest: at(lengths.len().saturating_sub(1)),
            seconds: info.total_frames as f64 / info.fps,
            successes: (!success.is_empty()).then(|| success.iter().filter(|s| **s).count()),
            reward_columns: present(&REWARD_KEYS),
            done_columns: present(&DONE_KEYS),
            success_columns: present(&SUCCESS_KEYS),
            columns: columns.iter().map(ColumnSummary::of).collect(),
        })
    }
}

impl ColumnSummary {
    fn of(column: &Column) -> Self {
        let width = column.width;
        let mut summary = ColumnSummary {
            key: column.key.clone(),
            min: vec![f32::INFINITY; width],
            max: vec![f32::NEG_INFINITY; width],
            mean: vec![0.0; width],
            not_finite: 0,
        };
        let mut counts = vec![0usize; width];
        for row in column.values.chunks_exact(width) {
            for (i, v) in row.iter().copied().enumerate() {
                if v.is_finite() {
                    counts[i] += 1;
                    summary.min[i] = summary.min[i].min(v);
                    summary.max[i] = summary.max[i].max(v);
                    summary.mean[i] += f64::from(v);
                } else {
                    summary.not_finite += 1;
                }
            }
        }
        summary
            .mean
            .iter_mut()
            .zip(counts)
            .for_each(|(mean, count)| *mean /= count as f64);
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = &self.info;
        let robot = info.robot_type.as_deref().unwrap_or("unknown");
        writeln!(f, "dataset    {}", info.root.display())?;
        writeln!(f, "format     {}, robot {robot}, {} frames/s", info.format, info.fps)?;
        writeln!(
            f,
            "size       {} episodes, {} frames, {:.1} s",
            self.episodes, info.total_frames, self.seconds
        )?;
        writeln!(
            f,
            "length     shortest {}, median {}, longest {} frames",
            self.shortest, self.median, self.longest
        )?;
        match self.successes {
            Some(n) => {
                let percent = 100.0 * n as f64 / self.episodes as f64;
                writeln!(f, "success    {n} of {} episodes ({percent:.0} %)", self.episodes)?;
            }
            None => writeln!(f, "success    not recorded")?,
        }
        for (name, columns) in [
            ("reward", &self.reward_columns),
            ("done", &self.done_columns),
            ("marked", &self.success_columns),
        ] {
            writeln!(
                f,
                "{name:<10} {}",
                if columns.is_empty() {
                    "no column".to_owned()
                } else {
                    columns.join(", ")
                }
            )?;
        }
        writeln!(f, "\n{:<36} {:<10} shape", "feature", "type")?;
        for Feature {
            key,
            dtype,
            shape,
            kind,
        } in &info.features
        {
            let film = self.footage.get(key).map(|film| {
                let Footage {
                    codec,
                    pixel_format,
                    fps,
                    ..
                } = film;
                format!(", {codec}, {pixel_format}, {fps} frames/s")
            });
            let note = match kind {
                FeatureKind::Image { height, width } => {
                    format!("  ({width}x{height} pixels{})", film.unwrap_or_default())
                }
                FeatureKind::Vector { .. } => String::new(),
                FeatureKind::Other => "  (not read)".to_owned(),
            };
            writeln!(f, "{key:<36} {dtype:<10} {shape:?}{note}")?;
        }
        writeln!(f, "\ntasks")?;
        info.tasks
            .iter()
            .enumerate()
            .try_for_each(|(i, task)| writeln!(f, "{i:>4}  {task:?}"))?;
        for column in &self.columns {
            let bad = match column.not_finite {
                0 => String::new(),
                n => format!("  ({n} values are NaN or infinite)"),
            };
            writeln!(
                f,
                "\n{}{bad}\n{:>4} {:>12} {:>12} {:>12}",
                column.key, "", "min", "mean", "max"
            )?;
            for (i, ((min, mean), max)) in column.min.iter().zip(&column.mean).zip(&column.max).enumerate() {
                writeln!(f, "{i:>4} {min:>12.5} {mean:>12.5} {max:>12.5}")?;
            }
        }
        Ok(())
    }
}
