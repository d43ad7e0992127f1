//! Pictures that a table holds in one piece, unpacked once into a temporary file.
//!
//! Writers like lerobot's put all pictures of a row group into one dictionary, so that any of them costs all of them:
//! a hundred megabytes for half of one. The temporary file has no name and goes with the dataset; it is as large as the
//! pictures that were looked at.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parquet::arrow::arrow_reader::ArrowReaderMetadata;

/// A dictionary of this many bytes is more than a picture or two.
const LARGE: i64 = 4 << 20;

/// The pictures of all tables that were unpacked.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    /// Made when it is needed; `None` inside: it cannot be, and everything is read where it is.
    store: Mutex<Option<Option<File>>>,
    tables: Mutex<HashMap<(PathBuf, String), Arc<Table>>>,
    /// One table at a time, which bounds memory: it is decompressed as a whole.
    turn: Mutex<()>,
}

/// Where each row's picture lies in the store; `None` where the table has none.
type Places = Vec<Option<Range<u64>>>;

/// A table, and what became of it. The lock is held while it is unpacked, so that others wait for the result.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Packed,
    Open(Arc<Places>),
    /// It could not be unpacked; its rows are read where they are.
    Left,
}

/// Whether the leaf columns of `column` hold a large dictionary.
pub(super) fn is_packed(footer: &ArrowReaderMetadata, column: usize) -> bool {
    let schema = footer.parquet_schema();
    footer.metadata().row_groups().iter().any(|group| {
        group.columns().iter().enumerate().any(|(leaf, chunk)| {
            let dictionary = chunk
                .dictionary_page_offset()
                .map_or(0, |at| chunk.data_page_offset().saturating_sub(at));
            schema.get_column_root_idx(leaf) == column && dictionary > LARGE
        })
    })
}

impl Unpacked {
    /// The pictures of `rows`, or nothing if one of them has to be read from the table. `unpack` calls its argument
    /// with the picture of every row, in order, or with nothing.
    pub(super) fn pictures(
        &self,
        table: &Path,
        camera: &str,
        rows: &[usize],
        unpack: impl FnOnce(&mut dyn FnMut(Option<&[u8]>) -> io::Result<()>) -> io::Result<()>,
    ) -> Option<Vec<Vec<u8>>> {
        let table = lock(&self.tables)
            .entry((table.to_owned(), camera.to_owned()))
            .or_default()
            .clone();
        let places = self.places(&table, unpack)?;
        let read = |row: &usize| self.read(places.get(*row)?.as_ref()?).ok();
        rows.iter().map(read).collect()
    }

    fn places(
        &self,
        table: &Table,
        unpack: impl FnOnce(&mut dyn FnMut(Option<&[u8]>) -> io::Result<()>) -> io::Result<()>,
    ) -> Option<Arc<Places>> {
        let mut state = lock(&table.0);
        if let State::Packed = *state {
            let _turn = lock(&self.turn);
            let mut places = Places::new();
            let mut keep = |picture: Option<&[u8]>| {
                places.push(picture.map(|bytes| self.append(bytes)).transpose()?);
                Ok(())
            };
            *state = match unpack(&mut keep) {
                Ok(()) => State::Open(Arc::new(places)),
                Err(error) => {
                    tracing::warn!("a table's pictures cannot be unpacked, so reading them is slow: {error}");
                    State::Left
                }
            };
        }
        match &*state {
            State::Open(places) => Some(places.clone()),
            _ => None,
        }
    }

    fn append(&self, bytes: &[u8]) -> io::Result<Range<u64>> {
        let mut store = lock(&self.store);
        let made = store.get_or_insert_with(|| tempfile::tempfile().ok());
        let file = made.as_mut().ok_or_else(|| {
            let folder = std::env::temp_dir();
            io::Error::other(format!("{} takes no temporary file; set TMPDIR", folder.display()))
        })?;
        let start = file.seek(SeekFrom::End(0))?;
        file.write_all(bytes)?;
        Ok(start..start + bytes.len() as u64)
    }

    fn read(&self, place: &Range<u64>) -> io::Result<Vec<u8>> {
        let mut store = lock(&self.store);
        let file = store.as_mut().and_then(Option::as_mut).ok_or(io::ErrorKind::NotFound)?;
        file.seek(SeekFrom::Start(place.start))?;
        let mut bytes = vec![0; (place.end - place.start) as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// What the locks guard is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
