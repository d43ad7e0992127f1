//! Training steps that use every kernel, for devices that lower and do not run.

use std::path::Path;

use acrlpd::config::Config;
use acrlpd::gpu::{DType, Gpu};
use acrlpd::model::critic_networks::Network;
use acrlpd::model::dims::{Adapters, CriticDims, Lora, Pi0Dims};
use acrlpd::model::freeze::Freeze;
use acrlpd::model::layout::ObservationMasks;
use acrlpd::model::remat::Remat;
use acrlpd::ops::augmentations::{self, Drawn};
use acrlpd::ops::blockwise::Format;
use acrlpd::ops::ensemble::Aggregate;
use acrlpd::ops::image::Jitter;
use acrlpd::ops::optimizers::{Hyper, Kind};
use acrlpd::ops::roofline;
use acrlpd::ops::td::TdLoss;
use acrlpd::step::batch::{MicroBatch, Noise, Observations, Pictures, Totals};
use acrlpd::step::config::{Features, GroupConfig, LossWeights, Objective, StepConfig};
use acrlpd::step::learner::Learner;
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::train::plan;
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-4,
    critic: 1e-4,
    temperature: 1e-4,
};

/// Launches every kernel of the tiny model and of the published sizes, of π₀ and π₀.₅, in these number formats, and those of
/// the roofline.
pub fn drive(gpu: &Gpu, dtypes: &[DType]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&golden).expect("a fixture")).expect("a group");
    let config = group.config().expect("a config");
    for pi05 in [false, true] {
        let tiny = Pi0Dims {
            pi05,
            ..group.dims.clone()
        };
        let batch = group.micro(0, 0..group.batch).expect("a batch");
        both(gpu, &tiny, &group.critic_dims, &config, dtypes, &batch);

        // Layers repeat their kernels: two of them are enough.
        let full = Pi0Dims {
            depth: 2,
            vision_depth: 2,
            ..Pi0Dims::full(20, pi05)
        };
        let critic = CriticDims {
            critics: 10,
            hidden: vec![256; 3],
            network: Network::Residual,
            feature_width: full.language.width,
            real_action_dim: 14,
            action_horizon: full.action_horizon,
        };
        let config = StepConfig {
            euler_steps: 2,
            candidates: 2,
            dropout: 0.1,
            rule_weights: vec![0.1; critic.critics],
            ..config.clone()
        };
        both(gpu, &full, &critic, &config, dtypes, &full_batch(&full, &critic, 2));

        // openpi's adapters, on matrices that stay as they are.
        let lora = |rank: usize| {
            Some(Lora {
                rank,
                alpha: rank as f64,
            })
        };
        let adapted = Pi0Dims {
            lora: Adapters {
                language: lora(16),
                expert: lora(32),
            },
            ..full
        };
        let config = StepConfig {
            freeze: Freeze::under(adapted.lora),
            ..config
        };
        both(
            gpu,
            &adapted,
            &critic,
            &config,
            dtypes,
            &full_batch(&adapted, &critic, 2),
        );
    }
    // What devices are measured by has kernels of its own.
    for &dtype in dtypes {
        roofline::measure(gpu, dtype).expect("every kernel is lowered");
    }
}

/// Launches one optimizer step of a shipped configuration at its own size.
pub fn drive_preset(gpu: &Gpu, name: &str, dtype: DType) {
    let overrides = [("model.dtype".to_string(), dtype.name().to_string())];
    let config = Config::load_with(name, &overrides).expect("a preset");
    plan::step(gpu, &config, 48).expect("every kernel is lowered");
}

/// Forward, backward, update and metrics of one step.
fn step(gpu: &Gpu, dims: &Pi0Dims, critic: &CriticDims, config: StepConfig, batch: &MicroBatch) {
    // Without memory: weights are drawn, and nothing reads them.
    let learner = Learner::new(gpu, config, dims.clone(), critic.clone()).expect("a learner");
    learner.init(0);
    let metrics = Metrics::new(&learner, batch.len());
    micro_batch(&learner, &metrics, batch, true);
    optimizer::update(&learner, &metrics, 0, RATES);
    optimizer::weight_norms(&learner, &metrics);
    metrics.read(gpu).expect("every kernel is lowered");
}

