//! A contiguous row-major view of device memory.

use std::ops::Range;
use std::sync::Arc;

use cubecl::prelude::{ArrayArg, Runtime};
use cubecl_runtime::server::Handle;

use super::DType;
use super::arena::Block;
use super::pool::Buffer;

/// Up to five dimensions, outermost first.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    dims: [usize; 5],
    rank: usize,
}

impl Shape {
    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    /// No elements at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(value: [usize; N]) -> Self {
        Shape::from(&value[..])
    }
}

impl From<&[usize]> for Shape {
    fn from(value: &[usize]) -> Self {
        assert!(value.len() <= 5, "a tensor has at most five dimensions, not {value:?}");
        let mut dims = [1; 5];
        dims[..value.len()].copy_from_slice(value);
        Shape {
            dims,
            rank: value.len(),
        }
    }
}

impl std::fmt::Debug for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

/// Where a tensor's bytes are.
pub(crate) enum Storage {
    /// A range of one of our arenas.
    Arena(Block),
    /// An upload: a buffer of cubecl's own pool.
    Pool(Handle),
    /// An upload of the null device: a place in a pool without memory.
    Planned(#[expect(dead_code, reason = "held until the tensor goes")] Buffer),
    /// Nothing: the null device, or memory that could not be had (the device then carries the error).
    None,
}

/// A view of device memory: base, offset, shape, element type. Cloning shares the memory.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    /// First element, counted from the start of the storage.
    offset: usize,
    shape: Shape,
    dtype: DType,
    /// Operands of kernels start at multiples of this many bytes; the rest is passed as an element offset.
    alignment: u64,
}

impl Tensor {
    pub(crate) fn new(storage: Storage, shape: Shape, dtype: DType, alignment: u64) -> Self {
        Tensor {
            storage: Arc::new(storage),
            offset: 0,
            shape,
            dtype,
            alignment,
        }
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Size of dimension `axis`.
    pub fn dim(&self, axis: usize) -> usize {
        self.shape()[axis]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }

    /// No elements at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * self.dtype.bytes()
    }

    /// The same elements under another shape.
    #[must_use]
    pub fn view(&self, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert_eq!(shape.len(), self.len(), "cannot view {:?} as {shape:?}", self.shape);
        Tensor { shape, ..self.clone() }
    }

    /// `shape.len()` elements from element `start` on.
    #[must_use]
    pub fn slice(&self, start: usize, shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        assert!(
            start + shape.len() <= self.len(),
            "{start} + {shape:?} is outside of {:?}",
            self.shape
        );
        Tensor {
            offset: self.offset + start,
            shape,
            ..self.clone()
        }
    }

    /// Entries `range` of the outermost dimension.
    #[must_use]
    pub fn rows(&self, range: Range<usize>) -> Tensor {
        assert!(
            range.start <= range.end && range.end <= self.dim(0),
            "rows {range:?} of {:?}",
            self.shape
        );
        let inner: usize = self.shape()[1..].iter().product();
        let mut dims = self.shape;
        dims.dims[0] = range.len();
        Tensor {
            offset: self.offset + range.start * inner,
            shape: dims,
            ..self.clone()
        }
    }

    /// Byte range a kernel binds: start (aligned) and length.
    fn bound(&self) -> (u64, u64) {
        let start = self.offset as u64 * self.dtype.bytes();
        let aligned = start / self.alignment * self.alignment;
        (aligned, start + self.bytes() - aligned)
    }

    /// Bytes one kernel operand covers when this tensor is bound.
    pub fn bound_bytes(&self) -> u64 {
        self.bound().1
    }

    /// First element relative to the bound range.
    pub fn at(&self) -> usize {
        (self.offset as u64 - self.bound().0 / self.dtype.bytes()) as usize
    }

    /// Is every element pair (2i, 2i+1) inside one aligned 64-bit word?
    pub(crate) fn pairs(&self) -> bool {
        self.dtype.bytes() == 4 && self.offset.is_multiple_of(2)
    }

    /// Does the first element lie at a multiple of `elements`, at most 16 bytes of them?
    pub(crate) fn aligned_to(&self, elements: usize) -> bool {
        self.offset.is_multiple_of(elements)
    }

    /// The bytes `start..start + len` of this tensor's storage as a handle; `None` without a device.
    fn handle_range(&self, start: u64, len: u64) -> Option<Handle> {
        // Copies and bindings are multiples of four bytes; storages are padded to far more than that.
        let len = len.next_multiple_of(4);
        match &*self.storage {
            Storage::Arena(block) => {
                let handle = block.handle.clone()?;
                let from = block.start + start;
                Some(handle.offset_start(from).offset_end(block.page_size() - from - len))
            }
            Storage::Pool(handle) => {
                // Not `size()`: that is the padded size of the allocation, part of which is already cut off.
                let size = handle.size_in_used();
                Some(handle.clone().offset_start(start).offset_end(size - start - len))
            }
            Storage::Planned(_) | Storage::None => None,
        }
    }

    /// First byte of the view, counted from the start of the storage, which is aligned as any device asks.
    pub(crate) fn start_bytes(&self) -> u64 {
        self.offset as u64 * self.dtype.bytes()
    }

    /// The bytes of this view, wherever they start.
    ///
    /// # Panics
    /// Without device memory: the launch layer never gets here then.
    pub(crate) fn unaligned_handle(&self) -> Handle {
        self.handle_range(self.start_bytes(), self.bytes())
            .expect("a tensor of a running device has memory")
    }

    /// The elements of this view, for reading back, and how many bytes of the range come before the first: copies
    /// start at whole words.
    pub(crate) fn exact_handle(&self) -> Option<(Handle, usize)> {
        let start = self.offset as u64 * self.dtype.bytes();
        let before = start % 4;
        let handle = self.handle_range(start - before, before + self.bytes())?;
        Some((handle, before as usize))
    }

    /// The kernel operand.
    ///
    /// # Panics
    /// Without device memory: the launch layer never gets here then.
    pub(crate) fn array_arg<R: Runtime>(&self) -> ArrayArg<R> {
        let len = (self.bound().1 / self.dtype.bytes()) as usize;
        // SAFETY: the range lies inside the storage; kernels are launched with the shapes of their tensors.
        unsafe { ArrayArg::from_raw_parts(self.bound_handle(), len) }
    }

    /// The bytes a kernel binds.
    ///
    /// # Panics
    /// Without device memory: the launch layer never gets here then.
    pub(crate) fn bound_handle(&self) -> Handle {
        let (start, len) = self.bound();
        self.handle_range(start, len)
            .expect("a tensor of a running device has memory")
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype.name(), self.shape)
    }
}
