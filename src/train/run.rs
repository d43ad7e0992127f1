//! A run from its options to its end: everything that must be right before the first step, in the order in which mistakes
//! are cheapest to find.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Result, TrainError};
use super::lock::Lock;
use super::metrics::{Log, Row};
use super::plan::{self, Plan, advice};
use super::setup::{self, Source};
use super::signals::{self, Stop};
use super::snapshot;
use super::steps::Run;
use crate::checkpoint::{self, Saved, Weights, state};
use crate::config::Config;
use crate::data::NormStats;
use crate::gpu::{DeviceChoice, Gpu, GpuError};
use crate::monitor::{Monitor, Setup};

/// Prompt tokens a memory plan counts with, at most: what fits into the model.
const PLANNED_TOKENS: usize = usize::MAX;

/// What to do about checkpoints that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Refuse to touch them.
    Fresh,
    /// Go on from the newest; start at zero if there is none.
    Resume,
    /// Delete them.
    Overwrite,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: Config,
    pub exp_name: String,
    pub start: Start,
    pub device: DeviceChoice,
    /// Memory of the device in bytes, where it is to be taken for smaller than it is, or the driver does not say.
    pub device_memory: Option<u64>,
    /// Share of the device's memory that may be planned for.
    pub memory_fraction: f64,
    /// Do everything up to and including the first step, and write nothing.
    pub dry_run: bool,
    /// Look at what every launch writes and wait for the device after each step, so that errors name where they happened.
    pub watch: bool,
    /// Time every launch of one step, for `phases.json`.
    pub profile: bool,
    /// When the program started, for the time to the first step.
    pub started: Instant,
}

/// What is known when the loop is about to begin.
pub struct Preparation<'a> {
    pub gpu: &'a Gpu,
    pub source: &'a Source,
    pub plan: &'a Plan,
    /// First and last step of this program, as counted from 0; `first` steps are done already.
    pub first: u64,
    pub end: u64,
    pub resumed_from: Option<&'a Path>,
    /// Where the weights came from; `None`: random.
    pub weights: Option<&'a Path>,
    pub run_dir: &'a Path,
}

