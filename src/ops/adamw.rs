//! AdamW, and what every optimizer shares: global-norm clip, guard, weight averaging, all on the device.
//!
//! ```text
//! c = min(1, limit / ‖g‖)                         g ← c g
//! m ← β₁ m + (1 - β₁) g      v ← β₂ v + (1 - β₂) g²
//! p ← p - lr ( m / (1 - β₁ᵗ) / (sqrt(v / (1 - β₂ᵗ)) + ε) + λ p )
//! a ← a + rate (p - a)       average: EMA (rate 1 - decay) or target network (rate τ)
//! g ← 0                      ready for the next accumulation
//! ```
//! One pass over flat memory. Norms, clip factors and the guard are computed on the device ([`Control`]): if any group
//! has a non-finite gradient, nothing but g changes, and the step is counted as skipped; the host never waits.
//! The average is moved, not mixed (`a + rate (p - a)`): mixing drifts even where p stands still.
//! Source: Loshchilov & Hutter 2019 (decoupled decay on every tensor, as the reference does).
//!
//! Cost: memory bound: reads p, g, m, v, a; writes them.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::optimizers::{Hyper, Rule};
use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// Hyperparameters of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// What changes from update to update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub lr: f32,
    /// Number of this update, from 1.
    pub t: u64,
    /// Rate of the average.
    pub rate: f32,
}

/// Flat memory of one stretch of parameters, all of the same length.
#[derive(Clone, Copy)]
pub struct Flat<'a> {
    pub p: &'a Tensor,
    pub g: &'a Tensor,
    pub m: &'a Tensor,
    /// Second moment; absent: the optimizer keeps none.
    pub v: Option<&'a Tensor>,
    /// EMA or target; absent: none is kept.
    pub average: Option<&'a Tensor>,
    /// Weights in the type the step computes in; absent where that is f32.
    pub compute: Option<&'a Tensor>,
}

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

impl Rule for AdamW {
    const SECOND_MOMENT: bool = true;

    fn new(hyper: Hyper) -> AdamW {
        AdamW {
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            eps: hyper.eps,
            weight_decay: hyper.weight_decay,
        }
    }

    fn step(self, gpu: &Gpu, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
        step(gpu, self, update, control, group, flat);
    }
}

