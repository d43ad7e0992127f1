//! The long form: three seeds, two runs each, tried at every checkpoint, and the figures of docs/RESULTS.md.

use std::path::{Path, PathBuf};

use crate::agent::{Agent, Rated};
use crate::demonstrations::perfect_clone;
use crate::figures::Chart;
use crate::statistics::{Share, rank_correlation};
use crate::trial::{CHOICES, Trial};
use crate::world::Outcome;

const SEEDS: [u64; 3] = [1, 2, 3];
const DEMONSTRATIONS: usize = 500;
const STEPS: u64 = 800;
/// Between two checkpoints.
const INTERVAL: u64 = 100;
/// Starts from which the policies of the last checkpoints are tried, and those before.
const STARTS: usize = 256;
const STARTS_BEFORE: usize = 128;

/// The runs of a seed, and what sets them apart.
const RUNS: [(&str, &[(&str, &str)]); 2] = [
    ("cloned", &[("acrlpd.actor_loss_weight", "0")]),
    (
        "ACRLPD",
        &[("acrlpd.actor_loss_weight", "0.1"), ("acrlpd.num_action_samples", "4")],
    ),
];
/// One colour for each run, acting by one sample and by choice.
const COLOURS: [[&str; 2]; 2] = [["#9ecae1", "#2171b5"], ["#fdbe85", "#d94701"]];
const GOOD: &str = "#31a354";
const BAD: &str = "#de2d26";

/// What a checkpoint can do.
struct Point {
    step: f64,
    /// By one sample, and by the critics' choice.
    success: [Share; 2],
    rated: Vec<Rated>,
}

impl Point {
    fn new(trial: &Trial, agent: &Agent, step: u64) -> Point {
        let starts = if step == STEPS { STARTS } else { STARTS_BEFORE };
        Point {
            step: step as f64,
            success: [1, CHOICES].map(|n| trial.success(agent, n, starts)),
            rated: agent.rate_held_out(),
        }
    }

    fn mean_q(&self, success: bool) -> f64 {
        let q: Vec<f64> = self
            .rated
            .iter()
            .filter(|r| r.success == success)
            .map(|r| r.q)
            .collect();
        q.iter().sum::<f64>() / q.len() as f64
    }

    fn correlation(&self) -> f64 {
        let column = |f: fn(&Rated) -> f64| self.rated.iter().map(f).collect::<Vec<_>>();
        rank_correlation(&column(|r| r.q), &column(|r| r.value))
    }
}

/// What came of a seed.
struct Seed {
    demonstrations: Share,
    perfect_clone: f64,
    /// Checkpoints of each run.
    runs: [Vec<Point>; 2],
}

impl Seed {
    fn new(seed: u64) -> Seed {
        let trial = Trial::new(seed, DEMONSTRATIONS);
        let schedule = [
            ("num_train_steps", STEPS.to_string()),
            ("save_interval", INTERVAL.to_string()),
            ("optimizer.actor.decay_steps", STEPS.to_string()),
            ("optimizer.critic.decay_steps", STEPS.to_string()),
        ];
        let schedule: Vec<(&str, &str)> = schedule.iter().map(|(key, value)| (*key, &value[..])).collect();
        let runs = RUNS.map(|(name, changes)| {
            let folders = trial.train(name, &[&schedule, changes].concat());
            let agent = trial.agent();
            let steps = (1..).map(|i| i * INTERVAL);
            let point = |(folder, step): (&PathBuf, u64)| {
                println!("after {step} steps");
                agent.load(folder);
                Point::new(&trial, &agent, step)
            };
            folders.iter().zip(steps).map(point).collect()
        });
        let episodes = &trial.demonstrations;
        Seed {
            demonstrations: Share {
                k: episodes.iter().filter(|e| e.outcome == Outcome::Reached).count(),
                n: episodes.len(),
            },
            perfect_clone: perfect_clone(episodes),
            runs,
        }
    }

    fn last(&self, run: usize) -> &Point {
        self.runs[run].last().expect("a checkpoint")
    }
}

#[test]
#[ignore = "trains for a quarter of an hour and writes docs/figures"]
fn over_three_seeds() {
    let seeds = SEEDS.map(Seed::new);
    report(&seeds);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/figures");
    success_bars(&seeds).save(&folder.join("learning-success.svg"));
    success_curves(&seeds).save(&folder.join("learning-curves.svg"));
    value_curves(&seeds).save(&folder.join("learning-values.svg"));
    for seed in &seeds {
        let [single, chosen] = seed.last(0).success;
        assert!(single.interval().1 < chosen.interval().0, "{single:?} {chosen:?}");
        let correlation = seed.last(0).correlation();
        assert!(correlation > 0.6, "{correlation}");
    }
}

