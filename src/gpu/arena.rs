//! Device memory: a few large pages per arena, handed out by a deterministic best-fit allocator.
//!
//! A [`Block`] is a range of a page and goes back when its last tensor is dropped. The same sequence of requests
//! always gives the same addresses, so a run over the null device (`acrlpd plan`) yields exactly the page sizes the
//! real run needs. Once everything is given back an arena is as it was at first, so that every step touches the same
//! memory. Work is issued in program order on one stream, so a range
//! can be handed out again as soon as the host has dropped it.

use std::collections::BTreeMap;
use std::panic::Location;
use std::sync::{Arc, Mutex};

use cubecl_runtime::server::Handle;

use super::error::{GpuError, Result};
use super::ledger::{Book, Entry};

/// Makes pages: on a device an allocation, on the null device nothing.
pub(crate) type PageSource = Box<dyn Fn(u64) -> Result<Option<Handle>> + Send + Sync>;

/// One arena. Cloning shares it.
#[derive(Clone)]
pub struct Arena(Arc<Shared>);

struct Shared {
    name: &'static str,
    source: PageSource,
    alignment: u64,
    max_page: u64,
    /// Pages made on demand are at least this large.
    min_page: u64,
    device: String,
    book: Arc<Book>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: Vec<Page>,
    used: u64,
    peak: u64,
    /// Largest use since the last [`Arena::take_recent_peak`].
    recent_peak: u64,
}

struct Page {
    handle: Option<Handle>,
    size: u64,
    /// First byte behind all that is handed out. Holes below it are reused first.
    top: u64,
    /// Where `top` was at most.
    high: u64,
    /// Free ranges below `top`: start -> length, never adjacent.
    holes: BTreeMap<u64, u64>,
}

/// A range of an arena's page; freed on drop.
pub struct Block {
    arena: Arena,
    page: usize,
    pub(crate) start: u64,
    pub(crate) size: u64,
    pub(crate) handle: Option<Handle>,
    page_size: u64,
    /// Its place in the book.
    entry: Entry,
}

/// Current and largest use of an arena.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArenaUse {
    pub name: &'static str,
    /// Bytes handed out now.
    pub used: u64,
    /// Largest sum of bytes handed out at once.
    pub peak: u64,
    /// Highest address reached in each page: what the pages must hold.
    pub pages: Vec<u64>,
    /// What the pages take of the device: on one that is not there, what they must hold.
    pub reserved: u64,
}

