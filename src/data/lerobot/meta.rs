//! `meta/info.json`, and what the other files of that folder say in both layouts.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::dataset::{DatasetInfo, Episode, Feature, FeatureKind};
use super::layout::{Clip, Film, Layout, Table};
use super::template::{self, Names, Template};
use super::{v2, v3};
use crate::data::video::Videos;
use crate::data::{DataError, json};

/// Where info.json lies in a dataset, in all LeRobot versions.
pub(in crate::data) const INFO: &str = "meta/info.json";
const ROLE: &str = "the description of a dataset";
/// The column that says when a frame was recorded, in seconds since its episode began.
pub(super) const TIMESTAMP: &str = "timestamp";

/// What the folder says.
#[derive(Debug)]
pub(super) struct Meta {
    pub info: DatasetInfo,
    /// With `success` still unknown: only the tables tell.
    pub episodes: Vec<Episode>,
    pub tasks: Tasks,
    pub layout: Layout,
}

/// The list of tasks.
#[derive(Debug)]
pub(super) struct Tasks {
    /// Where it lies in the dataset.
    pub file: &'static str,
    /// `task_index` of each text, ascending.
    pub indices: Vec<i64>,
    pub texts: Vec<String>,
}

/// The list of episodes.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub episodes: Vec<Episode>,
    pub tables: Vec<Table>,
    /// For each filmed camera, its clips.
    pub clips: Vec<Vec<Clip>>,
}

/// The version alone, so that an unsupported one is reported as such and not by the first field it lacks.
pub(in crate::data) fn codebase_version(root: &Path) -> Result<String, DataError> {
    #[derive(Deserialize)]
    struct Version {
        codebase_version: String,
    }
    let path = root.join(INFO);
    for missing in [root, &path] {
        if !missing.exists() {
            return Err(DataError::NoDataset {
                root: root.to_owned(),
                missing: missing.to_owned(),
            });
        }
    }
    let text = json::read(&path, ROLE)?;
    json::parse::<Version>(&path, 1, &text).map(|v| v.codebase_version)
}

#[derive(Deserialize)]
struct InfoFile {
    codebase_version: String,
    robot_type: Option<String>,
    total_episodes: usize,
    total_frames: usize,
    #[serde(default = "default_chunks_size")]
    chunks_size: usize,
    fps: f64,
    data_path: String,
    video_path: Option<String>,
    features: Map<String, Value>,
}

/// LeRobot's `DEFAULT_CHUNK_SIZE`.
fn default_chunks_size() -> usize {
    1000
}

impl Meta {
    pub(super) fn read(root: &Path) -> Result<Self, DataError> {
        let path = root.join(INFO);
        let file: InfoFile = json::parse(&path, 1, &json::read(&path, ROLE)?)?;
        if !(file.fps.is_finite() && file.fps > 0.0) {
            return Err(field(&path, "fps", file.fps, "frames per second are positive"));
        }
        if file.chunks_size == 0 {
            return Err(field(&path, "chunks_size", 0, "a chunk holds at least one episode"));
        }
        let third = file.codebase_version == "v3.0";
        let (data, video) = if third {
            (v3::DATA, v3::VIDEO)
        } else {
            (v2::DATA, v2::VIDEO)
        };
        let features = file
            .features
            .iter()
            .map(|(key, v)| feature(&path, key, v))
            .collect::<Result<Vec<_>, _>>()?;
        let data_path = template(&path, "data_path", &file.data_path, data)?;
        let films = films(&path, &file, &features, video)?;
        let cameras: Vec<&str> = films.iter().map(|(camera, _)| *camera).collect();
        let (tasks, listed, counted_in) = if third {
            (v3::tasks(root)?, v3::episodes(root, &cameras)?, v3::EPISODES)
        } else {
            let listed = v2::episodes(root, file.chunks_size, cameras.len())?;
            (v2::tasks(root)?, listed, v2::EPISODES)
        };
        let total_frames = file.check_totals(&path, &listed.episodes, root.join(counted_in))?;
        if total_frames == 0 {
            return Err(DataError::NoFrames { root: root.to_owned() });
        }
        let layout = Layout {
            root: root.to_owned(),
            data_path,
            tables: listed.tables,
            films: films
                .into_iter()
                .zip(listed.clips)
                .map(|((camera, path), clips)| Film {
                    camera: camera.to_owned(),
                    path,
                    clips,
                })
                .collect(),
        };
        let info = DatasetInfo {
            root: root.to_owned(),
            format: format!("LeRobot {}", file.codebase_version),
            robot_type: file.robot_type,
            fps: file.fps,
            features,
            tasks: tasks.texts.clone(),
            total_frames,
        };
        Ok(Meta {
            info,
            episodes: listed.episodes,
            tasks,
            layout,
        })
    }
}

impl InfoFile {
    /// The number of frames; the totals agree with the list of episodes.
    fn check_totals(&self, path: &Path, episodes: &[Episode], counted_in: PathBuf) -> Result<usize, DataError> {
        let total_frames = episodes.last().map_or(0, |e| e.start.saturating_add(e.length));
        for (what, announced, counted) in [
            ("episodes", self.total_episodes, episodes.len()),
            ("frames", self.total_frames, total_frames),
        ] {
            if announced != counted {
                return Err(DataError::Totals {
                    path: path.to_owned(),
                    what,
                    announced,
                    counted_in,
                    counted,
                });
            }
        }
        Ok(total_frames)
    }
}

