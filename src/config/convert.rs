//! What the rest of the program makes of a configuration. No files are touched here.

use std::path::{Path, PathBuf};

use super::choices::{ExpertVariant, MemoryPreset, Moments, PaligemmaVariant, Part, QAggregation, Remat};
use super::error::ConfigError;
use super::schedule::Schedule;
use super::schema::{Config, DimsOverride, Optimizer};
use crate::data::aloha::{ALOHA_DELTAS, ALOHA_DIM};
use crate::data::transforms::mask;
use crate::data::{CameraSpec, DataSpec, NormKind, Place, PromptSource};
use crate::model::dims::{Adapters, CAMERAS, CriticDims, Lora, PATCH, Pi0Dims, StackDims};
use crate::model::freeze::Freeze;
use crate::model::params::Room;

/// Rows of the shipped tokenizer, `assets/tokenizer/tiny_paligemma.model`.
const TINY_VOCAB: usize = 600;

impl Config {
    /// The sizes of π₀: the variants', under `[model.dims]`.
    pub fn pi0_dims(&self) -> Pi0Dims {
        let m = &self.model;
        let mut dims = match m.paligemma_variant {
            PaligemmaVariant::Gemma2b | PaligemmaVariant::Gemma2bLora => Pi0Dims::full(m.action_horizon, m.pi05),
            PaligemmaVariant::Tiny | PaligemmaVariant::TinyLora => tiny(m.action_horizon, m.pi05),
        };
        dims.expert = match m.action_expert_variant {
            ExpertVariant::Gemma300m | ExpertVariant::Gemma300mLora => Pi0Dims::full(m.action_horizon, m.pi05).expert,
            ExpertVariant::Tiny | ExpertVariant::TinyLora => tiny(m.action_horizon, m.pi05).expert,
        };
        dims.image_size = m.image_size;
        dims.action_dim = m.action_dim;
        dims.max_token_len = m.max_token_len.unwrap_or(dims.max_token_len);
        let sizes = [
            &mut dims.vision.width,
            &mut dims.vision.mlp,
            &mut dims.vision_depth,
            &mut dims.vision_heads,
            &mut dims.language.width,
            &mut dims.language.mlp,
            &mut dims.expert.width,
            &mut dims.expert.mlp,
            &mut dims.depth,
            &mut dims.heads,
            &mut dims.kv_heads,
            &mut dims.head_dim,
            &mut dims.vocab,
        ];
        for (size, (_, wanted)) in sizes.into_iter().zip(m.dims.sizes()) {
            *size = wanted.unwrap_or(*size);
        }
        if let Some(cameras) = &m.dims.cameras {
            dims.cameras.clone_from(cameras);
        }
        let lora = |own: Option<usize>, rank: Option<usize>, alpha: Option<f64>| {
            own.map(|own| {
                let rank = rank.unwrap_or(own);
                Lora {
                    rank,
                    alpha: alpha.unwrap_or(rank as f64),
                }
            })
        };
        let language = match m.paligemma_variant {
            PaligemmaVariant::Gemma2bLora => Some(16),
            PaligemmaVariant::TinyLora => Some(2),
            PaligemmaVariant::Gemma2b | PaligemmaVariant::Tiny => None,
        };
        let expert = match m.action_expert_variant {
            ExpertVariant::Gemma300mLora => Some(32),
            ExpertVariant::TinyLora => Some(4),
            ExpertVariant::Gemma300m | ExpertVariant::Tiny => None,
        };
        dims.lora = Adapters {
            language: lora(language, m.lora.language_rank, m.lora.language_alpha),
            expert: lora(expert, m.lora.expert_rank, m.lora.expert_alpha),
        };
        dims
    }

    /// What does not learn: under adapters what they are for, then the parts, then the filters.
    pub fn freeze(&self) -> Freeze {
        let mut freeze = Freeze::under(self.pi0_dims().lora);
        for part in &self.acrlpd.freeze {
            freeze = freeze.room(match part {
                Part::Vision => Room::Vision,
                Part::Language => Room::Language,
                Part::Expert => Room::Expert,
            });
        }
        let filters = self.acrlpd.freeze_filter.iter();
        filters.fold(freeze, |freeze, pattern| freeze.names(pattern))
    }

