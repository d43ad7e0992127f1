//! Batches in the background: worker threads build ahead of the training loop, which receives them in step order.
//!
//! A worker claims the next step, builds its batch and puts it on a shelf; the consumer takes its own next step from the
//! shelf. No step is claimed that lies `queue_depth` or more ahead of the consumer, which bounds memory. Since a batch
//! is a function of its step, the order in which workers finish is invisible.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::panics::caught;
use super::{BatchBuilder, ChunkBatch, DataError, Sampler};

/// An iterator over the batches of steps `start_step..end_step`. Dropping it stops its threads.
///
/// It yields at most one error and ends after it.
#[derive(Debug)]
pub struct Loader {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    stall: Duration,
}

#[derive(Debug)]
struct Shared {
    builder: Arc<BatchBuilder>,
    sampler: Sampler,
    batch_size: usize,
    end_step: u64,
    queue_depth: u64,
    shelf: Mutex<Shelf>,
    /// Signalled when a step may be claimed, or the loader stops.
    claimable: Condvar,
    /// Signalled when a batch is put on the shelf.
    finished: Condvar,
}

#[derive(Debug)]
struct Shelf {
    /// The next step no worker has claimed.
    claim: u64,
    /// The next step the consumer takes.
    take: u64,
    batches: BTreeMap<u64, Result<ChunkBatch, DataError>>,
    stopped: bool,
}

impl Loader {
    /// Starts `threads` workers. At most `queue_depth` batches exist or are being built at any time, so a depth below
    /// `threads` leaves some idle.
    ///
    /// # Errors
    /// [`DataError::Spec`] for a count of zero, or if the system refuses a thread.
    pub fn new(
        builder: Arc<BatchBuilder>,
        sampler: Sampler,
        batch_size: usize,
        start_step: u64,
        end_step: u64,
        threads: usize,
        queue_depth: usize,
    ) -> Result<Self, DataError> {
        for (field, value) in [
            ("batch_size", batch_size),
            ("loader threads", threads),
            ("loader queue_depth", queue_depth),
        ] {
            if value == 0 {
                return Err(DataError::Spec {
                    field,
                    reason: "it must be at least 1".to_owned(),
                });
            }
        }
        let shelf = Shelf {
            claim: start_step,
            take: start_step,
            batches: BTreeMap::new(),
            stopped: false,
        };
        let shared = Arc::new(Shared {
            builder,
            sampler,
            batch_size,
            end_step,
            queue_depth: queue_depth as u64,
            shelf: Mutex::new(shelf),
            claimable: Condvar::new(),
            finished: Condvar::new(),
        });
        let mut loader = Loader {
            shared,
            workers: Vec::new(),
            stall: Duration::ZERO,
        };
        for i in 0..threads {
            let shared = loader.shared.clone();
            let worker = thread::Builder::new()
                .name(format!("data-{i}"))
                .spawn(move || shared.work());
            // On failure, dropping the loader stops the workers that did start.
            let worker = worker.map_err(|e| DataError::Spec {
                field: "loader threads",
                reason: format!("thread {i} of {threads} cannot be started, {e}"),
            })?;
            loader.workers.push(worker);
        }
        Ok(loader)
    }

    /// How long [`Iterator::next`] has waited so far, in total: time the training loop lost to data.
    pub fn stall(&self) -> Duration {
        self.stall
    }
}

impl Iterator for Loader {
    type Item = Result<ChunkBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut shelf = self.shared.lock();
        if shelf.stopped || shelf.take >= self.shared.end_step {
            return None;
        }
        let waiting = Instant::now();
        let step = shelf.take;
        let batch = loop {
            match shelf.batches.remove(&step) {
                Some(batch) => break batch,
                None => shelf = self.shared.finished.wait(shelf).unwrap_or_else(PoisonError::into_inner),
            }
        };
        shelf.take += 1;
        shelf.stopped = batch.is_err();
        drop(shelf);
        self.shared.claimable.notify_all();
        self.stall += waiting.elapsed();
        Some(batch)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.shared.claimable.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches its panics, and there is no one left to tell.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// No code panics while it holds the lock, so a poisoned one is whole.
    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(step) = self.claim() {
            let build = || self.builder.build(&self.sampler.draw(step, self.batch_size));
            let batch = caught(build).unwrap_or_else(|reason| Err(DataError::Worker { step, reason }));
            self.lock().batches.insert(step, batch);
            self.finished.notify_one();
        }
    }

    /// Waits for a step to build; `None` when there are none left.
    fn claim(&self) -> Option<u64> {
        let mut shelf = self.lock();
        while !shelf.stopped && shelf.claim < self.end_step {
            if shelf.claim - shelf.take < self.queue_depth {
                shelf.claim += 1;
                return Some(shelf.claim - 1);
            }
            shelf = self.claimable.wait(shelf).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}
