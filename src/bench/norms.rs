//! The work of norms: forward, backward, and the gradients of their parameters.

use super::check::{Expected, Sum};
use super::rows::{MEMBERS, column, groups};
use super::work::{Operand, Room, Work};
use crate::gpu::{DType, Gpu};
use crate::ops::layer_norm::{self, LayerNorm};
use crate::ops::rms_norm::{self, Modulation};

/// Mean and `1 / sqrt(var + ε)` of a row; with `centred` false the mean is left in.
fn statistics(x: &Operand, row: usize, d: usize, centred: bool) -> (f64, f64) {
    let values = || (0..d).map(|i| x.at(row * d + i));
    let mean = if centred { values().sum::<f64>() / d as f64 } else { 0.0 };
    let variance = values().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
    (mean, 1.0 / (variance + 1e-6).sqrt())
}

pub(super) fn rms_forward(mut room: Room<'_>, m: usize, d: usize, adaptive: Option<usize>) -> Work {
    let x = room.input([m, d], 1.0);
    let w = room.input(adaptive.map_or([1, d], |g| [g, 3 * d]), 0.5);
    let (table, group) = groups(&mut room, m, adaptive.unwrap_or(1));
    let y = room.output([m, d]);
    let expected = {
        let (x, w) = (x.clone(), w.clone());
        Expected::new("y", &y, move |at| {
            let (row, i) = (at / d, at % d);
            let normed = x.at(at) * statistics(&x, row, d, false).1;
            let at = if adaptive.is_some() { group(row) * 3 * d + i } else { i };
            let mut sum = Sum::of(normed * (1.0 + w.at(at)));
            if adaptive.is_some() {
                sum.add(w.at(at + d));
            }
            sum
        })
    };
    let launch = move |gpu: &Gpu| {
        let flat = w.tensor.view([d.max(w.tensor.len())]);
        let modulation = match adaptive {
            None => Modulation::Plain(&flat),
            Some(_) => Modulation::Adaptive {
                table: &w.tensor,
                groups: &table,
            },
        };
        rms_norm::forward(gpu, &x.tensor, modulation, &y);
    };
    room.work(launch, [expected])
}

/// Terms of `(g - mean(g) - x̂ mean(g x̂)) / σ`, `g` being the gradient behind the norm's weight.
fn norm_backward(x: &Operand, row: usize, i: usize, d: usize, centred: bool, g: impl Fn(usize) -> f64) -> Sum {
    let (mean, rstd) = statistics(x, row, d, centred);
    let normed = |i: usize| (x.at(row * d + i) - mean) * rstd;
    let along: Sum = (0..d).map(|i| g(i) * normed(i) / d as f64).collect();
    let mut sum = Sum::of(g(i));
    sum.add_sized(-normed(i) * along.value, normed(i).abs() * along.size);
    if centred {
        let level: Sum = (0..d).map(|i| g(i) / d as f64).collect();
        sum.add_sized(-level.value, level.size);
    }
    sum.times(rstd)
}

pub(super) fn rms_backward(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (x, dy, around) = (
        room.input([m, d], 1.0),
        room.input([m, d], 1.0),
        room.input([m, d], 1.0),
    );
    let w = room.input([d], 0.5);
    let (dx, y) = (room.output([m, d]), room.output([m, d]));
    let rstd = room.output_as(DType::F32, [m]);
    let gradient = {
        let (x, dy, around, w) = (x.clone(), dy.clone(), around.clone(), w.clone());
        Expected::new("dx", &dx, move |at| {
            let row = at / d;
            let g = |i: usize| dy.at(row * d + i) * (1.0 + w.at(i));
            let mut sum = norm_backward(&x, row, at % d, d, false, g);
            sum.add(around.at(at));
            sum
        })
    };
    let again = {
        let (x, w) = (x.clone(), w.clone());
        let normed = move |at| Sum::of(x.at(at) * statistics(&x, at / d, d, false).1 * (1.0 + w.at(at % d)));
        Expected::new("y", &y, normed)
    };
    let kept = {
        let x = x.clone();
        Expected::new("rstd", &rstd, move |row| Sum::of(statistics(&x, row, d, false).1))
    };
    let launch = move |gpu: &Gpu| {
        let b = rms_norm::Backward {
            x: &x.tensor,
            modulation: Modulation::Plain(&w.tensor),
            dy: &dy.tensor,
            around: Some(&around.tensor),
            dx: &dx,
            rounded: None,
            y: Some(&y),
            rstd: Some(&rstd),
        };
        rms_norm::backward(gpu, b);
    };
    room.work(launch, [gradient, again, kept])
}

