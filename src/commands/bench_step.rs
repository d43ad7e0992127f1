//! `acrlpd bench step`: whole training steps.

use std::path::{Path, PathBuf};

use acrlpd::bench::Status;
use acrlpd::bench::step::{self, Case, StepResults, StepRow, Subject};
use acrlpd::config::{Config, Remat};
use acrlpd::gpu::{Caps, Gpu, Roofline};
use acrlpd::ops::roofline;
use acrlpd::train::plan::{self, Plan};
use acrlpd::train::setup::{self, Source};
use acrlpd::verify::{Fixture, TrainingGroup};

use super::flags::{ConfigFlags, DeviceFlag};
use super::table::{bytes, number, table};
use super::{FAILED, Outcome};

/// Host time that may be needed for a step, as a share of it.
const HOST_SHARE: f64 = 0.1;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Take sizes, weights and batch from this training fixture instead (the configuration still names the rates).
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["ladder", "candidates", "synthetic"])]
    fixture: Option<PathBuf>,
    /// Random batches of the fullest kind, also where the configuration has a dataset.
    #[arg(long)]
    synthetic: bool,
    /// Several sizes: all widths divided by these (1 = as it is). Without numbers 64, 16, 4 and 1. What does not fit the
    /// device is left out.
    #[arg(long, value_name = "N,…", value_delimiter = ',', num_args = 0..=1, default_missing_value = "64,16,4,1")]
    ladder: Option<Vec<usize>>,
    /// Candidates per state (N); of several numbers each is measured, and what the more of them cost.
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    candidates: Vec<usize>,
    /// Tokens of every prompt of a random batch.
    #[arg(long, default_value_t = 8, value_name = "N")]
    prompt_tokens: usize,
    #[command(flatten)]
    device: DeviceFlag,
    /// Steps to measure, after three that are not.
    #[arg(long, default_value_t = 20, value_name = "N")]
    steps: usize,
    /// Print the cases for a peer, as JSON, instead of measuring them; needs no device.
    #[arg(long, conflicts_with_all = ["fixture", "save", "peer"], requires = "json")]
    list: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also write the results to this file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Results of benches/peers/step_torch.py, step_jax.py or burn: how fast we are beside each of its ways. May be
    /// repeated.
    #[arg(long, value_name = "FILE")]
    peer: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Outcome {
    let config = args.config.load(&[])?;
    anyhow::ensure!(
        args.ladder.iter().flatten().chain(&args.candidates).all(|&n| n > 0),
        "--ladder and --candidates take numbers from 1 on"
    );
    // Files first: what is wrong with them can be said without a device.
    let peers = args
        .peer
        .iter()
        .map(|path| StepResults::read(path))
        .collect::<Result<Vec<_>, _>>()?;
    let cases = step::cases(&config, args.ladder.as_deref().unwrap_or(&[1]), &args.candidates);
    if args.list {
        let listed = step::listed(&cases, args.prompt_tokens)?;
        super::print(&format!("{}\n", serde_json::to_string_pretty(&listed)?))?;
        return Ok(0);
    }
    let results = match &args.fixture {
        Some(path) => fixture(args, &config, path)?,
        None => measured(args, &config, &cases)?,
    };
    for (peer, path) in peers.iter().zip(&args.peer) {
        results.comparable(peer, path)?;
    }
    if let Some(path) = &args.save {
        results.write(path)?;
    }
    if args.json {
        super::print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&joined(&results, &peers)?)?
        ))?;
    } else {
        show(&results, &peers);
    }
    Ok(if results.passed() { 0 } else { FAILED })
}

/// A training fixture: its weights, its batch.
fn fixture(args: &Args, config: &Config, path: &Path) -> anyhow::Result<StepResults> {
    let group = TrainingGroup::new(Fixture::open(path)?)?;
    let name = path
        .file_name()
        .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let step_config = group.config()?;
    let (best, gpu) = opened(args, step_config.dtype)?;
    let mut results = StepResults::new(
        &gpu.caps().name,
        &gpu.caps().api.to_string(),
        step_config.dtype.name(),
        Some(best),
    );
    let learner = group.learner(&gpu, step_config)?;
    let subject = Subject {
        name: name.trim_end_matches(".json"),
        config,
        learner: &learner,
        parts: &[group.micro(0, 0..group.batch)?],
        plan: None,
        algorithm_tflop: None,
    };
    results.rows.push(step::measure(&subject, best, args.steps)?);
    Ok(results)
}

