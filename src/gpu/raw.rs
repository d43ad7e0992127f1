//! Hand-written kernels: one WGSL and one CUDA C++ source per kernel, launched on the same buffers as `#[cube]` ones.
//!
//! Rules of the sources under `shaders/`:
//! - WGSL: group 0; buffers at bindings 0.. in launch order, all declared `read_write` (views share one wgpu buffer)
//!   and all used (the layout is derived from use); then `var<storage, read> info: array<u32>` with the scalars.
//! - CUDA: `extern "C"`; one `const __grid_constant__ CUtensorMap` per tensor map, one pointer to the same memory per
//!   map, one pointer per buffer in launch order, then `const __grid_constant__ info_st info` whose fields are the
//!   scalars (u32 each, padded to an even count). No `#include`: [`Source::cuda`] puts definitions and
//!   `shaders/cuda/include/prelude.cuh` in front.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;

use cubecl::prelude::{CubeCount, CubeDim};
use cubecl_core::ir::{ElemType, StorageType, UIntKind};
use cubecl_core::zspace::metadata::Metadata;
use cubecl_cpp::shared as cpp;
use cubecl_cuda::CudaCompiler;
use cubecl_runtime::{
    compiler::{CompilationError, CubeTask},
    id::KernelId,
    kernel::{CompiledKernel, KernelMetadata},
    server::{ExecutionMode, KernelArguments, MetadataBindingInfo, TensorMapBinding, TensorMapMeta},
    tma::{OobFill, TensorMapFormat, TensorMapInterleave, TensorMapPrefetch, TensorMapSwizzle, TiledArgs},
};
use cubecl_wgpu::AutoCompiler;
use xxhash_rust::xxh3::xxh3_64;

use super::{Backend, Cost, Gpu, MOST_ELEMENTS, Tensor};

/// What every CUDA source starts with.
const PRELUDE: &str = include_str!("../../shaders/cuda/include/prelude.cuh");

/// The text of a kernel, and what tells it from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Source {
    text: &'static str,
    hash: u64,
}

impl Source {
    /// The kernel does not exist in this language.
    pub(crate) const NONE: Source = Source { text: "", hash: 0 };

    /// A source as it is.
    pub(crate) fn file(text: &'static str) -> Source {
        let hash = xxh3_64(text.as_bytes());
        Source { text, hash }
    }

    /// `defines` (lines `#define NAME VALUE`), the prelude, then `file`; like [`Source::text`].
    pub(crate) fn cuda(file: &'static str, defines: &str) -> Source {
        Source::text(format!("{defines}\n{PRELUDE}\n{file}"))
    }

    /// A text that is put together at run time and stays for the life of the process: once for each form of a kernel, by
    /// [`Forms`] or in a static.
    pub(crate) fn text(text: String) -> Source {
        Source::file(Box::leak(text.into_boxed_str()))
    }
}

/// Sources of a kernel by its form, each put together once in the life of the process: launches only look them up.
pub(crate) struct Forms<K>(Mutex<Option<HashMap<K, Source>>>);

impl<K: Eq + Hash> Forms<K> {
    pub(crate) const fn new() -> Self {
        Forms(Mutex::new(None))
    }

    /// The source of `form`; `make` puts it together the first time, without the lock.
    pub(crate) fn get(&self, form: K, make: impl FnOnce(&K) -> Source) -> Source {
        let lock = || self.0.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(&made) = lock().get_or_insert_default().get(&form) {
            return made;
        }
        let made = make(&form);
        *lock().get_or_insert_default().entry(form).or_insert(made)
    }
}

/// `text` with its conditions resolved and its names filled in: what stands between `#if NAME` (or `#if !NAME`), `#else`
/// and `#endif` stays if `flags` has the name (or not), and `$NAME` becomes its value. Lines that are conditions go.
pub(crate) fn fill_in(text: &str, flags: &[&str], values: &[(&str, &str)]) -> String {
    let mut out = String::new();
    // Of every open condition: does its text stay?
    let mut open: Vec<bool> = Vec::new();
    for line in text.lines() {
        let word = line.trim();
        if let Some(name) = word.strip_prefix("#if ") {
            let stays = match name.strip_prefix('!') {
                Some(name) => !flags.contains(&name),
                None => flags.contains(&name),
            };
            open.push(stays);
        } else if word == "#else" {
            if let Some(last) = open.last_mut() {
                *last = !*last;
            }
        } else if word == "#endif" {
            open.pop();
        } else if open.iter().all(|&stays| stays) {
            out.push_str(line);
            out.push('\n');
        }
    }
    // Longer names first: one may begin with another.
    let mut values = values.to_vec();
    values.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (name, value) in values {
        out = out.replace(&format!("${name}"), value);
    }
    out
}

