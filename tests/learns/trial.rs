//! One seed: its demonstrations, training runs on them, and how often their policies succeed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use acrlpd::checkpoint;
use acrlpd::config::Config;
use acrlpd::rng::Key;
use acrlpd::train::metrics::Row;
use acrlpd::train::signals::Stop;
use acrlpd::train::{self, Observer, Options, Preparation, Start};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::demonstrations::{self, Episode};
use crate::statistics::Share;
use crate::world::Outcome;

/// Candidates that the critics choose from.
pub const CHOICES: usize = 8;

/// Names the worlds in which policies are tried: those of no demonstration.
const TRIED: u64 = u64::MAX;

pub struct Trial {
    pub demonstrations: Vec<Episode>,
    seed: u64,
    config: Config,
    _folder: TempDir,
}

impl Trial {
    /// Writes `count` demonstrations to a folder that lives as long as the trial.
    pub fn new(seed: u64, count: usize) -> Trial {
        let folder = tempfile::tempdir().expect("a folder");
        let demonstrations = demonstrations::demonstrate(seed, count);
        let data = folder.path().join("data");
        demonstrations::write(&data, &demonstrations);
        let mut config = Config::load("tests/learns/reach.toml").expect("a configuration");
        config.seed = seed;
        config.data.path = Some(data);
        config.checkpoint_dir = folder.path().join("runs");
        Trial {
            demonstrations,
            seed,
            config,
            _folder: folder,
        }
    }

    /// Trains with `changes` to the configuration; the run's checkpoints, oldest first.
    pub fn train(&self, exp_name: &str, changes: &[(&str, &str)]) -> Vec<PathBuf> {
        let mut config = self.config.clone();
        for (key, value) in changes {
            config.set(key, value).expect("a key");
        }
        config.validate().expect("a valid configuration");
        let dir = config.run_dir(exp_name);
        let options = Options {
            config,
            exp_name: exp_name.into(),
            start: Start::Fresh,
            device: crate::device(),
            device_memory: None,
            memory_fraction: 0.9,
            dry_run: false,
            watch: false,
            profile: false,
            started: Instant::now(),
        };
        let finish = train::run(&options, &Stop::default(), &mut Printer).expect("it trains");
        println!(
            "seed {}, {exp_name}: {} steps in {:.0?}",
            self.seed, finish.end, finish.elapsed
        );
        assert_eq!(finish.skipped, 0, "every gradient was finite");
        let steps = checkpoint::steps(&dir).expect("a run's folder");
        steps.iter().map(|step| dir.join(step.to_string())).collect()
    }

    pub fn agent(&self) -> Agent {
        Agent::new(&self.config)
    }

    /// How often the target is reached from `starts` starts, by the best of `candidates` chunks.
    pub fn success(&self, agent: &Agent, candidates: usize, starts: usize) -> Share {
        let worlds = agent.walk(Key::new(self.seed).fold(TRIED), starts, candidates);
        let ended = |how: Outcome| worlds.iter().filter(|w| w.outcome == how).count();
        let [reached, sunk, late] = [Outcome::Reached, Outcome::Sunk, Outcome::Late].map(ended);
        println!("best of {candidates}: {reached} reached the target, {sunk} sank, {late} were late");
        Share { k: reached, n: starts }
    }
}

/// Prints the rows of a run.
struct Printer;

impl Observer for Printer {
    fn stage(&mut self, _: &str) {}
    fn statistics(&mut self, _: usize, _: usize) {}
    fn begin(&mut self, _: &Preparation<'_>) {}
    fn step(&mut self, _: u64) {}
    fn row(&mut self, row: &Row) {
        println!(
            "step {:5}: critic {:.4}, actor {:.4}, cloning {:.4}, Q {:.3}; {:.1} steps/s",
            row.step, row.critic_loss, row.actor_loss, row.bc_loss, row.q, row.steps_per_s
        );
    }
    fn saved(&mut self, _: &Path, _: Duration) {}
}
