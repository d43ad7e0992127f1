//! How the policy does on episodes it does not learn from.

use serde::{Deserialize, Serialize};

use super::collate::{Collator, flow_time};
use super::error::Result;
use crate::data::{BatchBuilder, ChunkBatch};
use crate::rng::{Key, Stream};
use crate::step::Learner;
use crate::step::act::{self, Choice, Recorded};

/// The step whose random numbers evaluation uses: none that training reaches, and not the one that divides the episodes
/// (`data::split`).
pub const EVAL_STEP: u64 = u64::MAX - 1;

/// What policy and critics make of one recorded chunk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    pub episode: i64,
    /// First frame of the chunk, counted over the dataset.
    pub frame: i64,
    pub success: bool,
    /// Discounted reward from the chunk's start to the end of its episode.
    #[serde(rename = "return")]
    pub outcome: f64,
    /// Mean absolute error of one sampled chunk, and of the critics' choice among N, in normalised units.
    pub action_error: f64,
    pub best_action_error: f64,
    /// The same for each joint, in the dataset's units.
    pub joint_error: Vec<f64>,
    pub best_joint_error: Vec<f64>,
    /// Flow matching loss of the recorded chunk.
    pub flow_loss: f64,
    /// Value of the recorded chunk, and of the choice.
    pub q: f64,
    pub best_q: f64,
}

/// Means over some chunks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Means {
    pub samples: u64,
    pub action_error: f64,
    pub best_action_error: f64,
    pub joint_error: Vec<f64>,
    pub best_joint_error: Vec<f64>,
    pub flow_loss: f64,
    pub q: f64,
    pub best_q: f64,
}

/// Results on held-out chunks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    #[serde(flatten)]
    pub all: Means,
    /// Of successful and of failed episodes; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good: Option<Means>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bad: Option<Means>,
    /// Spearman's rank correlation of the recorded chunks' values with their returns; absent where all returns are equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank_correlation: Option<f64>,
    /// Share of chunks that the critics rate below the choice among N.
    pub choice_preferred: f64,
}

impl Means {
    fn of<'a>(scores: impl Iterator<Item = &'a Score> + Clone) -> Option<Means> {
        let n = scores.clone().count();
        let mean = |pick: &dyn Fn(&Score) -> f64| scores.clone().map(pick).sum::<f64>() / n as f64;
        let joints = scores.clone().next()?.joint_error.len();
        Some(Means {
            samples: n as u64,
            action_error: mean(&|s| s.action_error),
            best_action_error: mean(&|s| s.best_action_error),
            joint_error: (0..joints).map(|j| mean(&|s| s.joint_error[j])).collect(),
            best_joint_error: (0..joints).map(|j| mean(&|s| s.best_joint_error[j])).collect(),
            flow_loss: mean(&|s| s.flow_loss),
            q: mean(&|s| s.q),
            best_q: mean(&|s| s.best_q),
        })
    }
}

impl Evaluation {
    /// Sums up; `None` without scores.
    pub fn of(scores: &[Score]) -> Option<Evaluation> {
        let pairs = scores.iter().map(|s| (s.q, s.outcome)).collect::<Vec<_>>();
        let preferred = scores.iter().filter(|s| s.best_q > s.q).count();
        Some(Evaluation {
            all: Means::of(scores.iter())?,
            good: Means::of(scores.iter().filter(|s| s.success)),
            bad: Means::of(scores.iter().filter(|s| !s.success)),
            rank_correlation: rank_correlation(&pairs),
            choice_preferred: preferred as f64 / scores.len() as f64,
        })
    }
}

/// What the policy does in front of the chunks of `batch`, from fixed noise `[N, B, H, A]`.
pub fn choose(learner: &Learner, collator: &Collator, batch: &ChunkBatch) -> Choice {
    let width = learner.dims.action_horizon * learner.dims.action_dim;
    let n = collator.candidates;
    let key = |stream: Stream, sample: usize| {
        // Keyed by the frame, so that a frame's numbers do not depend on what else is in the batch.
        let frame = batch.index[sample] as u64;
        Key::stream(collator.seed, stream).fold(EVAL_STEP).fold(frame)
    };
    let mut candidates = vec![0.0; n * batch.len() * width];
    for (i, out) in candidates.chunks_mut(width).enumerate() {
        let (candidate, sample) = (i / batch.len(), i % batch.len());
        collator.candidate_noise(key(Stream::Candidate, sample), candidate, out);
    }
    let mut noise = vec![0.0; batch.len() * width];
    for (sample, out) in noise.chunks_mut(width).enumerate() {
        key(Stream::BcNoise, sample).normals(out);
    }
    let time = |sample| flow_time(key(Stream::BcTime, sample).uniform(0)) as f32;
    let recorded = Recorded {
        actions: &batch.actions,
        noise: &noise,
        time: &(0..batch.len()).map(time).collect::<Vec<_>>(),
    };
    let observations = collator.current_observations(batch);
    act::act(learner, &observations, &candidates, Some(recorded))
}

