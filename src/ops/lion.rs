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

use super::adamw::{Control, Flat, Form, Update, copies};
use super::optimizers::{Hyper, Rule};
use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu};

/// Units of a workgroup.
const UNITS: usize = 64;

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
        let n = flat.p.len();
        let average = flat.average.unwrap_or(flat.p);
        let compute = flat.compute.unwrap_or(flat.p);
        let form = Form {
            average: flat.average.is_some(),
            compute: flat.compute.is_some(),
        };
        let wide = is_wide(gpu, n, &[flat.p, flat.g, flat.m, average]);
        let types = [storage(flat.p, wide), compute.dtype().storage()];
        launch!(
            gpu,
            Cost::moving("lion", (6 + if form.average { 2 } else { 0 }) * flat.p.bytes()),
            lion_kernel,
            gpu.cubes(n.div_ceil(2), UNITS),
            CubeDim::new_1d(UNITS as u32),
            [flat.p, flat.g, flat.m, average, compute, &control.values],
            (
                n,
                group,
                control.groups,
                update.lr,
                self.beta1,
                self.beta2,
                self.weight_decay,
                update.rate,
                form,
                wide,
                types,
            ),
        );
    }
}

/// -1, 0 or 1.
#[cube]
fn sign(x: f32) -> f32 {
    select(x > 0.0, 1.0, select(x < 0.0, -1.0, 0.0))
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn lion_kernel<P: Numeric, C: Numeric>(
    p: &mut View<P>,
    g: &mut View<P>,
    m: &mut View<P>,
    average: &mut View<P>,
    compute: &mut View<C>,
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
    #[comptime] wide: bool,
    #[define(P, C)] _types: [StorageType; 2],
) {
    let i = 2 * ABSOLUTE_POS;
    if i < n {
        let more = i + 1 < n;
        let g_at = g.start() + i;
        if control.get(groups) == 1.0 {
            let factor = control.get(group);
            let (p_at, m_at) = (p.start() + i, m.start() + i);
            let grad = load2::<P>(g, g_at, more, wide);
            let (ca, cb) = (grad.a * factor, grad.b * factor);
            let mut mm = load2::<P>(m, m_at, more, wide);
            let mut pp = load2::<P>(p, p_at, more, wide);
            pp.a -= lr * (sign(beta1 * mm.a + (1.0 - beta1) * ca) + decay * pp.a);
            pp.b -= lr * (sign(beta1 * mm.b + (1.0 - beta1) * cb) + decay * pp.b);
            store2::<P>(p, p_at, more, pp, wide);
            mm.a = beta2 * mm.a + (1.0 - beta2) * ca;
            mm.b = beta2 * mm.b + (1.0 - beta2) * cb;
            store2::<P>(m, m_at, more, mm, wide);
            copies::<P, C>(average, compute, i, more, pp, rate, form, wide);
        }
        store2::<P>(g, g_at, more, Pair { a: 0.0, b: 0.0 }, wide);
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
