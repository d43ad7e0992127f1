//! Switches that change what is learned: against the reference where it has the case, by arithmetic elsewhere.

use acrlpd::ops::ensemble::Aggregate;
use acrlpd::ops::td::TdLoss;
use acrlpd::step::config::{Features, LossWeights, Objective, StepConfig};
use acrlpd::step::metrics::Slot;
use serde_json::Value;

use crate::bench::{Bench, Evaluation, Named, assert_bits, assert_near, golden, norm};

/// Tolerances of the golden fixtures.
pub const FORWARD: f64 = 1e-4;
const GRADIENT: f64 = 5e-4;

/// The step of one case of `switches.json`; a switch or value that is not known fails.
fn configured(bench: &Bench, switches: &Value, weights: &[f32]) -> StepConfig {
    let mut config = StepConfig {
        rule_weights: weights.to_vec(),
        ..bench.config()
    };
    for (switch, value) in switches.as_object().unwrap() {
        match (switch.as_str(), value.as_str(), value.as_bool()) {
            ("feature_grad", _, Some(on)) => config.feature_grad = on,
            ("features", Some("llm"), _) => config.features = Features::Llm,
            ("rule", Some(name), _) => {
                let rule = match name {
                    "mean" => Aggregate::Mean,
                    "weighted" => Aggregate::Weighted,
                    other => panic!("rule {other}"),
                };
                (config.target_rule, config.actor_rule) = (rule, rule);
            }
            ("objective", Some("mean_n"), _) => config.objective = Objective::MeanN,
            other => panic!("switch {other:?}"),
        }
    }
    config
}

/// A gradient's L2 norm, and its product with `sin(1 + i)`, which tells apart what has the same norm.
fn fingerprint(gradient: &[f32]) -> [f64; 2] {
    let wave = |(i, &g): (usize, &f32)| f64::from(g) * (1.0 + i as f64).sin();
    [norm(gradient), gradient.iter().enumerate().map(wave).sum()]
}

#[track_caller]
pub fn assert_fingerprints(what: &str, got: &Named, want: &Value) {
    let pair = |name: &str| -> [f64; 2] {
        let numbers = want.get(name).unwrap_or_else(|| panic!("{what}: {name} is new"));
        [0, 1].map(|i| numbers[i].as_f64().unwrap())
    };
    for (name, gradient) in got {
        let (got, want) = (fingerprint(gradient), pair(name));
        let allowed = match name.strip_suffix("k_proj.bias") {
            // Zero in exact arithmetic: a constant added to all keys cancels in the softmax.
            Some(stem) => 1e-4 * pair(&format!("{stem}v_proj.bias"))[0],
            None => GRADIENT * want[0],
        };
        let off = (got[0] - want[0]).abs().max((got[1] - want[1]).abs());
        assert!(off <= allowed, "{what}: {name} is {got:?}, not {want:?}");
    }
}

