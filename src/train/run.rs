//! The loop.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::error::{Result, TrainError};
use super::eval;
use super::feed::Feed;
use super::metrics::{Evaluation, Fed, Interval, Log, Pending, Queue, Row};
use super::plan::{self, Plan};
use super::setup::{self, Source};
use super::signals::Stop;
use super::snapshot::{self, Identity};
use super::{collate::Collator, recipe};
use crate::checkpoint::{self, Saved, Weights, state};
use crate::config::Config;
use crate::data::{ChunkBatch, NormStats};
use crate::gpu::{DeviceChoice, Gpu, GpuError};
use crate::step::metrics::{Metrics, Slot, Values};
use crate::step::{Learner, optimizer, schedule};

/// Steps that may run ahead of the numbers that came back.
const IN_FLIGHT: usize = 4;
/// Consecutive steps without finite gradients that end a run.
const PATIENCE: u64 = 3;
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
    /// Share of the device's memory that may be planned for.
    pub memory_fraction: f64,
    /// Do everything up to and including the first step, and write nothing.
    pub dry_run: bool,
    /// Wait for the device after every step, so that an error names the step it happened in.
    pub sync_every_step: bool,
    /// When the program started, for the time to the first step.
    pub started: Instant,
}

/// What is known when the loop is about to begin.
pub struct Preparation<'a> {
    pub device: &'a str,
    pub software: bool,
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
    let saved = existing(&dir, options.start)?;
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
        (None, Some(path)) => Some(Weights::open(path)?),
        _ => None,
    };

    observer.stage("device");
    let gpu = Gpu::open(options.device)?;
    let plan = plan::plan(config, gpu.caps().clone(), PLANNED_TOKENS)?;
    reserve(&gpu, &plan, options.memory_fraction)?;
    let learner = setup::learner(&gpu, config)?;
    observer.stage("weights");
    if let Some(weights) = &weights {
        snapshot::check(&learner, weights)?;
    }
    match &saved {
        Some(saved) => snapshot::restore(&learner, saved)?,
        None => {
            learner.init(config.seed);
            if let Some(weights) = &weights {
                snapshot::load(&learner, weights)?;
            }
        }
    }
    gpu.sync()?;

    let first = saved.as_ref().map_or(0, |s| s.state().step);
    let end = match options.dry_run {
        true => config.num_train_steps.min(first + 1),
        false => config.num_train_steps.max(first),
    };
    if options.start == Start::Overwrite && !options.dry_run && dir.is_dir() {
        checkpoint::discard(&dir)?;
    }
    let log = match options.dry_run {
        true => None,
        false => Some(Log::open(&dir, first)?),
    };
    observer.begin(&Preparation {
        device: &gpu.caps().name,
        software: gpu.caps().software,
        source: &source,
        plan: &plan,
        first,
        end,
        resumed_from: saved.as_ref().map(Saved::folder),
        weights: weights.as_ref().map(Weights::path),
        run_dir: &dir,
    });
    let run = Run {
        feed: source.feed(config, first, end)?,
        collator: setup::collator(config),
        held_out: Vec::new(),
        interval: Interval::new(config.batch_size, learner.temperature.is_some()),
        queue: Queue::new(),
        bad: 0,
        skipped: 0,
        launches: 0,
        paused: Duration::ZERO,
        first_step: None,
        kept: saved.as_ref().map(|s| s.folder().to_owned()),
        saved_step: saved.as_ref().map(|s| s.state().step),
        options,
        source: &source,
        dir: &dir,
        learner: &learner,
        log,
        observer,
    };
    run.steps(first, end, stop)
}

