//! Devices that are not there: every kernel launched on one is lowered by the compiler of the real thing and recorded.
//! Then nothing runs, and nothing needs memory ([`Gpu::dry_cuda`], [`Gpu::dry_wgpu`]), or the kernel runs on the CPU
//! ([`Gpu::emulated_cuda`]).
//!
//! A whole training step can be driven through one on any machine. What it recorded is then compiled for real
//! architectures ([`nvrtc`](super::nvrtc)), or validated and translated as drivers would get it
//! ([`check_wgsl`](super::check_wgsl)).

mod cuda;
mod server;
mod wgpu;

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use cubecl_common::device::{Device, DeviceId};
use cubecl_core::ir::*;
use cubecl_core::zspace::{Shape, Strides, striding::has_pitched_row_major_strides};
use cubecl_runtime::{client::ComputeClient, compiler::Compiler, kernel::CompiledKernel, runtime::Runtime};

pub(crate) use cuda::{CudaDry, most_shared_bytes};
use server::DryServer;
pub(crate) use wgpu::WgpuDry;

use super::{Backend, Gpu, Result};

/// One distinct kernel as the device would compile it, and how it was launched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DryKernel {
    pub entry: String,
    /// CUDA C++ or WGSL.
    pub source: String,
    /// Dynamic shared memory in bytes (CUDA).
    pub shared_bytes: usize,
    /// Threads in a block, units in a workgroup.
    pub threads: u32,
    /// Compute capability of the device it was lowered for, such as 90; 0 for WGSL.
    pub arch: u32,
    /// From `shaders/`, not generated.
    pub hand_written: bool,
    /// What the launch bound.
    pub operands: Operands,
}

/// What a launch binds, in the order of a kernel's parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operands {
    pub tensor_maps: usize,
    /// Buffers besides those of the tensor maps.
    pub buffers: usize,
    /// Scalars and sizes, in 32-bit words, padded to an even count.
    pub info_words: usize,
}

impl Gpu {
    /// Every distinct kernel that this dry device has lowered so far; none on other devices.
    pub fn dry_kernels(&self) -> Result<Vec<DryKernel>> {
        self.sync()?;
        let recording = match self.backend() {
            Backend::Dry(c) => c.info(),
            Backend::DryWgpu(c) => c.info(),
            _ => return Ok(Vec::new()),
        };
        Ok(recording.lock().unwrap_or_else(|e| e.into_inner()).clone())
    }
}

/// What a device lowered, in the order of first launches. Shared, as the server lives on cubecl's device thread.
type Recording = Arc<Mutex<Vec<DryKernel>>>;

/// The device that a dry one pretends to be.
pub(crate) trait Target:
    std::fmt::Debug + Clone + Default + Send + Sync + Eq + std::hash::Hash + 'static
{
    type Compiler: Compiler;
    const NAME: &'static str;
    /// Tells the devices of one target from those of another.
    const TYPE_ID: u16;
    /// Whether kernels are told the lengths of their arrays.
    const ARRAY_LENGTHS: bool;
    const MAX_CUBES: (u32, u32, u32);

    /// What cubecl registers on device `index`.
    fn device(index: u16) -> (DeviceProperties, <Self::Compiler as Compiler>::CompilationOptions);
    fn compiler() -> Self::Compiler;
    fn target_properties() -> TargetProperties;
    /// Dynamic shared memory of a kernel in bytes.
    fn shared_bytes(kernel: &CompiledKernel<Self::Compiler>) -> usize;
    /// Compute capability of device `index`; 0 where there is no such thing.
    fn arch(index: u16) -> u32;
    /// Whether device `index` runs its kernels on the CPU.
    fn is_emulated(index: u16) -> bool;
}

/// The runtime of a dry device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dry<T>(PhantomData<T>);

/// Devices of a target by number; what the number means is the target's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct DryDevice<T> {
    index: u16,
    target: PhantomData<T>,
}

impl<T> DryDevice<T> {
    fn new(index: u16) -> Self {
        DryDevice {
            index,
            target: PhantomData,
        }
    }
}

impl<T: Target> Device for DryDevice<T> {
    fn from_id(id: DeviceId) -> Self {
        DryDevice::new(id.index_id)
    }

    fn to_id(&self) -> DeviceId {
        DeviceId {
            type_id: T::TYPE_ID,
            index_id: self.index,
        }
    }
}

impl<T: Target> Runtime for Dry<T> {
    type Compiler = T::Compiler;
    type Server = DryServer<T>;
    type Device = DryDevice<T>;

    fn client(device: &DryDevice<T>) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        T::NAME
    }

    fn require_array_lengths() -> bool {
        T::ARRAY_LENGTHS
    }

    fn max_cube_count() -> (u32, u32, u32) {
        T::MAX_CUBES
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        has_pitched_row_major_strides(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        T::target_properties()
    }

    fn enumerate_devices(_: u16, _: &Recording) -> Vec<DeviceId> {
        Vec::new()
    }
}
