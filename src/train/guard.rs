//! Watches the numbers of a run for what makes further steps pointless.

use super::row::Row;
use crate::model::params::Room;
use crate::step::metrics::Values;
use crate::step::optimizer::PATIENCE;

/// How far values may leave what rewards allow before it counts as divergence: bootstrapped values overshoot a little.
const OVERSHOOT: f64 = 3.0;
/// Spread of a critic's values, relative to their size, below which it says the same of everything.
const SPREAD: f64 = 1e-6;

/// What the numbers of a step say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// It was skipped: gradients of this part were not finite.
    Skipped(&'static str),
    /// It was one too many; the device has stopped applying updates. `first` is the first of them, as a count of steps.
    Over {
        part: &'static str,
        first: u64,
    },
}

/// Remembers what was wrong.
#[derive(Debug)]
pub struct Guard {
    /// Consecutive steps whose gradients were not finite, and the first of them.
    bad: u32,
    first: u64,
    /// The largest |reward| of a chunk so far, and how much a chunk later counts.
    reward: f64,
    chunk_discount: f64,
    warned: Vec<[bool; 2]>,
}

impl Guard {
    /// For values discounted by `chunk_discount` from chunk to chunk.
    pub fn new(chunk_discount: f64) -> Guard {
        Guard {
            bad: 0,
            first: 0,
            reward: 0.0,
            chunk_discount,
            warned: Vec::new(),
        }
    }

    /// Looks at step number `done`, whose largest |reward| of a chunk was `reward`.
    pub fn step(&mut self, done: u64, values: &Values, reward: f64) -> Verdict {
        self.reward = self.reward.max(reward);
        let bad = |rooms: Option<&[Room]>| values.bad_gradients(rooms) != 0.0;
        let part = match (bad(Some(&Room::PI0)), bad(Some(&[Room::Critic])), bad(None)) {
            (false, false, false) => {
                self.bad = 0;
                return Verdict::Fine;
            }
            (true, true, _) => "of π₀ and of the critics",
            (true, ..) => "of π₀",
            (_, true, _) => "of the critics",
            _ => "of the temperature",
        };
        if self.bad == 0 {
            self.first = done;
        }
        self.bad += 1;
        if self.bad < PATIENCE {
            return Verdict::Skipped(part);
        }
        Verdict::Over {
            part,
            first: self.first,
        }
    }

    /// What a row gives to worry about, each said once until it is over.
    pub fn row(&mut self, row: &Row) -> Vec<String> {
        self.warned.resize(row.critics.len(), [false; 2]);
        let bound = self.reward / (1.0 - self.chunk_discount).max(1e-9);
        let mut worries = Vec::new();
        for (i, (critic, warned)) in row.critics.iter().zip(&mut self.warned).enumerate() {
            let largest = critic.q_max.abs().max(critic.q_min.abs());
            let diverges = self.reward > 0.0 && critic.q.abs() > OVERSHOOT * bound;
            let dead = critic.q_max - critic.q_min <= SPREAD * largest;
            if diverges && !warned[0] {
                worries.push(format!(
                    "step {}: critic {i} gives values up to {largest:.3}, though no behaviour can be worth more than \
                     {bound:.3} with the rewards seen so far: the critics diverge; lower acrlpd.critic_lr or \
                     acrlpd.target_update_rate",
                    row.step
                ));
            }
            if dead && !warned[1] {
                worries.push(format!(
                    "step {}: critic {i} gave every chunk since the last row the same value, {:.3}: it has nothing to \
                     choose by; look at the rewards, or start it anew with a lower acrlpd.critic_lr",
                    row.step, critic.q
                ));
            }
            *warned = [diverges, dead];
        }
        worries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::row::CriticRow;

    #[test]
    fn values_beyond_all_rewards_and_constant_ones_are_worries_once() {
        let mut guard = Guard::new(0.9);
        guard.reward = 1.0;
        let row = |q: f64, spread: f64| Row {
            critics: vec![CriticRow {
                q,
                q_min: q - spread,
                q_max: q + spread,
            }],
            ..Row::default()
        };
        // With reward 1 and 0.9 a chunk, 10 is the most; three times that is divergence.
        assert!(guard.row(&row(29.0, 1.0)).is_empty());
        let worries = guard.row(&row(-31.0, 1.0));
        assert!(
            worries.len() == 1 && worries[0].contains("diverge") && worries[0].contains("10.000"),
            "{worries:?}"
        );
        assert!(guard.row(&row(31.0, 1.0)).is_empty(), "said already");
        assert!(guard.row(&row(1.0, 1.0)).is_empty());
        assert_eq!(guard.row(&row(31.0, 1.0)).len(), 1, "it came back");
        let worries = guard.row(&row(0.5, 0.0));
        assert!(worries.len() == 1 && worries[0].contains("same value"), "{worries:?}");
        // Without a reward there is no bound.
        let mut blind = Guard::new(0.9);
        assert!(blind.row(&row(1e6, 1.0)).is_empty());
    }
}
