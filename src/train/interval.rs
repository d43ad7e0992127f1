//! Sums over the steps between two rows.

use std::collections::VecDeque;
use std::time::Duration;

use super::feed::Ration;
use super::row::{CriticRow, Quantiles, Rooms, Row};
use crate::model::params::Room;
use crate::step::metrics::{PendingValues, Slot, Values};
use crate::step::optimizer::Rates;

/// What the host knows about a step.
pub struct Fed {
    /// Steps done with it.
    pub done: u64,
    /// When it was issued, on the clock of the loop (which stands still during evaluation and saving).
    pub at: Duration,
    /// Was π₀ updated too?
    pub updates_pi0: bool,
    pub rates: Rates,
    pub reward: f64,
    pub positives: f64,
    pub valid: f64,
    /// Useful floating point operations.
    pub flops: f64,
}

impl Fed {
    /// The step that was fed `ration`.
    pub fn new(done: u64, at: Duration, updates_pi0: bool, rates: Rates, ration: &Ration, flops: f64) -> Fed {
        Fed {
            done,
            at,
            updates_pi0,
            rates,
            reward: ration.reward,
            positives: ration.positives,
            valid: ration.valid,
            flops,
        }
    }
}

/// A step whose numbers are still on the device.
pub struct Pending {
    pub step: Fed,
    pub read: PendingValues,
}

/// Numbers on their way, oldest first.
pub type Queue = VecDeque<Pending>;

/// What does not come from the device's numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Surroundings {
    /// Data stall since the start of the loop.
    pub waited_s: f64,
    /// Operations a second that a product reaches here, if measured.
    pub peak_flops: Option<f64>,
    pub memory_bytes: u64,
    pub peak_memory_bytes: u64,
}

/// Sums over the steps of an interval.
pub struct Interval {
    sum: Row,
    entropy: [f64; 3],
    flops: f64,
    steps: u64,
    /// Those of them that updated π₀.
    pi0_steps: u64,
    samples_per_step: usize,
    with_temperature: bool,
    with_smoothness: bool,
    /// On the clock of the loop: end of the interval before, and of the last step.
    since: Duration,
    until: Duration,
    waited: f64,
}

impl Interval {
    /// The first interval.
    pub fn new(samples_per_step: usize, with_temperature: bool, with_smoothness: bool) -> Interval {
        Interval {
            sum: Row {
                smoothness_loss: with_smoothness.then_some(0.0),
                ..Row::default()
            },
            entropy: [0.0; 3],
            flops: 0.0,
            steps: 0,
            pi0_steps: 0,
            samples_per_step,
            with_temperature,
            with_smoothness,
            since: Duration::ZERO,
            until: Duration::ZERO,
            waited: 0.0,
        }
    }

    /// Adds a step.
    pub fn add(&mut self, step: &Fed, values: &Values) {
        let v = |slot: Slot| f64::from(values.get(slot));
        self.add_critics(values);
        let s = &mut self.sum;
        s.critic_loss += v(Slot::CriticLoss);
        s.critic_grad_norm += values.gradient_norm(&[Room::Critic]);
        s.grad_norm.critic += values.gradient_norm(&[Room::Critic]);
        // The other steps draw no candidates and clone nothing: their zeros say nothing.
        if step.updates_pi0 {
            s.actor_loss += v(Slot::ActorLoss);
            s.bc_loss += v(Slot::BcLoss);
            s.smoothness_loss = s.smoothness_loss.map(|sum| sum + v(Slot::SmoothnessLoss));
            s.best_q += v(Slot::BestQ);
            s.candidate_q += v(Slot::CandidateQ);
            s.pi0_grad_norm += values.gradient_norm(&Room::PI0);
            let before = s.grad_norm;
            s.grad_norm = Rooms::of(|room| match room {
                Room::Critic => before.critic,
                room => before.get(room) + values.gradient_norm(&[room]),
            });
            s.bc_joint_error.resize(values.joints().len(), 0.0);
            let joints = s.bc_joint_error.iter_mut().zip(values.joints());
            joints.for_each(|(sum, error)| *sum += f64::from(*error));
            let spread = [v(Slot::Entropy), v(Slot::LogAlpha).exp(), v(Slot::TemperatureLoss)];
            self.entropy.iter_mut().zip(spread).for_each(|(sum, v)| *sum += v);
            self.pi0_steps += 1;
        }
        s.reward += step.reward;
        s.positives += step.positives;
        s.valid += step.valid;
        s.skipped = v(Slot::Skipped) as u64;
        (s.step, s.pi0_lr, s.critic_lr) = (step.done, step.rates.pi0, step.rates.critic);
        // Weights that are all zero are as good as not measured.
        let norms = Rooms::of(|room| values.weight_norm(&[room]));
        s.weight_norm = (norms != Rooms::default()).then_some(norms);
        self.flops += step.flops;
        self.until = step.at;
        self.steps += 1;
    }