impl Arena {
    pub(crate) fn new(
        (name, device): (&'static str, String),
        book: Arc<Book>,
        source: PageSource,
        alignment: u64,
        max_page: u64,
        min_page: u64,
    ) -> Self {
        Arena(Arc::new(Shared {
            name,
            source,
            alignment,
            max_page,
            min_page: min_page.min(max_page),
            device,
            book,
            state: Mutex::default(),
        }))
    }

    /// Makes pages of these sizes now, as found by a plan.
    pub fn reserve(&self, pages: &[u64]) -> Result<()> {
        let mut state = self.lock();
        for &size in pages.iter().skip(state.pages.len()) {
            let page = self.make_page(size, state.used)?;
            state.pages.push(page);
        }
        Ok(())
    }

    /// A range of at least `bytes`; its size is rounded up to the alignment.
    #[track_caller]
    pub(crate) fn alloc(&self, bytes: u64) -> Result<Block> {
        let size = bytes.max(1).next_multiple_of(self.0.alignment);
        let mut state = self.lock();
        let place = state.best_hole(size).or_else(|| state.wilderness(size));
        let (page, start) = match place {
            Some(place) => place,
            None => {
                let want = size.max(self.0.min_page);
                let page = self.make_page(want, state.used)?;
                state.pages.push(page);
                (state.pages.len() - 1, 0)
            }
        };
        state.take(page, start, size);
        state.used += size;
        state.peak = state.peak.max(state.used);
        state.recent_peak = state.recent_peak.max(state.used);
        let handle = state.pages[page].handle.clone();
        let page_size = state.pages[page].size;
        drop(state);
        let entry = self.0.book.taken(self.0.name, (page, start, size), Location::caller());
        Ok(Block {
            arena: self.clone(),
            page,
            start,
            size,
            handle,
            page_size,
            entry,
        })
    }

    /// The largest use since the last call.
    pub(crate) fn take_recent_peak(&self) -> u64 {
        let mut state = self.lock();
        let used = state.used;
        std::mem::replace(&mut state.recent_peak, used)
    }

    /// Current and peak use.
    pub fn usage(&self) -> ArenaUse {
        let state = self.lock();
        ArenaUse {
            name: self.0.name,
            used: state.used,
            peak: state.peak,
            pages: state.pages.iter().map(|p| p.high).collect(),
            reserved: state.pages.iter().map(Page::reserved).sum(),
        }
    }

    fn make_page(&self, size: u64, used: u64) -> Result<Page> {
        if size > self.0.max_page {
            return Err(GpuError::OutOfMemory {
                arena: self.0.name.into(),
                bytes: size,
                used,
                device: self.0.device.clone(),
            });
        }
        Ok(Page {
            handle: (self.0.source)(size)?,
            size,
            top: 0,
            high: 0,
            holes: BTreeMap::new(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A panic while the lock is held cannot leave the maps half-changed in a way that matters: go on.
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn free(&self, page: usize, start: u64, size: u64) {
        let mut state = self.lock();
        state.used -= size;
        state.pages[page].give_back(start, size);
    }
}

impl State {
    /// The smallest hole that fits; the lowest address among equals.
    fn best_hole(&self, size: u64) -> Option<(usize, u64)> {
        let mut best: Option<(u64, usize, u64)> = None;
        for (index, page) in self.pages.iter().enumerate() {
            for (&start, &len) in &page.holes {
                if len >= size && best.is_none_or(|b| (len, index, start) < b) {
                    best = Some((len, index, start));
                }
            }
        }
        best.map(|(_, page, start)| (page, start))
    }

    fn wilderness(&self, size: u64) -> Option<(usize, u64)> {
        self.pages
            .iter()
            .enumerate()
            .find(|(_, p)| p.top + size <= p.size)
            .map(|(i, p)| (i, p.top))
    }

    fn take(&mut self, page: usize, start: u64, size: u64) {
        let page = &mut self.pages[page];
        if start == page.top {
            page.top += size;
            page.high = page.high.max(page.top);
            return;
        }
        if let Some(len) = page.holes.remove(&start)
            && len > size
        {
            page.holes.insert(start + size, len - size);
        }
    }
}

impl Page {
    fn reserved(&self) -> u64 {
        if self.handle.is_some() { self.size } else { self.high }
    }

    fn give_back(&mut self, start: u64, size: u64) {
        let (mut start, mut len) = (start, size);
        if let Some((&before, &before_len)) = self.holes.range(..start).next_back()
            && before + before_len == start
        {
            self.holes.remove(&before);
            (start, len) = (before, len + before_len);
        }
        if let Some(after_len) = self.holes.remove(&(start + len)) {
            len += after_len;
        }
        if start + len == self.top {
            self.top = start;
        } else {
            self.holes.insert(start, len);
        }
    }
}

impl Block {
    /// The page this range lies in and the size of the page in bytes (for `offset_end`).
    pub(crate) fn page_size(&self) -> u64 {
        self.page_size
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.free(self.page, self.start, self.size);
        self.arena.0.book.given_back(self.entry);
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({:?})", self.usage())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(max_page: u64, min_page: u64) -> Arena {
        let book = Arc::default();
        Arena::new(
            ("test", "null".into()),
            book,
            Box::new(|_| Ok(None)),
            256,
            max_page,
            min_page,
        )
    }

    #[test]
    fn ranges_do_not_overlap_and_are_reused() {
        let a = arena(1 << 40, 1 << 40);
        let x = a.alloc(1000).unwrap();
        let y = a.alloc(10).unwrap();
        let z = a.alloc(5000).unwrap();
        assert_eq!((x.start, y.start, z.start), (0, 1024, 1280));
        drop(x);
        drop(y);
        // One merged hole of 1280 bytes: the next fitting request takes it, not the wilderness.
        let w = a.alloc(1100).unwrap();
        assert_eq!(w.start, 0);
        let v = a.alloc(200).unwrap();
        assert_eq!(v.start, 1280 + 5120);
    }

    #[test]
    fn a_planned_arena_repeats_the_addresses_of_the_plan() {
        let mut random = 12345u64;
        let mut next = |n: u64| {
            random = random
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (random >> 33) % n
        };
        let script: Vec<(bool, u64)> = (0..500).map(|_| (next(3) > 0, next(100_000))).collect();
        let run = |a: &Arena| {
            let mut live = Vec::new();
            let mut trace = Vec::new();
            for &(alloc, x) in &script {
                if alloc || live.is_empty() {
                    let b = a.alloc(x).unwrap();
                    trace.push((b.page, b.start));
                    live.push(b);
                } else {
                    let at = x as usize % live.len();
                    live.swap_remove(at);
                }
            }
            trace
        };
        let plan = arena(1 << 40, 1 << 40);
        let want = run(&plan);
        let real = arena(1 << 40, 1);
        real.reserve(&plan.usage().pages).unwrap();
        assert_eq!(run(&real), want);
        assert_eq!(real.usage().pages.len(), 1, "the plan was large enough");
        assert_eq!(real.usage(), plan.usage());
    }

    #[test]
    fn what_is_repeated_gets_the_same_addresses() {
        let a = arena(1 << 40, 1 << 40);
        let once = || {
            let mut live: Vec<Block> = (1..20u64).map(|i| a.alloc(i * 7919 % 5000).unwrap()).collect();
            for i in [17, 3, 9, 1, 11] {
                live.swap_remove(i);
            }
            live.extend((1..9u64).map(|i| a.alloc(i * 104_729 % 9000).unwrap()));
            live.iter().map(|b| (b.page, b.start)).collect::<Vec<_>>()
        };
        let first = once();
        let pages = a.usage().pages;
        assert_eq!(once(), first);
        assert_eq!(a.usage().pages, pages);
    }

    #[test]
    fn a_request_larger_than_a_page_is_an_error() {
        let a = arena(4096, 1024);
        assert!(matches!(a.alloc(5000), Err(GpuError::OutOfMemory { bytes: 5120, .. })));
        assert!(a.alloc(4096).is_ok());
    }
}
