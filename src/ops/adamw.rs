//! AdamW, and what every optimizer shares: global-norm clip, guard, weight averaging, all on the device.
//!
//! ```text
//! c = min(1, limit / ‖g‖)                         g ← c g
//! m ← β₁ m + (1 - β₁) g      v ← β₂ v + (1 - β₂) g²
//! p ← p - lr ( m / (1 - β₁ᵗ) / (sqrt(v / (1 - β₂ᵗ)) + ε) + λ p )
//! a ← a + rate (p - a)       average: EMA (rate 1 - decay) or target network (rate τ)
//! g ← 0                      ready for the next accumulation
//! ```
//! One pass over flat memory. Weights are f32, or in halves ([`split`]), which the pass joins and splits again. Norms, clip factors and the guard are computed on the device ([`Control`]): if any group
//! has a non-finite gradient, nothing but g changes, and the step is counted as skipped; the host never waits.
//! The average is moved, not mixed (`a + rate (p - a)`): mixing drifts even where p stands still.
//! Source: Loshchilov & Hutter 2019 (decoupled decay on every tensor, as the reference does).
//!
//! Cost: memory bound: reads p, g, m, v, a; writes them.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::blockwise::{self, Numbers, Rule8};
use super::lanes::{Lanes, load, load_words, store, store_words};
use super::optimizers::{Hyper, Rule};
use super::split::{self, high_half, low_half, whole_of};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

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
    /// Weights, or the high halves of them.
    pub p: &'a Tensor,
    /// Low halves of the weights; absent: `p` is f32.
    pub low: Option<&'a Tensor>,
    pub g: &'a Tensor,
    /// First moment, f32 or in [blocks](blockwise) of 8 bits.
    pub m: &'a Tensor,
    /// Second moment, in the same form; absent: the optimizer keeps none.
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
    let v = flat.v.expect("AdamW has two moments");
    let correction = |beta: f32| 1.0 - libm::pow(beta as f64, update.t as f64);
    let unbias = [adam.beta1, adam.beta2].map(|beta| (1.0 / correction(beta)) as f32);
    if blockwise::holds(flat.m) {
        let numbers = Numbers {
            rule: Rule8::AdamW,
            beta1: adam.beta1,
            beta2: adam.beta2,
            eps: adam.eps,
            decay: adam.weight_decay,
            unbias,
        };
        return blockwise::step(gpu, numbers, update, control, group, flat);
    }
    let plan = flat.plan(gpu);
    launch!(
        gpu,
        Cost::moving("adamw", plan.bytes + 2 * (flat.m.bytes() + v.bytes())),
        adamw_kernel,
        plan.count,
        plan.dim,
        [
            flat.p,
            plan.low,
            flat.g,
            flat.m,
            v,
            plan.average,
            plan.compute,
            &control.values
        ],
        (
            flat.p.len(),
            group,
            control.groups,
            update.lr,
            adam.beta1,
            adam.beta2,
            adam.eps,
            adam.weight_decay,
            unbias[0],
            unbias[1],
            update.rate,
            plan.form,
            plan.lanes,
            plan.types,
            plan.lanes.sizes(),
        ),
    );
}

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

/// What an update does besides moving weights and moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub average: bool,
    pub compute: bool,
    /// Compute copies are rounded as halves are: ties away from zero.
    pub away: bool,
    /// Weights are in halves.
    pub halves: bool,
}

/// How an optimizer's kernel moves a [`Flat`]: the part of a launch that all of them share.
pub(super) struct Plan<'a> {
    pub low: &'a Tensor,
    pub average: &'a Tensor,
    pub compute: &'a Tensor,
    pub form: Form,
    pub lanes: Lanes,
    /// Of weights, their low halves, states and compute copies.
    pub types: [StorageType; 4],
    pub count: CubeCount,
    pub dim: CubeDim,
    /// Moved for weights, gradients, average and compute copies.
    pub bytes: u64,
}

