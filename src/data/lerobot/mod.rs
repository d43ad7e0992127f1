//! LeRobot v2.0, v2.1 and v3.0: numbers in parquet, pictures as PNG in a column of it or as video.
//!
//! v2 has a table and, for each filmed camera, a video for every episode; v3.0 puts several episodes into one. `v2` and
//! `v3` read the lists of episodes, which become one [`Layout`]; everything else is shared. Dataset statistics are not
//! read: normalisation needs statistics of transformed chunks, which [`crate::data::norm_stats`] computes.
//!
//! Facts: <https://github.com/huggingface/lerobot>, `datasets/lerobot_dataset.py` of releases 0.3.3 and 0.4.4.

mod columns;
mod images;
mod layout;
mod meta;
mod png;
mod recent;
mod tables;
mod template;
mod unpacked;
mod v2;
mod v3;

use std::path::{Path, PathBuf};

use super::dataset::{Column, Dataset, DatasetInfo, Episode, FeatureKind, Footage, RgbImage, YuvImage, quoted};
use super::video::{Failure, Videos};
use super::{DataError, labels};
use images::ImageFiles;
use layout::Layout;
pub(super) use meta::{INFO, codebase_version};
use meta::{Meta, TIMESTAMP};
use png::Refusal;

/// An open LeRobot dataset.
#[derive(Debug)]
pub(super) struct LeRobot {
    info: DatasetInfo,
    episodes: Vec<Episode>,
    columns: Vec<Column>,
    /// For each frame, the position of its task in `info.tasks`.
    frame_tasks: Vec<u32>,
    layout: Layout,
    files: ImageFiles,
    videos: Videos,
}

impl LeRobot {
    /// Reads the metadata and the numeric columns of all episodes.
    pub(super) fn open(root: &Path) -> Result<Self, DataError> {
        let Meta {
            info,
            mut episodes,
            tasks,
            layout,
        } = Meta::read(root)?;
        let tables = tables::read_all(&info, &episodes, &tasks, &layout)?;
        for episode in &mut episodes {
            episode.success = labels::success(&tables.columns, episode.start..episode.start + episode.length);
        }
        Ok(LeRobot {
            info,
            episodes,
            columns: tables.columns,
            frame_tasks: tables.frame_tasks,
            layout,
            files: ImageFiles::default(),
            videos: Videos::default(),
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

    /// Height and width of what a camera sees.
    fn size_of(&self, camera: &str) -> Result<(usize, usize), DataError> {
        let feature = self.info.features.iter().find(|f| f.key == camera);
        match feature.map(|f| f.kind) {
            Some(FeatureKind::Image { height, width }) => Ok((height, width)),
            _ => Err(DataError::UnknownCamera {
                root: self.info.root.clone(),
                key: camera.to_owned(),
                available: quoted(self.info.cameras()),
            }),
        }
    }

    /// Calls `read` with runs of ascending frames of one episode, which together are `frames`.
    fn in_runs<T>(
        &self,
        frames: &[usize],
        read: impl Fn(&Episode, &[usize]) -> Result<Vec<T>, DataError>,
    ) -> Result<Vec<T>, DataError> {
        let mut all = Vec::with_capacity(frames.len());
        let mut rest = frames;
        while let Some(first) = rest.first() {
            self.check(*first)?;
            let episode = self.episode_of(*first);
            let end = episode.start + episode.length;
            let more = rest.windows(2).take_while(|w| w[0] < w[1] && w[1] < end).count();
            let (run, tail) = rest.split_at(1 + more);
            all.extend(read(episode, run)?);
            rest = tail;
        }
        Ok(all)
    }

    /// The pictures in the table that holds `frames`, which are ascending and of one episode.
    fn stored(&self, camera: &str, episode: &Episode, frames: &[usize]) -> Result<Vec<RgbImage>, DataError> {
        let (height, width) = self.size_of(camera)?;
        let (path, first_row) = self.layout.table(episode.index);
        let rows: Vec<usize> = frames.iter().map(|frame| first_row + frame - episode.start).collect();
        let encoded = self.files.encoded(&self.info.root, &path, camera, &rows)?;
        let decode = |(encoded, row): (&Vec<u8>, usize)| {
            let (path, camera) = (path.clone(), camera.to_owned());
            png::decode(encoded, (height, width)).map_err(|refusal| match refusal {
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
            })
        };
        encoded.iter().zip(rows).map(decode).collect()
    }

    /// When the video of `clip_start` shows `frames`, in seconds.
    fn times(&self, clip_start: f64, frames: &[usize]) -> Vec<f64> {
        let column = Column::find_scalar(&self.columns, &[TIMESTAMP]);
        let recorded = |frame: &usize| column.map_or(f64::NAN, |c| f64::from(c.row(*frame)[0]));
        frames.iter().map(|frame| clip_start + recorded(frame)).collect()
    }

    fn is_filmed(&self, camera: &str) -> bool {
        self.layout.clip(camera, 0).is_some()
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
        let size = self.size_of(camera)?;
        self.in_runs(frames, |episode, frames| {
            let Some((path, start)) = self.layout.clip(camera, episode.index) else {
                return self.stored(camera, episode, frames);
            };
            let pictures = self.videos.pictures(&path, &self.times(start, frames), size);
            pictures.map_err(|failure| film_error(path, camera, failure))
        })
    }

    fn planes(&self, camera: &str, frames: &[usize]) -> Result<Option<Vec<YuvImage>>, DataError> {
        let size = self.size_of(camera)?;
        if !self.is_filmed(camera) {
            return Ok(None);
        }
        let planes = self.in_runs(frames, |episode, frames| {
            let Some((path, start)) = self.layout.clip(camera, episode.index) else {
                return Ok(Vec::new());
            };
            let planes = self.videos.planes(&path, &self.times(start, frames), size);
            planes.map_err(|failure| film_error(path, camera, failure))
        });
        planes.map(Some)
    }

    fn footage(&self, camera: &str) -> Result<Option<Footage>, DataError> {
        let Some((path, _)) = self.layout.clip(camera, 0) else {
            return Ok(None);
        };
        let footage = self.videos.footage(&path);
        footage.map(Some).map_err(|failure| film_error(path, camera, failure))
    }

    fn locate(&self, frame: usize) -> (PathBuf, usize) {
        let episode = self.episode_of(frame);
        let (path, first_row) = self.layout.table(episode.index);
        (path, first_row + frame - episode.start)
    }
}

fn film_error(path: PathBuf, camera: &str, failure: Failure) -> DataError {
    let camera = camera.to_owned();
    match failure {
        Failure::Read(source) => DataError::Read {
            path,
            role: "the video of a camera",
            source,
        },
        Failure::Film(reason) => DataError::Video { path, camera, reason },
    }
}
