//! One row of `metrics.jsonl`.

use serde::{Deserialize, Serialize};

use super::eval::Evaluation;
use crate::model::params::Room;

/// Means over the steps since the row before, unless said otherwise. What belongs to π₀ is the mean over the steps that
/// updated it: not a number (null) if none of them did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Optimizer steps done.
    pub step: u64,
    pub critic_loss: f64,
    pub actor_loss: f64,
    pub bc_loss: f64,
    /// Mean squared step between the chosen candidates' actions; absent where its weight is zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothness_loss: Option<f64>,
    /// Of critics at the data's actions; of their targets; of the best candidate, and of all candidates.
    pub q: f64,
    pub target_q: f64,
    pub best_q: f64,
    pub candidate_q: f64,
    /// What choosing among N is worth by the critics' own account: `best_q - candidate_q`.
    pub best_of_n_gain: f64,
    /// Each critic by itself.
    pub critics: Vec<CriticRow>,
    /// |Q - target| over samples and critics: means of each step's quantiles.
    pub td_error: Quantiles,
    /// Root of the mean squared velocity error of each of the robot's coordinates, in normalised units.
    pub bc_joint_error: Vec<f64>,
    /// Global norms before clipping, of each group and of each room.
    pub pi0_grad_norm: f64,
    pub critic_grad_norm: f64,
    pub grad_norm: Rooms,
    /// Norms of the weights after the row's step; absent where the row came early (a signal, an evaluation).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_norm: Option<Rooms>,
    /// Logarithm of the candidates' variance; absent without the adaptive temperature, as the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_loss: Option<f64>,
    /// Steps since the start of the program whose gradients were not finite; they changed nothing.
    pub skipped: u64,
    /// Discounted reward of a chunk; shares of samples from successful episodes, and with weight.
    pub reward: f64,
    pub positives: f64,
    pub valid: f64,
    /// Learning rates of the last step.
    pub pi0_lr: f64,
    pub critic_lr: f64,
    pub steps_per_s: f64,
    pub samples_per_s: f64,
    /// Useful arithmetic, in 10¹² operations a second.
    pub tflops: f64,
    /// That as a share of what the largest matrix product of this device reaches; absent on CPUs, where it is not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_share: Option<f64>,
    /// Time the loop waited for data, per step.
    pub data_wait_ms: f64,
    /// Bytes of device memory in use after the row's step, and at most so far.
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
    /// Results on held-out episodes at this step, if any were due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Evaluation>,
}

/// One critic at the data's actions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CriticRow {
    pub q: f64,
    /// Extremes over all samples of the interval.
    pub q_min: f64,
    pub q_max: f64,
}

/// Of a distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Quantiles {
    /// Of `values`, which are sorted on the way; the nearest rank counts. Zeros if there are none.
    pub fn of(values: &mut [f32]) -> Quantiles {
        values.sort_unstable_by(f32::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil().max(1.0) as usize;
            values.get(rank - 1).map_or(0.0, |v| f64::from(*v))
        };
        Quantiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }

    /// Applies `f` to each with that of `other`.
    pub(super) fn zip(self, other: Quantiles, f: impl Fn(f64, f64) -> f64) -> Quantiles {
        Quantiles {
            p50: f(self.p50, other.p50),
            p90: f(self.p90, other.p90),
            p99: f(self.p99, other.p99),
            max: f(self.max, other.max),
        }
    }
}

/// One number for each part of the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rooms {
    pub vision: f64,
    pub language: f64,
    pub expert: f64,
    pub critic: f64,
}

impl Rooms {
    /// From the number of each room.
    pub fn of(number: impl Fn(Room) -> f64) -> Rooms {
        Rooms {
            vision: number(Room::Vision),
            language: number(Room::Language),
            expert: number(Room::Expert),
            critic: number(Room::Critic),
        }
    }

    /// The number of a room.
    pub fn get(&self, room: Room) -> f64 {
        match room {
            Room::Vision => self.vision,
            Room::Language => self.language,
            Room::Expert => self.expert,
            Room::Critic => self.critic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let mut values: Vec<f32> = (1..=200).rev().map(|i| i as f32).collect();
        let q = Quantiles::of(&mut values);
        assert_eq!((q.p50, q.p90, q.p99, q.max), (100.0, 180.0, 198.0, 200.0));
        assert_eq!(Quantiles::of(&mut [3.0]).p50, 3.0);
        assert_eq!(Quantiles::of(&mut []), Quantiles::default());
        assert!(Quantiles::of(&mut [1.0, f32::NAN]).max.is_nan());
    }
}
