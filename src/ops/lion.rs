//! Lion: the sign of a momentum, with decoupled weight decay.
//!
//! ```text
//! c = min(1, limit / ‖g‖) · g
//! u = sign(β₁ m + (1 - β₁) c)
//! p ← p - lr (u + λ p)
//! m ← β₂ m + (1 - β₂) c
//! a ← a + rate (p - a)       average: EMA (rate 1 - decay) or target network (rate τ)
//! g ← 0                      ready for the next accumulation
//! ```
//! One moment where AdamW keeps two: 12 bytes per weight and gradient in place of 16. Every weight moves by lr, whatever the size of
//! its gradient, so learning rates are 3 to 10 times smaller and decays as much larger than AdamW's.
//! Source: Chen et al. 2023, "Symbolic discovery of optimization algorithms".
//!
//! Cost: memory bound: reads p, g, m, a; writes them.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::adamw::{Control, Flat, Form, Update, moved, weights};
use super::blockwise::{self, Numbers, Rule8};
use super::lanes::{Lanes, load, store};
use super::optimizers::{Hyper, Rule};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu};

/// Hyperparameters of one group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// Share of the momentum in the direction.
    pub beta1: f32,
    /// Decay of the momentum.
    pub beta2: f32,
    pub weight_decay: f32,
}

impl Rule for Lion {
    const SECOND_MOMENT: bool = false;

    fn new(hyper: Hyper) -> Lion {
        Lion {
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            weight_decay: hyper.weight_decay,
        }
    }

    fn step(self, gpu: &Gpu, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
        if blockwise::holds(flat.m) {
            let numbers = Numbers {
                rule: Rule8::Lion,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: 0.0,
                decay: self.weight_decay,
                unbias: [1.0; 2],
            };
            return blockwise::step(gpu, numbers, update, control, group, flat);
        }
        let plan = flat.plan(gpu);
        launch!(
            gpu,
            Cost::moving("lion", plan.bytes + 2 * flat.m.bytes()),
            lion_kernel,
            plan.count,
            plan.dim,
            [
                flat.p,
                plan.low,
                flat.g,
                flat.m,
                plan.average,
                plan.compute,
                &control.values
            ],
            (
                flat.p.len(),
                group,
                control.groups,
                update.lr,
                self.beta1,
                self.beta2,
                self.weight_decay,
                update.rate,
                plan.form,
                plan.lanes,
                plan.types,
                plan.lanes.sizes(),
            ),
        );
    }
}

/// -1, 0 or 1.
#[cube]
fn sign(x: f32) -> f32 {
    select(x > 0.0, 1.0, select(x < 0.0, -1.0, 0.0))
}

/// Where a weight moves, from the old moment and the gradient `c`.
#[cube]
pub(super) fn lion_direction(m: f32, c: f32, beta1: f32) -> f32 {
    sign(beta1 * m + (1.0 - beta1) * c)
}