/// Prints the tables of docs/RESULTS.md.
fn report(seeds: &[Seed]) {
    println!(
        "| seed | demonstrations | perfect clone | cloned | cloned, best of {CHOICES} | ACRLPD | ACRLPD, best of {CHOICES} |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, seed) in SEEDS.iter().zip(seeds) {
        let cell = |share: Share| {
            let (low, high) = share.interval();
            format!("{:.2} ({low:.2}–{high:.2})", share.rate())
        };
        let arms: Vec<String> = (0..2).flat_map(|run| seed.last(run).success).map(cell).collect();
        let (shown, perfect) = (seed.demonstrations.rate(), seed.perfect_clone);
        println!("| {name} | {shown:.2} | {perfect:.2} | {} |", arms.join(" | "));
    }
    println!(
        "\n| seed | held-out episodes | Q of successes | Q of failures | rank correlation |\n|---|---|---|---|---|"
    );
    for (name, seed) in SEEDS.iter().zip(seeds) {
        let point = seed.last(0);
        let (good, bad) = (point.mean_q(true), point.mean_q(false));
        println!(
            "| {name} | {} | {good:.2} | {bad:.2} | {:.2} |",
            point.rated.len(),
            point.correlation()
        );
    }
}

/// Names and colours of the four ways to act.
fn arms() -> Vec<(String, &'static str)> {
    let of = |run: usize| {
        let name = RUNS[run].0;
        let [single, chosen] = COLOURS[run];
        [
            (name.to_owned(), single),
            (format!("{name}, best of {CHOICES}"), chosen),
        ]
    };
    (0..2).flat_map(of).collect()
}

fn with_legend(mut chart: Chart) -> Chart {
    let arms = arms();
    chart.legend(
        &arms
            .iter()
            .map(|(name, colour)| (&name[..], *colour))
            .collect::<Vec<_>>(),
    );
    chart
}

fn success_bars(seeds: &[Seed]) -> Chart {
    let ticks: Vec<(f64, String)> = SEEDS
        .iter()
        .enumerate()
        .map(|(i, s)| (i as f64 + 0.5, format!("seed {s}")))
        .collect();
    let title = format!("Success from {STARTS} starts, with 95 % intervals; dashed: a perfect clone");
    let mut chart = with_legend(Chart::new(&title, "", seeds.len() as f64, &ticks));
    for (i, seed) in seeds.iter().enumerate() {
        let shares = (0..2).flat_map(|run| seed.last(run).success);
        for (j, (share, (_, colour))) in shares.zip(arms()).enumerate() {
            let x = i as f64 + 0.2 + 0.2 * j as f64;
            chart.bar(x, 0.17, share.rate(), share.interval(), colour);
        }
    }
    let mean = seeds.iter().map(|s| s.perfect_clone).sum::<f64>() / seeds.len() as f64;
    chart.level(mean, "#222");
    chart
}

fn steps_chart(title: &str) -> Chart {
    let ticks: Vec<(f64, String)> = (0..=5)
        .map(|i| i as f64 * STEPS as f64 / 5.0)
        .map(|x| (x, format!("{x}")))
        .collect();
    Chart::new(title, "optimizer steps", STEPS as f64, &ticks)
}

fn success_curves(seeds: &[Seed]) -> Chart {
    let title = format!("Success during training, from {STARTS_BEFORE} starts; one line a seed");
    let mut chart = with_legend(steps_chart(&title));
    for seed in seeds {
        for (run, points) in seed.runs.iter().enumerate() {
            for (way, colour) in COLOURS[run].iter().enumerate() {
                let line: Vec<(f64, f64)> = points.iter().map(|p| (p.step, p.success[way].rate())).collect();
                chart.line(&line, colour);
            }
        }
    }
    chart
}

fn value_curves(seeds: &[Seed]) -> Chart {
    let mut chart = steps_chart("Mean Q of held-out episodes (cloned); one line a seed");
    chart.legend(&[("successes", GOOD), ("failures", BAD)]);
    for seed in seeds {
        for (success, colour) in [(true, GOOD), (false, BAD)] {
            let line: Vec<(f64, f64)> = seed.runs[0].iter().map(|p| (p.step, p.mean_q(success))).collect();
            chart.line(&line, colour);
        }
    }
    chart
}
