//! Compiled CUDA kernels on disk, so that a second start compiles nothing.
//!
//! cubecl can keep the PTX of kernels in a folder. But it knows them by type name and compile-time values, not by
//! source, so they outlive changes of the code; it hands to the driver whatever bytes lie there; and it shares the
//! folder with every other process. So it never sees what is kept, but a copy of its own:
//!
//! ```text
//! CACHE/kernels/lock                 held for moments: opening, publishing, removing
//! CACHE/kernels/KEY/used             written at every start, so that its time tells the last one
//! CACHE/kernels/KEY/entries          what is kept, with its length and hash (`store`)
//! CACHE/kernels/KEY/run-PID-N/       what one process's cubecl reads at its start and appends to
//! CACHE/kernels/KEY/run-PID-N/lock   held as long as that process lives
//! ```
//! KEY is a hash of everything that determines the code ([`Identity`]): the program itself, which has all sources
//! inside, the compiler, its headers, the device and its driver. Another program, compiler or device has another
//! folder; what is neither in use nor among the last [`KEEP`] used is removed. What a process has compiled is merged
//! into `entries` when it has been quiet for a moment, and at its end ([`keep_kernels`]).

mod identity;
mod place;
mod store;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::files::{self, FileError, HashedFile, Lock};

pub(super) use identity::Identity;
pub use place::without_kernel_cache;

/// Folders of kernels that are kept: programs that are developed leave one at every build.
const KEEP: usize = 4;
/// Free space that a run must find, far more than the kernels of a step need: cubecl's thread cannot go on where it
/// cannot write.
const ROOM: usize = if cfg!(test) { 1 << 16 } else { 64 << 20 };
/// Kept entries beyond this are dropped for the new ones; all of them are read at every start.
const MOST: usize = 256 << 20;
/// How long to wait for another process that opens, publishes or removes.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look for new kernels.
const LOOK: Duration = Duration::from_secs(5);

/// Where cubecl 0.10 has its entries below the folder it is given.
const CHUNK: &str = "cuda/0.10.0/ptx/chunk0.cbor";

const USED: &str = "used";

/// Caches of this process by device, with `None` where one could not be had. They live as long as it does, as cubecl's devices do.
static OPEN: Mutex<Vec<(usize, Option<Arc<KernelCache>>)>> = Mutex::new(Vec::new());

/// The cache of one device in one process.
#[derive(Debug)]
pub(super) struct KernelCache {
    all: PathBuf,
    key: String,
    run: PathBuf,
    /// Entries that were there at the start.
    found: usize,
    /// Bytes of cubecl's file that have been published.
    published: AtomicU64,
    /// One publisher at a time.
    publishing: Mutex<()>,
    _alive: File,
}

/// The cache of CUDA device `index`, opened at the first call; `None` if it is switched off or cannot be had, which is
/// said once.
pub(super) fn of_device(index: usize, identity: impl FnOnce() -> files::Result<Identity>) -> Option<Arc<KernelCache>> {
    let folder = place::folder()?;
    let mut open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
    if let Some((_, cache)) = open.iter().find(|(i, _)| *i == index) {
        return cache.clone();
    }
    let cache = match identity().and_then(|identity| KernelCache::open(&folder, &identity)) {
        Ok(cache) => {
            let cache = Arc::new(cache);
            publish_in_background(cache.clone());
            Some(cache)
        }
        Err(error) => {
            let other = place::FOLDER;
            tracing::warn!("kernels are compiled anew at every start: {error}, or set {other} to another folder");
            None
        }
    };
    open.push((index, cache.clone()));
    cache
}

/// Keeps what has been compiled for the next start. To be called at the end of the program, which may then end without
/// waiting for devices. Failing costs the next start its head start, no more.
pub fn keep_kernels() {
    let open = OPEN.lock().unwrap_or_else(|e| e.into_inner());
    for cache in open.iter().filter_map(|(_, cache)| cache.as_ref()) {
        if let Err(error) = cache.publish().and_then(|_| cache.shrink()) {
            tracing::warn!("compiled kernels are not kept: {error}");
        }
    }
}

fn publish_in_background(cache: Arc<KernelCache>) {
    let work = move || {
        let mut before = cache.published.load(Ordering::Relaxed);
        loop {
            std::thread::sleep(LOOK);
            let now = files::size(&cache.chunk()).unwrap_or(before);
            // New kernels, and none since the last look.
            if now == before
                && now > cache.published.load(Ordering::Relaxed)
                && let Err(error) = cache.publish()
            {
                tracing::warn!("compiled kernels are not kept: {error}");
                return;
            }
            before = now;
        }
    };
    let thread = std::thread::Builder::new().name("kernel cache".into());
    if let Err(error) = thread.spawn(work) {
        tracing::debug!("kernels are kept at the end only: {error}");
    }
}

