//! A prompt table of which only the rows that occurred have gradient, moments and average, against one of which all have:
//! the same bits after every update, in norms, in what the policy does, and in checkpoints, which either can load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use acrlpd::checkpoint::{self, Saved, state};
use acrlpd::config::Config;
use acrlpd::data::NormStats;
use acrlpd::data::norm_stats::Stats;
use acrlpd::gpu::{DType, DeviceChoice, Gpu};
use acrlpd::model::freeze::Freeze;
use acrlpd::model::params::{ParamStore, ParamTensor, Room};
use acrlpd::ops::blockwise::{BLOCK, Format};
use acrlpd::ops::optimizers::{AdamW, Lion, Optimizer};
use acrlpd::ops::split::Values;
use acrlpd::step::config::StepConfig;
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::{Learner, MicroBatch, act, schedule};
use acrlpd::train::handover::{Cut, Handover, Identity};
use acrlpd::train::recipe;
use acrlpd::train::snapshot;
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-3,
    critic: 3e-3,
    temperature: 1e-2,
};

/// Decays slowly enough that rows that never occurred stand still at these rates.
const ADAMW: AdamW = AdamW {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-6,
    weight_decay: 1e-6,
};

const TABLE: &str = "embed_tokens.weight";

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    Gpu::open(choice.parse::<DeviceChoice>().expect("ACRLPD_TEST_DEVICE")).expect("tests need a device")
}

fn group() -> TrainingGroup {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group")
}

fn step(group: &TrainingGroup, optimizer: Optimizer) -> StepConfig {
    let mut config = group.config().expect("a step");
    config.pi0.optimizer = optimizer;
    config.actor_update_freq = 2;
    config
}

/// Learners with the weights of the golden group, of the first of which all rows learn.
fn both(gpu: &Gpu, group: &TrainingGroup, config: &StepConfig) -> [Learner; 2] {
    [None, Some(40)].map(|prompt_rows| {
        let config = StepConfig {
            prompt_rows,
            ..config.clone()
        };
        let learner = group.learner(gpu, config).expect("a learner");
        assert_eq!(learner.touched().is_some(), prompt_rows.is_some());
        learner
    })
}

/// The micro-batches of a step: prompts of some tokens that are in all of them, and others that change every other step.
fn batches(group: &TrainingGroup, step: u64) -> Vec<MicroBatch> {
    let half = group.batch / 2;
    let mut parts: Vec<MicroBatch> = [0..half, half..group.batch]
        .into_iter()
        .map(|range| group.micro(0, range).expect("a batch"))
        .collect();
    for (i, part) in parts.iter_mut().enumerate() {
        for observations in [&mut part.current, &mut part.next] {
            for token in observations.masks.prompts.iter_mut().flatten() {
                let (kind, rank) = ((*token + i as u32) % 5, *token % 2 * (step as u32 / 2 + 1));
                *token = (5 * rank + kind) * 17;
            }
        }
    }
    parts
}

/// One step; norms of gradients and weights of all rooms.
fn train(learner: &Learner, group: &TrainingGroup, step: u64) -> Vec<u64> {
    let metrics = Metrics::new(learner, group.batch);
    for part in batches(group, step) {
        schedule::micro_batch(learner, &metrics, &part, learner.config.updates_pi0(step));
    }
    optimizer::update(learner, &metrics, step, RATES);
    optimizer::weight_norms(learner, &metrics);
    let values = metrics.read(&learner.gpu).expect("the device works");
    let norms = |room: Room| [values.gradient_norm(&[room]), values.weight_norm(&[room])];
    Room::ALL.into_iter().flat_map(norms).map(f64::to_bits).collect()
}

type Named = BTreeMap<String, Vec<u32>>;

fn read(gpu: &Gpu, named: Vec<(ParamTensor, Vec<Values>)>) -> Named {
    let values = |ranges: Vec<Values>| {
        let read = ranges
            .into_iter()
            .flat_map(|range| range.read(gpu).expect("the device works"));
        read.map(f32::to_bits).collect::<Vec<u32>>()
    };
    named.into_iter().map(|(t, ranges)| (t.name, values(ranges))).collect()
}

