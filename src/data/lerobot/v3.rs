//! The lists of LeRobot v3.0: parquet, with several episodes in one table and in one video.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use arrow_array::RecordBatch;

use super::super::dataset::Episode;
use super::columns::ColumnFile;
use super::layout::{Clip, Table};
use super::meta::{Listed, Tasks};
use super::template::{Names, Place};
use crate::data::DataError;

pub(super) const TASKS: &str = "meta/tasks.parquet";
pub(super) const EPISODES: &str = "meta/episodes";
pub(super) const DATA: Names = Names {
    chunk: "chunk_index",
    file: "file_index",
    key: None,
};
pub(super) const VIDEO: Names = Names {
    key: Some("video_key"),
    ..DATA
};
const EPISODES_ROLE: &str = "the list of episodes";

pub(super) fn tasks(root: &Path) -> Result<Tasks, DataError> {
    let path = root.join(TASKS);
    let role = "the list of tasks";
    let columns = ColumnFile { path: &path, role };
    let mut tasks: Vec<(i64, String)> = Vec::new();
    columns.guarded(|| {
        let file = columns.open()?;
        // The texts are the index of a pandas frame; newer versions give it a name.
        let names = ["task", "__index_level_0__"];
        let text = names.into_iter().find(|name| file.schema().index_of(name).is_ok());
        let text = text.ok_or_else(|| columns.missing(file.schema(), names[0]))?;
        columns.read(file, ["task_index", text].into_iter(), |batch, row| {
            let indices = columns.integers(batch, "task_index", row)?;
            tasks.extend(indices.into_iter().zip(columns.texts(batch, text, row)?));
            Ok(())
        })
    })?;
    tasks.sort_by_key(|(index, _)| *index);
    let (indices, texts) = tasks.into_iter().unzip();
    Ok(Tasks {
        file: TASKS,
        indices,
        texts,
    })
}

/// One row of the list, in the order of the table.
struct Row {
    file: usize,
    row: usize,
    index: usize,
    tasks: Vec<String>,
    length: usize,
    from: usize,
    to: usize,
    place: Place,
    /// For each camera.
    clips: Vec<Clip>,
}

pub(super) fn episodes(root: &Path, cameras: &[&str]) -> Result<Listed, DataError> {
    let files = files(&root.join(EPISODES))?;
    let mut rows = Vec::new();
    for (file, path) in files.iter().enumerate() {
        let list = List {
            columns: ColumnFile {
                path,
                role: EPISODES_ROLE,
            },
            cameras,
            file,
        };
        list.columns.guarded(|| list.append_to(&mut rows))?;
    }
    rows.sort_by_key(|row| row.index);
    let mut listed = Listed {
        clips: vec![Vec::new(); cameras.len()],
        ..Default::default()
    };
    for row in rows {
        let (file, number) = (row.file, row.row);
        append(&mut listed, row).map_err(|reason| DataError::EpisodeRow {
            path: files[file].clone(),
            row: number,
            reason,
        })?;
    }
    Ok(listed)
}

/// Adds the next episode, if it goes on where the others end; the error is the reason, as a clause.
fn append(listed: &mut Listed, row: Row) -> Result<(), String> {
    let (index, start) = (
        listed.episodes.len(),
        listed.episodes.last().map_or(0, |e| e.start + e.length),
    );
    if row.index != index {
        return Err(format!(
            "it describes episode {} where episode {index} should be, because episodes are numbered from 0 without gaps",
            row.index
        ));
    }
    if row.from != start {
        return Err(format!(
            "its `dataset_from_index` is {}, but the episodes before it end at {start}",
            row.from
        ));
    }
    if row.from.checked_add(row.length) != Some(row.to) {
        return Err(format!(
            "it has frames {} to {}, but its `length` is {}",
            row.from, row.to, row.length
        ));
    }
    let first_row = match listed.tables.last() {
        Some(last) if last.place == row.place => last.first_row + listed.episodes[index - 1].length,
        Some(last) if last.place > row.place => {
            return Err(format!(
                "its table is file {} of chunk {}, but the episode before it lies in file {} of chunk {}",
                row.place.file, row.place.chunk, last.place.file, last.place.chunk
            ));
        }
        _ => 0,
    };
    listed.tables.push(Table {
        place: row.place,
        first_row,
    });
    for (clips, clip) in listed.clips.iter_mut().zip(row.clips) {
        clips.push(clip);
    }
    listed.episodes.push(Episode {
        index,
        start,
        length: row.length,
        tasks: row.tasks,
        success: None,
    });
    Ok(())
}

