//! A whole training step in burn, the algorithm of acrlpd with its numbers, for `acrlpd bench step --peer`.
//!
//! It has acrlpd's schedule: one prefix pass for s, which behaviour cloning, critic features and all Euler steps share; the
//! last language layer's keys alone; the state token in the cache; candidates without gradients, and only the best of them
//! once more with; padding cut off. Everything is f32. A step is what it is in the other peers: the batch to the device,
//! all losses, one backward, clipping, AdamW, and both averages.
//!
//! It must give the fixture's losses, gradients and weights after three updates: nothing is timed where it does not.

mod batch;
mod check;
mod critics;
mod fixture;
mod layers;
mod model;
mod step;
mod weights;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use burn::backend::wgpu::{WgpuDevice, graphics, init_setup};
use burn::backend::{Autodiff, Wgpu};
use burn::tensor::backend::Backend;
use serde_json::{Value, json};

use batch::Batch;
use fixture::{Golden, under};
use step::Step;

type Engine = Autodiff<Wgpu<f32, i32>>;

const USAGE: &str = "usage: acrlpd-peer-burn [--fixture GROUP] [--steps N] [--save FILE] [--check]
  --fixture GROUP  training fixture that is checked, then timed (default: tests/golden/acrlpd_tiny of this repository)
  --steps N        steps to measure, after two that are not (default: 20)
  --save FILE      write the results here instead of to stdout
  --check          hold the numbers to the fixture, time nothing
The device is wgpu's best; CUBECL_WGPU_DEFAULT_DEVICE=Cpu (or DiscreteGpu(0), …) names another.";

struct Args {
    fixture: PathBuf,
    steps: usize,
    save: Option<PathBuf>,
    check: bool,
}

fn main() -> ExitCode {
    match arguments().and_then(|args| args.map_or(Ok(()), |args| run(&args))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// None if help was asked for.
fn arguments() -> anyhow::Result<Option<Args>> {
    let mut args = Args {
        fixture: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../tests/golden/acrlpd_tiny"),
        steps: 20,
        save: None,
        check: false,
    };
    let mut given = std::env::args().skip(1);
    while let Some(flag) = given.next() {
        let mut value = || given.next().with_context(|| format!("{flag} needs a value"));
        match flag.as_str() {
            "--fixture" => args.fixture = value()?.into(),
            "--steps" => args.steps = value()?.parse().context("--steps takes a number")?,
            "--save" => args.save = Some(value()?.into()),
            "--check" => args.check = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => bail!("{other} is not known\n{USAGE}"),
        }
    }
    ensure!(args.steps > 0, "--steps takes numbers from 1 on");
    Ok(Some(args))
}

/// What of burn is on.
fn way() -> String {
    let mut way = "cached, keeping".to_owned();
    for (on, name) in [
        (cfg!(feature = "fusion"), "fusion"),
        (cfg!(feature = "autotune"), "autotune"),
    ] {
        way += if on { ", " } else { ", no " };
        way += name;
    }
    way
}

fn run(args: &Args) -> anyhow::Result<()> {
    let golden = Golden::read(&args.fixture)?;
    let device = WgpuDevice::DefaultDevice;
    let setup = init_setup::<graphics::AutoGraphicsApi>(&device, Default::default());
    let adapter = setup.adapter.get_info();
    eprintln!("{} ({:?})", adapter.name, adapter.backend);

    let worst =
        check::check::<Engine>(&golden, &device).context("this is not the same computation, so nothing was timed")?;
    eprintln!("{}: right ({worst})", way());
    if args.check {
        return Ok(());
    }
    let row = measured(&golden, &device, args.steps)?;
    eprintln!(
        "{} ({}): {:.1} ms",
        golden.name,
        way(),
        row["step"]["median_ms"].as_f64().unwrap_or(f64::NAN)
    );
    let all = json!({
        "format": 1, "kind": "step", "program": "burn 0.21.0", "device": adapter.name,
        "api": format!("wgpu ({:?})", adapter.backend), "dtype": "float32", "rows": [row],
    });
    let text = serde_json::to_string_pretty(&all)? + "\n";
    match &args.save {
        Some(path) => std::fs::write(path, text).with_context(|| path.display().to_string())?,
        None => print!("{text}"),
    }
    Ok(())
}

/// Whole steps, from the batch on the host to averages on the device.
fn measured(golden: &Golden, device: &WgpuDevice, steps: usize) -> anyhow::Result<Value> {
    let host = golden.batch(0);
    let mut step = Step::<Engine>::load(golden, &under(&golden.critic, "online/"), None, device)?;
    let once = |mut step: Step<Engine>| {
        let began = Instant::now();
        let batch = Batch::upload(&host, &golden.dims, device)?;
        let gradients = step.backward(step.losses(&batch));
        (step, _) = step.update(gradients, [1e-6; 2]);
        if let Err(error) = Engine::sync(device) {
            bail!("the device failed: {error}");
        }
        Ok((step, began.elapsed()))
    };
    let (first, mut times);
    (step, first) = once(step)?;
    (step, _) = once(step)?;
    times = Vec::new();
    for _ in 0..steps {
        let time;
        (step, time) = once(step)?;
        times.push(time);
    }
    times.sort();
    let ms = |time: Duration| 1e3 * time.as_secs_f64();
    let at = |share: f64| ms(times[((times.len() - 1) as f64 * share).round() as usize]);
    Ok(json!({
        "name": golden.name, "way": way(), "status": "ok", "samples": golden.samples, "candidates": golden.candidates,
        "step": { "median_ms": at(0.5), "p10_ms": at(0.1), "p90_ms": at(0.9) },
        "samples_per_s": 1e3 * golden.samples as f64 / at(0.5), "first_step_ms": ms(first), "steps": steps,
    }))
}
