//! A training batch, and how it is made.
//!
//! Shapes: B batch, H horizon, A the model's action width, L tokens, S pixels. All buffers are row-major.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::chunks::ChunkRule;
use super::labels::{self, EpisodeLabels};
use super::repack::Vector;
use super::resize::resize_with_pad;
use super::sampler::StartFrames;
use super::transforms::{DataTransforms, Normalizer, pad_into};
use super::{CameraSpec, DataError, DataSpec, Dataset, NormStats, PromptSource, PromptTokenizer};

/// B chunks with the observations before and after them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChunkBatch {
    /// The model's cameras, in its order.
    pub images: Vec<CameraBatch>,
    /// Normalised, zero padded state, `[B, A]`.
    pub state: Vec<f32>,
    /// The state of the next observation, `[B, A]`.
    pub next_state: Vec<f32>,
    /// Prompt, `[B, L]`, 0 where masked.
    pub tokens: Vec<i32>,
    /// Which tokens are real, `[B, L]`.
    pub token_mask: Vec<bool>,
    /// Prompt of the next observation, `[B, L]`: the same text, with the next state if states are in the prompt.
    pub next_tokens: Vec<i32>,
    /// `[B, L]`.
    pub next_token_mask: Vec<bool>,
    /// Normalised, zero padded actions, `[B, H, A]`; the last one is repeated past the episode's end.
    pub actions: Vec<f32>,
    /// Whether a step happened, `[B, H]`.
    pub action_valid: Vec<bool>,
    /// Reward of each step, 0 where it did not happen, `[B, H]`.
    pub rewards: Vec<f32>,
    /// Discounted sum of `rewards`, `[B]`.
    pub reward: Vec<f32>,
    /// What the next value is multiplied with, `gamma^n * mask`, `[B]`.
    pub discount: Vec<f32>,
    /// 0 if the episode terminates within the chunk, else 1, `[B]`.
    pub mask: Vec<f32>,
    /// Weight in the critic and actor losses, `[B]`.
    pub chunk_valid: Vec<f32>,
    /// Whether the episode is a success (weight in the BC loss), `[B]`.
    pub is_positive: Vec<bool>,
    /// The episode, `[B]`.
    pub episode_index: Vec<i64>,
    /// The start frame, counted from the episode's first, `[B]`.
    pub frame_index: Vec<i64>,
    /// The start frame, counted over the dataset, `[B]`.
    pub index: Vec<i64>,
    /// The frame of the next observation, counted over the dataset, `[B]`.
    pub next_index: Vec<i64>,
}

/// What one camera of the model sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CameraBatch {
    /// The model's name for it.
    pub name: String,
    /// RGB at the start of the chunk, `[B, S, S, 3]`; black where masked.
    pub current: Vec<u8>,
    /// RGB of the next observation, `[B, S, S, 3]`.
    pub next: Vec<u8>,
    /// Whether the robot has this camera, `[B]`.
    pub current_mask: Vec<bool>,
    /// The same for the next observation, `[B]`.
    pub next_mask: Vec<bool>,
}

impl ChunkBatch {
    /// B.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

/// Makes batches. Immutable once built, so threads share one.
#[derive(Debug)]
pub struct BatchBuilder {
    dataset: Arc<dyn Dataset>,
    spec: DataSpec,
    tokenizer: PromptTokenizer,
    episodes: Vec<EpisodeLabels>,
    transforms: DataTransforms,
    normalize_state: Normalizer,
    normalize_actions: Normalizer,
    chunk_rule: ChunkRule,
    state_vector: Vector,
    action_vector: Vector,
}

impl BatchBuilder {
    /// Checks that everything fits together.
    ///
    /// # Errors
    /// Settings that do not fit the dataset, non-finite values, statistics that are too narrow, missing labels, and a
    /// dataset without a single chunk.
    pub fn new(
        dataset: Arc<dyn Dataset>,
        spec: DataSpec,
        stats: &NormStats,
        tokenizer: PromptTokenizer,
    ) -> Result<Self, DataError> {
        let (state_vector, action_vector) = spec.check(dataset.as_ref())?;
        let normalize_state = Normalizer::new(&stats.state, spec.norm, "state", state_vector.width())?;
        let normalize_actions = Normalizer::new(&stats.actions, spec.norm, "actions", action_vector.width())?;
        let episodes = labels::label(dataset.as_ref(), &spec)?;
        let builder = BatchBuilder {
            transforms: DataTransforms::of(&spec),
            chunk_rule: spec.chunk_rule(),
            normalize_state,
            normalize_actions,
            state_vector,
            action_vector,
            episodes,
            dataset,
            spec,
            tokenizer,
        };
        if builder.starts().iter().all(|s| s.count == 0) {
            return Err(DataError::NoStarts {
                root: builder.dataset.info().root.clone(),
                horizon: builder.spec.horizon,
                episodes: builder.episodes.len(),
                longest: builder.episodes.iter().map(|e| e.length).max().unwrap_or(0),
            });
        }
        Ok(builder)
    }

