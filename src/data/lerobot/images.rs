//! Encoded pictures out of the episode files.
//!
//! The image column of a real episode is hundreds of megabytes and training draws frames at random, so nothing decoded
//! is worth keeping: a read asks parquet for the rows it needs and pages without one of them are stepped over by their
//! headers. Where the writer put a whole row group into one dictionary, a read would cost that row group however little
//! is asked: such tables are [`Unpacked`] once. What is kept besides is each file's footer, which says where the pages
//! are, for the most recently used files.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, StructArray};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ParquetRecordBatchReaderBuilder, RowSelection};

use super::super::dataset::quoted;
use super::recent::Recent;
use super::unpacked::{Unpacked, is_packed};
use crate::data::DataError;
use crate::data::panics::caught;

/// Footers kept. One of a file with 20 columns and 10 row groups is some 100 KB.
const FOOTERS: usize = 256;

/// Reads pictures, from any thread.
#[derive(Debug)]
pub(super) struct ImageFiles {
    footers: Mutex<Recent<PathBuf, Arc<ArrowReaderMetadata>>>,
    unpacked: Unpacked,
}

impl Default for ImageFiles {
    fn default() -> Self {
        ImageFiles {
            footers: Mutex::new(Recent::new(FOOTERS)),
            unpacked: Unpacked::default(),
        }
    }
}

impl ImageFiles {
    /// The encoded pictures of `camera` in `rows` (ascending, distinct) of the file at `path`, in that order.
    pub(super) fn encoded(
        &self,
        root: &Path,
        path: &Path,
        camera: &str,
        rows: &[usize],
    ) -> Result<Vec<Vec<u8>>, DataError> {
        let at = Place { root, path, camera };
        let pictures = caught(|| self.read(&at, rows));
        pictures.unwrap_or_else(|panic| Err(at.parquet(format!("the parser gave up, {panic}"))))
    }

    fn read(&self, at: &Place, rows: &[usize]) -> Result<Vec<Vec<u8>>, DataError> {
        // A file handle of its own: clones of one handle share their position, which two threads would fight over.
        let file = File::open(at.path).map_err(|source| DataError::Read {
            path: at.path.to_owned(),
            role: "the images of an episode",
            source,
        })?;
        let footer = self.footer(&file, at)?;
        let column = footer
            .schema()
            .index_of(at.camera)
            .map_err(|_| DataError::MissingColumn {
                path: at.path.to_owned(),
                column: at.camera.to_owned(),
                available: quoted(footer.schema().fields().iter().map(|f| f.name().as_str())),
            })?;
        if is_packed(&footer, column) {
            let unpack = |keep: &mut dyn FnMut(Option<&[u8]>) -> io::Result<()>| {
                let file = file.try_clone()?;
                let each = |values: &StructArray, i: usize| {
                    let picture = at.picture(values, i, 0).ok();
                    keep(picture.as_deref()).map_err(|e| at.parquet(e))
                };
                scan(at, file, &footer, column, None, each).map_err(io::Error::other)
            };
            if let Some(pictures) = self.unpacked.pictures(at.path, at.camera, rows, unpack) {
                return Ok(pictures);
            }
        }
        let mut pictures = Vec::with_capacity(rows.len());
        let chosen = Some(select(&footer, rows));
        scan(at, file, &footer, column, chosen, |values, i| {
            let row = rows.get(pictures.len()).copied().unwrap_or_default();
            pictures.push(at.picture(values, i, row)?);
            Ok(())
        })?;
        match rows.get(pictures.len()) {
            None => Ok(pictures),
            Some(row) => Err(at.bad(*row, "its row is missing")),
        }
    }

    fn footer(&self, file: &File, at: &Place) -> Result<Arc<ArrowReaderMetadata>, DataError> {
        let lock = || self.footers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(footer) = lock().get(|path| path == at.path) {
            return Ok(footer);
        }
        // Read without the lock; two threads that need the same footer may both read it.
        let footer = Arc::new(ArrowReaderMetadata::load(file, Default::default()).map_err(|e| at.parquet(e))?);
        lock().insert(at.path.to_owned(), footer.clone());
        Ok(footer)
    }
}

