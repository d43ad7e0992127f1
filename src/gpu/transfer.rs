//! Host to device and back.

use std::future::{Future, poll_fn};
use std::panic::Location;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, Waker};

use cubecl::prelude::{CubeCount, Runtime};
use cubecl_common::bytes::Bytes;
use cubecl_common::future::block_on;
use cubecl_runtime::server::{Handle, ServerError};

use super::raw::{RawKernel, Source};
use super::{Backend, Client, Cost, DType, Gpu, Result, Shape, Storage, Tensor};

/// Words a unit of the copy kernel moves, so that 128 MiB fit into one dispatch dimension.
const WORDS_PER_UNIT: usize = 16;
const COPY_UNITS: usize = 64;

/// Bytes of uploads that go through page-locked memory. The driver takes up to 64 KiB of other memory at once, and waits
/// with more; whole tensors would keep too much memory locked.
pub(super) const LOCKED: std::ops::RangeInclusive<usize> = (64 << 10) + 1..=32 << 20;

/// Elements of a tensor that are sent at a time. cubecl's pool keeps what it once took, in pages of several times the
/// largest upload: small pieces leave the memory to the step.
pub(crate) const WRITTEN: usize = 1 << 20;

static COPY: LazyLock<RawKernel> = LazyLock::new(|| RawKernel {
    entry: "copy_words",
    wgsl: Source::file(include_str!("../../shaders/wgsl/copy_words.wgsl")),
    cuda: Source::cuda(include_str!("../../shaders/cuda/copy_words.cu"), ""),
    units: COPY_UNITS as u32,
    shared_bytes: 0,
});

/// Quads of words that a unit moves, and units.
const QUADS_PER_UNIT: usize = 4;
const QUAD_UNITS: usize = 256;

static COPY_QUADS: LazyLock<RawKernel> = LazyLock::new(|| RawKernel {
    entry: "copy_quads",
    wgsl: Source::file(include_str!("../../shaders/wgsl/copy_quads.wgsl")),
    cuda: Source::cuda(include_str!("../../shaders/cuda/copy_quads.cu"), ""),
    units: QUAD_UNITS as u32,
    shared_bytes: 0,
});

impl Gpu {
    /// A new tensor with these bytes, in cubecl's own pool (freed with the tensor).
    #[track_caller]
    fn upload_bytes(&self, bytes: &[u8], dtype: DType, shape: Shape) -> Tensor {
        assert_eq!(
            bytes.len() as u64,
            shape.len() as u64 * dtype.bytes(),
            "{dtype:?}{shape:?}"
        );
        if self.fault().is_some() {
            return Tensor::new(Storage::None, shape, dtype, self.caps().alignment);
        }
        // Buffers are whole words, and never empty.
        let whole = bytes.len().next_multiple_of(8).max(8);
        if let Some(pool) = &self.0.pool {
            let storage = pool
                .upload(whole as u64, Location::caller())
                .map_or(Storage::None, Storage::Planned);
            return Tensor::new(storage, shape, dtype, self.caps().alignment);
        }
        let data = aligned(bytes, whole);
        let locked = LOCKED.contains(&whole);
        let storage = match self.backend() {
            Backend::Wgpu(c) => Storage::Pool(c.upload(data, false)),
            Backend::Cuda(c) => Storage::Pool(c.upload(data, locked)),
            Backend::Dry(c) => Storage::Pool(c.upload(data, locked)),
            Backend::DryWgpu(c) => Storage::Pool(c.upload(data, false)),
            Backend::Null => Storage::None,
        };
        Tensor::new(storage, shape, dtype, self.caps().alignment)
    }

    /// Uploads f32 values.
    #[track_caller]
    pub fn upload_f32(&self, values: &[f32], shape: impl Into<Shape>) -> Tensor {
        self.upload_bytes(bytemuck::cast_slice(values), DType::F32, shape.into())
    }

    /// Uploads u32 values.
    #[track_caller]
    pub fn upload_u32(&self, values: &[u32], shape: impl Into<Shape>) -> Tensor {
        self.upload_bytes(bytemuck::cast_slice(values), DType::U32, shape.into())
    }

    /// Uploads bytes.
    #[track_caller]
    pub fn upload_u8(&self, values: &[u8], shape: impl Into<Shape>) -> Tensor {
        self.upload_bytes(values, DType::U8, shape.into())
    }

    /// Uploads f32 values stored as `dtype` (f32, f16 or bf16; rounds to nearest even).
    #[track_caller]
    pub fn upload_as(&self, values: &[f32], dtype: DType, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        match dtype {
            DType::F16 => {
                let half: Vec<half::f16> = values.iter().map(|&v| half::f16::from_f32(v)).collect();
                self.upload_bytes(bytemuck::cast_slice(&half), dtype, shape)
            }
            DType::Bf16 => {
                let half: Vec<half::bf16> = values.iter().map(|&v| half::bf16::from_f32(v)).collect();
                self.upload_bytes(bytemuck::cast_slice(&half), dtype, shape)
            }
            _ => self.upload_f32(values, shape),
        }
    }

