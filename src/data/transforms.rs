//! Numbers between robot space and model space: ALOHA joints, delta actions, normalisation, padding, pixel range.
//!
//! Everything is computed in f64 and rounded once, when a batch is written, as the Python original does implicitly.
//! Source: openpi `policies/aloha_policy.py`, `transforms.py`.

use serde::{Deserialize, Serialize};

use super::norm_stats::Stats;
use super::{DataError, DataSpec};

/// Width of an ALOHA state or action: per arm, six joints and a gripper.
pub const ALOHA_DIM: usize = 14;
/// Signs between ALOHA's joint directions and the ones π₀ was trained with.
const JOINT_FLIP: [f64; ALOHA_DIM] = [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
const GRIPPERS: [usize; 2] = [6, 13];

/// ALOHA gripper opening in metres at the normalised positions 0 and 1.
const GRIPPER_LINEAR: (f64, f64) = (0.01844, 0.05800);
/// Gripper linkage in metres: arm and horn.
const GRIPPER_LINKAGE: (f64, f64) = (0.036, 0.022);
/// Gripper angle in radians that π₀ calls 0 and 1.
const PI_GRIPPER: (f64, f64) = (0.5476, 1.6296);
/// Gripper angle in radians that ALOHA's leader calls 0 and 1.
const LEADER_GRIPPER: (f64, f64) = (-0.6213, 1.4910);

/// Brings an ALOHA state `[14]` to π₀'s joint space, in place.
pub fn adapt_state_to_pi(state: &mut [f64]) {
    flip(state);
    for gripper in GRIPPERS {
        let metres = denormalize(state[gripper], GRIPPER_LINEAR);
        let (arm, horn) = GRIPPER_LINKAGE;
        let sine = (horn * horn + metres * metres - arm * arm) / (2.0 * horn * metres);
        state[gripper] = normalize(sine.clamp(-1.0, 1.0).asin(), PI_GRIPPER);
    }
}

/// Brings one ALOHA action `[14]` to π₀'s joint space, in place.
pub fn adapt_action_to_pi(action: &mut [f64]) {
    flip(action);
    for gripper in GRIPPERS {
        // π₀ counts the commanded angle in radians from its zero; upstream does not scale it.
        action[gripper] = denormalize(action[gripper], LEADER_GRIPPER) - PI_GRIPPER.0;
    }
}

/// The inverse of [`adapt_action_to_pi`].
pub fn adapt_action_from_pi(action: &mut [f64]) {
    flip(action);
    for gripper in GRIPPERS {
        action[gripper] = normalize(action[gripper] + PI_GRIPPER.0, LEADER_GRIPPER);
    }
}

fn flip(joints: &mut [f64]) {
    joints
        .iter_mut()
        .zip(JOINT_FLIP)
        .for_each(|(joint, sign)| *joint *= sign);
}

fn normalize(x: f64, (zero, one): (f64, f64)) -> f64 {
    (x - zero) / (one - zero)
}

fn denormalize(x: f64, (zero, one): (f64, f64)) -> f64 {
    x * (one - zero) + zero
}

/// Delta mask of ALOHA: joints relative to the state, grippers absolute, `[14]`.
pub fn aloha_delta_mask() -> Vec<bool> {
    (0..ALOHA_DIM).map(|i| !GRIPPERS.contains(&i)).collect()
}

/// Subtracts (`sign` -1) or adds (+1) `state` in the masked coordinates of every action of `actions` (`[H, width]`).
fn shift(actions: &mut [f64], width: usize, state: &[f64], mask: &[bool], sign: f64) {
    for action in actions.chunks_exact_mut(width) {
        for ((a, s), _) in action.iter_mut().zip(state).zip(mask).filter(|(_, masked)| **masked) {
            *a += sign * s;
        }
    }
}

/// openpi's data transforms: what is done to state and actions before normalisation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataTransforms {
    /// Convert between ALOHA's and π₀'s joint space.
    pub adapt_to_pi: bool,
    /// Coordinates in which actions are relative to the chunk's first state; `None` leaves all absolute. Coordinates
    /// beyond its length are absolute.
    pub delta_mask: Option<Vec<bool>>,
}

impl DataTransforms {
    /// Those of a run.
    pub fn of(spec: &DataSpec) -> Self {
        DataTransforms {
            adapt_to_pi: spec.adapt_to_pi,
            delta_mask: spec.delta_mask.clone(),
        }
    }

    /// A state in place.
    pub fn state(&self, state: &mut [f64]) {
        if self.adapt_to_pi {
            adapt_state_to_pi(state);
        }
    }

    /// The actions of a chunk in place, `[H, width]`; `state` is its first one, transformed already.
    pub fn actions(&self, actions: &mut [f64], width: usize, state: &[f64]) {
        if self.adapt_to_pi {
            actions.chunks_exact_mut(width).for_each(adapt_action_to_pi);
        }
        if let Some(mask) = &self.delta_mask {
            shift(actions, width, state, mask, -1.0);
        }
    }

    /// The inverse of [`DataTransforms::actions`], for actions that leave the model.
    pub fn actions_to_robot(&self, actions: &mut [f64], width: usize, state: &[f64]) {
        if let Some(mask) = &self.delta_mask {
            shift(actions, width, state, mask, 1.0);
        }
        if self.adapt_to_pi {
            actions.chunks_exact_mut(width).for_each(adapt_action_from_pi);
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
