//! A batch of the fixture on the device.

use std::f64::consts::TAU;

use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Int, Tensor, TensorData};

use crate::fixture::{Array, Arrays, Dims, array};
use crate::layers::Angles;
use crate::model::Observation;

/// Added to scores of keys that nobody may see.
const UNSEEN: f32 = -1e30;

/// What gradients go through is of `B`, the rest of the backend inside of it.
#[derive(Clone, Debug)]
pub struct Batch<B: AutodiffBackend> {
    pub now: Observation<B>,
    pub next: Observation<B::InnerBackend>,
    pub actions: Tensor<B, 3>,
    pub bc_noise: Tensor<B, 3>,
    pub bc_time: Tensor<B, 3>,
    /// Embedded, `[B, 1, width]`.
    pub bc_embedded: Tensor<B, 3>,
    pub next_noise: Tensor<B::InnerBackend, 3>,
    /// `[N, B, H, A]`
    pub candidate_noise: Tensor<B::InnerBackend, 4>,
    /// `[B, H]`
    pub valid: Tensor<B, 2>,
    pub positive: Tensor<B, 2>,
    pub rewards: Tensor<B::InnerBackend, 1>,
    pub masks: Tensor<B::InnerBackend, 1>,
    pub positives: usize,
}

impl<B: AutodiffBackend> Batch<B> {
    /// Without what is padding in every sample.
    pub fn upload(of: &Arrays, d: &Dims, device: &B::Device) -> anyhow::Result<Self> {
        let rewards = array(of, "rewards")?;
        let b = rewards.shape[0];
        let positive = array(of, "positive")?;
        let time = array(of, "bc_time")?;
        let embedded = sincos(time.values.iter().map(|&t| f64::from(t)), d.expert_width);
        let kept = longest(of, "obs/")?.max(longest(of, "next_obs/")?);
        let observed = [
            Observed::of(of, d, "obs/", kept)?,
            Observed::of(of, d, "next_obs/", kept)?,
        ];
        let masked = observed.iter().any(|one| one.valid.contains(&0.0));
        let [now, next] = observed;
        Ok(Batch {
            now: now.upload(d, masked, device),
            next: next.upload(d, masked, device),
            actions: put(array(of, "actions")?, device),
            bc_noise: put(array(of, "bc_noise")?, device),
            bc_time: values(time.values.clone(), [b, 1, 1], device),
            bc_embedded: values(embedded, [b, 1, d.expert_width], device),
            next_noise: put(array(of, "next_noise")?, device),
            candidate_noise: put(array(of, "cand_noise")?, device),
            valid: put(array(of, "valid")?, device),
            positive: values(positive.values.clone(), [b, 1], device),
            rewards: put(rewards, device),
            masks: put(array(of, "masks")?, device),
            positives: positive.values.iter().filter(|&&x| x > 0.0).count(),
        })
    }
}

/// Tokens of the longest prompt.
fn longest(of: &Arrays, who: &str) -> anyhow::Result<usize> {
    let mask = array(of, &format!("{who}token_mask"))?;
    let rows = mask.values.chunks_exact(mask.shape[1]);
    let ends = rows.map(|row| row.iter().rposition(|&x| x > 0.0).map_or(0, |last| last + 1));
    Ok(ends.max().unwrap_or(0).max(1))
}

/// An observation on the host.
struct Observed {
    samples: usize,
    images: Vec<f32>,
    tokens: Vec<i32>,
    state: Vec<f32>,
    /// `[B, T]`
    valid: Vec<f32>,
}

impl Observed {
    fn of(of: &Arrays, d: &Dims, who: &str, kept: usize) -> anyhow::Result<Self> {
        let part = |name: &str| array(of, &format!("{who}{name}"));
        let (tokens, mask, state) = (part("tokens")?, part("token_mask")?, part("state")?);
        let (mut images, mut masks) = (Vec::new(), Vec::new());
        for camera in &d.cameras {
            images.extend_from_slice(&part(&format!("images/{camera}"))?.values);
            masks.push(&part(&format!("image_masks/{camera}"))?.values);
        }
        let (b, room) = (tokens.shape[0], tokens.shape[1]);
        let (image_tokens, mut valid) = ((d.image_size / d.patch).pow(2), Vec::new());
        for row in 0..b {
            valid.extend(
                masks
                    .iter()
                    .flat_map(|mask| std::iter::repeat_n(mask[row], image_tokens)),
            );
            valid.extend_from_slice(&mask.values[row * room..][..kept]);
        }
        let prompts = tokens.values.chunks_exact(room);
        Ok(Observed {
            samples: b,
            images,
            tokens: prompts.flat_map(|row| row[..kept].iter().map(|&x| x as i32)).collect(),
            state: state.values.clone(),
            valid,
        })
    }

