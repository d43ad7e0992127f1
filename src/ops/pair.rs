//! Two neighbouring elements at a time, for kernels that hold rows in registers pair by pair.
//!
//! A pair of f32 is one 64-bit load where the device allows it (`wide`): on software Vulkan that halves the cost,
//! which is counted in loads. Everything else (half precision, odd sizes) loads the two one by one.

use cubecl::ir::{ElemType, StorageType, UIntKind};
use cubecl::prelude::*;

use super::wide::{high, join, low};
use crate::gpu::Tensor;
use crate::gpu::launch::View;

/// Elements `i` and `i + 1`.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Pair {
    pub a: f32,
    pub b: f32,
}

/// Elements `at` and `at + 1` of the bound range. With `more` false only the first exists, and comes twice.
#[cube]
pub(crate) fn load2<F: Numeric>(x: &View<F>, at: usize, more: bool, #[comptime] wide: bool) -> Pair {
    let mut pair = Pair { a: 0.0, b: 0.0 };
    if comptime!(wide) {
        let q = u64::cast_from(x.raw(at / 2));
        pair.a = low(q);
        pair.b = high(q);
    } else {
        pair.a = f32::cast_from(x.raw(at));
        pair.b = f32::cast_from(x.raw(at + select(more, 1, 0)));
    }
    pair
}

/// Stores `pair` at `at` and, with `more`, `at + 1` of the bound range.
#[cube]
pub(crate) fn store2<F: Numeric>(x: &mut View<F>, at: usize, more: bool, pair: Pair, #[comptime] wide: bool) {
    if comptime!(wide) {
        x.raw_set(at / 2, F::cast_from(join(pair.a, pair.b)));
    } else {
        x.raw_set(at, F::cast_from(pair.a));
        if more {
            x.raw_set(at + 1, F::cast_from(pair.b));
        }
    }
}

/// The element type a kernel must see.
pub(crate) fn storage(tensor: &Tensor, wide: bool) -> StorageType {
    if wide {
        ElemType::UInt(UIntKind::U64).into()
    } else {
        tensor.dtype().storage()
    }
}
