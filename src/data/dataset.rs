//! What the rest of the data side knows about a dataset, whatever format it is stored in.
//!
//! Frames are addressed by their global index: the episodes laid end to end, which is also LeRobot's `index` column.
//! Numbers are small and live in memory; images are decoded on demand, from any thread.

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{DataError, lerobot};

/// A dataset that is open for reading.
pub trait Dataset: Debug + Send + Sync {
    /// The dataset as a whole.
    fn info(&self) -> &DatasetInfo;

    /// The episodes, in order; together they cover all frames without gaps.
    fn episodes(&self) -> &[Episode];

    /// The numeric features, in the order of the dataset's metadata.
    fn columns(&self) -> &[Column];

    /// The text of the task a frame belongs to.
    ///
    /// # Errors
    /// [`DataError::FrameOutOfRange`].
    fn task(&self, frame: usize) -> Result<&str, DataError>;

    /// The pictures of `camera` (a dataset key) at `frames`, in their order. Ascending frames of one episode are
    /// fetched together, which formats make cheaper than one by one.
    ///
    /// # Errors
    /// Unknown camera, frame out of range, unreadable file, undecodable picture, a shape the metadata does not announce.
    fn images(&self, camera: &str, frames: &[usize]) -> Result<Vec<RgbImage>, DataError>;

    /// The picture of `camera` at one frame.
    ///
    /// # Errors
    /// Those of [`Dataset::images`].
    fn image(&self, camera: &str, frame: usize) -> Result<RgbImage, DataError> {
        let info = self.info();
        self.images(camera, &[frame])?
            .pop()
            .ok_or_else(|| DataError::FrameOutOfRange {
                root: info.root.clone(),
                frame,
                frames: info.total_frames,
            })
    }

    /// The pictures of `camera` at `frames` as the video stores them, before their conversion to RGB; `None` if the
    /// camera is not filmed.
    ///
    /// # Errors
    /// Those of [`Dataset::images`], and a video in another format than YUV 4:2:0 with 8 bits and even sides.
    fn planes(&self, _camera: &str, _frames: &[usize]) -> Result<Option<Vec<YuvImage>>, DataError> {
        Ok(None)
    }

    /// How `camera` was filmed, as its first video says; `None` if it was not filmed.
    ///
    /// # Errors
    /// A video that cannot be opened.
    fn footage(&self, _camera: &str) -> Result<Option<Footage>, DataError> {
        Ok(None)
    }

    /// The file and the row in it that hold the numbers of `frame`, for messages.
    fn locate(&self, frame: usize) -> (PathBuf, usize);

    /// Which of several mixed datasets `frame` belongs to; 0 in a single one.
    fn source(&self, _frame: usize) -> usize {
        0
    }
}

/// What a dataset says about itself.
#[derive(Clone, Debug, Serialize)]
pub struct DatasetInfo {
    /// The folder it was opened from.
    pub root: PathBuf,
    /// The format and its version, such as `LeRobot v2.1`.
    pub format: String,
    /// The robot that recorded it, if stated.
    pub robot_type: Option<String>,
    /// Frames per second.
    pub fps: f64,
    /// All features, numeric or not, in the order of the metadata.
    pub features: Vec<Feature>,
    /// The task texts, in the order of their index.
    pub tasks: Vec<String>,
    /// Number of frames over all episodes.
    pub total_frames: usize,
}

impl DatasetInfo {
    /// The keys of the image features.
    pub fn cameras(&self) -> impl Iterator<Item = &str> {
        let is_image = |f: &&Feature| matches!(f.kind, FeatureKind::Image { .. });
        self.features.iter().filter(is_image).map(|f| f.key.as_str())
    }
}

/// One feature of every frame.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Feature {
    /// Its key, such as `observation.state`.
    pub key: String,
    /// Its type as the dataset writes it, such as `float32`.
    pub dtype: String,
    /// Its shape as the dataset writes it.
    pub shape: Vec<usize>,
    /// How it is read.
    pub kind: FeatureKind,
}

/// How a feature is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FeatureKind {
    /// RGB pictures of this size, in pixels.
    Image { height: usize, width: usize },
    /// A vector of this many numbers (a scalar is a vector of one), readable as a [`Column`].
    Vector { width: usize },
    /// Present in the dataset, but not readable here: text, matrices.
    Other,
}

