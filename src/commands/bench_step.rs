//! `acrlpd bench step`: whole training steps.

use std::path::{Path, PathBuf};

use acrlpd::bench::Status;
use acrlpd::bench::step::{self, Case, StepResults, StepRow, Subject};
use acrlpd::config::{Config, Remat};
use acrlpd::gpu::{Caps, Gpu, Roofline};
use acrlpd::host_memory;
use acrlpd::ops::roofline;
use acrlpd::train::plan::{self, Plan};
use acrlpd::train::setup::{self, Source};
use acrlpd::verify::{Fixture, TrainingGroup};

use super::bench_step_show::{joined, show};
use super::flags::{ConfigFlags, DeviceFlag};
use super::table::bytes;
use super::{FAILED, Outcome};

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
        None if caps.software => host_memory::free(),
        None => None,
    };
    match room {
        Some(room) if plan.reserved_bytes > room => Err(format!(
            "needs {} by the plan, there are {}",
            bytes(plan.reserved_bytes),
            bytes(room)
        )),
        _ => Ok(plan),
    }
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
