//! `acrlpd sample`: what a trained policy does in front of recorded frames.

use acrlpd::train::{TrainError, eval, setup};
use serde::Serialize;

use super::Outcome;
use super::policy::{Policy, PolicyFlags};
use super::table::{number, table};

/// Frames that are looked at if nobody says which.
const FRAMES: usize = 8;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    policy: PolicyFlags,
    /// Frames to act on: global indices; without it, eight spread over the dataset.
    #[arg(long, value_name = "I,J,…", value_delimiter = ',')]
    frames: Vec<usize>,
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
    let policy = args.policy.open()?;
    let Policy {
        config,
        source,
        learner,
        ..
    } = &policy;
    let gpu = &learner.gpu;
    let frames = match args.frames.is_empty() {
        true => policy.spread(
            &(0..source.builder.dataset().episodes().len()).collect::<Vec<_>>(),
            FRAMES,
        ),
        false => args.frames.clone(),
    };

    let collator = setup::collator(config);
    let real = config.qchunking.action_dim;
    let mut all = Vec::new();
    for frames in frames.chunks(config.micro_batch()) {
        let batch = source.builder.build(frames).map_err(TrainError::from)?;
        let choice = eval::choose(learner, &collator, &batch);
        let winner = gpu.read_u32(&choice.winner)?;
        let candidates = gpu.read_f32(&choice.candidates)?;
        let best = gpu.read_f32(&choice.best)?;
        let recorded_q = match &choice.recorded {
            Some(recorded) => gpu.read_f32(&recorded.value)?,
            None => Vec::new(),
        };
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
            all.push(Sampled {
                frame,
                episode: batch.episode_index[s],
                error: mean_error(&actions, &recorded, valid),
                error_normalized: mean_error(&ours, &theirs, valid),
                actions_normalized: ours,
                actions,
                recorded,
                q: f64::from(best[s]),
                q_recorded: f64::from(recorded_q[s]),
            });
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
        return Ok(0);
    }
    println!("checkpoint {} on {}", policy.folder.display(), gpu.caps().name);
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
