//! Devices that are not there: every kernel launched on one is lowered by the compiler of the real thing and recorded.
//! Then nothing runs, and nothing needs memory ([`Gpu::dry_cuda`], [`Gpu::dry_wgpu`]), or the kernel runs on the CPU
//! ([`Gpu::emulated_cuda`]).
//!
//! A whole training step can be driven through one on any machine. What it recorded is then compiled for real
//! architectures ([`nvrtc`](super::nvrtc)), or validated and translated as drivers would get it
//! ([`check_wgsl`](super::check_wgsl)).

mod cuda;
mod wgpu;

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use cubecl_common::{
    bytes::Bytes,
    device::{Device, DeviceId, DeviceService},
    future::DynFut,
    profile::ProfileDuration,
    stream_id::StreamId,
};
use cubecl_core::ir::*;
use cubecl_core::zspace::{Shape, Strides, striding::has_pitched_row_major_strides};
use cubecl_runtime::{
    allocator::PitchedMemoryLayoutPolicy,
    client::ComputeClient,
    compiler::{Compiler, CubeTask},
    id::KernelId,
    kernel::{CompiledKernel, KernelMetadata},
    logging::ServerLogger,
    memory_management::*,
    runtime::Runtime,
    server::*,
    storage::*,
    timestamp_profiler::TimestampProfiler,
};

pub(crate) use cuda::{CudaDry, most_shared_bytes};
pub(crate) use wgpu::WgpuDry;

use super::emulator::Emulator;
use super::{Backend, Gpu, GpuError, Result, fault};

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

#[derive(Debug)]
pub(crate) struct DryServer<T: Target> {
    profiler: TimestampProfiler,
    utilities: Arc<ServerUtilities<Self>>,
    options: <T::Compiler as Compiler>::CompilationOptions,
    arch: u32,
    /// What was lowered, and how it was launched first.
    seen: HashMap<KernelId, Operands>,
    /// What runs the kernels; none: nothing does.
    emulator: Option<Emulator>,
    /// For those who ask for a resource of a device without memory.
    storage: BytesStorage,
}

impl<T: Target> DryServer<T> {
    /// Lowers and records a kernel that was not seen before, and builds it if it is to run.
    fn lower(
        &mut self,
        id: &KernelId,
        kernel: &dyn CubeTask<T::Compiler>,
        operands: Operands,
        mode: ExecutionMode,
    ) -> std::result::Result<(), String> {
        if let Some(&first) = self.seen.get(id) {
            if first != operands {
                return Err(format!("was launched with {first:?}, now with {operands:?}"));
            }
            return Ok(());
        }
        let compiled = kernel
            .compile(&mut T::compiler(), &self.options, mode, kernel.address_type())
            .map_err(|error| format!("cannot be lowered to {}: {error}", T::NAME))?;
        self.seen.insert(id.clone(), operands);
        let shared_bytes = T::shared_bytes(&compiled);
        let hand_written = compiled.entrypoint_name == kernel.name();
        let built = self
            .emulator
            .as_mut()
            .map(|e| e.build(id.clone(), &compiled.entrypoint_name, &compiled.source));
        let recorded = DryKernel {
            entry: compiled.entrypoint_name,
            source: compiled.source,
            shared_bytes,
            threads: compiled.cube_dim.num_elems(),
            arch: self.arch,
            // Generated kernels have the path of their type for a name.
            hand_written,
            operands,
        };
        let mut list = self.utilities.info.lock().unwrap_or_else(|e| e.into_inner());
        list.push(recorded);
        built.unwrap_or(Ok(()))
    }

    /// Lowers a kernel, and runs it where kernels run.
    fn lower_and_run(
        &mut self,
        kernel: &dyn CubeTask<T::Compiler>,
        count: CubeCount,
        arguments: KernelArguments,
        mode: ExecutionMode,
    ) -> std::result::Result<(), String> {
        let mut id = kernel.id();
        id.mode(mode);
        let operands = Operands {
            tensor_maps: arguments.tensor_maps.len(),
            buffers: arguments.buffers.len(),
            info_words: 2 * arguments.info.data.len(),
        };
        self.lower(&id, kernel, operands, mode)?;
        let Some(emulator) = self.emulator.as_mut().filter(|e| e.knows(&id)) else {
            return Ok(());
        };
        let CubeCount::Static(x, y, z) = count else {
            return Err("is launched with a size from the device".into());
        };
        let block = id.cube_dim;
        emulator.launch(&id, [x, y, z], [block.x, block.y, block.z], arguments)
    }
}

