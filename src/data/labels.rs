//! What the columns of a dataset say about an episode: where it ends and how, whether it succeeded, and what each
//! frame is worth.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::dataset::{Column, Dataset, Episode};
use super::{DataError, DataSpec};

/// Columns that mark the frame in which an episode terminates, in order of preference.
pub const DONE_KEYS: [&str; 3] = ["next.done", "done", "terminal"];
/// Columns that mark success.
pub const SUCCESS_KEYS: [&str; 2] = ["next.success", "success"];
/// Columns that hold a reward.
pub const REWARD_KEYS: [&str; 2] = ["reward", "next.reward"];

/// A reward this close to 1 counts as 1 (the original's tolerance for its BC weight).
const ONE: f32 = 1e-6;

/// How the last frame of an episode ends it, in a dataset without a done column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpisodeEnd {
    /// Nothing comes after it: the value of what follows is 0.
    #[default]
    Terminal,
    /// Recording stopped (a time limit), the world went on: the value of what follows is unknown.
    Truncated,
}

/// Where the reward of a frame comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardMode {
    /// `terminal_reward` in the last frame of a successful episode, 0 elsewhere.
    #[default]
    Terminal,
    /// The dataset's `reward` column, else its `next.reward`.
    Dataset,
    /// 1 in every frame of a successful episode, 0 in failures: what the original trained on, which makes the critic a
    /// classifier of episodes.
    Constant,
}

/// One episode as training sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct EpisodeLabels {
    /// The episode's number in the dataset.
    pub index: usize,
    /// The global index of its first frame.
    pub start: usize,
    /// T, the number of frames up to and including the one that ends it. Frames after a done mark are not used.
    pub length: usize,
    /// Whether its last frame is a true termination (as opposed to a cut).
    pub terminal: bool,
    /// Whether it counts as a success.
    pub success: bool,
    /// The scaled reward of each frame, `[length]`.
    pub rewards: Vec<f32>,
}

/// Whether the episode in `frames` succeeded: any frame marked in a success column, else a reward of 1 in its last
/// frame; `None` where neither column exists.
pub fn success(columns: &[Column], frames: Range<usize>) -> Option<bool> {
    if let Some(marks) = Column::find_scalar(columns, &SUCCESS_KEYS) {
        return Some(marks.values[frames].iter().any(|v| *v > 0.5));
    }
    let reward = Column::find_scalar(columns, &REWARD_KEYS)?;
    Some(reward.values[frames].last().is_some_and(|r| (r - 1.0).abs() <= ONE))
}

/// The labels of every episode.
///
/// # Errors
/// A reward mode that needs a column the dataset lacks, a reward that is not finite, or no way to tell success.
pub fn label(dataset: &dyn Dataset, spec: &DataSpec) -> Result<Vec<EpisodeLabels>, DataError> {
    let columns = dataset.columns();
    let root = || dataset.info().root.clone();
    let done = Column::find_scalar(columns, &DONE_KEYS);
    if let (Some(done), EpisodeEnd::Truncated) = (done, spec.episode_end) {
        tracing::warn!(
            "column `{}` says where episodes terminate, so episode_end \"truncated\" is not used",
            done.key
        );
    }
    let reward = match spec.reward_mode {
        RewardMode::Dataset => {
            let column =
                Column::find_scalar(columns, &REWARD_KEYS).ok_or_else(|| DataError::NoReward { root: root() })?;
            Column::check_finite(dataset, Column::find(dataset, &column.key)?, 0..1)?;
            Some(column)
        }
        RewardMode::Terminal | RewardMode::Constant => None,
    };
    let mut unused = 0;
    let labels = dataset.episodes().iter().map(|episode| {
        let success = episode
            .success
            .or(spec.default_success)
            .ok_or_else(|| DataError::NoSuccess { root: root() })?;
        let (length, terminal) = end(episode, done, spec.episode_end);
        unused += episode.length - length;
        let rewards = (0..length).map(|t| {
            let raw = match (spec.reward_mode, reward) {
                (RewardMode::Dataset, Some(column)) => column.values[episode.start + t],
                (RewardMode::Terminal, _) if success && t + 1 == length => spec.terminal_reward,
                (RewardMode::Constant, _) if success => 1.0,
                _ => 0.0,
            };
            raw * spec.reward_scale
        });
        let rewards = rewards.collect();
        Ok(EpisodeLabels {
            index: episode.index,
            start: episode.start,
            length,
            terminal,
            success,
            rewards,
        })
    });
    let labels = labels.collect::<Result<Vec<_>, _>>()?;
    if unused > 0 {
        tracing::warn!("{unused} frames lie after the done mark of their episode and are not used");
    }
    Ok(labels)
}

/// The number of frames that count, and whether the last of them is a true termination.
fn end(episode: &Episode, done: Option<&Column>, without_column: EpisodeEnd) -> (usize, bool) {
    match done {
        None => (episode.length, without_column == EpisodeEnd::Terminal),
        Some(done) => {
            let marks = &done.values[episode.start..episode.start + episode.length];
            // Some recorders hold the mark until the file ends, so the first one is the end.
            let first = marks.iter().position(|v| *v > 0.5);
            first.map_or((episode.length, false), |t| (t + 1, true))
        }
    }
}