/// Every bit of π₀ and its states, the table as a whole.
fn states(learner: &Learner) -> [Named; 4] {
    let (gpu, pi0) = (&learner.gpu, &learner.pi0);
    let moment = |store: &ParamStore| {
        let mut named = read(gpu, store.named());
        if let Some(touched) = learner.touched() {
            let (name, rows) = named
                .iter_mut()
                .find(|(name, _)| name.ends_with(TABLE))
                .expect("a table");
            let width = learner.dims.language.width;
            assert_eq!(rows.len(), touched.len() * width, "{name}");
            let mut whole = vec![0; learner.dims.vocab * width];
            for (id, row) in touched.ids().into_iter().zip(rows.chunks(width)) {
                whole[id as usize * width..][..width].copy_from_slice(row);
            }
            *rows = whole;
        }
        named
    };
    let average = pi0.average.as_ref().expect("an average");
    [
        read(gpu, pi0.weights.named()),
        read(gpu, pi0.weights.named_with(average)),
        moment(&pi0.m),
        pi0.v.as_ref().map_or(Named::new(), moment),
    ]
}

#[track_caller]
fn same(a: &Learner, b: &Learner, when: &str) {
    for ((a, b), what) in states(a).iter().zip(&states(b)).zip(["weights", "average", "m", "v"]) {
        assert!(a.keys().eq(b.keys()));
        for (name, values) in a {
            assert!(*values == b[name], "{what} of {name} {when}");
        }
    }
}

/// Trains both kinds and holds them to each other after every step.
#[track_caller]
fn the_same(gpu: &Gpu, config: &StepConfig, steps: u64) {
    let group = group();
    let [dense, touched] = both(gpu, &group, config);
    let start = states(&touched);
    same(&dense, &touched, "as loaded");
    let mut learning = 0;
    for step in 0..steps {
        let norms = train(&dense, &group, step);
        assert_eq!(norms, train(&touched, &group, step), "norms of step {step}");
        if config.updates_pi0(step) {
            let norm = (0..3)
                .map(|room| f64::from_bits(norms[2 * room]).powi(2))
                .sum::<f64>()
                .sqrt();
            assert!(norm > f64::from(config.pi0.clip), "the clip is active: {norm}");
        }
        same(&dense, &touched, &format!("after step {step}"));
        let now = touched.touched().expect("rows").len();
        assert!(now > learning || step % 2 == 1, "step {step} brings no new token");
        learning = now;
    }
    let table = |named: &Named| {
        named
            .iter()
            .find(|(name, _)| name.ends_with(TABLE))
            .expect("a table")
            .1
            .clone()
    };
    for (now, start) in states(&touched).iter().zip(&start).take(2) {
        let width = touched.dims.language.width;
        let (now, start) = (table(now), table(start));
        let moved = now
            .chunks(width)
            .zip(start.chunks(width))
            .filter(|(a, b)| a != b)
            .count();
        assert_eq!(moved, learning, "rows that moved are those that occurred");
    }

    // What a policy does, with prompts of which some tokens have never been learned from.
    let mut observations = group.micro(0, 0..group.batch).expect("a batch").current;
    observations.masks.prompts[0][0] = 511;
    let width = touched.dims.action_horizon * touched.dims.action_dim;
    let noise = vec![0.25; 2 * group.batch * width];
    let [a, b] = [&dense, &touched].map(|learner| {
        let choice = act::act(learner, &observations, &noise, None);
        gpu.read_f32(&choice.candidates).expect("the device works")
    });
    assert!(a == b && a.iter().all(|v| v.is_finite()));
}

#[test]
fn rows_that_occur_learn_as_all_do() {
    let (gpu, group) = (device(), group());
    the_same(&gpu, &step(&group, ADAMW.into()), 6);
    let separate = StepConfig {
        separate_prefixes: true,
        skip_dead_rows: true,
        actor_update_freq: 1,
        ..step(&group, ADAMW.into())
    };
    the_same(&gpu, &separate, 2);
    let on_host = StepConfig {
        ema_on_host: true,
        ..step(&group, ADAMW.into())
    };
    the_same(&gpu, &on_host, 3);
    let lion = Lion {
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 1e-6,
    };
    the_same(&gpu, &step(&group, lion.into()), 3);
}

/// Weights whose copies to compute with lie apart, and weights in halves.
#[test]
fn half_precision_makes_no_difference() {
    let (gpu, group) = (device(), group());
    let as_stored = |dtype| StepConfig {
        dtype,
        ..step(&group, ADAMW.into())
    };
    if gpu.caps().f16 {
        the_same(&gpu, &as_stored(DType::F16), 3);
    }
    let gpu = Gpu::emulated_cuda(90).expect("a C++ compiler");
    the_same(&gpu, &as_stored(DType::Bf16), 3);
}

fn stats() -> NormStats {
    let one = || Stats {
        mean: vec![0.0],
        std: vec![1.0],
        q01: None,
        q99: None,
    };
    NormStats {
        state: one(),
        actions: one(),
    }
}

