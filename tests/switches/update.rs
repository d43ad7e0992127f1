//! Switches of the update: what is frozen, averaged, guarded or left for later.

use acrlpd::model::freeze::Freeze;
use acrlpd::model::params::Room;
use acrlpd::ops::optimizers::Lion;
use acrlpd::step::config::{Features, GroupConfig, LossWeights, StepConfig};
use acrlpd::step::metrics::Slot;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;

use crate::bench::{Bench, Named, assert_bits, assert_near, bits, read};

/// Names of π₀'s tensors that are in a room.
fn room_of(e: &crate::bench::Evaluation, name: &str) -> Room {
    let table = e.learner.pi0.weights.placement().table().clone();
    let unit = table.units.iter().find(|u| {
        let mut tensors = u.groups.iter().flat_map(|g| &g.tensors);
        tensors.any(|t| t.name == name)
    });
    unit.expect("the name is in the table").room
}

/// Every choice of rooms but all, and filters of every kind.
fn frozen() -> Vec<Freeze> {
    let rooms = (0..7u32).map(|learning| {
        let fixed = Room::PI0
            .into_iter()
            .enumerate()
            .filter(|(i, _)| learning & (1 << i) == 0);
        fixed.fold(Freeze::NOTHING, |freeze, (_, room)| freeze.room(room))
    });
    let filters: [&[&str]; 9] = [
        &["*norm*"],
        &["*", "!*norm*"],
        &["*", "!*.self_attn.*"],
        &["*.bias"],
        &["*", "!*.language_model.layers.2.*"],
        &[
            "*",
            "!*vision_model.encoder.layers.1.mlp.fc2.*",
            "!*.gemma_expert.*layers.3.mlp.*",
        ],
        &[
            "*",
            "!action_out_proj.*",
            "!*.language_model.layers.1.self_attn.o_proj.*",
        ],
        &["*", "!state_proj.weight"],
        &["*embed*", "*.language_model.layers.0.*", "action_*"],
    ];
    let filters = filters.map(|names| names.iter().fold(Freeze::NOTHING, |freeze, name| freeze.names(name)));
    rooms.chain(filters).collect()
}

#[test]
fn what_is_frozen_has_no_gradient_and_stays() {
    let bench = Bench::open();
    for features in [Features::Embedding, Features::Llm] {
        let config = StepConfig {
            features,
            feature_grad: true,
            ..bench.config()
        };
        let full = bench.evaluate(config.clone());
        for freeze in frozen() {
            let e = bench.evaluate(StepConfig {
                freeze: freeze.clone(),
                ..config.clone()
            });
            let what = format!("{freeze:?}, {features:?}");
            let learns = |name: &str| freeze.learns(room_of(&e, name), name);
            for name in full.pi0.keys() {
                assert_eq!(e.pi0.contains_key(name), learns(name), "{what}: memory of {name}");
            }
            assert_bits(&what, &e.critic, &full.critic);
            if !e.pi0.is_empty() {
                assert_near(&what, &e.pi0, &full.pi0, 1e-6);
            }

            let before = read(&bench.gpu, &e.learner.pi0.weights);
            assert_eq!(e.update(0).get(Slot::Skipped), 0.0, "{what}");
            let after = read(&bench.gpu, &e.learner.pi0.weights);
            for (name, values) in &before {
                let same = bits(values) == bits(&after[name]);
                // What learns moves by weight decay at least, unless it is zero and has no gradient.
                let still = values.iter().all(|w| *w == 0.0);
                assert!(if learns(name) { !same || still } else { same }, "{what}: {name}");
            }
        }
    }
}

#[test]
fn an_update_with_a_number_that_is_not_finite_is_skipped() {
    let bench = Bench::open();
    let config = bench.group.config().unwrap();
    assert!(config.temperature.is_some());
    let good = bench.batches(1);
    let mut reward = good.clone();
    reward[0].reward[2] = f32::NAN;
    let mut noise = good.clone();
    noise[0].noise.bc[0] = f32::INFINITY;
    for (what, bad) in [("reward", &reward), ("noise", &noise)] {
        let e = bench.evaluate_on(config.clone(), bad, true);
        let before = bench.state(&e.learner);
        assert_eq!(e.update(0).get(Slot::Skipped), 1.0, "{what}");
        assert_bits(what, &bench.state(&e.learner), &before);

        // A good step afterwards is as if the bad one had not been.
        let first = bench.evaluate_on(config.clone(), &good, true);
        e.metrics.clear(&bench.gpu);
        micro_batch(&e.learner, &e.metrics, &good[0], true);
        assert_eq!(e.update(0).get(Slot::Skipped), 1.0, "{what}: skipped so far");
        assert_eq!(first.update(0).get(Slot::Skipped), 0.0);
        assert_bits(what, &bench.state(&e.learner), &bench.state(&first.learner));
    }
}