/// Scores the chunks of one batch. Waits for the device.
///
/// # Errors
/// A device that failed.
pub fn scores(
    learner: &Learner,
    collator: &Collator,
    builder: &BatchBuilder,
    batch: &ChunkBatch,
) -> Result<Vec<Score>> {
    let gpu = &learner.gpu;
    let choice = choose(learner, collator, batch);
    let candidates = gpu.read_f32(&choice.candidates)?;
    let winner = gpu.read_u32(&choice.winner)?;
    let best = gpu.read_f32(&choice.best)?;
    let recorded = choice.recorded.expect("recorded chunks were given");
    let (value, flow_error) = (gpu.read_f32(&recorded.value)?, gpu.read_f32(&recorded.flow_error)?);
    let (h, a) = (learner.dims.action_horizon, learner.dims.action_dim);
    let real = learner.critic_dims.real_action_dim;
    let rows = |chunk: &[f32]| -> Vec<f64> {
        let real = chunk.chunks(a).flat_map(|row| &row[..real]);
        real.map(|v| f64::from(*v)).collect()
    };
    let score = |sample: usize| {
        let frame = batch.index[sample] as usize;
        let valid = &batch.action_valid[sample * h..(sample + 1) * h];
        let theirs = rows(&batch.actions[sample * h * a..][..h * a]);
        let errors = |candidate: usize| {
            let mut ours = rows(&candidates[(candidate * batch.len() + sample) * h * a..][..h * a]);
            let mut theirs = theirs.clone();
            let normalised = joint_errors(&ours, &theirs, valid, real);
            builder.actions_to_robot(&mut ours, frame);
            builder.actions_to_robot(&mut theirs, frame);
            let mean = normalised.iter().sum::<f64>() / real as f64;
            (mean, joint_errors(&ours, &theirs, valid, real))
        };
        let ((action_error, joint_error), (best_action_error, best_joint_error)) =
            (errors(0), errors(winner[sample] as usize));
        let flow = flow_error[sample * h..(sample + 1) * h].iter().zip(valid);
        let happened = valid.iter().filter(|v| **v).count().max(1) as f64;
        let flow_loss = flow.filter(|(_, v)| **v).map(|(e, _)| f64::from(*e)).sum::<f64>() / happened;
        Ok(Score {
            episode: batch.episode_index[sample],
            frame: batch.index[sample],
            success: batch.is_positive[sample],
            outcome: builder.return_from(frame)?,
            action_error,
            best_action_error,
            joint_error,
            best_joint_error,
            flow_loss,
            q: f64::from(value[sample]),
            best_q: f64::from(best[sample]),
        })
    };
    (0..batch.len()).map(score).collect()
}

/// Mean absolute difference of each joint of two chunks `[H, real]` over the steps that happened.
fn joint_errors(ours: &[f64], theirs: &[f64], valid: &[bool], real: usize) -> Vec<f64> {
    let mut sums = vec![0.0; real];
    let steps = ours.chunks(real).zip(theirs.chunks(real)).zip(valid);
    for ((x, y), _) in steps.filter(|(_, valid)| **valid) {
        sums.iter_mut()
            .zip(x.iter().zip(y))
            .for_each(|(sum, (x, y))| *sum += (x - y).abs());
    }
    let happened = valid.iter().filter(|v| **v).count().max(1) as f64;
    sums.into_iter().map(|sum| sum / happened).collect()
}

/// Spearman's rank correlation of pairs; `None` if either side is constant. Ties share their mean rank.
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let ranks = |values: Vec<f64>| -> Vec<f64> {
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
        let (mut ranks, mut first) = (vec![0.0; values.len()], 0);
        for ties in order.chunk_by(|&i, &j| values[i] == values[j]) {
            let mean = first as f64 + (ties.len() - 1) as f64 / 2.0;
            ties.iter().for_each(|&i| ranks[i] = mean);
            first += ties.len();
        }
        ranks
    };
    let (x, y) = (
        ranks(pairs.iter().map(|p| p.0).collect()),
        ranks(pairs.iter().map(|p| p.1).collect()),
    );
    let centre = (pairs.len() as f64 - 1.0) / 2.0;
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| (a - centre) * (b - centre)).sum::<f64>();
    let scale = (dot(&x, &x) * dot(&y, &y)).sqrt();
    (scale > 0.0).then(|| dot(&x, &y) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_is_that_of_the_order() {
        let pairs = |y: [f64; 5]| -> Vec<(f64, f64)> { [1.0, 2.0, 4.0, 8.0, 16.0].into_iter().zip(y).collect() };
        assert_eq!(rank_correlation(&pairs([0.1, 0.2, 0.3, 0.4, 9.0])), Some(1.0));
        assert_eq!(rank_correlation(&pairs([5.0, 4.0, 3.0, 2.0, 1.0])), Some(-1.0));
        assert_eq!(rank_correlation(&pairs([1.0; 5])), None);
        assert_eq!(rank_correlation(&[]), None);
        // scipy.stats.spearmanr([1, 2, 4, 8, 16], [0, 1, 0, 1, 1])
        let tied = rank_correlation(&pairs([0.0, 1.0, 0.0, 1.0, 1.0])).expect("it varies");
        assert!((tied - 0.5773502691896257).abs() < 1e-12, "{tied}");
    }

    #[test]
    fn joints_are_compared_over_the_steps_that_happened() {
        let (ours, theirs) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0, 0.0, 4.0, 2.0, 0.0, 0.0]);
        assert_eq!(joint_errors(&ours, &theirs, &[true, true, false], 2), [1.0, 2.0]);
    }
}
