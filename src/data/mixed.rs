//! Several datasets as one: their episodes laid end to end.
//!
//! What they share is kept: cameras with the same key, numeric features with the same key and width. A label column
//! (success, reward, end) that only some of them have would change what episodes mean without a word, so it is an error,
//! and so are different frame rates: a chunk of H steps would last differently long.

use std::path::PathBuf;
use std::sync::Arc;

use super::DataError;
use super::dataset::{Column, Dataset, DatasetInfo, Episode, Feature, FeatureKind, Footage, RgbImage, YuvImage};
use super::labels::{DONE_KEYS, REWARD_KEYS, SUCCESS_KEYS};

/// Datasets laid end to end.
#[derive(Debug)]
pub struct Mixed {
    parts: Vec<Part>,
    info: DatasetInfo,
    episodes: Vec<Episode>,
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Part {
    dataset: Arc<dyn Dataset>,
    /// Global index of its first frame.
    start: usize,
}

impl Mixed {
    /// Lays `datasets`, of which there is at least one, end to end.
    ///
    /// # Errors
    /// [`DataError::Mix`] names two datasets that do not go together, and why.
    pub fn new(datasets: Vec<Arc<dyn Dataset>>) -> Result<Mixed, DataError> {
        let (first, others) = datasets.split_first().ok_or(DataError::NothingToMix)?;
        others
            .iter()
            .try_for_each(|other| fit(first.as_ref(), other.as_ref()))?;
        let shared = |feature: &&Feature| {
            others
                .iter()
                .all(|o| o.info().features.iter().any(|f| alike(f, feature)))
        };
        let features: Vec<Feature> = first.info().features.iter().filter(shared).cloned().collect();
        let names: Vec<&str> = datasets.iter().map(|d| d.info().format.as_str()).collect();
        let mut info = DatasetInfo {
            format: format!("{} datasets ({})", datasets.len(), names.join(", ")),
            features,
            tasks: Vec::new(),
            total_frames: 0,
            ..first.info().clone()
        };
        let mut columns: Vec<Column> = first.columns().iter().filter(|c| keeps(&info, c)).map(empty).collect();
        let (mut parts, mut episodes) = (Vec::new(), Vec::new());
        for dataset in datasets {
            let start = info.total_frames;
            info.total_frames += dataset.info().total_frames;
            for task in &dataset.info().tasks {
                if !info.tasks.contains(task) {
                    info.tasks.push(task.clone());
                }
            }
            for episode in dataset.episodes() {
                episodes.push(Episode {
                    index: episodes.len(),
                    start: start + episode.start,
                    ..episode.clone()
                });
            }
            for column in &mut columns {
                let same = dataset.columns().iter().find(|c| c.key == column.key);
                column.values.extend(same.into_iter().flat_map(|c| &c.values));
            }
            parts.push(Part { dataset, start });
        }
        Ok(Mixed {
            parts,
            info,
            episodes,
            columns,
        })
    }

    /// The dataset of a frame, and the frame in it.
    fn part(&self, frame: usize) -> (usize, usize) {
        let part = self.parts.partition_point(|p| p.start <= frame).saturating_sub(1);
        (part, frame - self.parts[part].start)
    }

    fn check(&self, frame: usize) -> Result<(), DataError> {
        let frames = self.info.total_frames;
        match frame < frames {
            true => Ok(()),
            false => Err(DataError::FrameOutOfRange {
                root: self.info.root.clone(),
                frame,
                frames,
            }),
        }
    }
}

/// Whether two features can stand for each other.
fn alike(a: &Feature, b: &Feature) -> bool {
    let picture = |f: &Feature| matches!(f.kind, FeatureKind::Image { .. });
    a.key == b.key && (a.kind == b.kind || picture(a) && picture(b))
}

fn keeps(info: &DatasetInfo, column: &Column) -> bool {
    info.features.iter().any(|f| f.key == column.key)
}

fn empty(column: &Column) -> Column {
    Column {
        key: column.key.clone(),
        width: column.width,
        values: Vec::new(),
    }
}

fn fit(a: &dyn Dataset, b: &dyn Dataset) -> Result<(), DataError> {
    let differ = |what: String| DataError::Mix {
        first: a.info().root.clone(),
        second: b.info().root.clone(),
        what,
    };
    if a.info().fps != b.info().fps {
        return Err(differ(format!(
            "record {} and {} frames a second",
            a.info().fps,
            b.info().fps
        )));
    }
    let has = |d: &dyn Dataset, key: &str| d.columns().iter().any(|c| c.key == key);
    let mut labels = [&DONE_KEYS[..], &SUCCESS_KEYS, &REWARD_KEYS].into_iter().flatten();
    match labels.find(|key| has(a, key) != has(b, key)) {
        Some(key) => Err(differ(format!(
            "are not labelled alike: only one has the column `{key}`"
        ))),
        None => Ok(()),
    }
}

impl Dataset for Mixed {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn episodes(&self) -> &[Episode] {
        &self.episodes
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn task(&self, frame: usize) -> Result<&str, DataError> {
        self.check(frame)?;
        let (part, frame) = self.part(frame);
        self.parts[part].dataset.task(frame)
    }

    fn images(&self, camera: &str, frames: &[usize]) -> Result<Vec<RgbImage>, DataError> {
        frames.iter().try_for_each(|frame| self.check(*frame))?;
        let mut images = Vec::with_capacity(frames.len());
        for run in frames.chunk_by(|a, b| self.part(*a).0 == self.part(*b).0) {
            let (part, first) = self.part(run[0]);
            let inside: Vec<usize> = run.iter().map(|frame| first + frame - run[0]).collect();
            images.extend(self.parts[part].dataset.images(camera, &inside)?);
        }
        Ok(images)
    }

    fn planes(&self, camera: &str, frames: &[usize]) -> Result<Option<Vec<YuvImage>>, DataError> {
        let mut all = Vec::with_capacity(frames.len());
        for frame in frames {
            self.check(*frame)?;
            let (part, inside) = self.part(*frame);
            match self.parts[part].dataset.planes(camera, &[inside])? {
                Some(planes) => all.extend(planes),
                None => return Ok(None),
            }
        }
        Ok(Some(all))
    }

    fn footage(&self, camera: &str) -> Result<Option<Footage>, DataError> {
        self.parts[0].dataset.footage(camera)
    }

    fn locate(&self, frame: usize) -> (PathBuf, usize) {
        let (part, frame) = self.part(frame);
        self.parts[part].dataset.locate(frame)
    }

    fn source(&self, frame: usize) -> usize {
        self.part(frame).0
    }
}
