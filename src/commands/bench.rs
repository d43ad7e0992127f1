//! `acrlpd bench`: medians on a device.

use std::path::PathBuf;
use std::time::Instant;

use acrlpd::bench::Spread;
use acrlpd::config::Config;
use acrlpd::gpu::Gpu;
use acrlpd::ops::roofline;
use acrlpd::step::metrics::Metrics;
use acrlpd::step::{Learner, MicroBatch, optimizer, schedule};
use acrlpd::train::recipe;
use acrlpd::train::setup::{self, Source};
use acrlpd::verify::{Fixture, TrainingGroup};

use super::flags::{ConfigFlags, DeviceFlag};
use super::{Outcome, bench_kernels, bench_loader};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Training steps on a real batch: ms per step, launches, and where the time goes.
    Step(Box<StepArgs>),
    /// Every op on the shapes of the step: times, rates, shares of what the device can do, and whether the results are
    /// right.
    Kernels(bench_kernels::Args),
    /// The data side alone: samples/s, and how long a training loop would wait.
    Loader(Box<bench_loader::Args>),
}

#[derive(clap::Args)]
pub struct StepArgs {
    #[command(flatten)]
    config: ConfigFlags,
    /// Take sizes, weights and batch from this training fixture instead (the configuration still names the rates).
    #[arg(long, value_name = "GROUP")]
    fixture: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceFlag,
    /// Steps to measure, after three that are not.
    #[arg(long, default_value_t = 20, value_name = "N")]
    steps: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Step(args) => step(args),
        Command::Kernels(args) => bench_kernels::run(args),
        Command::Loader(args) => bench_loader::run(args),
    }
}

fn step(args: &StepArgs) -> Outcome {
    let config = args.config.load(&[])?;
    // Files first: what is wrong with them can be said without a device.
    let (learner, parts) = match &args.fixture {
        Some(path) => {
            let group = TrainingGroup::new(Fixture::open(path)?)?;
            let gpu = Gpu::open(args.device.choice())?;
            (
                group.learner(&gpu, group.config()?)?,
                vec![group.micro(0, 0..group.batch)?],
            )
        }
        None => {
            let source = Source::open(&config, None, |_, _| ())?;
            let with_room = source.with_room(&config, None)?;
            let learner = setup::learner(&Gpu::open(args.device.choice())?, &with_room)?;
            learner.init(config.seed);
            let batch = source.builder.build(&source.sampler.draw(0, config.batch_size))?;
            (learner, setup::collator(&config).micro_batches(0, &batch))
        }
    };
    let gpu = &learner.gpu;
    gpu.sync()?;
    let name = args
        .fixture
        .as_ref()
        .map_or(config.name.clone(), |path| path.display().to_string());
    let samples = parts[0].totals.samples;
    let first = Instant::now();
    let mut bench = Bench {
        parts,
        metrics: Metrics::new(&learner, samples),
        config: &config,
        learner: &learner,
        done: 0,
    };
    bench.step()?;
    let first_ms = 1e3 * first.elapsed().as_secs_f64();
    for _ in 0..2 {
        bench.step()?;
    }
    gpu.take_record();
    let mut seconds = Vec::new();
    for _ in 0..args.steps.max(1) {
        let began = Instant::now();
        bench.step()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let launches = gpu.take_record().total().launches / args.steps.max(1) as u64;
    let spread = Spread::of(seconds);
    let roofline = roofline::measure(gpu, learner.config.dtype)?;
    let (stepped, profile) = gpu.profile(roofline, || bench.step())?;
    stepped?;
    if args.json {
        let out = serde_json::json!({
            "device": gpu.caps().name, "config": name, "samples": samples, "steps": args.steps,
            "step": spread, "first_step_ms": first_ms, "launches_per_step": launches, "profile": profile,
        });
        println!("{out:#}");
        return Ok(0);
    }
    println!(
        "{}: {} samples a step on {}\n{:.1} ms a step (median of {}; p10 {:.1}, p90 {:.1}), {launches} launches; the first \
         step took {first_ms:.0} ms",
        name,
        samples,
        gpu.caps().name,
        spread.median_ms,
        args.steps.max(1),
        spread.p10_ms,
        spread.p90_ms
    );
    println!("\none step with a wait after every launch:\n{}", profile.table());
    Ok(0)
}

/// Steps on one batch, again and again.
struct Bench<'a> {
    parts: Vec<MicroBatch>,
    metrics: Metrics,
    config: &'a Config,
    learner: &'a Learner,
    done: u64,
}

impl Bench<'_> {
    fn step(&mut self) -> anyhow::Result<()> {
        let gpu = &self.learner.gpu;
        self.metrics.clear(gpu);
        for part in &self.parts {
            schedule::micro_batch(self.learner, &self.metrics, part, true);
        }
        let rates = recipe::rates(self.config, self.done);
        optimizer::update(self.learner, &self.metrics, self.done, rates);
        self.done += 1;
        Ok(gpu.sync()?)
    }
}
