//! Ops on the rows of `[M, D]` matrices as cases: norms, gates, activations, softmax, sums over rows.

use serde::Serialize;

use super::check::{Expected, Sum};
use super::norms;
use super::reference::{gelu, gelu_slope, swish, swish_slope};
use super::work::{Operand, Room, Work};
use crate::gpu::{DType, Gpu, Tensor};
use crate::ops::activation::{self, Activation};
use crate::ops::column_sum::{self, Term};
use crate::ops::{gated_residual, geglu, softmax};

/// Which op, and which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    RmsNorm,
    /// With the residual's gradient, and what the scale's gradient needs.
    RmsNormBackward,
    RmsNormScale,
    /// Scale and shift of each group of rows (π₀.₅).
    RmsNormAdaptive,
    GatedResidual,
    GatedResidualBackward,
    LayerNorm,
    LayerNormBackward,
    LayerNormParams,
    /// With ReLU, and parameters for each of six runs of rows: the critics'.
    LayerNormRelu,
    Geglu,
    GegluBackward,
    /// With the result again.
    GeluBackward,
    Swish,
    SwishBackward,
    Softmax,
    SoftmaxBackward,
    ColumnSum,
}

/// One op on `[rows, width]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowOp {
    pub op: RowKind,
    pub rows: usize,
    pub width: usize,
}

/// Groups of rows with a modulation of their own: one for each Euler step and one behind.
const GROUPS: usize = 11;
/// Members of the critics' ensemble.
pub(super) const MEMBERS: usize = 6;

impl RowOp {
    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        let (m, d) = (self.rows, self.width);
        match self.op {
            RowKind::RmsNorm => norms::rms_forward(room, m, d, None),
            RowKind::RmsNormAdaptive => norms::rms_forward(room, m, d, Some(GROUPS)),
            RowKind::RmsNormBackward => norms::rms_backward(room, m, d),
            RowKind::RmsNormScale => norms::rms_scale(room, m, d),
            RowKind::GatedResidual => gate(room, m, d, false),
            RowKind::GatedResidualBackward => gate(room, m, d, true),
            RowKind::LayerNorm => norms::layer_forward(room, m, d, false),
            RowKind::LayerNormRelu => norms::layer_forward(room, m.next_multiple_of(MEMBERS), d, true),
            RowKind::LayerNormBackward => norms::layer_backward(room, m, d),
            RowKind::LayerNormParams => norms::layer_params(room, m, d),
            RowKind::Geglu => geglu_forward(room, m, d),
            RowKind::GegluBackward => geglu_backward(room, m, d),
            RowKind::GeluBackward => slope(room, m, d, Activation::Gelu, true),
            RowKind::SwishBackward => slope(room, m, d, Activation::Swish, false),
            RowKind::Swish => swish_forward(room, m, d),
            RowKind::Softmax => softmax_forward(room, m, d),
            RowKind::SoftmaxBackward => softmax_backward(room, m, d),
            RowKind::ColumnSum => sum_of_columns(room, m, d),
        }
    }
}

/// Group of each row: contiguous, as even as can be.
pub(super) fn groups(
    room: &mut Room<'_>,
    m: usize,
    n: usize,
) -> (Tensor, impl Fn(usize) -> usize + Send + Sync + Clone + use<>) {
    let group = move |row: usize| row * n / m;
    let table: Vec<u32> = (0..m).map(|row| group(row) as u32).collect();
    (room.table(&table, [m]), group)
}

fn gate(mut room: Room<'_>, m: usize, d: usize, backward: bool) -> Work {
    let (y, table) = (room.input([m, d], 1.0), room.input([GROUPS, 3 * d], 1.0));
    let x = (!backward).then(|| room.input([m, d], 1.0));
    let (index, group) = groups(&mut room, m, GROUPS);
    let out = room.output([m, d]);
    let expected = {
        let (x, y, table) = (x.clone(), y.clone(), table.clone());
        Expected::new("out", &out, move |at| {
            let mut sum = Sum::of(table.at(group(at / d) * 3 * d + 2 * d + at % d) * y.at(at));
            x.iter().for_each(|x| sum.add(x.at(at)));
            sum
        })
    };
    let (held, whole) = (table.tensor.bytes() as f64, room.moved());
    let launch = move |gpu: &Gpu| match &x {
        Some(x) => gated_residual::forward(gpu, &x.tensor, &y.tensor, &table.tensor, &index, &out),
        None => gated_residual::backward(gpu, &y.tensor, &table.tensor, &index, &out),
    };
    // Of scale, shift and gate only the gate is read.
    room.work(launch, [expected]).bytes(whole - held * 2.0 / 3.0)
}

/// A sum over rows, on top of what was there.
pub(super) fn column(dy: &Operand, out: &Operand, m: usize, d: usize) -> Expected {
    let (dy, before) = (dy.clone(), out.clone());
    Expected::new("sum", &out.tensor, move |i| {
        let mut sum: Sum = (0..m).map(|r| dy.at(r * d + i)).collect();
        sum.add(before.at(i));
        sum
    })
}

fn sum_of_columns(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (dy, out) = (room.input([m, d], 1.0), room.in_place(DType::F32, [d], 1.0, 0.0));
    let expected = column(&dy, &out, m, d);
    let launch = move |gpu: &Gpu| column_sum::accumulate(gpu, Term::Plain { dy: &dy.tensor }, &out.tensor);
    room.work(launch, [expected])
}

