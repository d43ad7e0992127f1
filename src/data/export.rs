//! Raw windows of a dataset as tensors: what is stored, before any transform, for programs that want to compare or
//! reuse it.
//!
//! | tensor | type, shape | |
//! |---|---|---|
//! | `qI/KEY` | f32 (u8 for booleans) `[n, width]`, or `[n]` if the width is 1 | numbers around frame I |
//! | `qI/CAMERA/rgb_pyav` | u8 `[n, 3, height, width]` | pictures; the name is that of lerobot's reader, whose values these are |
//! | `qI/CAMERA/yuv420p` | u8 `[n, 3 height / 2, width]` | the decoded planes of a video |
//! | `qI/KEY_is_pad` | bool `[n]` | what lies outside the episode, where its first or last frame stands in |
//! | `all/KEY` | as above, over all frames | whole columns, where asked for |

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use safetensors::{Dtype, View};

use super::dataset::{Column, Episode, FeatureKind, quoted};
use super::{DataError, Dataset, RgbImage};
use crate::files::{self, FileError};

/// The frames of a feature around each frame asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// A feature, or what comes before a dot in several.
    pub key: String,
    /// Frames relative to the one asked for.
    pub offsets: Vec<i64>,
}

impl FromStr for Delta {
    type Err = String;

    /// `KEY=-1,0,5..9`; ranges include their ends.
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, list) = text.split_once('=').ok_or("it is not like action=0..9")?;
        let number = |n: &str| {
            n.trim()
                .parse::<i64>()
                .map_err(|_| format!("`{n}` is not a number of frames"))
        };
        let mut offsets = Vec::new();
        for part in list.split(',') {
            let Some((from, to)) = part.split_once("..") else {
                offsets.push(number(part)?);
                continue;
            };
            let (from, to) = (number(from)?, number(to)?);
            if from > to || to.abs_diff(from) > MOST {
                return Err(format!("`{part}` is not a range of up to {MOST} frames, first to last"));
            }
            offsets.extend(from..=to);
        }
        Ok(Delta {
            key: key.to_owned(),
            offsets,
        })
    }
}

/// Frames of a range; a longer one is a slip of the pen.
const MOST: u64 = 100_000;

/// Frames of one episode around one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Each inside of the episode.
    pub frames: Vec<usize>,
    /// Whether the frame asked for is outside, so that the nearest one stands in for it.
    pub is_pad: Vec<bool>,
}

impl Window {
    pub fn new(episode: &Episode, frame: usize, offsets: &[i64]) -> Window {
        let last = (episode.start + episode.length).saturating_sub(1);
        let wanted = |offset: &i64| (frame as i64).saturating_add(*offset);
        let inside = |wanted: i64| wanted.clamp(episode.start as i64, last as i64);
        let wanted: Vec<i64> = offsets.iter().map(wanted).collect();
        Window {
            frames: wanted.iter().map(|w| inside(*w) as usize).collect(),
            is_pad: wanted.iter().map(|w| inside(*w) != *w).collect(),
        }
    }
}

/// A tensor with its name.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian, row-major.
    pub data: Vec<u8>,
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// The windows of `deltas` around each of `frames`; without deltas, every feature at the frame itself.
///
/// # Errors
/// A frame or feature that the dataset does not have, a feature asked for twice, and those of [`Dataset::images`].
pub fn windows(dataset: &dyn Dataset, frames: &[usize], deltas: &[Delta]) -> Result<Vec<Tensor>, DataError> {
    let features = expand(dataset, deltas)?;
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for frame in frames.iter().copied().filter(|frame| seen.insert(*frame)) {
        let episode = episode_of(dataset, frame)?;
        for (key, offsets) in &features {
            let Window { frames, is_pad } = Window::new(episode, frame, offsets);
            let name = format!("q{frame}/{key}");
            match dataset.columns().iter().find(|column| column.key == *key) {
                Some(column) => tensors.push(numbers(dataset, column, name.clone(), frames.into_iter())),
                None => tensors.extend(pictures(dataset, key, &name, &frames)?),
            }
            tensors.push(Tensor {
                name: name + "_is_pad",
                dtype: Dtype::BOOL,
                shape: vec![is_pad.len()],
                data: is_pad.into_iter().map(u8::from).collect(),
            });
        }
    }
    Ok(tensors)
}

/// Every numeric feature of all frames, and where each frame belongs.
///
/// # Errors
/// Those of [`Dataset::task`].
pub fn columns(dataset: &dyn Dataset) -> Result<Vec<Tensor>, DataError> {
    let frames = dataset.info().total_frames;
    let mut tensors: Vec<Tensor> = dataset
        .columns()
        .iter()
        .map(|column| numbers(dataset, column, format!("all/{}", column.key), 0..frames))
        .collect();
    let mut places: [Vec<i64>; 4] = Default::default();
    for episode in dataset.episodes() {
        for t in 0..episode.length {
            let frame = episode.start + t;
            let task = dataset.task(frame)?;
            let task = dataset.info().tasks.iter().position(|text| text == task);
            let task = task.map_or(-1, |position| position as i64);
            for (column, value) in places
                .iter_mut()
                .zip([frame as i64, episode.index as i64, t as i64, task])
            {
                column.push(value);
            }
        }
    }
    for (key, values) in ["index", "episode_index", "frame_index", "task_index"]
        .iter()
        .zip(places)
    {
        tensors.push(Tensor {
            name: format!("all/{key}"),
            dtype: Dtype::I64,
            shape: vec![values.len()],
            data: values.into_iter().flat_map(i64::to_le_bytes).collect(),
        });
    }
    Ok(tensors)
}

