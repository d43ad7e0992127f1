//! Watches the numbers of a run for what makes further steps pointless.

use super::row::Row;
use crate::model::params::Room;
use crate::step::metrics::Values;
use crate::step::optimizer::PATIENCE;

/// How far values may leave what episodes are worth: bootstrapped ones overshoot, and a policy may do better than any
/// demonstration, but not by this much.
const OVERSHOOT: f64 = 2.0;
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
    /// The most that values can be; 0 if nothing is known.
    bound: f64,
    /// Whether a row has several samples: one alone always has one value.
    several: bool,
    /// What was said already: of the actor, and of each critic.
    overrated: bool,
    warned: Vec<[bool; 2]>,
}

impl Guard {
    /// For values of at most `bound`, as [`BatchBuilder::value_bound`](crate::data::BatchBuilder::value_bound) has it, of
    /// `samples` a step.
    pub fn new(bound: f64, samples: usize) -> Guard {
        Guard {
            bad: 0,
            first: 0,
            bound,
            several: samples > 1,
            overrated: false,
            warned: Vec::new(),
        }
    }

    /// Looks at step number `done`.
    pub fn step(&mut self, done: u64, values: &Values) -> Verdict {
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
        let bound = self.bound;
        let beyond = |q: f64| bound > 0.0 && q.abs() > OVERSHOOT * bound;
        let mut worries = Vec::new();
        let overrated = bound > 0.0 && row.best_q > OVERSHOOT * bound;
        if overrated && !self.overrated {
            worries.push(format!(
                "step {}: critics rate the policy's choice {:.3}, though the best recorded episode is worth {bound:.3}: the \
                 policy has found what they overrate; lower acrlpd.actor_loss_weight or acrlpd.actor_lr, or raise \
                 acrlpd.bc_loss_weight",
                row.step, row.best_q
            ));
        }
        self.overrated = overrated;
        for (i, (critic, warned)) in row.critics.iter().zip(&mut self.warned).enumerate() {
            let largest = critic.q_max.abs().max(critic.q_min.abs());
            let diverges = beyond(critic.q);
            let dead = self.several && critic.q_max - critic.q_min <= SPREAD * largest;
            if diverges && !warned[0] {
                worries.push(format!(
                    "step {}: critic {i} gives recorded chunks values up to {largest:.3}, though the best recorded episode \
                     is worth {bound:.3}: the critics diverge; lower acrlpd.critic_lr or acrlpd.target_update_rate",
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
    fn values_beyond_all_episodes_and_constant_ones_are_worries_once() {
        let mut guard = Guard::new(10.0, 8);
        let row = |q: f64, spread: f64, best_q: f64| Row {
            critics: vec![CriticRow {
                q,
                q_min: q - spread,
                q_max: q + spread,
            }],
            best_q,
            ..Row::default()
        };
        assert!(guard.row(&row(19.0, 1.0, 19.0)).is_empty());
        let worries = guard.row(&row(-21.0, 1.0, -21.0));
        assert!(
            worries.len() == 1 && worries[0].contains("diverge") && worries[0].contains("10.000"),
            "{worries:?}"
        );
        assert!(guard.row(&row(21.0, 1.0, 0.0)).is_empty(), "said already");
        assert!(guard.row(&row(1.0, 1.0, 0.0)).is_empty());
        assert_eq!(guard.row(&row(21.0, 1.0, 0.0)).len(), 1, "it came back");
        let worries = guard.row(&row(0.5, 0.0, f64::NAN));
        assert!(worries.len() == 1 && worries[0].contains("same value"), "{worries:?}");
        let worries = guard.row(&row(0.5, 1.0, 20.1));
        assert!(worries.len() == 1 && worries[0].contains("overrate"), "{worries:?}");
        // Without a reward there is no bound.
        let mut blind = Guard::new(0.0, 8);
        assert!(blind.row(&row(1e6, 1.0, 1e6)).is_empty());
        // One sample has one value, which says nothing about the critic.
        assert!(Guard::new(10.0, 1).row(&row(0.5, 0.0, 0.5)).is_empty());
    }
}