    /// Overwrites `to` (f32, whole words) with `values`, in place.
    pub fn write_f32(&self, to: &Tensor, values: &[f32]) {
        assert_eq!(to.len(), values.len());
        // Chunked: an upload passes through host memory twice, and one operand must fit a binding.
        let most = (self.caps().max_binding_bytes / 4).min(WRITTEN as u64) as usize;
        for (i, chunk) in values.chunks(most).enumerate() {
            let from = self.upload_f32(chunk, [chunk.len()]);
            self.copy(&from, &to.slice(i * most, [chunk.len()]));
        }
    }

    /// `to = from`, elementwise on 32-bit words.
    pub fn copy(&self, from: &Tensor, to: &Tensor) {
        assert!(from.dtype() == to.dtype() && from.len() == to.len() && from.dtype().bytes() == 4);
        let n = from.len();
        let most = (self.caps().max_binding_bytes / 4) as usize / 2;
        for start in (0..n).step_by(most.max(1)) {
            let len = most.min(n - start);
            let (a, b) = (from.slice(start, [len]), to.slice(start, [len]));
            let count = self.cubes(len, COPY_UNITS * WORDS_PER_UNIT);
            let CubeCount::Static(cubes_x, _, _) = count else {
                unreachable!("cubes() counts on the host")
            };
            let scalars = [len as u32, a.at() as u32, b.at() as u32, cubes_x];
            self.launch_raw(Cost::moving("copy", 8 * len as u64), &COPY, count, &[&a, &b], &scalars);
        }
    }

    /// `to = from`, 16 bytes at a time: as fast as the device copies, for measuring that. Both are whole allocations within
    /// one binding, of f32 and a multiple of four of them.
    pub(crate) fn copy_quads(&self, from: &Tensor, to: &Tensor) {
        let n = from.len() / 4;
        assert!(from.len() == to.len() && from.len() == 4 * n && from.at() == 0 && to.at() == 0);
        let count = self.cubes(n, QUAD_UNITS * QUADS_PER_UNIT);
        let CubeCount::Static(cubes_x, _, _) = count else {
            unreachable!("cubes() counts on the host")
        };
        let cost = Cost::moving("copy", 2 * from.bytes());
        self.launch_raw(cost, &COPY_QUADS, count, &[from, to], &[n as u32, cubes_x]);
    }

    /// Reads a tensor of 32-bit floats. Waits for all work before it; fails if any of it failed.
    pub fn read_f32(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let bytes = self.read_bytes(tensor)?;
        Ok(match tensor.dtype() {
            DType::F16 => bytemuck::pod_collect_to_vec::<u8, half::f16>(&bytes)
                .iter()
                .map(|v| v.to_f32())
                .collect(),
            DType::Bf16 => bytemuck::pod_collect_to_vec::<u8, half::bf16>(&bytes)
                .iter()
                .map(|v| v.to_f32())
                .collect(),
            _ => bytemuck::pod_collect_to_vec(&bytes),
        })
    }

    /// Reads a tensor of 32-bit words.
    pub fn read_u32(&self, tensor: &Tensor) -> Result<Vec<u32>> {
        Ok(bytemuck::pod_collect_to_vec(&self.read_bytes(tensor)?))
    }

    fn read_bytes(&self, tensor: &Tensor) -> Result<Vec<u8>> {
        // A failed launch is reported by sync, never by read: ask first.
        self.sync()?;
        let wanted = tensor.bytes() as usize;
        let Some((handle, before)) = tensor.exact_handle() else {
            return Ok(vec![0; wanted]);
        };
        let result = match self.backend() {
            Backend::Wgpu(c) => c.read_one(handle),
            Backend::Cuda(c) => c.read_one(handle),
            Backend::Dry(c) => c.read_one(handle),
            Backend::DryWgpu(c) => c.read_one(handle),
            Backend::Null => return Ok(vec![0; wanted]),
        };
        Ok(self.settle(result)?[before..before + wanted].to_vec())
    }

