//! A learner on its batch, again and again.

use std::time::Instant;

use super::results::{MemoryRow, PhaseRow, StepRow};
use crate::bench::results::Status;
use crate::bench::timing::Spread;
use crate::config::Config;
use crate::gpu::{Caps, Gpu, Profile, Result, Roofline};
use crate::step::metrics::Metrics;
use crate::step::{Learner, MicroBatch, optimizer, schedule};
use crate::train::plan::Plan;
use crate::train::recipe;

/// Launches that fit into the queues between host and device: as long as no more have been issued since both were idle,
/// nothing holds the host up.
const QUEUED: u64 = 512;
/// Steps before those that are measured, the first of which compiles.
const WARM: usize = 3;
/// Steps on a device that only counts.
const COUNTED: usize = 3;

/// What is measured.
pub struct Subject<'a> {
    pub name: &'a str,
    /// Names the learning rates.
    pub config: &'a Config,
    /// With its weights.
    pub learner: &'a Learner,
    /// The micro-batches of one optimizer step.
    pub parts: &'a [MicroBatch],
    /// What the step should cost, where it can be known.
    pub plan: Option<&'a Plan>,
    /// Work of the algorithm per sample, without what is computed again (TFLOP).
    pub algorithm_tflop: Option<f64>,
}

/// Measures `steps` steps on a device on which nothing else has run, and profiles one.
///
/// # Errors
/// A device that failed.
pub fn measure(subject: &Subject<'_>, best: Roofline, steps: usize) -> Result<StepRow> {
    let gpu = &subject.learner.gpu;
    let samples = subject.parts.iter().map(MicroBatch::len).sum();
    gpu.sync()?;
    let mut run = Run {
        metrics: Metrics::new(subject.learner, samples),
        subject,
        done: 0,
    };
    let began = Instant::now();
    run.step()?;
    let first_step_ms = ms(began);
    for _ in 1..WARM {
        run.step()?;
    }
    gpu.take_record();
    run.step()?;
    let work = gpu.take_record().total();
    let (mut seconds, mut host, mut waited) = (Vec::new(), Vec::new(), 0);
    for _ in 0..steps.max(1) {
        let queued = QUEUED.min(work.launches);
        gpu.mark_launch(queued);
        let (began, before) = (Instant::now(), gpu.waits());
        run.issue();
        waited = waited.max(gpu.waits() - before);
        gpu.sync()?;
        seconds.push(began.elapsed().as_secs_f64());
        let issued = gpu.marked().map(|at| (at - began).as_secs_f64());
        host.extend(issued.map(|s| s * work.launches as f64 / queued.max(1) as f64));
    }
    // Before the profile, whose timestamps are memory, too.
    let memory = gpu.memory()?;
    let (stepped, profile) = gpu.profile(best, || run.step())?;
    stepped?;
    let step = Spread::of(seconds);
    let flops = 1e-12 * work.flops;
    let algorithm = subject.algorithm_tflop.map_or(flops, |each| each * samples as f64);
    Ok(StepRow {
        why: None,
        micro_batches: subject.parts.len(),
        samples_per_s: 1e3 * samples as f64 / step.median_ms,
        first_step_ms,
        launches: work.launches,
        waits: waited,
        host_ms: (!gpu.caps().software && !host.is_empty()).then(|| Spread::of(host).median_ms),
        code_ms: code_ms(subject)?,
        kernels_ms: profile.total().ms,
        tflop: flops,
        algorithm_tflop: algorithm,
        of_peak: 1e15 * algorithm / step.median_ms / best.flops_per_s,
        step,
        memory: Some(MemoryRow {
            planned: subject.plan.map(|plan| plan.peak_bytes),
            used: memory.peak(),
            states: memory.states.peak,
            activations: memory.scratch.peak,
            reserved: memory.reserved,
        }),
        phases: phases(&profile),
        profile: Some(profile),
        ..StepRow::without(subject.name, samples, subject.learner.config.candidates, Status::Ok, "")
    })
}

