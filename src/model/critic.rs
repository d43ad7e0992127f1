//! The critic ensemble: E independent networks, each `linear → LayerNorm → ReLU (→ dropout)` per hidden layer, joined as
//! the [network](super::critic_networks) says.
//!
//! `Q_i(s, a)` reads `features(s) ⊕ flatten(a[:, :real])`. Several actions share an observation (the data's and N
//! candidates), so the first layer is two products: the observation's half once ([`observe`]), the actions' half per
//! row, added together by the row's sample. All members run as one batched product. Everything is f32.
//!
//! Shapes: B observations, R rows (one action each), E members, `[E, R, h]` hidden.

use super::bind::CriticParams;
use super::critic_networks::CriticNetwork;
use super::dims::CriticDims;
use crate::gpu::{Gpu, Tensor};
use crate::ops::blocks::{self, Rect};
use crate::ops::column_sum::{self, Term};
use crate::ops::fill;
use crate::ops::gemm::{self, Mat, RowMap};
use crate::ops::layer_norm::{self, LayerNorm};

/// Each layer reads the one below.
pub struct Mlp;

impl CriticNetwork for Mlp {
    const LAYERS: &'static str = "layers";

    fn join(_: &Gpu, _: &Tensor, _: &Tensor) {}

    fn split(_: &Gpu, _: &Tensor, _: &Tensor) -> bool {
        false
    }
}

/// `half [E, B, h]` from `features [B, F + real]`: the observation's part of the first layer, with its bias.
pub fn observe(gpu: &Gpu, p: &CriticParams, d: &CriticDims, features: &Tensor, half: &Tensor) {
    let first = &p.layers[0];
    gemm::nt(
        Mat::from(features).repeat(d.critics),
        Mat::from(&first.linear.0).columns(0, d.observation()),
    )
    .bias(&first.linear.1)
    .to(gpu, half);
}

/// `flat [R, H·real]` from `actions [R, H, A]`: the coordinates the robot has, step by step.
pub fn flatten(gpu: &Gpu, d: &CriticDims, actions: &Tensor, action_dim: usize, flat: &Tensor) {
    let rows = actions.len() / action_dim;
    let (from, to) = (Rect::rows(actions, action_dim), Rect::rows(flat, d.real_action_dim));
    blocks::copy(gpu, from, to, rows, d.real_action_dim, false);
}

/// The reverse of [`flatten`] for gradients; coordinates the robot lacks get none.
pub fn unflatten(gpu: &Gpu, d: &CriticDims, dflat: &Tensor, action_dim: usize, dactions: &Tensor) {
    fill::zero(gpu, dactions);
    let rows = dactions.len() / action_dim;
    let (from, to) = (Rect::rows(dflat, d.real_action_dim), Rect::rows(dactions, action_dim));
    blocks::copy(gpu, from, to, rows, d.real_action_dim, false);
}

/// Kept elements of every hidden layer (u32 bits of `[E, R, h]`), and the share that is dropped.
#[derive(Clone, Copy)]
pub struct Dropout<'a> {
    pub keep: &'a [Tensor],
    pub rate: f32,
}

/// What a forward pass keeps: per hidden layer the values in front of the norm, and behind everything.
pub struct Tape {
    rows: usize,
    pre: Vec<Tensor>,
    hidden: Vec<Tensor>,
}

/// Rows to evaluate.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// [`observe`]d halves, `[E, B, h]`.
    pub half: &'a Tensor,
    /// Observation of each row, u32 `[R]`.
    pub sample: &'a Tensor,
    /// `[R, H·real]`
    pub actions: &'a Tensor,
}

/// `q [E, R]`, and the tape for backward.
pub fn forward(
    gpu: &Gpu,
    p: &CriticParams,
    d: &CriticDims,
    rows: Rows<'_>,
    dropout: Option<Dropout<'_>>,
    q: &Tensor,
) -> Tape {
    let (e, r) = (d.critics, rows.actions.dim(0));
    let mut tape = Tape {
        rows: r,
        pre: Vec::new(),
        hidden: Vec::new(),
    };
    for (i, layer) in p.layers.iter().enumerate() {
        let h = layer.norm.0.dim(1);
        let (pre, hidden) = (gpu.f32([e, r, h]), gpu.f32([e, r, h]));
        match tape.hidden.last() {
            None => gemm::nt(Mat::from(rows.actions).repeat(e), action_weights(&layer.linear.0, d))
                .extra(rows.half, RowMap::Index(rows.sample.clone()))
                .to(gpu, &pre),
            Some(below) => gemm::nt(below, &layer.linear.0).bias(&layer.linear.1).to(gpu, &pre),
        }
        let flat = |t: &Tensor| t.view([e * r, h]);
        norm(p, i, dropout).forward(gpu, &flat(&pre), &flat(&hidden));
        if let Some(below) = tape.hidden.last() {
            d.network.join(gpu, below, &hidden);
        }
        tape.pre.push(pre);
        tape.hidden.push(hidden);
    }
    let top = &tape.hidden[tape.hidden.len() - 1];
    gemm::nt(top, &p.out.0).bias(&p.out.1).to(gpu, &q.view([e, r, 1]));
    tape
}

