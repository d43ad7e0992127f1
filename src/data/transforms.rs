//! Numbers between robot space and model space, in openpi's order: the robot's own transforms, delta actions,
//! normalisation, padding; and back.
//!
//! The robot's own are named in `data.transforms`, one line each below. docs/EXTENDING.md adds one step by step.
//! Everything is computed in f64 and rounded once, when a batch is written, as the Python original does implicitly.
//! Source: openpi `transforms.py`.

use serde::{Deserialize, Serialize};

pub use super::aloha::Aloha;
use super::norm_stats::Stats;
use super::{DataError, DataSpec};

/// What a robot's numbers need before a model that was trained on others' can use them. Widths stay.
pub trait Transform {
    /// Coordinates that state and action must have; `None`: any number.
    const WIDTH: Option<usize>;

    /// Brings a state to the model's space, in place.
    fn state(state: &mut [f64]);

    /// Brings one action to the model's space, in place.
    fn action(action: &mut [f64]);

    /// The inverse of [`Transform::action`].
    fn action_to_robot(action: &mut [f64]);
}

/// Makes the choice of a configuration of the lines below.
macro_rules! transforms {
    ($($(#[$doc:meta])* $transform:ident = $name:literal;)+) => {
        /// Names of the transforms in a configuration.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Kind {
            $($(#[$doc])* #[serde(rename = $name)] $transform,)+
        }

        impl Kind {
            /// Its name in a configuration.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$transform => $name,)+ }
            }

            /// [`Transform::WIDTH`].
            pub fn width(self) -> Option<usize> {
                match self { $(Kind::$transform => $transform::WIDTH,)+ }
            }

            fn state(self, state: &mut [f64]) {
                match self { $(Kind::$transform => $transform::state(state),)+ }
            }

            fn action(self, action: &mut [f64]) {
                match self { $(Kind::$transform => $transform::action(action),)+ }
            }

            fn action_to_robot(self, action: &mut [f64]) {
                match self { $(Kind::$transform => $transform::action_to_robot(action),)+ }
            }
        }
    };
}

transforms! {
    /// ALOHA's joint directions and grippers (openpi's `adapt_to_pi`).
    Aloha = "aloha";
}

/// openpi's `make_bool_mask`: `n` stands for n coordinates that are set, `-n` for n that are not, so that
/// `[6, -1, 6, -1]` is a mask of 14. At most `limit` coordinates are made.
pub fn mask(runs: &[i64], limit: usize) -> Vec<bool> {
    let run = |n: &i64| std::iter::repeat_n(*n > 0, n.unsigned_abs().min(limit as u64) as usize);
    runs.iter().flat_map(run).take(limit).collect()
}

/// openpi's data transforms: what is done to state and actions before normalisation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataTransforms {
    /// The robot's own, in order.
    pub robot: Vec<Kind>,
    /// Coordinates in which actions are relative to the chunk's first state; `None` leaves all absolute. Coordinates
    /// beyond its length are absolute.
    pub delta_mask: Option<Vec<bool>>,
}

impl DataTransforms {
    /// Those of a run.
    pub fn of(spec: &DataSpec) -> Self {
        DataTransforms {
            robot: spec.transforms.clone(),
            delta_mask: spec.delta_mask.clone(),
        }
    }

    /// A state in place.
    pub fn state(&self, state: &mut [f64]) {
        self.robot.iter().for_each(|t| t.state(state));
    }

    /// One action in place, as far as that does not depend on a state: [`DataTransforms::to_deltas`] comes after.
    pub fn action(&self, action: &mut [f64]) {
        self.robot.iter().for_each(|t| t.action(action));
    }

    /// Makes the actions of a chunk, `[H, width]`, relative to its first state, transformed already.
    pub fn to_deltas(&self, actions: &mut [f64], width: usize, state: &[f64]) {
        self.shift(actions, width, state, -1.0);
    }

    /// The actions of a chunk in place, `[H, width]`; `state` is its first one, transformed already.
    pub fn actions(&self, actions: &mut [f64], width: usize, state: &[f64]) {
        actions.chunks_exact_mut(width).for_each(|a| self.action(a));
        self.to_deltas(actions, width, state);
    }

    /// The inverse of [`DataTransforms::actions`], for actions that leave the model.
    pub fn actions_to_robot(&self, actions: &mut [f64], width: usize, state: &[f64]) {
        self.shift(actions, width, state, 1.0);
        let back = |action: &mut [f64]| self.robot.iter().rev().for_each(|t| t.action_to_robot(action));
        actions.chunks_exact_mut(width).for_each(back);
    }

    /// Adds `sign * state` in the masked coordinates of every action.
    fn shift(&self, actions: &mut [f64], width: usize, state: &[f64], sign: f64) {
        let Some(mask) = &self.delta_mask else { return };
        for action in actions.chunks_exact_mut(width) {
            for ((a, s), _) in action.iter_mut().zip(state).zip(mask).filter(|(_, masked)| **masked) {
                *a += sign * s;
            }
        }
    }
}

/// Which statistics normalisation uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// `(x - mean) / (std + 1e-6)`: π₀.
    #[default]
    ZScore,
    /// `(x - q01) / (q99 - q01 + 1e-6) * 2 - 1`: π₀.₅ and π₀-FAST.
    Quantile,
}

