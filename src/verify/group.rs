//! A training group as something that can be run: sizes, hyperparameters, weights, batches.

use std::ops::Range;

use super::inputs::{self, size, text};
use super::{Fixture, Result};
use crate::gpu::{DType, Gpu};
use crate::model::dims::{CriticDims, Pi0Dims};
use crate::model::freeze::Freeze;
use crate::model::layout::ObservationMasks;
use crate::model::params::ParamStore;
use crate::model::remat::Remat;
use crate::ops::adamw::AdamW;
use crate::ops::blockwise::Format;
use crate::ops::ensemble::Aggregate;
use crate::ops::td::TdLoss;
use crate::step::batch::{MicroBatch, Noise, Observations, Pictures, Totals};
use crate::step::config::{Features, GroupConfig, LossWeights, Objective, StepConfig, TemperatureConfig};
use crate::step::learner::Learner;

/// A training group: `weights:`, `critic:`, `batches:` and the `dims` and `hyper` of its description.
pub struct TrainingGroup {
    pub f: Fixture,
    pub dims: Pi0Dims,
    pub critic_dims: CriticDims,
    /// Samples of a batch, and candidates of a sample.
    pub batch: usize,
    pub candidates: usize,
}

impl TrainingGroup {
    /// Reads the description of an open group.
    pub fn new(f: Fixture) -> Result<TrainingGroup> {
        Ok(TrainingGroup {
            dims: inputs::policy_dims(&f)?,
            critic_dims: inputs::critic_dims(&f)?,
            batch: size(&f, "/batch")?,
            candidates: size(&f, "/candidates")?,
            f,
        })
    }

    /// A number of `hyper`.
    pub fn hyper(&self, key: &str) -> Result<f64> {
        self.f.number(&format!("/hyper/{key}"))
    }

    fn rule(&self, key: &str) -> Result<Aggregate> {
        match text(&self.f, &format!("/hyper/{key}"))? {
            "min" => Ok(Aggregate::Min),
            "mean" => Ok(Aggregate::Mean),
            other => Err(self
                .f
                .broken(format!("hyper.{key} is {other:?}; min and mean are known"))),
        }
    }

    pub(super) fn td_loss(&self, name: &str) -> Result<TdLoss> {
        match name {
            "mse" => Ok(TdLoss::Square),
            "huber" => Ok(TdLoss::Huber(self.hyper("huber_delta")? as f32)),
            other => Err(self.f.broken(format!("critic loss {other:?}; mse and huber are known"))),
        }
    }

    /// The step as `hyper` describes it; nothing is left out of it.
    pub fn config(&self) -> Result<StepConfig> {
        let h = |key: &str| self.hyper(key).map(|v| v as f32);
        let group = |decay: &str| -> Result<GroupConfig> {
            let adam = AdamW {
                beta1: h("beta1")?,
                beta2: h("beta2")?,
                eps: h("eps")?,
                weight_decay: h(decay)?,
            };
            Ok(GroupConfig {
                optimizer: adam.into(),
                clip: h("clip_norm")?,
            })
        };
        let pi0 = group("pi0_weight_decay")?;
        let target_entropy = -h("target_entropy_multiplier")? * self.dims.action_dim as f32;
        Ok(StepConfig {
            euler_steps: size(&self.f, "/hyper/euler_steps")?,
            candidates: self.candidates,
            objective: Objective::BestOfN,
            critic_loss: self.td_loss(text(&self.f, "/hyper/critic_loss")?)?,
            target_rule: self.rule("target_q_agg")?,
            actor_rule: self.rule("actor_q_agg")?,
            rule_weights: vec![1.0 / self.critic_dims.critics as f32; self.critic_dims.critics],
            weights: LossWeights {
                critic: h("critic_weight")?,
                actor: h("actor_weight")?,
                bc: h("bc_weight")?,
                smoothness: 0.0,
            },
            features: Features::Embedding,
            feature_grad: false,
            freeze: Freeze::NOTHING,
            remat: Remat::None,
            moments: Format::Float32,
            ema_on_host: false,
            separate_prefixes: false,
            skip_dead_rows: false,
            dropout: 0.0,
            temperature: Some(TemperatureConfig {
                target_entropy,
                group: pi0,
            }),
            pi0,
            critic: group("critic_weight_decay")?,
            target_rate: h("target_tau")?,
            ema_decay: Some(h("ema_decay")?),
            actor_update_freq: 1,
            dtype: DType::F32,
            prompt_rows: None,
            unused_on_host: false,
            f32_residual: false,
        })
    }

