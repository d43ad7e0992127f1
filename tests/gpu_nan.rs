//! NaN and infinity: `min`, `max` and `clamp` drop them on some devices, but they must stop the update on all.

use std::path::Path;

use acrlpd::gpu::{DType, DeviceChoice, Gpu, Tensor};
use acrlpd::model::params::{ParamStore, Room};
use acrlpd::ops::activation::{self, Activation};
use acrlpd::ops::ensemble::{self, Aggregate, Rule};
use acrlpd::ops::softmax;
use acrlpd::ops::td::{self, TdLoss};
use acrlpd::step::metrics::{Metrics, Slot};
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::verify::{Fixture, TrainingGroup};

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device")
}

fn golden(group: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(group)
}

fn all_nan(values: &[f32]) -> bool {
    values.iter().all(|v| v.is_nan())
}

#[test]
fn nan_goes_through_every_op_that_compares() {
    let gpu = device();
    let read = |t: &Tensor| gpu.read_f32(t).expect("the device works");
    let nan = f32::NAN;
    let x = gpu.upload_f32(&[nan, -nan, nan, nan], [4]);
    for f in [Activation::Gelu, Activation::Swish, Activation::Relu] {
        let y = gpu.f32([4]);
        activation::forward(&gpu, f, &x, &y);
        assert!(all_nan(&read(&y)), "{f:?}");
    }
    for kind in [TdLoss::Square, TdLoss::Huber(1.0)] {
        let (y, dy) = (gpu.f32([4]), gpu.upload_f32(&[1.0; 4], [4]));
        td::forward(&gpu, kind, &x, &y);
        assert!(all_nan(&read(&y)), "{kind:?}");
        td::backward(&gpu, kind, &x, &dy, &y);
        assert!(all_nan(&read(&y)), "{kind:?}");
    }
    // NaN first, in the middle, last.
    let q = gpu.upload_f32(&[nan, 1.0, 2.0, 3.0, nan, 4.0, 5.0, 6.0, nan], [3, 3]);
    let weights = gpu.upload_f32(&[0.2, 0.3, 0.5], [3]);
    for how in [Aggregate::Min, Aggregate::Mean, Aggregate::Weighted] {
        let value = gpu.f32([3]);
        let rule = Rule { how, weights: &weights };
        ensemble::forward(&gpu, &q, rule, &value);
        assert!(all_nan(&read(&value)), "{how:?}: {:?}", read(&value));
    }
    for at in 0..3 {
        let mut z = [0.5, -1.0, 2.0];
        z[at] = nan;
        let (z, lens) = (gpu.upload_f32(&z, [1, 3]), gpu.upload_u32(&[3], [1]));
        let p = gpu.f32([1, 3]);
        softmax::forward(&gpu, &z, &lens, 1.0, &p, None);
        assert!(all_nan(&read(&p)), "softmax with NaN at {at}: {:?}", read(&p));
    }
}

#[test]
fn the_winner_among_nan_is_still_a_candidate() {
    let gpu = device();
    let nan = f32::NAN;
    // Three candidates of two samples: all NaN, and the best behind one.
    let value = gpu.upload_f32(&[nan, 1.0, nan, nan, nan, 2.0], [6]);
    let (best, winner) = (gpu.f32([2]), gpu.alloc(DType::U32, [2]));
    ensemble::best_of_n(&gpu, &value, &best, &winner);
    let winner = gpu.read_u32(&winner).expect("the device works");
    assert!(winner[0] < 3 && winner[1] == 2, "{winner:?}");
    let best = gpu.read_f32(&best).expect("the device works");
    assert!(best[0].is_nan() && best[1] == 2.0, "{best:?}");
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let gpu = device();
    let group = TrainingGroup::new(Fixture::open(&golden("acrlpd_tiny")).expect("a fixture")).expect("a group");
    let rates = Rates {
        pi0: 1e-3,
        critic: 1e-3,
        temperature: 1e-3,
    };
    let learner = group
        .learner(&gpu, group.config().expect("a config"))
        .expect("a learner");
    let metrics = Metrics::new(&learner, group.batch);
    let read = |store: &ParamStore| store.read(&gpu).expect("the device works");
    let weights = || [read(&learner.pi0.weights), read(&learner.critic.weights)];
    let before = weights();
    let good = group.micro(0, 0..group.batch).expect("a batch");
    let skipped = |bad: Option<f32>| {
        let mut batch = good.clone();
        batch.actions[1] = bad.unwrap_or(batch.actions[1]);
        metrics.clear(&gpu);
        micro_batch(&learner, &metrics, &batch, true);
        optimizer::update(&learner, &metrics, 0, rates);
        let values = metrics.read(&gpu).expect("the device works");
        assert_eq!(values.bad_gradients(Some(&Room::ALL)) > 0.0, bad.is_some(), "{bad:?}");
        // Nothing of the gradient is left for the next step.
        assert!(read(&learner.critic.grads).values().flatten().all(|&g| g == 0.0));
        assert!(read(&learner.pi0.grads).values().flatten().all(|&g| g == 0.0));
        values.get(Slot::Skipped)
    };
    for (i, bad) in [f32::NAN, f32::INFINITY].into_iter().enumerate() {
        assert_eq!(skipped(Some(bad)), i as f32 + 1.0, "{bad}");
        assert!(weights() == before, "{bad} changed weights");
    }
    assert_eq!(skipped(None), 2.0);
    let moved = weights();
    assert!(moved != before, "a good step after bad ones changes weights");
    // Once patience is at its end, the weights stay those that failed.
    for i in 0..optimizer::PATIENCE {
        assert_eq!(skipped(Some(f32::NEG_INFINITY)), 3.0 + i as f32);
    }
    assert_eq!(skipped(None), 3.0 + optimizer::PATIENCE as f32);
    assert!(weights() == moved, "a step after too many bad ones changed weights");
}
