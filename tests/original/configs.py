"""A stand-in for the original's configurations: the same classes, fields and defaults."""

import dataclasses
from typing import Any, Tuple


@dataclasses.dataclass(frozen=True)
class Pi0Config:
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = 48
    dtype: str = "bfloat16"
    paligemma_variant: str = "gemma_2b"
    action_expert_variant: str = "gemma_300m"
    pi05: bool = False
    discrete_state_input: Any = None


@dataclasses.dataclass(frozen=True)
class AssetsConfig:
    assets_dir: Any = None
    asset_id: Any = None


@dataclasses.dataclass(frozen=True)
class RepackTransform:
    structure: dict


@dataclasses.dataclass(frozen=True)
class Group:
    inputs: Tuple = ()
    outputs: Tuple = ()


@dataclasses.dataclass(frozen=True)
class DataConfig:
    repo_id: Any = None
    asset_id: Any = None
    norm_stats: Any = None
    repack_transforms: Group = Group()
    data_transforms: Group = Group()
    model_transforms: Group = Group()
    use_quantile_norm: bool = False
    action_sequence_keys: Tuple[str, ...] = ("actions",)
    prompt_from_task: bool = False


ALOHA = Group(
    inputs=(
        RepackTransform(
            {
                "images": {
                    "cam_high": "observation.images.top",
                    "cam_left_wrist": "observation.images.cam_left_wrist",
                },
                "state": "observation.state",
                "actions": "action",
                "reward": "reward",
            }
        ),
    )
)


@dataclasses.dataclass(frozen=True)
class LeRobotAlohaDataConfig:
    repo_id: str = ""
    assets: AssetsConfig = AssetsConfig()
    base_config: Any = None
    use_delta_joint_actions: bool = True
    default_prompt: Any = None
    adapt_to_pi: bool = True
    repack_transforms: Group = ALOHA
    action_sequence_keys: Tuple[str, ...] = ("action",)


@dataclasses.dataclass(frozen=True)
class AdamW:
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-10
    clip_gradient_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class CosineDecaySchedule:
    warmup_steps: int = 1_000
    peak_lr: float = 2.5e-5
    decay_steps: int = 30_000
    decay_lr: float = 2.5e-6


@dataclasses.dataclass(frozen=True)
class CheckpointWeightLoader:
    params_path: str = "gs://openpi-assets/checkpoints/pi0_base/params"


@dataclasses.dataclass(frozen=True)
class ACRLPDHyperparams:
    discount: float = 0.99
    target_update_rate: float = 0.005
    critic_lr: float = 3e-4
    critic_hidden_dims: Tuple[int, ...] = (256, 256, 256)
    num_critics: int = 2
    actor_lr: float = 1e-4
    actor_update_freq: int = 2
    num_action_samples: int = 32
    action_sampling_temperature: float = 1.0
    bc_loss_weight: float = 0.1
    chunk_length: int = 5
    bootstrap_length: int = 5
    batch_size: int = 256
    utd_ratio: int = 1
    q_aggregation: str = "min"
    target_update_tau: float = 0.005
    use_ema: bool = True
    pi0_ema_decay: float = 0.999
    critic_ema_decay: float = 0.99
    use_ema_for_inference: bool = True
    diffusion_steps: int = 10
    use_best_of_n: bool = True
    use_adaptive_temperature: bool = True
    target_entropy_multiplier: float = 0.5
    eval_frequency: int = 10000
    save_frequency: int = 50000
    gradient_accumulation_steps: int = 4
    max_grad_norm: float = 1.0
    enable_gradient_accumulation: bool = True
    positive_episode_ratio: float = 0.4
    enable_reward_balanced_episodes: bool = True
    positive_batch_ratio: float = 0.5
    enable_batch_ratio_control: bool = True
    enable_epoch_based_lr_schedule: bool = False
    lr_decay_strategy: str = "cosine"
    lr_decay_factor: float = 0.95
    lr_min_factor: float = 0.1
    warmup_epochs: int = 2
    total_epochs: int = 100
    intra_epoch_lr_decay: bool = True
    intra_epoch_strategy: str = "cosine"
    steps_per_epoch: int = 10000
    intra_epoch_min_factor: float = 0.9
    lr_absolute_min: float = 1e-7


