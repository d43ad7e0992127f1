//! CUDA without a device: every kernel launched here is lowered by the real compiler and recorded; nothing runs.
//!
//! The whole train step can be driven through it on any machine, and [`nvrtc`](super::nvrtc) then compiles what was
//! recorded for real architectures. The properties are those cubecl-cuda 0.10 registers on an H100 (sm_90).

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use cubecl_common::{
    bytes::Bytes,
    device::{Device, DeviceId, DeviceService},
    future::DynFut,
    profile::{ProfileDuration, TimingMethod},
    stream_id::StreamId,
};
use cubecl_core::ir::{
    features::{self, Tma, TypeUsage},
    *,
};
use cubecl_core::zspace::{Shape, Strides, striding::has_pitched_row_major_strides};
use cubecl_cpp::{
    DialectWmmaCompiler,
    cuda::{
        arch::CudaArchitecture,
        mma::{CudaWmmaCompiler, contiguous_elements_cuda},
    },
    register_supported_types,
    shared::*,
};
use cubecl_cuda::CudaCompiler;
use cubecl_runtime::{
    allocator::PitchedMemoryLayoutPolicy, client::ComputeClient, compiler::CubeTask, kernel::KernelMetadata,
    logging::ServerLogger, memory_management::*, runtime::Runtime, server::*, storage::*,
    timestamp_profiler::TimestampProfiler,
};

use super::{Api, Backend, Caps, Gpu, GpuError, Result, device, fault, fault::Fault};

/// One distinct kernel as CUDA would compile it.
#[derive(Clone, Debug)]
pub struct DryKernel {
    pub entry: String,
    /// CUDA C++.
    pub source: String,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: usize,
    /// Threads in a block.
    pub threads: u32,
}

/// What the devices of this process recorded. One list: the server lives on cubecl's device thread.
static RECORDED: Mutex<Vec<DryKernel>> = Mutex::new(Vec::new());

impl Gpu {
    /// A CUDA device that lowers and records kernels and runs nothing. All of a process share one list of kernels.
    pub fn dry_cuda() -> Result<Gpu> {
        device::own_config();
        let fault = Fault::default();
        let client = CudaDry::client(&DryDevice);
        let name = "CUDA (dry, sm_90)".to_string();
        device::claim(&client, &fault, &name)?;
        let caps = Caps {
            name,
            api: Api::CudaDry,
            ..Caps::planning()
        };
        Ok(Gpu::new(Backend::Dry(client), caps, fault))
    }

    /// Every distinct kernel that the dry devices of this process have lowered so far.
    pub fn dry_kernels(&self) -> Result<Vec<DryKernel>> {
        self.sync()?;
        Ok(RECORDED.lock().unwrap_or_else(|e| e.into_inner()).clone())
    }
}

#[derive(Debug)]
pub struct DryServer {
    profiler: TimestampProfiler,
    utilities: Arc<ServerUtilities<Self>>,
    options: CompilationOptions,
    seen: HashSet<cubecl_runtime::id::KernelId>,
    storage: BytesStorage,
}

/// The runtime of [`Gpu::dry_cuda`].
#[derive(Clone, Debug)]
pub struct CudaDry;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DryDevice;

impl Device for DryDevice {
    fn from_id(_: DeviceId) -> Self {
        DryDevice
    }

    fn to_id(&self) -> DeviceId {
        DeviceId {
            type_id: 77,
            index_id: 0,
        }
    }
}

fn h100() -> (DeviceProperties, CompilationOptions) {
    let arch = CudaArchitecture { version: 90 };
    let memory = MemoryDeviceProperties {
        max_page_size: 20 << 30,
        alignment: 512,
    };
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 1024,
        max_shared_memory_size: 232_448,
        max_cube_count: (i32::MAX as u32, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 64),
        num_streaming_multiprocessors: Some(132),
        num_tensor_cores: Some(4),
        min_tensor_cores_dim: Some(8),
        num_cpu_cores: None,
        max_vector_size: VectorSize::MAX,
    };
    let mut p = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    register_supported_types(&mut p);
    p.register_type_usage(ElemType::Float(FloatKind::TF32), TypeUsage::Conversion);
    p.register_semantic_type(SemanticType::Pipeline);
    p.register_semantic_type(SemanticType::TensorMap);
    for level in [BarrierLevel::Unit, BarrierLevel::Cube] {
        p.register_type_usage(OpaqueType::Barrier(level), TypeUsage::Buffer);
    }
    for kind in [FloatKind::F16, FloatKind::BF16] {
        p.features.matmul.ldmatrix.insert(ElemType::Float(kind).into());
        p.features.matmul.stmatrix.insert(ElemType::Float(kind).into());
    }
    p.features.plane.insert(features::Plane::Sync);
    p.features.plane.insert(features::Plane::Ops);
    p.features.plane.insert(features::Plane::NonUniformControlFlow);
    p.features.tma.insert(Tma::Base);
    p.features.copy_async = true;
    p.features.cube_cluster = true;
    p.features.memory_reinterpret = true;
    p.features.alignment = true;
    register_wmma_features(CudaWmmaCompiler::supported_wmma_combinations(&arch), &mut p);
    register_mma_features(CudaWmmaCompiler::supported_mma_combinations(&arch), &mut p);
    let supports_features = CppSupportedFeatures {
        grid_constants: true,
        clusters: true,
        fast_math: true,
        fast_tanh: true,
        elect_sync: true,
    };
    (
        p,
        CompilationOptions {
            warp_size: 32,
            supports_features,
        },
    )
}

