//! What a device can do: the table that kernels are chosen by (never by timing, so that choices are reproducible).

use super::DType;

/// Which programming interface drives the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    Vulkan,
    Metal,
    Dx12,
    Cuda,
    /// CUDA without a device: kernels are lowered and recorded, nothing runs.
    CudaDry,
    /// wgpu without an adapter: the same.
    WgpuDry,
    /// CUDA's kernels on the CPU.
    CudaEmulated,
    /// No device at all: only costs and memory are recorded.
    Null,
}

impl std::fmt::Display for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Api::Vulkan => "Vulkan",
            Api::Metal => "Metal",
            Api::Dx12 => "DX12",
            Api::Cuda => "CUDA",
            Api::CudaDry => "CUDA (dry)",
            Api::WgpuDry => "wgpu (dry)",
            Api::CudaEmulated => "CUDA (emulated)",
            Api::Null => "none",
        })
    }
}

/// Matrix units of a wgpu device: products of square matrices by the units of a subgroup together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cooperative {
    /// Side of matrices of f16 whose products are added up in f32.
    pub halves: Option<u32>,
    /// Side of matrices of f32.
    pub floats: Option<u32>,
    pub dialect: Dialect,
    /// Units that a subgroup probably has. Kernels are right with any number, and fast with this one.
    pub subgroup: u32,
}

/// How WGSL's cooperative matrices reach the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// SPIR-V: `coopLoadT` and `coopStoreT` are row by row, as documented.
    Vulkan,
    /// MSL: naga 29 hands "row by row" to Metal as "transposed", so it is the names without T that are row by row.
    Metal,
    /// Vulkan's, as plain WGSL for devices without such units, in subgroups of that many units: to check numbers.
    Emulated(u32),
    /// Metal's, likewise.
    EmulatedMetal(u32),
}

/// Most bytes of one kernel operand on any device. Kernels count elements in 32 bits, rounded up to whole workgroups and
/// vectors: with at most 2³⁰ words or 2³¹ halves nothing wraps. What is larger is cut into several launches. Where an
/// operand lies in its page is not counted in elements, so pages may have any size.
pub const MOST_BINDING_BYTES: u64 = 1 << 32;

/// Most elements of one kernel operand on any device.
pub const MOST_ELEMENTS: u64 = 1 << 31;

/// Limits and abilities of one device.
#[derive(Clone, Debug)]
pub struct Caps {
    /// Adapter name as the driver reports it.
    pub name: String,
    pub api: Api,
    /// A CPU pretends to be the GPU (Mesa's lavapipe, SwiftShader, WARP).
    pub software: bool,
    /// Units that run in lockstep and can broadcast registers, when that number is the same for every kernel.
    pub plane: Option<u32>,
    /// Matrix units that WGSL reaches, where the adapter offers them.
    pub cooperative: Option<Cooperative>,
    /// 64-bit integers in buffers: two f32 per load, which halves the loads on software Vulkan.
    pub wide_loads: bool,
    /// Elements that one load or store of a unit moves where they are aligned, of at most 16 bytes together.
    pub lanes: u32,
    /// 16-bit integers in buffers: bf16 weights then keep the rest of their f32 masters in them.
    pub u16: bool,
    pub f16: bool,
    pub bf16: bool,
    /// Largest range of memory one kernel operand may cover, in bytes.
    pub max_binding_bytes: u64,
    /// Largest single allocation, in bytes.
    pub max_page_bytes: u64,
    /// Largest page that cubecl's own pool takes for uploads, and what buffers in it are aligned to, in bytes.
    pub pool_page_bytes: u64,
    pub pool_alignment: u64,
    /// Memory of the device in bytes, where the driver says.
    pub memory_bytes: Option<u64>,
    /// CUDA's compute capability, such as 90 for Hopper; none on other APIs, whose kernels are not CUDA's.
    pub cuda_arch: Option<u32>,
    /// Processors that run workgroups, where the driver says: how many workgroups a launch needs to fill the device.
    pub multiprocessors: Option<u32>,
    pub max_units: u32,
    pub max_shared_bytes: u32,
    pub max_cubes: [u32; 3],
    /// Operands start at multiples of this many bytes.
    pub alignment: u64,
}

impl Caps {
    /// A device that stands for a data-centre GPU in plans: pages of up to 2^40 bytes, operands as large as kernels can
    /// count, every storage type.
    pub fn planning() -> Self {
        Caps {
            name: "planning device".into(),
            api: Api::Null,
            software: false,
            plane: Some(32),
            cooperative: None,
            wide_loads: false,
            lanes: 8,
            u16: true,
            f16: true,
            bf16: true,
            max_binding_bytes: MOST_BINDING_BYTES,
            max_page_bytes: 1 << 40,
            pool_page_bytes: 20 << 30,
            pool_alignment: 512,
            memory_bytes: None,
            cuda_arch: Some(90),
            multiprocessors: Some(132),
            max_units: 1024,
            max_shared_bytes: 227 << 10,
            max_cubes: [i32::MAX as u32, 65535, 65535],
            alignment: 512,
        }
    }

    /// Are kernels WGSL's, and not CUDA's?
    pub fn wgsl(&self) -> bool {
        match self.api {
            Api::Vulkan | Api::Metal | Api::Dx12 | Api::WgpuDry => true,
            Api::Cuda | Api::CudaDry | Api::CudaEmulated => false,
            Api::Null => self.cuda_arch.is_none(),
        }
    }

    /// Can tensors of this type live on the device?
    pub fn stores(&self, dtype: DType) -> bool {
        match dtype {
            DType::F32 | DType::U32 | DType::U8 => true,
            DType::U16 => self.u16,
            DType::F16 => self.f16,
            DType::Bf16 => self.bf16,
        }
    }
}
