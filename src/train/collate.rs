//! From a batch of data to the micro-batches of a step: adds every random number the step needs.
//!
//! A number's key is (seed, stream, step, sample of the batch, …), so it depends neither on how the batch is divided
//! nor on when or where it is drawn.

use crate::data::{CameraBatch, ChunkBatch};
use crate::model::dims::{CriticDims, Pi0Dims};
use crate::model::layout::ObservationMasks;
use crate::ops::augmentations::{Drawn, Kind};
use crate::ops::image::Jitter;
use crate::rng::{Key, Stream};
use crate::step::{MicroBatch, Noise, Observations, Pictures, Totals};

/// Shortest time of the flow matching loss, and what is left above it: openpi's `Beta(1.5, 1) · 0.999 + 0.001`.
const TIME_MIN: f64 = 0.001;
const TIME_SPAN: f64 = 0.999;

/// Makes micro-batches.
#[derive(Clone, Debug)]
pub struct Collator {
    pub seed: u64,
    pub dims: Pi0Dims,
    pub critic_dims: CriticDims,
    /// Candidates per sample (N), and the standard deviation of their initial noise.
    pub candidates: usize,
    pub temperature: f64,
    /// Samples of a micro-batch.
    pub micro_batch: usize,
    /// Random crop, rotation and colours of the pictures.
    pub augment: bool,
    /// What comes on top, in order.
    pub augmentations: Vec<Kind>,
    /// Share of hidden units dropped in the critic loss.
    pub dropout: f64,
    /// Let one prefix, with one draw of augmentation, serve a frame that is both a next and a current observation.
    pub share_prefixes: bool,
}

impl Collator {
    /// The micro-batches of step `step` (from 0), in order.
    pub fn micro_batches(&self, step: u64, batch: &ChunkBatch) -> Vec<MicroBatch> {
        let count = |flags: &mut dyn Iterator<Item = bool>| flags.filter(|f| *f).count();
        let totals = Totals {
            samples: batch.len(),
            positives: count(&mut batch.is_positive.iter().copied()),
            actors: count(&mut batch.chunk_valid.iter().map(|w| *w != 0.0)),
        };
        let samples: Vec<usize> = (0..batch.len()).collect();
        let parts = samples.chunks(self.micro_batch);
        parts.map(|part| self.micro_batch(step, batch, part, totals)).collect()
    }

    fn micro_batch(&self, step: u64, batch: &ChunkBatch, samples: &[usize], totals: Totals) -> MicroBatch {
        let (h, a) = (self.dims.action_horizon, self.dims.action_dim);
        let chunk = h * a;
        let key = |stream: Stream| Key::stream(self.seed, stream).fold(step);
        let each = |values: &[f32], width: usize| pick(values, width, samples);
        let normals = |stream: Stream| {
            let mut out = vec![0.0; samples.len() * chunk];
            for (&sample, out) in samples.iter().zip(out.chunks_mut(chunk)) {
                key(stream).fold(sample as u64).normals(out);
            }
            out
        };
        let mut candidates = vec![0.0; self.candidates * samples.len() * chunk];
        for (i, out) in candidates.chunks_mut(chunk).enumerate() {
            let (candidate, sample) = (i / samples.len(), samples[i % samples.len()]);
            let key = key(Stream::Candidate).fold(sample as u64);
            self.candidate_noise(key, candidate, out);
        }
        let time = |&s: &usize| flow_time(key(Stream::BcTime).uniform(s as u64));
        MicroBatch {
            current: self.observations(step, batch, samples, Moment::Current),
            next: self.observations(step, batch, samples, Moment::Next),
            next_is: samples.iter().map(|&s| self.next_is(batch, samples, s)).collect(),
            actions: each(&batch.actions, chunk),
            action_valid: pick(&batch.action_valid, h, samples)
                .into_iter()
                .map(|v| f32::from(u8::from(v)))
                .collect(),
            reward: each(&batch.reward, 1),
            discount: each(&batch.discount, 1),
            chunk_valid: each(&batch.chunk_valid, 1),
            positive: pick(&batch.is_positive, 1, samples),
            noise: Noise {
                candidates,
                next: normals(Stream::Target),
                bc: normals(Stream::BcNoise),
                bc_time: samples.iter().map(time).collect(),
            },
            dropout: self.dropout(key(Stream::Dropout), samples),
            totals,
        }
    }

