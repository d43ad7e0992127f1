//! The defaults: the original's values where it has the field.

use super::choices::*;
use super::layers::Origins;
use super::schema::*;
use crate::data::{Boundary, EpisodeEnd, Parts, RewardMode};
use crate::model::critic_networks::Network;
use crate::model::dims::CAMERAS;
use crate::ops::optimizers::Kind;

impl Default for Config {
    fn default() -> Config {
        Config {
            name: String::new(),
            batch_size: 128,
            num_train_steps: 100_000,
            log_interval: 100,
            save_interval: 5000,
            eval_interval: 10_000,
            seed: 42,
            keep_checkpoints: 5,
            save_memory_mb: 0,
            checkpoint_dir: "checkpoints".into(),
            project_name: "acrlpd".into(),
            wandb_enabled: true,
            model: Model::default(),
            acrlpd: Acrlpd::default(),
            qchunking: QChunking::default(),
            critic: Critic::default(),
            optimizer: Optimizers::default(),
            memory: Memory::default(),
            data: Data::default(),
            origins: Origins::default(),
        }
    }
}

impl Default for Model {
    fn default() -> Model {
        Model {
            paligemma_variant: PaligemmaVariant::Gemma2b,
            action_expert_variant: ExpertVariant::Gemma300m,
            action_dim: 32,
            action_horizon: 50,
            max_token_len: None,
            dtype: Precision::Bfloat16,
            residual_dtype: ResidualPrecision::Model,
            pi05: false,
            image_size: 224,
            weights: None,
            dims: DimsOverride::default(),
            lora: LoraOverride::default(),
        }
    }
}

impl Default for Acrlpd {
    fn default() -> Acrlpd {
        Acrlpd {
            discount: 0.99,
            target_update_rate: 0.005,
            chunk_length: None,
            critic_lr: 3e-4,
            critic_hidden_dims: vec![256; 3],
            critic_network: Network::Mlp,
            num_critics: 2,
            critic_loss: CriticLoss::Huber,
            huber_delta: 1.0,
            critic_loss_weight: 1.0,
            q_aggregation: QAggregation::Min,
            q_aggregation_weights: None,
            features: Features::Embedding,
            actor_lr: 1e-4,
            actor_update_freq: 2,
            num_action_samples: 32,
            action_sampling_temperature: 1.0,
            diffusion_steps: 10,
            actor_objective: ActorObjective::BestOfN,
            actor_q_aggregation: None,
            actor_loss_weight: 1.0,
            feature_grad: false,
            bc_loss_weight: 0.1,
            smoothness_weight: 0.0,
            use_ema: true,
            pi0_ema_decay: 0.999,
            use_adaptive_temperature: true,
            target_entropy_multiplier: 0.5,
            temperature_lr: 3e-4,
            gradient_accumulation_steps: 4,
            enable_gradient_accumulation: true,
            max_grad_norm: 1.0,
            positive_batch_ratio: 0.5,
            enable_batch_ratio_control: true,
            chain_batches: 1,
            separate_prefixes: false,
            freeze: Vec::new(),
            freeze_filter: Vec::new(),
        }
    }
}

impl Default for QChunking {
    fn default() -> QChunking {
        QChunking {
            action_dim: 14,
            reward_scale: 1.0,
            terminal_reward: 1.0,
            reward_mode: RewardMode::default(),
            boundary: Boundary::default(),
            episode_end: EpisodeEnd::default(),
        }
    }
}

impl Default for Critic {
    fn default() -> Critic {
        Critic { dropout_rate: 0.1 }
    }
}

impl Default for Optimizers {
    fn default() -> Optimizers {
        let critic = Optimizer {
            weight_decay: 1e-5,
            ..Optimizer::default()
        };
        Optimizers {
            actor: Optimizer::default(),
            critic,
        }
    }
}

impl Default for Optimizer {
    fn default() -> Optimizer {
        Optimizer {
            kind: Kind::AdamW,
            b1: 0.9,
            b2: 0.95,
            eps: 1e-8,
            weight_decay: 1e-6,
            warmup_steps: 2000,
            decay_steps: 200_000,
            lr_min_factor: 0.1,
        }
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory {
            preset: MemoryPreset::Exact,
            remat: None,
            ema_on_host: None,
            moments: None,
            prompt_states: PromptStates::Touched,
            prompt_rows: 1024,
        }
    }
}

impl Default for Data {
    fn default() -> Data {
        // An ALOHA robot recorded by lerobot, which the default qchunking.action_dim describes too.
        let features = ["cam_high", "cam_left_wrist", "cam_right_wrist"].map(|c| format!("observation.images.{c}"));
        Data {
            path: None,
            repo_id: None,
            mix: Vec::new(),
            mix_weights: Vec::new(),
            default_prompt: None,
            prompt_from_task: false,
            transforms: Vec::new(),
            use_delta_joint_actions: true,
            delta_mask: None,
            norm: None,
            norm_stats: None,
            tokenizer: None,
            state_key: Parts::feature("observation.state"),
            action_key: Parts::feature("action"),
            default_success: None,
            augment: true,
            augmentations: Vec::new(),
            loader_threads: 4,
            queue_depth: 4,
            eval_fraction: 0.05,
            cameras: CAMERAS.map(String::from).into_iter().zip(features).collect(),
        }
    }
}