    /// The settings it was built with.
    pub fn spec(&self) -> &DataSpec {
        &self.spec
    }

    /// The dataset it reads.
    pub fn dataset(&self) -> &Arc<dyn Dataset> {
        &self.dataset
    }

    /// The frames that may start a chunk, one entry for every episode.
    pub fn starts(&self) -> Vec<StartFrames> {
        let start = |e: &EpisodeLabels| StartFrames {
            episode: e.index,
            first: e.start,
            count: self.chunk_rule.starts(e),
            positive: e.success,
            source: self.dataset.source(e.start),
        };
        self.episodes.iter().map(start).collect()
    }

    /// Whether any chunk that may be drawn has a reward: without one, critics have nothing to learn.
    pub fn rewarded(&self) -> bool {
        let rewarded =
            |e: &EpisodeLabels| (0..self.chunk_rule.starts(e)).any(|t| self.chunk_rule.cut(e, t).reward != 0.0);
        self.episodes.iter().any(rewarded)
    }

    /// Every token that a prompt of the dataset can have, and perhaps more.
    ///
    /// # Errors
    /// Prompts that cannot be made.
    pub fn prompt_tokens(&self) -> Result<BTreeSet<u32>, DataError> {
        let tasks = &self.dataset.info().tasks;
        let tasks = tasks.iter().map(String::as_str);
        let texts: Vec<&str> = match &self.spec.prompt {
            PromptSource::Text(text) => vec![text.as_str()],
            PromptSource::Task => tasks.collect(),
            PromptSource::TaskOr(text) => tasks.chain([text.as_str()]).collect(),
        };
        let state = self.spec.state_in_prompt.then_some(self.state_vector.width());
        let ids = self.tokenizer.ids_of(&texts, state)?;
        Ok(ids.into_iter().map(|id| id as u32).collect())
    }

    /// The batch of the chunks that begin at the global frames `starts`, `[B]`, each inside an episode.
    ///
    /// # Errors
    /// Images that cannot be read, prompts that cannot be made, frames outside every episode.
    pub fn build(&self, starts: &[usize]) -> Result<ChunkBatch, DataError> {
        let pixels = starts.len() * self.spec.image_size * self.spec.image_size * 3;
        let camera = |c: &CameraSpec| CameraBatch {
            name: c.model.clone(),
            current: Vec::with_capacity(pixels),
            next: Vec::with_capacity(pixels),
            ..Default::default()
        };
        let images = self.spec.cameras.iter().map(camera).collect();
        let mut batch = ChunkBatch {
            images,
            ..Default::default()
        };
        starts.iter().try_for_each(|frame| self.push(*frame, &mut batch))?;
        Ok(batch)
    }

    fn push(&self, frame: usize, batch: &mut ChunkBatch) -> Result<(), DataError> {
        let episode = self.episode_of(frame)?;
        let t = frame - episode.start;
        let chunk = self.chunk_rule.cut(episode, t);
        let next = episode.start + chunk.next;

        let mut state = self.state(frame);
        let actions = self.actions(frame, episode.start + episode.length - 1, &state);
        self.normalize_state.normalize(&mut state);
        let mut next_state = self.state(next);
        self.normalize_state.normalize(&mut next_state);

        self.push_images(frame, next, batch)?;
        self.push_prompt(frame, &state, &mut batch.tokens, &mut batch.token_mask)?;
        // The goal belongs to the chunk: s' is judged under the prompt the chunk was started with.
        self.push_prompt(frame, &next_state, &mut batch.next_tokens, &mut batch.next_token_mask)?;
        let width = self.spec.action_dim;
        push_padded(&state, width, &mut batch.state);
        push_padded(&next_state, width, &mut batch.next_state);
        actions
            .chunks_exact(self.spec.real_action_dim)
            .for_each(|a| push_padded(a, width, &mut batch.actions));

        batch.action_valid.extend(chunk.action_valid);
        batch.rewards.extend(chunk.rewards);
        batch.reward.push(chunk.reward);
        batch.discount.push(chunk.discount);
        batch.mask.push(chunk.mask);
        batch.chunk_valid.push(chunk.chunk_valid);
        batch.is_positive.push(episode.success);
        batch.episode_index.push(episode.index as i64);
        batch.frame_index.push(t as i64);
        batch.index.push(frame as i64);
        batch.next_index.push(next as i64);
        Ok(())
    }

