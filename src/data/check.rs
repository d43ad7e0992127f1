//! What is wrong with a dataset that can be opened: mistakes that would not stop a run, only spoil it.
//!
//! | check | finding |
//! |---|---|
//! | finite | NaN or infinity in a numeric feature |
//! | spread | a coordinate of state or action that (almost) never changes: normalising divides by its deviation |
//! | outlier | values further beyond the 1 % and 99 % quantiles than [`Settings::reach`] times their distance |
//! | still | an episode in which no action changes |
//! | time | timestamps that are not `frame / fps`, by more than lerobot's tolerance of 1e-4 s |
//! | picture | first or last picture of an episode that cannot be read: missing, torn or short files |
//! | task | a task without text |
//! | length | episodes shorter than a chunk |

use serde::Serialize;

use super::dataset::{Column, Dataset, Episode};

/// Seconds that a timestamp may be off, lerobot's `tolerance_s`.
const TOLERANCE: f64 = 1e-4;
/// A deviation below this share of the largest magnitude (and below it absolutely) is none.
const FLAT: f64 = 1e-6;
/// LeRobot's column of times, from the start of the episode.
const TIMESTAMP: &str = "timestamp";

/// What counts as a finding.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Features whose spread, outliers and changes are looked at.
    pub state_key: String,
    pub action_key: String,
    /// Steps of a chunk.
    pub horizon: usize,
    /// How far beyond the 1 % and 99 % quantiles values may lie, in units of the distance between the two.
    pub reach: f64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, as in the table above.
    pub check: &'static str,
    /// The episode, if it is about one.
    pub episode: Option<usize>,
    /// What, where and how much.
    pub what: String,
}

/// Looks at everything. `progress` hears of (episodes looked at, all).
pub fn check(dataset: &dyn Dataset, settings: &Settings, mut progress: impl FnMut(usize, usize)) -> Vec<Finding> {
    let mut found = Findings::default();
    for (i, task) in dataset.info().tasks.iter().enumerate() {
        if task.trim().is_empty() {
            found.add("task", None, format!("task {i} has no text"));
        }
    }
    for column in dataset.columns() {
        finite(dataset, column, &mut found);
    }
    for key in [&settings.state_key, &settings.action_key] {
        match dataset.columns().iter().find(|c| c.key == **key) {
            Some(column) => values(dataset, column, settings.reach, &mut found),
            None => found.add("finite", None, format!("there is no numeric feature `{key}`")),
        }
    }
    let action = dataset.columns().iter().find(|c| c.key == settings.action_key);
    let episodes = dataset.episodes();
    for (i, episode) in episodes.iter().enumerate() {
        length(episode, settings.horizon, &mut found);
        if let Some(action) = action {
            still(episode, action, &mut found);
        }
        times(dataset, episode, &mut found);
        pictures(dataset, episode, &mut found);
        progress(i + 1, episodes.len());
    }
    found.0.sort_by_key(|finding| finding.check);
    found.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, episode: Option<&Episode>, what: String) {
        let episode = episode.map(|e| e.index);
        self.0.push(Finding { check, episode, what });
    }
}

fn episode_of(dataset: &dyn Dataset, frame: usize) -> Option<&Episode> {
    let after = dataset.episodes().partition_point(|e| e.start <= frame);
    dataset.episodes()[..after].last()
}

fn place(dataset: &dyn Dataset, frame: usize) -> String {
    let (path, row) = dataset.locate(frame);
    format!("`{}` row {row}", path.display())
}

fn finite(dataset: &dyn Dataset, column: &Column, found: &mut Findings) {
    let bad = |v: &f32| !v.is_finite();
    let count = column.values.iter().filter(|v| bad(v)).count();
    if let Some(first) = column.values.iter().position(bad) {
        let (frame, value) = (first / column.width, column.values[first]);
        let (key, where_) = (&column.key, place(dataset, frame));
        let what = format!("`{key}` holds {count} values that are not numbers, the first is {value} in {where_}");
        found.add("finite", episode_of(dataset, frame), what);
    }
}