/// A matrix (or a batch of them) that the copy engine of Hopper reads by boxes of `tile` elements. Elements outside of
/// `shape` read as zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMap<'a> {
    /// Memory from the first element on, at a multiple of 16 bytes.
    pub tensor: &'a Tensor,
    /// Matrices, rows, columns.
    pub shape: [usize; 3],
    /// Elements from one matrix and from one row to the next, multiples of 16 bytes.
    pub strides: [usize; 2],
    /// Rows and columns of a box, at most 256; columns at most 128 bytes.
    pub tile: [usize; 2],
}

impl TensorMap<'_> {
    /// Does the memory start where the copy engine can read it, and are the strides ones it can step? Sizes are what it can
    /// count, because operands are.
    pub(crate) fn fits(tensor: &Tensor, strides: [usize; 2]) -> bool {
        /// Strides must be below this many bytes.
        const MOST_STRIDE: u64 = 1 << 40;
        let size = tensor.dtype().bytes();
        let steps = |elements: usize| {
            let bytes = elements as u64 * size;
            bytes.is_multiple_of(16) && bytes < MOST_STRIDE
        };
        tensor.start_bytes().is_multiple_of(16) && strides.into_iter().all(steps)
    }

    fn bind(&self) -> TensorMapBinding {
        let [matrices, rows, columns] = self.shape;
        let [matrix, row] = self.strides;
        let size = self.tensor.dtype().bytes() as usize;
        debug_assert!(
            self.tile[0] <= 256 && self.tile[1] * size <= 128,
            "{:?} is no box",
            self.tile
        );
        debug_assert!(
            self.shape
                .into_iter()
                .all(|n| (1..=MOST_ELEMENTS as usize).contains(&n)),
            "{:?}",
            self.shape
        );
        TensorMapBinding {
            binding: self.tensor.unaligned_handle().binding(),
            map: TensorMapMeta {
                format: TensorMapFormat::Tiled(TiledArgs {
                    tile_size: [1, self.tile[0], self.tile[1]].into(),
                }),
                // A single matrix has no next one, but the driver wants a stride.
                metadata: Metadata::new([matrices, rows, columns], [matrix.max(row), row, 1]),
                elem_stride: [1, 1, 1].into(),
                interleave: TensorMapInterleave::None,
                swizzle: TensorMapSwizzle::B128,
                prefetch: TensorMapPrefetch::B256,
                oob_fill: OobFill::Zero,
                storage_ty: self.tensor.dtype().storage(),
            },
        }
    }
}

/// One hand-written kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawKernel {
    /// Entry point, the same in both sources.
    pub entry: &'static str,
    pub wgsl: Source,
    pub cuda: Source,
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
            self.wgsl.hash,
            self.cuda.hash,
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
            source: self.wgsl.text.into(),
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
            source: self.cuda.text.into(),
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
        self.launch_mapped(cost, kernel, count, &[], operands, scalars);
    }

    /// The same with tensor maps (CUDA of compute capability 9.0), which come before the operands.
    pub(crate) fn launch_mapped(
        &self,
        cost: Cost,
        kernel: &RawKernel,
        count: CubeCount,
        maps: &[TensorMap<'_>],
        operands: &[&Tensor],
        scalars: &[u32],
    ) {
        let all: Vec<&Tensor> = maps.iter().map(|m| m.tensor).chain(operands.iter().copied()).collect();
        if !self.admit(&cost, &all, &count, &CubeDim::new_1d(kernel.units)) {
            return;
        }
        self.launches(kernel.entry);
        self.before(&all);
        let task = *kernel;
        let arguments = || {
            let buffers = operands.iter().map(|t| t.bound_handle().binding()).collect();
            KernelArguments::new()
                .with_tensor_maps(maps.iter().map(TensorMap::bind).collect())
                .with_buffers(buffers)
                .with_info(info(scalars))
        };
        match self.backend() {
            Backend::Wgpu(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::Cuda(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::Dry(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::DryWgpu(c) => self.run(&cost, c, || c.launch(Box::new(task), count, arguments())),
            Backend::Null => self.count(&cost, std::time::Duration::ZERO),
        }
        self.after(cost.op, &all);
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
