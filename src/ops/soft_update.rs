//! Target networks and averages on their own: `target ← target + rate (online - target)`.
//!
//! It is moved, not mixed: mixing drifts even where `online` stands still. Optimizers do the same in their pass.
//!
//! Cost: memory bound: reads both, writes one.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// `target ← target + rate (online - target)` on its own.
pub fn soft_update(gpu: &Gpu, target: &Tensor, online: &Tensor, rate: f32) {
    let n = target.len();
    let lanes = Lanes::pick(gpu, &[n], &[target, online]);
    let (count, dim) = lanes.grid(gpu, n);
    launch!(
        gpu,
        Cost::moving("soft_update", 3 * target.bytes()),
        soft_update_kernel,
        count,
        dim,
        [target, online],
        (n, rate, lanes, lanes.types([target, online]), lanes.sizes()),
    );
}

#[cube(launch_unchecked)]
fn soft_update_kernel<P: Numeric, Q: Numeric, W: Size, N: Size>(
    target: &mut View<Vector<P, W>>,
    online: &View<Vector<Q, W>>,
    n: usize,
    rate: f32,
    #[comptime] lanes: Lanes,
    #[define(P, Q)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS * lanes.count;
    if i < n {
        let at = target.start() + i;
        let t = load::<P, W, N>(target, at, lanes);
        let o = load::<Q, W, N>(online, online.start() + i, lanes);
        store::<P, W, N>(target, at, t + (o - t) * Vector::new(rate), lanes);
    }
}