/// The checkpoint to go on from.
fn existing(dir: &Path, start: Start) -> Result<Option<Saved>> {
    if !dir.is_dir() {
        return Ok(None);
    }
    match start {
        Start::Overwrite => Ok(None),
        Start::Fresh => match checkpoint::steps(dir)?.last() {
            Some(&step) => Err(TrainError::Exists {
                path: dir.to_owned(),
                step,
            }),
            None => Ok(None),
        },
        Start::Resume => Ok(checkpoint::latest(dir)?
            .map(|folder| checkpoint::open(&folder))
            .transpose()?),
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
        !["num_train_steps", "log_interval", "save_interval", "keep_checkpoints"].contains(&&key[..])
    });
    for (key, old, new) in matter {
        tracing::warn!("`{key}` was {old} when the checkpoint was saved and is {new} now");
    }
}

/// Refuses what cannot fit, and makes the pages of both arenas.
fn reserve(gpu: &Gpu, plan: &Plan, fraction: f64) -> Result<()> {
    let room = gpu.caps().memory_bytes.map(|bytes| (bytes as f64 * fraction) as u64);
    if let Some(room) = room.filter(|room| plan.peak_bytes > *room) {
        return Err(GpuError::TooLarge {
            device: gpu.caps().name.clone(),
            needs: plan.peak_bytes,
            room,
        }
        .into());
    }
    gpu.states().reserve(&plan.state_pages)?;
    Ok(gpu.scratch().reserve(&plan.activation_pages)?)
}

/// A run under way.
struct Run<'a> {
    options: &'a Options,
    source: &'a Source,
    dir: &'a Path,
    learner: &'a Learner,
    feed: Feed,
    collator: Collator,
    /// Batches of held-out chunks, once made.
    held_out: Vec<ChunkBatch>,
    log: Option<Log>,
    observer: &'a mut dyn Observer,
    interval: Interval,
    queue: Queue,
    /// Consecutive steps whose gradients were not finite.
    bad: u64,
    skipped: u64,
    /// Launches of the steps.
    launches: u64,
    /// Time spent evaluating and saving.
    paused: Duration,
    first_step: Option<Duration>,
    /// Newest checkpoint, and its step.
    kept: Option<PathBuf>,
    saved_step: Option<u64>,
}

