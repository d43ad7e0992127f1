//! Several neighbouring elements at a time: how the memory-bound kernels of this room load and store.
//!
//! Tensors are bound as vectors of `W` elements of the type `X` that is stored; kernels compute with `N` f32 of a
//! [`Vector`]. On GPUs a unit moves up to 16 bytes per load, so that few units keep the memory busy: four f32, eight
//! halves on CUDA, four where WGSL is the limit. On software Vulkan the number of loads is the cost, not their width:
//! there a pair of f32 is one 64-bit word (`W` 1, `N` 2). What is not aligned moves one by one. [`Caps::lanes`] decides.
//!
//! [`Caps::lanes`]: crate::gpu::Caps::lanes

use cubecl::ir::{ElemType, StorageType, UIntKind};
use cubecl::prelude::*;

use super::wide::{high, join, low};
use crate::gpu::launch::View;
use crate::gpu::{DType, Gpu, Tensor};

/// Most bytes of one load.
const BYTES: usize = 16;

/// How many elements a unit moves at once, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lanes {
    pub count: usize,
    /// Two f32 in one 64-bit word.
    word: bool,
}

impl Lanes {
    /// One element at a time.
    pub(crate) const ONE: Lanes = Lanes { count: 1, word: false };

    /// The most for these tensors, if all vectors start at multiples of `widths`: row widths, columns, lengths.
    pub(crate) fn pick(gpu: &Gpu, widths: &[usize], tensors: &[&Tensor]) -> Lanes {
        let caps = gpu.caps();
        let widest = tensors.iter().map(|t| t.dtype().bytes() as usize).max().unwrap_or(4);
        let most = (BYTES / widest).min(caps.lanes as usize);
        let fits = |n: usize| {
            n <= most && widths.iter().all(|w| w.is_multiple_of(n)) && tensors.iter().all(|t| t.aligned_to(n))
        };
        let count = [8, 4, 2].into_iter().find(|&n| fits(n)).unwrap_or(1);
        let word = count == 2 && caps.wide_loads && tensors.iter().all(|t| t.dtype() == DType::F32);
        Lanes { count, word }
    }

    /// No more than `most` elements.
    pub(crate) fn at_most(self, most: usize) -> Lanes {
        Lanes {
            count: self.count.min(most),
            ..self
        }
    }

    /// What a kernel's `W` and `N` are.
    pub(crate) fn sizes(self) -> [usize; 2] {
        [if self.word { 1 } else { self.count }, self.count]
    }

    /// The element type that a kernel sees.
    pub(crate) fn stored(self, tensor: &Tensor) -> StorageType {
        if self.word {
            ElemType::UInt(UIntKind::U64).into()
        } else {
            tensor.dtype().storage()
        }
    }

    /// Those of several tensors.
    pub(crate) fn types<const K: usize>(self, tensors: [&Tensor; K]) -> [StorageType; K] {
        tensors.map(|t| self.stored(t))
    }

    /// Workgroups and their units for kernels in which unit `ABSOLUTE_POS` moves one vector of `elements`.
    pub(crate) fn grid(self, gpu: &Gpu, elements: usize) -> (CubeCount, CubeDim) {
        // Small workgroups share software devices out more evenly; GPUs hide latency by many units.
        let units = if gpu.caps().software { 64 } else { 256 };
        let units = units.min(gpu.caps().max_units as usize);
        (
            gpu.cubes(elements.div_ceil(self.count), units),
            CubeDim::new_1d(units as u32),
        )
    }
}

/// Elements `at..at + N` of the bound range.
#[cube]
pub(crate) fn load<X: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    at: usize,
    #[comptime] lanes: Lanes,
) -> Vector<f32, N> {
    let stored = x.raw(at / lanes.count);
    if comptime!(lanes.word) {
        let mut pair = Vector::<f32, N>::empty();
        let word = u64::cast_from(stored);
        pair[0] = low(word);
        pair[1] = high(word);
        pair
    } else {
        Vector::<f32, N>::cast_from(stored)
    }
}

/// Stores elements `at..at + N` of the bound range.
#[cube]
pub(crate) fn store<X: Numeric, W: Size, N: Size>(
    x: &mut View<Vector<X, W>>,
    at: usize,
    values: Vector<f32, N>,
    #[comptime] lanes: Lanes,
) {
    if comptime!(lanes.word) {
        x.raw_set(at / lanes.count, Vector::<X, W>::cast_from(join(values[0], values[1])));
    } else {
        x.raw_set(at / lanes.count, Vector::<X, W>::cast_from(values));
    }
}

/// Words `at..at + N` of the bound range, of tensors that are not all f32.
#[cube]
pub(crate) fn load_words<X: Numeric, W: Size, N: Size>(
    x: &View<Vector<X, W>>,
    at: usize,
    #[comptime] lanes: Lanes,
) -> Vector<u32, N> {
    Vector::<u32, N>::cast_from(x.raw(at / lanes.count))
}

/// Stores words `at..at + N` of the bound range.
#[cube]
pub(crate) fn store_words<X: Numeric, W: Size, N: Size>(
    x: &mut View<Vector<X, W>>,
    at: usize,
    words: Vector<u32, N>,
    #[comptime] lanes: Lanes,
) {
    x.raw_set(at / lanes.count, Vector::<X, W>::cast_from(words));
}

/// Sum of the elements, in their order.
#[cube]
pub(crate) fn total<N: Size>(values: Vector<f32, N>, #[comptime] lanes: Lanes) -> f32 {
    let mut sum = values[0];
    #[unroll]
    for k in 1..lanes.count {
        sum += values[k];
    }
    sum
}
