//! `acrlpd bench`: medians on a device.

use std::path::PathBuf;
use std::time::Instant;

use acrlpd::config::Config;
use acrlpd::gpu::{DType, Gpu};
use acrlpd::ops::{gemm, roofline};
use acrlpd::step::metrics::Metrics;
use acrlpd::step::{Learner, MicroBatch, optimizer, schedule};
use acrlpd::train::recipe;
use acrlpd::train::setup::{self, Source};
use acrlpd::verify::{Fixture, TrainingGroup};
use serde::Serialize;

use super::flags::{ConfigFlags, DeviceFlag};
use super::table::{number, table};
use super::{Outcome, bench_loader};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Training steps on a real batch: ms per step, launches, and where the time goes.
    Step(Box<StepArgs>),
    /// Matrix products, f32: GFLOP/s.
    Kernels(KernelArgs),
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

#[derive(clap::Args)]
pub struct KernelArgs {
    #[command(flatten)]
    device: DeviceFlag,
    /// Edge lengths of square products.
    #[arg(long, value_delimiter = ',', default_value = "64,128,256,512", value_name = "N,M,…")]
    sizes: Vec<usize>,
    /// Products to measure, after three that are not.
    #[arg(long, default_value_t = 20, value_name = "N")]
    repeats: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Times in milliseconds.
#[derive(Serialize)]
struct Spread {
    median_ms: f64,
    p10_ms: f64,
    p90_ms: f64,
}

impl Spread {
    fn of(mut seconds: Vec<f64>) -> Spread {
        seconds.sort_by(f64::total_cmp);
        let at = |q: f64| 1e3 * seconds[((seconds.len() - 1) as f64 * q).round() as usize];
        Spread {
            median_ms: at(0.5),
            p10_ms: at(0.1),
            p90_ms: at(0.9),
        }
    }
}

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Step(args) => step(args),
        Command::Kernels(args) => kernels(args),
        Command::Loader(args) => bench_loader::run(args),
    }
}

fn step(args: &StepArgs) -> Outcome {
    let config = args.config.load(&[])?;
    // Files first: what is wrong with them can be said without a device.
    let (learner, parts) = match &args.fixture {
        Some(path) => {
            let group = TrainingGroup::new(Fixture::open(path)?)?;
            let gpu = Gpu::open(args.device.device)?;
            (
                group.learner(&gpu, group.config()?)?,
                vec![group.micro(0, 0..group.batch)?],
            )
        }
        None => {
            let source = Source::open(&config, None, |_, _| ())?;
            let learner = setup::learner(&Gpu::open(args.device.device)?, &config)?;
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

/// One measured product.
#[derive(Serialize)]
struct Product {
    op: &'static str,
    edge: usize,
    gflops: f64,
    #[serde(flatten)]
    spread: Spread,
}

fn kernels(args: &KernelArgs) -> Outcome {
    let gpu = Gpu::open(args.device.device)?;
    let mut all = Vec::new();
    for &n in &args.sizes {
        let values: Vec<f32> = (0..n * n).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        let (a, b) = (gpu.upload_f32(&values, [n, n]), gpu.upload_f32(&values, [n, n]));
        let c = gpu.alloc(DType::F32, [n, n]);
        for (op, transposed) in [("nt", 0), ("nn", 1), ("tn", 2)] {
            let product = || match transposed {
                0 => gemm::nt(&a, &b).to(&gpu, &c),
                1 => gemm::nn(&a, &b).to(&gpu, &c),
                _ => gemm::tn(&a, &b).to(&gpu, &c),
            };
            let mut seconds = Vec::new();
            for i in 0..args.repeats.max(1) + 3 {
                let began = Instant::now();
                product();
                gpu.sync()?;
                if i >= 3 {
                    seconds.push(began.elapsed().as_secs_f64());
                }
            }
            let spread = Spread::of(seconds);
            let gflops = 2.0 * (n as f64).powi(3) / 1e6 / spread.median_ms;
            all.push(Product {
                op,
                edge: n,
                gflops,
                spread,
            });
        }
    }
    if args.json {
        println!("{:#}", serde_json::json!({"device": gpu.caps().name, "products": all}));
        return Ok(0);
    }
    println!(
        "{}: products of square f32 matrices, with the wait for each",
        gpu.caps().name
    );
    let mut t = table(&["product", "edge", "GFLOP/s", "median ms", "p10", "p90"], 1);
    for p in &all {
        let s = &p.spread;
        t.add_row([
            p.op.to_owned(),
            p.edge.to_string(),
            number(p.gflops),
            number(s.median_ms),
            number(s.p10_ms),
            number(s.p90_ms),
        ]);
    }
    println!("{t}");
    Ok(0)
}
