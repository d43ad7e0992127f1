//! Two f32 in one 64-bit word: halves the loads and stores where their number, not their width, is the cost.

use cubecl::prelude::*;

/// The first of the pair.
#[cube]
pub(crate) fn low(q: u64) -> f32 {
    f32::reinterpret(u32::cast_from(q))
}

/// The second of the pair.
#[cube]
pub(crate) fn high(q: u64) -> f32 {
    f32::reinterpret(u32::cast_from(q >> 32))
}

/// The pair.
#[cube]
pub(crate) fn join(low: f32, high: f32) -> u64 {
    u64::cast_from(u32::reinterpret(low)) | (u64::cast_from(u32::reinterpret(high)) << 32)
}
