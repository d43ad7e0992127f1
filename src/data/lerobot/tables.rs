//! The numeric columns of all tables, read once when the dataset is opened.

use std::num::NonZero;
use std::path::Path;
use std::thread;

use arrow_array::RecordBatch;

use super::super::dataset::{Column, DatasetInfo, Episode, FeatureKind};
use super::columns::ColumnFile;
use super::layout::Layout;
use super::meta::Tasks;
use crate::data::DataError;

/// LeRobot's own columns: checked against the metadata, which already says the same, and then dropped.
const INDEX: &str = "index";
const EPISODE_INDEX: &str = "episode_index";
const FRAME_INDEX: &str = "frame_index";
const TASK_INDEX: &str = "task_index";
const BOOKKEEPING: [&str; 4] = [INDEX, EPISODE_INDEX, FRAME_INDEX, TASK_INDEX];

/// All episodes laid end to end.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub columns: Vec<Column>,
    /// For each frame, the position of its `task_index` in the sorted list of them.
    pub frame_tasks: Vec<u32>,
}

/// Reads every table, a share of them on each core.
pub(super) fn read_all(
    info: &DatasetInfo,
    episodes: &[Episode],
    tasks: &Tasks,
    layout: &Layout,
) -> Result<Tables, DataError> {
    let empty = || Tables {
        columns: info
            .features
            .iter()
            .filter_map(|f| match f.kind {
                FeatureKind::Vector { width } if !BOOKKEEPING.contains(&f.key.as_str()) => Some(Column {
                    key: f.key.clone(),
                    width,
                    values: Vec::new(),
                }),
                _ => None,
            })
            .collect(),
        frame_tasks: Vec::new(),
    };
    let files = layout.by_table(episodes);
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = files.len().div_ceil(threads);
    let read_share = |files: &[&[Episode]]| {
        let mut tables = empty();
        for episodes in files {
            let (path, _) = layout.table(episodes[0].index);
            let file = TableFile::new(&path, episodes, tasks);
            file.columns.guarded(|| file.append_to(&mut tables))?;
        }
        Ok(tables)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = files
            .chunks(share)
            .map(|files| scope.spawn(move || read_share(files)))
            .collect();
        let mut all = empty();
        for worker in workers {
            let part = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for (into, from) in all.columns.iter_mut().zip(part.columns) {
                into.values.extend(from.values);
            }
            all.frame_tasks.extend(part.frame_tasks);
        }
        Ok(all)
    })
}

/// A parquet file with the frames of some episodes, one after the other.
struct TableFile<'a> {
    columns: ColumnFile<'a>,
    episodes: &'a [Episode],
    tasks: &'a Tasks,
}

impl<'a> TableFile<'a> {
    fn new(path: &'a Path, episodes: &'a [Episode], tasks: &'a Tasks) -> Self {
        let role = "the table of an episode";
        TableFile {
            columns: ColumnFile { path, role },
            episodes,
            tasks,
        }
    }

    fn append_to(&self, tables: &mut Tables) -> Result<(), DataError> {
        let file = self.columns.open()?;
        let found = usize::try_from(file.metadata().file_metadata().num_rows()).unwrap_or(0);
        let announced = self.episodes.iter().fold(0usize, |n, e| n.saturating_add(e.length));
        if found != announced {
            return Err(DataError::TableLength {
                path: self.columns.path.to_owned(),
                found,
                episodes: match self.episodes.len() {
                    1 => "episode is".to_owned(),
                    n => format!("{n} episodes are"),
                },
                announced,
            });
        }
        let keys: Vec<String> = tables.columns.iter().map(|c| c.key.clone()).collect();
        let keys = BOOKKEEPING.into_iter().chain(keys.iter().map(String::as_str));
        self.columns.read(file, keys, |batch, row| {
            self.check_order(batch, row)?;
            self.append_tasks(batch, row, &mut tables.frame_tasks)?;
            for Column { key, width, values } in &mut tables.columns {
                self.columns.append_vectors(batch, (key, *width), row, values)?;
            }
            Ok(())
        })
    }

    /// Frames and episodes are numbered as the metadata say.
    fn check_order(&self, batch: &RecordBatch, first_row: usize) -> Result<(), DataError> {
        for key in [INDEX, FRAME_INDEX, EPISODE_INDEX] {
            for (i, found) in self.columns.integers(batch, key, first_row)?.into_iter().enumerate() {
                let row = first_row + i;
                let frame = self.episodes[0].start + row;
                let after = self.episodes.partition_point(|e| e.start <= frame);
                let episode = &self.episodes[after - 1];
                let expected = match key {
                    INDEX => frame,
                    FRAME_INDEX => frame - episode.start,
                    _ => episode.index,
                } as i64;
                if found != expected {
                    return Err(DataError::IndexGap {
                        path: self.columns.path.to_owned(),
                        column: key,
                        row,
                        found,
                        expected,
                    });
                }
            }
        }
        Ok(())
    }

    fn append_tasks(&self, batch: &RecordBatch, row: usize, out: &mut Vec<u32>) -> Result<(), DataError> {
        for (i, task) in self.columns.integers(batch, TASK_INDEX, row)?.into_iter().enumerate() {
            let position = self.tasks.indices.binary_search(&task);
            let position = position.map_err(|_| DataError::UnknownTask {
                path: self.columns.path.to_owned(),
                row: row + i,
                task,
                tasks: self.tasks.file,
            })?;
            out.push(position as u32);
        }
        Ok(())
    }
}
