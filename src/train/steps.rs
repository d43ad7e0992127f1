//! The loop of a run: feed, step, collect numbers, evaluate, save.

use std::path::Path;
use std::time::{Duration, Instant};

use super::collate::Collator;
use super::error::{Result, TrainError};
use super::eval::Evaluation;
use super::feed::Feed;
use super::guard::{Guard, Verdict};
use super::handover::Identity;
use super::interval::{Fed, Interval, Pending, Queue, Surroundings};
use super::metrics::Log;
use super::phases::PhaseTimes;
use super::run::{Finish, Observer, Options};
use super::saver::{Saver, shown};
use super::setup::{self, Source};
use super::signals::Stop;
use super::{diagnose, dump, eval, recipe};
use crate::checkpoint::Saved;
use crate::data::{ChunkBatch, DataError};
use crate::gpu::{Roofline, Totals};
use crate::monitor::Monitor;
use crate::ops::roofline;
use crate::ops::watch::Watch;
use crate::step::metrics::{Metrics, Slot, Values};
use crate::step::optimizer::PATIENCE;
use crate::step::{Learner, optimizer, schedule};

/// Steps that may run ahead of the numbers that came back.
const IN_FLIGHT: usize = 4;

/// Side of the product that peak arithmetic is measured with: near the step's own (about 6000 rows), in little memory.
const PEAK_SIDE: usize = 4096;

/// Steps of the program before the one that is timed: kernels are compiled by then.
const PROFILED: u64 = 4;

/// How much of a state is read.
#[derive(Clone, Copy)]
enum Copying {
    /// What needs not wait for the disk.
    WhatFits,
    All,
}

