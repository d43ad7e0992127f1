//! `acrlpd bench loader`: how fast batches are made, and how long a training loop waits for them.

use std::thread;
use std::time::{Duration, Instant};

use acrlpd::data::Loader;
use acrlpd::train::setup::Source;
use serde::Serialize;

use super::Outcome;
use super::flags::ConfigFlags;
use super::table::{number, table};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Decoding threads, one measurement each; without it data.loader_threads.
    #[arg(long, value_delimiter = ',', value_name = "N,M,…")]
    threads: Vec<usize>,
    /// Batches to measure, after those that fill the queue.
    #[arg(long, default_value_t = 50, value_name = "N")]
    batches: u64,
    /// How long the training loop is busy with each batch, for waits and stalls. 200 ms is about what eight samples take
    /// on one data-centre GPU.
    #[arg(long, default_value_t = 200.0, value_name = "MS")]
    step_ms: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What a loader with some threads does.
#[derive(Serialize)]
struct Measured {
    threads: usize,
    /// Taken as fast as they come.
    samples_per_s: f64,
    frames_per_s: f64,
    /// Taken by a loop that is busy `step_ms` with each batch.
    wait_p50_ms: f64,
    wait_p99_ms: f64,
    /// Share of that loop's time in which it waits.
    stall_share: f64,
}

pub fn run(args: &Args) -> Outcome {
    let config = args.config.load(&[])?;
    let source = Source::open(&config, None, |_, _| ())?;
    let mut counts = args.threads.clone();
    if counts.is_empty() {
        counts.push(config.data.loader_threads);
    }
    let cameras = source
        .builder
        .spec()
        .cameras
        .iter()
        .filter(|c| c.dataset.is_some())
        .count();
    let (batches, depth) = (args.batches.max(1), config.data.queue_depth);
    let loader = |threads: usize| {
        let (builder, sampler) = (source.builder.clone(), source.sampler.clone());
        let end = depth as u64 + batches;
        Loader::new(builder, sampler, config.batch_size, 0, end, threads, depth.max(threads))
    };
    let mut all = Vec::new();
    for threads in counts {
        let mut busy = loader(threads)?;
        busy.by_ref().take(depth).try_for_each(|batch| batch.map(drop))?;
        let (began, mut frames) = (Instant::now(), 0);
        for batch in busy {
            frames += 2 * cameras * batch?.len();
        }
        let seconds = began.elapsed().as_secs_f64();
        let (waits, stall_share) = paced(loader(threads)?, depth, Duration::from_secs_f64(args.step_ms / 1e3))?;
        let at = |q: f64| 1e3 * waits[((waits.len() - 1) as f64 * q).round() as usize];
        all.push(Measured {
            threads,
            samples_per_s: (batches as usize * config.batch_size) as f64 / seconds,
            frames_per_s: frames as f64 / seconds,
            wait_p50_ms: at(0.5),
            wait_p99_ms: at(0.99),
            stall_share,
        });
    }
    if args.json {
        let out = serde_json::json!({
            "dataset": source.builder.dataset().info().root, "samples": config.batch_size, "batches": batches,
            "cameras": cameras, "step_ms": args.step_ms, "loaders": all,
        });
        println!("{out:#}");
        return Ok(0);
    }
    println!(
        "{}: batches of {} samples, {cameras} cameras at the start and the end of each chunk; waits of a loop that is busy \
         {} ms with each",
        source.builder.dataset().info().root.display(),
        config.batch_size,
        args.step_ms
    );
    let mut t = table(
        &[
            "threads",
            "samples/s",
            "frames/s",
            "wait p50 ms",
            "wait p99 ms",
            "stall %",
        ],
        0,
    );
    for m in &all {
        t.add_row([
            m.threads.to_string(),
            number(m.samples_per_s),
            number(m.frames_per_s),
            number(m.wait_p50_ms),
            number(m.wait_p99_ms),
            number(100.0 * m.stall_share),
        ]);
    }
    println!("{t}");
    Ok(0)
}

/// Seconds that a loop waits for each batch, ascending, and their share of its time.
fn paced(mut loader: Loader, depth: usize, step: Duration) -> anyhow::Result<(Vec<f64>, f64)> {
    // A run has its first batches ready when the first step begins.
    loader.by_ref().take(depth).try_for_each(|batch| batch.map(drop))?;
    thread::sleep(step);
    let (began, stall) = (Instant::now(), loader.stall());
    let (mut waits, mut before) = (Vec::new(), stall);
    while let Some(batch) = loader.next() {
        batch?;
        waits.push((loader.stall() - before).as_secs_f64());
        before = loader.stall();
        thread::sleep(step);
    }
    let share = (loader.stall() - stall).as_secs_f64() / began.elapsed().as_secs_f64();
    waits.sort_by(f64::total_cmp);
    Ok((waits, share))
}