    /// The sizes of the critic ensemble.
    pub fn critic_dims(&self) -> CriticDims {
        CriticDims {
            critics: self.acrlpd.num_critics,
            hidden: self.acrlpd.critic_hidden_dims.clone(),
            network: self.acrlpd.critic_network,
            // Embedded tokens and language hidden states have the same width.
            feature_width: self.pi0_dims().language.width,
            real_action_dim: self.qchunking.action_dim,
            action_horizon: self.model.action_horizon,
        }
    }

    /// How the dataset becomes batches.
    pub fn data_spec(&self) -> DataSpec {
        let (dims, d, q) = (self.pi0_dims(), &self.data, &self.qchunking);
        let camera = |model: String| CameraSpec {
            dataset: d.cameras.get(&model).cloned(),
            model,
        };
        DataSpec {
            image_size: dims.image_size,
            action_dim: dims.action_dim,
            token_len: dims.max_token_len,
            cameras: dims.cameras.into_iter().map(camera).collect(),
            state_key: d.state_key.clone(),
            action_key: d.action_key.clone(),
            real_action_dim: q.action_dim,
            horizon: self.model.action_horizon,
            discount: self.acrlpd.discount,
            boundary: q.boundary,
            episode_end: q.episode_end,
            reward_mode: q.reward_mode,
            terminal_reward: q.terminal_reward as f32,
            reward_scale: q.reward_scale as f32,
            default_success: d.default_success,
            transforms: d.transforms.clone(),
            delta_mask: d.use_delta_joint_actions.then(|| match &d.delta_mask {
                Some(runs) => mask(runs, q.action_dim),
                None => delta_mask(q.action_dim),
            }),
            norm: d.norm.unwrap_or(if self.model.pi05 {
                NormKind::Quantile
            } else {
                NormKind::ZScore
            }),
            prompt: match (d.prompt_from_task, &d.default_prompt) {
                (false, Some(text)) => PromptSource::Text(text.clone()),
                (true, Some(text)) => PromptSource::TaskOr(text.clone()),
                (_, None) => PromptSource::Task,
            },
            state_in_prompt: self.model.pi05,
        }
    }

    /// Learning rate of π₀.
    pub fn actor_schedule(&self) -> Schedule {
        schedule(self.acrlpd.actor_lr, &self.optimizer.actor)
    }

    /// Learning rate of the critics.
    pub fn critic_schedule(&self) -> Schedule {
        schedule(self.acrlpd.critic_lr, &self.optimizer.critic)
    }

    /// Micro-batches of an optimizer step.
    pub fn accumulation(&self) -> usize {
        if self.acrlpd.enable_gradient_accumulation {
            self.acrlpd.gradient_accumulation_steps
        } else {
            1
        }
    }

    /// Samples of a micro-batch.
    pub fn micro_batch(&self) -> usize {
        self.batch_size / self.accumulation().max(1)
    }

    /// How the actor loss makes one value of an ensemble's.
    pub fn actor_q_aggregation(&self) -> QAggregation {
        self.acrlpd.actor_q_aggregation.unwrap_or(self.acrlpd.q_aggregation)
    }

    /// What backward recomputes.
    pub fn remat(&self) -> Remat {
        self.memory.remat.unwrap_or(match self.memory.preset {
            MemoryPreset::Exact => Remat::None,
            MemoryPreset::Tight => Remat::Mlp,
        })
    }

    /// Is π₀'s weight average kept in the host's memory?
    pub fn ema_on_host(&self) -> bool {
        let tight = self.memory.preset == MemoryPreset::Tight;
        self.memory.ema_on_host.unwrap_or(tight)
    }

    /// How π₀'s optimizer moments are kept.
    pub fn moments(&self) -> Moments {
        self.memory.moments.unwrap_or(match self.memory.preset {
            MemoryPreset::Exact => Moments::Float32,
            MemoryPreset::Tight => Moments::Blockwise8,
        })
    }

    /// What an unset key of `[memory]` is, as TOML; `None` for any other key.
    pub(super) fn by_preset(&self, key: &str) -> Option<String> {
        match key {
            "memory.remat" => Some(format!("\"{}\"", self.remat())),
            "memory.ema_on_host" => Some(self.ema_on_host().to_string()),
            "memory.moments" => Some(format!("\"{}\"", self.moments())),
            _ => None,
        }
    }