#[test]
fn the_reference_has_the_same_losses_and_gradients() {
    let bench = Bench::open();
    let text = std::fs::read_to_string(golden("switches.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let weights = reference["weights"].as_array().unwrap().iter();
    let weights: Vec<f32> = weights.map(|w| w.as_f64().unwrap() as f32).collect();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let what = case["switches"].to_string();
        let e = bench.evaluate(configured(&bench, &case["switches"], &weights));
        for (name, slot) in [
            ("critic_loss", Slot::CriticLoss),
            ("actor_loss", Slot::ActorLoss),
            ("bc_loss", Slot::BcLoss),
        ] {
            let (got, want) = (f64::from(e.loss(slot)), case[name].as_f64().unwrap());
            assert!(
                (got - want).abs() <= FORWARD * want.abs(),
                "{what}: {name} is {got}, not {want}"
            );
        }
        let all: Named = e.pi0.into_iter().chain(e.critic).collect();
        assert_eq!(all.len(), case["gradients"].as_object().unwrap().len(), "{what}");
        assert_fingerprints(&what, &all, &case["gradients"]);
    }
}

#[test]
fn huber_is_half_the_square_near_and_a_line_far_off() {
    let bench = Bench::open();
    let evaluate = |critic_loss| {
        bench.evaluate(StepConfig {
            critic_loss,
            ..bench.config()
        })
    };
    let square = evaluate(TdLoss::Square);
    let (q, y) = (&square.outcome.q, &square.outcome.target);
    let (q, y) = (bench.gpu.read_f32(q).unwrap(), bench.gpu.read_f32(y).unwrap());
    let errors: Vec<f32> = q.iter().enumerate().map(|(i, q)| q - y[i % y.len()]).collect();
    let largest = errors.iter().fold(0.0f32, |a, e| a.max(e.abs()));

    // Every error inside delta: half the square, so half of everything. Halving is exact in f32.
    let near = evaluate(TdLoss::Huber(2.0 * largest));
    assert_eq!(2.0 * near.loss(Slot::CriticLoss), square.loss(Slot::CriticLoss));
    let halves = square.critic.iter();
    let halves: Named = halves
        .map(|(n, g)| (n.clone(), g.iter().map(|g| g / 2.0).collect()))
        .collect();
    assert_near("inside delta", &near.critic, &halves, 1e-6);

    // Most errors outside.
    let delta = largest / 8.0;
    let far = evaluate(TdLoss::Huber(delta));
    let huber = |e: f32| {
        if e.abs() <= delta {
            0.5 * e * e
        } else {
            delta * (e.abs() - 0.5 * delta)
        }
    };
    let weight = &bench.batches(1)[0].chunk_valid;
    let sum: f32 = errors
        .iter()
        .enumerate()
        .map(|(i, &e)| weight[i % y.len()] * huber(e))
        .sum();
    let want = sum / errors.len() as f32;
    let got = far.loss(Slot::CriticLoss);
    assert!((got - want).abs() <= 1e-5 * want, "{got} is not {want}");
    assert!(got < 0.5 * near.loss(Slot::CriticLoss));
    assert_bits("π₀ does not see the critics' loss", &far.pi0, &square.pi0);
}

#[test]
fn gradients_are_the_weighted_sum_of_the_losses_gradients() {
    let bench = Bench::open();
    let weighted = |critic, actor, bc| {
        bench.evaluate(StepConfig {
            weights: LossWeights {
                critic,
                actor,
                bc,
                smoothness: 0.0,
            },
            ..bench.config()
        })
    };
    let (actor, bc) = (weighted(1.0, 1.0, 0.0), weighted(1.0, 0.0, 1.0));
    let both = weighted(0.5, 2.0, -0.25);
    let mix = |name: &String, a: &Vec<f32>| -> Vec<f32> {
        a.iter().zip(&bc.pi0[name]).map(|(a, b)| 2.0 * a - 0.25 * b).collect()
    };
    let want: Named = actor.pi0.iter().map(|(n, a)| (n.clone(), mix(n, a))).collect();
    assert_near("π₀", &both.pi0, &want, 1e-5);
    let halves = actor.critic.iter();
    let halves: Named = halves
        .map(|(n, g)| (n.clone(), g.iter().map(|g| g / 2.0).collect()))
        .collect();
    assert_near("critics", &both.critic, &halves, 1e-6);
    for slot in [Slot::CriticLoss, Slot::ActorLoss, Slot::BcLoss] {
        assert_eq!(both.loss(slot), actor.loss(slot), "{slot:?} is reported unweighted");
    }
}

#[test]
fn a_step_for_the_critics_alone_leaves_pi0_alone() {
    let bench = Bench::open();
    for features in [Features::Embedding, Features::Llm] {
        let config = StepConfig {
            features,
            ..bench.config()
        };
        let full = bench.evaluate(config.clone());
        let alone = bench.evaluate_on(config, &bench.batches(1), false);
        assert_eq!(
            alone.loss(Slot::CriticLoss).to_bits(),
            full.loss(Slot::CriticLoss).to_bits()
        );
        assert_bits("critics", &alone.critic, &full.critic);
        assert!(alone.pi0.values().flatten().all(|&g| g == 0.0));
        assert_eq!((alone.loss(Slot::ActorLoss), alone.loss(Slot::BcLoss)), (0.0, 0.0));
    }
}

#[test]
fn dropout_is_in_the_critic_loss_only() {
    let bench = Bench::open();
    let d = &bench.group.critic_dims;
    let masks = |word: u32| -> Vec<Vec<u32>> {
        let words = |h: &usize| (d.critics * bench.group.batch * h).div_ceil(32);
        d.hidden.iter().map(|h| vec![word; words(h)]).collect()
    };
    let evaluate = |dropout: f32, masks: Vec<Vec<u32>>| {
        let mut batches = bench.batches(1);
        batches[0].dropout = masks;
        let config = StepConfig {
            dropout,
            ..bench.config()
        };
        bench.evaluate_on(config, &batches, true)
    };
    let without = bench.evaluate(bench.config());
    let all_kept = evaluate(0.0, masks(u32::MAX));
    assert_eq!(all_kept.loss(Slot::CriticLoss), without.loss(Slot::CriticLoss));
    assert_near("all kept", &all_kept.critic, &without.critic, 1e-6);

    let half = evaluate(0.5, masks(0x5555_5555));
    assert!((half.loss(Slot::CriticLoss) / without.loss(Slot::CriticLoss) - 1.0).abs() > 1e-2);
    assert_eq!(half.loss(Slot::ActorLoss), without.loss(Slot::ActorLoss));
    let targets = |e: &Evaluation| e.values.q(0).map(|(_, target)| target).collect::<Vec<_>>();
    assert_eq!(targets(&half), targets(&without));
    assert_bits("π₀", &half.pi0, &without.pi0);
    // Hidden units that are dropped in every row teach the next layer nothing: bit i of the mask is element i.
    let (h, next) = (d.hidden[0], &half.critic["critic.layers.1.linear.weight"]);
    assert!(h % 2 == 0, "the mask's period must divide the width");
    let columns = |odd: usize| {
        next.iter()
            .enumerate()
            .filter(move |(i, _)| i % h % 2 == odd)
            .map(|(_, g)| *g)
    };
    assert!(columns(1).all(|g| g == 0.0) && columns(0).any(|g| g != 0.0));
}
