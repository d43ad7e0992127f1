//! What a step costs, from the step itself: the same code runs on a device that only counts.

use serde::Serialize;

use super::error::Result;
use super::setup;
use crate::config::Config;
use crate::gpu::{Caps, Gpu, Record};
use crate::model::layout::ObservationMasks;
use crate::ops::augmentations::{self, Drawn};
use crate::ops::image::Jitter;
use crate::step::learner::Learner;
use crate::step::metrics::Metrics;
use crate::step::optimizer::{self, Rates};
use crate::step::{MicroBatch, Noise, Observations, Pictures, Totals, schedule};

/// Costs of one phase of an optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    pub name: &'static str,
    pub launches: u64,
    pub tflop: f64,
    pub gigabytes: f64,
    /// Most bytes in use at once during the phase, weights and optimizer states included.
    pub peak_bytes: u64,
}

/// Costs of an optimizer step. Every sample has all configured cameras, is a success, carries weight and bootstraps:
/// the most a step can cost. Chains of chunks are whole in the counted work, and broken in the memory.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub samples: usize,
    pub micro_batches: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    pub parameters: usize,
    /// Useful floating point operations of losses and gradients; the optimizer is not in it.
    pub tflop_per_sample: f64,
    pub launches: u64,
    /// Most bytes in use at once, and what they are: weights, gradients and optimizer states; activations and
    /// workspaces.
    pub peak_bytes: u64,
    pub state_bytes: u64,
    pub activation_bytes: u64,
    pub phases: Vec<Phase>,
    /// Size each page of the two arenas must have.
    #[serde(skip)]
    pub state_pages: Vec<u64>,
    #[serde(skip)]
    pub activation_pages: Vec<u64>,
    #[serde(skip)]
    pub record: Record,
}

/// Name of the phase that is not counted per sample.
const OPTIMIZER: &str = "optimizer";

/// Counts one optimizer step of `config` on a device like `caps`, with prompts of `prompt_tokens`.
///
/// # Errors
/// Storage types that the device lacks.
pub fn plan(config: &Config, caps: Caps, prompt_tokens: usize) -> Result<Plan> {
    let gpu = Gpu::null(caps);
    let learner = setup::learner(&gpu, config)?;
    let metrics = Metrics::new(&learner, config.batch_size);
    let batch = config.batch_size;
    let tokens = prompt_tokens.min(learner.dims.max_token_len);
    let recorded = |chain: usize| -> Result<Record> {
        metrics.clear(&gpu);
        gpu.take_record();
        launch_all(config, &learner, &metrics, tokens, chain);
        gpu.check()?;
        Ok(gpu.take_record())
    };
    // Chains may break anywhere, so memory has to do without them; work is counted with whole ones.
    let mut record = recorded(1)?;
    if config.acrlpd.chain_batches > 1 {
        let peaks = record.peaks;
        record = recorded(config.acrlpd.chain_batches)?;
        record.peaks = peaks;
    }
    let phases: Vec<Phase> = record
        .phases()
        .into_iter()
        .map(|(name, t)| Phase {
            name,
            launches: t.launches,
            tflop: t.flops / 1e12,
            gigabytes: t.bytes / 1e9,
            peak_bytes: record.peaks.get(name).copied().unwrap_or(0),
        })
        .collect();
    let learning = phases.iter().filter(|p| p.name != OPTIMIZER);
    let (states, scratch) = (gpu.states().usage(), gpu.scratch().usage());
    Ok(Plan {
        samples: batch,
        micro_batches: config.accumulation(),
        prompt_tokens: tokens,
        parameters: learner.pi0.weights.placement().table().len() + learner.critic.weights.placement().table().len(),
        tflop_per_sample: learning.map(|p| p.tflop).sum::<f64>() / batch as f64,
        launches: record.total().launches,
        peak_bytes: states.peak + scratch.peak,
        state_bytes: states.peak,
        activation_bytes: scratch.peak,
        phases,
        state_pages: states.pages,
        activation_pages: scratch.pages,
        record,
    })
}

/// Launches one optimizer step of `config` on `gpu`, of batches in which nothing can be left out, with prompts of
/// `prompt_tokens`: for devices that count or lower what they are given. Weights are not filled.
///
/// # Errors
/// Storage types that the device lacks, and whatever it refused.
pub fn step(gpu: &Gpu, config: &Config, prompt_tokens: usize) -> Result<()> {
    let learner = setup::learner(gpu, config)?;
    let metrics = Metrics::new(&learner, config.batch_size);
    let tokens = prompt_tokens.min(learner.dims.max_token_len);
    metrics.clear(gpu);
    launch_all(config, &learner, &metrics, tokens, config.acrlpd.chain_batches);
    Ok(gpu.sync()?)
}

fn launch_all(config: &Config, learner: &Learner, metrics: &Metrics, tokens: usize, chain: usize) {
    for _ in 0..config.accumulation() {
        schedule::micro_batch(learner, metrics, &fullest(config, tokens, chain), true);
    }
    let rates = Rates {
        pi0: 0.0,
        critic: 0.0,
        temperature: 0.0,
    };
    optimizer::update(learner, metrics, 0, rates);
}

/// A micro-batch of chains of `chain` chunks in which nothing else can be left out.
fn fullest(config: &Config, tokens: usize, chain: usize) -> MicroBatch {
    let b = config.micro_batch();
    let (dims, critic) = (config.pi0_dims(), config.critic_dims());
    let (h, chunk) = (dims.action_horizon, dims.action_horizon * dims.action_dim);
    let present: Vec<bool> = dims
        .cameras
        .iter()
        .map(|c| config.data.cameras.contains_key(c))
        .collect();
    let observations = || {
        let pictures = b * present.iter().filter(|p| **p).count();
        let area = dims.image_size * dims.image_size * 3;
        let still = |&kind: &augmentations::Kind| Drawn {
            kind,
            draws: vec![[0.0; 4]; pictures],
        };
        Observations {
            masks: ObservationMasks {
                cameras: vec![present.clone(); b],
                prompts: vec![vec![0; tokens]; b],
            },
            pictures: Pictures::Bytes {
                bytes: vec![0; pictures * area],
                jitters: config.data.augment.then(|| vec![Jitter::NONE; pictures]),
                augmentations: config.data.augmentations.iter().map(still).collect(),
            },
            state: vec![0.0; b * dims.action_dim],
        }
    };
    let bits = |width: &usize| vec![u32::MAX; (critic.critics * b * width).div_ceil(32)];
    let dropout = config.critic.dropout_rate > 0.0;
    MicroBatch {
        current: observations(),
        next: observations(),
        next_is: (0..b).map(|i| ((i + 1) % chain > 0).then_some(i + 1)).collect(),
        actions: vec![0.0; b * chunk],
        action_valid: vec![1.0; b * h],
        reward: vec![0.0; b],
        discount: vec![1.0; b],
        chunk_valid: vec![1.0; b],
        positive: vec![true; b],
        noise: Noise {
            candidates: vec![0.0; config.acrlpd.num_action_samples * b * chunk],
            next: vec![0.0; b * chunk],
            bc: vec![0.0; b * chunk],
            bc_time: vec![0.5; b],
        },
        dropout: critic.hidden.iter().filter(|_| dropout).map(bits).collect(),
        totals: Totals {
            samples: config.batch_size,
            positives: config.batch_size,
            actors: config.batch_size,
        },
    }
}
