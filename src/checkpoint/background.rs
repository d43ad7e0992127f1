//! Saving while something else goes on: a [`Draft`](super::Draft) on a thread of its own.
//!
//! Values are handed over in the order of their files, and only so many bytes of them wait: who hands over more waits
//! too. Hashing, writing and waiting for the disk is the thread's.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::channel::{Receiver, Sender, channel};
use super::commit::begin;
use super::error::{CheckpointError, Result};
use super::state::RunState;

/// What the thread is to do next.
enum Order {
    Tensors(&'static str, Vec<(String, Vec<usize>)>),
    Values(String, Vec<f32>),
    Keep,
    Text(&'static str, String),
    Commit { keep: usize },
}

/// A checkpoint being handed over. Dropped before [`Background::commit`], it leaves nothing.
///
/// Handing over does not fail: what the disk says is known in the end, from [`Saving::wait`].
pub struct Background {
    orders: Sender<Order>,
    saving: Saving,
}

/// A checkpoint on its way to the disk, which dropping this does not stop.
pub struct Saving {
    step: u64,
    thread: JoinHandle<(Result<PathBuf>, Duration)>,
}

impl Background {
    /// Starts the checkpoint `state.step` of the run in `dir`, as [`begin`]; at most `room` bytes of values wait, or
    /// one tensor that is larger.
    ///
    /// # Errors
    /// A system that gives no thread.
    pub fn begin(dir: &Path, state: RunState, room: usize) -> Result<Background> {
        let (orders, received) = channel(room);
        let (dir, step, since) = (dir.to_owned(), state.step, Instant::now());
        let work = move || (write(&dir, state, received), since.elapsed());
        let thread = std::thread::Builder::new().name("saver".into()).spawn(work);
        let thread = thread.map_err(|e| unsaved(step, e.to_string()))?;
        let saving = Saving { step, thread };
        Ok(Background { orders, saving })
    }

    /// Starts a file, as [`Draft::tensors`](super::Draft::tensors).
    pub fn tensors(&self, name: &'static str, plan: Vec<(String, Vec<usize>)>) {
        self.orders.send(Order::Tensors(name, plan), 0);
    }

    /// Appends values to a tensor of the file, as [`TensorWriter::write`](super::TensorWriter::write); waits while too
    /// much is under way.
    pub fn values(&self, name: &str, values: Vec<f32>) {
        let bytes = size_of_val(&values[..]);
        self.orders.send(Order::Values(name.into(), values), bytes);
    }

    /// Finishes the file, as [`Draft::keep`](super::Draft::keep).
    pub fn keep(&self) {
        self.orders.send(Order::Keep, 0);
    }

    /// Adds a text file, as [`Draft::text`](super::Draft::text).
    pub fn text(&self, name: &'static str, text: String) {
        self.orders.send(Order::Text(name, text), 0);
    }

    /// As [`Draft::commit`](super::Draft::commit), but returns as soon as all is handed over.
    pub fn commit(self, keep: usize) -> Saving {
        self.orders.send(Order::Commit { keep }, 0);
        self.saving
    }
}

impl Saving {
    /// The step that is being saved.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Whether [`Saving::wait`] would return at once.
    pub fn is_done(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the checkpoint; returns its folder, and how long it took from [`Background::begin`] on.
    ///
    /// # Errors
    /// As [`Draft::commit`](super::Draft::commit) and all that comes before it.
    pub fn wait(self) -> Result<(PathBuf, Duration)> {
        let step = self.step;
        let ended = self.thread.join();
        let (folder, took) = ended.map_err(|_| unsaved(step, "the thread that writes it panicked".into()))?;
        Ok((folder?, took))
    }
}

fn unsaved(step: u64, reason: String) -> CheckpointError {
    CheckpointError::Unsaved { step, reason }
}

/// The thread.
fn write(dir: &Path, state: RunState, orders: Receiver<Order>) -> Result<PathBuf> {
    let step = state.step;
    let mut draft = begin(dir, state)?;
    let mut file = None;
    while let Some((order, bytes)) = orders.receive() {
        match (order, &mut file) {
            (Order::Tensors(name, plan), None) => file = Some(draft.tensors(name, &plan)?),
            (Order::Values(name, values), Some(file)) => file.write(&name, &values)?,
            (Order::Keep, Some(_)) => file.take().map_or(Ok(()), |file| draft.keep(file))?,
            (Order::Text(name, text), _) => draft.text(name, &text)?,
            (Order::Commit { keep }, None) => return draft.commit(keep),
            _ => return Err(unsaved(step, "its files were handed over out of order".into())),
        }
        orders.done(bytes);
    }
    Err(unsaved(step, "it was given up half-way".into()))
}
