//! Devices, memory and launches. Everything above works with [`Gpu`] and [`Tensor`] and knows no backend.
//!
//! - [`Gpu`]: one device: its abilities ([`Caps`]), memory ([`Arena`]), errors and the account of what ran ([`Record`]).
//! - `launch!`: the one door to a kernel. It checks sizes and types, counts the launch, and then runs it on the
//!   device (CUDA, wgpu), lowers it without a device ([`Gpu::dry_cuda`], [`Gpu::dry_wgpu`]), or does nothing
//!   ([`Gpu::null`], for plans): one code, four uses.
//! - Errors are sticky: after the first failure nothing more is launched and every read and sync reports it, so a
//!   dropped launch can never be mistaken for a result.

mod arena;
mod caps;
mod client;
mod cuda_check;
mod cuda_codes;
mod cuda_status;
mod device;
mod device_cuda;
mod dry;
mod dtype;
mod emulator;
mod error;
mod fault;
pub(crate) mod follow;
mod issue;
mod kernel_cache;
pub(crate) mod launch;
mod ledger;
mod memory;
pub mod nvrtc;
mod pool;
mod profile;
pub(crate) mod raw;
mod record;
mod tensor;
#[cfg(test)]
mod tests;
mod transfer;
pub(crate) mod watch;
mod wgsl_check;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cubecl_cuda::CudaRuntime;
use cubecl_wgpu::WgpuRuntime;

pub use arena::{Arena, ArenaUse};
pub use caps::{Api, Caps, Cooperative, Dialect, MOST_BINDING_BYTES, MOST_ELEMENTS};
pub use cuda_check::{CudaKernel, CudaReport};
pub use cuda_status::{CudaDeviceInfo, CudaStatus, Version, cuda_status};
pub use device::{AdapterInfo, DeviceChoice, adapters};
pub use dry::{DryKernel, Operands};
pub use dtype::DType;
pub use error::{GpuError, Result};
pub use kernel_cache::{keep_kernels, without_kernel_cache};
pub use ledger::{Ledger, Owner, Span};
pub use memory::MemoryUse;
pub use profile::{Profile, ProfileRow, Roofline};
pub(crate) use raw::{Forms, RawKernel, Source, TensorMap};
pub use record::{Cost, Record, Share, Totals};
pub use tensor::{Shape, Tensor};
pub(crate) use transfer::WRITTEN;
pub use transfer::{PendingRead, Words};
pub use wgsl_check::{WgslFailure, WgslReport, check_wgsl};

use client::Client;
pub(crate) use dry::{CudaDry, WgpuDry};
use fault::Fault;
use record::Recorder;
use tensor::Storage;

/// One device. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

pub(crate) enum Backend {
    Wgpu(Client<WgpuRuntime>),
    Cuda(Client<CudaRuntime>),
    Dry(Client<CudaDry>),
    DryWgpu(Client<WgpuDry>),
    Null,
}

struct Inner {
    backend: Backend,
    caps: Caps,
    fault: Fault,
    recorder: Mutex<Recorder>,
    profiling: std::sync::atomic::AtomicBool,
    /// Whether there is a witness who wants to see launches.
    watching: std::sync::atomic::AtomicBool,
    witness: Mutex<Option<Arc<dyn watch::Witness>>>,
    /// Kernels launched, while somebody wants to know them.
    kernels: Mutex<Option<Vec<&'static str>>>,
    /// Launches and allocations so far.
    book: Arc<ledger::Book>,
    /// What stands for the backend's pool of uploads where there is no backend.
    pool: Option<pool::Pool>,
    issue: issue::Issue,
    /// Activations and workspaces of the running step.
    scratch: Arena,
    /// Weights, gradients, optimizer states.
    states: Arena,
}

impl Gpu {
    fn new(backend: Backend, caps: Caps, fault: Fault) -> Gpu {
        let book = Arc::<ledger::Book>::default();
        let arena = |name, source: fn(&Backend, u64) -> Result<_>, backend: &Backend| {
            let backend = backend.share();
            let min_page = if matches!(caps.api, Api::Null) {
                caps.max_page_bytes
            } else {
                32 << 20
            };
            Arena::new(
                (name, caps.name.clone()),
                book.clone(),
                Box::new(move |bytes| source(&backend, bytes)),
                caps.alignment,
                caps.max_page_bytes,
                min_page,
            )
        };
        let scratch = arena("activations", device::page, &backend);
        let states = arena("states", device::page, &backend);
        let pool = matches!(backend, Backend::Null).then(|| pool::Pool::new(&caps, book.clone()));
        Gpu(Arc::new(Inner {
            backend,
            caps,
            fault,
            recorder: Mutex::default(),
            profiling: false.into(),
            watching: false.into(),
            witness: Mutex::default(),
            kernels: Mutex::default(),
            book,
            pool,
            issue: issue::Issue::default(),
            scratch,
            states,
        }))
    }

    /// A device that only counts: costs and memory of everything "launched" on it, with the limits in `caps`.
    pub fn null(caps: Caps) -> Gpu {
        Gpu::new(Backend::Null, Caps { api: Api::Null, ..caps }, Fault::default())
    }