    fn upload<B: Backend>(self, d: &Dims, masked: bool, device: &B::Device) -> Observation<B> {
        let (b, t) = (self.samples, self.valid.len() / self.samples);
        let bias = |own: usize| {
            let hidden = self
                .valid
                .iter()
                .map(|x| if *x > 0.0 { 0.0 } else { UNSEEN })
                .collect::<Vec<_>>();
            let rows = hidden.chunks_exact(t).map(|row| [row, &vec![0.0; own]].concat());
            masked.then(|| values(rows.flatten().collect(), [b, 1, 1, t + own], device))
        };
        // Positions count valid tokens only.
        let rows = self.valid.chunks_exact(t);
        let counts = rows.clone().map(|row| row.iter().sum::<f32>());
        let prefix = rows.flat_map(|row| {
            row.iter().scan(-1.0, |count, x| {
                *count += x;
                Some(*count)
            })
        });
        let behind = |from: usize, n: usize| {
            counts
                .clone()
                .flat_map(move |c| (from..from + n).map(move |i| c + i as f32))
        };
        let (size, prompt) = (d.image_size, self.tokens.len() / b);
        let tokens = TensorData::new(self.tokens.clone(), [b, prompt]);
        Observation {
            images: values(self.images.clone(), [d.cameras.len() * b, size, size, 3], device),
            tokens: Tensor::<B, 2, Int>::from_data(tokens, device),
            state: values(self.state.clone(), [b, d.action_dim], device),
            valid: values(self.valid.clone(), [b, t], device),
            prefix_at: angles(prefix, [b, t], d, device),
            state_at: angles(behind(0, 1), [b, 1], d, device),
            chunk_at: angles(behind(1, d.action_horizon), [b, d.action_horizon], d, device),
            biases: [bias(0), bias(1), bias(1 + d.action_horizon)],
        }
    }
}

fn angles<B: Backend>(
    positions: impl Iterator<Item = f32>,
    shape: [usize; 2],
    d: &Dims,
    device: &B::Device,
) -> Angles<B> {
    let half = d.head_dim / 2;
    let (mut cos, mut sin) = (Vec::new(), Vec::new());
    for position in positions {
        let angle = |i: usize| f64::from(position) * 10_000f64.powf(-(i as f64) / half as f64);
        cos.extend((0..d.head_dim).map(|i| angle(i % half).cos() as f32));
        sin.extend((0..d.head_dim).map(|i| if i < half { -angle(i).sin() } else { angle(i - half).sin() } as f32));
    }
    let shape = [shape[0], shape[1], 1, d.head_dim];
    Angles {
        cos: values(cos, shape, device),
        sin: values(sin, shape, device),
    }
}

/// Embeddings of flow times, in float64: angles reach 1600 rad.
pub fn sincos(times: impl Iterator<Item = f64>, width: usize) -> Vec<f32> {
    let half = width / 2;
    let angle = move |time: f64, i: usize| {
        let period = 4e-3 * (4.0f64 / 4e-3).powf(i as f64 / (half - 1) as f64);
        time * TAU / period
    };
    let row = move |time| {
        let sines = (0..half).map(move |i| angle(time, i).sin() as f32);
        sines.chain((0..half).map(move |i| angle(time, i).cos() as f32))
    };
    times.flat_map(row).collect()
}

pub fn values<B: Backend, const D: usize>(values: Vec<f32>, shape: [usize; D], device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn put<B: Backend, const D: usize>(x: &Array, device: &B::Device) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(x.values.clone(), x.shape.clone()), device)
}
