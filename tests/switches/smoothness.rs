//! The smoothness of the chosen candidates in the actor's loss: by arithmetic, and by finite differences of whole steps.

use acrlpd::step::config::{LossWeights, Objective, StepConfig};
use acrlpd::step::metrics::{Metrics, Slot};
use acrlpd::step::schedule::micro_batch;

use crate::bench::{Bench, Evaluation, Named, assert_bits, assert_near, norm};

fn weighted(bench: &Bench, objective: Objective, actor: f32, smoothness: f32) -> Evaluation {
    let config = bench.config();
    let weights = LossWeights {
        actor,
        bc: 0.0,
        smoothness,
        ..config.weights
    };
    bench.evaluate(StepConfig {
        weights,
        objective,
        ..config
    })
}

#[test]
fn smoothness_adds_its_gradient_to_the_actor_s() {
    let bench = Bench::open();
    for objective in [Objective::BestOfN, Objective::MeanN] {
        let [actor, smoothness, both] =
            [(1.0, 0.0), (0.0, 1.0), (2.0, 0.5)].map(|(a, s)| weighted(&bench, objective, a, s));
        let mix = |(name, a): (&String, &Vec<f32>)| {
            let s = &smoothness.pi0[name];
            (name.clone(), a.iter().zip(s).map(|(a, s)| 2.0 * a + 0.5 * s).collect())
        };
        let want: Named = actor.pi0.iter().map(mix).collect();
        assert_near("π₀", &both.pi0, &want, 1e-5);
        assert_bits("critics", &both.critic, &actor.critic);
        assert!(norm(&smoothness.pi0.values().flatten().copied().collect::<Vec<_>>()) > 0.0);
        assert_eq!(actor.loss(Slot::SmoothnessLoss), 0.0);
        let reported = both.loss(Slot::SmoothnessLoss);
        assert!(
            reported > 0.0 && reported == smoothness.loss(Slot::SmoothnessLoss),
            "{reported}"
        );
    }
}

#[test]
fn the_loss_is_that_of_the_chosen_chunks() {
    let bench = Bench::open();
    let e = weighted(&bench, Objective::MeanN, 0.0, 1.0);
    let (d, weight) = (&bench.group.dims, &bench.batches(1)[0].chunk_valid);
    let (h, a, joints) = (d.action_horizon, d.action_dim, bench.group.critic_dims.real_action_dim);
    let (n, b, t) = (e.learner.config.candidates, weight.len(), e.learner.config.euler_steps);
    let states = bench.gpu.read_f32(&e.outcome.states.rows(t..t + 1)).unwrap();
    let mut want = 0.0;
    for (i, chunk) in states.chunks(h * a).take(n * b).enumerate() {
        let step = |k: usize, j: usize| f64::from(chunk[(k + 1) * a + j] - chunk[k * a + j]).powi(2);
        let sum: f64 = (0..h - 1)
            .flat_map(|k| (0..joints).map(move |j| (k, j)))
            .map(|(k, j)| step(k, j))
            .sum();
        want += f64::from(weight[i % b]) * sum / ((h - 1) * joints * n * b) as f64;
    }
    let got = f64::from(e.loss(Slot::SmoothnessLoss));
    assert!((got - want).abs() <= 1e-5 * want, "{got} is not {want}");
}

/// Along the gradient, the loss of the whole step changes by the gradient's norm.
#[test]
fn a_step_along_the_gradient_changes_the_loss_by_its_norm() {
    let bench = Bench::open();
    // All candidates count: none can take another's place half way.
    let e = weighted(&bench, Objective::MeanN, 0.0, 1.0);
    let length = norm(&e.pi0.values().flatten().copied().collect::<Vec<_>>());
    let start = e.learner.pi0.weights.read(&bench.gpu).unwrap();
    let loss_at = |way: f64| {
        e.learner.load_pi0(|tensor| {
            let (w, g) = (&start[&tensor.name], &e.pi0[&tensor.name]);
            let moved = |(w, g): (&f32, &f32)| (f64::from(*w) + way * f64::from(*g) / length) as f32;
            Some(w.iter().zip(g).map(moved).collect())
        });
        let metrics = Metrics::new(&e.learner, bench.group.batch);
        micro_batch(&e.learner, &metrics, &bench.batches(1)[0], true);
        f64::from(metrics.read(&bench.gpu).unwrap().get(Slot::SmoothnessLoss))
    };
    let way = 0.02 * f64::from(e.loss(Slot::SmoothnessLoss)) / length;
    let slope = (loss_at(way) - loss_at(-way)) / (2.0 * way);
    assert!(
        (slope / length - 1.0).abs() < 5e-3,
        "{slope} along a gradient of {length}"
    );
}
