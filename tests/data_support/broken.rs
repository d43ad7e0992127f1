//! Copies of the datasets of `tests/data`, each broken in one way, and what the reader says to that.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use acrlpd::data::{DataError, open};
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use super::synthetic::{Table, set};

pub const LIST: &str = "meta/episodes/chunk-000/file-000.parquet";
pub const INFO: &str = "meta/info.json";

/// A copy of a dataset to break.
pub fn copied(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    super::copy(&super::data(name), dir.path());
    dir
}

/// The whole of a table with few rows.
pub fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mut batches = reader.with_batch_size(1000).build().unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert!(batches.next().is_none());
    batch
}

pub fn write(path: &Path, batches: &[RecordBatch]) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batches[0].schema(), None).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
}

/// Rewrites a table.
pub fn edit(path: &Path, change: impl Fn(&mut Table)) {
    let batch = read(path);
    let schema = batch.schema();
    let names = schema.fields().iter().map(|field| field.name().clone());
    let mut table: Table = names.zip(batch.columns().iter().cloned()).collect();
    change(&mut table);
    let table = table.into_iter().map(|(k, a)| (k, a, true));
    write(path, &[RecordBatch::try_from_iter_with_nullable(table).unwrap()]);
}

pub fn replace(root: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(root.join(file)).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(root.join(file), text.replacen(from, to, 1)).unwrap();
}

/// Opens the dataset and decodes every picture, in one go for each camera.
pub fn exercise(root: &Path) -> Result<(), DataError> {
    let dataset = open(root)?;
    let frames: Vec<usize> = (0..dataset.info().total_frames).collect();
    let mut cameras = dataset.info().cameras();
    cameras.try_for_each(|camera| dataset.images(camera, &frames).map(|_| ()))
}

/// One sentence that names every part.
pub fn check(what: &str, root: &Path, parts: &[&str]) {
    let message = exercise(root).expect_err(what).to_string();
    for part in parts {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "{what}: more than one line: {message}");
    assert!(message.contains("; "), "{what}: no remedy: {message}");
}

pub type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);

pub fn check_all(name: &str, damages: &[Damage]) {
    for (what, damage, parts) in damages {
        let dir = copied(name);
        damage(dir.path());
        check(what, dir.path(), parts);
    }
}

pub fn integers(values: [i64; 6]) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// Replaces a column of the list of episodes.
pub fn column(root: &Path, key: &str, values: [i64; 6]) {
    edit(&root.join(LIST), |table| set(table, key, integers(values)));
}