pub(super) fn rms_scale(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (x, dy) = (room.input([m, d], 1.0), room.input([m, d], 1.0));
    let rstd = room.input_f32([m], 0.25, 1.0);
    let dw = room.in_place(DType::F32, [d], 1.0, 0.0);
    let expected = {
        let (x, dy, rstd, before) = (x.clone(), dy.clone(), rstd.clone(), dw.clone());
        Expected::new("dw", &dw.tensor, move |i| {
            let mut sum: Sum = (0..m)
                .map(|r| dy.at(r * d + i) * x.at(r * d + i) * rstd.at(r))
                .collect();
            sum.add(before.at(i));
            sum
        })
    };
    let launch = move |gpu: &Gpu| rms_norm::backward_scale(gpu, &x.tensor, &rstd.tensor, &dy.tensor, &dw.tensor);
    room.work(launch, [expected])
}

pub(super) fn layer_forward(mut room: Room<'_>, m: usize, d: usize, critics: bool) -> Work {
    let lines = if critics { MEMBERS } else { 1 };
    if critics {
        room.dtype = DType::F32;
    }
    let (x, w, b) = (
        room.input([m, d], 1.0),
        room.input([lines, d], 1.0),
        room.input([lines, d], 1.0),
    );
    let y = room.output([m, d]);
    let expected = {
        let (x, w, b) = (x.clone(), w.clone(), b.clone());
        Expected::new("y", &y, move |at| {
            let (row, i) = (at / d, at % d);
            let (mean, rstd) = statistics(&x, row, d, true);
            let line = row / (m / lines) * d;
            let mut sum = Sum::of((x.at(at) - mean) * rstd * w.at(line + i));
            sum.add(b.at(line + i));
            if critics { sum.through(|v| v.max(0.0), 1.0) } else { sum }
        })
    };
    let launch = move |gpu: &Gpu| {
        let shape: &[usize] = if critics { &[lines, d] } else { &[d] };
        let (w, b) = (w.tensor.view(shape), b.tensor.view(shape));
        let norm = LayerNorm {
            relu: critics,
            ..LayerNorm::new(&w, &b)
        };
        norm.forward(gpu, &x.tensor, &y);
    };
    room.work(launch, [expected])
}

pub(super) fn layer_backward(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (x, dy, around) = (
        room.input([m, d], 1.0),
        room.input([m, d], 1.0),
        room.input([m, d], 1.0),
    );
    let (w, b) = (room.input([d], 1.0), room.input([d], 1.0));
    let (dx, y) = (room.output([m, d]), room.output([m, d]));
    let stats = room.output_as(DType::F32, [m, 2]);
    let gradient = {
        let (x, dy, around, w) = (x.clone(), dy.clone(), around.clone(), w.clone());
        Expected::new("dx", &dx, move |at| {
            let row = at / d;
            let mut sum = norm_backward(&x, row, at % d, d, true, |i| dy.at(row * d + i) * w.at(i));
            sum.add(around.at(at));
            sum
        })
    };
    let again = {
        let (x, w, b) = (x.clone(), w.clone(), b.clone());
        Expected::new("y", &y, move |at| {
            let (mean, rstd) = statistics(&x, at / d, d, true);
            let mut sum = Sum::of((x.at(at) - mean) * rstd * w.at(at % d));
            sum.add(b.at(at % d));
            sum
        })
    };
    let launch = move |gpu: &Gpu| {
        let norm = LayerNorm::new(&w.tensor, &b.tensor);
        let b = layer_norm::Backward {
            x: &x.tensor,
            dy: &dy.tensor,
            around: Some(&around.tensor),
            dx: &dx,
            rounded: None,
            y: Some(&y),
            stats: Some(&stats),
        };
        norm.backward(gpu, b);
    };
    room.work(launch, [gradient, again])
}

pub(super) fn layer_params(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (x, dy) = (room.input([m, d], 1.0), room.input([m, d], 1.0));
    let stats = room.input_f32([m, 2], 0.25, 1.0);
    let dw = room.in_place(DType::F32, [d], 1.0, 0.0);
    let db = room.in_place(DType::F32, [d], 1.0, 0.0);
    let weight = {
        let (x, dy, stats, before) = (x.clone(), dy.clone(), stats.clone(), dw.clone());
        Expected::new("dw", &dw.tensor, move |i| {
            let mut sum = Sum::of(before.at(i));
            for r in 0..m {
                let (value, mean) = (x.at(r * d + i), stats.at(2 * r));
                let factor = dy.at(r * d + i) * stats.at(2 * r + 1);
                sum.add_sized(factor * (value - mean), factor.abs() * (value.abs() + mean.abs()));
            }
            sum
        })
    };
    let bias = column(&dy, &db, m, d);
    let launch = move |gpu: &Gpu| {
        let (dw, db) = (&dw.tensor, &db.tensor);
        LayerNorm::backward_params(gpu, &x.tensor, &stats.tensor, &dy.tensor, dw, db);
    };
    let whole = room.moved() + (m * d) as f64 * room.dtype.bytes() as f64;
    // Two sums, and dy is in both.
    room.work(launch, [weight, bias]).bytes(whole)
}
