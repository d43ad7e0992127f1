//! CUDA without a device: kernels are lowered to the CUDA C++ that cubecl-cuda 0.10 would compile on an architecture.

use cubecl_common::profile::TimingMethod;
use cubecl_core::ir::{
    features::{self, Tma, TypeUsage},
    *,
};
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
use cubecl_runtime::kernel::CompiledKernel;

use super::{Dry, DryDevice, Target};
use crate::gpu::client::Client;
use crate::gpu::{Api, Backend, Caps, Gpu, GpuError, Result, device, emulator, fault::Fault};

/// The runtime of [`Gpu::dry_cuda`] and [`Gpu::emulated_cuda`]. A device's number is its compute capability, and
/// [`EMULATED`] more if it runs its kernels.
pub(crate) type CudaDry = Dry<Cuda>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Cuda;

const EMULATED: u16 = 1000;

/// Compute capabilities there are properties for.
const ARCHS: [u32; 4] = [80, 86, 89, 90];

impl Gpu {
    /// A CUDA device of compute capability `arch` (80, 86, 89 or 90) that lowers and records kernels and runs nothing. All
    /// of a process and an architecture share one list of kernels.
    pub fn dry_cuda(arch: u32) -> Result<Gpu> {
        cuda_without_device(arch, Api::CudaDry)
    }

    /// A CUDA device of compute capability `arch` whose kernels are built by the C++ compiler of this machine and run on
    /// its CPU: slow and exact, for tests and debugging.
    pub fn emulated_cuda(arch: u32) -> Result<Gpu> {
        emulator::available()?;
        cuda_without_device(arch, Api::CudaEmulated)
    }
}

fn cuda_without_device(arch: u32, api: Api) -> Result<Gpu> {
    let (how, number) = match api {
        Api::CudaEmulated => ("emulated", EMULATED),
        _ => ("dry", 0),
    };
    let name = format!("CUDA ({how}, sm_{arch})");
    if !ARCHS.contains(&arch) {
        return Err(GpuError::Unavailable {
            device: name,
            why: format!("compute capability {arch} is not one of {ARCHS:?}"),
            fix: "choose one of these".into(),
        });
    }
    device::own_config();
    let fault = Fault::default();
    let client = Client::<CudaDry>::load(&DryDevice::new(number + arch as u16));
    device::claim(&client, &fault, &name)?;
    let model = Model::of(arch);
    let caps = Caps {
        name,
        api,
        cuda_arch: Some(arch),
        multiprocessors: Some(model.multiprocessors),
        max_shared_bytes: model.shared_bytes,
        ..Caps::planning()
    };
    Ok(Gpu::new(Backend::Dry(client), caps, fault))
}

/// What the GPUs of an architecture differ in.
struct Model {
    /// Of a workgroup at most, after opting in.
    shared_bytes: u32,
    multiprocessors: u32,
}

impl Model {
    /// An A100, an A10, an L40 and an H100.
    fn of(arch: u32) -> Model {
        let (shared_bytes, multiprocessors) = match arch {
            80 => (166_912, 108),
            86 => (101_376, 84),
            89 => (101_376, 142),
            _ => (232_448, 132),
        };
        Model {
            shared_bytes,
            multiprocessors,
        }
    }
}

/// Shared memory of a workgroup at most, in bytes, on GPUs of an architecture.
pub(crate) fn most_shared_bytes(arch: u32) -> u32 {
    Model::of(arch).shared_bytes
}

impl Target for Cuda {
    type Compiler = CudaCompiler;
    const NAME: &'static str = "CUDA";
    const TYPE_ID: u16 = 77;
    const ARRAY_LENGTHS: bool = true;
    const MAX_CUBES: (u32, u32, u32) = (i32::MAX as u32, 65535, 65535);

    fn device(index: u16) -> (DeviceProperties, CompilationOptions) {
        let version = Self::arch(index);
        let (arch, hopper, model) = (CudaArchitecture { version }, version >= 90, Model::of(version));
        let memory = MemoryDeviceProperties {
            max_page_size: 20 << 30,
            alignment: 512,
        };
        let hardware = HardwareProperties {
            load_width: 128,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: model.shared_bytes as usize,
            max_cube_count: Self::MAX_CUBES,
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(model.multiprocessors),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            max_vector_size: VectorSize::MAX,
        };
        let mut p = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
        register_supported_types(&mut p);
        p.register_type_usage(ElemType::Float(FloatKind::TF32), TypeUsage::Conversion);
        p.register_semantic_type(SemanticType::Pipeline);
        for level in [BarrierLevel::Unit, BarrierLevel::Cube] {
            p.register_type_usage(OpaqueType::Barrier(level), TypeUsage::Buffer);
        }
        for kind in [FloatKind::F16, FloatKind::BF16] {
            p.features.matmul.ldmatrix.insert(ElemType::Float(kind).into());
            if hopper {
                p.features.matmul.stmatrix.insert(ElemType::Float(kind).into());
            }
        }
        p.features.plane.insert(features::Plane::Sync);
        p.features.plane.insert(features::Plane::Ops);
        p.features.plane.insert(features::Plane::NonUniformControlFlow);
        if hopper {
            p.register_semantic_type(SemanticType::TensorMap);
            p.features.tma.insert(Tma::Base);
            p.features.cube_cluster = true;
        }
        p.features.copy_async = true;
        p.features.memory_reinterpret = true;
        p.features.alignment = true;
        register_wmma_features(CudaWmmaCompiler::supported_wmma_combinations(&arch), &mut p);
        register_mma_features(CudaWmmaCompiler::supported_mma_combinations(&arch), &mut p);
        let supports_features = CppSupportedFeatures {
            grid_constants: true,
            clusters: hopper,
            fast_math: true,
            fast_tanh: true,
            elect_sync: hopper,
        };
        let options = CompilationOptions {
            warp_size: 32,
            supports_features,
        };
        (p, options)
    }

    fn compiler() -> CudaCompiler {
        CudaCompiler::default()
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

    fn shared_bytes(kernel: &CompiledKernel<CudaCompiler>) -> usize {
        kernel.repr.as_ref().map_or(0, |r| r.shared_memory_size())
    }

    fn arch(index: u16) -> u32 {
        (index % EMULATED).into()
    }

    fn is_emulated(index: u16) -> bool {
        index >= EMULATED
    }
}
