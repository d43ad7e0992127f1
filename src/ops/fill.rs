//! Constants: `x = value`.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup, and elements each of them sets.
const UNITS: usize = 64;
const EACH: usize = 8;

/// `x = 0`
pub fn zero(gpu: &Gpu, x: &Tensor) {
    set(gpu, x, 0.0);
}

/// `x = value`
pub fn set(gpu: &Gpu, x: &Tensor, value: f32) {
    // A tensor may be larger than one binding.
    let most = (gpu.caps().max_binding_bytes / x.dtype().bytes()) as usize / 2;
    for start in (0..x.len()).step_by(most.max(1)) {
        let part = x.slice(start, [most.min(x.len() - start)]);
        launch!(
            gpu,
            Cost::moving("fill", part.bytes()),
            fill_kernel,
            gpu.cubes(part.len(), UNITS * EACH),
            CubeDim::new_1d(UNITS as u32),
            [&part],
            (part.len(), value, part.dtype().storage()),
        );
    }
}

#[cube(launch_unchecked)]
fn fill_kernel<X: Numeric>(x: &mut View<X>, n: usize, value: f32, #[define(X)] _type: StorageType) {
    let first = CUBE_POS * comptime!(UNITS * EACH) + UNIT_POS as usize;
    let base = x.start();
    #[unroll]
    for i in 0..EACH {
        let at = first + comptime!(i * UNITS);
        if at < n {
            x.raw_set(base + at, X::cast_from(value));
        }
    }
}