    /// Turns normalised actions `[n, real_action_dim]` of a chunk that starts at the global frame `frame` into the
    /// robot's, in the units of the dataset: the inverse of what [`BatchBuilder::build`] does.
    pub fn actions_to_robot(&self, actions: &mut [f64], frame: usize) {
        let width = self.spec.real_action_dim;
        actions
            .chunks_exact_mut(width)
            .for_each(|a| self.normalize_actions.unnormalize(a));
        self.transforms.actions_to_robot(actions, width, &self.state(frame));
    }

    /// Discounted sum of the rewards from the global frame `frame` to the end of its episode.
    ///
    /// # Errors
    /// A frame outside every episode.
    pub fn return_from(&self, frame: usize) -> Result<f64, DataError> {
        let episode = self.episode_of(frame)?;
        let rewards = episode.rewards[frame - episode.start..].iter().rev();
        Ok(rewards.fold(0.0, |later, r| f64::from(*r) + self.spec.discount * later))
    }

    /// The most that |values| can be, as far as the recorded episodes tell: the largest |discounted return| of any frame,
    /// and where recording stopped before the end of an episode, its largest |reward| for ever.
    pub fn value_bound(&self) -> f64 {
        let discount = self.spec.discount;
        let bound = |e: &EpisodeLabels| {
            let (mut later, mut most) = (0.0, 0.0f64);
            for reward in e.rewards.iter().rev() {
                later = f64::from(*reward) + discount * later;
                let for_ever = if e.terminal {
                    0.0
                } else {
                    f64::from(*reward) / (1.0 - discount).max(1e-9)
                };
                most = most.max(later.abs()).max(for_ever.abs());
            }
            most
        };
        self.episodes.iter().map(bound).fold(0.0, f64::max)
    }

    fn episode_of(&self, frame: usize) -> Result<&EpisodeLabels, DataError> {
        let after = self.episodes.partition_point(|e| e.start <= frame);
        let episode = self.episodes[..after].last().filter(|e| frame - e.start < e.length);
        episode.ok_or_else(|| DataError::FrameOutOfRange {
            root: self.dataset.info().root.clone(),
            frame,
            frames: self.dataset.info().total_frames,
        })
    }

    /// The state of a frame after the data transforms, not yet normalised.
    fn state(&self, frame: usize) -> Vec<f64> {
        let mut state: Vec<f64> = self.state_vector.row(self.dataset.columns(), frame).collect();
        self.transforms.state(&mut state);
        state
    }

    /// The normalised actions from `frame` on, `[H, real_action_dim]`, never beyond frame `last`.
    fn actions(&self, frame: usize, last: usize, state: &[f64]) -> Vec<f64> {
        let (columns, width) = (self.dataset.columns(), self.action_vector.width());
        let row = |h: usize| self.action_vector.row(columns, (frame + h).min(last));
        let mut actions: Vec<f64> = (0..self.spec.horizon).flat_map(row).collect();
        self.transforms.actions(&mut actions, width, state);
        actions
            .chunks_exact_mut(width)
            .for_each(|a| self.normalize_actions.normalize(a));
        actions
    }

    fn push_images(&self, frame: usize, next: usize, batch: &mut ChunkBatch) -> Result<(), DataError> {
        let size = self.spec.image_size;
        // In a chain of chunks, what one ended with is what the next one begins with: it is decoded once.
        let chained = batch.next_index.last() == Some(&(frame as i64));
        for (camera, out) in self.spec.cameras.iter().zip(&mut batch.images) {
            let CameraBatch {
                current, next: after, ..
            } = out;
            let present = camera.dataset.is_some();
            match &camera.dataset {
                None => {
                    for pixels in [current, after] {
                        pixels.resize(pixels.len() + size * size * 3, 0);
                    }
                }
                Some(key) if chained => {
                    current.extend_from_slice(&after[after.len() - size * size * 3..]);
                    let image = self.dataset.image(key, next)?;
                    after.extend(resize_with_pad(&image, size, size));
                }
                Some(key) => {
                    let images = self.dataset.images(key, &[frame, next])?;
                    for (pixels, image) in [current, after].into_iter().zip(&images) {
                        pixels.extend(resize_with_pad(image, size, size));
                    }
                }
            }
            out.current_mask.push(present);
            out.next_mask.push(present);
        }
        Ok(())
    }

    fn push_prompt(
        &self,
        frame: usize,
        state: &[f64],
        tokens: &mut Vec<i32>,
        mask: &mut Vec<bool>,
    ) -> Result<(), DataError> {
        let text = self.spec.prompt.text(self.dataset.as_ref(), frame)?;
        let state = self.spec.state_in_prompt.then_some(state);
        let prompt = self.tokenizer.prompt(text, state, self.spec.token_len)?;
        tokens.extend(prompt.tokens);
        mask.extend(prompt.mask);
        Ok(())
    }
}

fn push_padded(x: &[f64], width: usize, out: &mut Vec<f32>) {
    let start = out.len();
    out.resize(start + width, 0.0);
    pad_into(x, &mut out[start..]);
}
