//! Lion: the sign of a momentum, with decoupled weight decay.
//!
//! ```text
//! u = sign(β₁ m + (1 - β₁) c)                             c: the gradient, clipped
//! p ← p - lr (u + λ p)
//! m ← β₂ m + (1 - β₂) c
//! ```
//! One moment where AdamW keeps two: 12 bytes per weight and gradient in place of 16. Every weight moves by lr, whatever the size of
//! its gradient, so learning rates are 3 to 10 times smaller and decays as much larger than AdamW's.
//! Source: Chen et al. 2023, "Symbolic discovery of optimization algorithms". What the pass does besides, and what it
//! costs: [`update`](super::update).

use cubecl::prelude::*;

use super::optimizers::{Hyper, Kind, Rule};
use super::update::{Numbers, Update};

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
    const KIND: Kind = Kind::Lion;
    const SECOND_MOMENT: bool = false;

    fn new(hyper: Hyper) -> Lion {
        Lion {
            beta1: hyper.beta1,
            beta2: hyper.beta2,
            weight_decay: hyper.weight_decay,
        }
    }

    fn numbers(self, update: Update) -> Numbers {
        Numbers {
            lr: update.lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: 0.0,
            decay: self.weight_decay,
            unbias1: 1.0,
            unbias2: 1.0,
            rate: update.rate,
        }
    }
}

/// -1, 0 or 1.
#[cube]
fn sign(x: f32) -> f32 {
    select(x > 0.0, 1.0, select(x < 0.0, -1.0, 0.0))
}

/// The new weight, from the old moment and the gradient `c`.
#[cube]
pub(super) fn lion_weight(p: f32, m: f32, c: f32, n: &Numbers) -> f32 {
    let direction = sign(n.beta1 * m + (1.0 - n.beta1) * c);
    p - n.lr * (direction + n.decay * p)
}

/// The new moment.
#[cube]
pub(super) fn lion_moment(m: f32, c: f32, n: &Numbers) -> f32 {
    n.beta2 * m + (1.0 - n.beta2) * c
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::optimizers::{Control, Flat};
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
