//! The loop of a run: feed, step, collect numbers, evaluate, save.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::collate::Collator;
use super::error::{Result, TrainError};
use super::feed::Feed;
use super::metrics::{Evaluation, Fed, Interval, Log, Pending, Queue};
use super::run::{Finish, Observer, Options};
use super::setup::{self, Source};
use super::signals::Stop;
use super::snapshot::{self, Identity};
use super::{eval, recipe};
use crate::data::{ChunkBatch, DataError};
use crate::monitor::Monitor;
use crate::step::metrics::{Metrics, Slot, Values};
use crate::step::{Learner, optimizer, schedule};

/// Steps that may run ahead of the numbers that came back.
const IN_FLIGHT: usize = 4;
/// Consecutive steps without finite gradients that end a run.
const PATIENCE: u64 = 3;

/// A run under way.
pub(super) struct Run<'a> {
    options: &'a Options,
    source: &'a Source,
    dir: &'a Path,
    learner: &'a Learner,
    feed: Feed,
    collator: Collator,
    /// Batches of held-out chunks, once made.
    held_out: Vec<ChunkBatch>,
    log: Option<Log>,
    monitor: &'a mut Monitor,
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
    /// Newest checkpoint.
    kept: Option<PathBuf>,
}

impl<'a> Run<'a> {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn new(
        options: &'a Options,
        source: &'a Source,
        dir: &'a Path,
        learner: &'a Learner,
        feed: Feed,
        log: Option<Log>,
        monitor: &'a mut Monitor,
        kept: Option<PathBuf>,
        observer: &'a mut dyn Observer,
    ) -> Run<'a> {
        let config = &options.config;
        Run {
            collator: setup::collator(config),
            held_out: Vec::new(),
            interval: Interval::new(config.batch_size, learner.temperature.is_some()),
            queue: Queue::new(),
            bad: 0,
            skipped: 0,
            launches: 0,
            paused: Duration::ZERO,
            first_step: None,
            options,
            source,
            dir,
            learner,
            feed,
            log,
            monitor,
            kept,
            observer,
        }
    }

    /// Steps `first..end`, or until a signal.
    pub(super) fn steps(mut self, first: u64, end: u64, stop: &Stop) -> Result<Finish> {
        let (config, learner) = (&self.options.config, self.learner);
        let gpu = &learner.gpu;
        let metrics = Metrics::new(gpu);
        let began = Instant::now();
        let (mut done, mut signal) = (first, None);
        gpu.take_record();
        while done < end && signal.is_none() {
            let ration = self.feed.next().ok_or_else(|| DataError::Worker {
                step: done,
                reason: "the thread that prepares batches has ended".into(),
            })??;
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
                gpu.sync().map_err(|source| TrainError::Step { step: done, source })?;
            }
            self.collect(if self.first_step.is_none() { 0 } else { IN_FLIGHT }, end)?;
            self.observer.step(done);
            self.monitor.tick();

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
        let memory = gpu.memory()?;
        Ok(Finish {
            first,
            end: done,
            elapsed: began.elapsed(),
            first_step: self.first_step,
            data_wait: self.feed.stall(),
            launches_per_step: self.launches as f64 / (done - first).max(1) as f64,
            peak_bytes: memory.peak(),
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
            kept: kept.map_or("none yet".into(), |folder| folder.display().to_string()),
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
            for frames in sampler
                .draw(eval::EVAL_STEP, config.batch_size)
                .chunks(config.micro_batch())
            {
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
        self.monitor.row(row.step, &row);
        self.observer.row(&row);
    }

    fn save(&mut self, done: u64) -> Result<()> {
        let began = Instant::now();
        let identity = Identity {
            dir: self.dir,
            config: &self.options.config,
            stats: &self.source.stats,
        };
        self.monitor.flush();
        let folder = snapshot::save(self.learner, &identity, done)?;
        self.observer.saved(&folder, began.elapsed());
        self.kept = Some(folder);
        Ok(())
    }
}