/// Keeps constant coordinates finite (openpi).
const EPSILON: f64 = 1e-6;

/// Normalises vectors, elementwise: `(x - shift) / scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Normalizer {
    shift: Vec<f64>,
    scale: Vec<f64>,
    kind: NormKind,
}

impl Normalizer {
    /// From the statistics named `key`, of which the first `width` coordinates are needed.
    ///
    /// # Errors
    /// [`DataError::Stats`] if they are narrower or have no quantiles where quantiles are needed.
    pub fn new(stats: &Stats, kind: NormKind, key: &'static str, width: usize) -> Result<Self, DataError> {
        let invalid = |reason: String| DataError::Stats { key, reason };
        if stats.mean.len() < width {
            return Err(invalid(format!(
                "they are {} wide, but {width} are needed",
                stats.mean.len()
            )));
        }
        let (shift, scale) = match kind {
            NormKind::ZScore => (stats.mean.clone(), stats.std.iter().map(|s| s + EPSILON).collect()),
            NormKind::Quantile => match (&stats.q01, &stats.q99) {
                (Some(low), Some(high)) => {
                    // (x - low) / range * 2 - 1 with the centre as the shift.
                    let half: Vec<f64> = low.iter().zip(high).map(|(l, h)| (h - l + EPSILON) / 2.0).collect();
                    (low.iter().zip(&half).map(|(l, h)| l + h).collect(), half)
                }
                _ => {
                    return Err(invalid(
                        "quantile normalisation needs `q01` and `q99`, which they lack".to_owned(),
                    ));
                }
            },
        };
        Ok(Normalizer { shift, scale, kind })
    }

    /// Normalises `x` in place; it may be narrower than the statistics.
    pub fn normalize(&self, x: &mut [f64]) {
        for ((x, shift), scale) in x.iter_mut().zip(&self.shift).zip(&self.scale) {
            *x = (*x - shift) / scale;
        }
    }

    /// The inverse. Coordinates beyond the statistics are the model's padding: openpi treats them as mean 0, std 1
    /// under z-scores and leaves them alone under quantiles.
    pub fn unnormalize(&self, x: &mut [f64]) {
        let known = self.shift.len().min(x.len());
        let (body, padding) = x.split_at_mut(known);
        for ((x, shift), scale) in body.iter_mut().zip(&self.shift).zip(&self.scale) {
            *x = *x * scale + shift;
        }
        if self.kind == NormKind::ZScore {
            padding.iter_mut().for_each(|x| *x *= 1.0 + EPSILON);
        }
    }
}

/// Rounds `x` into the front of `out` and fills the rest with zeros: the model's width is fixed, the robot's is not.
pub fn pad_into(x: &[f64], out: &mut [f32]) {
    out.fill(0.0);
    out.iter_mut().zip(x).for_each(|(out, x)| *out = *x as f32);
}

/// A pixel in the model's range [-1, 1], in f32 as the device computes it.
pub fn pixel_to_model(pixel: u8) -> f32 {
    f32::from(pixel) / 255.0 * 2.0 - 1.0
}
