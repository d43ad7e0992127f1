//! Parameters of the last language layer that nothing computes with, kept on the host, against the same learner with all
//! parameters on the device: the same bits after every update and in checkpoints, which either can load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use acrlpd::checkpoint::{self, Saved, state};
use acrlpd::config::Config;
use acrlpd::data::NormStats;
use acrlpd::data::norm_stats::Stats;
use acrlpd::gpu::{Caps, DeviceChoice, Gpu};
use acrlpd::model::params::ParamStore;
use acrlpd::model::tables;
use acrlpd::ops::optimizers::AdamW;
use acrlpd::step::config::{Features, StepConfig};
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::{Learner, schedule};
use acrlpd::train::handover::{Cut, Handover, Identity};
use acrlpd::train::snapshot;
use acrlpd::train::{plan, recipe};
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-3,
    critic: 3e-3,
    temperature: 1e-2,
};

type Named = BTreeMap<String, Vec<u32>>;

fn group() -> TrainingGroup {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group")
}

/// All on the device, and without what is unused; updates let both stand still.
fn both(gpu: &Gpu, group: &TrainingGroup) -> [Learner; 2] {
    [false, true].map(|unused_on_host| {
        let mut config = group.config().expect("a step");
        config.pi0.optimizer = AdamW {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-6,
            weight_decay: 1e-6,
        }
        .into();
        config.unused_on_host = unused_on_host;
        group.learner(gpu, config).expect("a learner")
    })
}

fn train(learner: &Learner, group: &TrainingGroup, step: u64) -> Vec<u32> {
    let metrics = Metrics::new(learner, group.batch);
    let batch = group.micro(0, 0..group.batch).expect("a batch");
    schedule::micro_batch(learner, &metrics, &batch, true);
    optimizer::update(learner, &metrics, step, RATES);
    let values = metrics.read(&learner.gpu).expect("the device works");
    let rooms = acrlpd::model::params::Room::ALL;
    rooms
        .iter()
        .map(|room| (values.gradient_norm(&[*room]) as f32).to_bits())
        .collect()
}

fn read(learner: &Learner, store: &ParamStore) -> Named {
    let all = store.read(&learner.gpu).expect("the device works").into_iter();
    all.map(|(name, values)| (name, values.into_iter().map(f32::to_bits).collect()))
        .collect()
}

fn states(learner: &Learner) -> [Named; 4] {
    let pi0 = &learner.pi0;
    let [v, average] = [&pi0.v, &pi0.average].map(|store| store.as_ref().expect("it is kept"));
    [&pi0.weights, average, &pi0.m, v].map(|store| read(learner, store))
}

/// The names of what is unused, which `b` has weights of only.
fn unused(learner: &Learner) -> BTreeSet<String> {
    let table = tables::pi0(&learner.dims);
    let groups = tables::unused(&learner.dims).into_iter();
    let tensors = groups.flat_map(|(unit, group)| table.units[unit].groups[group].tensors.clone());
    tensors.map(|t| t.name).collect()
}

#[track_caller]
fn same(a: &Learner, b: &Learner, start: &Named, when: &str) {
    let unused = unused(a);
    for ((a, b), what) in states(a).iter().zip(&states(b)).zip(["weights", "average", "m", "v"]) {
        let missing: BTreeSet<String> = a.keys().filter(|name| !b.contains_key(*name)).cloned().collect();
        assert_eq!(
            missing,
            if what == "weights" {
                BTreeSet::new()
            } else {
                unused.clone()
            },
            "{what} {when}"
        );
        for (name, values) in b {
            assert!(*values == a[name], "{what} of {name} {when}");
        }
        for name in &unused {
            let still = match what {
                "weights" | "average" => a[name] == start[name],
                _ => a[name].iter().all(|bits| *bits == 0),
            };
            assert!(still, "{what} of {name} {when}");
        }
    }
}

