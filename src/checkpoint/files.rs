//! Every access of this room to the file system, one small function each.
//!
//! What is written is hashed on the way (xxh3, 64 bits) and reaches the disk before the function returns, so that the
//! order of calls is the order in which things become durable.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use xxhash_rust::xxh3::Xxh3;

use super::error::{CheckpointError, Result};

/// Size and hash of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    pub bytes: u64,
    pub xxh3: u64,
}

/// A new file that hashes what goes into it.
pub struct HashedFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: Xxh3,
}

impl HashedFile {
    /// Creates or truncates `path`.
    pub fn create(path: &Path) -> Result<HashedFile> {
        Ok(HashedFile {
            path: path.to_owned(),
            file: File::create(path).map_err(|e| write_error(path, e))?,
            bytes: 0,
            hash: Xxh3::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        self.file.write_all(data).map_err(|e| write_error(&self.path, e))?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Waits until everything is on the disk.
    pub fn finish(self) -> Result<Written> {
        self.file.sync_all().map_err(|e| write_error(&self.path, e))?;
        Ok(Written {
            bytes: self.bytes,
            xxh3: self.hash.digest(),
        })
    }
}

/// Writes a whole file.
pub fn write(path: &Path, data: &[u8]) -> Result<Written> {
    let mut file = HashedFile::create(path)?;
    file.write(data)?;
    file.finish()
}

/// Size and hash of a file that exists; with `sync`, after it has reached the disk.
pub fn hash(path: &Path, sync: bool) -> Result<Written> {
    let failed = |e| read_error(path, e);
    let mut file = File::open(path).map_err(failed)?;
    if sync {
        file.sync_all().map_err(|e| write_error(path, e))?;
    }
    let (mut hash, mut bytes) = (Xxh3::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
        };
        hash.update(&buffer[..n]);
        bytes += n as u64;
    }
    let xxh3 = hash.digest();
    Ok(Written { bytes, xxh3 })
}

/// Size of a file.
pub fn size(path: &Path) -> Result<u64> {
    let meta = fs::metadata(path).map_err(|e| read_error(path, e))?;
    Ok(meta.len())
}

/// A whole text.
pub fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| read_error(path, e))
}

/// A file as memory, paged in as it is read. The file must not shrink as long as this lives.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|e| read_error(path, e))?;
    // SAFETY: the mapping is read only, and bytes are copied out of it before anything is concluded from them, so a
    // writer could only make numbers wrong. Truncation by another process would end this one; nothing here truncates.
    unsafe { Mmap::map(&file) }.map_err(|e| read_error(path, e))
}

/// Creates a folder and those above it, and waits until their names are on the disk.
pub fn create_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    create_folder(above)?;
    match fs::create_dir(path) {
        // Someone else was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        created => created.map_err(|e| write_error(path, e))?,
    }
    sync_folder(above)
}

/// The names in a folder; none if there is no such folder.
pub fn list(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(_) if !path.is_dir() => return Ok(Vec::new()),
        entries => entries.map_err(|e| read_error(path, e))?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect::<io::Result<_>>().map_err(|e| read_error(path, e))
}

/// Renames a folder, atomically; `to` must not exist.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| write_error(to, e))
}

/// Removes a folder with everything in it.
pub fn remove_folder(path: &Path) -> Result<()> {
    fs::remove_dir_all(path).map_err(|e| write_error(path, e))
}

/// Waits until the names in a folder are on the disk.
pub fn sync_folder(path: &Path) -> Result<()> {
    // Only Unix opens folders as files; elsewhere the file system orders the rename itself.
    if cfg!(unix) {
        let folder = File::open(path).map_err(|e| read_error(path, e))?;
        folder.sync_all().map_err(|e| write_error(path, e))?;
    }
    Ok(())
}

fn read_error(path: &Path, source: io::Error) -> CheckpointError {
    let path = path.to_owned();
    CheckpointError::Read { path, source }
}

fn write_error(path: &Path, source: io::Error) -> CheckpointError {
    let path = path.to_owned();
    CheckpointError::Write { path, source }
}
