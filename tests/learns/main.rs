//! Proof that it learns: demonstrations of a small task on disk, a training run, and the trained policy in the world.
//!
//! Choosing among several chunks by the critics must succeed clearly more often than the clone of the successful
//! demonstrations that the chunks come from, and the critics must rank episodes they have not seen. The short form runs
//! with all tests; the long one, over three seeds, writes the figures of docs/RESULTS.md.

mod agent;
#[path = "../data_support/mod.rs"]
mod data_support;
mod demonstrations;
mod figures;
mod seeds;

mod statistics;
mod trial;
mod world;

use acrlpd::gpu::DeviceChoice;
use statistics::rank_correlation;
use trial::{CHOICES, Trial};

/// The device of the tests.
fn device() -> DeviceChoice {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    choice.parse().expect("ACRLPD_TEST_DEVICE")
}

#[test]
fn choosing_by_the_critics_beats_the_clone_it_chooses_from() {
    let trial = Trial::new(1, 400);
    let checkpoints = trial.train("clone", &[("acrlpd.actor_loss_weight", "0")]);
    let agent = trial.agent();
    agent.load(checkpoints.last().expect("a checkpoint"));
    let [single, chosen] = [1, CHOICES].map(|n| trial.success(&agent, n, 128));
    let rated = agent.rate_held_out();
    let column = |f: fn(&agent::Rated) -> f64| rated.iter().map(f).collect::<Vec<_>>();
    let correlation = rank_correlation(&column(|r| r.q), &column(|r| r.value));
    println!("one sample {single:?}, best of {CHOICES} {chosen:?}, rank correlation {correlation:.3}");
    // Their 95 % intervals lie apart.
    assert!(single.interval().1 < chosen.interval().0, "{single:?} {chosen:?}");
    assert!(correlation > 0.6, "{correlation}");
}
