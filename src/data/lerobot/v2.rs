//! The lists of LeRobot v2.0 and v2.1: JSON lines, and a table and a video for each episode.

use std::path::Path;

use serde::Deserialize;

use super::super::dataset::Episode;
use super::layout::{Clip, Table};
use super::meta::{Listed, Tasks};
use super::template::{Names, Place};
use crate::data::{DataError, json};

pub(super) const TASKS: &str = "meta/tasks.jsonl";
pub(super) const EPISODES: &str = "meta/episodes.jsonl";
pub(super) const DATA: Names = Names {
    chunk: "episode_chunk",
    file: "episode_index",
    key: None,
};
pub(super) const VIDEO: Names = Names {
    key: Some("video_key"),
    ..DATA
};

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

pub(super) fn tasks(root: &Path) -> Result<Tasks, DataError> {
    let mut tasks: Vec<(usize, TaskLine)> = json::lines(&root.join(TASKS), "the list of tasks")?;
    tasks.sort_by_key(|(_, t)| t.task_index);
    let (indices, texts) = tasks.into_iter().map(|(_, t)| (t.task_index, t.task)).unzip();
    Ok(Tasks {
        file: TASKS,
        indices,
        texts,
    })
}

pub(super) fn episodes(root: &Path, chunks_size: usize, cameras: usize) -> Result<Listed, DataError> {
    let path = root.join(EPISODES);
    let mut start = 0;
    let mut listed = Listed {
        clips: vec![Vec::new(); cameras],
        ..Default::default()
    };
    for (line, e) in json::lines::<EpisodeLine>(&path, "the list of episodes")? {
        let file = listed.episodes.len();
        if e.episode_index != file {
            return Err(DataError::EpisodeGap {
                path,
                line,
                found: e.episode_index,
                expected: file,
            });
        }
        listed.episodes.push(Episode {
            index: file,
            start,
            length: e.length,
            tasks: e.tasks,
            success: None,
        });
        start = start.saturating_add(e.length);
        let chunk = file / chunks_size;
        let place = Place { chunk, file };
        listed.tables.push(Table { place, first_row: 0 });
        let clips = listed.clips.iter_mut();
        clips.for_each(|clips| clips.push(Clip { place, from: 0.0 }));
    }
    Ok(listed)
}