/// One update of `flat`, which belongs to group `group` of `control`.
///
/// # Panics
/// If `flat` has no second moment.
pub fn step(gpu: &Gpu, adam: AdamW, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
    let n = flat.p.len();
    let v = flat.v.expect("AdamW has two moments");
    let average = flat.average.unwrap_or(flat.p);
    let compute = flat.compute.unwrap_or(flat.p);
    let form = Form {
        average: flat.average.is_some(),
        compute: flat.compute.is_some(),
    };
    let wide = is_wide(gpu, n, &[flat.p, flat.g, flat.m, v, average]);
    let types = [storage(flat.p, wide), compute.dtype().storage()];
    let correction = |beta: f32| 1.0 - libm::pow(beta as f64, update.t as f64);
    launch!(
        gpu,
        Cost::moving("adamw", (8 + if form.average { 2 } else { 0 }) * flat.p.bytes()),
        adamw_kernel,
        gpu.cubes(n.div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [flat.p, flat.g, flat.m, v, average, compute, &control.values],
        (
            n,
            group,
            control.groups,
            update.lr,
            adam.beta1,
            adam.beta2,
            adam.eps,
            adam.weight_decay,
            (1.0 / correction(adam.beta1)) as f32,
            (1.0 / correction(adam.beta2)) as f32,
            update.rate,
            form,
            wide,
            types,
        ),
    );
}

/// `target ← target + rate (online - target)` on its own.
pub fn soft_update(gpu: &Gpu, target: &Tensor, online: &Tensor, rate: f32) {
    let n = target.len();
    let wide = is_wide(gpu, n, &[target, online]);
    launch!(
        gpu,
        Cost::moving("soft_update", 3 * target.bytes()),
        soft_update_kernel,
        gpu.cubes(n.div_ceil(2), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [target, online],
        (n, rate, wide, storage(target, wide)),
    );
}

/// `x ← factor · x`, the factor being clip factor `group` of `control` (the clip alone, as an op of its own).
pub fn clip(gpu: &Gpu, x: &Tensor, control: &Control, group: usize) {
    launch!(
        gpu,
        Cost::moving("clip", 2 * x.bytes()),
        clip_kernel,
        gpu.cubes(x.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [x, &control.values],
        (x.len(), group),
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub average: bool,
    pub compute: bool,
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
#[allow(clippy::too_many_arguments)]
fn adamw_kernel<P: Numeric, C: Numeric>(
    p: &mut View<P>,
    g: &mut View<P>,
    m: &mut View<P>,
    v: &mut View<P>,
    average: &mut View<P>,
    compute: &mut View<C>,
    control: &View<f32>,
    n: usize,
    group: usize,
    groups: usize,
    lr: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    decay: f32,
    unbias1: f32,
    unbias2: f32,
    rate: f32,
    #[comptime] form: Form,
    #[comptime] wide: bool,
    #[define(P, C)] _types: [StorageType; 2],
) {
    let i = 2 * ABSOLUTE_POS;
    if i < n {
        let more = i + 1 < n;
        let g_at = g.start() + i;
        if control.get(groups) == 1.0 {
            let factor = control.get(group);
            let (p_at, m_at, v_at) = (p.start() + i, m.start() + i, v.start() + i);
            let grad = load2::<P>(g, g_at, more, wide);
            let (ga, gb) = (grad.a * factor, grad.b * factor);
            let mut mm = load2::<P>(m, m_at, more, wide);
            mm.a = beta1 * mm.a + (1.0 - beta1) * ga;
            mm.b = beta1 * mm.b + (1.0 - beta1) * gb;
            store2::<P>(m, m_at, more, mm, wide);
            let mut vv = load2::<P>(v, v_at, more, wide);
            vv.a = beta2 * vv.a + (1.0 - beta2) * ga * ga;
            vv.b = beta2 * vv.b + (1.0 - beta2) * gb * gb;
            store2::<P>(v, v_at, more, vv, wide);
            let mut pp = load2::<P>(p, p_at, more, wide);
            pp.a -= lr * (mm.a * unbias1 / (f32::sqrt(vv.a * unbias2) + eps) + decay * pp.a);
            pp.b -= lr * (mm.b * unbias1 / (f32::sqrt(vv.b * unbias2) + eps) + decay * pp.b);
            store2::<P>(p, p_at, more, pp, wide);
            copies::<P, C>(average, compute, i, more, pp, rate, form, wide);
        }
        store2::<P>(g, g_at, more, Pair { a: 0.0, b: 0.0 }, wide);
    }
}

/// What follows new weights `p` of elements `i` and `i + 1`: their average, and their copies to compute with.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn copies<P: Numeric, C: Numeric>(
    average: &mut View<P>,
    compute: &mut View<C>,
    i: usize,
    more: bool,
    p: Pair,
    rate: f32,
    #[comptime] form: Form,
    #[comptime] wide: bool,
) {
    if comptime!(form.average) {
        let at = average.start() + i;
        let mut mean = load2::<P>(average, at, more, wide);
        mean.a += rate * (p.a - mean.a);
        mean.b += rate * (p.b - mean.b);
        store2::<P>(average, at, more, mean, wide);
    }
    if comptime!(form.compute) {
        store2::<C>(compute, compute.start() + i, more, p, false);
    }
}

#[cube(launch_unchecked)]
fn soft_update_kernel<P: Numeric>(
    target: &mut View<P>,
    online: &View<P>,
    n: usize,
    rate: f32,
    #[comptime] wide: bool,
    #[define(P)] _type: StorageType,
) {
    let i = 2 * ABSOLUTE_POS;
    if i < n {
        let more = i + 1 < n;
        let at = target.start() + i;
        let o = load2::<P>(online, online.start() + i, more, wide);
        let mut t = load2::<P>(target, at, more, wide);
        t.a += rate * (o.a - t.a);
        t.b += rate * (o.b - t.b);
        store2::<P>(target, at, more, t, wide);
    }
}

#[cube(launch_unchecked)]
fn clip_kernel(x: &mut View<f32>, control: &View<f32>, n: usize, group: usize) {
    if ABSOLUTE_POS < n {
        x.set(ABSOLUTE_POS, x.get(ABSOLUTE_POS) * control.get(group));
    }
}