/// Writes a safetensors file: at any time the old or the new content is there.
///
/// # Errors
/// [`DataError::File`].
pub fn write(path: &Path, tensors: &[Tensor]) -> Result<(), DataError> {
    let named = tensors.iter().map(|tensor| (tensor.name.as_str(), tensor));
    let bytes = safetensors::serialize(named, None).map_err(|e| {
        let source = std::io::Error::other(e);
        let path = path.to_owned();
        DataError::File(FileError::Write { path, source })
    })?;
    files::replace(path, &bytes).map_err(DataError::File)
}

/// Features and the offsets that are wanted of them, in the order of the dataset.
fn expand(dataset: &dyn Dataset, deltas: &[Delta]) -> Result<Vec<(String, Vec<i64>)>, DataError> {
    let info = dataset.info();
    let keys = || {
        let readable = |key: &str| dataset.columns().iter().any(|column| column.key == key);
        let keys = info.features.iter().filter(move |feature| match feature.kind {
            FeatureKind::Image { .. } => true,
            _ => readable(&feature.key),
        });
        keys.map(|feature| feature.key.as_str())
    };
    if deltas.is_empty() {
        return Ok(keys().map(|key| (key.to_owned(), vec![0])).collect());
    }
    let mut chosen: Vec<(String, Vec<i64>)> = Vec::new();
    for Delta { key, offsets } in deltas {
        let below = format!("{key}.");
        let mut matching = keys().filter(|k| k == key || k.starts_with(&below)).peekable();
        if matching.peek().is_none() {
            return Err(DataError::UnknownFeature {
                root: info.root.clone(),
                key: key.clone(),
                available: quoted(keys()),
            });
        }
        for feature in matching {
            if chosen.iter().any(|(k, _)| k == feature) {
                return Err(spec(format!("`{feature}` is asked for twice")));
            }
            chosen.push((feature.to_owned(), offsets.clone()));
        }
    }
    Ok(chosen)
}

fn spec(reason: impl Display) -> DataError {
    DataError::Spec {
        field: "--delta",
        reason: reason.to_string(),
    }
}

fn episode_of(dataset: &dyn Dataset, frame: usize) -> Result<&Episode, DataError> {
    let episodes = dataset.episodes();
    let after = episodes.partition_point(|e| e.start <= frame);
    let found = episodes[..after].last().filter(|e| frame < e.start + e.length);
    found.ok_or_else(|| DataError::FrameOutOfRange {
        root: dataset.info().root.clone(),
        frame,
        frames: dataset.info().total_frames,
    })
}

fn numbers(dataset: &dyn Dataset, column: &Column, name: String, frames: impl Iterator<Item = usize>) -> Tensor {
    let values: Vec<f32> = frames.flat_map(|frame| column.row(frame)).copied().collect();
    let rows = values.len() / column.width;
    let features = &dataset.info().features;
    let boolean = features.iter().any(|f| f.key == column.key && f.dtype == "bool");
    Tensor {
        name,
        shape: if column.width == 1 {
            vec![rows]
        } else {
            vec![rows, column.width]
        },
        dtype: if boolean { Dtype::U8 } else { Dtype::F32 },
        data: match boolean {
            true => values.into_iter().map(|v| v as u8).collect(),
            false => values.into_iter().flat_map(f32::to_le_bytes).collect(),
        },
    }
}

fn pictures(dataset: &dyn Dataset, camera: &str, name: &str, frames: &[usize]) -> Result<Vec<Tensor>, DataError> {
    let tensor = |name: String, shape: Vec<usize>, data: Vec<u8>| Tensor {
        name,
        dtype: Dtype::U8,
        shape,
        data,
    };
    let images = dataset.images(camera, frames)?;
    let (height, width) = images.first().map_or((0, 0), |image| (image.height, image.width));
    let mut tensors = vec![tensor(
        format!("{name}/rgb_pyav"),
        vec![images.len(), 3, height, width],
        images.iter().flat_map(channels_first).collect(),
    )];
    if let Some(planes) = dataset.planes(camera, frames)? {
        tensors.push(tensor(
            format!("{name}/yuv420p"),
            vec![planes.len(), height * 3 / 2, width],
            planes.into_iter().flat_map(|image| image.planes).collect(),
        ));
    }
    Ok(tensors)
}

fn channels_first(image: &RgbImage) -> impl Iterator<Item = u8> {
    (0..3).flat_map(|channel| image.pixels[channel..].iter().step_by(3).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        let offsets = |text: &str| text.parse::<Delta>().map(|delta| delta.offsets);
        assert_eq!(offsets("action=0..3"), Ok(vec![0, 1, 2, 3]));
        assert_eq!(offsets("a.b=-2..-1,0, 10"), Ok(vec![-2, -1, 0, 10]));
        for (bad, why) in [
            ("action", "not like"),
            ("action=", "not a number"),
            ("action=1,", "not a number"),
            ("action=3..1", "first to last"),
            ("action=0..9999999999", "first to last"),
        ] {
            let error = offsets(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn windows_stay_in_the_episode() {
        let episode = Episode {
            index: 1,
            start: 10,
            length: 5,
            tasks: Vec::new(),
            success: None,
        };
        let Window { frames, is_pad } = Window::new(&episode, 11, &[-2, -1, 0, 3, 4, i64::MAX]);
        assert_eq!(frames, [10, 10, 11, 14, 14, 14]);
        assert_eq!(is_pad, [true, false, false, false, true, true]);
    }
}
