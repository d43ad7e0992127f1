//! A profile of a training step: complete, and without influence on the numbers.

use std::path::Path;

use acrlpd::gpu::{DType, DeviceChoice, Gpu};
use acrlpd::ops::roofline;
use acrlpd::step::Learner;
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-4,
    critic: 1e-4,
    temperature: 1e-4,
};

#[test]
fn a_step_under_the_profiler_is_the_same_step() {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    let gpu = Gpu::open(choice).expect("tests need a device");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&golden).expect("a fixture")).expect("a group");
    let batch = group.micro(0, 0..group.batch).expect("a batch");
    let learner = || {
        group
            .learner(&gpu, group.config().expect("a config"))
            .expect("a learner")
    };
    let step = |learner: &Learner| {
        let metrics = Metrics::new(learner, group.batch);
        gpu.take_record();
        micro_batch(learner, &metrics, &batch, true);
        optimizer::update(learner, &metrics, 0, RATES);
        metrics
    };
    let (plain, timed) = (learner(), learner());
    let want = step(&plain).read(&gpu).expect("the device works");
    let record = gpu.take_record();
    assert!(record.total().time.is_zero(), "nothing is timed in an ordinary step");

    let roofline = roofline::measure(&gpu, DType::F32).expect("the device works");
    let (metrics, profile) = gpu.profile(roofline, || step(&timed)).expect("the device works");
    println!("{}", profile.table());
    assert_eq!(metrics.read(&gpu).expect("the device works"), want);

    // The same launches, FLOPs and bytes, in the same phases; every phase took time.
    let total = profile.total();
    assert_eq!((total.launches, total.flops, total.bytes), {
        let t = record.total();
        (t.launches, t.flops, t.bytes)
    });
    let (phases, plain) = (profile.phases(), record.phases());
    assert_eq!(
        phases.iter().map(|r| r.phase).collect::<Vec<_>>(),
        plain.iter().map(|(name, _)| *name).collect::<Vec<_>>()
    );
    assert!(phases.iter().all(|r| r.ms > 0.0), "{}", profile.table());
    assert!(total.ms <= profile.wall_ms, "{}", profile.table());
}