    fn add_critics(&mut self, values: &Values) {
        let s = &mut self.sum;
        let members = values.layout().critics;
        let none = CriticRow {
            q: 0.0,
            q_min: f64::INFINITY,
            q_max: f64::NEG_INFINITY,
        };
        s.critics.resize(members, none);
        let mut errors = Vec::new();
        for (member, row) in s.critics.iter_mut().enumerate() {
            let (mut sum, mut target_sum, mut n) = (0.0, 0.0, 0.0);
            for (q, target) in values.q(member) {
                let wide = f64::from(q);
                sum += wide;
                target_sum += f64::from(target);
                n += 1.0;
                (row.q_min, row.q_max) = (row.q_min.min(wide), row.q_max.max(wide));
                errors.push((q - target).abs());
            }
            row.q += sum / n;
            s.q += sum / n / members as f64;
            if member == 0 {
                s.target_q += target_sum / n;
            }
        }
        s.td_error = s.td_error.zip(Quantiles::of(&mut errors), |a, b| a + b);
    }

    /// The row of the interval, and the start of the next. `None` if no step was added.
    pub fn finish(&mut self, around: &Surroundings) -> Option<Row> {
        let (n, pi0_n) = (self.steps as f64, self.pi0_steps as f64);
        if self.steps == 0 {
            return None;
        }
        let seconds = self.until.saturating_sub(self.since).as_secs_f64().max(1e-9);
        let [entropy, temperature, temperature_loss] =
            self.entropy.map(|sum| self.with_temperature.then_some(sum / pi0_n));
        let s = std::mem::take(&mut self.sum);
        let row = Row {
            critic_loss: s.critic_loss / n,
            actor_loss: s.actor_loss / pi0_n,
            bc_loss: s.bc_loss / pi0_n,
            smoothness_loss: s.smoothness_loss.map(|sum| sum / pi0_n),
            q: s.q / n,
            target_q: s.target_q / n,
            best_q: s.best_q / pi0_n,
            candidate_q: s.candidate_q / pi0_n,
            best_of_n_gain: (s.best_q - s.candidate_q) / pi0_n,
            critics: s.critics.iter().map(|c| CriticRow { q: c.q / n, ..*c }).collect(),
            td_error: s.td_error.zip(s.td_error, |sum, _| sum / n),
            bc_joint_error: s.bc_joint_error.iter().map(|sum| (sum / pi0_n).sqrt()).collect(),
            pi0_grad_norm: s.pi0_grad_norm / pi0_n,
            critic_grad_norm: s.critic_grad_norm / n,
            grad_norm: Rooms::of(|room| s.grad_norm.get(room) / if room == Room::Critic { n } else { pi0_n }),
            entropy,
            temperature,
            temperature_loss,
            reward: s.reward / n,
            positives: s.positives / n,
            valid: s.valid / n,
            steps_per_s: n / seconds,
            samples_per_s: n * self.samples_per_step as f64 / seconds,
            tflops: self.flops / seconds / 1e12,
            peak_share: around.peak_flops.map(|peak| self.flops / seconds / peak),
            data_wait_ms: 1e3 * (around.waited_s - self.waited) / n,
            memory_bytes: around.memory_bytes,
            peak_memory_bytes: around.peak_memory_bytes,
            eval: None,
            ..s
        };
        *self = Interval {
            since: self.until,
            waited: around.waited_s,
            ..Interval::new(self.samples_per_step, self.with_temperature, self.with_smoothness)
        };
        Some(row)
    }
}