    /// Reads several tensors of 32-bit words at once, after waiting once for all work before. The bytes are the device's own
    /// copy, which is freed with them.
    pub fn read_words(&self, tensors: &[Tensor]) -> Result<Vec<Words>> {
        // A failed launch is reported by sync, never by read: ask first.
        self.sync()?;
        assert!(
            tensors.iter().all(|t| t.dtype().bytes() == 4),
            "only whole words are read"
        );
        let handles: Option<Vec<Handle>> = tensors.iter().map(|t| t.exact_handle().map(|(h, _)| h)).collect();
        let Some(handles) = handles.filter(|_| !tensors.is_empty()) else {
            let zeros = |t: &Tensor| Words::new(Bytes::from_bytes_vec(vec![0; t.bytes() as usize]), t);
            return Ok(tensors.iter().map(zeros).collect());
        };
        let read = match self.backend() {
            Backend::Wgpu(c) => block_on(c.read_async(handles)),
            Backend::Cuda(c) => block_on(c.read_async(handles)),
            Backend::Dry(c) => block_on(c.read_async(handles)),
            Backend::DryWgpu(c) => block_on(c.read_async(handles)),
            Backend::Null => Ok(Vec::new()),
        };
        let words = self.settle(read)?.into_iter().zip(tensors);
        Ok(words.map(|(bytes, tensor)| Words::new(bytes, tensor)).collect())
    }

    /// Starts reading an f32 tensor as it is after all work issued so far, without waiting for it.
    pub fn read_later(&self, tensor: &Tensor) -> PendingRead {
        let wanted = tensor.len();
        // A failed launch is reported by flush, never by read: ask first.
        let flushed = match self.backend() {
            Backend::Wgpu(c) => self.settle(c.flush()),
            Backend::Cuda(c) => self.settle(c.flush()),
            Backend::Dry(c) => self.settle(c.flush()),
            Backend::DryWgpu(c) => self.settle(c.flush()),
            Backend::Null => self.check(),
        };
        assert_eq!(tensor.dtype().bytes(), 4, "only whole words are read later");
        let handle = flushed
            .ok()
            .and_then(|()| tensor.exact_handle())
            .map(|(handle, _)| handle);
        let future: Option<ReadFuture> = match (handle, self.backend()) {
            (Some(h), Backend::Wgpu(c)) => Some(read(c, h)),
            (Some(h), Backend::Cuda(c)) => Some(read(c, h)),
            (Some(h), Backend::Dry(c)) => Some(read(c, h)),
            (Some(h), Backend::DryWgpu(c)) => Some(read(c, h)),
            _ => None,
        };
        PendingRead {
            gpu: self.clone(),
            future: future.map(issued),
            wanted,
        }
    }
}

/// 32-bit words that were read, as bytes.
pub struct Words {
    bytes: Bytes,
    /// Of the tensor: what was read may be longer.
    len: usize,
}

impl Words {
    fn new(bytes: Bytes, tensor: &Tensor) -> Words {
        let len = tensor.bytes() as usize;
        Words { bytes, len }
    }
}

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A read whose first poll issues the copy and does no more: on CUDA the next one waits for the device.
fn read<R: Runtime>(client: &Client<R>, handle: Handle) -> ReadFuture {
    let client = client.clone();
    Box::pin(async move {
        let arrival = client.read_async(vec![handle]);
        let mut polled = false;
        poll_fn(|context| {
            context.waker().wake_by_ref();
            match std::mem::replace(&mut polled, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
        arrival.await
    })
}

/// The read with its copy issued: from here on it is ordered before everything launched later.
fn issued(mut read: ReadFuture) -> ReadFuture {
    let first = read.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    debug_assert!(first.is_pending(), "the first poll only issues");
    read
}

type ReadFuture = Pin<Box<dyn Future<Output = std::result::Result<Vec<Bytes>, ServerError>> + Send>>;

/// A read under way.
pub struct PendingRead {
    gpu: Gpu,
    future: Option<ReadFuture>,
    wanted: usize,
}

impl PendingRead {
    /// Waits for the values.
    pub fn wait(mut self) -> Result<Vec<f32>> {
        match self.future.take() {
            None => self.nothing(),
            Some(future) => {
                let result = cubecl_common::future::block_on(future);
                self.finish(result)
            }
        }
    }

    fn nothing(&self) -> Result<Vec<f32>> {
        self.gpu.check().map(|()| vec![0.0; self.wanted])
    }

    fn finish(&self, result: std::result::Result<Vec<Bytes>, ServerError>) -> Result<Vec<f32>> {
        let mut bytes = self.gpu.settle(result)?.remove(0).to_vec();
        bytes.truncate(self.wanted * 4);
        Ok(bytemuck::pod_collect_to_vec(&bytes))
    }
}
/// A copy of `bytes` with zeros up to `whole`. [`Bytes::from_bytes_vec`] would copy it again, because its memory is not
/// aligned for every type.
fn aligned(bytes: &[u8], whole: usize) -> Bytes {
    let room = Vec::<u128>::with_capacity(whole.div_ceil(size_of::<u128>()));
    let mut copy = Bytes::from_elems(room);
    copy.extend_from_byte_slice(bytes);
    copy.extend_from_byte_slice(&[0; 8][..whole - bytes.len()]);
    copy
}
