//! Norm stats: openpi's `norm_stats.json`, and how its numbers are computed.
//!
//! The statistics describe what the normaliser will see: state and actions after the data transforms, the actions of
//! every chunk that begins at any frame, with the last action repeated past the end of an episode. Actions relative to
//! their chunk's first state therefore have statistics that depend on H.

use std::panic;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use serde::Serialize;
use serde_json::Value;

use super::repack::Vector;
use super::running_stats::{Histograms, Moments};
use super::transforms::DataTransforms;
use super::{Column, DataError, DataSpec, Dataset, Episode, json};
use crate::files;

/// Numbers of chunks that are looked at together: few enough for a core's own memory.
const BLOCK: usize = 1 << 14;

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
    /// A file that cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), DataError> {
        files::replace(path.as_ref(), self.to_json().as_bytes()).map_err(DataError::File)
    }

    /// openpi's format.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", serde_json::json!({ "norm_stats": self }))
    }

    /// Computes them from all episodes of a dataset, without touching an image, on all cores. `progress` is told from
    /// time to time how many frames are done, and how many there are. The result does not depend on the number of cores.
    ///
    /// # Errors
    /// Settings that do not fit the dataset, and values that are not finite.
    pub fn compute(
        dataset: &dyn Dataset,
        spec: &DataSpec,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self, DataError> {
        let (state, action) = spec.check_vectors(dataset)?;
        let (widths, frames) = ([state.width(), action.width()], dataset.info().total_frames);
        let source = Source {
            columns: dataset.columns(),
            transforms: DataTransforms::of(spec),
            horizon: spec.horizon,
            state,
            action,
        };

        let new = || Vec::<(usize, [Moments; 2])>::new();
        let fold = |all: &mut Vec<_>, episode: &Episode| {
            let mut moments = widths.map(Moments::new);
            source.visit(episode, |i, batch| moments[i].update(batch));
            all.push((episode.index, moments));
        };
        let parts = folded(dataset.episodes(), new, fold, |done| progress(done / 2, frames));
        // Sums depend on their order, so it is that of the episodes.
        let mut parts: Vec<_> = parts.into_iter().flatten().collect();
        parts.sort_by_key(|(episode, _)| *episode);
        let mut moments = widths.map(Moments::new);
        for (_, part) in &parts {
            moments.iter_mut().zip(part).for_each(|(all, part)| all.merge(part));
        }

        let new = || moments.each_ref().map(Histograms::over);
        let fold = |counts: &mut [Histograms; 2], episode: &Episode| {
            source.visit(episode, |i, batch| counts[i].update(batch));
        };
        let parts = folded(dataset.episodes(), new, fold, |done| {
            progress((frames + done) / 2, frames)
        });
        let mut histograms = new();
        for part in &parts {
            histograms.iter_mut().zip(part).for_each(|(all, part)| all.merge(part));
        }

        let ([state, actions], [states, chunks]) = (moments, histograms);
        Ok(NormStats {
            state: state.finish(&states),
            actions: actions.finish(&chunks),
        })
    }
}

/// Where the numbers come from, and what happens to them before they are normalised.
struct Source<'a> {
    columns: &'a [Column],
    transforms: DataTransforms,
    horizon: usize,
    state: Vector,
    action: Vector,
}

impl Source<'_> {
    /// Shows `see` what the normaliser will see of an episode: states, `[n, width]`, as 0, actions, `[n, width]`, as 1.
    fn visit(&self, episode: &Episode, mut see: impl FnMut(usize, &[f64])) {
        let (width, last) = (self.action.width(), episode.length.saturating_sub(1));
        // Only deltas differ from chunk to chunk; the robot's own transforms are done once.
        let mut actions = Vec::with_capacity(episode.length * width);
        for frame in episode.start..episode.start + episode.length {
            let from = actions.len();
            actions.extend(self.action.row(self.columns, frame));
            self.transforms.action(&mut actions[from..]);
        }
        let (mut states, mut chunks) = (Vec::new(), Vec::new());
        for t in 0..episode.length {
            let (state, chunk) = (states.len(), chunks.len());
            states.extend(self.state.row(self.columns, episode.start + t));
            self.transforms.state(&mut states[state..]);
            for h in 0..self.horizon {
                let at = (t + h).min(last) * width;
                chunks.extend_from_slice(&actions[at..at + width]);
            }
            self.transforms.to_deltas(&mut chunks[chunk..], width, &states[state..]);
            if chunks.len() > BLOCK {
                see(1, &chunks);
                chunks.clear();
            }
        }
        see(0, &states);
        see(1, &chunks);
    }
}

/// Folds `episodes` on all cores, in no particular order, into one `S` a thread. `told` hears how many frames are done.
fn folded<S: Send>(
    episodes: &[Episode],
    new: impl Fn() -> S + Sync,
    fold: impl Fn(&mut S, &Episode) + Sync,
    mut told: impl FnMut(usize),
) -> Vec<S> {
    let threads = thread::available_parallelism()
        .map_or(1, usize::from)
        .min(episodes.len().max(1));
    let (next, (tell, hear)) = (AtomicUsize::new(0), mpsc::channel());
    let work = |tell: mpsc::Sender<usize>| {
        let mut made = new();
        while let Some(episode) = episodes.get(next.fetch_add(1, Ordering::Relaxed)) {
            fold(&mut made, episode);
            // Nobody listens only if the thread below has panicked.
            let _ = tell.send(episode.length);
        }
        made
    };
    thread::scope(|scope| {
        let workers: Vec<_> = std::iter::repeat_n(tell, threads)
            .map(|tell| scope.spawn(|| work(tell)))
            .collect();
        let mut done = 0;
        for frames in hear {
            done += frames;
            told(done);
        }
        let made = workers.into_iter().map(|worker| worker.join());
        made.map(|made| made.unwrap_or_else(|panic| panic::resume_unwind(panic)))
            .collect()
    })
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