impl Run<'_> {
    fn steps(mut self, first: u64, end: u64, stop: &Stop) -> Result<Finish> {
        let (config, learner) = (&self.options.config, self.learner);
        let gpu = &learner.gpu;
        let metrics = Metrics::new(gpu);
        let began = Instant::now();
        let (mut done, mut signal) = (first, None);
        gpu.take_record();
        while done < end && signal.is_none() {
            let Some(ration) = self.feed.next() else { break };
            let ration = ration?;
            let update_pi0 = learner.config.updates_pi0(done);
            metrics.clear(gpu);
            for part in &ration.parts {
                schedule::micro_batch(learner, &metrics, part, update_pi0);
            }
            let rates = recipe::rates(config, done);
            optimizer::update(learner, &metrics, done, rates);
            done += 1;
            let at = began.elapsed().saturating_sub(self.paused);
            self.queue.push_back(Pending {
                step: Fed::new(done, at, update_pi0, rates, &ration),
                read: metrics.read_later(gpu),
            });
            gpu.check()?;
            if self.options.sync_every_step {
                gpu.sync()?;
            }
            self.collect(if self.first_step.is_none() { 0 } else { IN_FLIGHT }, end)?;
            self.observer.step(done);

            signal = stop.signal();
            let last = done == end || signal.is_some();
            if self.eval_due(done) {
                self.collect(0, end)?;
                self.launches += gpu.take_record().total().launches;
                let pause = Instant::now();
                let evaluation = self.evaluate()?;
                self.emit(evaluation);
                self.paused += pause.elapsed();
                gpu.take_record();
            }
            if !self.options.dry_run && (last || done.is_multiple_of(config.save_interval)) {
                self.collect(0, end)?;
                let pause = Instant::now();
                self.save(done)?;
                self.paused += pause.elapsed();
            }
        }
        self.launches += gpu.take_record().total().launches;
        self.collect(0, end)?;
        self.emit(None);
        let usage = [gpu.states().usage().peak, gpu.scratch().usage().peak];
        Ok(Finish {
            first,
            end: done,
            elapsed: began.elapsed(),
            first_step: self.first_step,
            data_wait: self.feed.stall(),
            launches_per_step: self.launches as f64 / (done - first).max(1) as f64,
            peak_bytes: usage.iter().sum(),
            skipped: self.skipped,
            checkpoint: self.kept,
            metrics: self.log.map(|log| log.path().to_owned()),
            signal,
        })
    }

    /// Takes in the numbers that have come, and waits for the oldest while more than `ahead` are out.
    fn collect(&mut self, ahead: usize, end: u64) -> Result<()> {
        while let Some(mut oldest) = self.queue.pop_front() {
            let values = match oldest.read.poll() {
                Some(values) => values?,
                None if self.queue.len() < ahead => {
                    self.queue.push_front(oldest);
                    break;
                }
                None => oldest.read.wait()?,
            };
            let (step, values) = (oldest.step, Values(values));
            self.first_step.get_or_insert_with(|| self.options.started.elapsed());
            self.interval.add(&step, &values);
            self.skipped = values.get(Slot::Skipped) as u64;
            self.guard(step.done, &values)?;
            let due = step.done.is_multiple_of(self.options.config.log_interval) || step.done == end;
            if due && !self.eval_due(step.done) {
                self.emit(None);
            }
        }
        Ok(())
    }

    /// Ends the run when nothing is learned any more.
    fn guard(&mut self, step: u64, values: &Values) -> Result<()> {
        let bad = |slot: Slot| values.get(slot) != 0.0;
        let group = match (bad(Slot::Pi0Bad), bad(Slot::CriticBad), bad(Slot::TemperatureBad)) {
            (false, false, false) => {
                self.bad = 0;
                return Ok(());
            }
            (true, true, _) => "of π₀ and of the critics",
            (true, ..) => "of π₀",
            (_, true, _) => "of the critics",
            _ => "of the temperature",
        };
        self.bad += 1;
        tracing::warn!("step {step} was skipped: the gradients {group} are not finite");
        if self.bad < PATIENCE {
            return Ok(());
        }
        let kept = self.kept.as_ref();
        Err(TrainError::NotFinite {
            step,
            count: self.bad,
            group,
            kept: kept.map_or("the start".into(), |folder| folder.display().to_string()),
        })
    }

    fn eval_due(&self, done: u64) -> bool {
        let interval = self.options.config.eval_interval;
        interval > 0 && done.is_multiple_of(interval) && self.source.held_out.is_some()
    }

    fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        let Some(sampler) = &self.source.held_out else {
            return Ok(None);
        };
        if self.held_out.is_empty() {
            let config = &self.options.config;
            // The same frames every time: those of a step that training never reaches.
            for frames in sampler.draw(u64::MAX, config.batch_size).chunks(config.micro_batch()) {
                self.held_out.push(self.source.builder.build(frames)?);
            }
        }
        let mut sum = Evaluation::default();
        for batch in &self.held_out {
            sum.add(&eval::evaluate(self.learner, &self.collator, batch)?);
        }
        Ok(Some(sum.mean()))
    }

    /// Closes the interval with a row.
    fn emit(&mut self, evaluation: Option<Evaluation>) {
        let Some(mut row) = self.interval.finish(self.feed.stall().as_secs_f64()) else {
            return;
        };
        row.eval = evaluation;
        if let Some(log) = &mut self.log {
            log.write(&row);
        }
        self.observer.row(&row);
    }

    fn save(&mut self, done: u64) -> Result<()> {
        if self.saved_step == Some(done) {
            return Ok(());
        }
        let began = Instant::now();
        let identity = Identity {
            dir: self.dir,
            config: &self.options.config,
            stats: &self.source.stats,
        };
        let folder = snapshot::save(self.learner, &identity, done)?;
        self.observer.saved(&folder, began.elapsed());
        (self.kept, self.saved_step) = (Some(folder), Some(done));
        Ok(())
    }
}
