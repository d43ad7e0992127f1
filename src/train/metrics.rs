//! The numbers of a run: averaged over an interval of steps, and written one JSON object a line.
//!
//! The device delivers the numbers of a step some steps later, so nothing waits for them; see [`Pending`].

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::feed::Ration;
use crate::files::{self, Lines};
use crate::gpu::PendingRead;
use crate::step::metrics::{Slot, Values};
use crate::step::optimizer::Rates;

/// One row of `metrics.jsonl`: means over the steps since the row before, unless said otherwise. What belongs to π₀ is the
/// mean over the steps that updated it: not a number (null) if none of them did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Optimizer steps done.
    pub step: u64,
    pub critic_loss: f64,
    pub actor_loss: f64,
    pub bc_loss: f64,
    /// Of critics at the data's actions; of their targets; of the best candidate, and of all candidates.
    pub q: f64,
    pub target_q: f64,
    pub best_q: f64,
    pub candidate_q: f64,
    /// Global norms before clipping.
    pub pi0_grad_norm: f64,
    pub critic_grad_norm: f64,
    /// Logarithm of the candidates' variance; absent without the adaptive temperature, as the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_loss: Option<f64>,
    /// Steps since the start of the run whose gradients were not finite; they changed nothing.
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
    /// Time the loop waited for data, per step.
    pub data_wait_ms: f64,
    /// Results on held-out episodes at this step, if any were due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval: Option<Evaluation>,
}

/// Results on held-out episodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean absolute error of one sampled chunk, and of the critics' choice among N, in normalised units.
    pub action_error: f64,
    pub best_action_error: f64,
    /// Of critics at the recorded chunk, and at their choice.
    pub q: f64,
    pub best_q: f64,
    pub samples: u64,
}

impl Evaluation {
    /// Adds the results of more samples; every field is a sum until [`Evaluation::mean`].
    pub fn add(&mut self, other: &Evaluation) {
        let n = other.samples as f64;
        self.action_error += n * other.action_error;
        self.best_action_error += n * other.best_action_error;
        self.q += n * other.q;
        self.best_q += n * other.best_q;
        self.samples += other.samples;
    }

    /// The means of what was added.
    pub fn mean(self) -> Evaluation {
        let n = self.samples.max(1) as f64;
        Evaluation {
            action_error: self.action_error / n,
            best_action_error: self.best_action_error / n,
            q: self.q / n,
            best_q: self.best_q / n,
            samples: self.samples,
        }
    }
}

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
}

impl Fed {
    /// The step that was fed `ration`.
    pub fn new(done: u64, at: Duration, updates_pi0: bool, rates: Rates, ration: &Ration) -> Fed {
        Fed {
            done,
            at,
            updates_pi0,
            rates,
            reward: ration.reward,
            positives: ration.positives,
            valid: ration.valid,
        }
    }
}

/// A step whose numbers are still on the device.
pub struct Pending {
    pub step: Fed,
    pub read: PendingRead,
}

/// Sums over the steps of an interval.
pub struct Interval {
    sum: Row,
    entropy: [f64; 3],
    steps: u64,
    /// Those of them that updated π₀.
    pi0_steps: u64,
    samples_per_step: usize,
    with_temperature: bool,
    /// On the clock of the loop: end of the interval before, and of the last step.
    since: Duration,
    until: Duration,
    waited: f64,
}

impl Interval {
    /// The first interval.
    pub fn new(samples_per_step: usize, with_temperature: bool) -> Interval {
        Interval {
            sum: Row::default(),
            entropy: [0.0; 3],
            steps: 0,
            pi0_steps: 0,
            samples_per_step,
            with_temperature,
            since: Duration::ZERO,
            until: Duration::ZERO,
            waited: 0.0,
        }
    }

