//! A dataset that exists only in memory, for tests of what lies above the file format.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use acrlpd::data::{
    BatchBuilder, Column, DataError, DataSpec, Dataset, DatasetInfo, Episode, Feature, FeatureKind, Parts, RgbImage,
};

/// Episodes of the given lengths; every second one succeeds. State and action say which frame they are.
#[derive(Debug)]
pub struct MemoryDataset {
    pub info: DatasetInfo,
    pub episodes: Vec<Episode>,
    pub columns: Vec<Column>,
    /// Pictures read so far.
    pub reads: AtomicUsize,
    /// How long reading a picture takes.
    pub delay: Duration,
    /// Reading an image of this frame fails.
    pub failing_frame: Option<usize>,
    /// Reading an image of this frame panics.
    pub panicking_frame: Option<usize>,
}

impl MemoryDataset {
    pub fn new(lengths: &[usize]) -> Self {
        let mut episodes = Vec::new();
        let mut total_frames = 0;
        for (index, length) in lengths.iter().copied().enumerate() {
            let success = Some(index % 2 == 0);
            episodes.push(Episode {
                index,
                start: total_frames,
                length,
                tasks: vec!["fold the box".into()],
                success,
            });
            total_frames += length;
        }
        let column = |key: &str, width: usize, offset: f32| Column {
            key: key.to_owned(),
            width,
            values: (0..total_frames * width).map(|i| offset + i as f32 / 8.0).collect(),
        };
        let columns = vec![column("state", 2, 0.0), column("action", 3, 1000.0)];
        let feature = |key: &str, kind| Feature {
            key: key.to_owned(),
            dtype: String::new(),
            shape: Vec::new(),
            kind,
        };
        let info = DatasetInfo {
            root: PathBuf::from("memory"),
            format: "memory".to_owned(),
            robot_type: None,
            fps: 10.0,
            features: vec![
                feature("state", FeatureKind::Vector { width: 2 }),
                feature("action", FeatureKind::Vector { width: 3 }),
                feature("cam", FeatureKind::Image { height: 2, width: 2 }),
            ],
            tasks: vec!["fold the box".to_owned()],
            total_frames,
        };
        MemoryDataset {
            info,
            episodes,
            columns,
            reads: AtomicUsize::new(0),
            delay: Duration::ZERO,
            failing_frame: None,
            panicking_frame: None,
        }
    }

    pub fn with_columns(mut self, columns: Vec<Column>) -> Self {
        self.columns.extend(columns);
        self
    }

    pub fn without_success(mut self) -> Self {
        self.episodes.iter_mut().for_each(|e| e.success = None);
        self
    }

    pub fn with_tasks(mut self, task: &str) -> Self {
        self.info.tasks = vec![task.to_owned()];
        self
    }
}

/// What fits it: 4-step chunks of an 8-wide model with one camera.
pub fn spec() -> DataSpec {
    let mut spec = super::aloha_spec();
    spec.cameras.truncate(1);
    spec.cameras[0].dataset = Some("cam".to_owned());
    spec.state_key = Parts::feature("state");
    spec.image_size = 2;
    spec.action_dim = 8;
    spec.real_action_dim = 3;
    spec.horizon = 4;
    spec
}

/// A builder over it that normalises nothing.
pub fn builder(dataset: MemoryDataset, spec: DataSpec) -> Result<BatchBuilder, DataError> {
    BatchBuilder::new(
        Arc::new(dataset),
        spec,
        &super::identity_stats(2, 3),
        super::tokenizer(),
    )
}

impl Dataset for MemoryDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn episodes(&self) -> &[Episode] {
        &self.episodes
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn task(&self, _frame: usize) -> Result<&str, DataError> {
        Ok(&self.info.tasks[0])
    }

    fn images(&self, camera: &str, frames: &[usize]) -> Result<Vec<RgbImage>, DataError> {
        let image = |frame: &usize| {
            self.reads.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(self.delay);
            assert_ne!(self.panicking_frame, Some(*frame), "the picture bit the reader");
            if self.failing_frame == Some(*frame) {
                let (path, row) = self.locate(*frame);
                return Err(DataError::Image {
                    path,
                    row,
                    camera: camera.to_owned(),
                    reason: "it is torn".to_owned(),
                });
            }
            let pixels = (0..12).map(|i| (frame * 12 + i) as u8).collect();
            Ok(RgbImage {
                height: 2,
                width: 2,
                pixels,
            })
        };
        frames.iter().map(image).collect()
    }

    fn locate(&self, frame: usize) -> (PathBuf, usize) {
        (PathBuf::from("memory"), frame)
    }
}