fn ms(began: Instant) -> f64 {
    1e3 * began.elapsed().as_secs_f64()
}

fn phases(profile: &Profile) -> Vec<PhaseRow> {
    let row = |p: &crate::gpu::ProfileRow| PhaseRow {
        name: p.phase.into(),
        launches: p.launches,
        tflop: 1e-12 * p.flops,
        ms: p.ms,
    };
    profile.phases().iter().map(row).collect()
}

/// Milliseconds of the host's own code: the same step on a device that only counts.
fn code_ms(subject: &Subject<'_>) -> Result<f64> {
    let real = subject.learner;
    let caps = Caps {
        // Pages of any size: what is reserved does not matter here.
        max_page_bytes: 1 << 40,
        ..real.gpu.caps().clone()
    };
    let gpu = Gpu::null(caps);
    let learner = Learner::new(&gpu, real.config.clone(), real.dims.clone(), real.critic_dims.clone())?;
    let mut run = Run {
        metrics: Metrics::new(&learner, subject.parts.iter().map(MicroBatch::len).sum()),
        subject: &Subject {
            learner: &learner,
            ..*subject
        },
        done: 0,
    };
    let mut least = f64::INFINITY;
    for _ in 0..COUNTED {
        let began = Instant::now();
        run.issue();
        least = least.min(ms(began));
    }
    gpu.check().map(|()| least)
}

/// Steps on one batch.
struct Run<'a> {
    subject: &'a Subject<'a>,
    metrics: Metrics,
    done: u64,
}

impl Run<'_> {
    /// Issues one optimizer step.
    fn issue(&mut self) {
        let learner = self.subject.learner;
        self.metrics.clear(&learner.gpu);
        for part in self.subject.parts {
            schedule::micro_batch(learner, &self.metrics, part, true);
        }
        optimizer::update(
            learner,
            &self.metrics,
            self.done,
            recipe::rates(self.subject.config, self.done),
        );
        self.done += 1;
    }

    fn step(&mut self) -> Result<()> {
        self.issue();
        self.subject.learner.gpu.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::step::{cases, random_parts};
    use crate::ops::testing::gpu;
    use crate::train::{plan, setup};

    #[test]
    fn a_step_is_measured_and_needs_what_was_planned() {
        let config = Config::load("debug").expect("a preset");
        let mut config = cases(&config, &[2], &[2]).remove(0).config;
        config.model.max_token_len = Some(4);
        let config = &config;
        let gpu = gpu();
        let plan = plan::plan(config, gpu.caps().clone(), 4).expect("it fits");
        let learner = setup::learner(&gpu, config).expect("it fits");
        learner.init(1);
        let subject = Subject {
            name: "tiny",
            config,
            learner: &learner,
            parts: &random_parts(config, 4),
            plan: Some(&plan),
            algorithm_tflop: Some(plan.tflop_per_sample),
        };
        let best = Roofline {
            flops_per_s: 1e10,
            bytes_per_s: 1e9,
        };
        let row = measure(&subject, best, 2).expect("the device works");
        assert_eq!(
            (row.status, row.samples, row.candidates, row.waits),
            (Status::Ok, config.batch_size, 2, 0)
        );
        // The numbers of the step are cleared, too.
        assert_eq!(row.launches, plan.launches + 1);
        assert!(
            row.samples_per_s > 0.0 && row.code_ms > 0.0 && row.code_ms < row.step.median_ms,
            "{row:?}"
        );
        let learning: f64 = row
            .phases
            .iter()
            .filter(|p| p.name != "optimizer")
            .map(|p| p.tflop)
            .sum();
        assert!(
            (learning / (plan.tflop_per_sample * row.samples as f64) - 1.0).abs() < 1e-6,
            "{row:?}"
        );
        let memory = row.memory.expect("it was read");
        let of_plan = memory.of_plan().expect("it was planned");
        assert!((0.97..=1.03).contains(&of_plan), "{memory:?}");
        assert!(memory.reserved >= memory.used, "{memory:?}");
    }
}
