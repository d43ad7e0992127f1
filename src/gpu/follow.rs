//! Device memory that is read on a thread of its own, while later work goes on.
//!
//! Reads lie in the order of all other work: who hands a batch over has launched what fills it, and goes on when all its
//! reads are issued, whatever has arrived by then. cubecl copies to page-locked memory on CUDA. At most `room` bytes are
//! issued and not taken; a batch that is larger makes the issuer wait for the device.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use cubecl::prelude::{ComputeClient, Runtime};
use cubecl_common::bytes::Bytes;
use cubecl_common::future::block_on;

use super::{Backend, Gpu, GpuError, Result, Tensor};

/// What a reader is to read, and what each part is for.
pub type Batch<T> = Vec<(T, Vec<Tensor>)>;

/// Takes one part of a batch: the bytes of its tensors.
pub type Take<T> = Box<dyn FnMut(T, &[Bytes]) + Send>;

/// The thread, seen from outside.
pub struct Follower<T> {
    orders: Option<Sender<Batch<T>>>,
    answers: Mutex<Answers>,
    thread: Option<JoinHandle<()>>,
}

struct Answers {
    /// A batch whose reads are issued.
    issued: Receiver<()>,
    /// A batch that is taken.
    done: Receiver<Result<()>>,
    /// Batches handed over and not known to be taken.
    under_way: usize,
}

impl<T: Send + 'static> Follower<T> {
    /// Starts the thread. `None` on devices that hold nothing.
    ///
    /// # Errors
    /// A system that gives no thread.
    pub fn new(gpu: &Gpu, room: u64, take: Take<T>) -> Result<Option<Follower<T>>> {
        let (orders, received) = channel();
        let (issued_to, issued) = channel();
        let (done_to, done) = channel();
        let worker = Worker {
            gpu: gpu.clone(),
            room,
            received,
            issued: issued_to,
            done: done_to,
            take,
        };
        let work: Box<dyn FnOnce() + Send> = match gpu.backend().share() {
            Backend::Wgpu(c) => Box::new(move || worker.run(&c)),
            Backend::Cuda(c) => Box::new(move || worker.run(&c)),
            Backend::Dry(c) => Box::new(move || worker.run(&c)),
            Backend::DryWgpu(c) => Box::new(move || worker.run(&c)),
            Backend::Null => return Ok(None),
        };
        let thread = std::thread::Builder::new().name("follower".into()).spawn(work);
        let thread = thread.map_err(|e| GpuError::DeviceThread {
            device: gpu.caps().name.clone(),
            why: format!("no thread to read on: {e}"),
        })?;
        Ok(Some(Follower {
            orders: Some(orders),
            answers: Mutex::new(Answers {
                issued,
                done,
                under_way: 0,
            }),
            thread: Some(thread),
        }))
    }

    /// Hands a batch over; returns when its reads are issued.
    pub fn follow(&self, gpu: &Gpu, batch: Batch<T>) {
        let mut answers = self.answers();
        answers.under_way += 1;
        let sent = self.orders.as_ref().is_some_and(|orders| orders.send(batch).is_ok());
        if !sent || answers.issued.recv().is_err() {
            gpu.fail(gone(gpu));
        }
    }

    /// Waits until all batches are taken.
    ///
    /// # Errors
    /// A device that failed.
    pub fn settle(&self, gpu: &Gpu) -> Result<()> {
        let mut answers = self.answers();
        while answers.under_way > 0 {
            answers.under_way -= 1;
            if let Err(error) = answers.done.recv().unwrap_or_else(|_| Err(gone(gpu))) {
                gpu.fail(error.clone());
                return Err(error);
            }
        }
        Ok(())
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl<T> Drop for Follower<T> {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told by `settle`.
            let _ = thread.join();
        }
    }
}

fn gone(gpu: &Gpu) -> GpuError {
    GpuError::DeviceThread {
        device: gpu.caps().name.clone(),
        why: "the thread that reads from it has ended".into(),
    }
}

struct Worker<T> {
    gpu: Gpu,
    room: u64,
    received: Receiver<Batch<T>>,
    issued: Sender<()>,
    done: Sender<Result<()>>,
    take: Take<T>,
}

impl<T> Worker<T> {
    fn run<R: Runtime>(mut self, client: &ComputeClient<R>) {
        while let Ok(batch) = self.received.recv() {
            let result = self.batch(client, batch);
            if self.done.send(result).is_err() {
                return;
            }
        }
    }

    fn batch<R: Runtime>(&mut self, client: &ComputeClient<R>, batch: Batch<T>) -> Result<()> {
        let (mut ahead, mut waiting) = (VecDeque::new(), 0);
        // A failed launch is reported by flush, never by read: ask first.
        let mut result = self.gpu.settle(client.flush());
        for (part, tensors) in batch {
            let bytes: u64 = tensors.iter().map(Tensor::bytes).sum();
            while result.is_ok() && waiting > 0 && waiting + bytes > self.room {
                result = self.oldest(&mut ahead, &mut waiting);
            }
            if result.is_err() {
                break;
            }
            let handles = tensors
                .iter()
                .filter_map(Tensor::exact_handle)
                .map(|(handle, _)| handle);
            // Issued by the call: what is awaited is the arrival.
            ahead.push_back((part, bytes, client.read_async(handles.collect())));
            waiting += bytes;
        }
        // Whoever waits goes on, to no avail after an error.
        let _ = self.issued.send(());
        while result.is_ok() && !ahead.is_empty() {
            result = self.oldest(&mut ahead, &mut waiting);
        }
        result
    }

    fn oldest<F>(&mut self, ahead: &mut VecDeque<(T, u64, F)>, waiting: &mut u64) -> Result<()>
    where
        F: Future<Output = std::result::Result<Vec<Bytes>, cubecl_runtime::server::ServerError>>,
    {
        let Some((part, bytes, arrival)) = ahead.pop_front() else {
            return Ok(());
        };
        *waiting -= bytes;
        let arrived = self.gpu.settle(block_on(arrival))?;
        (self.take)(part, &arrived);
        Ok(())
    }
}