fn save(learner: &Learner, dir: &Path) -> Saved {
    let stats = || Stats {
        mean: vec![0.0],
        std: vec![1.0],
        q01: None,
        q99: None,
    };
    let identity = Identity {
        dir,
        config: &Config::default(),
        stats: &NormStats {
            state: stats(),
            actions: stats(),
        },
    };
    let handover = Handover::begin(learner, &identity, 2, 0, Cut::new(0)).expect("a device");
    let saving = handover.finish().expect("a device");
    checkpoint::open(&saving.wait().expect("a checkpoint").0).expect("a checkpoint")
}

#[test]
fn what_nothing_uses_stays_as_it_is_wherever_it_is() {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let gpu = Gpu::open(choice.parse::<DeviceChoice>().expect("ACRLPD_TEST_DEVICE")).expect("tests need a device");
    let group = group();
    let run = both(&gpu, &group);
    let start = read(&run[0], &run[0].pi0.weights);
    same(&run[0], &run[1], &start, "as loaded");
    let step = |step: u64, [a, b]: [&Learner; 2]| assert_eq!(train(a, &group, step), train(b, &group, step), "norms");
    for i in 0..2 {
        step(i, [&run[0], &run[1]]);
    }
    same(&run[0], &run[1], &start, "after two steps");

    let dir = tempfile::tempdir().expect("a folder");
    let saved = [
        save(&run[0], &dir.path().join("a")),
        save(&run[1], &dir.path().join("b")),
    ];
    for file in [state::PARAMS, state::EMA] {
        let [a, b] = [0, 1].map(|i| saved[i].tensors(file).expect(file));
        for tensor in tables::pi0(&run[0].dims).tensors() {
            let [a, b] = [&a, &b].map(|weights| weights.tensor(tensor).expect("a tensor"));
            assert!(a == b, "{} in {file}", tensor.name);
        }
    }
    let bytes = |saved: &Saved| {
        saved
            .tensors(state::OPTIMIZER)
            .expect("moments")
            .iter()
            .map(|t| t.bytes)
            .sum::<u64>()
    };
    assert!(bytes(&saved[1]) < bytes(&saved[0]));
    step(2, [&run[0], &run[1]]);
    for saved in &saved {
        let resumed = both(&gpu, &group);
        for learner in &resumed {
            snapshot::restore(learner, saved).expect("restored");
        }
        step(2, [&resumed[0], &resumed[1]]);
        same(&run[0], &resumed[1], &start, "after going on");
        same(&resumed[0], &run[1], &start, "after going on");
    }
}

#[test]
fn the_full_model_has_109_million_parameters_less_to_hold() {
    let mut config = Config::load("rl_fold_box").expect("a preset");
    let step = |config: &Config| -> StepConfig { recipe::step_config(config) };
    assert!(step(&config).unused_on_host && step(&config).features == Features::Embedding);
    let bytes = |config: &Config| plan::plan(config, Caps::planning(), 8).expect("a plan").state_bytes;
    let without = bytes(&config);
    // Decay that moves them needs them on the device; so that it is all that changes, the prompt table is dense in both.
    config.memory.prompt_states = acrlpd::config::PromptStates::Dense;
    let dense = bytes(&config);
    config.optimizer.actor.weight_decay = 0.1;
    assert!(!step(&config).unused_on_host);
    let all: usize = {
        let dims = config.pi0_dims();
        let table = tables::pi0(&dims);
        let groups = tables::unused(&dims).into_iter();
        groups.map(|(unit, group)| table.units[unit].groups[group].len()).sum()
    };
    // q lies with k and v, which are used: 4 of the 109 million stay.
    assert_eq!(all, 2048 * 2048 + 2048 + 3 * 2048 * 16384 + 2048);
    let saved = bytes(&config) - dense;
    assert!(
        (saved as f64 / (20 * all) as f64 - 1.0).abs() < 1e-3,
        "{saved} bytes for {all} parameters"
    );
    assert!(without < dense);
}
