//! A learner whose weights are in halves against one with f32 weights and bf16 copies of them, on the emulated CUDA device:
//! the same bits after every update, in norms and in checkpoints, which either can load.

use std::path::Path;

use acrlpd::checkpoint;
use acrlpd::config::Config;
use acrlpd::data::NormStats;
use acrlpd::data::norm_stats::Stats;
use acrlpd::gpu::{Caps, DType, Gpu};
use acrlpd::model::params::{ParamStore, Room};
use acrlpd::rng::Key;
use acrlpd::step::Learner;
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::train::handover::{Cut, Handover, Identity};
use acrlpd::train::snapshot;
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-2,
    critic: 1e-3,
    temperature: 1e-3,
};

/// A learner in bf16 with the weights of the golden group.
fn learner(group: &TrainingGroup, halves: bool) -> Learner {
    let gpu = Gpu::emulated_cuda(90).expect("a C++ compiler");
    let gpu = gpu.with_caps(|c| Caps { u16: halves, ..c });
    let mut config = group.config().expect("a step");
    config.dtype = DType::Bf16;
    let learner = group.learner(&gpu, config).expect("a learner");
    assert_eq!(learner.pi0.compute.is_none(), halves);
    learner
}

/// Bits of everything of a store, in order; with `high`, of what kernels bind.
fn bits(gpu: &Gpu, store: &ParamStore, high: bool) -> Vec<u32> {
    let ranges = store.named().into_iter().flat_map(|(_, ranges)| ranges);
    let read = |range: acrlpd::ops::split::Values| {
        if high {
            gpu.read_f32(&range.high)
        } else {
            range.read(gpu)
        }
    };
    let values = ranges.flat_map(|range| read(range).expect("the device works"));
    values.map(f32::to_bits).collect()
}

/// One update with random gradients; norms of all rooms' weights.
fn update(learner: &Learner, step: u64) -> Vec<f64> {
    let gpu = &learner.gpu;
    let mut key = 0;
    for store in [&learner.pi0.grads, &learner.critic.grads] {
        store.write(gpu, |tensor| {
            key += 1;
            let mut values = vec![0.0; tensor.len()];
            Key::new(1000 * step + key).normals(&mut values);
            Some(values)
        });
    }
    let metrics = Metrics::new(learner, 1);
    optimizer::update(learner, &metrics, step, RATES);
    optimizer::weight_norms(learner, &metrics);
    let values = metrics.read(gpu).expect("the device works");
    Room::ALL.iter().map(|&room| values.weight_norm(&[room])).collect()
}

fn states(learner: &Learner) -> [Vec<u32>; 4] {
    let (gpu, pi0) = (&learner.gpu, &learner.pi0);
    let compute = pi0.compute.as_ref().unwrap_or(&pi0.weights);
    let average = pi0.average.as_ref().expect("an average");
    [
        bits(gpu, &pi0.weights, false),
        bits(gpu, compute, true),
        bits(gpu, average, false),
        bits(gpu, &pi0.m, false),
    ]
}

#[test]
fn halves_are_whole_weights_in_updates_norms_and_checkpoints() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group");
    let (whole, halves) = (learner(&group, false), learner(&group, true));
    assert!(states(&whole) == states(&halves), "weights as loaded");
    let start = bits(&halves.gpu, &halves.pi0.weights, false);
    for step in 0..2 {
        assert_eq!(update(&whole, step), update(&halves, step), "norms");
        assert!(states(&whole) == states(&halves), "after update {step}");
    }
    let now = bits(&halves.gpu, &halves.pi0.weights, false);
    assert!(now != start, "weights have moved");

    // A checkpoint of halves holds the f32 weights, and one of either goes into the other.
    let dir = tempfile::tempdir().expect("a folder");
    let stats = || Stats {
        mean: vec![0.0],
        std: vec![1.0],
        q01: None,
        q99: None,
    };
    let stats = NormStats {
        state: stats(),
        actions: stats(),
    };
    let config = Config::default();
    let saved = |learner: &Learner, name: &str| {
        let dir = dir.path().join(name);
        let identity = Identity {
            dir: &dir,
            config: &config,
            stats: &stats,
        };
        let handover = Handover::begin(learner, &identity, 2, 0, Cut::new(0)).expect("a device");
        let saving = handover.finish().expect("a device");
        let (folder, _) = saving.wait().expect("a checkpoint");
        checkpoint::open(&folder).expect("a checkpoint")
    };
    let (from_whole, from_halves) = (saved(&whole, "whole"), saved(&halves, "halves"));
    let (new_whole, new_halves) = (learner(&group, false), learner(&group, true));
    snapshot::restore(&new_whole, &from_halves).expect("restored");
    snapshot::restore(&new_halves, &from_whole).expect("restored");
    for restored in [&new_whole, &new_halves] {
        assert!(states(restored) == states(&halves));
    }
}