    /// Adds a step.
    pub fn add(&mut self, step: &Fed, values: &Values) {
        let v = |slot: Slot| f64::from(values.get(slot));
        let s = &mut self.sum;
        s.critic_loss += v(Slot::CriticLoss);
        s.q += v(Slot::Q);
        s.target_q += v(Slot::Target);
        s.critic_grad_norm += f64::from(values.critic_norm());
        // The other steps draw no candidates and clone nothing: their zeros say nothing.
        if step.updates_pi0 {
            s.actor_loss += v(Slot::ActorLoss);
            s.bc_loss += v(Slot::BcLoss);
            s.best_q += v(Slot::BestQ);
            s.candidate_q += v(Slot::CandidateQ);
            s.pi0_grad_norm += f64::from(values.pi0_norm());
            let spread = [v(Slot::Entropy), v(Slot::LogAlpha).exp(), v(Slot::TemperatureLoss)];
            self.entropy.iter_mut().zip(spread).for_each(|(sum, v)| *sum += v);
            self.pi0_steps += 1;
        }
        s.reward += step.reward;
        s.positives += step.positives;
        s.valid += step.valid;
        s.skipped = v(Slot::Skipped) as u64;
        (s.step, s.pi0_lr, s.critic_lr) = (step.done, step.rates.pi0, step.rates.critic);
        self.until = step.at;
        self.steps += 1;
    }

    /// The row of the interval, and the start of the next; `waited_s` is the data stall so far. `None` if no step was
    /// added.
    pub fn finish(&mut self, waited_s: f64) -> Option<Row> {
        let (n, pi0_n) = (self.steps as f64, self.pi0_steps as f64);
        if self.steps == 0 {
            return None;
        }
        let seconds = self.until.saturating_sub(self.since).as_secs_f64().max(1e-9);
        let [entropy, temperature, temperature_loss] =
            self.entropy.map(|sum| self.with_temperature.then_some(sum / pi0_n));
        let s = &self.sum;
        let row = Row {
            step: s.step,
            critic_loss: s.critic_loss / n,
            actor_loss: s.actor_loss / pi0_n,
            bc_loss: s.bc_loss / pi0_n,
            q: s.q / n,
            target_q: s.target_q / n,
            best_q: s.best_q / pi0_n,
            candidate_q: s.candidate_q / pi0_n,
            pi0_grad_norm: s.pi0_grad_norm / pi0_n,
            critic_grad_norm: s.critic_grad_norm / n,
            entropy,
            temperature,
            temperature_loss,
            skipped: s.skipped,
            reward: s.reward / n,
            positives: s.positives / n,
            valid: s.valid / n,
            pi0_lr: s.pi0_lr,
            critic_lr: s.critic_lr,
            steps_per_s: n / seconds,
            samples_per_s: n * self.samples_per_step as f64 / seconds,
            data_wait_ms: 1e3 * (waited_s - self.waited) / n,
            eval: None,
        };
        *self = Interval {
            since: self.until,
            waited: waited_s,
            ..Interval::new(self.samples_per_step, self.with_temperature)
        };
        Some(row)
    }
}

/// Numbers on their way, oldest first.
pub type Queue = VecDeque<Pending>;

/// `metrics.jsonl` of a run.
pub struct Log {
    lines: Lines,
}

impl Log {
    /// Name of the file in the run's folder.
    pub const NAME: &'static str = "metrics.jsonl";

    /// Opens the log of the run in `dir` to go on after `step` steps: rows of later steps, which will be done again,
    /// are removed.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(dir: &Path, step: u64) -> Result<Log> {
        let path = dir.join(Log::NAME);
        files::create_folder(dir)?;
        let mut kept = String::new();
        if path.is_file() {
            for line in files::read(&path)?.lines() {
                // A line that is not a row is what a killed program was writing.
                let row = serde_json::from_str::<serde_json::Value>(line).unwrap_or_default();
                if row["step"].as_u64().is_some_and(|done| done <= step) {
                    kept += line;
                    kept.push('\n');
                }
            }
        }
        files::replace(&path, kept.as_bytes())?;
        let lines = Lines::open(&path)?;
        Ok(Log { lines })
    }

    /// Appends a row, as one write. A disk that fails is warned about: it should not end the training.
    pub fn write(&mut self, row: &Row) {
        let line = serde_json::to_string(row).unwrap_or_default();
        if let Err(e) = self.lines.write(&line) {
            tracing::warn!("a row of `{}` was lost: {e}", self.path().display());
        }
    }

    /// Waits until all rows are on the disk: a checkpoint must not outlive the rows before it.
    pub fn sync(&self) {
        if let Err(e) = self.lines.sync() {
            tracing::warn!("rows of `{}` may be lost: {e}", self.path().display());
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.lines.path()
    }
}
