//! Hand-written kernels: one WGSL and one CUDA C++ source per kernel, launched on the same buffers as `#[cube]` ones.
//!
//! Rules of the sources under `shaders/`:
//! - WGSL: group 0; buffers at bindings 0.. in launch order, all declared `read_write` (views share one wgpu buffer)
//!   and all used (the layout is derived from use); then `var<storage, read> info: array<u32>` with the scalars.
//! - CUDA: `extern "C"`, one pointer per buffer in launch order, then `const __grid_constant__ info_st info` whose
//!   fields are the scalars (u32 each, padded to an even count).

use cubecl::prelude::{CubeCount, CubeDim};
use cubecl_core::ir::{ElemType, StorageType, UIntKind};
use cubecl_cpp::shared as cpp;
use cubecl_cuda::CudaCompiler;
use cubecl_runtime::{
    compiler::{CompilationError, CubeTask},
    id::KernelId,
    kernel::{CompiledKernel, KernelMetadata},
    server::{ExecutionMode, KernelArguments, MetadataBindingInfo},
};
use cubecl_wgpu::AutoCompiler;

use super::{Backend, Cost, Gpu, Tensor};

/// One hand-written kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawKernel {
    /// Entry point, the same in both sources.
    pub entry: &'static str,
    pub wgsl: &'static str,
    pub cuda: &'static str,
    /// Units in a workgroup, as written in the WGSL source.
    pub units: u32,
    /// Dynamic shared memory of the CUDA kernel in bytes.
    pub shared_bytes: usize,
}

impl KernelMetadata for RawKernel {
    fn name(&self) -> &'static str {
        self.entry
    }

    // The id is the key of the pipeline cache, so it must tell any two sources apart.
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().cube_dim(CubeDim::new_1d(self.units)).info((
            self.entry,
            self.wgsl,
            self.cuda,
            self.shared_bytes,
        ))
    }

    fn address_type(&self) -> StorageType {
        ElemType::UInt(UIntKind::U32).into()
    }
}

impl CubeTask<AutoCompiler> for RawKernel {
    fn compile(
        &self,
        _: &mut AutoCompiler,
        _: &<AutoCompiler as cubecl_runtime::compiler::Compiler>::CompilationOptions,
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<CompiledKernel<AutoCompiler>, CompilationError> {
        Ok(CompiledKernel {
            entrypoint_name: self.entry.into(),
            debug_name: Some(self.entry),
            source: self.wgsl.into(),
            repr: None, // wgpu then derives the layout from the source
            cube_dim: CubeDim::new_1d(self.units),
            debug_info: None,
        })
    }
}

impl CubeTask<CudaCompiler> for RawKernel {
    fn compile(
        &self,
        _: &mut CudaCompiler,
        _: &cpp::CompilationOptions,
        _: ExecutionMode,
        _: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        // cubecl reads only the size of the shared memory from the representation.
        let byte = cpp::Item::new(cpp::Elem::U8, 1, false);
        let mut shared = cpp::SharedMemory::new_array(0, byte, self.shared_bytes, 1024);
        if let cpp::SharedMemory::Array { offset, .. } = &mut shared {
            *offset = 0;
        }
        let cube_dim = CubeDim::new_1d(self.units);
        let repr = cpp::ComputeKernel {
            tensor_maps: vec![],
            buffers: vec![],
            scalars: vec![],
            info: Default::default(),
            meta_static_len: 0,
            body: cpp::Body {
                instructions: vec![],
                shared_memories: vec![shared],
                pipelines: vec![],
                barriers: vec![],
                const_arrays: vec![],
                local_arrays: vec![],
                info_by_ptr: false,
                has_dynamic_meta: false,
                address_type: byte,
            },
            cube_dim,
            cluster_dim: None,
            extensions: vec![],
            flags: Default::default(),
            items: Default::default(),
            kernel_name: self.entry.into(),
        };
        Ok(CompiledKernel {
            entrypoint_name: self.entry.into(),
            debug_name: Some(self.entry),
            source: self.cuda.into(),
            repr: Some(repr),
            cube_dim,
            debug_info: None,
        })
    }
}

impl Gpu {
    /// Launches a hand-written kernel. Operands are bound at aligned addresses: pass [`Tensor::at`] as a scalar where
    /// a view may start in between.
    pub(crate) fn launch_raw(
        &self,
        cost: Cost,
        kernel: &RawKernel,
        count: CubeCount,
        operands: &[&Tensor],
        scalars: &[u32],
    ) {
        if !self.admit(&cost, operands, &count, &CubeDim::new_1d(kernel.units)) {
            return;
        }
        self.before(operands);
        let task = *kernel;
        let arguments = || {
            let buffers = operands.iter().map(|t| t.bound_handle().binding()).collect();
            KernelArguments::new().with_buffers(buffers).with_info(info(scalars))
        };
        match self.backend() {
            Backend::Wgpu(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::Cuda(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::Dry(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::Null => self.count(&cost, std::time::Duration::ZERO),
        }
        self.after(cost.op, operands);
    }
}

/// Scalars as cubecl passes them: by value on CUDA, in a read-only buffer on wgpu. The static part is everything:
/// with a dynamic part CUDA would upload it separately at every launch.
fn info(words: &[u32]) -> MetadataBindingInfo {
    let data: Vec<u64> = words
        .chunks(2)
        .map(|c| c[0] as u64 | (c.get(1).copied().unwrap_or(0) as u64) << 32)
        .collect();
    let len = data.len();
    MetadataBindingInfo::new(data, len)
}