/// An update alone.
fn update(gpu: &Gpu, dims: &Pi0Dims, critic: &CriticDims, config: StepConfig, batch: usize) {
    let learner = Learner::new(gpu, config, dims.clone(), critic.clone()).expect("a learner");
    let metrics = Metrics::new(&learner, batch);
    optimizer::update(&learner, &metrics, 0, RATES);
}

/// The step people run, and one with the other choice wherever there is one; both also with residual streams in f32.
fn both(gpu: &Gpu, dims: &Pi0Dims, critic: &CriticDims, config: &StepConfig, dtypes: &[DType], batch: &MicroBatch) {
    for &dtype in dtypes {
        let usual = StepConfig {
            dtype,
            ..config.clone()
        };
        step(gpu, dims, critic, usual.clone(), batch);
        let tight = StepConfig {
            moments: Format::Blockwise8,
            ..usual.clone()
        };
        update(gpu, dims, critic, tight, batch.len());
        let hyper = Hyper {
            beta1: 0.9,
            beta2: 0.99,
            eps: 0.0,
            weight_decay: 0.1,
        };
        let lion = GroupConfig {
            optimizer: Kind::Lion.with(hyper),
            clip: 1.0,
        };
        let other = StepConfig {
            pi0: lion,
            critic: lion,
            objective: Objective::MeanN,
            weights: LossWeights {
                smoothness: 1.0,
                ..usual.weights
            },
            critic_loss: TdLoss::Huber(1.0),
            features: Features::Llm,
            feature_grad: true,
            actor_rule: Aggregate::Weighted,
            target_rule: Aggregate::Mean,
            skip_dead_rows: true,
            remat: Remat::Full,
            moments: Format::Blockwise8,
            ema_on_host: false,
            separate_prefixes: true,
            ..usual.clone()
        };
        if dtype != DType::F32 {
            // Residual streams in f32, with everything kept and with everything computed again.
            for config in [&usual, &other] {
                let wide = StepConfig {
                    f32_residual: true,
                    ..config.clone()
                };
                step(gpu, dims, critic, wide, batch);
            }
        }
        step(gpu, dims, critic, other, batch);
    }
}

/// Two samples for the published sizes: one without its last camera, one whose chunk ends the episode. Bytes with
/// jitters, and dropout.
fn full_batch(dims: &Pi0Dims, critic: &CriticDims, candidates: usize) -> MicroBatch {
    let (b, cameras) = (2, dims.cameras.len());
    let chunk = dims.action_horizon * dims.action_dim;
    let pictures = b * cameras - 1;
    let mut seen = vec![vec![true; cameras]; b];
    seen[0][cameras - 1] = false;
    let observations = Observations {
        masks: ObservationMasks {
            cameras: seen,
            prompts: vec![vec![2, 7, 7], vec![2, 9]],
        },
        pictures: Pictures::Bytes {
            bytes: vec![128; pictures * dims.image_size * dims.image_size * 3],
            jitters: Some(vec![Jitter::NONE; pictures]),
            augmentations: vec![Drawn {
                kind: augmentations::Kind::Erase,
                draws: vec![[0.0; 4]; pictures],
            }],
        },
        state: vec![0.0; b * dims.action_dim],
    };
    let bits = |width: &usize| vec![u32::MAX; (critic.critics * b * width).div_ceil(32)];
    MicroBatch {
        current: observations.clone(),
        next: observations,
        next_is: vec![None; b],
        actions: vec![0.0; b * chunk],
        action_valid: vec![1.0; b * dims.action_horizon],
        reward: vec![0.0; b],
        discount: vec![0.9, 0.0],
        chunk_valid: vec![1.0; b],
        positive: vec![true, false],
        noise: Noise {
            candidates: vec![0.0; candidates * b * chunk],
            next: vec![0.0; b * chunk],
            bc: vec![0.0; b * chunk],
            bc_time: vec![0.5; b],
        },
        dropout: critic.hidden.iter().map(bits).collect(),
        totals: Totals {
            samples: b,
            positives: 1,
            actors: b,
        },
    }
}
