//! Who had which memory when: what a plan's map is drawn from, and what a run is held to.
//!
//! Time is counted in events: launches, allocations and their ends, so that no two are at the same time. An allocation is known by the line of code that asked for it, and by the labels that were
//! set around it ([`Gpu::owned`]).

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::Gpu;

/// Who asked for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Labels around the request, outermost first.
    pub labels: Vec<&'static str>,
    /// Source file of the request, as the compiler names it.
    pub file: &'static str,
}

/// One allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Name of the arena, or of the backend's pool.
    pub arena: &'static str,
    pub page: usize,
    pub start: u64,
    pub bytes: u64,
    pub owner: Owner,
    /// When it was handed out.
    pub from: u64,
    /// When it was given back; `None`: it never was.
    pub to: Option<u64>,
}

/// All allocations since [`Gpu::keep_ledger`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ledger {
    pub spans: Vec<Span>,
    /// Phases in the order they began, with when. Neighbours differ.
    pub phases: Vec<(&'static str, u64)>,
}

/// The place of an allocation in the book: which ledger, and where in it.
pub(crate) type Entry = Option<(u64, usize)>;

/// The book of a device, shared by its arenas.
#[derive(Default)]
pub(crate) struct Book {
    open: AtomicBool,
    launches: AtomicU64,
    clock: AtomicU64,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    labels: Vec<&'static str>,
    ledger: Ledger,
    /// Ledgers begun so far: what one has noted may end in the time of another.
    ledgers: u64,
}

impl Book {
    /// Notes an allocation; gives its place in the book.
    pub(super) fn taken(
        &self,
        arena: &'static str,
        (page, start, bytes): (usize, u64, u64),
        by: &'static Location<'static>,
    ) -> Entry {
        if !self.is_open() {
            return None;
        }
        let mut pages = self.lock();
        let span = Span {
            arena,
            page,
            start,
            bytes,
            owner: Owner {
                labels: pages.labels.clone(),
                file: by.file(),
            },
            from: self.tick(),
            to: None,
        };
        pages.ledger.spans.push(span);
        Some((pages.ledgers, pages.ledger.spans.len() - 1))
    }

    /// Notes the end of an allocation.
    pub(super) fn given_back(&self, entry: Entry) {
        let Some((ledger, index)) = entry.filter(|_| self.is_open()) else {
            return;
        };
        let mut pages = self.lock();
        if pages.ledgers == ledger
            && let Some(span) = pages.ledger.spans.get_mut(index)
        {
            span.to = Some(self.tick());
        }
    }

    /// Counts a launch.
    pub(super) fn launched(&self) {
        self.launches.fetch_add(1, Ordering::Relaxed);
        self.tick();
    }

    /// The time, and on with it.
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    /// Launches so far.
    pub(super) fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    pub(super) fn phase(&self, name: &'static str) {
        if self.is_open() {
            let now = self.clock.load(Ordering::Relaxed);
            let phases = &mut self.lock().ledger.phases;
            if phases.last().is_none_or(|last| last.0 != name) {
                phases.push((name, now));
            }
        }
    }

    fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Gpu {
    /// Notes every allocation from now on. The notes grow with each step: for plans and checks.
    pub fn keep_ledger(&self) {
        let book = self.book();
        let mut pages = book.lock();
        pages.ledger = Ledger::default();
        pages.ledgers += 1;
        book.open.store(true, Ordering::Relaxed);
    }

    /// The notes since [`Gpu::keep_ledger`], which end here.
    pub fn take_ledger(&self) -> Ledger {
        let book = self.book();
        book.open.store(false, Ordering::Relaxed);
        std::mem::take(&mut book.lock().ledger)
    }

    /// The time in the ledger.
    pub fn clock(&self) -> u64 {
        self.book().clock.load(Ordering::Relaxed)
    }

    /// Does `make`; what it allocates is noted under `label`, inside of the labels around it.
    pub fn owned<T>(&self, label: &'static str, make: impl FnOnce() -> T) -> T {
        let book = self.book();
        book.lock().labels.push(label);
        let made = make();
        book.lock().labels.pop();
        made
    }
}