impl<'a> Flat<'a> {
    pub(super) fn plan(&self, gpu: &Gpu) -> Plan<'a> {
        let n = self.p.len();
        // What is absent is bound as something that the kernel then does not touch.
        let (low, average) = (self.low.unwrap_or(self.p), self.average.unwrap_or(self.g));
        let compute = self.compute.unwrap_or(self.p);
        let form = Form {
            average: self.average.is_some(),
            compute: self.compute.is_some(),
            away: compute.dtype() == DType::Bf16,
            halves: self.low.is_some(),
        };
        let mut moved = vec![self.p, low, self.g, average, compute];
        // Moments in blocks are words of their own.
        moved.extend(
            [Some(self.m), self.v]
                .into_iter()
                .flatten()
                .filter(|m| !blockwise::holds(m)),
        );
        let lanes = Lanes::pick(gpu, &[n], &moved);
        let [mut p, mut rest, states, copies] = lanes.types([self.p, low, self.g, compute]);
        if form.halves {
            (p, rest) = (split::words(self.p), split::words(low));
        }
        let (count, dim) = lanes.grid(gpu, n);
        let twice = |t: Option<&Tensor>| t.map_or(0, |t| 2 * t.bytes());
        Plan {
            low,
            average,
            compute,
            form,
            lanes,
            types: [p, rest, states, copies],
            count,
            dim,
            bytes: 2 * (self.p.bytes() + self.g.bytes())
                + twice(self.low)
                + twice(self.average)
                + self.compute.map_or(0, |t| t.bytes()),
        }
    }
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
fn adamw_kernel<P: Numeric, L: Numeric, S: Numeric, C: Numeric, W: Size, N: Size>(
    p: &mut View<Vector<P, W>>,
    low: &mut View<Vector<L, W>>,
    g: &mut View<Vector<S, W>>,
    m: &mut View<Vector<S, W>>,
    v: &mut View<Vector<S, W>>,
    average: &mut View<Vector<S, W>>,
    compute: &mut View<Vector<C, W>>,
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
    #[comptime] lanes: Lanes,
    #[define(P, L, S, C)] _types: [StorageType; 4],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let i = ABSOLUTE_POS * lanes.count;
    if i < n {
        let g_at = g.start() + i;
        if control.get(groups) == 1.0 {
            let factor = control.get(group);
            let (m_at, v_at) = (m.start() + i, v.start() + i);
            let gg = load::<S, W, N>(g, g_at, lanes);
            let mut mm = load::<S, W, N>(m, m_at, lanes);
            let mut vv = load::<S, W, N>(v, v_at, lanes);
            let mut pp = weights::<P, L, W, N>(p, low, i, form, lanes);
            #[unroll]
            for k in 0..lanes.count {
                let c = gg[k] * factor;
                let (first, second) = adam_moments(mm[k], vv[k], c, beta1, beta2);
                pp[k] = adam_step(pp[k], first, second, lr, eps, decay, unbias1, unbias2);
                mm[k] = first;
                vv[k] = second;
            }
            store::<S, W, N>(m, m_at, mm, lanes);
            store::<S, W, N>(v, v_at, vv, lanes);
            moved::<P, L, S, C, W, N>(p, low, average, compute, i, pp, rate, form, lanes);
        }
        store::<S, W, N>(g, g_at, Vector::zeroed(), lanes);
    }
}

/// The new moments, from the gradient `c`.
#[cube]
pub(super) fn adam_moments(m: f32, v: f32, c: f32, beta1: f32, beta2: f32) -> (f32, f32) {
    (beta1 * m + (1.0 - beta1) * c, beta2 * v + (1.0 - beta2) * c * c)
}

/// The new weight, from the new moments.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn adam_step(
    p: f32,
    first: f32,
    second: f32,
    lr: f32,
    eps: f32,
    decay: f32,
    unbias1: f32,
    unbias2: f32,
) -> f32 {
    let step = first * unbias1 / (f32::sqrt(second * unbias2) + eps);
    p - lr * (step + decay * p)
}

/// The weights of elements `i..`.
#[cube]
pub(super) fn weights<P: Numeric, L: Numeric, W: Size, N: Size>(
    p: &View<Vector<P, W>>,
    low: &View<Vector<L, W>>,
    i: usize,
    #[comptime] form: Form,
    #[comptime] lanes: Lanes,
) -> Vector<f32, N> {
    if comptime!(form.halves) {
        let highs = load_words::<P, W, N>(p, p.start() + i, lanes);
        let lows = load_words::<L, W, N>(low, low.start() + i, lanes);
        let mut values = Vector::<f32, N>::empty();
        #[unroll]
        for k in 0..lanes.count {
            values[k] = whole_of(highs[k], lows[k]);
        }
        values
    } else {
        load::<P, W, N>(p, p.start() + i, lanes)
    }
}

/// Stores new weights of elements `i..`, and what follows them: their average, and their copies to compute with.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn moved<P: Numeric, L: Numeric, S: Numeric, C: Numeric, W: Size, N: Size>(
    p: &mut View<Vector<P, W>>,
    low: &mut View<Vector<L, W>>,
    average: &mut View<Vector<S, W>>,
    compute: &mut View<Vector<C, W>>,
    i: usize,
    values: Vector<f32, N>,
    rate: f32,
    #[comptime] form: Form,
    #[comptime] lanes: Lanes,
) {
    if comptime!(form.halves) {
        let mut highs = Vector::<u32, N>::empty();
        let mut lows = Vector::<u32, N>::empty();
        #[unroll]
        for k in 0..lanes.count {
            highs[k] = high_half(values[k]);
            lows[k] = low_half(values[k]);
        }
        store_words::<P, W, N>(p, p.start() + i, highs, lanes);
        store_words::<L, W, N>(low, low.start() + i, lows, lanes);
    } else {
        store::<P, W, N>(p, p.start() + i, values, lanes);
    }
    if comptime!(form.average) {
        let at = average.start() + i;
        let mean = load::<S, W, N>(average, at, lanes);
        store::<S, W, N>(average, at, mean + (values - mean) * Vector::new(rate), lanes);
    }
    if comptime!(form.compute) {
        let mut rounded = values;
        if comptime!(form.away) {
            #[unroll]
            for k in 0..lanes.count {
                rounded[k] = f32::reinterpret(high_half(values[k]) << 16);
            }
        }
        store::<C, W, N>(compute, compute.start() + i, rounded, lanes);
    }
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