    /// The same device under other capabilities: runs the kernels of another class of device, or proves that large
    /// operands are cut. Claiming what the device does not have makes launches fail.
    pub fn with_caps(&self, change: impl FnOnce(Caps) -> Caps) -> Gpu {
        Gpu::new(
            self.0.backend.share(),
            change(self.0.caps.clone()),
            self.0.fault.clone(),
        )
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.0.backend
    }

    /// Activations and workspaces of the running step.
    pub fn scratch(&self) -> &Arena {
        &self.0.scratch
    }

    /// Weights, gradients and optimizer states.
    pub fn states(&self) -> &Arena {
        &self.0.states
    }

    /// Uninitialised memory for the running step.
    #[track_caller]
    pub fn alloc(&self, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        self.alloc_in(&self.0.scratch, dtype, shape)
    }

    /// Uninitialised f32 memory for the running step.
    #[track_caller]
    pub fn f32(&self, shape: impl Into<Shape>) -> Tensor {
        self.alloc(DType::F32, shape)
    }

    /// Uninitialised memory of an arena. Failure is the device's sticky error; the tensor then has no memory.
    #[track_caller]
    pub fn alloc_in(&self, arena: &Arena, dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        let storage = match arena.alloc(shape.len() as u64 * dtype.bytes()) {
            Ok(block) => Storage::Arena(block),
            Err(error) => {
                self.0.fault.set(error);
                Storage::None
            }
        };
        let tensor = Tensor::new(storage, shape, dtype, self.0.caps.alignment);
        self.fresh(&tensor);
        tensor
    }

    /// Names the phase(s) that the following launches belong to; shares sum to one.
    pub fn phase(&self, shares: &[Share]) {
        let peak = self.recent_peak();
        self.recorder().set_phase(shares, peak);
        if let Some(&(name, _)) = shares.first() {
            self.0.book.phase(name);
        }
    }

    /// The account since the last call.
    pub fn take_record(&self) -> Record {
        let peak = self.recent_peak();
        self.recorder().take(peak)
    }

    /// Times every launch from now on, for [`Gpu::profile`]. Each then waits for the device.
    fn set_profiling(&self, on: bool) {
        self.0.profiling.store(on, std::sync::atomic::Ordering::Relaxed);
    }

    /// Bytes of both arenas in use at most since the last call: the states do not change within a step.
    fn recent_peak(&self) -> u64 {
        self.0.states.take_recent_peak() + self.0.scratch.take_recent_peak()
    }

    fn recorder(&self) -> std::sync::MutexGuard<'_, Recorder> {
        self.0.recorder.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn book(&self) -> &ledger::Book {
        &self.0.book
    }

    fn profiling(&self) -> bool {
        self.0.profiling.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The first error of this device, if any.
    pub fn fault(&self) -> Option<GpuError> {
        self.0.fault.get()
    }

    /// `Ok` if nothing has failed so far on the host side (does not wait for the device).
    pub fn check(&self) -> Result<()> {
        self.fault().map_or(Ok(()), Err)
    }

    /// Waits until all work is done and reports any failure of it.
    pub fn sync(&self) -> Result<()> {
        use cubecl_common::future::block_on;
        self.check()?;
        self.count_wait();
        let result = match &self.0.backend {
            Backend::Wgpu(c) => block_on(c.sync()),
            Backend::Cuda(c) => block_on(c.sync()),
            Backend::Dry(c) => block_on(c.sync()),
            Backend::DryWgpu(c) => block_on(c.sync()),
            Backend::Null => Ok(()),
        };
        self.settle(result)
    }

    /// Turns a server's answer into ours; a panic on the device thread wins over an `Ok`.
    fn settle<T>(&self, result: std::result::Result<T, cubecl_runtime::server::ServerError>) -> Result<T> {
        match result {
            Ok(value) => self.check().map(|()| value),
            Err(error) => {
                let why = fault::first_sentence(&error);
                self.0.fault.set(GpuError::Launch {
                    device: self.0.caps.name.clone(),
                    why,
                });
                Err(self.fault().expect("just set"))
            }
        }
    }

    pub(crate) fn count(&self, cost: &Cost, time: Duration) {
        self.recorder().add(cost, 1, time);
        self.0.book.launched();
    }

    /// Counts work that is done by launches which count none themselves.
    pub(crate) fn account(&self, cost: &Cost) {
        self.recorder().add(cost, 0, Duration::ZERO);
    }

    pub(crate) fn fail(&self, error: GpuError) {
        self.0.fault.set(error);
    }
}

impl Backend {
    fn share(&self) -> Backend {
        match self {
            Backend::Wgpu(c) => Backend::Wgpu(c.clone()),
            Backend::Cuda(c) => Backend::Cuda(c.clone()),
            Backend::Dry(c) => Backend::Dry(c.clone()),
            Backend::DryWgpu(c) => Backend::DryWgpu(c.clone()),
            Backend::Null => Backend::Null,
        }
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({}, {})", self.0.caps.name, self.0.caps.api)
    }
}