/// What it learns on one batch is checked by the losses on that batch.
#[test]
fn lion_learns_with_one_moment_and_leaves_nothing_of_another() {
    let bench = Bench::open();
    let config = bench.group.config().unwrap();
    let lion = Lion {
        beta1: 0.9,
        beta2: 0.99,
        weight_decay: 0.0,
    };
    let with_lion = |group: GroupConfig| GroupConfig {
        optimizer: lion.into(),
        ..group
    };
    let config = StepConfig {
        pi0: with_lion(config.pi0),
        critic: with_lion(config.critic),
        weights: LossWeights {
            actor: 0.0,
            ..config.weights
        },
        ..config
    };
    let e = bench.evaluate(config);
    assert!(e.learner.pi0.v.is_none() && e.learner.critic.v.is_none());
    let rates = Rates {
        pi0: 2e-4,
        critic: 2e-4,
        temperature: 1e-3,
    };
    for step in 0..20 {
        optimizer::update(&e.learner, &e.metrics, step, rates);
        e.metrics.clear(&bench.gpu);
        micro_batch(&e.learner, &e.metrics, &bench.batches(1)[0], true);
    }
    let after = e.metrics.read(&bench.gpu).unwrap();
    for slot in [Slot::CriticLoss, Slot::BcLoss] {
        let (before, after) = (e.loss(slot), after.get(slot));
        assert!(after < 0.8 * before, "{slot:?} from {before} to {after}");
    }
    assert_eq!(after.get(Slot::Skipped), 0.0);
}

#[test]
fn the_average_only_watches() {
    let bench = Bench::open();
    let with = bench.evaluate(bench.config());
    let without = bench.evaluate(StepConfig {
        ema_decay: None,
        ..bench.config()
    });
    assert!(without.learner.pi0.average.is_none());
    with.update(0);
    without.update(0);
    let (got, all) = (bench.state(&without.learner), bench.state(&with.learner));
    assert_bits("without an average", &got, &all);
    let extra: Vec<_> = all.keys().filter(|k| !got.contains_key(*k)).collect();
    assert!(!extra.is_empty() && extra.iter().all(|k| k.starts_with("pi0 average")));
}

#[test]
fn the_temperature_touches_nothing_else() {
    let bench = Bench::open();
    let with = bench.evaluate(bench.group.config().unwrap());
    let without = bench.evaluate(bench.config());
    let alpha = |e: &crate::bench::Evaluation| bench.state(&e.learner)["log α"][0];
    let before = alpha(&with);
    with.update(0);
    without.update(0);
    assert_bits(
        "no temperature",
        &bench.state(&without.learner),
        &bench.state(&with.learner),
    );
    assert_ne!(alpha(&with), before);
}

#[test]
fn pi0_waits_for_its_turn() {
    let bench = Bench::open();
    let config = StepConfig {
        actor_update_freq: 2,
        ..bench.group.config().unwrap()
    };
    let e = bench.evaluate_on(config.clone(), &bench.batches(1), config.updates_pi0(0));
    e.update(0);
    let before = bench.state(&e.learner);
    e.metrics.clear(&bench.gpu);
    micro_batch(&e.learner, &e.metrics, &bench.batches(1)[0], config.updates_pi0(1));
    assert_eq!(e.update(1).gradient_norm(&Room::PI0), 0.0);
    let after = bench.state(&e.learner);
    let of = |part: &str, all: &Named| -> Named {
        let named = all.iter().filter(|(name, _)| name.starts_with(part));
        named.map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    assert_bits("π₀", &of("pi0", &after), &of("pi0", &before));
    assert_bits("temperature", &of("log α", &after), &of("log α", &before));
    assert!(of("critic", &after) != of("critic", &before));
}
