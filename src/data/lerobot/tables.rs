//! The numeric columns of all episode files, read once when the dataset is opened.

use std::fs::File;
use std::num::NonZero;
use std::path::Path;
use std::thread;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::super::dataset::{Column, DatasetInfo, Episode, FeatureKind, quoted};
use super::template::Template;
use crate::data::DataError;
use crate::data::panics::caught;

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

/// Reads every episode's file, a share of them on each core.
pub(super) fn read_all(
    root: &Path,
    info: &DatasetInfo,
    episodes: &[Episode],
    task_indices: &[i64],
    data_path: &Template,
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
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = episodes.len().div_ceil(threads);
    let read_share = |episodes: &[Episode]| {
        let mut tables = empty();
        for episode in episodes {
            let path = root.join(data_path.fill(episode.index));
            let file = EpisodeFile {
                path: &path,
                episode,
                task_indices,
            };
            caught(|| file.append_to(&mut tables))
                .unwrap_or_else(|panic| Err(file.parquet(format!("the parser gave up, {panic}"))))?;
        }
        Ok(tables)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = episodes
            .chunks(share)
            .map(|e| scope.spawn(move || read_share(e)))
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

/// One episode's parquet file.
struct EpisodeFile<'a> {
    path: &'a Path,
    episode: &'a Episode,
    task_indices: &'a [i64],
}

impl EpisodeFile<'_> {
    fn append_to(&self, tables: &mut Tables) -> Result<(), DataError> {
        let file = File::open(self.path).map_err(|source| DataError::Read {
            path: self.path.to_owned(),
            role: "the table of an episode",
            source,
        })?;
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| self.parquet(e))?;
        let found = usize::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
        if found != self.episode.length {
            let announced = self.episode.length;
            return Err(DataError::EpisodeLength {
                path: self.path.to_owned(),
                found,
                announced,
            });
        }
        let keys = BOOKKEEPING
            .into_iter()
            .chain(tables.columns.iter().map(|c| c.key.as_str()));
        let roots = keys
            .map(|key| self.root_of(builder.schema(), key))
            .collect::<Result<Vec<_>, _>>()?;
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let reader = builder.with_projection(mask).build().map_err(|e| self.parquet(e))?;
        let mut row = 0;
        for batch in reader {
            let batch = batch.map_err(|e| self.parquet(e))?;
            let column = |key: &str| {
                batch
                    .column_by_name(key)
                    .ok_or_else(|| self.missing(&batch.schema(), key))
            };
            for (key, first) in [
                (INDEX, self.episode.start + row),
                (FRAME_INDEX, row),
                (EPISODE_INDEX, self.episode.index),
            ] {
                let step = if key == EPISODE_INDEX { 0 } else { 1 };
                for (i, found) in self.integers(column(key)?, key, row)?.into_iter().enumerate() {
                    let expected = (first + i * step) as i64;
                    if found != expected {
                        let row = row + i;
                        return Err(DataError::IndexGap {
                            path: self.path.to_owned(),
                            column: key,
                            row,
                            found,
                            expected,
                        });
                    }
                }
            }
            for (i, task) in self
                .integers(column(TASK_INDEX)?, TASK_INDEX, row)?
                .into_iter()
                .enumerate()
            {
                let position = self
                    .task_indices
                    .binary_search(&task)
                    .map_err(|_| DataError::UnknownTask {
                        path: self.path.to_owned(),
                        row: row + i,
                        task,
                    })?;
                tables.frame_tasks.push(position as u32);
            }
            for Column { key, width, values } in &mut tables.columns {
                self.append_vectors(column(key)?, key, *width, row, values)?;
            }
            row += batch.num_rows();
        }
        Ok(())
    }

    /// Appends `[rows, width]` numbers of a scalar, list or fixed-size-list column that begins at row `first_row`.
    fn append_vectors(
        &self,
        array: &ArrayRef,
        key: &str,
        width: usize,
        first_row: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), DataError> {
        self.no_null(array, key, first_row, 1)?;
        let narrow = |row: usize, found: usize| DataError::ColumnWidth {
            path: self.path.to_owned(),
            column: key.to_owned(),
            row: first_row + row,
            found,
            expected: width,
        };
        let elements = if let Some(list) = array.as_fixed_size_list_opt() {
            let found = list.value_length() as usize;
            if found != width {
                return Err(narrow(0, found));
            }
            list.values().clone()
        } else if let Some(list) = array.as_list_opt::<i32>() {
            let lengths = list.offsets().lengths();
            if let Some((row, found)) = lengths.enumerate().find(|(_, found)| *found != width) {
                return Err(narrow(row, found));
            }
            let offsets = list.value_offsets();
            let (start, end) = (offsets[0] as usize, offsets[offsets.len() - 1] as usize);
            list.values().slice(start, end - start)
        } else if width == 1 {
            array.clone()
        } else {
            return Err(self.wrong_type(array, key, &format!("a list of {width} numbers")));
        };
        self.no_null(&elements, key, first_row, width)?;
        let numbers = numbers(&elements).ok_or_else(|| self.wrong_type(array, key, "numbers or booleans"))?;
        out.extend(numbers);
        Ok(())
    }

    fn integers(&self, array: &ArrayRef, key: &str, first_row: usize) -> Result<Vec<i64>, DataError> {
        self.no_null(array, key, first_row, 1)?;
        let array = array
            .as_primitive_opt::<Int64Type>()
            .ok_or_else(|| self.wrong_type(array, key, "int64"))?;
        Ok(array.values().to_vec())
    }

    fn no_null(&self, array: &ArrayRef, key: &str, first_row: usize, width: usize) -> Result<(), DataError> {
        match (0..array.len()).find(|i| array.is_null(*i)) {
            None => Ok(()),
            Some(i) => {
                let row = first_row + i / width;
                Err(DataError::Null {
                    path: self.path.to_owned(),
                    column: key.to_owned(),
                    row,
                })
            }
        }
    }

    fn root_of(&self, schema: &Schema, key: &str) -> Result<usize, DataError> {
        schema.index_of(key).map_err(|_| self.missing(schema, key))
    }

    fn missing(&self, schema: &Schema, key: &str) -> DataError {
        DataError::MissingColumn {
            path: self.path.to_owned(),
            column: key.to_owned(),
            available: quoted(schema.fields().iter().map(|f| f.name().as_str())),
        }
    }

    fn wrong_type(&self, array: &ArrayRef, key: &str, expected: &str) -> DataError {
        DataError::ColumnType {
            path: self.path.to_owned(),
            column: key.to_owned(),
            found: array.data_type().to_string(),
            expected: expected.to_owned(),
        }
    }

    fn parquet(&self, error: impl ToString) -> DataError {
        DataError::Parquet {
            path: self.path.to_owned(),
            reason: error.to_string(),
        }
    }
}

/// Any number type a dataset may hold, as f32: what the models compute in.
fn numbers(array: &ArrayRef) -> Option<Vec<f32>> {
    macro_rules! cast {
        ($type:ty) => {
            array
                .as_primitive::<$type>()
                .values()
                .iter()
                .map(|v| *v as f32)
                .collect()
        };
    }
    Some(match array.data_type() {
        DataType::Float32 => array.as_primitive::<Float32Type>().values().to_vec(),
        DataType::Float64 => cast!(Float64Type),
        DataType::Int8 => cast!(Int8Type),
        DataType::Int16 => cast!(Int16Type),
        DataType::Int32 => cast!(Int32Type),
        DataType::Int64 => cast!(Int64Type),
        DataType::UInt8 => cast!(UInt8Type),
        DataType::UInt16 => cast!(UInt16Type),
        DataType::UInt32 => cast!(UInt32Type),
        DataType::UInt64 => cast!(UInt64Type),
        DataType::Boolean => array
            .as_boolean()
            .values()
            .iter()
            .map(|v| f32::from(u8::from(v)))
            .collect(),
        _ => return None,
    })
}