/// A file of the list.
struct List<'a> {
    columns: ColumnFile<'a>,
    cameras: &'a [&'a str],
    file: usize,
}

impl List<'_> {
    fn append_to(&self, rows: &mut Vec<Row>) -> Result<(), DataError> {
        let own = [
            "episode_index",
            "tasks",
            "length",
            "dataset_from_index",
            "dataset_to_index",
            "data/chunk_index",
            "data/file_index",
        ];
        let of_camera = |camera: &&str| FILM.map(|name| format!("videos/{camera}/{name}"));
        let filmed: Vec<String> = self.cameras.iter().flat_map(of_camera).collect();
        let keys = own.into_iter().chain(filmed.iter().map(String::as_str));
        self.columns.read(self.columns.open()?, keys, |batch, first_row| {
            let [index, length, from, to, chunk, file] = [
                "episode_index",
                "length",
                "dataset_from_index",
                "dataset_to_index",
                "data/chunk_index",
                "data/file_index",
            ]
            .map(|key| self.counts(batch, key, first_row));
            let (index, length, from, to) = (index?, length?, from?, to?);
            let (chunk, file, tasks) = (chunk?, file?, self.columns.text_lists(batch, "tasks")?);
            let films = self.cameras.iter().map(|camera| self.clips(batch, camera, first_row));
            let films = films.collect::<Result<Vec<_>, _>>()?;
            for (i, tasks) in tasks.into_iter().enumerate() {
                rows.push(Row {
                    file: self.file,
                    row: first_row + i,
                    index: index[i],
                    tasks,
                    length: length[i],
                    from: from[i],
                    to: to[i],
                    place: Place {
                        chunk: chunk[i],
                        file: file[i],
                    },
                    clips: films.iter().map(|clips| clips[i]).collect(),
                });
            }
            Ok(())
        })
    }

    fn clips(&self, batch: &RecordBatch, camera: &str, first_row: usize) -> Result<Vec<Clip>, DataError> {
        let [chunk, file, from] = FILM.map(|name| format!("videos/{camera}/{name}"));
        let (chunks, files) = (
            self.counts(batch, &chunk, first_row)?,
            self.counts(batch, &file, first_row)?,
        );
        let times = self.columns.doubles(batch, &from, first_row)?;
        if let Some(i) = times.iter().position(|t| !(t.is_finite() && *t >= 0.0)) {
            return Err(self.row(first_row + i, format!("`{from}` is {}", times[i])));
        }
        let places = chunks.into_iter().zip(files).map(|(chunk, file)| Place { chunk, file });
        Ok(places.zip(times).map(|(place, from)| Clip { place, from }).collect())
    }

    /// A column of numbers that count something.
    fn counts(&self, batch: &RecordBatch, key: &str, first_row: usize) -> Result<Vec<usize>, DataError> {
        let numbers = self.columns.integers(batch, key, first_row)?.into_iter().enumerate();
        let count = |(i, n)| {
            let negative = |_| self.row(first_row + i, format!("`{key}` is {n}"));
            usize::try_from(n).map_err(negative)
        };
        numbers.map(count).collect()
    }

    fn row(&self, row: usize, reason: String) -> DataError {
        DataError::EpisodeRow {
            path: self.columns.path.to_owned(),
            row,
            reason,
        }
    }
}

/// What is said of an episode's part of a video.
const FILM: [&str; 3] = ["chunk_index", "file_index", "from_timestamp"];

/// All parquet files one folder down, in order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let entries = |folder: &Path| -> Result<Vec<PathBuf>, DataError> {
        let paths = fs::read_dir(folder).and_then(|entries| entries.map(|e| Ok(e?.path())).collect());
        let mut paths: Vec<PathBuf> = paths.map_err(|source: io::Error| DataError::Read {
            path: folder.to_owned(),
            role: EPISODES_ROLE,
            source,
        })?;
        paths.sort();
        Ok(paths)
    };
    let mut files = Vec::new();
    for chunk in entries(folder)?.iter().filter(|path| path.is_dir()) {
        files.extend(entries(chunk)?);
    }
    files.retain(|path| path.extension().is_some_and(|e| e == "parquet"));
    Ok(files)
}