/// Columns of the first layer's weight that read actions.
fn action_weights(weight: &Tensor, d: &CriticDims) -> Mat {
    Mat::from(weight).columns(d.observation(), d.actions())
}

fn norm<'a>(p: &'a CriticParams, layer: usize, dropout: Option<Dropout<'a>>) -> LayerNorm<'a> {
    LayerNorm {
        weight: &p.layers[layer].norm.0,
        bias: &p.layers[layer].norm.1,
        relu: true,
        dropout: dropout.map(|d| (&d.keep[layer], d.rate)),
    }
}

/// What [`backward`] is to produce besides the chain itself.
#[derive(Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// Weight gradients, and the features `[R, F + real]` of the rows (row r must be sample r).
    pub params: Option<(&'a CriticParams, &'a Tensor)>,
    /// Gradient at the actions, `[R, H·real]`.
    pub actions: Option<&'a Tensor>,
    /// Gradient at the features, `[R, F + real]`.
    pub features: Option<&'a Tensor>,
}

/// Pulls `dq [E, R]` back through the members.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    gpu: &Gpu,
    p: &CriticParams,
    d: &CriticDims,
    rows: Rows<'_>,
    dropout: Option<Dropout<'_>>,
    tape: &Tape,
    dq: &Tensor,
    wanted: Wanted<'_>,
) {
    let (e, r) = (d.critics, tape.rows);
    let dq = dq.view([e, r, 1]);
    let last = tape.hidden.len() - 1;
    let grads = wanted.params.map(|(g, _)| g);
    if let Some(g) = grads {
        gemm::tn(&dq, &tape.hidden[last]).add_to(gpu, &g.out.0);
        column_sum::accumulate_even(
            gpu,
            Term::Plain {
                dy: &dq.view([e * r, 1]),
            },
            e,
            &g.out.1,
        );
    }
    let mut dhidden = gpu.f32(tape.hidden[last].shape());
    gemm::nn(&dq, &p.out.0).to(gpu, &dhidden);
    for i in (0..=last).rev() {
        let h = tape.pre[i].dim(2);
        let flat = |t: &Tensor| t.view([e * r, h]);
        // Before the norm, whose backward overwrites what it is given.
        let dbelow = (i > 0).then(|| gpu.f32(tape.hidden[i - 1].shape()));
        let beside = dbelow
            .as_ref()
            .is_some_and(|dbelow| d.network.split(gpu, &dhidden, dbelow));
        let (dpre, stats) = (gpu.f32([e, r, h]), layer_norm::stats(gpu, e * r));
        let (pre, dy) = (flat(&tape.pre[i]), flat(&dhidden));
        let backward = layer_norm::Backward {
            x: &pre,
            dy: &dy,
            around: None,
            dx: &flat(&dpre),
            rounded: None,
            y: None,
            stats: Some(&stats),
        };
        norm(p, i, dropout).backward(gpu, backward);
        if let Some(g) = grads {
            let layer = &g.layers[i];
            LayerNorm::backward_params(gpu, &pre, &stats, &dy, &layer.norm.0, &layer.norm.1);
            column_sum::accumulate_even(gpu, Term::Plain { dy: &flat(&dpre) }, e, &layer.linear.1);
            if i > 0 {
                gemm::tn(&dpre, &tape.hidden[i - 1]).add_to(gpu, &layer.linear.0);
            }
        }
        let Some(dbelow) = dbelow else {
            return backward_first(gpu, p, d, rows, &dpre, wanted);
        };
        let through = gemm::nn(&dpre, &p.layers[i].linear.0);
        match beside {
            true => through.add_to(gpu, &dbelow),
            false => through.to(gpu, &dbelow),
        }
        dhidden = dbelow;
    }
}

/// The first layer: weights of both halves, and the inputs, summed over the members.
fn backward_first(gpu: &Gpu, p: &CriticParams, d: &CriticDims, rows: Rows<'_>, dpre: &Tensor, wanted: Wanted<'_>) {
    let (e, r) = (d.critics, dpre.dim(1));
    let weight = &p.layers[0].linear.0;
    let halves = |t: &Tensor| (Mat::from(t).columns(0, d.observation()), action_weights(t, d));
    if let Some((g, features)) = wanted.params {
        let (observation, actions) = halves(&g.layers[0].linear.0);
        gemm::tn(dpre, Mat::from(features).repeat(e)).add_to(gpu, observation);
        gemm::tn(dpre, Mat::from(rows.actions).repeat(e)).add_to(gpu, actions);
    }
    let (observation, actions) = halves(weight);
    for (half, out) in [(observation, wanted.features), (actions, wanted.actions)] {
        let Some(out) = out else { continue };
        let width = out.dim(1);
        let each = gpu.f32([e, r, width]);
        gemm::nn(dpre, half).to(gpu, &each);
        fill::zero(gpu, out);
        column_sum::accumulate(
            gpu,
            Term::Plain {
                dy: &each.view([e, r * width]),
            },
            &out.view([r * width]),
        );
    }
}
