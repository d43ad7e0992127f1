//! A trained policy in front of a dataset, for commands that look at what it does.

use std::path::PathBuf;

use acrlpd::checkpoint::{self, state};
use acrlpd::config::Config;
use acrlpd::data::NormStats;
use acrlpd::gpu::Gpu;
use acrlpd::step::Learner;
use acrlpd::train::setup::{self, Source};
use acrlpd::train::snapshot;

use super::flags::DeviceFlag;

/// Which policy, and in front of what.
#[derive(clap::Args, Clone, Debug)]
pub struct PolicyFlags {
    /// A checkpoint (…/STEP), or a run's folder (its newest).
    #[arg(long, value_name = "DIR")]
    pub checkpoint: PathBuf,
    /// Folder of a LeRobot dataset; without it, the one trained on.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Use the averaged weights.
    #[arg(long)]
    pub ema: bool,
    #[command(flatten)]
    pub device: DeviceFlag,
}

/// A policy, ready to act.
pub struct Policy {
    pub folder: PathBuf,
    /// Optimizer steps it has seen.
    pub step: u64,
    pub config: Config,
    pub source: Source,
    pub learner: Learner,
}

impl PolicyFlags {
    /// Opens checkpoint, dataset and device, and restores the policy.
    pub fn open(&self) -> anyhow::Result<Policy> {
        let folder = checkpoint::resolve(&self.checkpoint)?;
        let saved = checkpoint::open(&folder)?;
        let mut config = Config::parse(&saved.config()?, folder.join(state::CONFIG))?;
        if let Some(data) = &self.data {
            config.set("data.path", &data.display().to_string())?;
        }
        let stats = NormStats::read(saved.file(state::NORM_STATS)?)?;
        let source = Source::open(&config, Some(stats), |_, _| ())?;
        let ema = match self.ema {
            true => Some(saved.tensors(state::EMA)?),
            false => None,
        };
        if let Some(ema) = &ema {
            snapshot::check(&config.pi0_dims(), ema)?;
        }
        let gpu = Gpu::open(self.device.choice())?;
        let learner = setup::learner_for(&gpu, &config, &saved)?;
        snapshot::restore(&learner, &saved)?;
        if let Some(ema) = &ema {
            snapshot::load(&learner, ema, |_, _| ())?;
        }
        Ok(Policy {
            step: saved.state().step,
            folder,
            config,
            source,
            learner,
        })
    }
}

impl Policy {
    /// `n` frames (all, if `n` is 0), evenly spread over those of `episodes` that may start a chunk.
    pub fn spread(&self, episodes: &[usize], n: usize) -> Vec<usize> {
        let starts = self.source.builder.starts();
        let chosen = starts.iter().filter(|s| episodes.contains(&s.episode));
        let all: Vec<usize> = chosen.flat_map(|s| s.first..s.first + s.count).collect();
        let n = if n == 0 { all.len() } else { n.min(all.len()) };
        (0..n).map(|i| all[i * all.len() / n]).collect()
    }
}
