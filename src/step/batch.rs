//! What a micro-batch brings, on the host: data and every random number.

use std::borrow::Cow;

use crate::gpu::{Gpu, Tensor};
use crate::model::layout::ObservationMasks;
use crate::ops::augmentations::Drawn;
use crate::ops::image::{self, Jitter};

/// The pictures that are present, in the order of [`ObservationMasks::pictures`].
#[derive(Clone, Debug)]
pub enum Pictures {
    /// RGB bytes `[n, S, S, 3]`, and what to do to each.
    Bytes {
        bytes: Vec<u8>,
        jitters: Option<Vec<Jitter>>,
        /// What comes on top, in order.
        augmentations: Vec<Drawn>,
    },
    /// Values in [-1, 1], `[n, S, S, 3]`.
    Floats(Vec<f32>),
}

/// B observations.
#[derive(Clone, Debug)]
pub struct Observations {
    pub masks: ObservationMasks,
    pub pictures: Pictures,
    /// `[B, A]`
    pub state: Vec<f32>,
}

/// Noise of every kind, `[…, H, A]` standard normals.
#[derive(Clone, Debug)]
pub struct Noise {
    /// `[N, B, H, A]`
    pub candidates: Vec<f32>,
    /// `[B, H, A]`
    pub next: Vec<f32>,
    /// `[B, H, A]`
    pub bc: Vec<f32>,
    /// `[B]`, in (0, 1].
    pub bc_time: Vec<f64>,
}

/// Denominators of the *full* batch: with them, micro-batches add up to the same gradients as one large batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub samples: usize,
    pub positives: usize,
    /// Samples whose candidates are drawn.
    pub actors: usize,
}

/// B samples of a batch.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    pub current: Observations,
    /// The observations H steps later, of all B samples (those not needed are left out on the device).
    pub next: Observations,
    /// The sample whose current observation is this one's next, so that one prefix serves both, `[B]`.
    pub next_is: Vec<Option<usize>>,
    /// `[B, H, A]`
    pub actions: Vec<f32>,
    /// `[B, H]`
    pub action_valid: Vec<f32>,
    /// Discounted sum of rewards in the chunk, `[B]`.
    pub reward: Vec<f32>,
    /// What the next value counts, `[B]`.
    pub discount: Vec<f32>,
    /// Weight of the chunk in critic and actor loss, `[B]`.
    pub chunk_valid: Vec<f32>,
    /// Is the sample cloned? `[B]`
    pub positive: Vec<bool>,
    pub noise: Noise,
    /// Kept hidden units of each critic layer, bits of `[E, B, h]`; empty without dropout.
    pub dropout: Vec<Vec<u32>>,
    pub totals: Totals,
}

impl MicroBatch {
    /// Number of samples (B).
    pub fn len(&self) -> usize {
        self.reward.len()
    }

    /// No samples?
    pub fn is_empty(&self) -> bool {
        self.reward.is_empty()
    }
}

/// Which samples take part in what. The host knows, so nothing is computed for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Who {
    /// Samples whose candidates are drawn: those with weight.
    pub actors: Vec<usize>,
    /// Samples that bootstrap from the next observation: first those whose next observation has a prefix of its own,
    /// then those whose next one is another sample's current one.
    pub boots: Vec<usize>,
    /// Number of the former.
    pub alone: usize,
    /// Samples that are cloned.
    pub cloned: Vec<usize>,
}

impl Who {
    /// By weights; everyone where nothing may be skipped.
    pub fn new(batch: &MicroBatch, skip: bool, actor: bool) -> Who {
        let pick =
            |keep: &dyn Fn(usize) -> bool| -> Vec<usize> { (0..batch.len()).filter(|&b| !skip || keep(b)).collect() };
        let nobody = Vec::new();
        let boots = pick(&|b| batch.discount[b] != 0.0);
        let (mut boots, shared): (Vec<_>, Vec<_>) = boots.into_iter().partition(|&b| batch.next_is[b].is_none());
        let alone = boots.len();
        boots.extend(shared);
        Who {
            actors: if actor {
                pick(&|b| batch.chunk_valid[b] != 0.0)
            } else {
                nobody.clone()
            },
            boots,
            alone,
            cloned: if actor { pick(&|b| batch.positive[b]) } else { nobody },
        }
    }
}

impl Observations {
    /// Pictures on the device as f32 in [-1, 1], those of samples `keep` only.
    pub(super) fn images(&self, gpu: &Gpu, size: usize, keep: &[usize]) -> Tensor {
        let area = size * size * 3;
        let all = self.masks.pictures();
        let wanted: Vec<usize> = (0..all.len()).filter(|&i| keep.contains(&all[i].0)).collect();
        let shape = [wanted.len(), size, size, 3];
        let pick = |i: &usize| i * area..(i + 1) * area;
        match &self.pictures {
            Pictures::Floats(values) => {
                let kept = joined(wanted.iter().map(|i| &values[pick(i)]));
                gpu.upload_f32(&kept, shape)
            }
            Pictures::Bytes {
                bytes,
                jitters,
                augmentations,
            } => {
                // As a rule all of them, tens of megabytes a step.
                let kept = match wanted.len() == all.len() {
                    true => Cow::Borrowed(&bytes[..all.len() * area]),
                    false => Cow::Owned(joined(wanted.iter().map(|i| &bytes[pick(i)]))),
                };
                let jitters = jitters.as_ref().map(|j| {
                    let kept: Vec<Jitter> = wanted.iter().map(|&i| j[i]).collect();
                    image::upload(gpu, &kept)
                });
                let out = gpu.f32(shape);
                if !wanted.is_empty() {
                    image::forward(gpu, &gpu.upload_u8(&kept, shape), jitters.as_ref(), &out);
                    for Drawn { kind, draws } in augmentations {
                        let kept: Vec<[f32; 4]> = wanted.iter().map(|&i| draws[i]).collect();
                        kind.apply(gpu, &out, &kept);
                    }
                }
                out
            }
        }
    }

    /// Masks of samples `keep` only.
    pub(super) fn masks(&self, keep: &[usize]) -> ObservationMasks {
        ObservationMasks {
            cameras: keep.iter().map(|&b| self.masks.cameras[b].clone()).collect(),
            prompts: keep.iter().map(|&b| self.masks.prompts[b].clone()).collect(),
        }
    }
}

/// Rows `keep` of a host matrix with rows of `width` elements.
pub(super) fn pick_rows(values: &[f32], width: usize, keep: &[usize]) -> Vec<f32> {
    joined(keep.iter().map(|&r| &values[r * width..(r + 1) * width]))
}

/// One piece after the other, each copied as a whole.
fn joined<'a, T: Copy + 'a>(pieces: impl Iterator<Item = &'a [T]>) -> Vec<T> {
    pieces.collect::<Vec<_>>().concat()
}