/// Sees a run go by.
pub trait Observer {
    /// A part of the preparation begins.
    fn stage(&mut self, what: &str);
    /// Statistics are being computed: frames done, frames in all.
    fn statistics(&mut self, done: usize, all: usize);
    /// Weights are being loaded: parameters done, parameters in all.
    fn weights(&mut self, _done: usize, _all: usize) {}
    fn begin(&mut self, preparation: &Preparation<'_>);
    /// A step was issued; `done` are issued in all.
    fn step(&mut self, done: u64);
    fn row(&mut self, row: &Row);
    fn saved(&mut self, folder: &Path, took: Duration);
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Finish {
    pub first: u64,
    pub end: u64,
    pub elapsed: Duration,
    /// From the start of the program to the first numbers of a step.
    pub first_step: Option<Duration>,
    pub data_wait: Duration,
    pub launches_per_step: f64,
    pub peak_bytes: u64,
    pub skipped: u64,
    pub checkpoint: Option<PathBuf>,
    pub metrics: Option<PathBuf>,
    /// The signal that ended it early.
    pub signal: Option<i32>,
}

/// Trains until the configured step, a signal, or an error. Whatever ends it, the checkpoints on disk are whole.
///
/// # Errors
/// See [`TrainError`].
pub fn run(options: &Options, stop: &Stop, observer: &mut dyn Observer) -> Result<Finish> {
    let config = &options.config;
    let dir = config.run_dir(&options.exp_name);
    let mut lock = match dir.is_dir() && !options.dry_run {
        true => Some(Lock::take(&dir)?),
        false => None,
    };
    let saved = existing(&dir, options)?;
    if let Some(saved) = &saved {
        warn_of_changes(saved, config);
    }
    observer.stage("dataset");
    let stats = match &saved {
        Some(saved) => Some(NormStats::read(saved.file(state::NORM_STATS)?)?),
        None => None,
    };
    let source = Source::open(config, stats, |done, all| observer.statistics(done, all))?;
    let weights = match (&saved, &config.model.weights) {
        (None, Some(path)) => {
            let weights = Weights::open(path)?;
            snapshot::check(&config.pi0_dims(), &weights)?;
            Some(weights)
        }
        _ => None,
    };

    observer.stage("device");
    let gpu = Gpu::open(options.device)?;
    let with_room = source.with_room(config, saved.as_ref())?;
    let plan = plan::plan(&with_room, gpu.caps().clone(), PLANNED_TOKENS)?;
    reserve(&gpu, &plan, options)?;
    let learner = setup::learner(&gpu, &with_room)?;
    observer.stage("weights");
    match &saved {
        Some(saved) => snapshot::restore(&learner, saved)?,
        None => {
            learner.init(config.seed);
            if let Some(weights) = &weights {
                snapshot::load(&learner, weights, |done, all| observer.weights(done, all))?;
            }
        }
    }
    gpu.sync()?;

    let first = saved.as_ref().map_or(0, |s| s.state().step);
    let end = match options.dry_run {
        true => config.num_train_steps.min(first + 1),
        false => config.num_train_steps.max(first),
    };
    if lock.is_none() && !options.dry_run {
        lock = Some(Lock::take(&dir)?);
    }
    if options.start == Start::Overwrite && !options.dry_run && dir.is_dir() {
        checkpoint::discard(&dir)?;
    }
    let log = match options.dry_run {
        true => None,
        false => Some(Log::open(&dir, first)?),
    };
    let mut monitor = log.as_ref().filter(|_| first < end).map_or_else(Monitor::off, |log| {
        Monitor::open(&Setup {
            dir: &dir,
            metrics: log.path(),
            step: first,
            name: &options.exp_name,
            project: &config.project_name,
            wandb: config.wandb_enabled,
            config,
        })
    });
    observer.begin(&Preparation {
        gpu: &gpu,
        source: &source,
        plan: &plan,
        first,
        end,
        resumed_from: saved.as_ref().map(Saved::folder),
        weights: weights.as_ref().map(Weights::path),
        run_dir: &dir,
    });
    let finish = source.feed(config, first, end).and_then(|feed| {
        let run = Run::new(
            options,
            &source,
            &dir,
            &learner,
            feed,
            log,
            &mut monitor,
            saved.as_ref(),
            observer,
        );
        run.steps(first, end, stop)
    });
    monitor.finish(match &finish {
        Ok(finish) => signals::exit_code(finish.signal),
        Err(e) => e.exit_code(),
    });
    drop(lock);
    finish
}

/// The checkpoint to go on from.
fn existing(dir: &Path, options: &Options) -> Result<Option<Saved>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    match options.start {
        Start::Overwrite => Ok(None),
        Start::Fresh => match checkpoint::steps(dir)?.last() {
            Some(&step) => Err(TrainError::Exists {
                path: dir.to_owned(),
                step,
            }),
            None => Ok(None),
        },
        Start::Resume => {
            if !options.dry_run {
                checkpoint::recover(dir)?;
            }
            Ok(checkpoint::newest(dir)?)
        }
    }
}

/// Says which values differ from those a checkpoint was saved with.
fn warn_of_changes(saved: &Saved, config: &Config) {
    let Ok(text) = saved.config() else { return };
    let Ok(then) = Config::parse(&text, saved.folder().join(state::CONFIG)) else {
        tracing::warn!("the checkpoint's configuration cannot be read by this version; going on with the given one");
        return;
    };
    let changes = then.differences(config);
    let matter = changes.iter().filter(|(key, ..)| {
        ![
            "num_train_steps",
            "log_interval",
            "save_interval",
            "keep_checkpoints",
            "save_memory_mb",
        ]
        .contains(&&key[..])
    });
    for (key, old, new) in matter {
        tracing::warn!("`{key}` was {old} when the checkpoint was saved and is {new} now");
    }
}

/// Refuses what cannot fit, with what would, and makes the pages of both arenas.
fn reserve(gpu: &Gpu, plan: &Plan, options: &Options) -> Result<()> {
    let caps = gpu.caps();
    let memory = match (options.device_memory, caps.memory_bytes) {
        (Some(told), Some(known)) => Some(told.min(known)),
        (told, known) => told.or(known),
    };
    let room = memory.map(|bytes| (bytes as f64 * options.memory_fraction) as u64);
    if let Some(room) = room.filter(|room| plan.reserved_bytes > *room) {
        let advice = advice::advice(&options.config, plan, caps, PLANNED_TOKENS, room)?;
        return Err(GpuError::TooLarge {
            device: caps.name.clone(),
            needs: plan.reserved_bytes,
            room,
            advice: advice.to_string(),
        }
        .into());
    }
    gpu.states().reserve(&plan.state_pages)?;
    Ok(gpu.scratch().reserve(&plan.activation_pages)?)
}
