//! Switches that change how a step is computed, and not what comes out.

use acrlpd::model::remat::Remat;
use acrlpd::step::batch::{MicroBatch, Observations, Pictures};
use acrlpd::step::config::{Features, Objective, StepConfig};

use crate::bench::{Bench, Evaluation, LOSSES, assert_bits, assert_losses, assert_near};

/// Another order of the same f32 operations, relative L2 of a gradient.
const ROUNDING: f64 = 1e-5;
/// The same for a loss, relative.
const LOSS_ROUNDING: f32 = 1e-5;

#[track_caller]
fn assert_equal(what: &str, got: &Evaluation, want: &Evaluation) {
    assert_losses(what, got, want, LOSS_ROUNDING);
    assert_near(what, &got.pi0, &want.pi0, ROUNDING);
    assert_near(what, &got.critic, &want.critic, ROUNDING);
}

#[track_caller]
fn assert_same_bits(what: &str, got: &Evaluation, want: &Evaluation) {
    for slot in LOSSES {
        assert_eq!(got.loss(slot).to_bits(), want.loss(slot).to_bits(), "{what}: {slot:?}");
    }
    assert_bits(what, &got.pi0, &want.pi0);
    assert_bits(what, &got.critic, &want.critic);
}

#[test]
fn the_same_step_has_the_same_bits() {
    let bench = Bench::open();
    let [a, b] = [(); 2].map(|()| bench.evaluate(bench.config()));
    assert_same_bits("again", &b, &a);
    a.update(0);
    b.update(0);
    assert_bits("after an update", &bench.state(&b.learner), &bench.state(&a.learner));
}

#[test]
fn rows_without_weight_may_be_left_out() {
    let bench = Bench::open();
    for objective in [Objective::BestOfN, Objective::MeanN] {
        let config = StepConfig {
            objective,
            ..bench.config()
        };
        let all = bench.evaluate(config.clone());
        let skipped = bench.evaluate(StepConfig {
            skip_dead_rows: true,
            ..config
        });
        let who = &skipped.outcome.who;
        assert!(
            who.actors.len() < bench.group.batch,
            "the batch has a sample without weight"
        );
        assert!(who.boots.len() < bench.group.batch, "the batch has a terminal");
        assert!(who.cloned.len() < bench.group.batch, "the batch has a negative");
        assert_equal(&format!("skip, {objective:?}"), &skipped, &all);
    }
}

#[test]
fn values_may_be_computed_again_instead_of_kept() {
    let bench = Bench::open();
    for features in [Features::Embedding, Features::Llm] {
        let config = StepConfig {
            features,
            feature_grad: true,
            ..bench.config()
        };
        let kept = bench.evaluate(config.clone());
        for remat in [Remat::Mlp, Remat::Full] {
            let again = bench.evaluate(StepConfig {
                remat,
                ..config.clone()
            });
            assert_same_bits(&format!("{remat:?}, {features:?}"), &again, &kept);
        }
    }
}

#[test]
fn cloning_may_have_a_prefix_of_its_own() {
    let bench = Bench::open();
    let shared = bench.evaluate(bench.config());
    let separate = bench.evaluate(StepConfig {
        separate_prefixes: true,
        ..bench.config()
    });
    assert_equal("separate prefixes", &separate, &shared);
}

/// The fixture's batch as a chain: each sample ends with what the next one begins with.
fn chain(bench: &Bench) -> MicroBatch {
    let (mut batch, mut singles) = (bench.batches(1).remove(0), bench.batches(bench.group.batch));
    let last = singles.pop().expect("the batch has samples");
    let starts = singles.into_iter().skip(1).map(|single| single.current);
    batch.next = starts
        .chain([last.current, last.next])
        .reduce(join)
        .expect("there are two");
    batch
}

fn join(mut all: Observations, one: Observations) -> Observations {
    all.masks.cameras.extend(one.masks.cameras);
    all.masks.prompts.extend(one.masks.prompts);
    all.state.extend(one.state);
    let (Pictures::Floats(pictures), Pictures::Floats(more)) = (&mut all.pictures, one.pictures) else {
        panic!("fixtures hold floats");
    };
    pictures.extend(more);
    all
}

#[test]
fn a_chain_may_share_prefixes() {
    let bench = Bench::open();
    let plain = chain(&bench);
    let b = plain.len();
    let next_is = (0..b).map(|i| (i + 1 < b).then_some(i + 1)).collect();
    let linked = MicroBatch {
        next_is,
        ..plain.clone()
    };
    for (skip_dead_rows, features) in [(false, Features::Embedding), (true, Features::Llm)] {
        let config = StepConfig {
            skip_dead_rows,
            features,
            ..bench.config()
        };
        let [apart, shared] =
            [&plain, &linked].map(|batch| bench.evaluate_on(config.clone(), std::slice::from_ref(batch), true));
        let alone = shared.outcome.who.alone;
        assert!(
            alone <= 1 && alone < shared.outcome.who.boots.len(),
            "{alone} next prefixes are left"
        );
        assert_equal(&format!("shared prefixes, {features:?}"), &shared, &apart);
    }
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    let bench = Bench::open();
    for skip_dead_rows in [false, true] {
        let config = StepConfig {
            skip_dead_rows,
            ..bench.config()
        };
        let whole = bench.evaluate(config.clone());
        for pieces in [2, 4] {
            let parts = bench.evaluate_on(config.clone(), &bench.batches(pieces), true);
            assert_equal(
                &format!("{pieces} micro-batches, skip {skip_dead_rows}"),
                &parts,
                &whole,
            );
        }
    }
}
