//! What follows the gradients as cases: updates of weights, averages, norms.

use serde::Serialize;

use super::check::{Expected, Sum};
use super::work::{Operand, Room, Work};
use crate::gpu::{DType, Gpu};
use crate::ops::optimizers::{AdamW, Control, Flat, Lion, Rule, Update};
use crate::ops::{blockwise, clip, reduce, soft_update};

/// Which op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateKind {
    /// With the average, and in a short type the copy to compute with, or weights in halves.
    Adamw,
    /// AdamW with its moments in blocks of 8 bits, which are zero.
    Blockwise,
    Lion,
    SoftUpdate,
    /// Σ g² and the number of elements that are not finite.
    Norm,
    Clip,
}

/// One op on so many weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UpdateCase {
    pub op: UpdateKind,
    pub elements: usize,
}

const ADAMW: AdamW = AdamW {
    beta1: 0.875,
    beta2: 0.9375,
    eps: 1e-8,
    weight_decay: 0.03125,
};
const LION: Lion = Lion {
    beta1: 0.875,
    beta2: 0.9375,
    weight_decay: 0.03125,
};
/// Powers of two: the same in f32 and float64.
const UPDATE: Update = Update {
    lr: 0.015625,
    t: 3,
    rate: 0.0625,
};
/// The clip factor that [`control`] decides on.
const CLIP: f64 = 0.5;

impl UpdateCase {
    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        let n = self.elements;
        match self.op {
            UpdateKind::Adamw => optimizer(room, n, Moments::Two),
            UpdateKind::Blockwise => optimizer(room, n, Moments::TwoInBlocks),
            UpdateKind::Lion => optimizer(room, n, Moments::One),
            UpdateKind::SoftUpdate => soft_update(room, n),
            UpdateKind::Norm => norm(room, n),
            UpdateKind::Clip => clip(room, n),
        }
    }
}

/// One group whose gradients are twice as long as they may be.
fn control(gpu: &Gpu) -> Control {
    let control = Control::new(gpu, &[1], 3);
    control.decide(gpu, &gpu.upload_f32(&[4.0, 0.0], [1, 2]), &gpu.upload_f32(&[1.0], [1]));
    control
}

/// What an optimizer keeps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moments {
    One,
    Two,
    TwoInBlocks,
}

/// One weight before the update. Moments that are not there are zero.
#[derive(Clone)]
struct Before {
    adam: bool,
    p: Operand,
    g: Operand,
    m: Option<Operand>,
    v: Option<Operand>,
}

impl Before {
    fn first(&self, i: usize) -> f64 {
        let beta = if self.adam { ADAMW.beta1 } else { LION.beta2 };
        f64::from(beta) * self.kept(i) + f64::from(1.0 - beta) * CLIP * self.g.at(i)
    }

    fn kept(&self, i: usize) -> f64 {
        self.m.as_ref().map_or(0.0, |m| m.at(i))
    }

    fn second(&self, i: usize) -> f64 {
        let (beta, g) = (f64::from(ADAMW.beta2), CLIP * self.g.at(i));
        beta * self.v.as_ref().map_or(0.0, |v| v.at(i)) + (1.0 - beta) * g * g
    }

    /// The weight after the update.
    fn after(&self, i: usize) -> Sum {
        let (p, lr) = (self.p.at(i), f64::from(UPDATE.lr));
        let mut sum = Sum::of(p);
        sum.add(-lr * f64::from(ADAMW.weight_decay) * p);
        if self.adam {
            let unbias = |beta: f32| 1.0 / (1.0 - f64::from(beta).powi(UPDATE.t as i32));
            let spread = (self.second(i) * unbias(ADAMW.beta2)).sqrt() + f64::from(ADAMW.eps);
            sum.add(-lr * self.first(i) * unbias(ADAMW.beta1) / spread);
        } else {
            let beta = f64::from(LION.beta1);
            let direction = beta * self.kept(i) + (1.0 - beta) * CLIP * self.g.at(i);
            // Where it is all but zero, rounding decides its sign.
            let open = if direction.abs() < 1e-6 { 1e9 } else { 1.0 };
            sum.add_sized(-lr * direction.signum(), lr * open);
        }
        sum
    }
}

