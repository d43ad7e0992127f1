//! The backend's own pool of buffers, without a backend: cubecl's allocator over storage that only counts.
//!
//! Uploads live in cubecl's pool, which takes pages of its own sizes from the driver. A device without hardware
//! ([`Gpu::null`](super::Gpu::null)) asks the same allocator, so that a plan knows those pages too.

use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard};

use cubecl_core::ir::MemoryDeviceProperties;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryConfiguration, MemoryManagement, MemoryManagementOptions,
};
use cubecl_runtime::server::IoError;
use cubecl_runtime::storage::{ComputeStorage, StorageHandle, StorageId, StorageUtilization};

use super::Caps;
use super::ledger::{Book, Entry};

/// Name of the pool in ledgers and plans.
pub(super) const UPLOADS: &str = "uploads";

/// Storage of which only the sizes exist.
#[derive(Default)]
struct Counted {
    pages: Vec<(StorageId, u64)>,
}

impl ComputeStorage for Counted {
    type Resource = ();

    fn alignment(&self) -> usize {
        1
    }

    fn get(&mut self, _: &StorageHandle) {}

    fn alloc(&mut self, size: u64) -> Result<StorageHandle, IoError> {
        let id = StorageId::new();
        self.pages.push((id, size));
        Ok(StorageHandle::new(id, StorageUtilization { offset: 0, size }))
    }

    fn dealloc(&mut self, id: StorageId) {
        self.pages.retain(|(page, _)| *page != id);
    }

    fn flush(&mut self) {}
}

/// The pool of a device that is not there.
pub(super) struct Pool {
    memory: Mutex<MemoryManagement<Counted>>,
    book: Arc<Book>,
}

/// A buffer of that pool; goes back when it is dropped.
pub(crate) struct Buffer {
    _memory: ManagedMemoryHandle,
    book: Arc<Book>,
    entry: Entry,
}

impl Pool {
    pub(super) fn new(caps: &Caps, book: Arc<Book>) -> Pool {
        let properties = MemoryDeviceProperties {
            max_page_size: caps.pool_page_bytes,
            alignment: caps.pool_alignment,
        };
        Pool {
            memory: Mutex::new(MemoryManagement::from_configuration(
                Counted::default(),
                &properties,
                MemoryConfiguration::SubSlices,
                Arc::new(ServerLogger::default()),
                MemoryManagementOptions::new("planned device"),
            )),
            book,
        }
    }

    /// A buffer of `bytes`; `None` where one page cannot hold it, which the backend would refuse.
    pub(super) fn upload(&self, bytes: u64, by: &'static Location<'static>) -> Option<Buffer> {
        let mut memory = self.lock();
        let handle = memory.reserve(bytes).ok()?;
        let place = memory.get_storage(handle.clone().binding()).ok()?;
        let page = memory.storage().pages.iter().position(|(id, _)| *id == place.id)?;
        let entry = self.book.taken(UPLOADS, (page, place.offset(), bytes), by);
        Some(Buffer {
            _memory: handle,
            book: self.book.clone(),
            entry,
        })
    }

    /// Sizes of the pages taken from the driver.
    pub(super) fn pages(&self) -> Vec<u64> {
        self.lock().storage().pages.iter().map(|(_, size)| *size).collect()
    }

    fn lock(&self) -> MutexGuard<'_, MemoryManagement<Counted>> {
        self.memory.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.book.given_back(self.entry);
    }
}
