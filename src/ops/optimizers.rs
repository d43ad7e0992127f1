//! The optimizers a configuration can name, one line each. docs/EXTENDING.md adds one step by step.

use serde::{Deserialize, Serialize};

pub use super::adamw::AdamW;
use super::blockwise;
pub use super::clip::Control;
pub use super::lion::Lion;
use super::update::{self, Numbers};
pub use super::update::{Flat, Update};
use crate::gpu::Gpu;

/// Hyperparameters as a configuration gives them; an optimizer takes those it has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
}

/// What an optimizer is: how it is made, what it keeps, and the numbers of its formula, which is in the kernels.
pub trait Rule: Copy {
    /// Its line in the list below.
    const KIND: Kind;

    /// Does it keep a second moment beside the first? If not, there is no memory for one.
    const SECOND_MOMENT: bool;

    /// From hyperparameters.
    fn new(hyper: Hyper) -> Self;

    /// What its formula needs in an update.
    fn numbers(self, update: Update) -> Numbers;

    /// One update of `flat`, which belongs to group `group` of `control`: new weights, moments, average and compute
    /// copies where `control` says so, and zero gradients always.
    ///
    /// # Panics
    /// If `flat` lacks a moment that the optimizer keeps.
    fn step(self, gpu: &Gpu, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
        let numbers = self.numbers(update);
        match blockwise::holds(flat.m) {
            false => update::step(gpu, Self::KIND, numbers, control, group, flat),
            true => blockwise::step(gpu, Self::KIND, numbers, update.t, control, group, flat),
        }
    }
}

/// Makes the choice of a configuration, and the optimizer it stands for, of the lines below.
macro_rules! optimizers {
    ($($(#[$doc:meta])* $rule:ident = $name:literal;)+) => {
        /// Names of the optimizers in a configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $name)] $rule,)+
        }

        impl Kind {
            /// As a configuration has it.
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$rule => $name,)+ }
            }

            /// Does it keep a second moment?
            pub const fn second_moment(self) -> bool {
                match self { $(Kind::$rule => <$rule as Rule>::SECOND_MOMENT,)+ }
            }

            /// The optimizer with these hyperparameters.
            pub fn with(self, hyper: Hyper) -> Optimizer {
                match self { $(Kind::$rule => $rule::new(hyper).into(),)+ }
            }
        }

        /// An optimizer with its hyperparameters.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Optimizer {
            $($(#[$doc])* $rule($rule),)+
        }

        impl Optimizer {
            /// Does it keep a second moment?
            pub fn second_moment(self) -> bool {
                match self { $(Optimizer::$rule(_) => <$rule as Rule>::SECOND_MOMENT,)+ }
            }

            /// [`Rule::step`] of the one chosen.
            pub fn step(self, gpu: &Gpu, update: Update, control: &Control, group: usize, flat: Flat<'_>) {
                match self { $(Optimizer::$rule(rule) => rule.step(gpu, update, control, group, flat),)+ }
            }
        }

        $(impl From<$rule> for Optimizer {
            fn from(rule: $rule) -> Optimizer {
                Optimizer::$rule(rule)
            }
        })+
    };
}

optimizers! {
    /// Adam with decoupled weight decay.
    AdamW = "adamw";
    /// The sign of a momentum.
    Lion = "lion";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::split::{self, Values};
    use crate::ops::testing::{gpu, normals};
    use crate::ops::{fill, reduce};

    const HYPER: Hyper = Hyper {
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
    };

    /// Bits of weights, moments, average and high halves after some updates, one of them skipped.
    fn train(gpu: &Gpu, optimizer: Optimizer, n: usize, halves: bool) -> Vec<Vec<u32>> {
        let start = normals(1, n);
        let weights = if halves {
            split::halves(gpu, n)
        } else {
            Values::from(gpu.f32([n]))
        };
        weights.write(gpu, &start);
        let zeros = || {
            let t = gpu.f32([n]);
            fill::zero(gpu, &t);
            t
        };
        let (m, v, average) = (zeros(), zeros(), gpu.upload_f32(&start, [n]));
        let copies = (!halves && gpu.caps().bf16).then(|| gpu.alloc(crate::gpu::DType::Bf16, [n]));
        let (control, limits) = (Control::new(gpu, &[1], 3), gpu.upload_f32(&[5.0], [1]));
        for t in 1..=5 {
            let mut grads = normals(10 + t, n);
            if t == 3 {
                grads[7] = f32::INFINITY;
            }
            let g = gpu.upload_f32(&grads, [n]);
            let squares = gpu.f32([1, 2]);
            reduce::squares(gpu, std::slice::from_ref(&g), &squares);
            control.decide(gpu, &squares, &limits);
            let flat = Flat {
                p: &weights.high,
                low: weights.low.as_ref(),
                g: &g,
                m: &m,
                v: optimizer.second_moment().then_some(&v),
                average: Some(&average),
                compute: copies.as_ref(),
            };
            let update = Update { lr: 1e-2, t, rate: 0.1 };
            optimizer.step(gpu, update, &control, 0, flat);
        }
        // What a step computes with: the high halves themselves, the copies, or weights rounded like them.
        let high = match (&weights.low, copies) {
            (Some(_), _) => weights.high.clone(),
            (None, Some(copies)) => copies,
            (None, None) => {
                let high = split::halves(gpu, n).high;
                split::round(gpu, &weights.high, &high);
                high
            }
        };
        let bits = |values: Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<u32>>();
        let read = |t: &crate::gpu::Tensor| bits(gpu.read_f32(t).unwrap());
        vec![
            bits(weights.read(gpu).unwrap()),
            read(&m),
            read(&v),
            read(&average),
            read(&high),
        ]
    }

    #[test]
    fn halves_move_as_whole_weights_do() {
        let gpu = gpu();
        for kind in [Kind::AdamW, Kind::Lion] {
            // Vectors, and an odd length without them.
            for n in [1024, 777] {
                let (whole, halves) = (
                    train(&gpu, kind.with(HYPER), n, false),
                    train(&gpu, kind.with(HYPER), n, true),
                );
                assert!(whole == halves, "{kind:?}, {n} weights");
                let start: Vec<u32> = normals(1, n).iter().map(|v| v.to_bits()).collect();
                assert!(
                    whole[0].iter().zip(&start).all(|(now, was)| now != was),
                    "{kind:?}, {n} weights"
                );
            }
        }
    }

    #[test]
    fn halves_have_the_norm_of_whole_weights() {
        let gpu = gpu();
        for n in [5000, 4999] {
            let values = normals(3, n);
            let (whole, halves) = (gpu.upload_f32(&values, [n]), split::halves(&gpu, n));
            halves.write(&gpu, &values);
            let out = gpu.f32([2, 2]);
            reduce::squares(&gpu, &[whole], &out.rows(0..1));
            reduce::squares(&gpu, &[halves], &out.rows(1..2));
            let out = gpu.read_f32(&out).unwrap();
            assert!(out[0] > 0.9 * n as f32 && out[..2] == out[2..], "{out:?}");
        }
    }
}