/// Calls `each` with the values of a column in the chosen rows (all of them without a choice), and the place in them.
fn scan(
    at: &Place,
    file: File,
    footer: &ArrowReaderMetadata,
    column: usize,
    chosen: Option<(Vec<usize>, RowSelection)>,
    mut each: impl FnMut(&StructArray, usize) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let mut builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file, footer.clone())
        .with_projection(ProjectionMask::roots(footer.parquet_schema(), [column]));
    if let Some((groups, selection)) = chosen {
        builder = builder.with_row_groups(groups).with_row_selection(selection);
    }
    for batch in builder.build().map_err(|e| at.parquet(e))? {
        let batch = batch.map_err(|e| at.parquet(e))?;
        let array = batch.column(0);
        let values = array.as_struct_opt().ok_or_else(|| at.wrong_type(array))?;
        (0..values.len()).try_for_each(|i| each(values, i))?;
    }
    Ok(())
}

/// The row groups that hold `rows`, and where the rows lie in those groups laid end to end.
fn select(footer: &ArrowReaderMetadata, rows: &[usize]) -> (Vec<usize>, RowSelection) {
    let (mut groups, mut ranges) = (Vec::new(), Vec::new());
    let (mut first, mut chosen) = (0, 0);
    for (group, meta) in footer.metadata().row_groups().iter().enumerate() {
        let end = first + usize::try_from(meta.num_rows()).unwrap_or(0);
        let inside = rows.iter().filter(|row| (first..end).contains(*row));
        let before = ranges.len();
        ranges.extend(inside.map(|row| chosen + row - first..chosen + row - first + 1));
        if ranges.len() > before {
            groups.push(group);
            chosen += end - first;
        }
        first = end;
    }
    (
        groups,
        RowSelection::from_consecutive_ranges(ranges.into_iter(), chosen),
    )
}

/// What is being read, for messages.
struct Place<'a> {
    root: &'a Path,
    path: &'a Path,
    camera: &'a str,
}

impl Place<'_> {
    /// The bytes of a LeRobot image value: in the column itself, or in a file it names.
    fn picture(&self, values: &StructArray, i: usize, row: usize) -> Result<Vec<u8>, DataError> {
        let field = |name: &str| {
            let array = values.column_by_name(name);
            array.filter(|a| values.is_valid(i) && a.is_valid(i))
        };
        if let Some(bytes) = field("bytes") {
            return binary(bytes, i)
                .map(<[u8]>::to_vec)
                .ok_or_else(|| self.wrong_type(bytes));
        }
        let Some(path) = field("path") else {
            return Err(self.bad(row, "it has neither `bytes` nor a `path`"));
        };
        let path = Path::new(text(path, i).ok_or_else(|| self.wrong_type(path))?);
        if !path
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
        {
            return Err(self.bad(row, &format!("its path `{}` leads out of the dataset", path.display())));
        }
        let path = self.root.join(path);
        fs::read(&path).map_err(|source| DataError::Read {
            path,
            role: "an image file named in a table",
            source,
        })
    }

    fn bad(&self, row: usize, reason: &str) -> DataError {
        DataError::Image {
            path: self.path.to_owned(),
            row,
            camera: self.camera.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn wrong_type(&self, array: &ArrayRef) -> DataError {
        DataError::ColumnType {
            path: self.path.to_owned(),
            column: self.camera.to_owned(),
            found: array.data_type().to_string(),
            expected: "an image (a struct of `bytes` and `path`)".to_owned(),
        }
    }

    fn parquet(&self, error: impl ToString) -> DataError {
        DataError::Parquet {
            path: self.path.to_owned(),
            reason: error.to_string(),
        }
    }
}

fn binary(array: &ArrayRef, i: usize) -> Option<&[u8]> {
    let small = array.as_binary_opt::<i32>().map(|a| a.value(i));
    small.or_else(|| array.as_binary_opt::<i64>().map(|a| a.value(i)))
}

fn text(array: &ArrayRef, i: usize) -> Option<&str> {
    let small = array.as_string_opt::<i32>().map(|a| a.value(i));
    small.or_else(|| array.as_string_opt::<i64>().map(|a| a.value(i)))
}
