//! `acrlpd eval`: how well a trained policy and its critics know recorded episodes.

use std::io::IsTerminal;

use acrlpd::train::eval::{self, Evaluation, Means, Score};
use acrlpd::train::{TrainError, setup};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde::Serialize;

use super::Outcome;
use super::policy::PolicyFlags;
use super::table::{number, table};

/// Chunks that are looked at if nobody says how many.
const SAMPLES: usize = 256;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    policy: PolicyFlags,
    /// Episodes to look at: `held-out` (those that training left out), `all`, or numbers.
    #[arg(long, default_value = "held-out", value_name = "held-out|all|I,J,…")]
    episodes: String,
    /// Chunks, evenly spread over the episodes; 0 for every frame that may start one.
    #[arg(long, default_value_t = SAMPLES, value_name = "N")]
    samples: usize,
    /// Print JSON, with the score of every chunk.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    checkpoint: String,
    step: u64,
    dataset: String,
    episodes: &'a [usize],
    evaluation: &'a Evaluation,
    scores: &'a [Score],
}

pub fn run(args: &Args) -> Outcome {
    let policy = args.policy.open()?;
    let episodes = episodes(&args.episodes, &policy.source)?;
    let frames = policy.spread(&episodes, args.samples);
    let collator = setup::collator(&policy.config);
    let bar = ProgressBar::new(frames.len() as u64).with_prefix("eval");
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let mut scores = Vec::with_capacity(frames.len());
    for part in frames.chunks(policy.config.micro_batch()) {
        let batch = policy.source.builder.build(part).map_err(TrainError::from)?;
        scores.extend(eval::scores(
            &policy.learner,
            &collator,
            &policy.source.builder,
            &batch,
        )?);
        bar.inc(part.len() as u64);
    }
    bar.finish_and_clear();
    let Some(evaluation) = Evaluation::of(&scores) else {
        anyhow::bail!(
            "--episodes {} has no frame that may start a chunk of {} actions; give --episodes all, or longer episodes",
            args.episodes,
            policy.config.model.action_horizon
        );
    };
    let dataset = policy.source.builder.dataset().info().root.display().to_string();
    if args.json {
        let output = Output {
            checkpoint: policy.folder.display().to_string(),
            step: policy.step,
            dataset,
            episodes: &episodes,
            evaluation: &evaluation,
            scores: &scores,
        };
        println!("{}", serde_json::to_string_pretty(&output)?);
        return Ok(0);
    }
    println!(
        "checkpoint {} on {dataset}, {} episodes",
        policy.folder.display(),
        episodes.len()
    );
    print(&evaluation);
    Ok(0)
}

/// The episodes that `text` means.
fn episodes(text: &str, source: &setup::Source) -> anyhow::Result<Vec<usize>> {
    let count = source.builder.dataset().episodes().len();
    match text {
        "all" => Ok((0..count).collect()),
        "held-out" if source.episodes.eval.is_empty() => {
            anyhow::bail!("--episodes held-out: training held none of the {count} episodes out; give --episodes all")
        }
        "held-out" => Ok(source.episodes.eval.clone()),
        numbers => numbers
            .split(',')
            .map(|number| match number.trim().parse() {
                Ok(episode) if episode < count => Ok(episode),
                _ => anyhow::bail!(
                    "--episodes {text}: `{number}` is not one of the {count} episodes (counted from 0); give held-out, \
                     all, or numbers"
                ),
            })
            .collect(),
    }
}

fn print(e: &Evaluation) {
    let groups: Vec<(&str, &Means)> = [
        ("all", Some(&e.all)),
        ("good", e.good.as_ref()),
        ("bad", e.bad.as_ref()),
    ]
    .into_iter()
    .filter_map(|(name, means)| Some((name, means?)))
    .collect();
    let header: Vec<&str> = std::iter::once("").chain(groups.iter().map(|g| g.0)).collect();
    let mut t = table(&header, 1);
    let mut row = |name: String, value: &dyn Fn(&Means) -> String| {
        t.add_row(std::iter::once(name).chain(groups.iter().map(|g| value(g.1))));
    };
    row("chunks".into(), &|m| m.samples.to_string());
    row("action error, one sample (normalised)".into(), &|m| {
        number(m.action_error)
    });
    row("action error, critics' choice".into(), &|m| number(m.best_action_error));
    row("flow loss".into(), &|m| number(m.flow_loss));
    row("Q of the recorded chunk".into(), &|m| number(m.q));
    row("Q of the critics' choice".into(), &|m| number(m.best_q));
    for joint in 0..e.all.joint_error.len() {
        row(format!("error of joint {joint} (dataset's units)"), &|m| {
            format!(
                "{} / {}",
                number(m.joint_error[joint]),
                number(m.best_joint_error[joint])
            )
        });
    }
    println!("{t}");
    println!("errors are mean absolute differences from the recorded actions; joints: one sample / critics' choice");
    println!(
        "rank correlation of Q with the return: {}",
        e.rank_correlation.map_or("none (all returns are equal)".into(), number)
    );
    println!(
        "critics rate their choice above the recorded chunk in {:.0} % of cases",
        100.0 * e.choice_preferred
    );
}
