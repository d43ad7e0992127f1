//! ALOHA's numbers in the space π₀ was trained in (openpi's `adapt_to_pi`): joint directions and gripper units.
//!
//! Per arm six joints and a gripper. Source: openpi `policies/aloha_policy.py`.

use super::transforms::Transform;

/// Width of an ALOHA state or action: per arm, six joints and a gripper.
pub const ALOHA_DIM: usize = 14;
/// Signs between ALOHA's joint directions and the ones π₀ was trained with.
const JOINT_FLIP: [f64; ALOHA_DIM] = [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];
const GRIPPERS: [usize; 2] = [6, 13];
/// openpi's delta mask of ALOHA: joints relative to the state, grippers absolute (see [`mask`](super::transforms::mask)).
pub const ALOHA_DELTAS: [i64; 4] = [6, -1, 6, -1];

/// ALOHA gripper opening in metres at the normalised positions 0 and 1.
const GRIPPER_LINEAR: (f64, f64) = (0.01844, 0.05800);
/// Gripper linkage in metres: arm and horn.
const GRIPPER_LINKAGE: (f64, f64) = (0.036, 0.022);
/// Gripper angle in radians that π₀ calls 0 and 1.
const PI_GRIPPER: (f64, f64) = (0.5476, 1.6296);
/// Gripper angle in radians that ALOHA's leader calls 0 and 1.
const LEADER_GRIPPER: (f64, f64) = (-0.6213, 1.4910);

/// ALOHA's joints and grippers to π₀'s.
pub struct Aloha;

impl Transform for Aloha {
    const WIDTH: Option<usize> = Some(ALOHA_DIM);

    fn state(state: &mut [f64]) {
        flip(state);
        for gripper in GRIPPERS {
            let metres = denormalize(state[gripper], GRIPPER_LINEAR);
            let (arm, horn) = GRIPPER_LINKAGE;
            let sine = (horn * horn + metres * metres - arm * arm) / (2.0 * horn * metres);
            state[gripper] = normalize(sine.clamp(-1.0, 1.0).asin(), PI_GRIPPER);
        }
    }

    fn action(action: &mut [f64]) {
        flip(action);
        for gripper in GRIPPERS {
            // π₀ counts the commanded angle in radians from its zero; upstream does not scale it.
            action[gripper] = denormalize(action[gripper], LEADER_GRIPPER) - PI_GRIPPER.0;
        }
    }

    fn action_to_robot(action: &mut [f64]) {
        flip(action);
        for gripper in GRIPPERS {
            action[gripper] = normalize(action[gripper] + PI_GRIPPER.0, LEADER_GRIPPER);
        }
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