/// Spread and outliers of each coordinate, over its finite values.
fn values(dataset: &dyn Dataset, column: &Column, reach: f64, found: &mut Findings) {
    for i in 0..column.width {
        let all = || {
            column
                .values
                .iter()
                .skip(i)
                .step_by(column.width)
                .map(|v| f64::from(*v))
        };
        let mut finite: Vec<f64> = all().filter(|v| v.is_finite()).collect();
        if finite.is_empty() {
            continue;
        }
        finite.sort_by(f64::total_cmp);
        let n = finite.len() as f64;
        let mean = finite.iter().sum::<f64>() / n;
        let std = (finite.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
        let (key, largest) = (&column.key, finite.iter().fold(0.0f64, |m, v| m.max(v.abs())));
        if std <= FLAT * largest.max(1.0) {
            let what = format!("`{key}`[{i}] hardly changes: its standard deviation is {std:.1e}");
            found.add("spread", None, what);
            continue;
        }
        // Not from a histogram, whose bins a single wild value would stretch.
        let quantile = |q: f64| finite[((n - 1.0) * q) as usize];
        let (low, high) = (quantile(0.01), quantile(0.99));
        let margin = reach * (high - low);
        let outside = |v: &f64| v.is_finite() && !(low - margin..=high + margin).contains(v);
        let count = all().filter(outside).count();
        if let Some(frame) = all().position(|v| outside(&v)) {
            let (value, where_) = (column.row(frame)[i], place(dataset, frame));
            let what = format!(
                "`{key}`[{i}] is {value} in {where_}, where 1 % to 99 % of all lie in {low:.4} to {high:.4} ({count} such \
                 values)"
            );
            found.add("outlier", episode_of(dataset, frame), what);
        }
    }
}

fn length(episode: &Episode, horizon: usize, found: &mut Findings) {
    if episode.length < horizon {
        let what = format!("it has {} frames, a chunk has {horizon}", episode.length);
        found.add("length", Some(episode), what);
    }
}

fn still(episode: &Episode, action: &Column, found: &mut Findings) {
    let first = action.row(episode.start);
    let mut others = episode.start + 1..episode.start + episode.length;
    if episode.length > 1 && others.all(|frame| action.row(frame) == first) {
        found.add(
            "still",
            Some(episode),
            format!("`{}` is the same in all frames", action.key),
        );
    }
}

fn times(dataset: &dyn Dataset, episode: &Episode, found: &mut Findings) {
    let Some(times) = Column::find_scalar(dataset.columns(), &[TIMESTAMP]) else {
        return;
    };
    let fps = dataset.info().fps;
    let off = |t: &usize| {
        let time = f64::from(times.row(episode.start + t)[0]);
        // Stored as f32, whose own rounding grows with the time.
        (time - *t as f64 / fps).abs() > TOLERANCE + time.abs() * f64::from(f32::EPSILON)
    };
    let count = (0..episode.length).filter(off).count();
    if let Some(t) = (0..episode.length).find(off) {
        let time = |t: usize| f64::from(times.row(episode.start + t)[0]);
        let last = episode.length - 1;
        let measured = last as f64 / (time(last) - time(0));
        let what = format!(
            "frame {t} is stamped {:.4} s, at {fps} frames/s it is {:.4} s ({count} frames are off; the stamps say {measured:.2} \
             frames/s)",
            time(t),
            t as f64 / fps
        );
        found.add("time", Some(episode), what);
    }
}

/// The last picture proves that a film is as long as its episode.
fn pictures(dataset: &dyn Dataset, episode: &Episode, found: &mut Findings) {
    let cameras: Vec<String> = dataset.info().cameras().map(str::to_owned).collect();
    for camera in cameras {
        let last = episode.start + episode.length - 1;
        for frame in [episode.start, last] {
            if let Err(error) = dataset.image(&camera, frame) {
                found.add("picture", Some(episode), error.to_string());
                break;
            }
        }
    }
}
