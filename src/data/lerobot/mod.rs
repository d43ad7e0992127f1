//! LeRobot v2.0 and v2.1: one parquet file an episode, images as PNG in a column of it.
//!
//! The two versions differ only in where dataset statistics are stored, and those are not read: normalisation needs
//! statistics of transformed chunks, which [`crate::data::norm_stats`] computes.
//!
//! Facts: <https://github.com/huggingface/lerobot>, `lerobot/common/datasets/lerobot_dataset.py` of release 0.3.3.

mod images;
mod meta;
mod png;
mod recent;
mod tables;
mod template;

use std::path::{Path, PathBuf};

use super::dataset::{Column, Dataset, DatasetInfo, Episode, FeatureKind, RgbImage, quoted};
use super::{DataError, labels};
use images::ImageFiles;
use meta::Meta;
pub(super) use meta::{INFO, codebase_version};
use png::Refusal;
use template::Template;

/// An open LeRobot v2.x dataset.
#[derive(Debug)]
pub(super) struct LeRobot {
    info: DatasetInfo,
    episodes: Vec<Episode>,
    columns: Vec<Column>,
    /// For each frame, the position of its task in `info.tasks`.
    frame_tasks: Vec<u32>,
    data_path: Template,
    files: ImageFiles,
}

impl LeRobot {
    /// Reads the metadata and the numeric columns of all episodes.
    pub(super) fn open(root: &Path) -> Result<Self, DataError> {
        let Meta {
            info,
            mut episodes,
            task_indices,
            data_path,
        } = Meta::read(root)?;
        let tables = tables::read_all(root, &info, &episodes, &task_indices, &data_path)?;
        for episode in &mut episodes {
            episode.success = labels::success(&tables.columns, episode.start..episode.start + episode.length);
        }
        Ok(LeRobot {
            info,
            episodes,
            columns: tables.columns,
            frame_tasks: tables.frame_tasks,
            data_path,
            files: ImageFiles::default(),
        })
    }

    fn check(&self, frame: usize) -> Result<(), DataError> {
        let frames = self.info.total_frames;
        if frame < frames {
            Ok(())
        } else {
            Err(DataError::FrameOutOfRange {
                root: self.info.root.clone(),
                frame,
                frames,
            })
        }
    }

    fn episode_of(&self, frame: usize) -> &Episode {
        let after = self.episodes.partition_point(|e| e.start <= frame);
        &self.episodes[after.saturating_sub(1)]
    }

    fn table_of(&self, episode: &Episode) -> PathBuf {
        self.info.root.join(self.data_path.fill(episode.index))
    }

    /// Appends the pictures of ascending frames of one episode.
    fn read_run(
        &self,
        camera: &str,
        episode: &Episode,
        frames: &[usize],
        images: &mut Vec<RgbImage>,
    ) -> Result<(), DataError> {
        let feature = self.info.features.iter().find(|f| f.key == camera);
        let Some(FeatureKind::Image { height, width }) = feature.map(|f| f.kind) else {
            return Err(DataError::UnknownCamera {
                root: self.info.root.clone(),
                key: camera.to_owned(),
                available: quoted(self.info.cameras()),
            });
        };
        let path = self.table_of(episode);
        let rows: Vec<usize> = frames.iter().map(|frame| frame - episode.start).collect();
        let encoded = self.files.encoded(&self.info.root, &path, camera, &rows)?;
        for (encoded, row) in encoded.iter().zip(rows) {
            let (path, camera) = (path.clone(), camera.to_owned());
            let image = png::decode(encoded, (height, width)).map_err(|refusal| match refusal {
                Refusal::Broken(reason) => DataError::Image {
                    path,
                    row,
                    camera,
                    reason,
                },
                Refusal::Size(h, w) => DataError::ImageShape {
                    path,
                    row,
                    camera,
                    found: format!("{h}x{w}x3"),
                    expected: format!("{height}x{width}x3"),
                },
            })?;
            images.push(image);
        }
        Ok(())
    }
}

impl Dataset for LeRobot {
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
        Ok(&self.info.tasks[self.frame_tasks[frame] as usize])
    }

    fn images(&self, camera: &str, frames: &[usize]) -> Result<Vec<RgbImage>, DataError> {
        let mut images = Vec::with_capacity(frames.len());
        let mut rest = frames;
        while let Some(first) = rest.first() {
            self.check(*first)?;
            let episode = self.episode_of(*first);
            let end = episode.start + episode.length;
            let more = rest.windows(2).take_while(|w| w[0] < w[1] && w[1] < end).count();
            let (run, tail) = rest.split_at(1 + more);
            self.read_run(camera, episode, run, &mut images)?;
            rest = tail;
        }
        Ok(images)
    }

    fn locate(&self, frame: usize) -> (PathBuf, usize) {
        let episode = self.episode_of(frame);
        (self.table_of(episode), frame - episode.start)
    }
}
