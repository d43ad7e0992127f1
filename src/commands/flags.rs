//! Flags that several commands share.

use std::path::PathBuf;

use acrlpd::config::{Config, ConfigError};
use acrlpd::gpu::DeviceChoice;
use clap::Args;

/// Which configuration, and what is different about it.
#[derive(Args, Clone, Debug)]
pub struct ConfigFlags {
    /// Preset (debug, rl_fold_box, rl_aloha_fold, rl_libero, rl_droid) or file.
    #[arg(long, value_name = "NAME|FILE")]
    pub config: String,
    /// Optimizer steps of the run.
    #[arg(long, value_name = "N")]
    pub max_steps: Option<String>,
    /// Samples of an optimizer step.
    #[arg(long, value_name = "N")]
    pub batch_size: Option<String>,
    /// Micro-batches of an optimizer step.
    #[arg(long, value_name = "N")]
    pub grad_accum: Option<String>,
    /// Peak learning rate of π₀.
    #[arg(long, value_name = "LR")]
    pub pi0_lr: Option<String>,
    /// Peak learning rate of the critics.
    #[arg(long, value_name = "LR")]
    pub critic_lr: Option<String>,
    /// Seed of everything random.
    #[arg(long, value_name = "N")]
    pub seed: Option<String>,
    /// Folder of the LeRobot dataset.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Any key of the configuration; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigFlags {
    /// The configuration with the flags on top of it, and `more` below `--set`.
    pub fn load(&self, more: &[(&str, Option<String>)]) -> anyhow::Result<Config> {
        let path = |p: &PathBuf| p.display().to_string();
        let flags = [
            ("num_train_steps", self.max_steps.clone()),
            ("batch_size", self.batch_size.clone()),
            ("acrlpd.gradient_accumulation_steps", self.grad_accum.clone()),
            ("acrlpd.actor_lr", self.pi0_lr.clone()),
            ("acrlpd.critic_lr", self.critic_lr.clone()),
            ("seed", self.seed.clone()),
            ("data.path", self.data.as_ref().map(path)),
        ];
        let given = flags.iter().chain(more);
        let mut overrides: Vec<(String, String)> = given
            .filter_map(|(key, value)| Some((key.to_string(), value.clone()?)))
            .collect();
        for text in &self.set {
            let Some((key, value)) = text.split_once('=') else {
                anyhow::bail!("--set {text} has no `=`; write --set key.path=value, e.g. --set acrlpd.discount=0.98");
            };
            overrides.push((key.trim().into(), value.trim().into()));
        }
        let loaded: Result<Config, ConfigError> = Config::load_with(&self.config, &overrides);
        Ok(loaded?)
    }
}

/// Which device.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceFlag {
    /// auto, cuda, vulkan, metal or dx12, with an index if there are several (cuda:1).
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
}