/// The cameras that are filmed, and the pattern of their files.
fn films<'a>(
    path: &Path,
    file: &InfoFile,
    features: &'a [Feature],
    names: Names,
) -> Result<Vec<(&'a str, Template)>, DataError> {
    let filmed: Vec<&Feature> = features.iter().filter(|f| f.dtype == "video").collect();
    let Some(first) = filmed.first() else {
        return Ok(Vec::new());
    };
    if !Videos::AVAILABLE {
        return Err(DataError::NoVideo {
            path: path.to_owned(),
            feature: first.key.clone(),
        });
    }
    let wrong = |feature: &Feature, reason: &str| DataError::Feature {
        path: path.to_owned(),
        feature: feature.key.clone(),
        reason: reason.to_owned(),
    };
    let pattern = file.video_path.as_deref();
    let pattern = pattern.ok_or_else(|| wrong(first, "it is a video, but there is no `video_path`"))?;
    let timed = |f: &Feature| f.key == TIMESTAMP && f.kind == FeatureKind::Vector { width: 1 };
    if !features.iter().any(timed) {
        let reason = "it is a video, but no feature `timestamp` says when its frames were recorded";
        return Err(wrong(first, reason));
    }
    if let Some(outside) = filmed.iter().find(|f| !template::stays_inside(Path::new(&f.key))) {
        return Err(wrong(
            outside,
            "the file of a camera of this name would lie out of the dataset",
        ));
    }
    let template = template(path, "video_path", pattern, names)?;
    Ok(filmed.iter().map(|f| (f.key.as_str(), template.clone())).collect())
}

fn template(path: &Path, name: &'static str, pattern: &str, names: Names) -> Result<Template, DataError> {
    Template::parse(pattern, names).map_err(|reason| field(path, name, pattern, &reason))
}

fn feature(path: &Path, key: &str, value: &Value) -> Result<Feature, DataError> {
    #[derive(Deserialize)]
    struct Entry {
        dtype: String,
        shape: Vec<usize>,
        names: Option<Value>,
    }
    let wrong = |reason: String| DataError::Feature {
        path: path.to_owned(),
        feature: key.to_owned(),
        reason,
    };
    let Entry { dtype, shape, names } = Entry::deserialize(value).map_err(|e| wrong(e.to_string()))?;
    let kind = match (dtype.as_str(), shape.as_slice()) {
        ("image" | "video", _) => image_kind(&shape, names.as_ref()).map_err(wrong)?,
        ("string", _) => FeatureKind::Other,
        (_, []) => FeatureKind::Vector { width: 1 },
        (_, [0]) => return Err(wrong("its shape says that it is empty".to_owned())),
        (_, [width]) => FeatureKind::Vector { width: *width },
        _ => FeatureKind::Other,
    };
    Ok(Feature {
        key: key.to_owned(),
        dtype,
        shape,
        kind,
    })
}

/// Height and width by the axis names: converters write both channels-first and channels-last shapes.
fn image_kind(shape: &[usize], names: Option<&Value>) -> Result<FeatureKind, String> {
    let names: Vec<&str> = names
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    if names.len() != 3 || shape.len() != 3 {
        return Err("an image needs a `shape` of three numbers and `names` that say which is which".to_owned());
    }
    let axis = |wanted: &[&str]| {
        let i = names.iter().position(|n| wanted.contains(n));
        i.map(|i| shape[i])
            .ok_or_else(|| format!("its `names` do not contain `{}`", wanted[0]))
    };
    let (channels, height, width) = (axis(&["channels", "channel"])?, axis(&["height"])?, axis(&["width"])?);
    match (channels, height.min(width)) {
        (3, 1..) => Ok(FeatureKind::Image { height, width }),
        _ => Err(format!(
            "a picture of {height}x{width} pixels and {channels} channels is not an RGB picture"
        )),
    }
}

fn field(path: &Path, field: &'static str, value: impl ToString, reason: &str) -> DataError {
    DataError::InfoField {
        path: path.to_owned(),
        field,
        value: value.to_string(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_axes_go_by_name() {
        let names = |n: [&str; 3]| Value::from(n.to_vec());
        let expected = FeatureKind::Image { height: 72, width: 96 };
        assert_eq!(
            image_kind(&[3, 72, 96], Some(&names(["channels", "height", "width"]))),
            Ok(expected)
        );
        assert_eq!(
            image_kind(&[72, 96, 3], Some(&names(["height", "width", "channel"]))),
            Ok(expected)
        );
        assert_eq!(
            image_kind(&[96, 72, 3], Some(&names(["width", "height", "channels"]))),
            Ok(expected)
        );
        assert!(image_kind(&[72, 96, 3], Some(&names(["channels", "height", "width"]))).is_err());
        assert!(image_kind(&[3, 72, 96], None).is_err());
        assert!(image_kind(&[3, 0, 96], Some(&names(["channels", "height", "width"]))).is_err());
    }
}