/// A run under way.
pub(super) struct Run<'a> {
    options: &'a Options,
    source: &'a Source,
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
    /// What a product reaches here, in operations a second.
    peak_flops: Option<f64>,
    guard: Guard,
    skipped: u64,
    /// Those before this program.
    skipped_before: u64,
    /// Steps issued, this program's and those before it.
    issued: u64,
    /// Launches of the steps.
    launches: u64,
    /// Time spent evaluating and handing over checkpoints.
    paused: Duration,
    first_step: Option<Duration>,
    saver: Saver<'a>,
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
        saved: Option<&Saved>,
        observer: &'a mut dyn Observer,
    ) -> Run<'a> {
        let config = &options.config;
        let stats = &source.stats;
        let kept = saved.map(|saved| saved.folder().to_owned());
        Run {
            saver: Saver::new(learner, Identity { dir, config, stats }, kept),
            skipped_before: saved.map_or(0, |saved| saved.state().skipped),
            collator: setup::collator(config),
            held_out: Vec::new(),
            interval: Interval::new(
                config.batch_size,
                learner.temperature.is_some(),
                config.acrlpd.smoothness_weight > 0.0,
            ),
            queue: Queue::new(),
            peak_flops: None,
            guard: Guard::new(source.builder.value_bound(), config.batch_size),
            skipped: 0,
            issued: 0,
            launches: 0,
            paused: Duration::ZERO,
            first_step: None,
            options,
            source,
            learner,
            feed,
            log,
            monitor,
            observer,
        }
    }

    /// Steps `first..end`, or until a signal.
    pub(super) fn steps(mut self, first: u64, end: u64, stop: &Stop) -> Result<Finish> {
        self.drive(first, end, stop).map_err(|error| match error {
            TrainError::Device(source) => TrainError::Step {
                step: self.issued,
                source,
                kept: self.newest(),
            },
            other => other,
        })
    }

    fn drive(&mut self, first: u64, end: u64, stop: &Stop) -> Result<Finish> {
        let (config, learner) = (&self.options.config, self.learner);
        let gpu = &learner.gpu;
        let metrics = Metrics::new(learner, config.batch_size);
        if !gpu.caps().software && !self.options.dry_run {
            self.peak_flops = Some(roofline::product_rate(gpu, learner.config.dtype, PEAK_SIDE)?);
        }
        let began = Instant::now();
        let (mut done, mut signal) = (first, None);
        self.issued = first;
        gpu.take_record();
        while done < end && signal.is_none() {
            let ration = self.feed.next().ok_or_else(|| DataError::Worker {
                step: done,
                reason: "the thread that prepares batches has ended".into(),
            })??;
            let update_pi0 = learner.config.updates_pi0(done);
            metrics.clear(gpu);
            let rates = recipe::rates(config, done);
            let watch = self.options.watch.then(|| Watch::begin(gpu));
            let mut work = Totals::default();
            if self.options.profile && done == first + PROFILED {
                self.copy_state(Copying::All, &mut work)?;
                work = self.profiled(done + 1, || {
                    for part in &ration.parts {
                        schedule::micro_batch(learner, &metrics, part, update_pi0);
                    }
                    optimizer::update(learner, &metrics, done, rates);
                })?;
            } else {
                for part in &ration.parts {
                    schedule::micro_batch(learner, &metrics, part, update_pi0);
                    self.copy_state(Copying::WhatFits, &mut work)?;
                }
                // The update changes what a checkpoint under way is of.
                self.copy_state(Copying::All, &mut work)?;
                optimizer::update(learner, &metrics, done, rates);
            }
            done += 1;
            self.issued = done;
            if let Some(finding) = watch.map(Watch::finish).transpose()?.flatten() {
                tracing::warn!("step {done}: {finding}");
            }
            if self.row_due(done, end) {
                optimizer::weight_norms(learner, &metrics);
            }
            let issued = gpu.take_record().total();
            work.launches += issued.launches;
            work.flops += issued.flops;
            self.launches += work.launches;
            let at = began.elapsed().saturating_sub(self.paused);
            self.queue.push_back(Pending {
                step: Fed::new(done, at, update_pi0, rates, &ration, work.flops),
                read: metrics.read_later(gpu),
            });
            gpu.check()?;
            if self.options.watch {
                gpu.sync()?;
            }
            let at_once = self.first_step.is_none() || self.options.watch;
            self.collect(if at_once { 0 } else { IN_FLIGHT }, end)?;
            self.observer.step(done);
            self.monitor.tick();

            signal = stop.signal();
            let last = done == end || signal.is_some();
            if self.eval_due(done) {
                self.collect(0, end)?;
                let pause = Instant::now();
                let evaluation = self.evaluate()?;
                self.emit(evaluation);
                self.paused += pause.elapsed();
                gpu.take_record();
            }
            if !self.options.dry_run && (self.saver.due(done, self.observer) || last) {
                self.collect(0, end)?;
                let pause = Instant::now();
                self.save(done)?;
                self.paused += pause.elapsed();
                tracing::debug!(
                    "step {done}: handed over in {:.0} ms",
                    1e3 * pause.elapsed().as_secs_f64()
                );
            }
        }
        self.collect(0, end)?;
        self.emit(None);
        let memory = gpu.memory()?;
        let checkpoint = self.saver.finish(self.observer)?;
        Ok(Finish {
            first,
            end: done,
            elapsed: began.elapsed(),
            first_step: self.first_step,
            data_wait: self.feed.stall(),
            launches_per_step: self.launches as f64 / (done - first).max(1) as f64,
            peak_bytes: memory.peak(),
            skipped: self.skipped,
            checkpoint,
            metrics: self.log.as_ref().map(|log| log.path().to_owned()),
            signal,
        })
    }

    /// Goes on with the checkpoint that is being read from the device, if there is one. What was launched of the step before
    /// is added to `work`, what the copies launch is not.
    fn copy_state(&mut self, how: Copying, work: &mut Totals) -> Result<()> {
        if !self.saver.is_reading() {
            return Ok(());
        }
        let gpu = &self.learner.gpu;
        let issued = gpu.take_record().total();
        work.launches += issued.launches;
        work.flops += issued.flops;
        let pause = Instant::now();
        match how {
            Copying::WhatFits => self.saver.advance()?,
            Copying::All => self.saver.hold()?,
        }
        self.paused += pause.elapsed();
        gpu.take_record();
        Ok(())
    }

    /// Issues step number `number` with every launch timed, and keeps the times; returns what was launched.
    fn profiled(&mut self, number: u64, step: impl FnOnce()) -> Result<Totals> {
        let gpu = &self.learner.gpu;
        // Shares of a roofline are `bench step`'s: here only times count.
        let roofline = Roofline {
            flops_per_s: f64::INFINITY,
            bytes_per_s: f64::INFINITY,
        };
        let ((), profile) = gpu.profile(roofline, step)?;
        let times = PhaseTimes::new(&gpu.caps().name, number, &profile);
        if let Some(log) = &self.log
            && let Some(dir) = log.path().parent()
            && let Err(error) = times.write(dir)
        {
            tracing::warn!("the times of step {number} were lost: {error}");
        }
        let total = profile.total();
        Ok(Totals {
            launches: total.launches,
            flops: total.flops,
            ..Totals::default()
        })
    }

    /// Takes in numbers, the oldest first, until at most `ahead` steps are out. Others are not asked for: on CUDA asking
    /// is waiting.
    fn collect(&mut self, ahead: usize, end: u64) -> Result<()> {
        while self.queue.len() > ahead
            && let Some(oldest) = self.queue.pop_front()
        {
            let values = oldest.read.wait()?;
            let step = oldest.step;
            self.first_step.get_or_insert_with(|| self.options.started.elapsed());
            self.interval.add(&step, &values);
            self.skipped = values.get(Slot::Skipped) as u64;
            self.guard(&step, &values)?;
            if self.row_due(step.done, end) && !self.eval_due(step.done) {
                self.emit(None);
            }
        }
        Ok(())
    }

    /// Ends the run when nothing is learned any more.
    fn guard(&mut self, step: &Fed, values: &Values) -> Result<()> {
        let verdict = self.guard.step(step.done, values);
        let (part, first) = match verdict {
            Verdict::Fine => return Ok(()),
            Verdict::Skipped(part) => {
                tracing::warn!("step {} was skipped: the gradients {part} are not finite", step.done);
                return Ok(());
            }
            Verdict::Over { part, first } => (part, first),
        };
        // The device applies nothing any more: what failed first can be done again.
        let batch = self.source.batch(&self.options.config, first - 1)?;
        let diagnosis = diagnose::diagnose(self.learner, &self.collator, first - 1, &batch)?;
        let dump = match self.options.dry_run {
            true => None,
            false => match dump::write(self.learner, self.saver.identity(), first - 1, &batch, &diagnosis) {
                Ok(path) => Some(path),
                Err(error) => {
                    tracing::warn!("the step could not be kept for a closer look: {error}");
                    None
                }
            },
        };
        Err(TrainError::NotFinite {
            step: step.done,
            count: PATIENCE,
            part,
            diagnosis: diagnosis.to_string(),
            dump: dump.map_or(String::new(), |path| {
                format!("; `acrlpd verify {}` does the step again", path.display())
            }),
            kept: self.newest(),
        })
    }

    /// The newest checkpoint, in words.
    fn newest(&mut self) -> String {
        shown(&self.saver.newest(self.issued, self.observer))
    }

    fn row_due(&self, done: u64, end: u64) -> bool {
        done.is_multiple_of(self.options.config.log_interval) || done == end
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
        let mut scores = Vec::new();
        for batch in &self.held_out {
            scores.extend(eval::scores(self.learner, &self.collator, &self.source.builder, batch)?);
        }
        Ok(Evaluation::of(&scores))
    }

    /// Closes the interval with a row.
    fn emit(&mut self, evaluation: Option<Evaluation>) {
        let gpu = &self.learner.gpu;
        let (states, scratch) = (gpu.states().usage(), gpu.scratch().usage());
        let around = Surroundings {
            waited_s: self.feed.stall().as_secs_f64(),
            peak_flops: self.peak_flops,
            memory_bytes: states.used + scratch.used,
            peak_memory_bytes: states.peak + scratch.peak,
        };
        let Some(mut row) = self.interval.finish(&around) else {
            return;
        };
        row.eval = evaluation;
        row.skipped += self.skipped_before;
        for worry in self.guard.row(&row) {
            tracing::warn!("{worry}");
        }
        if let Some(log) = &mut self.log {
            log.write(&row);
        }
        self.monitor.row(row.step, &row);
        self.observer.row(&row);
    }

    /// Starts saving. The interval ends here, so that a run that goes on from this checkpoint has the same rows.
    fn save(&mut self, done: u64) -> Result<()> {
        self.emit(None);
        if let Some(log) = &self.log {
            log.sync();
        }
        self.monitor.flush();
        self.saver
            .start(done, self.skipped_before + self.skipped, self.observer)
    }
}