    /// Weights of the ensemble's members in [`QAggregation::Weighted`], `[E]`, summing to one.
    pub fn q_weights(&self) -> Vec<f64> {
        let members = self.acrlpd.num_critics;
        let weights = self.acrlpd.q_aggregation_weights.clone();
        let weights = weights.unwrap_or_else(|| vec![1.0; members]);
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect()
    }

    /// The share of successes in a batch; `None`: as they come.
    pub fn positive_batch_ratio(&self) -> Option<f64> {
        self.acrlpd
            .enable_batch_ratio_control
            .then_some(self.acrlpd.positive_batch_ratio)
    }

    /// Folder of a run's checkpoints: `checkpoint_dir/name/exp_name`.
    pub fn run_dir(&self, exp_name: &str) -> PathBuf {
        self.checkpoint_dir.join(&self.name).join(exp_name)
    }

    /// Where the datasets are, at least one.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] says how to give one.
    pub fn datasets(&self) -> Result<Vec<Place>, ConfigError> {
        let fix =
            "give the folder or the public name of a LeRobot dataset with --data, or in data.path or data.repo_id";
        let first = match (&self.data.path, &self.data.repo_id) {
            (Some(path), _) => Place::Folder(path.clone()),
            (None, Some(name)) => Place::Name(name.clone()),
            (None, None) => return Err(self.missing("data.path", fix.into())),
        };
        Ok(std::iter::once(first)
            .chain(self.data.mix.iter().map(|text| Place::of(text)))
            .collect())
    }

    /// The tokenizer, of either form.
    ///
    /// # Errors
    /// [`ConfigError::Missing`] says how to give one.
    pub fn tokenizer_path(&self) -> Result<&Path, ConfigError> {
        let fix = "set it to the path of PaliGemma's `paligemma_tokenizer.model` or `tokenizer.json`";
        self.data
            .tokenizer
            .as_deref()
            .ok_or_else(|| self.missing("data.tokenizer", fix.into()))
    }

    fn missing(&self, key: &'static str, fix: String) -> ConfigError {
        let name = self.name.clone();
        ConfigError::Missing { name, key, fix }
    }
}

impl DimsOverride {
    /// Every size with its key.
    pub(super) fn sizes(&self) -> [(&'static str, Option<usize>); 13] {
        [
            ("model.dims.vision_width", self.vision_width),
            ("model.dims.vision_mlp", self.vision_mlp),
            ("model.dims.vision_depth", self.vision_depth),
            ("model.dims.vision_heads", self.vision_heads),
            ("model.dims.language_width", self.language_width),
            ("model.dims.language_mlp", self.language_mlp),
            ("model.dims.expert_width", self.expert_width),
            ("model.dims.expert_mlp", self.expert_mlp),
            ("model.dims.depth", self.depth),
            ("model.dims.heads", self.heads),
            ("model.dims.kv_heads", self.kv_heads),
            ("model.dims.head_dim", self.head_dim),
            ("model.dims.vocab", self.vocab),
        ]
    }
}

/// The sizes of the golden fixtures' π₀ with the vocabulary of the shipped tokenizer.
fn tiny(action_horizon: usize, pi05: bool) -> Pi0Dims {
    Pi0Dims {
        patch: PATCH,
        image_size: 56,
        vision: StackDims { width: 32, mlp: 96 },
        vision_depth: 2,
        vision_heads: 2,
        language: StackDims { width: 64, mlp: 128 },
        expert: StackDims { width: 32, mlp: 96 },
        depth: 4,
        heads: 8,
        kv_heads: 1,
        head_dim: 16,
        vocab: TINY_VOCAB,
        max_token_len: if pi05 { 200 } else { 48 },
        cameras: CAMERAS.map(String::from).to_vec(),
        action_dim: 32,
        action_horizon,
        pi05,
        lora: Adapters::default(),
    }
}

/// ALOHA has a gripper at the end of each arm; any other robot one at the end (openpi's libero and DROID policies).
fn delta_mask(action_dim: usize) -> Vec<bool> {
    if action_dim == ALOHA_DIM {
        mask(&ALOHA_DELTAS, action_dim)
    } else {
        vec![true; action_dim.saturating_sub(1)]
    }
}

fn schedule(peak: f64, group: &Optimizer) -> Schedule {
    Schedule {
        peak,
        end: peak * group.lr_min_factor,
        warmup: group.warmup_steps,
        decay: group.decay_steps,
    }
}