/// One recorded episode.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Episode {
    /// Its number, equal to its position in the list.
    pub index: usize,
    /// The global index of its first frame.
    pub start: usize,
    /// Number of frames.
    pub length: usize,
    /// The texts of the tasks in it.
    pub tasks: Vec<String>,
    /// Whether it succeeded; `None` where no column says so (see [`super::labels::success`]).
    pub success: Option<bool>,
}

/// A numeric feature of all frames: `[frames, width]`, row-major. Booleans are 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub key: String,
    pub width: usize,
    pub values: Vec<f32>,
}

impl Column {
    /// The values of one frame, `[width]`.
    pub fn row(&self, frame: usize) -> &[f32] {
        &self.values[frame * self.width..(frame + 1) * self.width]
    }

    /// The first of `keys` that is a scalar column.
    pub fn find_scalar<'a>(columns: &'a [Column], keys: &[&str]) -> Option<&'a Column> {
        keys.iter()
            .find_map(|key| columns.iter().find(|c| c.key == *key && c.width == 1))
    }

    /// The position of column `key` in `dataset`.
    ///
    /// # Errors
    /// [`DataError::UnknownColumn`].
    pub fn find(dataset: &dyn Dataset, key: &str) -> Result<usize, DataError> {
        let columns = dataset.columns();
        let found = columns.iter().position(|c| c.key == key);
        found.ok_or_else(|| DataError::UnknownColumn {
            root: dataset.info().root.clone(),
            key: key.to_owned(),
            available: quoted(columns.iter().map(|c| c.key.as_str())),
        })
    }

    /// Whether `coordinates` of the column at `position` are finite in every frame of `dataset`.
    ///
    /// # Errors
    /// [`DataError::NotFinite`] with the file and row of the first NaN or infinity.
    pub fn check_finite(dataset: &dyn Dataset, position: usize, coordinates: Range<usize>) -> Result<(), DataError> {
        let Column { key, width, values } = &dataset.columns()[position];
        let wrong = |row: &[f32]| coordinates.clone().find(|i| !row[*i].is_finite());
        let mut rows = values.chunks_exact((*width).max(1)).map(wrong).enumerate();
        match rows.find_map(|(frame, element)| Some((frame, element?))) {
            None => Ok(()),
            Some((frame, element)) => {
                let (path, row) = dataset.locate(frame);
                Err(DataError::NotFinite {
                    path,
                    column: key.clone(),
                    row,
                    element,
                    value: values[frame * width + element],
                })
            }
        }
    }
}

/// An RGB picture: `pixels` is `[height, width, 3]`, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    pub height: usize,
    pub width: usize,
    pub pixels: Vec<u8>,
}

/// A picture as a video stores it: `planes` is `[3 height / 2, width]`, row-major, Y above, then U, then V at half the
/// height and width each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YuvImage {
    pub height: usize,
    pub width: usize,
    pub planes: Vec<u8>,
}

/// What a video says about itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Footage {
    /// Such as `h264`.
    pub codec: String,
    /// Such as `yuv420p`.
    pub pixel_format: String,
    /// In pixels.
    pub height: usize,
    pub width: usize,
    /// Frames per second, on average.
    pub fps: f64,
}

/// Opens the dataset in folder `root`, reading all metadata and numbers but no image.
///
/// # Errors
/// Everything that can be wrong with the folder, its metadata and its tables.
pub fn open(root: impl AsRef<Path>) -> Result<Arc<dyn Dataset>, DataError> {
    let root = root.as_ref();
    let version = lerobot::codebase_version(root)?;
    match version.as_str() {
        "v2.0" | "v2.1" | "v3.0" => Ok(Arc::new(lerobot::LeRobot::open(root)?)),
        _ => Err(DataError::UnsupportedVersion {
            path: root.join(lerobot::INFO),
            found: version,
            supported: "v2.0, v2.1 and v3.0",
        }),
    }
}

/// `a`, `b` and `c` for a message, or `none`.
pub(super) fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|n| format!("`{n}`")).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}