/// A value whose rounding errors are those of something larger: GELU and swish are `x (1 + tanh …) / 2`, and where that is
/// small, the sum has cancelled.
fn sized(value: f64, size: f64) -> Sum {
    let mut sum = Sum::default();
    sum.add_sized(value, size.abs());
    sum
}

fn geglu_forward(mut room: Room<'_>, m: usize, f: usize) -> Work {
    let (gate_up, act) = (room.input([m, 2 * f], 4.0), room.output([m, f]));
    let expected = {
        let gate_up = gate_up.clone();
        Expected::new("act", &act, move |at| {
            let at = at / f * 2 * f + at % f;
            sized(
                gelu(gate_up.at(at)) * gate_up.at(at + f),
                gate_up.at(at) * gate_up.at(at + f),
            )
        })
    };
    let launch = move |gpu: &Gpu| geglu::forward(gpu, &gate_up.tensor, &act);
    room.work(launch, [expected])
}

fn geglu_backward(mut room: Room<'_>, m: usize, f: usize) -> Work {
    let (gate_up, dact) = (room.input([m, 2 * f], 4.0), room.input([m, f], 1.0));
    let d = room.output([m, 2 * f]);
    let expected = {
        let (gate_up, dact) = (gate_up.clone(), dact.clone());
        Expected::new("dgate_up", &d, move |at| {
            let (row, i) = (at / (2 * f), at % (2 * f));
            let gate = gate_up.at(row * 2 * f + i % f);
            let dact = dact.at(row * f + i % f);
            if i < f {
                let up = gate_up.at(row * 2 * f + i + f);
                sized(dact * up * gelu_slope(gate), (1.0 + gate.abs()) * dact * up)
            } else {
                sized(dact * gelu(gate), dact * gate)
            }
        })
    };
    let launch = move |gpu: &Gpu| geglu::backward(gpu, &gate_up.tensor, &dact.tensor, &d, None);
    room.work(launch, [expected])
}

/// A function of a number.
type Scalar = fn(f64) -> f64;

fn slope(mut room: Room<'_>, m: usize, d: usize, f: Activation, again: bool) -> Work {
    let (x, dy) = (room.input([m, d], 4.0), room.input([m, d], 1.0));
    let dx = room.output([m, d]);
    let y = again.then(|| room.output([m, d]));
    let (value, rise): (Scalar, Scalar) = match f {
        Activation::Gelu => (gelu, gelu_slope),
        _ => (swish, swish_slope),
    };
    let gradient = {
        let (x, dy) = (x.clone(), dy.clone());
        Expected::new("dx", &dx, move |at| {
            sized(dy.at(at) * rise(x.at(at)), (1.0 + x.at(at).abs()) * dy.at(at))
        })
    };
    let result = {
        let x = x.clone();
        y.as_ref()
            .map(|y| Expected::new("y", y, move |at| sized(value(x.at(at)), x.at(at))))
    };
    let launch = move |gpu: &Gpu| activation::backward(gpu, f, &x.tensor, &dy.tensor, &dx, y.as_ref());
    room.work(launch, [gradient].into_iter().chain(result))
}

fn swish_forward(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (x, y) = (room.input([m, d], 4.0), room.output([m, d]));
    let expected = {
        let x = x.clone();
        Expected::new("y", &y, move |at| sized(swish(x.at(at)), x.at(at)))
    };
    let launch = move |gpu: &Gpu| activation::forward(gpu, Activation::Swish, &x.tensor, &y);
    room.work(launch, [expected])
}

/// Factor of scores in front of the softmax.
const SCORE_SCALE: f64 = 0.0625;

fn softmax_forward(mut room: Room<'_>, m: usize, w: usize) -> Work {
    let z = room.input_f32([m, w], 32.0, 0.0);
    let lens = room.table(&vec![w as u32; m], [m]);
    let p = room.output_as(DType::F32, [m, w]);
    let expected = {
        let z = z.clone();
        Expected::new("p", &p, move |at| {
            let row = at / w * w;
            let e = |i: usize| (SCORE_SCALE * z.at(row + i)).exp();
            Sum::of(e(at % w) / (0..w).map(e).sum::<f64>())
        })
    };
    let launch = move |gpu: &Gpu| softmax::forward(gpu, &z.tensor, &lens, SCORE_SCALE as f32, &p, None);
    room.work(launch, [expected])
}

fn softmax_backward(mut room: Room<'_>, m: usize, w: usize) -> Work {
    let (p, dp) = (room.input_f32([m, w], 1.0, 1.0), room.input_f32([m, w], 1.0, 0.0));
    let lens = room.table(&vec![w as u32; m], [m]);
    let dz = room.output_as(DType::F32, [m, w]);
    let expected = {
        let (p, dp) = (p.clone(), dp.clone());
        Expected::new("dz", &dz, move |at| {
            let row = at / w * w;
            let along: Sum = (0..w).map(|i| p.at(row + i) * dp.at(row + i)).collect();
            let factor = SCORE_SCALE * p.at(at);
            let mut sum = Sum::of(factor * dp.at(at));
            sum.add_sized(-factor * along.value, factor * along.size);
            sum
        })
    };
    let launch = move |gpu: &Gpu| softmax::backward(gpu, &p.tensor, &lens, &dp.tensor, SCORE_SCALE as f32, &dz);
    room.work(launch, [expected])
}