fn save(learner: &Learner, dir: &Path, name: &str) -> Saved {
    let (config, stats) = (Config::default(), stats());
    let identity = Identity {
        dir: &dir.join(name),
        config: &config,
        stats: &stats,
    };
    let handover = Handover::begin(learner, &identity, 3, 0, Cut::new(0)).expect("a device");
    let saving = handover.finish().expect("a device");
    let (folder, _) = saving.wait().expect("a checkpoint");
    checkpoint::open(&folder).expect("a checkpoint")
}

#[test]
fn either_goes_on_from_the_checkpoint_of_either() {
    let (gpu, group) = (device(), group());
    let config = StepConfig {
        actor_update_freq: 1,
        ..step(&group, ADAMW.into())
    };
    let dir = tempfile::tempdir().expect("a folder");
    let run = both(&gpu, &group, &config);
    for step in 0..3 {
        run.iter().for_each(|learner| drop(train(learner, &group, step)));
    }
    let saved = [save(&run[0], dir.path(), "dense"), save(&run[1], dir.path(), "touched")];
    // All but the optimizer's file are the same.
    for name in [state::PARAMS, state::EMA, state::CRITIC] {
        let [a, b] = [&saved[0], &saved[1]].map(|saved| std::fs::read(saved.file(name).expect(name)).expect(name));
        assert!(a == b, "{name}");
    }
    let ids = run[1].touched().expect("rows").ids();
    assert_eq!(saved[1].state().prompt_rows.as_ref(), Some(&ids));
    assert_eq!(saved[0].state().prompt_rows, None);
    let optimizer = saved[1].tensors(state::OPTIMIZER).expect("an optimizer");
    let rows = optimizer.iter().find(|t| t.name.ends_with(TABLE)).map(|t| t.shape[0]);
    assert_eq!(rows, Some(ids.len()));

    for step in 3..6 {
        run.iter().for_each(|learner| drop(train(learner, &group, step)));
    }
    for (from, saved) in saved.iter().enumerate() {
        let resumed = both(&gpu, &group, &config);
        // Whatever these learned before is forgotten.
        drop(train(&resumed[1], &group, 9));
        for learner in &resumed {
            snapshot::restore(learner, saved).expect("restored");
        }
        if from == 1 {
            assert_eq!(resumed[1].touched().expect("rows").ids(), ids);
        }
        // Whatever the pieces in which the table is read: ends of rows within them, or pieces within a row.
        let whole = resumed.each_ref().map(states);
        for piece in [1000, 50] {
            for (learner, whole) in resumed.iter().zip(&whole) {
                drop(train(learner, &group, 9));
                snapshot::restore_in_pieces(learner, saved, piece).expect("restored");
                assert!(states(learner) == *whole, "checkpoint {from} in pieces of {piece}");
            }
        }
        for step in 3..6 {
            resumed.iter().for_each(|learner| drop(train(learner, &group, step)));
        }
        for learner in &resumed {
            same(&run[0], learner, &format!("after going on from checkpoint {from}"));
        }
    }

    // One that has no room for what was saved says so and stays as it is.
    let small = group
        .learner(
            &gpu,
            StepConfig {
                prompt_rows: Some(2),
                ..config
            },
        )
        .expect("a learner");
    let before = states(&small);
    for saved in &saved {
        let error = snapshot::restore(&small, saved).expect_err("there is no room");
        assert!(error.to_string().contains("memory.prompt_rows"), "{error}");
        assert!(states(&small) == before);
    }
}

/// Relative distance of values from others, by the L2 norm.
fn apart(a: &[u32], b: &[u32]) -> f64 {
    let value = |bits: &u32| f64::from(f32::from_bits(*bits));
    let squares = |of: &mut dyn Iterator<Item = f64>| of.map(|v| v * v).sum::<f64>().sqrt();
    let distance = squares(&mut a.iter().zip(b).map(|(a, b)| value(a) - value(b)));
    distance / squares(&mut b.iter().map(value))
}

