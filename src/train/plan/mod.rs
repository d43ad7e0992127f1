//! What a step costs and where its memory lies, from the step itself: the same code runs on a device that only counts.
//!
//! | file | what it does |
//! |---|---|
//! | here | the costs of a step, phase by phase, and the pages it needs |
//! | [`map`] | which memory is whose, and when |
//! | [`svg`] | the same as a drawing |
//! | [`fit`] | what would make a step fit that does not |
//! | [`advice`] | the same as a sentence |
//! | [`cards`] | the best settings for cards of usual sizes |

pub mod advice;
pub mod cards;
pub mod fit;
pub mod map;
pub mod svg;

use serde::Serialize;

use self::map::Map;
use super::error::Result;
use super::setup;
use crate::config::Config;
use crate::gpu::{Caps, Gpu, Record, WRITTEN};
use crate::model::layout::ObservationMasks;
use crate::model::params::Touched;
use crate::ops::augmentations::{self, Drawn};
use crate::ops::image::Jitter;
use crate::step::act::{self, Recorded};
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
/// the most a step can cost. Work is counted with prompts of one length and whole chains of chunks, memory with the longest
/// prompts and broken chains.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    pub samples: usize,
    pub micro_batches: usize,
    /// Tokens of each prompt, in the counted work.
    pub prompt_tokens: usize,
    pub parameters: usize,
    /// Useful floating point operations of losses and gradients; the optimizer is not in it.
    pub tflop_per_sample: f64,
    pub launches: u64,
    /// Rows of the prompt table that can learn; absent: all do, or none.
    pub prompt_rows: Option<usize>,
    /// Most bytes of the arenas in use at once, and what they are: weights, gradients and optimizer states; activations
    /// and workspaces.
    pub peak_bytes: u64,
    pub state_bytes: u64,
    pub activation_bytes: u64,
    /// What a run takes from the driver: the pages of both arenas, gaps between allocations included, and `upload_bytes`
    /// of pages for what the host sends.
    pub reserved_bytes: u64,
    pub upload_bytes: u64,
    pub phases: Vec<Phase>,
    pub map: Map,
    /// Size each page of the two arenas must have.
    #[serde(skip)]
    pub state_pages: Vec<u64>,
    #[serde(skip)]
    pub activation_pages: Vec<u64>,
    /// Pages that the backend's pool takes for uploads.
    #[serde(skip)]
    pub upload_pages: Vec<u64>,
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
    gpu.keep_ledger();
    let learner = setup::learner(&gpu, config)?;
    let metrics = Metrics::new(&learner, config.batch_size);
    // Weights come from the host: their way to the device needs room too. One that fills a piece stands for the others.
    let mut enough = false;
    learner.load_pi0(|t| {
        let more = !enough;
        enough |= t.len() >= WRITTEN;
        more.then(|| vec![0.0; t.len()])
    });
    let batch = config.batch_size;
    let tokens = prompt_tokens.min(learner.dims.max_token_len);
    // That tokens occur for the first time is not what a step costs.
    learner.touch(&fullest(config, tokens, 1).current.masks);
    let micro_batch = |tokens: usize, chain: usize| -> Result<Record> {
        metrics.clear(&gpu);
        gpu.take_record();
        schedule::micro_batch(&learner, &metrics, &fullest(config, tokens, chain), true);
        gpu.check()?;
        Ok(gpu.take_record())
    };
    // Chains may break anywhere and prompts differ: memory has to do for the worst, work is counted as asked.
    let (longest, chain) = (learner.dims.max_token_len, config.acrlpd.chain_batches);
    let typical = (chain > 1 || tokens < longest)
        .then(|| micro_batch(tokens, chain))
        .transpose()?;
    let begin = gpu.clock();
    let worst = micro_batch(longest, 1)?;
    let peaks = worst.peaks.clone();
    // Every micro-batch costs the same, in the same memory.
    let mut record = typical.unwrap_or(worst).repeated(config.accumulation());
    record.peaks = peaks;
    optimizer::update(&learner, &metrics, 0, Rates::default());
    gpu.check()?;
    record.append(gpu.take_record());
    let end = gpu.clock();
    let (states, scratch) = (gpu.states().usage().peak, gpu.scratch().usage().peak);
    beside(config, &learner, &metrics, longest);
    gpu.check()?;

    let ledger = gpu.take_ledger();
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
    let memory = gpu.memory()?;
    Ok(Plan {
        samples: batch,
        micro_batches: config.accumulation(),
        prompt_tokens: tokens,
        parameters: learner.pi0.weights.placement().table().len() + learner.critic.weights.placement().table().len(),
        tflop_per_sample: learning.map(|p| p.tflop).sum::<f64>() / batch as f64,
        launches: record.total().launches,
        prompt_rows: learner.touched().map(Touched::capacity),
        peak_bytes: states + scratch,
        state_bytes: states,
        activation_bytes: scratch,
        reserved_bytes: memory.reserved,
        upload_bytes: memory.uploads.iter().sum(),
        phases,
        map: Map::new(&ledger, begin, end),
        state_pages: memory.states.pages,
        activation_pages: memory.scratch.pages,
        upload_pages: memory.uploads,
        record,
    })
}

/// What a run does between steps: rows of metrics, evaluation, and a measurement of what the device can do. It uses the
/// step's memory.
fn beside(config: &Config, learner: &Learner, metrics: &Metrics, tokens: usize) {
    let gpu = &learner.gpu;
    gpu.phase(&[("between steps", 1.0)]);
    optimizer::weight_norms(learner, metrics);
    if config.eval_interval > 0 && config.data.eval_fraction > 0.0 {
        let part = fullest(config, tokens, 1);
        let times = vec![0.5; part.len()];
        let recorded = Recorded {
            actions: &part.actions,
            noise: &part.noise.bc,
            time: &times,
        };
        act::act(learner, &part.current, &part.noise.candidates, Some(recorded));
    }
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
    optimizer::update(learner, metrics, 0, Rates::default());
}

/// A micro-batch of chains of `chain` chunks in which nothing else can be left out.
pub fn fullest(config: &Config, tokens: usize, chain: usize) -> MicroBatch {
    let b = config.micro_batch();
    let (dims, critic) = (config.pi0_dims(), config.critic_dims());
    let (h, chunk) = (dims.action_horizon, dims.action_horizon * dims.action_dim);
    let present: Vec<bool> = dims
        .cameras
        .iter()
        .map(|c| config.data.cameras.contains_key(c))
        .collect();
    // As many different tokens as can be.
    let rows = config.memory.prompt_rows.min(dims.vocab);
    let prompt: Vec<u32> = (0..tokens).map(|i| (i % rows) as u32).collect();
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
                prompts: vec![prompt.clone(); b],
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