    /// The one of `samples` that starts with what sample `s` ends with: the same frame under the same prompt.
    fn next_is(&self, batch: &ChunkBatch, samples: &[usize], s: usize) -> Option<usize> {
        let l = self.dims.max_token_len;
        let prompt = |tokens: &[i32], mask: &[bool], s: usize| -> Vec<i32> {
            let real = (s * l..(s + 1) * l).filter(|&i| mask[i]);
            real.map(|i| tokens[i]).collect()
        };
        let starts_there = |&other: &usize| {
            batch.index[other] == batch.next_index[s]
                && prompt(&batch.tokens, &batch.token_mask, other)
                    == prompt(&batch.next_tokens, &batch.next_token_mask, s)
        };
        self.share_prefixes.then(|| samples.iter().position(starts_there))?
    }

    /// Initial noise `[H, A]` of one candidate; `key` names the step and the sample.
    pub fn candidate_noise(&self, key: Key, candidate: usize, out: &mut [f32]) {
        key.fold(candidate as u64).normals(out);
        out.iter_mut()
            .for_each(|v| *v = (f64::from(*v) * self.temperature) as f32);
    }

    /// Bits of the kept hidden units, `[E, B, h]` of every layer.
    fn dropout(&self, key: Key, samples: &[usize]) -> Vec<Vec<u32>> {
        if self.dropout == 0.0 {
            return Vec::new();
        }
        let dropped = (self.dropout * 2f64.powi(32)) as u64;
        let layer = |(layer, &width): (usize, &usize)| {
            let rows = self.critic_dims.critics * samples.len();
            let mut bits = vec![0u32; (rows * width).div_ceil(32)];
            for row in 0..rows {
                let (member, sample) = (row / samples.len(), samples[row % samples.len()]);
                let key = key.fold(sample as u64).fold(member as u64).fold(layer as u64);
                for i in 0..width {
                    let word = key.bits(i as u64 / 2)[i % 2];
                    let at = row * width + i;
                    bits[at / 32] |= u32::from(u64::from(word) >= dropped) << (at % 32);
                }
            }
            bits
        };
        self.critic_dims.hidden.iter().enumerate().map(layer).collect()
    }

    fn observations(&self, step: u64, batch: &ChunkBatch, samples: &[usize], moment: Moment) -> Observations {
        let l = self.dims.max_token_len;
        let (state, tokens, token_mask) = match moment {
            Moment::Current => (&batch.state, &batch.tokens, &batch.token_mask),
            Moment::Next => (&batch.next_state, &batch.next_tokens, &batch.next_token_mask),
        };
        let prompt = |&s: &usize| -> Vec<u32> {
            let (tokens, mask) = (&tokens[s * l..(s + 1) * l], &token_mask[s * l..(s + 1) * l]);
            let real = tokens.iter().zip(mask).filter(|(_, real)| **real);
            real.map(|(token, _)| *token as u32).collect()
        };
        let present = |&s: &usize| batch.images.iter().map(|c| moment.mask(c)[s]).collect();
        let masks = ObservationMasks {
            cameras: samples.iter().map(present).collect(),
            prompts: samples.iter().map(prompt).collect(),
        };
        let area = self.dims.image_size * self.dims.image_size * 3;
        let pictures = masks.pictures();
        let key = Key::stream(self.seed, Stream::Augment).fold(step);
        let key_of = |i: usize, camera: usize| key.fold(samples[i] as u64).fold(2 * camera as u64 + moment as u64);
        let size = self.dims.image_size;
        let jitter = |&(i, camera): &(usize, usize)| {
            let wrist = batch.images[camera].name.contains("wrist");
            Jitter::draw(key_of(i, camera), size, !wrist)
        };
        let drawn = |&kind: &Kind| Drawn {
            kind,
            draws: pictures
                .iter()
                .map(|&(i, camera)| kind.draw(key_of(i, camera), size))
                .collect(),
        };
        let mut bytes = Vec::with_capacity(pictures.len() * area);
        for &(i, camera) in &pictures {
            let s = samples[i];
            bytes.extend_from_slice(&moment.pixels(&batch.images[camera])[s * area..(s + 1) * area]);
        }
        Observations {
            pictures: Pictures::Bytes {
                bytes,
                jitters: self.augment.then(|| pictures.iter().map(jitter).collect()),
                augmentations: self.augmentations.iter().map(drawn).collect(),
            },
            masks,
            state: pick(state, self.dims.action_dim, samples),
        }
    }

