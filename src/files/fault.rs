//! Disks that fail on demand.
//!
//! A [`Watch`] sees every [`Op`] before it happens and may fail it. Tests of the library bring their own, with
//! [`watch`]; tests of the program describe one in the variable [`VARIABLE`], see [`Script`]. Without either, an
//! operation costs one load.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Holds a [`Script`] for the program.
pub const VARIABLE: &str = "ACRLPD_DISK_FAULT";

/// Something that is about to change the disk.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// A file is created or emptied.
    Create(&'a Path),
    /// Bytes are appended.
    Write {
        path: &'a Path,
        file: &'a File,
        data: &'a [u8],
    },
    /// The content of a file becomes durable.
    Sync(&'a Path),
    /// A file is cut to what it was before.
    Truncate(&'a Path),
    CreateFolder(&'a Path),
    Rename {
        from: &'a Path,
        to: &'a Path,
    },
    RemoveFolder(&'a Path),
    /// The names in a folder become durable.
    SyncFolder(&'a Path),
    Lock(&'a Path),
}

impl Op<'_> {
    /// What it is done to; of a rename the new name.
    pub fn path(&self) -> &Path {
        match self {
            Op::Write { path, .. } | Op::Rename { to: path, .. } => path,
            Op::Create(path) | Op::Sync(path) | Op::Truncate(path) | Op::CreateFolder(path) => path,
            Op::RemoveFolder(path) | Op::SyncFolder(path) | Op::Lock(path) => path,
        }
    }

    /// Does the first half of a write, as a disk does that fills up.
    ///
    /// # Errors
    /// A disk that fails by itself.
    pub fn half(&self) -> io::Result<()> {
        if let Op::Write { file, data, .. } = self {
            let mut file: &File = file;
            file.write_all(&data[..data.len() / 2])?;
        }
        Ok(())
    }
}

/// Sees operations before they happen.
pub trait Watch: Send + Sync {
    /// An error is what the operation fails with, undone.
    ///
    /// # Errors
    /// As the test likes.
    fn before(&self, op: &Op<'_>) -> io::Result<()>;
}

static WATCH: OnceLock<Box<dyn Watch>> = OnceLock::new();

/// Lets `watch` see all operations of this program from now on. Only the first call has an effect.
pub fn watch(watch: impl Watch + 'static) {
    let _ = WATCH.set(Box::new(watch));
}

pub(super) fn before(op: &Op<'_>) -> io::Result<()> {
    WATCH.get().map_or(Ok(()), |watch| watch.before(op))
}

/// `KIND@FROM..TO` or `KIND@FROM..TO@TEXT`: operations number FROM to TO (exclusive, counted from 0) of those whose
/// path contains TEXT fail. KIND is `full` (half of a write gets through, then there is no space), `error` (the device
/// fails), `abort` (half of a write gets through, then the program ends as if killed) or `slow:MS` (they take as many
/// milliseconds longer).
#[derive(Debug)]
pub struct Script {
    kind: Kind,
    which: Range<u64>,
    text: String,
    seen: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Full,
    Error,
    Abort,
    Slow(Duration),
}

impl FromStr for Script {
    type Err = String;

    fn from_str(script: &str) -> Result<Script, String> {
        let wrong = || format!("{VARIABLE}={script} is not KIND@FROM..TO or KIND@FROM..TO@TEXT");
        let mut parts = script.splitn(3, '@');
        let (kind, range) = (parts.next().unwrap_or_default(), parts.next().ok_or_else(wrong)?);
        let (from, to) = range.split_once("..").ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let kind = match kind.split_once(':') {
            Some(("slow", ms)) => Kind::Slow(Duration::from_millis(number(ms)?)),
            None if kind == "full" => Kind::Full,
            None if kind == "error" => Kind::Error,
            None if kind == "abort" => Kind::Abort,
            _ => return Err(wrong()),
        };
        Ok(Script {
            kind,
            which: number(from)?..number(to)?,
            text: parts.next().unwrap_or_default().to_owned(),
            seen: AtomicU64::new(0),
        })
    }
}

impl Watch for Script {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        if !op.path().to_string_lossy().contains(&self.text)
            || !self.which.contains(&self.seen.fetch_add(1, Ordering::Relaxed))
        {
            return Ok(());
        }
        match self.kind {
            Kind::Full => op.half().and(Err(io::ErrorKind::StorageFull.into())),
            Kind::Error => Err(io::Error::other("input/output error")),
            Kind::Abort => {
                let _ = op.half();
                std::process::abort()
            }
            Kind::Slow(pause) => {
                std::thread::sleep(pause);
                Ok(())
            }
        }
    }
}
