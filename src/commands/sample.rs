//! `acrlpd sample`: what a trained policy does in front of recorded frames.

use std::path::PathBuf;

use acrlpd::checkpoint::{self, CheckpointError, Weights, state};
use acrlpd::config::Config;
use acrlpd::data::NormStats;
use acrlpd::gpu::Gpu;
use acrlpd::train::setup::{self, Source};
use acrlpd::train::{TrainError, eval, snapshot};
use serde::Serialize;

use super::Outcome;
use super::flags::DeviceFlag;
use super::table::{number, table};

#[derive(clap::Args)]
pub struct Args {
    /// A checkpoint (…/STEP), or a run's folder (its newest).
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Folder of a LeRobot dataset; without it, the one trained on.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Frames to act on: global indices; without it, eight spread over the dataset.
    #[arg(long, value_name = "I,J,…", value_delimiter = ',')]
    frames: Vec<usize>,
    /// Use the averaged weights.
    #[arg(long)]
    ema: bool,
    #[command(flatten)]
    device: DeviceFlag,
    /// Print JSON, with all actions.
    #[arg(long)]
    json: bool,
}

/// What happened at one frame.
#[derive(Serialize)]
struct Sampled {
    frame: usize,
    episode: i64,
    /// The critics' choice among N, `[H, action_dim]`, in the model's normalised units and in the dataset's.
    actions_normalized: Vec<Vec<f64>>,
    actions: Vec<Vec<f64>>,
    recorded: Vec<Vec<f64>>,
    /// Mean absolute errors against the recorded chunk, over the steps that happened.
    error: f64,
    error_normalized: f64,
    q: f64,
    q_recorded: f64,
}

pub fn run(args: &Args) -> Outcome {
    let folder = checkpoint::resolve(&args.checkpoint)?;
    let saved = checkpoint::open(&folder)?;
    let mut config = Config::parse(&saved.config()?, folder.join(state::CONFIG))?;
    if let Some(data) = &args.data {
        config.set("data.path", &data.display().to_string())?;
    }
    let stats = NormStats::read(saved.file(state::NORM_STATS)?)?;
    let source = Source::open(&config, Some(stats), |_, _| ())?;
    let frames = match args.frames.is_empty() {
        true => spread(&source, 8),
        false => args.frames.clone(),
    };

    let gpu = Gpu::open(args.device.device)?;
    let learner = setup::learner(&gpu, &config)?;
    snapshot::restore(&learner, &saved)?;
    if args.ema {
        let ema: Result<Weights, CheckpointError> = saved.tensors(state::EMA);
        let ema = ema?;
        snapshot::check(&learner, &ema)?;
        snapshot::load(&learner, &ema)?;
    }

    let collator = setup::collator(&config);
    let real = config.qchunking.action_dim;
    let mut all = Vec::new();
    for frames in frames.chunks(config.micro_batch()) {
        let batch = source.builder.build(frames).map_err(TrainError::from)?;
        let choice = eval::choose(&learner, &collator, &batch);
        let winner = gpu.read_u32(&choice.winner)?;
        let candidates = gpu.read_f32(&choice.candidates)?;
        let best = gpu.read_f32(&choice.best)?;
        let recorded_q = choice
            .recorded_q
            .map(|q| gpu.read_f32(&q))
            .transpose()?
            .unwrap_or_default();
        let robot = |normalized: &[Vec<f64>], frame: usize| -> Vec<Vec<f64>> {
            let mut flat = normalized.concat();
            source.builder.actions_to_robot(&mut flat, frame);
            flat.chunks(real).map(<[f64]>::to_vec).collect()
        };
        for (s, &frame) in frames.iter().enumerate() {
            let (h, a) = (config.model.action_horizon, config.model.action_dim);
            let first = (winner[s] as usize * frames.len() + s) * h * a;
            let ours = rows(&candidates[first..first + h * a], a, real);
            let theirs = rows(&batch.actions[s * h * a..(s + 1) * h * a], a, real);
            let valid = &batch.action_valid[s * h..(s + 1) * h];
            let (actions, recorded) = (robot(&ours, frame), robot(&theirs, frame));
            let members = recorded_q.len() / frames.len().max(1);
            let q_of_recorded = (0..members).map(|e| f64::from(recorded_q[e * frames.len() + s]));
            all.push(Sampled {
                frame,
                episode: batch.episode_index[s],
                error: mean_error(&actions, &recorded, valid),
                error_normalized: mean_error(&ours, &theirs, valid),
                actions_normalized: ours,
                actions,
                recorded,
                q: f64::from(best[s]),
                q_recorded: q_of_recorded.sum::<f64>() / members.max(1) as f64,
            });
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(0);
    }
    println!("checkpoint {} on {}", folder.display(), gpu.caps().name);
    let mut t = table(
        &[
            "frame",
            "episode",
            "error",
            "error (normalised)",
            "Q",
            "Q of the recorded",
        ],
        0,
    );
    for s in &all {
        t.add_row([
            s.frame.to_string(),
            s.episode.to_string(),
            number(s.error),
            number(s.error_normalized),
            number(s.q),
            number(s.q_recorded),
        ]);
    }
    println!("{t}");
    println!(
        "errors: mean over {} steps and {} coordinates, in the dataset's units and in standard units",
        config.model.action_horizon, config.qchunking.action_dim
    );
    Ok(0)
}

/// `n` frames, evenly spread over those that may start a chunk.
fn spread(source: &Source, n: usize) -> Vec<usize> {
    let all: Vec<usize> = source
        .builder
        .starts()
        .iter()
        .flat_map(|s| s.first..s.first + s.count)
        .collect();
    let n = n.min(all.len());
    (0..n).map(|i| all[i * all.len() / n]).collect()
}

/// The first `real` coordinates of every row of `width`.
fn rows(values: &[f32], width: usize, real: usize) -> Vec<Vec<f64>> {
    let row = |row: &[f32]| row[..real].iter().map(|v| f64::from(*v)).collect();
    values.chunks(width).map(row).collect()
}

fn mean_error(ours: &[Vec<f64>], theirs: &[Vec<f64>], valid: &[bool]) -> f64 {
    let steps = ours.iter().zip(theirs).zip(valid).filter(|(_, valid)| **valid);
    let errors: Vec<f64> = steps
        .flat_map(|((x, y), _)| x.iter().zip(y).map(|(x, y)| (x - y).abs()))
        .collect();
    errors.iter().sum::<f64>() / errors.len().max(1) as f64
}
