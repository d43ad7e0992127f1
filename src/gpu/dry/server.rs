//! What stands for a device behind cubecl's client: it lowers kernels, and runs them where there is an emulator.

use std::collections::HashMap;
use std::sync::Arc;

use cubecl_common::{
    bytes::Bytes,
    device::{DeviceId, DeviceService},
    future::DynFut,
    profile::ProfileDuration,
    stream_id::StreamId,
};
use cubecl_core::prelude::CubeCount;
use cubecl_runtime::{
    allocator::PitchedMemoryLayoutPolicy,
    compiler::{Compiler, CubeTask},
    id::KernelId,
    kernel::KernelMetadata,
    logging::ServerLogger,
    memory_management::*,
    server::*,
    storage::*,
    timestamp_profiler::TimestampProfiler,
};

use super::{DryKernel, Operands, Recording, Target};
use crate::gpu::emulator::Emulator;
use crate::gpu::{GpuError, fault};

/// The server of a dry device, on cubecl's thread of it.
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
        // cubecl-cuda copies that part to the device before each launch, through memory that it waits for now and then.
        if self.arch > 0 && arguments.info.dynamic_metadata_offset < arguments.info.data.len() {
            return Err("has sizes that CUDA would have to upload for every launch".into());
        }
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
