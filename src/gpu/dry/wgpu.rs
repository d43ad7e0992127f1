//! wgpu without an adapter: kernels are lowered to the WGSL that cubecl-wgpu 0.10 would give to a driver.

use std::sync::atomic::{AtomicU16, Ordering};

use cubecl_common::profile::TimingMethod;
use cubecl_core::WgpuCompilationOptions;
use cubecl_core::ir::{features::TypeUsage, *};
use cubecl_runtime::kernel::CompiledKernel;
use cubecl_wgpu::{AutoCompiler, WgslCompiler};

use super::{Dry, DryDevice, Target};
use crate::gpu::client::Client;
use crate::gpu::{Api, Backend, Caps, Gpu, Result, device, fault::Fault};

/// The runtime of [`Gpu::dry_wgpu`]. The two lowest bits of a device's number are its abilities; the rest tells it from
/// others, so that each has a list of its own.
pub(crate) type WgpuDry = Dry<Wgpu>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Wgpu;

const INT64: u16 = 1;
const F16: u16 = 2;
const SERIAL: u16 = 4;

impl Gpu {
    /// A device of wgpu with the abilities and limits in `caps` that lowers and records kernels and runs nothing.
    pub fn dry_wgpu(caps: Caps) -> Result<Gpu> {
        static OPENED: AtomicU16 = AtomicU16::new(0);
        device::own_config();
        let mut index = OPENED.fetch_add(1, Ordering::Relaxed).wrapping_mul(SERIAL);
        index |= if caps.wide_loads { INT64 } else { 0 } | if caps.f16 { F16 } else { 0 };
        let fault = Fault::default();
        let client = Client::<WgpuDry>::load(&DryDevice::new(index));
        device::claim(&client, &fault, &caps.name)?;
        let caps = Caps {
            api: Api::WgpuDry,
            bf16: false,
            cuda_arch: None,
            multiprocessors: None,
            ..caps
        };
        Ok(Gpu::new(Backend::DryWgpu(client), caps, fault))
    }
}

impl Target for Wgpu {
    type Compiler = AutoCompiler;
    const NAME: &'static str = "WGSL";
    const TYPE_ID: u16 = 78;
    const ARRAY_LENGTHS: bool = false;
    const MAX_CUBES: (u32, u32, u32) = (65535, 65535, 65535);

    fn device(index: u16) -> (DeviceProperties, WgpuCompilationOptions) {
        let memory = MemoryDeviceProperties {
            max_page_size: 1 << 40,
            alignment: 256,
        };
        // Nothing here reaches the lowering: kernels are chosen by `Caps`.
        let hardware = HardwareProperties {
            load_width: 128,
            plane_size_min: 4,
            plane_size_max: 128,
            max_bindings: 30,
            max_shared_memory_size: 32 << 10,
            max_cube_count: Self::MAX_CUBES,
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            num_cpu_cores: None,
            max_vector_size: 4,
        };
        let mut p = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
        p.register_address_type(AddressType::U32);
        let mut types = vec![
            ElemType::UInt(UIntKind::U32),
            ElemType::Int(IntKind::I32),
            ElemType::Float(FloatKind::F32),
            ElemType::Float(FloatKind::Flex32),
            ElemType::Bool,
        ];
        let int64 = index & INT64 != 0;
        if int64 {
            types.extend([ElemType::Int(IntKind::I64), ElemType::UInt(UIntKind::U64)]);
        }
        if index & F16 != 0 {
            types.push(ElemType::Float(FloatKind::F16));
        }
        for kind in types {
            p.register_type_usage(kind, TypeUsage::all());
        }
        let options = WgpuCompilationOptions {
            supports_u64: int64,
            ..WgpuCompilationOptions::default()
        };
        (p, options)
    }

    fn compiler() -> AutoCompiler {
        AutoCompiler::Wgsl(WgslCompiler::default())
    }

    fn target_properties() -> TargetProperties {
        TargetProperties {
            mma: Default::default(),
        }
    }

    // Workgroup memory is part of the source.
    fn shared_bytes(_: &CompiledKernel<AutoCompiler>) -> usize {
        0
    }

    fn arch(_: u16) -> u32 {
        0
    }

    fn is_emulated(_: u16) -> bool {
        false
    }
}
