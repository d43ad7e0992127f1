//! What the program writes, one small function for each kind of access, and what it reads back.
//!
//! What is written is hashed on the way (xxh3, 64 bits) and reaches the disk before the function returns, so that the
//! order of calls is the order in which things become durable. Everything that changes the disk passes [`fault`] first,
//! where tests make it fail.

pub mod fault;

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use thiserror::Error;
use xxhash_rust::xxh3::Xxh3;

use fault::{Op, before};

/// A file that could not be read or written.
#[derive(Debug, Error)]
pub enum FileError {
    #[error("cannot read `{path}`: {source}; check the path and its permissions")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write `{path}`: {source}; check its permissions and the free space of the disk")]
    Write { path: PathBuf, source: io::Error },
}

/// Shorthand for results of this room.
pub type Result<T, E = FileError> = std::result::Result<T, E>;

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
        let file = before(&Op::Create(path)).and_then(|()| File::create(path));
        Ok(HashedFile {
            path: path.to_owned(),
            file: file.map_err(|e| write_error(path, e))?,
            bytes: 0,
            hash: Xxh3::new(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends.
    pub fn write(&mut self, data: &[u8]) -> Result<()> {
        append(&self.path, &self.file, data)?;
        self.hash.update(data);
        self.bytes += data.len() as u64;
        Ok(())
    }

    /// Waits until everything is on the disk.
    pub fn finish(self) -> Result<Written> {
        sync(&self.path, &self.file)?;
        Ok(Written {
            bytes: self.bytes,
            xxh3: self.hash.digest(),
        })
    }
}

/// A file of lines that grows. A line that cannot be written whole is taken back.
pub struct Lines {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Lines {
    /// Opens a file that exists.
    pub fn open(path: &Path) -> Result<Lines> {
        let file = OpenOptions::new().append(true).open(path);
        Ok(Lines {
            path: path.to_owned(),
            file: file.map_err(|e| write_error(path, e))?,
            bytes: size(path)?,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line, as one write.
    pub fn write(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        if let Err(error) = append(&self.path, &self.file, line.as_bytes()) {
            let back = before(&Op::Truncate(&self.path)).and_then(|()| self.file.set_len(self.bytes));
            back.map_err(|e| write_error(&self.path, e))?;
            return Err(error);
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Waits until all lines are on the disk.
    pub fn sync(&self) -> Result<()> {
        sync(&self.path, &self.file)
    }
}

fn append(path: &Path, mut file: &File, data: &[u8]) -> Result<()> {
    let done = before(&Op::Write { path, file, data }).and_then(|()| file.write_all(data));
    done.map_err(|e| write_error(path, e))
}

fn sync(path: &Path, file: &File) -> Result<()> {
    let done = before(&Op::Sync(path)).and_then(|()| file.sync_all());
    done.map_err(|e| write_error(path, e))
}

/// Writes a whole file.
pub fn write(path: &Path, data: &[u8]) -> Result<Written> {
    let mut file = HashedFile::create(path)?;
    file.write(data)?;
    file.finish()
}

/// Writes a whole file so that at any time the old or the new content is there.
pub fn replace(path: &Path, data: &[u8]) -> Result<()> {
    let mut fresh = path.to_owned().into_os_string();
    fresh.push(".tmp");
    write(Path::new(&fresh), data)?;
    rename(Path::new(&fresh), path)?;
    sync_folder(above(path))
}

/// Size and hash of a file that exists.
pub fn hash(path: &Path) -> Result<Written> {
    let failed = |e| read_error(path, e);
    let mut file = File::open(path).map_err(failed)?;
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

/// All bytes of a file.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| read_error(path, e))
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
    create_folder(above(path))?;
    match before(&Op::CreateFolder(path)).and_then(|()| fs::create_dir(path)) {
        // Someone else was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        created => created.map_err(|e| write_error(path, e))?,
    }
    sync_folder(above(path))
}

fn above(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    }
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

/// Renames a file over another one, or a folder to a name that is free, atomically.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    let done = before(&Op::Rename { from, to }).and_then(|()| fs::rename(from, to));
    done.map_err(|e| write_error(to, e))
}

/// Removes a folder with everything in it.
pub fn remove_folder(path: &Path) -> Result<()> {
    let done = before(&Op::RemoveFolder(path)).and_then(|()| fs::remove_dir_all(path));
    done.map_err(|e| write_error(path, e))
}

/// Waits until the names in a folder are on the disk.
pub fn sync_folder(path: &Path) -> Result<()> {
    // Only Unix opens folders as files; elsewhere the file system orders the rename itself.
    if cfg!(unix) {
        let done = before(&Op::SyncFolder(path)).and_then(|()| File::open(path)?.sync_all());
        done.map_err(|e| write_error(path, e))?;
    }
    Ok(())
}

/// What came of an attempt to lock a file.
pub enum Lock {
    /// Ours, until this is dropped or the program ends in whatever way.
    Ours(File),
    /// Someone else's, who has left this text in it.
    Theirs(String),
    /// The file system has no locks.
    Unsupported(io::Error),
}

/// Locks a file, which is made if need be, and leaves `text` in it.
pub fn lock(path: &Path, text: &str) -> Result<Lock> {
    let open = || OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = before(&Op::Lock(path)).and_then(|()| open());
    let mut file = file.map_err(|e| write_error(path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Lock::Theirs(fs::read_to_string(path).unwrap_or_default())),
        Err(TryLockError::Error(e)) => return Ok(Lock::Unsupported(e)),
    }
    let written = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
    written.map_err(|e| write_error(path, e))?;
    Ok(Lock::Ours(file))
}

fn read_error(path: &Path, source: io::Error) -> FileError {
    let path = path.to_owned();
    FileError::Read { path, source }
}

fn write_error(path: &Path, source: io::Error) -> FileError {
    let path = path.to_owned();
    FileError::Write { path, source }
}
