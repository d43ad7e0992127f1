//! Batches on their way to the device: while one step runs, the next is decoded, collated and waiting.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use super::collate::Collator;
use crate::data::{ChunkBatch, DataError, Loader};
use crate::step::MicroBatch;

/// Steps that are collated ahead; the loader has a queue of its own behind it.
const AHEAD: usize = 1;

/// What one step is fed.
pub struct Ration {
    pub parts: Vec<MicroBatch>,
    /// Mean discounted reward of a chunk; shares of samples of successful episodes, and of samples with weight.
    pub reward: f64,
    pub positives: f64,
    pub valid: f64,
}

/// The rations of a run, in the order of its steps.
pub struct Feed {
    rations: Receiver<Result<Ration, DataError>>,
    stall: Duration,
}

impl Feed {
    /// Starts a thread that collates what `loader` delivers, from step `start` on. It ends with the loader or the feed.
    ///
    /// # Errors
    /// [`DataError::Spec`] if the system refuses a thread.
    pub fn new(loader: Loader, collator: Collator, start: u64) -> Result<Feed, DataError> {
        let (send, rations) = sync_channel(AHEAD);
        let work = move || {
            for (step, batch) in (start..).zip(loader) {
                let ration = batch.map(|batch| ration(&collator, step, &batch));
                if send.send(ration).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("collate".into()).spawn(work);
        thread.map_err(|e| DataError::Spec {
            field: "data.loader_threads",
            reason: format!("the collating thread cannot be started, {e}"),
        })?;
        Ok(Feed {
            rations,
            stall: Duration::ZERO,
        })
    }

    /// How long [`Iterator::next`] has waited so far: time the training loop lost to data.
    pub fn stall(&self) -> Duration {
        self.stall
    }
}

impl Iterator for Feed {
    type Item = Result<Ration, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let waiting = Instant::now();
        let ration = self.rations.recv().ok();
        self.stall += waiting.elapsed();
        ration
    }
}

fn ration(collator: &Collator, step: u64, batch: &ChunkBatch) -> Ration {
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / batch.len().max(1) as f64;
    Ration {
        parts: collator.micro_batches(step, batch),
        reward: mean(&mut batch.reward.iter().map(|r| f64::from(*r))),
        positives: mean(&mut batch.is_positive.iter().map(|p| f64::from(u8::from(*p)))),
        valid: mean(&mut batch.chunk_valid.iter().map(|w| f64::from(*w))),
    }
}