impl KernelCache {
    /// Opens the cache in folder `root`: checks what is kept there and makes this process's copy of it.
    pub fn open(root: &Path, identity: &Identity) -> files::Result<KernelCache> {
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let (all, key) = (
            std::path::absolute(root).unwrap_or(root.into()).join("kernels"),
            identity.key(),
        );
        files::create_folder(&all)?;
        let held = hold(&all)?;
        let folder = all.join(&key);
        files::create_folder(&folder)?;
        HashedFile::create(&folder.join(USED))?.write(b"\n")?;
        sweep(&all, &key);
        let entries = kept(&all, &key);
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        let run = folder.join(format!("run-{}-{number}", std::process::id()));
        let alive = claim(&run)?;
        // From here on nobody removes it, so the others need not wait for the copy.
        drop(held);
        if let Err(error) = copy(&run, &entries) {
            let _nothing_is_left = files::remove_folder(&run);
            return Err(error);
        }
        let found = store::each(&entries).count();
        tracing::debug!("{found} compiled kernels in {}", folder.display());
        Ok(KernelCache {
            all,
            key,
            run,
            found,
            published: (entries.len() as u64).into(),
            publishing: Mutex::default(),
            _alive: alive,
        })
    }

    /// The folder for cubecl.
    pub fn root(&self) -> &Path {
        &self.run
    }

    /// Were there kernels at the start? Then this compiler has worked for this device before.
    pub fn was_filled(&self) -> bool {
        self.found > 0
    }

    fn chunk(&self) -> PathBuf {
        self.run.join(CHUNK)
    }

    /// Merges what cubecl has added into what is kept; returns how many kernels were new.
    pub fn publish(&self) -> files::Result<usize> {
        let _one = self.publishing.lock().unwrap_or_else(|e| e.into_inner());
        let ours = files::read_bytes(&self.chunk())?;
        if ours.len() as u64 == self.published.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let _held = hold(&self.all)?;
        let mut entries = kept(&self.all, &self.key);
        let added = store::merge(&mut entries, &ours);
        if entries.len() > MOST {
            entries.clear();
            store::merge(&mut entries, &ours);
        }
        if added > 0 {
            let folder = self.all.join(&self.key);
            files::create_folder(&folder)?;
            store::write(&entries_of(&folder), &self.key, &entries)?;
        }
        self.published.store(ours.len() as u64, Ordering::Relaxed);
        Ok(added)
    }

    /// Gives up this process's copy. Its folder stays, empty, until another process finds its owner gone: cubecl may
    /// still write to it.
    fn shrink(&self) -> files::Result<()> {
        let _one = self.publishing.lock().unwrap_or_else(|e| e.into_inner());
        HashedFile::create(&self.chunk())?;
        self.published.store(0, Ordering::Relaxed);
        Ok(())
    }
}

fn entries_of(folder: &Path) -> PathBuf {
    folder.join("entries")
}

/// What is kept under a key, if it is whole.
fn kept(all: &Path, key: &str) -> Vec<u8> {
    let path = entries_of(&all.join(key));
    store::read(&path, key).unwrap_or_else(|why| {
        tracing::warn!("kernels are compiled again: `{}` cannot be used: {why}", path.display());
        Vec::new()
    })
}

/// Makes this process's folder, and locks it.
fn claim(run: &Path) -> files::Result<File> {
    files::create_folder(run)?;
    match files::lock(&run.join("lock"), "")? {
        Lock::Ours(file) => Ok(file),
        Lock::Theirs(_) => Err(refused(run, "it is in use")),
        Lock::Unsupported(error) => Err(refused(run, error)),
    }
}

/// Looks for room, and gives cubecl the entries.
fn copy(run: &Path, entries: &[u8]) -> files::Result<()> {
    let room = run.join("room");
    files::create_folder(&room)?;
    // Neither needs to reach the disk: nobody reads them after a crash.
    HashedFile::create(&room.join("zeros"))?.write(&vec![0; ROOM])?;
    files::remove_folder(&room)?;
    let chunk = run.join(CHUNK);
    files::create_folder(chunk.parent().unwrap_or(run))?;
    HashedFile::create(&chunk)?.write(entries)
}

/// Keeps other processes from opening, publishing and removing, as long as the answer lives.
fn hold(all: &Path) -> files::Result<File> {
    let (path, start) = (all.join("lock"), Instant::now());
    loop {
        match files::lock(&path, "")? {
            Lock::Ours(file) => return Ok(file),
            Lock::Theirs(_) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(10)),
            Lock::Theirs(_) => return Err(refused(&path, "another process has held it for too long")),
            Lock::Unsupported(error) => return Err(refused(&path, error)),
        }
    }
}

fn refused(path: &Path, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> FileError {
    FileError::Write {
        path: path.into(),
        source: std::io::Error::other(why),
    }
}

/// Removes folders of processes that are gone, and kernels that were not used for long. What cannot be removed stays.
fn sweep(all: &Path, mine: &str) {
    let mut others = Vec::new();
    for key in files::list(all).unwrap_or_default() {
        let folder = all.join(&key);
        if !folder.is_dir() {
            continue;
        }
        let mut in_use = key == mine;
        for run in files::list(&folder).unwrap_or_default() {
            let run = folder.join(run);
            if !run.is_dir() {
                continue;
            }
            match files::lock(&run.join("lock"), "") {
                // Nobody's any more, and nobody can take it now.
                Ok(Lock::Ours(lock)) => {
                    drop(lock);
                    let _stays_if_it_must = files::remove_folder(&run);
                }
                _ => in_use = true,
            }
        }
        let used = fs::metadata(folder.join(USED))
            .and_then(|m| m.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        others.extend((!in_use).then_some((used, folder)));
    }
    others.sort();
    let surplus = (others.len() + 1).saturating_sub(KEEP);
    for (_, folder) in others.into_iter().take(surplus) {
        if let Err(error) = files::remove_folder(&folder) {
            tracing::debug!("old kernels stay: {error}");
        }
    }
}