fn optimizer(mut room: Room<'_>, n: usize, moments: Moments) -> Work {
    let (adam, blocks) = (moments != Moments::One, moments == Moments::TwoInBlocks);
    // A bf16 step keeps its weights in halves, and computes with the high ones.
    let halves = room.dtype == DType::Bf16;
    let p = room.in_place(if halves { DType::Bf16 } else { DType::F32 }, [n], 1.0, 0.0);
    let low = halves.then(|| room.zeroed(DType::U16, [n]));
    let g = room.in_place(DType::F32, [n], 1.0, 0.0);
    let m = (!blocks).then(|| room.in_place(DType::F32, [n], 1.0, 0.0));
    let v = (adam && !blocks).then(|| room.in_place(DType::F32, [n], 0.25, 0.5));
    let codes = blocks.then(|| [(); 2].map(|()| room.zeroed(DType::U32, [blockwise::words(n)])));
    let average = room.in_place(DType::F32, [n], 1.0, 0.0);
    let compute = (room.dtype == DType::F16).then(|| room.output([n]));
    let before = Before {
        adam,
        p: p.clone(),
        g: g.clone(),
        m: m.clone(),
        v: v.clone(),
    };
    let mut expected = vec![Expected::new("g", &g.tensor, |_| Sum::of(0.0))];
    let b = before.clone();
    expected.push(Expected::new("p", &p.tensor, move |i| b.after(i)));
    if let Some(m) = &m {
        let b = before.clone();
        expected.push(Expected::new("m", &m.tensor, move |i| Sum::of(b.first(i))));
    }
    if let Some(v) = &v {
        let b = before.clone();
        expected.push(Expected::new("v", &v.tensor, move |i| Sum::of(b.second(i))));
    }
    if let Some(compute) = &compute {
        let b = before.clone();
        expected.push(Expected::new("compute", compute, move |i| b.after(i)));
    }
    let (b, mean) = (before, average.clone());
    expected.push(Expected::new("average", &average.tensor, move |i| {
        let (rate, mean) = (f64::from(UPDATE.rate), mean.at(i));
        let p = b.after(i);
        let mut sum = Sum::of(mean);
        sum.add_sized(rate * (p.value - mean), rate * (p.size + mean.abs()));
        sum
    }));
    let control = control(room.gpu);
    let [m, v] = match codes {
        Some(codes) => codes.map(Some),
        None => [m, v].map(|moment| moment.map(|operand| operand.tensor)),
    };
    let m = m.expect("every optimizer has a first moment");
    let launch = move |gpu: &Gpu| {
        let flat = Flat {
            p: &p.tensor,
            low: low.as_ref(),
            g: &g.tensor,
            m: &m,
            v: v.as_ref(),
            average: Some(&average.tensor),
            compute: compute.as_ref(),
        };
        match adam {
            true => ADAMW.step(gpu, UPDATE, &control, 0, flat),
            false => LION.step(gpu, UPDATE, &control, 0, flat),
        }
    };
    room.work(launch, expected)
}

fn soft_update(mut room: Room<'_>, n: usize) -> Work {
    let (target, online) = (room.in_place(DType::F32, [n], 1.0, 0.0), room.input_f32([n], 1.0, 0.0));
    let expected = {
        let (before, online) = (target.clone(), online.clone());
        Expected::new("target", &target.tensor, move |i| {
            let (rate, before) = (f64::from(UPDATE.rate), before.at(i));
            [before, rate * online.at(i), -rate * before].into_iter().collect()
        })
    };
    let launch = move |gpu: &Gpu| soft_update::soft_update(gpu, &target.tensor, &online.tensor, UPDATE.rate);
    room.work(launch, [expected])
}

fn norm(mut room: Room<'_>, n: usize) -> Work {
    let (g, out) = (room.input_f32([n], 1.0, 0.0), room.output_as(DType::F32, [2]));
    let expected = {
        let g = g.clone();
        // The sum is the same for all samples, and long.
        let sum = std::cell::OnceCell::<Sum>::new();
        Expected::new("squares", &out, move |i| match i {
            0 => *sum.get_or_init(|| (0..n).map(|i| g.at(i).powi(2)).collect()),
            _ => Sum::of(0.0),
        })
    };
    let launch = move |gpu: &Gpu| reduce::squares(gpu, std::slice::from_ref(&g.tensor), &out);
    room.work(launch, [expected])
}

fn clip(mut room: Room<'_>, n: usize) -> Work {
    let x = room.in_place(DType::F32, [n], 1.0, 0.0);
    let expected = {
        let before = x.clone();
        Expected::new("x", &x.tensor, move |i| Sum::of(CLIP * before.at(i)))
    };
    let control = control(room.gpu);
    let launch = move |gpu: &Gpu| clip::clip(gpu, &x.tensor, &control, 0);
    room.work(launch, [expected])
}
