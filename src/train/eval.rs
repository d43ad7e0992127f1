//! How the policy does on episodes it does not learn from.

use super::collate::Collator;
use super::error::Result;
use super::metrics::Evaluation;
use crate::data::ChunkBatch;
use crate::rng::{Key, Stream};
use crate::step::Learner;
use crate::step::act::{self, Choice};

/// The step whose random numbers evaluation uses: none that training reaches, and not the one that divides the episodes
/// (`data::split`).
pub const EVAL_STEP: u64 = u64::MAX - 1;

/// What the policy does in front of the chunks of `batch`, from fixed noise `[N, B, H, A]`.
pub fn choose(learner: &Learner, collator: &Collator, batch: &ChunkBatch) -> Choice {
    let width = learner.dims.action_horizon * learner.dims.action_dim;
    let n = collator.candidates;
    let mut noise = vec![0.0; n * batch.len() * width];
    for (i, out) in noise.chunks_mut(width).enumerate() {
        let (candidate, sample) = (i / batch.len(), i % batch.len());
        // Keyed by the frame, so that a frame's chunks do not depend on what else is in the batch.
        let frame = batch.index[sample] as u64;
        let key = Key::stream(collator.seed, Stream::Candidate).fold(EVAL_STEP);
        collator.candidate_noise(key.fold(frame), candidate, out);
    }
    let observations = collator.current_observations(batch);
    act::act(learner, &observations, &noise, Some(&batch.actions))
}

/// Evaluates on one batch. Waits for the device.
///
/// # Errors
/// A device that failed.
pub fn evaluate(learner: &Learner, collator: &Collator, batch: &ChunkBatch) -> Result<Evaluation> {
    let gpu = &learner.gpu;
    let choice = choose(learner, collator, batch);
    let candidates = gpu.read_f32(&choice.candidates)?;
    let winner = gpu.read_u32(&choice.winner)?;
    let best = gpu.read_f32(&choice.best)?;
    let recorded = match &choice.recorded_q {
        Some(q) => gpu.read_f32(q)?,
        None => Vec::new(),
    };
    let error = |sample: usize, candidate: usize| chunk_error(learner, batch, &candidates, sample, candidate);
    let mean = |values: &mut dyn Iterator<Item = f64>, n: usize| values.sum::<f64>() / n.max(1) as f64;
    let b = batch.len();
    Ok(Evaluation {
        action_error: mean(&mut (0..b).map(|s| error(s, 0)), b),
        best_action_error: mean(&mut (0..b).map(|s| error(s, winner[s] as usize)), b),
        q: mean(&mut recorded.iter().map(|q| f64::from(*q)), recorded.len()),
        best_q: mean(&mut best.iter().map(|q| f64::from(*q)), b),
        samples: b as u64,
    })
}

/// Mean absolute difference between a candidate `[N, B, H, A]` and the recorded chunk, over the robot's coordinates and
/// the steps that happened.
fn chunk_error(learner: &Learner, batch: &ChunkBatch, candidates: &[f32], sample: usize, candidate: usize) -> f64 {
    let (h, a) = (learner.dims.action_horizon, learner.dims.action_dim);
    let real = learner.critic_dims.real_action_dim;
    let first = (candidate * batch.len() + sample) * h;
    let (mut sum, mut count) = (0.0, 0usize);
    for step in (0..h).filter(|step| batch.action_valid[sample * h + step]) {
        let ours = &candidates[(first + step) * a..][..real];
        let theirs = &batch.actions[(sample * h + step) * a..][..real];
        sum += ours
            .iter()
            .zip(theirs)
            .map(|(x, y)| f64::from((x - y).abs()))
            .sum::<f64>();
        count += real;
    }
    sum / count.max(1) as f64
}