@dataclasses.dataclass(frozen=True)
class QChunkingConfig:
    horizon_length: int = 5
    action_dim: int = 14
    discount: float = 0.99
    reward_scale: float = 1.0
    use_sparse_rewards: bool = True
    terminal_reward: float = 1.0
    bootstrap_type: str = "standard"
    mask_invalid_actions: bool = True
    pad_episodes: bool = True
    episode_timeout_penalty: float = 0.0


def nothing(path, value):
    """A filter, which JSON cannot say."""
    return False


@dataclasses.dataclass(frozen=True)
class RLTrainConfig:
    name: str
    project_name: str = "openpi"
    exp_name: str = "unnamed"
    model: Pi0Config = Pi0Config()
    weight_loader: CheckpointWeightLoader = CheckpointWeightLoader()
    lr_schedule: CosineDecaySchedule = CosineDecaySchedule()
    optimizer: AdamW = AdamW()
    ema_decay: Any = 0.99
    freeze_filter: Any = nothing
    data: LeRobotAlohaDataConfig = LeRobotAlohaDataConfig()
    assets_base_dir: str = "./assets"
    checkpoint_base_dir: str = "./checkpoints"
    seed: int = 42
    batch_size: int = 32
    num_workers: int = 2
    num_train_steps: int = 30_000
    log_interval: int = 100
    save_interval: int = 1000
    keep_period: Any = 5000
    overwrite: bool = False
    resume: bool = False
    wandb_enabled: bool = True
    policy_metadata: Any = None
    fsdp_devices: int = 1
    acrlpd: ACRLPDHyperparams = ACRLPDHyperparams()
    qchunking: QChunkingConfig = QChunkingConfig()
    episodes_per_memory_pool: int = 32
    async_loading_enabled: bool = True
    async_trigger_ratio: float = 0.6
    enable_perf_analysis: bool = False
    critic_optimizer: AdamW = AdamW(weight_decay=1e-5)
    actor_optimizer: AdamW = AdamW(weight_decay=1e-6)
    critic_lr_schedule: CosineDecaySchedule = CosineDecaySchedule(20_000, 3e-4, 200_000)
    actor_lr_schedule: CosineDecaySchedule = CosineDecaySchedule(20_000, 1e-4, 200_000)
    pi0_weight_loader: CheckpointWeightLoader = CheckpointWeightLoader()


FOLD_BOX = RLTrainConfig(
    name="rl_fold_box",
    project_name="acrlpd_pi0_fold_box",
    model=Pi0Config(action_horizon=20),
    data=LeRobotAlohaDataConfig(
        repo_id="fold_box_unified",
        default_prompt="fold the box",
        adapt_to_pi=False,
        assets=AssetsConfig(asset_id="aloha_fold_box"),
        base_config=DataConfig(prompt_from_task=False),
    ),
    num_train_steps=20_000,
    log_interval=2,
    acrlpd=ACRLPDHyperparams(
        critic_lr=3e-5,
        critic_hidden_dims=(512, 512, 512),
        num_critics=6,
        actor_lr=1e-5,
        num_action_samples=4,
        bc_loss_weight=200,
        chunk_length=20,
        bootstrap_length=20,
        batch_size=32,
        use_adaptive_temperature=False,
        save_frequency=1000,
        max_grad_norm=0.1,
        steps_per_epoch=200,
    ),
    qchunking=QChunkingConfig(horizon_length=20),
)

# Contradicts itself: chunks of 5 steps against 50 that the model predicts.
CONFIGS = [RLTrainConfig(name="rl_aloha_fold", data=LeRobotAlohaDataConfig(default_prompt="fold", adapt_to_pi=False))]