/// The new moment.
#[cube]
pub(super) fn lion_moment(m: f32, c: f32, beta2: f32) -> f32 {
    beta2 * m + (1.0 - beta2) * c
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn lion_kernel<P: Numeric, L: Numeric, S: Numeric, C: Numeric, W: Size, N: Size>(
    p: &mut View<Vector<P, W>>,
    low: &mut View<Vector<L, W>>,
    g: &mut View<Vector<S, W>>,
    m: &mut View<Vector<S, W>>,
    average: &mut View<Vector<S, W>>,
    compute: &mut View<Vector<C, W>>,
    control: &View<f32>,
    n: usize,
    group: usize,
    groups: usize,
    lr: f32,
    beta1: f32,
    beta2: f32,
    decay: f32,
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
            let m_at = m.start() + i;
            let gg = load::<S, W, N>(g, g_at, lanes);
            let mut mm = load::<S, W, N>(m, m_at, lanes);
            let mut pp = weights::<P, L, W, N>(p, low, i, form, lanes);
            #[unroll]
            for k in 0..lanes.count {
                let c = gg[k] * factor;
                let direction = lion_direction(mm[k], c, beta1);
                pp[k] = pp[k] - lr * (direction + decay * pp[k]);
                mm[k] = lion_moment(mm[k], c, beta2);
            }
            store::<S, W, N>(m, m_at, mm, lanes);
            moved::<P, L, S, C, W, N>(p, low, average, compute, i, pp, rate, form, lanes);
        }
        store::<S, W, N>(g, g_at, Vector::zeroed(), lanes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reduce;
    use crate::ops::testing::{check, close, f64s, gpu, normals};

    /// One weight in float64.
    #[derive(Clone, Copy)]
    struct Weight {
        p: f64,
        m: f64,
        average: f64,
    }

    impl Weight {
        fn update(&mut self, lion: Lion, update: Update, c: f64) {
            let [beta1, beta2, decay] = [lion.beta1, lion.beta2, lion.weight_decay].map(f64::from);
            let direction = beta1 * self.m + (1.0 - beta1) * c;
            let u = if direction == 0.0 { 0.0 } else { direction.signum() };
            self.p -= f64::from(update.lr) * (u + decay * self.p);
            self.m = beta2 * self.m + (1.0 - beta2) * c;
            self.average += f64::from(update.rate) * (self.p - self.average);
        }
    }

    #[test]
    fn updates_meet_float64_with_clip_decay_average_and_guard() {
        let gpu = gpu();
        let lion = Lion {
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.1,
        };
        // Pairs, and an odd length without them; a limit that clips, and one that does not.
        for (n, limit) in [(1024, 5.0f32), (777, 1e3)] {
            let start = normals(1, n);
            let upload = |values: &[f32]| gpu.upload_f32(values, [n]);
            let (p, m, average) = (upload(&start), upload(&vec![0.0; n]), upload(&start));
            let control = Control::new(&gpu, &[1], 3);
            let limits = gpu.upload_f32(&[limit], [1]);
            let first = |&v: &f32| Weight {
                p: v.into(),
                m: 0.0,
                average: v.into(),
            };
            let mut want: Vec<Weight> = start.iter().map(first).collect();
            for t in 1..=6 {
                let mut grads = normals(10 + t, n);
                // No gradient from the start on: a weight that only decays.
                grads[3] = 0.0;
                // One that is not finite: this update must change nothing but the gradients.
                let bad = t == 4;
                if bad {
                    grads[5] = f32::NAN;
                }
                let g = upload(&grads);
                let squares = gpu.f32([1, 2]);
                reduce::squares(&gpu, std::slice::from_ref(&g), &squares);
                control.decide(&gpu, &squares, &limits);
                let update = Update {
                    lr: 1e-2 / t as f32,
                    t,
                    rate: 0.25,
                };
                let flat = Flat {
                    p: &p,
                    low: None,
                    g: &g,
                    m: &m,
                    v: None,
                    average: Some(&average),
                    compute: None,
                };
                lion.step(&gpu, update, &control, 0, flat);
                assert!(gpu.read_f32(&g).unwrap().iter().all(|v| *v == 0.0));
                if bad {
                    continue;
                }
                let norm = f64s(&grads).iter().map(|g| g * g).sum::<f64>().sqrt();
                let factor = (f64::from(limit) / norm).min(1.0);
                for (weight, g) in want.iter_mut().zip(&grads) {
                    weight.update(lion, update, factor * f64::from(*g));
                }
            }
            let of = |value: fn(&Weight) -> f64| want.iter().map(value).collect::<Vec<f64>>();
            check(&gpu, "p", &p, &of(|w| w.p), 1e-6);
            check(&gpu, "m", &m, &of(|w| w.m), 1e-6);
            check(&gpu, "average", &average, &of(|w| w.average), 1e-6);
            close(
                "the skipped one",
                &gpu.read_f32(&control.skipped()).unwrap(),
                &[1.0],
                0.0,
            );
        }
    }

    #[test]
    fn weights_to_compute_with_are_the_new_ones() {
        let gpu = gpu();
        if !gpu.caps().f16 {
            return;
        }
        let n = 64;
        let (p, g) = (gpu.upload_f32(&normals(1, n), [n]), gpu.upload_f32(&normals(2, n), [n]));
        let (m, compute) = (
            gpu.upload_f32(&vec![0.0; n], [n]),
            gpu.alloc(crate::gpu::DType::F16, [n]),
        );
        let control = Control::new(&gpu, &[1], 3);
        let squares = gpu.f32([1, 2]);
        reduce::squares(&gpu, std::slice::from_ref(&g), &squares);
        control.decide(&gpu, &squares, &gpu.upload_f32(&[1e3], [1]));
        let lion = Lion {
            beta1: 0.9,
            beta2: 0.99,
            weight_decay: 0.0,
        };
        let update = Update {
            lr: 0.1,
            t: 1,
            rate: 0.0,
        };
        let flat = Flat {
            p: &p,
            low: None,
            g: &g,
            m: &m,
            v: None,
            average: None,
            compute: Some(&compute),
        };
        lion.step(&gpu, update, &control, 0, flat);
        check(&gpu, "compute", &compute, &f64s(&gpu.read_f32(&p).unwrap()), 1e-3);
    }
}
