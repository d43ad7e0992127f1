//! An action chunk as a transition: H actions from frame t of an episode of T frames, executed open loop.
//!
//! With `n = min(H, T - t)` steps inside the episode, the critic's target is
//!
//! ```text
//! y = reward + discount * Q(s', a')      reward = sum_{k<n} gamma^k r_{t+k}      discount = gamma^n * mask
//! ```
//!
//! where `mask` is 0 if a true termination lies in the chunk and s' is frame `min(t+H, T-1)`. Source: Q-chunking
//! (Li, Zhou, Levine 2025), whose code computes the running sums of [`Running`]; its weights drop chunks that cross an
//! episode's end, which is [`Boundary::Drop`] here.

use serde::{Deserialize, Serialize};

use super::labels::EpisodeLabels;

/// What happens to chunks that reach over the end of their episode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boundary {
    /// They are not drawn: every start has H steps before the end, and a frame after them unless the episode terminates.
    #[default]
    Drop,
    /// Every frame is a start. Missing actions repeat the last one and are marked invalid.
    Pad,
}

/// How chunks are cut: shared by all of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChunkRule {
    /// H, steps of a chunk, at least 1.
    pub horizon: usize,
    /// gamma, the discount of one step.
    pub discount: f64,
    /// What happens at the end of an episode.
    pub boundary: Boundary,
}

/// One chunk, without its observations and actions.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// `r_{t+h}`, 0 outside the episode, `[H]`.
    pub rewards: Vec<f32>,
    /// `sum_{k<n} gamma^k r_{t+k}`.
    pub reward: f32,
    /// `gamma^n * mask`.
    pub discount: f32,
    /// 0 if a true termination lies in the chunk, else 1.
    pub mask: f32,
    /// Whether step h happened, `[H]`: true for the first n.
    pub action_valid: Vec<bool>,
    /// Weight of the chunk in the critic and actor losses: 1, or 0 for a chunk cut short by a time limit, whose
    /// continuation nobody knows.
    pub chunk_valid: f32,
    /// The frame of the next observation, counted from the episode's start: `min(t+H, T-1)`.
    pub next: usize,
}

impl ChunkRule {
    /// The number of starts an episode offers: they are its frames `0..starts`.
    pub fn starts(&self, episode: &EpisodeLabels) -> usize {
        match self.boundary {
            Boundary::Pad => episode.length,
            // A start t = T - H has no frame T to bootstrap from, which matters only if the episode goes on.
            Boundary::Drop => (episode.length + usize::from(episode.terminal)).saturating_sub(self.horizon),
        }
    }

    /// The chunk that begins at frame `t < T` of the episode.
    pub fn cut(&self, episode: &EpisodeLabels, t: usize) -> Chunk {
        let (h, steps) = (self.horizon, self.horizon.min(episode.length - t));
        let mut rewards = vec![0.0; h];
        rewards[..steps].copy_from_slice(&episode.rewards[t..t + steps]);
        let terminated = episode.terminal && t + steps == episode.length;
        let mut terminals = vec![false; h];
        terminals[steps - 1] = terminated;
        let running = Running::of(&rewards, &terminals, self.discount);
        let mask = running.mask[h - 1];
        let whole = steps == h;
        let kept = whole || (terminated && self.boundary == Boundary::Pad);
        Chunk {
            reward: running.reward[h - 1] as f32,
            discount: (self.discount.powi(steps as i32) * f64::from(mask)) as f32,
            mask,
            action_valid: running.valid.iter().enumerate().map(|(i, v)| *v && i < steps).collect(),
            chunk_valid: if kept { 1.0 } else { 0.0 },
            next: (t + h).min(episode.length - 1),
            rewards,
        }
    }
}

/// The sequences of the Q-chunking reference code: entry i describes steps `0..=i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// `sum_{k<=i} gamma^k r_k`.
    pub reward: Vec<f64>,
    /// 0 from the first terminal on, 1 before.
    pub mask: Vec<f32>,
    /// Whether no terminal lies strictly before step i.
    pub valid: Vec<bool>,
}

