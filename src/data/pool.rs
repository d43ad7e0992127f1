//! Start frames as a set to draw from: runs of frames, in one part or in weighted parts.

use super::StartFrames;
use crate::rng::Key;

/// Sub-space of the key of a step that chooses datasets: slots never reach it.
const SOURCE: u64 = u64::MAX;

/// Starts to draw from.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    /// In proportion to their weights, which add up to one; a single one where frames are all alike.
    parts: Vec<(f64, Runs)>,
}

impl Pool {
    /// Of `starts`; with weights, one for each source.
    pub(super) fn new<'a>(starts: impl Iterator<Item = &'a StartFrames>, weights: &[f64]) -> Self {
        let mut parts: Vec<(f64, Runs)> = weights.iter().map(|weight| (*weight, Runs::default())).collect();
        if parts.is_empty() {
            parts.push((1.0, Runs::default()));
        }
        let last = parts.len() - 1;
        for start in starts.filter(|s| s.count > 0) {
            parts[start.source.min(last)].1.push(start);
        }
        parts.retain(|(weight, runs)| *weight > 0.0 && runs.total > 0);
        let sum: f64 = parts.iter().map(|(weight, _)| weight).sum();
        parts.iter_mut().for_each(|(weight, _)| *weight /= sum);
        Pool { parts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// A start, by the key of the step and the slot of the batch.
    pub(super) fn draw(&self, key: Key, slot: u64) -> usize {
        let mut rest = if self.parts.len() > 1 {
            key.fold(SOURCE).uniform(slot)
        } else {
            0.0
        };
        let mut chosen = &self.parts[0].1;
        for (weight, runs) in &self.parts {
            chosen = runs;
            rest -= weight;
            if rest < 0.0 {
                break;
            }
        }
        chosen.frame(key.below(slot, chosen.total as u64) as usize)
    }

    /// The start `stride` frames after the start `frame` of the same episode, if there is one.
    pub(super) fn later(&self, frame: usize, stride: usize) -> Option<usize> {
        let run = self.parts.iter().find_map(|(_, runs)| runs.end_of(frame))?;
        (frame + stride < run).then_some(frame + stride)
    }
}

/// Runs of consecutive frames, addressed as if they were one.
#[derive(Clone, Debug, Default)]
struct Runs {
    /// (frames before this run, first frame of this run, frame after its last one), by frames.
    runs: Vec<(usize, usize, usize)>,
    total: usize,
}

impl Runs {
    fn push(&mut self, start: &StartFrames) {
        self.runs.push((self.total, start.first, start.first + start.count));
        self.total += start.count;
    }

    fn frame(&self, i: usize) -> usize {
        let (before, first, _) = self.runs[self.runs.partition_point(|(before, ..)| *before <= i) - 1];
        first + (i - before)
    }

    /// Where the run ends that holds `frame`.
    fn end_of(&self, frame: usize) -> Option<usize> {
        let after = self.runs.partition_point(|(_, first, _)| *first <= frame);
        let (_, _, end) = self.runs.get(after.checked_sub(1)?)?;
        (frame < *end).then_some(*end)
    }
}
