//! `meta/`: info.json, tasks.jsonl, episodes.jsonl.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::dataset::{DatasetInfo, Episode, Feature, FeatureKind};
use super::template::Template;
use crate::data::{DataError, json};

/// Where info.json lies in a dataset, in all LeRobot versions.
pub(in crate::data) const INFO: &str = "meta/info.json";
const ROLE: &str = "the description of a dataset";
const TASKS: &str = "meta/tasks.jsonl";
const EPISODES: &str = "meta/episodes.jsonl";

/// What the three files say.
#[derive(Debug)]
pub(super) struct Meta {
    pub info: DatasetInfo,
    /// With `success` still unknown: only the tables tell.
    pub episodes: Vec<Episode>,
    /// `task_index` of each text in `info.tasks`, ascending.
    pub task_indices: Vec<i64>,
    pub data_path: Template,
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
    features: Map<String, Value>,
}

/// LeRobot's `DEFAULT_CHUNK_SIZE`.
fn default_chunks_size() -> usize {
    1000
}

#[derive(Deserialize)]
struct TaskLine {
    task_index: i64,
    task: String,
}

#[derive(Deserialize)]
struct EpisodeLine {
    episode_index: usize,
    #[serde(default)]
    tasks: Vec<String>,
    length: usize,
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
        let data_path = Template::parse(&file.data_path, file.chunks_size)
            .map_err(|reason| field(&path, "data_path", &file.data_path, &reason))?;
        let features = file
            .features
            .iter()
            .map(|(key, v)| feature(&path, key, v))
            .collect::<Result<Vec<_>, _>>()?;

        let mut tasks: Vec<(usize, TaskLine)> = json::lines(&root.join(TASKS), "the list of tasks")?;
        tasks.sort_by_key(|(_, t)| t.task_index);
        let episodes = episodes(&root.join(EPISODES))?;
        let total_frames = episodes.last().map_or(0, |e| e.start.saturating_add(e.length));
        for (what, announced, counted) in [
            ("episodes", file.total_episodes, episodes.len()),
            ("frames", file.total_frames, total_frames),
        ] {
            if announced != counted {
                return Err(DataError::Totals {
                    path,
                    what,
                    announced,
                    counted_in: root.join(EPISODES),
                    counted,
                });
            }
        }
        if total_frames == 0 {
            return Err(DataError::NoFrames { root: root.to_owned() });
        }
        let (task_indices, tasks) = tasks.into_iter().map(|(_, t)| (t.task_index, t.task)).unzip();
        let info = DatasetInfo {
            root: root.to_owned(),
            format: format!("LeRobot {}", file.codebase_version),
            robot_type: file.robot_type,
            fps: file.fps,
            features,
            tasks,
            total_frames,
        };
        Ok(Meta {
            info,
            episodes,
            task_indices,
            data_path,
        })
    }
}

fn episodes(path: &Path) -> Result<Vec<Episode>, DataError> {
    let mut start = 0;
    let mut episodes = Vec::new();
    for (line, e) in json::lines::<EpisodeLine>(path, "the list of episodes")? {
        let expected = episodes.len();
        if e.episode_index != expected {
            return Err(DataError::EpisodeGap {
                path: path.to_owned(),
                line,
                found: e.episode_index,
                expected,
            });
        }
        episodes.push(Episode {
            index: expected,
            start,
            length: e.length,
            tasks: e.tasks,
            success: None,
        });
        start = start.saturating_add(e.length);
    }
    Ok(episodes)
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
        ("video", _) => {
            return Err(DataError::Video {
                path: path.to_owned(),
                feature: key.to_owned(),
            });
        }
        ("image", _) => image_kind(&shape, names.as_ref()).map_err(wrong)?,
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