impl<T: Target> DeviceService for DryServer<T> {
    fn init(id: DeviceId) -> Self {
        let (properties, options) = T::device(id.index_id);
        let logger = Arc::new(ServerLogger::default());
        // Without a compiler, `Gpu::emulated_cuda` has said so before.
        let emulator = T::is_emulated(id.index_id).then(|| Emulator::new(&properties, logger.clone()));
        let emulator = emulator.map(|made| made.unwrap_or_else(|why| panic!("no emulated device: {why}")));
        let layout = PitchedMemoryLayoutPolicy::new(512);
        DryServer {
            profiler: Default::default(),
            utilities: Arc::new(ServerUtilities::new(properties, logger, Recording::default(), layout)),
            options,
            arch: T::arch(id.index_id),
            seen: Default::default(),
            emulator,
            storage: BytesStorage::default(),
        }
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl<T: Target> ServerCommunication for DryServer<T> {
    const SERVER_COMM_ENABLED: bool = false;
}

impl<T: Target> ComputeServer for DryServer<T> {
    type Kernel = Box<dyn CubeTask<T::Compiler>>;
    type Storage = BytesStorage;
    type MemoryLayoutPolicy = PitchedMemoryLayoutPolicy;
    type Info = Recording;

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    // Where nothing runs, nothing needs memory: a step of the 3.2 B model goes through in a few megabytes.
    fn initialize_memory(&mut self, memory: ManagedMemoryHandle, size: u64, _: StreamId) {
        if let Some(emulator) = &mut self.emulator {
            noted("memory", emulator.allocate(memory, size));
        }
    }

    fn staging(&mut self, sizes: &[usize], _: StreamId) -> std::result::Result<Vec<Bytes>, ServerError> {
        Ok(sizes.iter().map(|&n| Bytes::from_bytes_vec(vec![0; n])).collect())
    }

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<std::result::Result<Vec<Bytes>, ServerError>> {
        let mut read = |c: CopyDescriptor| {
            let zeros = vec![0u8; c.shape.iter().product::<usize>() * c.elem_size];
            let read = self.emulator.as_mut().map(|e| noted("a read", e.read(c)));
            Bytes::from_bytes_vec(read.flatten().unwrap_or(zeros))
        };
        let bytes: Vec<Bytes> = descriptors.into_iter().map(&mut read).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, descriptors: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {
        if let Some(emulator) = &mut self.emulator {
            for (to, bytes) in descriptors {
                noted("an upload", emulator.write(to, &bytes));
            }
        }
    }

    fn sync(&mut self, _: StreamId) -> DynFut<std::result::Result<(), ServerError>> {
        Box::pin(async move { Ok(()) })
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        _: StreamId,
    ) -> std::result::Result<ManagedResource<BytesResource>, ServerError> {
        if let Some(emulator) = &mut self.emulator {
            let memory = binding.memory.clone();
            if let Some(resource) = noted("a resource", emulator.resource(binding.clone())) {
                return Ok(ManagedResource::new(memory, resource));
            }
        }
        let handle = self.storage.alloc(binding.size)?;
        let resource = self.storage.get(&handle);
        Ok(ManagedResource::new(binding.memory, resource))
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        count: CubeCount,
        arguments: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        let result = self.lower_and_run(&*kernel, count, arguments, mode);
        noted(kernel.name(), result);
    }

    fn flush(&mut self, _: StreamId) -> std::result::Result<(), ServerError> {
        Ok(())
    }

    fn memory_usage(&mut self, _: StreamId) -> std::result::Result<MemoryUsage, ServerError> {
        Ok(MemoryUsage {
            number_allocs: 0,
            bytes_in_use: 0,
            bytes_padding: 0,
            bytes_reserved: 0,
        })
    }

    fn memory_cleanup(&mut self, _: StreamId) {}

    fn start_profile(&mut self, _: StreamId) -> std::result::Result<ProfilingToken, ServerError> {
        Ok(self.profiler.start())
    }

    fn end_profile(
        &mut self,
        _: StreamId,
        token: ProfilingToken,
    ) -> std::result::Result<ProfileDuration, ProfileError> {
        self.profiler.stop(token)
    }

    fn allocation_mode(&mut self, mode: MemoryAllocationMode, _: StreamId) {
        if let Some(emulator) = &mut self.emulator {
            emulator.mode(mode);
        }
    }
}

/// The value, or nothing and the error of the device: `what` names the kernel or the piece of work.
fn noted<T>(what: &str, result: std::result::Result<T, String>) -> Option<T> {
    result
        .map_err(|why| {
            fault::report(|device| GpuError::Launch {
                device,
                why: format!("{what}: {why}"),
            })
        })
        .ok()
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
