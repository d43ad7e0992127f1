//! One pass over flat memory, whatever the optimizer: everything but its formula.
//!
//! ```text
//! g ← c g                     c is the clip factor of the group
//! p, m, v ← formula           of the optimizer
//! a ← a + rate (p - a)        average: EMA (rate 1 - decay) or target network (rate τ)
//! g ← 0                       ready for the next accumulation
//! ```
//! Weights are f32, or in halves ([`split`]), which the pass joins and splits again. Where the guard of [`Control`] found a
//! gradient that is not finite, nothing but g changes.
//! The average is moved, not mixed (`a + rate (p - a)`): mixing drifts even where p stands still.
//!
//! Cost: memory bound: reads p, g, m, v, a; writes them.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::adamw::{adamw_moments, adamw_weight};
use super::blockwise;
use super::clip::Control;
use super::lanes::{Lanes, load, load_words, store, store_words};
use super::lion::{lion_moment, lion_weight};
use super::optimizers::Kind;
use super::split::{self, high_half, low_half, whole_of};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

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

/// The numbers of an optimizer's formula, and of an update.
#[derive(CubeType, CubeLaunch, Clone, Copy, Debug)]
pub struct Numbers {
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub decay: f32,
    /// `1 / (1 - βᵗ)` of both moments.
    pub unbias1: f32,
    pub unbias2: f32,
    /// Of the average.
    pub rate: f32,
}

impl Numbers {
    /// For a kernel.
    pub(super) fn argument<R: Runtime>(self) -> NumbersLaunch<R> {
        NumbersLaunch::new(
            self.lr,
            self.beta1,
            self.beta2,
            self.eps,
            self.decay,
            self.unbias1,
            self.unbias2,
            self.rate,
        )
    }
}

/// One update of `flat`, which belongs to group `group` of `control`, by the formula of `kind`.
///
/// # Panics
/// If `flat` has no second moment and `kind` has one.
pub(super) fn step(gpu: &Gpu, kind: Kind, numbers: Numbers, control: &Control, group: usize, flat: Flat<'_>) {
    assert!(flat.v.is_some() || !kind.second_moment(), "{kind:?} has two moments");
    // A moment that is not kept is bound as the other, and not touched.
    let v = flat.v.unwrap_or(flat.m);
    let plan = flat.plan(gpu);
    let moments = 2 * (flat.m.bytes() + flat.v.map_or(0, |v| v.bytes()));
    launch!(
        gpu,
        Cost::moving(kind.name(), plan.bytes + moments),
        update_kernel,
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
            numbers.argument(),
            kind,
            plan.form,
            plan.lanes,
            plan.types,
            plan.lanes.sizes(),
        ),
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

/// The new moments, from the gradient `c`. What an optimizer does not keep stays what it is.
#[cube]
pub(super) fn new_moments(m: f32, v: f32, c: f32, numbers: &Numbers, #[comptime] kind: Kind) -> (f32, f32) {
    match comptime!(kind) {
        Kind::AdamW => adamw_moments(m, v, c, numbers),
        Kind::Lion => (lion_moment(m, c, numbers), v),
    }
}

/// The new weight, from the old first moment `m` and the gradient `c`, or from the new moments.
#[cube]
pub(super) fn new_weight(
    p: f32,
    m: f32,
    c: f32,
    first: f32,
    second: f32,
    numbers: &Numbers,
    #[comptime] kind: Kind,
) -> f32 {
    match comptime!(kind) {
        Kind::AdamW => adamw_weight(p, first, second, numbers),
        Kind::Lion => lion_weight(p, m, c, numbers),
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn update_kernel<P: Numeric, L: Numeric, S: Numeric, C: Numeric, W: Size, N: Size>(
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
    numbers: Numbers,
    #[comptime] kind: Kind,
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
            let mut vv = Vector::<f32, N>::zeroed();
            if comptime!(kind.second_moment()) {
                vv = load::<S, W, N>(v, v_at, lanes);
            }
            let mut pp = weights::<P, L, W, N>(p, low, i, form, lanes);
            #[unroll]
            for k in 0..lanes.count {
                let c = gg[k] * factor;
                let (first, second) = new_moments(mm[k], vv[k], c, &numbers, kind);
                pp[k] = new_weight(pp[k], mm[k], c, first, second, &numbers, kind);
                mm[k] = first;
                vv[k] = second;
            }
            store::<S, W, N>(m, m_at, mm, lanes);
            if comptime!(kind.second_moment()) {
                store::<S, W, N>(v, v_at, vv, lanes);
            }
            moved::<P, L, S, C, W, N>(p, low, average, compute, i, pp, numbers.rate, form, lanes);
        }
        store::<S, W, N>(g, g_at, Vector::zeroed(), lanes);
    }
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