/// Moments in 8 bits of rows of which four share a block, and of which the last block has fewer.
#[test]
fn rows_that_do_not_fill_their_blocks_learn_in_8_bits() {
    // Every other one, so that each brings new tokens.
    const STEPS: [u64; 4] = [0, 2, 4, 6];
    const SAVED: usize = 2;
    let (gpu, group) = (device(), group());
    let learner = |prompt_rows, moments| {
        let config = StepConfig {
            actor_update_freq: 1,
            prompt_rows,
            moments,
            ..step(&group, ADAMW.into())
        };
        group.learner(&gpu, config).expect("a learner")
    };
    let whole = learner(Some(64), Format::Float32);
    let in_blocks = learner(Some(64), Format::Blockwise8);
    let dense = learner(None, Format::Blockwise8);
    let mut all = vec![&whole, &in_blocks, &dense];
    // Rows that the steps bring: these shall be all there is room for, and end within a block.
    let tokens = |step: u64| batches(&group, step).into_iter().flat_map(|b| b.current.masks.prompts);
    let ids: BTreeSet<u32> = STEPS.into_iter().flat_map(tokens).flatten().collect();
    let exact = learner(Some(ids.len()), Format::Blockwise8);
    all.push(&exact);
    let values = ids.len() * exact.dims.language.width;
    assert!(!values.is_multiple_of(BLOCK), "{values} values are whole blocks");

    let dir = tempfile::tempdir().expect("a folder");
    let mut saved = None;
    for (i, step) in STEPS.into_iter().enumerate() {
        let norms: Vec<_> = all.iter().map(|learner| train(learner, &group, step)).collect();
        assert_eq!(norms[1], norms[3], "norms of step {step}");
        same(&in_blocks, &exact, &format!("after step {step}"));
        if step == 0 {
            // An update moves weights before it rounds moments.
            for (a, b) in states(&exact).iter().zip(&states(&whole)).take(2) {
                assert!(a == b, "weights of the first step");
            }
        }
        if i + 1 == SAVED {
            let learned = exact.touched().expect("rows").len() * exact.dims.language.width;
            assert!(!learned.is_multiple_of(BLOCK), "{learned} values are whole blocks");
            saved = Some((save(&exact, dir.path(), "exact"), states(&exact)));
        }
    }
    assert_eq!(exact.touched().expect("rows").len(), ids.len(), "there is no room left");

    let of = |learner: &Learner| {
        let all = states(learner);
        let table = |named: &Named| {
            named
                .iter()
                .find(|(name, _)| name.ends_with(TABLE))
                .map(|(_, v)| v.clone())
        };
        all.each_ref().map(|named| table(named).expect("a table"))
    };
    let reference = of(&whole);
    for (learner, name) in [(&exact, "few rows"), (&dense, "all rows")] {
        let got = of(learner);
        let [p, _, m, v] = [0, 1, 2, 3].map(|i| apart(&got[i], &reference[i]));
        println!("{name}: weights {p:.1e}, first moment {m:.4}, second moment {v:.4} from those in f32");
        assert!(p < 1e-3 && m < 0.05 && v < 0.05, "{name}: {p}, {m}, {v}");
    }

    // From a checkpoint, the last block written in several pieces, too.
    let (saved, then) = saved.expect("a checkpoint");
    for piece in [1000, 50] {
        let resumed = learner(Some(ids.len()), Format::Blockwise8);
        snapshot::restore_in_pieces(&resumed, &saved, piece).expect("restored");
        for (now, then) in states(&resumed).iter().zip(&then) {
            assert!(now == then, "read in pieces of {piece}");
        }
        for &step in &STEPS[SAVED..] {
            train(&resumed, &group, step);
        }
        same(&exact, &resumed, &format!("after going on, read in pieces of {piece}"));
    }
}

#[test]
fn a_token_without_room_stops_the_run_with_a_sentence() {
    let (gpu, group) = (device(), group());
    let config = StepConfig {
        prompt_rows: Some(2),
        ..step(&group, ADAMW.into())
    };
    let learner = group.learner(&gpu, config).expect("a learner");
    let metrics = Metrics::new(&learner, group.batch);
    schedule::micro_batch(&learner, &metrics, &batches(&group, 0)[0], true);
    let error = gpu.check().expect_err("there is no room").to_string();
    assert!(
        error.contains("memory.prompt_rows") && error.contains("2 different tokens") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn a_configuration_that_moves_all_rows_gets_the_whole_table() {
    let mut config = Config::load("rl_fold_box").expect("a preset");
    assert_eq!(recipe::prompt_rows(&config), Ok(config.memory.prompt_rows));
    assert_eq!(
        recipe::step_config(&config).prompt_rows,
        Some(config.memory.prompt_rows)
    );
    config.optimizer.actor.weight_decay = 0.1;
    let why = recipe::prompt_rows(&config).expect_err("rows that never occur move");
    assert!(why.contains("weight_decay"), "{why}");
    assert_eq!(recipe::step_config(&config).prompt_rows, None);
    let mut config = Config::load("rl_fold_box").expect("a preset");
    config.set("memory.prompt_states", "dense").expect("a value");
    assert_eq!(recipe::step_config(&config).prompt_rows, None);
    // What is frozen needs no room.
    let group = group();
    let mut config = step(&group, ADAMW.into());
    (config.prompt_rows, config.freeze) = (Some(40), Freeze::NOTHING.room(Room::Language));
    assert!(group.learner(&device(), config).expect("a learner").touched().is_none());
}
