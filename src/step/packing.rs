//! Which rows carry what: noise, times and weights of the chosen samples, and who saw whose keys.

use super::batch::{MicroBatch, Who, pick_rows};
use crate::model::layout::{CachedRun, PrefixLayout};
use crate::ops::attention::KeyRun;

/// Noise of all sequences, in their order, scaled by nothing: the loader scales it.
pub(super) fn initial_noise(batch: &MicroBatch, who: &Who, n: usize, b: usize, width: usize) -> Vec<f32> {
    let of_candidate = |i: usize| {
        pick_rows(
            &batch.noise.candidates[i * b * width..(i + 1) * b * width],
            width,
            &who.actors,
        )
    };
    let mut noise: Vec<f32> = (0..n).flat_map(of_candidate).collect();
    noise.extend(pick_rows(&batch.noise.next, width, &who.boots));
    noise
}

pub(super) fn pick_times(times: &[f64], keep: &[usize]) -> Vec<f64> {
    keep.iter().map(|&i| times[i]).collect()
}

/// Weight of each cloned row `[n·H]`: valid steps of positive samples, over all of the full batch.
pub(super) fn clone_weights(batch: &MicroBatch, who: &Who, h: usize) -> Vec<f32> {
    let share = 1.0 / (batch.totals.positives.max(1) * h) as f32;
    let weight = |&j: &usize| {
        let positive = batch.positive[j] as u8 as f32;
        batch.action_valid[j * h..(j + 1) * h]
            .iter()
            .map(move |v| v * positive * share)
            .collect::<Vec<_>>()
    };
    who.cloned.iter().flat_map(weight).collect()
}

/// For every sample's lines in the cache, the replayed and cloned rows that saw them.
pub(super) fn seen_by(
    who: &Who,
    layout: &PrefixLayout,
    own: Option<&PrefixLayout>,
    [repeats, actors, cloned]: [usize; 3],
    h: usize,
) -> Vec<KeyRun> {
    let replays = |sample: usize| -> Vec<(usize, usize)> {
        let Some(i) = who.actors.iter().position(|&j| j == sample) else {
            return Vec::new();
        };
        (0..repeats).map(|r| ((r * actors + i) * h, h)).collect()
    };
    let clones = |sample: usize| -> Vec<(usize, usize)> {
        let i = who.cloned.iter().position(|&j| j == sample);
        i.map(|i| ((repeats * actors + i) * h, h)).into_iter().collect()
    };
    debug_assert_eq!(who.cloned.len(), cloned);
    let run = |cached: CachedRun, queries| KeyRun {
        k_row0: cached.row0,
        k_rows: cached.rows,
        queries,
    };
    let mut runs = Vec::new();
    for (sample, &cached) in layout.cached.iter().enumerate() {
        let mut queries = replays(sample);
        if own.is_none() {
            queries.extend(clones(sample));
        }
        runs.push(run(cached, queries));
    }
    for (sample, &cached) in own.into_iter().flat_map(|o| o.cached.iter().enumerate()) {
        runs.push(run(cached, clones(sample)));
    }
    runs
}
