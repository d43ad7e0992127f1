//! Saving while something else goes on: a [`Draft`] on threads of its own.
//!
//! Files are written at the same time by several lanes, one file after the other in each. Values are handed over to a lane
//! in the order of its file, and only so many bytes of them are under way in all lanes together: who hands over more waits.
//! Hashing, writing and waiting for the disk is the threads'. What makes the checkpoint one, its manifest and its name,
//! comes when all lanes are done.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::channel::{Receiver, Sender, channel};
use super::commit::{Draft, begin};
use super::error::{CheckpointError, Result};
use super::state::RunState;

/// Bytes that are handed over: little-endian f32.
type Data = Box<dyn AsRef<[u8]> + Send>;

/// What a thread is to do next.
enum Order {
    Tensors(String, Vec<(String, Vec<usize>)>),
    Values(String, Data),
    Keep,
    Text(String, String),
}

/// A checkpoint being handed over. Dropped before [`Background::commit`], it leaves nothing.
///
/// Handing over does not fail: what the disk says is known in the end, from [`Saving::wait`].
pub struct Background {
    orders: Sender<Order>,
    /// How many checkpoints to keep, once everything is handed over.
    complete: Arc<OnceLock<usize>>,
    saving: Saving,
}

/// A checkpoint on its way to the disk, which dropping this does not stop.
pub struct Saving {
    step: u64,
    thread: JoinHandle<(Result<PathBuf>, Duration)>,
}

/// One of the files that are written at the same time.
#[derive(Clone, Copy)]
pub struct Lane<'a> {
    draft: &'a Background,
    number: usize,
}

impl Background {
    /// Starts the checkpoint `state.step` of the run in `dir`, as [`begin`], with this many lanes (at least one); at most
    /// `room` bytes of values are under way, or one part that is larger.
    ///
    /// # Errors
    /// A system that gives no thread.
    pub fn begin(dir: &Path, state: RunState, lanes: usize, room: usize) -> Result<Background> {
        let (orders, received) = channel(lanes.max(1), room);
        let complete = Arc::new(OnceLock::new());
        let (dir, step, since, all) = (dir.to_owned(), state.step, Instant::now(), complete.clone());
        let work = move || (write(&dir, state, received, &all), since.elapsed());
        let thread = std::thread::Builder::new().name("saver".into()).spawn(work);
        let thread = thread.map_err(|e| unsaved(step, e.to_string()))?;
        let saving = Saving { step, thread };
        Ok(Background {
            orders,
            complete,
            saving,
        })
    }

    /// Lane `number`.
    pub fn lane(&self, number: usize) -> Lane<'_> {
        Lane { draft: self, number }
    }

    /// Bytes under way in each lane.
    pub fn load(&self) -> Vec<usize> {
        self.orders.load()
    }

    /// Most bytes that may be under way.
    pub fn room(&self) -> usize {
        self.orders.room()
    }

    /// Whether it has failed already: nothing more needs to be handed over.
    pub fn is_lost(&self) -> bool {
        self.orders.is_closed()
    }

    /// Adds a text file, as [`Draft::text`].
    pub fn text(&self, name: &str, text: String) {
        self.orders.send(0, Order::Text(name.into(), text), 0);
    }

    /// As [`Draft::commit`], but returns as soon as all is handed over.
    pub fn commit(self, keep: usize) -> Saving {
        // The threads look when the orders have ended.
        let _ = self.complete.set(keep);
        self.saving
    }
}

impl Lane<'_> {
    /// Starts a file, as [`Draft::tensors`].
    pub fn tensors(&self, name: &str, plan: Vec<(String, Vec<usize>)>) {
        self.send(Order::Tensors(name.into(), plan), 0);
    }

    /// Appends values to a tensor of the file, as [`TensorWriter::write`](super::TensorWriter::write); waits while too
    /// much is under way.
    pub fn values(&self, name: &str, values: &[f32]) {
        self.bytes(name, bytemuck::cast_slice(values).to_vec());
    }

    /// The same with the bytes of the values.
    pub fn bytes(&self, name: &str, bytes: impl AsRef<[u8]> + Send + 'static) {
        let size = bytes.as_ref().len();
        self.send(Order::Values(name.into(), Box::new(bytes)), size);
    }

    /// Finishes the file, as [`Draft::keep`].
    pub fn keep(&self) {
        self.send(Order::Keep, 0);
    }

    fn send(&self, order: Order, bytes: usize) {
        self.draft.orders.send(self.number, order, bytes);
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
    /// As [`Draft::commit`] and all that comes before it.
    pub fn wait(self) -> Result<(PathBuf, Duration)> {
        let step = self.step;
        let (folder, took) = self.thread.join().map_err(|_| panicked(step))?;
        Ok((folder?, took))
    }
}

fn unsaved(step: u64, reason: String) -> CheckpointError {
    CheckpointError::Unsaved { step, reason }
}

fn panicked(step: u64) -> CheckpointError {
    unsaved(step, "the thread that writes it panicked".into())
}

/// The thread: it waits for those of the lanes, or is the only one.
fn write(dir: &Path, state: RunState, lanes: Vec<Receiver<Order>>, complete: &OnceLock<usize>) -> Result<PathBuf> {
    let step = state.step;
    let draft = Mutex::new(begin(dir, state)?);
    let mut lanes = lanes;
    let last = lanes.pop();
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let draft = &draft;
        let others: Vec<_> = lanes
            .into_iter()
            .map(|orders| scope.spawn(move || lane(draft, step, orders)))
            .collect();
        let own = last.map_or(Ok(()), |orders| lane(draft, step, orders));
        let others = others
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(panicked(step))));
        others.chain([own]).collect()
    });
    results.into_iter().collect::<Result<()>>()?;
    match complete.get() {
        Some(keep) => draft.into_inner().unwrap_or_else(|e| e.into_inner()).commit(*keep),
        None => Err(unsaved(step, "it was given up half-way".into())),
    }
}

/// Follows the orders of a lane to their end.
fn lane(draft: &Mutex<Draft>, step: u64, orders: Receiver<Order>) -> Result<()> {
    let draft = || -> MutexGuard<'_, Draft> { draft.lock().unwrap_or_else(|e| e.into_inner()) };
    let mut file = None;
    while let Some((order, bytes)) = orders.receive() {
        match (order, &mut file) {
            (Order::Tensors(name, plan), None) => file = Some(draft().tensors(&name, &plan)?),
            (Order::Values(name, values), Some(file)) => file.write_bytes(&name, (*values).as_ref())?,
            (Order::Keep, Some(_)) => {
                if let Some(file) = file.take() {
                    // Not while the others are kept from their files.
                    let name = file.name();
                    let written = file.finish()?;
                    draft().kept(&name, &written);
                }
            }
            (Order::Text(name, text), _) => draft().text(&name, &text)?,
            _ => return Err(unsaved(step, "its files were handed over out of order".into())),
        }
        orders.done(bytes);
    }
    Ok(())
}