    /// The observations in front of the chunks of a whole batch, as they are.
    pub fn current_observations(&self, batch: &ChunkBatch) -> Observations {
        let plain = Collator {
            augment: false,
            augmentations: Vec::new(),
            ..self.clone()
        };
        plain.observations(0, batch, &(0..batch.len()).collect::<Vec<_>>(), Moment::Current)
    }
}

/// A time of the flow matching loss from a uniform number.
pub fn flow_time(uniform: f64) -> f64 {
    // Beta(1.5, 1) has the distribution function t^1.5.
    TIME_MIN + TIME_SPAN * libm::pow(uniform, 2.0 / 3.0)
}

/// Before or after the chunk.
#[derive(Clone, Copy)]
enum Moment {
    Current = 0,
    Next = 1,
}

impl Moment {
    fn pixels(self, camera: &CameraBatch) -> &[u8] {
        match self {
            Moment::Current => &camera.current,
            Moment::Next => &camera.next,
        }
    }

    fn mask(self, camera: &CameraBatch) -> &[bool] {
        match self {
            Moment::Current => &camera.current_mask,
            Moment::Next => &camera.next_mask,
        }
    }
}

/// Rows `keep` of a matrix with rows of `width` elements.
fn pick<T: Copy>(values: &[T], width: usize, keep: &[usize]) -> Vec<T> {
    let row = |&r: &usize| values[r * width..(r + 1) * width].iter().copied();
    keep.iter().flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::train::setup;

    fn chained(share: bool) -> (Collator, ChunkBatch) {
        let mut config = Config::load("debug").expect("a preset");
        config.acrlpd.chain_batches = if share { 2 } else { 1 };
        let collator = setup::collator(&config);
        let (l, b) = (collator.dims.max_token_len, 4);
        let area = collator.dims.image_size * collator.dims.image_size * 3;
        let width = collator.dims.action_dim;
        let chunk = collator.dims.action_horizon * width;
        let camera = |name: &String| CameraBatch {
            name: name.clone(),
            current: vec![7; b * area],
            next: vec![9; b * area],
            current_mask: vec![true; b],
            next_mask: vec![true; b],
        };
        let tokens: Vec<i32> = (0..b * l).map(|i| i32::from(i % l < 3)).collect();
        let batch = ChunkBatch {
            images: collator.dims.cameras.iter().map(camera).collect(),
            state: vec![0.0; b * width],
            next_state: vec![0.0; b * width],
            token_mask: tokens.iter().map(|t| *t == 1).collect(),
            next_token_mask: tokens.iter().map(|t| *t == 1).collect(),
            next_tokens: tokens.clone(),
            tokens,
            actions: vec![0.0; b * chunk],
            action_valid: vec![true; b * collator.dims.action_horizon],
            reward: vec![0.0; b],
            discount: vec![1.0; b],
            chunk_valid: vec![1.0; b],
            is_positive: vec![true; b],
            index: vec![0, 10, 30, 40],
            next_index: vec![10, 20, 40, 50],
            ..ChunkBatch::default()
        };
        (collator, batch)
    }

    #[test]
    fn only_the_same_frame_under_the_same_prompt_shares_a_prefix() {
        let links = |collator: &Collator, batch: &ChunkBatch| -> Vec<Option<usize>> {
            let parts = collator.micro_batches(0, batch);
            parts.into_iter().flat_map(|part| part.next_is).collect()
        };
        let (mut collator, mut batch) = chained(true);
        collator.micro_batch = 4;
        assert_eq!(links(&collator, &batch), [Some(1), None, Some(3), None]);
        batch.tokens[collator.dims.max_token_len] = 2;
        assert_eq!(links(&collator, &batch), [None, None, Some(3), None]);
        // Links stay inside a micro-batch and count from its first sample.
        collator.micro_batch = 2;
        assert_eq!(links(&collator, &batch), [None, None, Some(1), None]);
        let (collator, batch) = chained(false);
        assert!(links(&collator, &batch).iter().all(Option::is_none));
    }
}
