//! Constants: `x = value`.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup, and vectors each of them sets.
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
        let lanes = Lanes::pick(gpu, &[part.len()], &[&part]);
        launch!(
            gpu,
            Cost::moving("fill", part.bytes()),
            fill_kernel,
            gpu.cubes(part.len(), UNITS * EACH * lanes.count),
            CubeDim::new_1d(UNITS as u32),
            [&part],
            (part.len(), value, lanes, lanes.stored(&part), lanes.sizes()),
        );
    }
}

#[cube(launch_unchecked)]
fn fill_kernel<X: Numeric, W: Size, N: Size>(
    x: &mut View<Vector<X, W>>,
    n: usize,
    value: f32,
    #[comptime] lanes: Lanes,
    #[define(X)] _type: StorageType,
    #[define(W, N)] _sizes: [usize; 2],
) {
    let first = CUBE_POS * comptime!(UNITS * EACH) + UNIT_POS as usize;
    let base = x.start();
    let values = Vector::<f32, N>::new(value);
    #[unroll]
    for i in 0..EACH {
        let at = (first + comptime!(i * UNITS)) * lanes.count;
        if at < n {
            store::<X, W, N>(x, base + at, values, lanes);
        }
    }
}