/// Every case on a device of its own.
fn measured(args: &Args, config: &Config, cases: &[Case]) -> anyhow::Result<StepResults> {
    let random =
        args.synthetic || args.ladder.is_some() || (config.data.path.is_none() && config.data.repo_id.is_none());
    // A dataset's mistakes, too, can be told without a device.
    let source = match random {
        true => None,
        false => Some(Source::open(config, None, |_, _| ())?),
    };
    let dtype = config.model.dtype.into();
    let (best, gpu) = opened(args, dtype)?;
    let caps = gpu.caps().clone();
    drop(gpu);
    let mut results = StepResults::new(&caps.name, &caps.api.to_string(), dtype.name(), Some(best));
    for case in cases {
        // Plans have room for the longest prompts: here that is the length of all.
        let mut case = case.clone();
        if random {
            let tokens = case.config.pi0_dims().max_token_len.min(args.prompt_tokens);
            case.config.model.max_token_len = Some(tokens);
        }
        let (samples, candidates) = (case.config.batch_size, case.config.acrlpd.num_action_samples);
        let without = |status, why: &str| StepRow::without(&case.name, samples, candidates, status, why);
        if !args.json {
            eprintln!("{} …", case.name);
        }
        let row = match planned(&case.config, &caps, args.prompt_tokens) {
            Err(why) => without(Status::Skipped, &why),
            Ok(planned) => one(args, &case, source.as_ref(), &planned, best)
                .unwrap_or_else(|error| without(Status::Failed, &super::sentence(&error))),
        };
        results.rows.push(row);
    }
    Ok(results)
}

/// What the device reaches at best, measured on it, and a fresh one.
fn opened(args: &Args, dtype: acrlpd::gpu::DType) -> anyhow::Result<(Roofline, Gpu)> {
    let gpu = Gpu::open(args.device.choice())?;
    anyhow::ensure!(
        gpu.caps().stores(dtype),
        "{} does not store {}; set --set model.dtype=float32, or use another --device",
        gpu.caps().name,
        dtype.name()
    );
    let best = roofline::measure(&gpu, dtype)?;
    drop(gpu);
    let gpu = Gpu::open(args.device.choice())?;
    gpu.release_memory();
    Ok((best, gpu))
}

/// The plan of a case, or why it does not fit.
fn planned(config: &Config, caps: &Caps, tokens: usize) -> Result<Plan, String> {
    let plan = plan::plan(config, caps.clone(), tokens).map_err(|error| error.to_string())?;
    let room = match caps.memory_bytes {
        Some(bytes) => Some(bytes),
        None if caps.software => free_memory(),
        None => None,
    };
    match room {
        Some(room) if plan.peak_bytes > room => Err(format!(
            "needs {} by the plan, there are {}",
            bytes(plan.peak_bytes),
            bytes(room)
        )),
        _ => Ok(plan),
    }
}

/// Memory of this machine that can be used, where the system says.
fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
}

fn one(args: &Args, case: &Case, source: Option<&Source>, planned: &Plan, best: Roofline) -> anyhow::Result<StepRow> {
    let config = &match source {
        Some(source) => source.with_room(&case.config, None)?,
        None => case.config.clone(),
    };
    let gpu = Gpu::open(args.device.choice())?;
    gpu.release_memory();
    let parts = match source {
        None => step::random_parts(config, args.prompt_tokens),
        Some(source) => {
            let batch = source.builder.build(&source.sampler.draw(0, config.batch_size))?;
            setup::collator(config).micro_batches(0, &batch)
        }
    };
    let learner = setup::learner(&gpu, config)?;
    learner.init(config.seed);
    // What is computed again is no work of the algorithm.
    let mut plain = config.clone();
    plain.memory.remat = Some(Remat::None);
    plain.acrlpd.separate_prefixes = false;
    let algorithm = plan::plan(&plain, Caps::planning(), args.prompt_tokens)?.tflop_per_sample;
    let subject = Subject {
        name: &case.name,
        config,
        learner: &learner,
        parts: &parts,
        // A dataset's batches are smaller than the plan's.
        plan: source.is_none().then_some(planned),
        algorithm_tflop: source.is_none().then_some(algorithm),
    };
    Ok(step::measure(&subject, best, args.steps)?)
}

/// The results with the peers' ratios, for programs.
fn joined(results: &StepResults, peers: &[StepResults]) -> anyhow::Result<serde_json::Value> {
    let mut all = serde_json::to_value(results)?;
    let rows = all["rows"].as_array_mut().into_iter().flatten();
    for (json, row) in rows.zip(&results.rows) {
        let beside = peers
            .iter()
            .flat_map(|peer| peer.beside(row).map(move |found| (peer, found)));
        json["peers"] = beside
            .map(|(peer, (theirs, ratio))| {
                serde_json::json!({
                    "program": peer.program, "device": peer.device, "way": theirs.way, "status": theirs.status,
                    "why": theirs.why, "median_ms": theirs.step.median_ms, "samples_per_s": theirs.samples_per_s,
                    "first_step_ms": theirs.first_step_ms, "peak_bytes": theirs.peak_bytes, "of_peer": ratio,
                })
            })
            .collect();
        json["of_host"] = row.of_host().into();
    }
    all["growth"] = results
        .growth()
        .iter()
        .map(|(base, row, growth)| serde_json::json!({ "from": base.name, "to": row.name, "time": growth }))
        .collect();
    Ok(all)
}