impl DeviceService for DryServer {
    fn init(_: DeviceId) -> Self {
        let (properties, options) = h100();
        let logger = Arc::new(ServerLogger::default());
        let utilities = Arc::new(ServerUtilities::new(
            properties,
            logger,
            (),
            PitchedMemoryLayoutPolicy::new(512),
        ));
        DryServer {
            profiler: Default::default(),
            utilities,
            options,
            seen: Default::default(),
            storage: BytesStorage::default(),
        }
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl ServerCommunication for DryServer {
    const SERVER_COMM_ENABLED: bool = false;
}

impl ComputeServer for DryServer {
    type Kernel = Box<dyn CubeTask<CudaCompiler>>;
    type Storage = BytesStorage;
    type MemoryLayoutPolicy = PitchedMemoryLayoutPolicy;
    type Info = ();

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities<Self>> {
        self.utilities.clone()
    }

    // Nothing runs, so nothing needs memory: a step of the 3.2 B model goes through in a few megabytes.
    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) {}

    fn read(
        &mut self,
        descriptors: Vec<CopyDescriptor>,
        _: StreamId,
    ) -> DynFut<std::result::Result<Vec<Bytes>, ServerError>> {
        let zeros =
            |c: CopyDescriptor| Bytes::from_bytes_vec(vec![0u8; c.shape.iter().product::<usize>() * c.elem_size]);
        let bytes: Vec<Bytes> = descriptors.into_iter().map(zeros).collect();
        Box::pin(async move { Ok(bytes) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: StreamId) -> DynFut<std::result::Result<(), ServerError>> {
        Box::pin(async move { Ok(()) })
    }

    fn get_resource(
        &mut self,
        binding: Binding,
        _: StreamId,
    ) -> std::result::Result<ManagedResource<BytesResource>, ServerError> {
        let handle = self.storage.alloc(binding.size)?;
        let resource = self.storage.get(&handle);
        Ok(ManagedResource::new(binding.memory, resource))
    }

    unsafe fn launch(
        &mut self,
        kernel: Self::Kernel,
        _: CubeCount,
        _: KernelArguments,
        mode: ExecutionMode,
        _: StreamId,
    ) {
        let mut id = kernel.id();
        id.mode(mode);
        if self.seen.contains(&id) {
            return;
        }
        match kernel.compile(&mut Default::default(), &self.options, mode, kernel.address_type()) {
            Ok(c) => {
                self.seen.insert(id);
                let shared_bytes = c.repr.map_or(0, |r| r.shared_memory_size());
                RECORDED.lock().unwrap_or_else(|e| e.into_inner()).push(DryKernel {
                    entry: c.entrypoint_name,
                    source: c.source,
                    shared_bytes,
                    threads: c.cube_dim.num_elems(),
                });
            }
            Err(error) => {
                let why = format!("{} cannot be lowered to CUDA: {error}", kernel.name());
                fault::report(|device| GpuError::Launch {
                    device,
                    why: why.clone(),
                });
            }
        }
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

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

impl Runtime for CudaDry {
    type Compiler = CudaCompiler;
    type Server = DryServer;
    type Device = DryDevice;

    fn client(device: &DryDevice) -> ComputeClient<Self> {
        ComputeClient::load(device)
    }

    fn name(_: &ComputeClient<Self>) -> &'static str {
        "cuda-dry"
    }

    fn require_array_lengths() -> bool {
        true
    }

    fn max_cube_count() -> (u32, u32, u32) {
        (i32::MAX as u32, 65535, 65535)
    }

    fn can_read_tensor(shape: &Shape, strides: &Strides) -> bool {
        has_pitched_row_major_strides(shape, strides)
    }

    fn target_properties() -> TargetProperties {
        TargetProperties {
            mma: MmaProperties {
                register_size_bits: 32,
                const_plane_size: 32,
                register_layout_a: MatrixLayout::RowMajor,
                register_layout_b: MatrixLayout::ColMajor,
                register_layout_acc: MatrixLayout::RowMajor,
                register_duplication_a: 1,
                register_duplication_b: 1,
                register_duplication_acc: 1,
                contiguous_elements: ContiguousElements::new(contiguous_elements_cuda),
            },
        }
    }

    fn enumerate_devices(_: u16, _: &()) -> Vec<DeviceId> {
        vec![DryDevice.to_id()]
    }
}
