//! Clipping by the global norm, and the guard, on the device.
//!
//! ```text
//! c = min(1, limit / ‖g‖)     of each group of parameters         g ← c g
//! ```
//! Norms, clip factors and the guard are computed on the device ([`Control`]): if any group has a non-finite gradient, the
//! update changes nothing but the gradients, and is counted as skipped; the host never waits. Optimizers apply the factor
//! as they read g; [`clip`] is the same as an op of its own.
//!
//! Cost: of the decision nothing that counts; clipping is memory bound, reads and writes x.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Clip factors and the guard, on the device.
///
/// `values`: for each group the clip factor, then the flag "apply" (1 or 0), the number of skipped updates, and how many
/// of them came last in a row.
pub struct Control {
    pub(super) values: Tensor,
    /// First row of squares of each group, and the end of the last, u32.
    firsts: Tensor,
    rows: usize,
    pub(super) groups: usize,
    patience: u32,
}

impl Control {
    /// For groups whose squares come in so many rows each; nothing skipped yet. After `patience` skipped updates in a row
    /// nothing is applied any more, so that the weights stay those that the updates failed with.
    pub fn new(gpu: &Gpu, rows: &[usize], patience: u32) -> Control {
        let groups = rows.len();
        let values = gpu.alloc_in(gpu.states(), DType::F32, [groups + 3]);
        super::fill::zero(gpu, &values);
        let firsts = gpu.alloc_in(gpu.states(), DType::U32, [groups + 1]);
        let ends = (0..=groups).map(|g| rows[..g].iter().sum::<usize>() as u32);
        gpu.copy(&gpu.upload_u32(&ends.collect::<Vec<_>>(), [groups + 1]), &firsts);
        Control {
            values,
            firsts,
            rows: rows.iter().sum(),
            groups,
            patience,
        }
    }

    /// Whether the update applies, `[1]`: one or zero.
    pub fn applies(&self) -> Tensor {
        self.values.slice(self.groups, [1])
    }

    /// Number of skipped updates so far, `[1]`.
    pub fn skipped(&self) -> Tensor {
        self.values.slice(self.groups + 1, [1])
    }

    /// From `squares [rows, 2]` (Σ g², non-finite count): clip factors for `limits`, the flag, the counts.
    pub fn decide(&self, gpu: &Gpu, squares: &Tensor, limits: &Tensor) {
        assert!(squares.dim(0) == self.rows && limits.len() == self.groups);
        launch!(
            gpu,
            Cost::moving("clip", squares.bytes()),
            decide_kernel,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(1),
            [squares, limits, &self.firsts, &self.values],
            (self.groups, self.patience as f32),
        );
    }
}

/// `x ← factor · x`, the factor being clip factor `group` of `control` (the clip alone, as an op of its own).
pub fn clip(gpu: &Gpu, x: &Tensor, control: &Control, group: usize) {
    let lanes = Lanes::pick(gpu, &[x.len()], &[x]);
    let (count, dim) = lanes.grid(gpu, x.len());
    launch!(
        gpu,
        Cost::moving("clip", 2 * x.bytes()),
        clip_kernel,
        count,
        dim,
        [x, &control.values],
        (x.len(), group, lanes, lanes.stored(x), lanes.sizes()),
    );
}

#[cube(launch_unchecked)]
fn decide_kernel(
    squares: &View<f32>,
    limits: &View<f32>,
    firsts: &View<u32>,
    values: &mut View<f32>,
    groups: usize,
    patience: f32,
) {
    let mut bad = 0.0f32;
    for group in 0..groups {
        let mut sum = 0.0f32;
        for row in firsts.get(group) as usize..firsts.get(group + 1) as usize {
            sum += squares.get(2 * row);
            bad += squares.get(2 * row + 1);
        }
        let norm = f32::sqrt(sum);
        let limit = limits.get(group);
        values.set(group, select(norm < limit, 1.0, limit / norm));
    }
    let in_a_row = values.get(groups + 2);
    let apply = bad == 0.0 && in_a_row < patience;
    values.set(groups, select(apply, 1.0, 0.0));
    values.set(groups + 1, values.get(groups + 1) + select(apply, 0.0, 1.0));
    values.set(groups + 2, select(apply, 0.0, in_a_row + 1.0));
}

#[cube(launch_unchecked)]
fn clip_kernel<X: Numeric, W: Size, N: Size>(
    x: &mut View<Vector<X, W>>,
    control: &View<f32>,
    n: usize,
    group: usize,
    #[comptime] lanes: Lanes,
    #[define(X)] _type: StorageType,
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS * lanes.count;
    if i < n {
        let at = x.start() + i;
        let factor = Vector::<f32, N>::new(control.get(group));
        store::<X, W, N>(x, at, load::<X, W, N>(x, at, lanes) * factor, lanes);
    }
}