    /// A learner with the group's weights; targets and averages equal the online weights.
    pub fn learner(&self, gpu: &Gpu, config: StepConfig) -> Result<Learner> {
        let learner = Learner::new(gpu, config, self.dims.clone(), self.critic_dims.clone())?;
        let table = |store: &ParamStore| store.placement().table().clone();
        let mut pi0 = inputs::parameters(&self.f, "weights:", table(&learner.pi0.weights).tensors())?;
        let mut online = inputs::parameters(&self.f, "critic:online/", table(&learner.critic.weights).tensors())?;
        learner.load_pi0(|p| pi0.remove(&p.name));
        learner.load_critics(|p| online.remove(&p.name));
        Ok(learner)
    }

    /// Sets the target critics to the stored ones (training starts from the online critics), and the temperature.
    pub fn stored_targets(&self, learner: &Learner) -> Result<()> {
        let targets = learner.critic.average.as_ref().expect("critics have targets");
        let tensors = targets.placement().table().clone();
        let mut values = inputs::parameters(&self.f, "critic:target/", tensors.tensors())?;
        targets.write(&learner.gpu, |p| values.remove(&p.name));
        if let Some(t) = &learner.temperature {
            learner
                .gpu
                .write_f32(&t.log_alpha, &[self.f.number("/log_alpha")? as f32]);
        }
        Ok(())
    }

    /// Samples `range` of batch `step{n}`.
    pub fn micro(&self, n: usize, range: Range<usize>) -> Result<MicroBatch> {
        let f = &self.f;
        let key = |name: &str| format!("batches:step{n}/{name}");
        let chunk = self.dims.action_horizon * self.dims.action_dim;
        let part = |name: &str, width: usize| -> Result<Vec<f32>> {
            let values = f.f32(&key(name))?;
            if values.len() != self.batch * width {
                return Err(f.broken(format!("{} should have {} elements", key(name), self.batch * width)));
            }
            Ok(values[range.start * width..range.end * width].to_vec())
        };
        let h = self.dims.action_horizon;
        let valid = part("valid", h)?;
        let chunk_valid: Vec<f32> = valid.chunks(h).map(|v| v[h - 1]).collect();
        let power = self.hyper("discount")?.powi(h as i32) as f32;
        let positive = f.bool(&key("positive"))?;
        let candidates = f.f32(&key("cand_noise"))?;
        if candidates.len() != self.candidates * self.batch * chunk || positive.len() != self.batch {
            return Err(f.broken(format!(
                "{} or positive does not fit batch and candidates",
                key("cand_noise")
            )));
        }
        let of_candidate = |n: usize| {
            let first = n * self.batch;
            candidates[(first + range.start) * chunk..(first + range.end) * chunk].to_vec()
        };
        let picked = |prefix: &str| -> Result<_> {
            let all = inputs::observations(f, &key(prefix), &self.dims)?;
            if all.masks.len() != self.batch {
                let have = all.masks.len();
                return Err(f.broken(format!("{} has {have} samples, not {}", key(prefix), self.batch)));
            }
            Ok(pick(all, &self.dims, range.clone()))
        };
        Ok(MicroBatch {
            current: picked("obs/")?,
            next: picked("next_obs/")?,
            next_is: vec![None; range.len()],
            actions: part("actions", chunk)?,
            action_valid: valid,
            reward: part("rewards", 1)?,
            discount: part("masks", 1)?.into_iter().map(|m| m * power).collect(),
            chunk_valid,
            positive: positive[range.clone()].to_vec(),
            noise: Noise {
                candidates: (0..self.candidates).flat_map(of_candidate).collect(),
                next: part("next_noise", chunk)?,
                bc: part("bc_noise", chunk)?,
                bc_time: part("bc_time", 1)?.into_iter().map(|t| t as f64).collect(),
            },
            dropout: Vec::new(),
            totals: self.totals(n)?,
        })
    }

    fn totals(&self, n: usize) -> Result<Totals> {
        let positive = self.f.bool(&format!("batches:step{n}/positive"))?;
        let positives = positive.iter().filter(|p| **p).count();
        // The reference draws candidates for every sample, whatever its weight.
        Ok(Totals {
            samples: self.batch,
            positives,
            actors: self.batch,
        })
    }
}

/// Observations of samples `range` only.
fn pick(all: Observations, d: &Pi0Dims, range: Range<usize>) -> Observations {
    let Pictures::Floats(values) = &all.pictures else {
        unreachable!("groups hold float pictures")
    };
    let area = d.image_size * d.image_size * 3;
    let mine = all
        .masks
        .pictures()
        .into_iter()
        .zip(values.chunks(area))
        .filter(|((b, _), _)| range.contains(b));
    Observations {
        pictures: Pictures::Floats(mine.flat_map(|(_, picture)| picture.to_vec()).collect()),
        masks: ObservationMasks {
            cameras: all.masks.cameras[range.clone()].to_vec(),
            prompts: all.masks.prompts[range.clone()].to_vec(),
        },
        state: all.state[range.start * d.action_dim..range.end * d.action_dim].to_vec(),
    }
}
