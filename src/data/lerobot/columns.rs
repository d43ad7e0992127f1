//! Columns of a parquet file as Rust values, with errors that name file, column and row.

use std::fs::File;
use std::path::Path;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::super::dataset::quoted;
use crate::data::DataError;
use crate::data::panics::caught;

/// A file of columns. Rows in messages count over the whole file.
#[derive(Clone, Copy, Debug)]
pub(super) struct ColumnFile<'a> {
    pub path: &'a Path,
    /// What it is, for messages.
    pub role: &'static str,
}

/// A file with its footer read.
pub(super) type Opened = ParquetRecordBatchReaderBuilder<File>;

impl ColumnFile<'_> {
    /// What `f` returns; a parser that panics has found a broken file.
    pub(super) fn guarded<T>(&self, f: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
        caught(f).unwrap_or_else(|panic| Err(self.parquet(format!("the parser gave up, {panic}"))))
    }

    pub(super) fn open(&self) -> Result<Opened, DataError> {
        let file = File::open(self.path).map_err(|source| DataError::Read {
            path: self.path.to_owned(),
            role: self.role,
            source,
        })?;
        ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| self.parquet(e))
    }

    /// Calls `f` with each batch of the columns `keys` and the row it begins with.
    pub(super) fn read<'k>(
        &self,
        file: Opened,
        keys: impl Iterator<Item = &'k str>,
        mut f: impl FnMut(&RecordBatch, usize) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let position = |key: &str| {
            let found = file.schema().index_of(key);
            found.map_err(|_| self.missing(file.schema(), key))
        };
        let roots = keys.map(position).collect::<Result<Vec<_>, _>>()?;
        let mask = ProjectionMask::roots(file.parquet_schema(), roots);
        let reader = file.with_projection(mask).build().map_err(|e| self.parquet(e))?;
        let mut row = 0;
        for batch in reader {
            let batch = batch.map_err(|e| self.parquet(e))?;
            f(&batch, row)?;
            row += batch.num_rows();
        }
        Ok(())
    }

    pub(super) fn column<'b>(&self, batch: &'b RecordBatch, key: &str) -> Result<&'b ArrayRef, DataError> {
        let column = batch.column_by_name(key);
        column.ok_or_else(|| self.missing(&batch.schema(), key))
    }

    /// An int64 column.
    pub(super) fn integers(&self, batch: &RecordBatch, key: &str, first_row: usize) -> Result<Vec<i64>, DataError> {
        let array = self.column(batch, key)?;
        self.no_null(array, key, first_row, 1)?;
        let array = array
            .as_primitive_opt::<Int64Type>()
            .ok_or_else(|| self.wrong_type(array, key, "int64"))?;
        Ok(array.values().to_vec())
    }

    /// A float64 column.
    pub(super) fn doubles(&self, batch: &RecordBatch, key: &str, first_row: usize) -> Result<Vec<f64>, DataError> {
        let array = self.column(batch, key)?;
        self.no_null(array, key, first_row, 1)?;
        let array = array
            .as_primitive_opt::<Float64Type>()
            .ok_or_else(|| self.wrong_type(array, key, "float64"))?;
        Ok(array.values().to_vec())
    }

    /// A column of texts.
    pub(super) fn texts(&self, batch: &RecordBatch, key: &str, first_row: usize) -> Result<Vec<String>, DataError> {
        let array = self.column(batch, key)?;
        self.no_null(array, key, first_row, 1)?;
        texts(array).ok_or_else(|| self.wrong_type(array, key, "text"))
    }

    /// A column of lists of texts.
    pub(super) fn text_lists(&self, batch: &RecordBatch, key: &str) -> Result<Vec<Vec<String>>, DataError> {
        let array = self.column(batch, key)?;
        let wrong = || self.wrong_type(array, key, "a list of texts");
        let lists = array.as_list_opt::<i32>().ok_or_else(wrong)?;
        let rows = (0..lists.len()).map(|i| texts(&lists.value(i)).ok_or_else(wrong));
        rows.collect()
    }

    /// Appends `[rows, width]` numbers of a scalar, list or fixed-size-list column.
    pub(super) fn append_vectors(
        &self,
        batch: &RecordBatch,
        (key, width): (&str, usize),
        first_row: usize,
        out: &mut Vec<f32>,
    ) -> Result<(), DataError> {
        let array = self.column(batch, key)?;
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

    pub(super) fn missing(&self, schema: &Schema, key: &str) -> DataError {
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

fn texts(array: &ArrayRef) -> Option<Vec<String>> {
    let owned = |text: Option<&str>| text.unwrap_or_default().to_owned();
    if let Some(array) = array.as_string_opt::<i32>() {
        return Some(array.iter().map(owned).collect());
    }
    array.as_string_opt::<i64>().map(|a| a.iter().map(owned).collect())
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