fn show(results: &StepResults, peers: &[StepResults]) {
    let peak = results.roofline.map_or(0.0, |best| 1e-12 * best.flops_per_s);
    println!(
        "{}, {}; best product {} TFLOP/s\n",
        results.device,
        results.dtype,
        number(peak)
    );
    println!("{}", speeds(results));
    println!("\n{}", account(results));
    for row in results.rows.iter().filter(|row| row.why.is_some()) {
        println!("{}: {}", row.name, row.why.as_deref().unwrap_or_default());
    }
    for (base, row, growth) in results.growth() {
        let work = row.algorithm_tflop / base.algorithm_tflop.max(1e-12);
        println!(
            "{} instead of {} candidates ({}): {:.2} of the time, {work:.2} of the work",
            row.candidates, base.candidates, row.name, growth
        );
    }
    if !peers.is_empty() {
        println!("\n{}", beside(results, peers));
    }
    // Of one case all of it; phases of several stand in the JSON.
    if let [row] = &results.rows[..]
        && let Some(profile) = &row.profile
    {
        println!("\none step with a wait after every launch:\n{}", profile.table());
    }
}

fn speeds(results: &StepResults) -> comfy_table::Table {
    let header = [
        "step",
        "samples",
        "N",
        "samples/s",
        "ms",
        "p10",
        "p90",
        "first ms",
        "TFLOP",
        "algorithm",
        "of peak",
    ];
    let mut t = table(&header, 1);
    for row in &results.rows {
        let timed = row.status == Status::Ok;
        let cell = |text: String| if timed { text } else { "-".into() };
        t.add_row([
            row.name.clone(),
            row.samples.to_string(),
            row.candidates.to_string(),
            cell(number(row.samples_per_s)),
            cell(number(row.step.median_ms)),
            cell(number(row.step.p10_ms)),
            cell(number(row.step.p90_ms)),
            cell(number(row.first_step_ms)),
            cell(number(row.tflop)),
            cell(number(row.algorithm_tflop)),
            cell(format!("{:.1} %", 100.0 * row.of_peak)),
        ]);
    }
    t
}

fn account(results: &StepResults) -> comfy_table::Table {
    let header = [
        "step",
        "launches",
        "kernels ms",
        "host ms",
        "of step",
        "code ms",
        "waits",
        "memory",
        "plan",
        "of plan",
        "reserved",
    ];
    let mut t = table(&header, 1);
    for row in results.rows.iter().filter(|row| row.status == Status::Ok) {
        let memory = row.memory.unwrap_or_default();
        let slow = |share: f64| {
            format!(
                "{:.1} %{}",
                100.0 * share,
                if share > HOST_SHARE { " SLOW" } else { "" }
            )
        };
        t.add_row([
            row.name.clone(),
            row.launches.to_string(),
            number(row.kernels_ms),
            row.host_ms.map_or("-".into(), number),
            row.of_host().map_or("-".into(), slow),
            number(row.code_ms),
            row.waits.to_string(),
            bytes(memory.used),
            memory.planned.map_or("-".into(), bytes),
            memory
                .of_plan()
                .map_or("-".into(), |share| format!("{:.1} %", 100.0 * share)),
            bytes(memory.reserved),
        ]);
    }
    t
}

fn beside(results: &StepResults, peers: &[StepResults]) -> comfy_table::Table {
    let header = [
        "step",
        "peer",
        "samples/s",
        "ms",
        "first ms",
        "memory",
        "ours is faster by",
    ];
    let mut t = table(&header, 2);
    for row in &results.rows {
        for peer in peers {
            for (theirs, ratio) in peer.beside(row) {
                let timed = theirs.status == Status::Ok;
                let cell = |x: f64| if timed { number(x) } else { "-".into() };
                t.add_row([
                    row.name.clone(),
                    format!("{} on {}: {}", peer.program, peer.device, theirs.way),
                    cell(theirs.samples_per_s),
                    cell(theirs.step.median_ms),
                    cell(theirs.first_step_ms),
                    theirs.peak_bytes.map_or("-".into(), bytes),
                    match (ratio, &theirs.why) {
                        (Some(ratio), _) => format!("{ratio:.2}"),
                        (None, Some(why)) => why.clone(),
                        (None, None) => "another batch".into(),
                    },
                ]);
            }
        }
    }
    t
}