impl Running {
    /// Of `rewards` and `terminals`, both `[H]`.
    pub fn of(rewards: &[f32], terminals: &[bool], discount: f64) -> Self {
        let mut running = Running {
            reward: Vec::new(),
            mask: Vec::new(),
            valid: Vec::new(),
        };
        let (mut sum, mut weight, mut alive) = (0.0, 1.0, true);
        for (reward, terminal) in rewards.iter().zip(terminals) {
            sum += weight * f64::from(*reward);
            weight *= discount;
            running.valid.push(alive);
            alive &= !terminal;
            running.reward.push(sum);
            running.mask.push(if alive { 1.0 } else { 0.0 });
        }
        running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(length: usize, terminal: bool) -> EpisodeLabels {
        let rewards = (0..length).map(|t| t as f32).collect();
        EpisodeLabels {
            index: 0,
            start: 100,
            length,
            terminal,
            success: true,
            rewards,
        }
    }

    fn rule(horizon: usize, boundary: Boundary) -> ChunkRule {
        ChunkRule {
            horizon,
            discount: 0.5,
            boundary,
        }
    }

    #[test]
    fn starts_at_the_boundary() {
        for (length, terminal, boundary, expected) in [
            (10, true, Boundary::Drop, 7),  // 0..=6: the last chunk holds frame 9 and the termination.
            (10, false, Boundary::Drop, 6), // 0..=5: frame 9 is needed as s'.
            (4, true, Boundary::Drop, 1),
            (4, false, Boundary::Drop, 0),
            (3, true, Boundary::Drop, 0),
            (0, true, Boundary::Drop, 0),
            (3, false, Boundary::Pad, 3),
            (0, false, Boundary::Pad, 0),
        ] {
            assert_eq!(
                rule(4, boundary).starts(&episode(length, terminal)),
                expected,
                "{length} {terminal} {boundary:?}"
            );
        }
    }

    #[test]
    fn a_chunk_inside_bootstraps_after_h_steps() {
        let chunk = rule(4, Boundary::Drop).cut(&episode(10, true), 2);
        assert_eq!(chunk.rewards, [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(chunk.reward, 2.0 + 1.5 + 1.0 + 0.625);
        assert_eq!(
            (chunk.mask, chunk.discount, chunk.chunk_valid, chunk.next),
            (1.0, 0.0625, 1.0, 6)
        );
        assert_eq!(chunk.action_valid, [true; 4]);
    }

    #[test]
    fn the_last_whole_chunk_of_a_terminating_episode_does_not_bootstrap() {
        let chunk = rule(4, Boundary::Drop).cut(&episode(10, true), 6);
        assert_eq!(
            (chunk.mask, chunk.discount, chunk.chunk_valid, chunk.next),
            (0.0, 0.0, 1.0, 9)
        );
        assert_eq!(chunk.action_valid, [true; 4]);
    }

    #[test]
    fn a_cut_chunk_counts_only_if_the_episode_terminated() {
        let terminal = rule(4, Boundary::Pad).cut(&episode(10, true), 8);
        assert_eq!(terminal.rewards, [8.0, 9.0, 0.0, 0.0]);
        assert_eq!(
            (terminal.reward, terminal.mask, terminal.discount, terminal.chunk_valid),
            (12.5, 0.0, 0.0, 1.0)
        );
        assert_eq!(terminal.action_valid, [true, true, false, false]);
        let truncated = rule(4, Boundary::Pad).cut(&episode(10, false), 8);
        assert_eq!(
            (truncated.reward, truncated.mask, truncated.discount),
            (12.5, 1.0, 0.25)
        );
        assert_eq!((truncated.chunk_valid, truncated.next), (0.0, 9));
        assert_eq!(truncated.action_valid, [true, true, false, false]);
    }
}
