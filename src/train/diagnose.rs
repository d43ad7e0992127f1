//! A step that was not finite, done again with open eyes.
//!
//! After [`PATIENCE`](crate::step::optimizer::PATIENCE) such steps the device stops applying updates, so the weights are
//! still those the step failed with; batches and noise are functions of the step. Doing it again therefore gives the same
//! numbers, and this time every launch is watched.

use serde::{Deserialize, Serialize};

use super::collate::Collator;
use super::error::Result;
use crate::data::ChunkBatch;
use crate::gpu::{Gpu, Tensor};
use crate::model::params::ParamStore;
use crate::ops::reduce;
use crate::ops::watch::Watch;
use crate::step::metrics::Metrics;
use crate::step::schedule::{self, Outcome};
use crate::step::{Learner, MicroBatch};

/// Chunks that a message names.
const NAMED: usize = 3;

/// Where numbers stopped being finite.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// The first weight that is not finite itself: then everything else follows from it.
    pub weight: Option<String>,
    /// The first parameter whose gradient is not finite, and how many there are.
    pub gradient: Option<String>,
    pub bad_gradients: usize,
    /// The micro-batch, from 0, and the launch in it where it began.
    pub micro_batch: Option<usize>,
    pub launch: Option<String>,
    /// Chunks of that micro-batch with values that are not finite: (episode, first frame within it).
    pub chunks: Vec<(i64, i64)>,
    /// Chunks of the micro-batch.
    pub of: usize,
}

impl Diagnosis {
    /// Whether doing the step again showed anything.
    pub fn found(&self) -> bool {
        self.weight.is_some() || self.gradient.is_some() || self.launch.is_some()
    }
}

impl std::fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.found() {
            return write!(f, "done again, the step was finite, which points at the device");
        }
        let mut parts = Vec::new();
        if let Some(weight) = &self.weight {
            parts.push(format!("the weight `{weight}` is not finite itself"));
        }
        if let (Some(launch), Some(micro)) = (&self.launch, self.micro_batch) {
            parts.push(format!("in micro-batch {micro}, {launch}"));
        }
        if let Some(gradient) = &self.gradient {
            let more = match self.bad_gradients {
                1 => String::new(),
                n => format!(" and {} others", n - 1),
            };
            parts.push(format!("the gradient of `{gradient}`{more} is not finite"));
        }
        let named: Vec<String> = self
            .chunks
            .iter()
            .take(NAMED)
            .map(|(e, t)| format!("episode {e} frame {t}"))
            .collect();
        match self.chunks.len() {
            0 => {}
            n if n == self.of => parts.push(format!("all {n} chunks of it are affected, such as {}", named[0])),
            n => parts.push(format!("{n} of {} chunks are affected: {}", self.of, named.join(", "))),
        }
        write!(f, "{}", parts.join("; "))
    }
}

/// Does step `step` (from 0) again on `batch`. Gradients are zero afterwards, and nothing has changed.
///
/// # Errors
/// A device that failed.
pub fn diagnose(learner: &Learner, collator: &Collator, step: u64, batch: &ChunkBatch) -> Result<Diagnosis> {
    let gpu = &learner.gpu;
    let metrics = Metrics::new(learner, batch.len());
    let stores = [&learner.pi0.weights, &learner.critic.weights];
    let mut diagnosis = Diagnosis {
        weight: first_bad(gpu, &stores)?.0,
        ..Diagnosis::default()
    };
    let grads = [&learner.pi0.grads, &learner.critic.grads];
    grads.iter().for_each(|store| store.clear(gpu));
    let mut first = 0;
    for (i, part) in collator.micro_batches(step, batch).iter().enumerate() {
        let watch = diagnosis.launch.is_none().then(|| Watch::begin(gpu));
        let outcome = schedule::micro_batch(learner, &metrics, part, learner.config.updates_pi0(step));
        if let Some(finding) = watch.map(Watch::finish).transpose()?.flatten() {
            let chunks = bad_samples(gpu, part, &outcome)?.into_iter().map(|s| first + s);
            diagnosis.chunks = chunks.map(|s| (batch.episode_index[s], batch.frame_index[s])).collect();
            diagnosis.of = part.len();
            diagnosis.micro_batch = Some(i);
            diagnosis.launch = Some(finding.to_string());
        }
        first += part.len();
    }
    (diagnosis.gradient, diagnosis.bad_gradients) = first_bad(gpu, &grads)?;
    grads.iter().for_each(|store| store.clear(gpu));
    gpu.sync()?;
    Ok(diagnosis)
}

/// The first tensor of the stores with an element that is not finite, and how many there are.
fn first_bad(gpu: &Gpu, stores: &[&ParamStore]) -> Result<(Option<String>, usize)> {
    let tensors: Vec<_> = stores.iter().flat_map(|store| store.named()).collect();
    let counts = gpu.f32([tensors.len().max(1), 2]);
    for (i, (_, ranges)) in tensors.iter().enumerate() {
        reduce::squares(gpu, ranges, &counts.rows(i..i + 1));
    }
    let counts = gpu.read_f32(&counts)?;
    let mut bad = tensors.iter().zip(counts.chunks(2)).filter(|(_, count)| count[1] > 0.0);
    let first = bad.next().map(|((tensor, _), _)| tensor.name.clone());
    let more = bad.count();
    Ok((first.clone(), more + usize::from(first.is_some())))
}

/// Samples of a micro-batch with features, values or errors that are not finite.
fn bad_samples(gpu: &Gpu, part: &MicroBatch, outcome: &Outcome) -> Result<Vec<usize>> {
    let b = part.len();
    let mut bad = vec![false; b];
    let mut mark = |tensor: &Tensor, sample: &dyn Fn(usize) -> usize| -> Result<()> {
        for (i, value) in gpu.read_f32(tensor)?.into_iter().enumerate() {
            if !value.is_finite() {
                bad[sample(i)] = true;
            }
        }
        Ok(())
    };
    let width = |t: &Tensor, rows: usize| t.len() / rows.max(1);
    let features = width(&outcome.features, b).max(1);
    mark(&outcome.features, &|i| i / features)?;
    mark(&outcome.q, &|i| i % b)?;
    mark(&outcome.target, &|i| i)?;
    let actors = &outcome.who.actors;
    mark(&outcome.candidate_value, &|i| actors[i % actors.len()])?;
    let (cloned, steps) = (
        &outcome.who.cloned,
        width(&outcome.bc_error, outcome.who.cloned.len()).max(1),
    );
    mark(&outcome.bc_error, &|i| cloned[i / steps])?;
    Ok((0..b).filter(|&s| bad[s]).collect())
}
