//! Flags that several commands share.

use acrlpd::config::{Config, Override, What};
use acrlpd::data::Place;
use acrlpd::gpu::{DType, DeviceChoice};
use clap::Args;

/// A flag, the key it sets, and the value if it was given.
pub type Given = (&'static str, &'static str, Option<String>);

/// Which configuration, and what is different about it.
#[derive(Args, Clone, Debug)]
pub struct ConfigFlags {
    /// Preset (debug, rl_fold_box, rl_aloha_fold, rl_libero, rl_libero_lora, rl_droid), or a .toml or .json file.
    #[arg(long, value_name = "NAME|FILE")]
    pub config: String,
    #[command(flatten)]
    pub changes: Changes,
}

/// What is different from a configuration.
#[derive(Args, Clone, Debug)]
pub struct Changes {
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
    /// Folder of the LeRobot dataset, or its public name (lerobot/aloha_sim_insertion_human).
    #[arg(long, value_name = "DIR|NAME")]
    pub data: Option<String>,
    /// Any key of the configuration; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigFlags {
    /// The configuration with the flags on top of it, and `more` below `--set`.
    pub fn load(&self, more: &[Given]) -> anyhow::Result<Config> {
        self.changes.load(&self.config, more)
    }
}

impl Changes {
    /// The configuration `name` with these flags on top of it, and `more` below `--set`.
    pub fn load(&self, name: &str, more: &[Given]) -> anyhow::Result<Config> {
        // A name must not be taken for the folder that the configuration, or one below it, gives.
        let (data, repo_id) = match self.data.as_deref().map(Place::of) {
            None => (None, None),
            Some(Place::Folder(folder)) => (Some(folder.display().to_string()), None),
            Some(Place::Name(repo_id)) => (Some(String::new()), Some(repo_id)),
        };
        let flags = [
            ("--max-steps", "num_train_steps", self.max_steps.clone()),
            ("--batch-size", "batch_size", self.batch_size.clone()),
            (
                "--grad-accum",
                "acrlpd.gradient_accumulation_steps",
                self.grad_accum.clone(),
            ),
            ("--pi0-lr", "acrlpd.actor_lr", self.pi0_lr.clone()),
            ("--critic-lr", "acrlpd.critic_lr", self.critic_lr.clone()),
            ("--seed", "seed", self.seed.clone()),
            ("--data", "data.path", data),
            ("--data", "data.repo_id", repo_id),
        ];
        let given = |(flag, key, value): &Given| {
            let (key, value) = ((*key).to_owned(), value.clone()?);
            Some(Override { flag, key, value })
        };
        let mut overrides: Vec<Override> = flags.iter().chain(more).filter_map(given).collect();
        for text in &self.set {
            let Some((key, value)) = text.split_once('=') else {
                anyhow::bail!("--set {text} has no `=`; write --set key.path=value, e.g. --set acrlpd.discount=0.98");
            };
            overrides.push(Override {
                flag: "--set",
                key: key.trim().into(),
                value: value.trim().into(),
            });
        }
        let config = Config::load_over(name, &overrides)?;
        tell(&config);
        Ok(config)
    }
}

/// Tells which names of the original the files have.
fn tell(config: &Config) {
    let (mut other_names, mut ignored) = (Vec::new(), Vec::new());
    for note in config.notes() {
        match &note.what {
            What::Means(key) => other_names.push(format!("{} is {key}", note.key)),
            What::Ignored { .. } => ignored.push(note.key.as_str()),
        }
    }
    if !other_names.is_empty() {
        tracing::info!("other names in the configuration: {}", other_names.join(", "));
    }
    if !ignored.is_empty() {
        let keys = ignored.join(", ");
        tracing::info!("ignored in the configuration, `acrlpd config show` says why: {keys}");
    }
}

/// Which device.
#[derive(Args, Clone, Copy, Debug)]
pub struct DeviceFlag {
    /// auto, cuda, vulkan, metal or dx12, with an index if there are several (cuda:1); emulated:90: CUDA on the CPU.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Compile CUDA kernels anew, and keep none for the next start.
    #[arg(long)]
    no_kernel_cache: bool,
}

impl DeviceFlag {
    /// The device to open; how its kernels are cached is settled with it.
    pub fn choice(&self) -> DeviceChoice {
        if self.no_kernel_cache {
            acrlpd::gpu::without_kernel_cache();
        }
        self.device
    }
}

/// A type that models are stored in.
pub fn storage(text: &str) -> Result<DType, String> {
    match text {
        "float32" | "f32" => Ok(DType::F32),
        "bfloat16" | "bf16" => Ok(DType::Bf16),
        "float16" | "f16" => Ok(DType::F16),
        _ => Err(format!(
            "`{text}` is no type a model is stored in; use float32, bfloat16 or float16"
        )),
    }
}

/// How much of the device.
#[derive(Args, Clone, Debug)]
pub struct MemoryFlag {
    /// Memory of the device, e.g. 80GB, where it is to be taken for smaller than it is, or cannot be asked.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub device_memory: Option<f64>,
    /// Share of the device's memory that the step may need; without it that of ACRLPD_MEMORY_FRACTION, else 0.9.
    #[arg(long, value_name = "SHARE")]
    pub memory_fraction: Option<String>,
}

impl MemoryFlag {
    /// Memory of the device in bytes, where the flag says.
    pub fn device_memory(&self) -> Option<u64> {
        self.device_memory.map(|bytes| bytes as u64)
    }

    /// The share, in (0, 1].
    pub fn share(&self) -> anyhow::Result<f64> {
        let variable = "ACRLPD_MEMORY_FRACTION";
        let (from, text) = match (&self.memory_fraction, std::env::var_os(variable)) {
            (Some(text), _) => ("--memory-fraction", text.clone()),
            (None, Some(text)) => (variable, text.to_string_lossy().into_owned()),
            (None, None) => return Ok(0.9),
        };
        match text.trim().parse() {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
            _ => anyhow::bail!(
                "{from} {text:?} is not a share of the device's memory; give a number in (0, 1], e.g. 0.9"
            ),
        }
    }
}

/// `80GB` as bytes; units are powers of 1000 (GB) or 1024 (GiB).
pub fn size(text: &str) -> Result<f64, String> {
    let split = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return Err(format!("`{unit}` is not a unit of memory; use e.g. 80GB or 24GiB")),
    };
    match number.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n.is_finite() => Ok(n * scale),
        _ => Err(format!("`{text}` is not a size; use e.g. 80GB or 24GiB")),
    }
}
