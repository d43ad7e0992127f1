//! Whole steps with activations and compute weights in half precision, against the same steps in f32.

use std::path::Path;

use acrlpd::gpu::{Caps, DType, DeviceChoice, Gpu};
use acrlpd::step::metrics::{Metrics, Slot, Values};
use acrlpd::step::schedule;
use acrlpd::verify::{Fixture, TrainingGroup};

/// Losses of a micro-batch, and the gradients of π₀ and of the critics in one row each.
fn step(gpu: &Gpu, dtype: DType) -> (Values, Vec<f32>, Vec<f32>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group");
    let mut config = group.config().expect("a step");
    config.dtype = dtype;
    let learner = group.learner(gpu, config).expect("a learner");
    group.stored_targets(&learner).expect("targets");
    let metrics = Metrics::new(&learner, group.batch);
    let batch = group.micro(0, 0..group.batch).expect("a batch");
    schedule::micro_batch(&learner, &metrics, &batch, true);
    let flat = |store: &acrlpd::model::params::ParamStore| {
        let tensors = store.named().into_iter().flat_map(|(_, ranges)| ranges);
        tensors
            .flat_map(|t| gpu.read_f32(&t).expect("a gradient"))
            .collect::<Vec<f32>>()
    };
    let values = metrics.read(gpu).expect("numbers");
    (values, flat(&learner.pi0.grads), flat(&learner.critic.grads))
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| x as f64 * y as f64).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn f16_steps_follow_f32_steps() {
    let device = Gpu::open(DeviceChoice::Auto).expect("a device");
    if !device.caps().f16 {
        return;
    }
    // The kernels of this device, and those of one without subgroups.
    for gpu in [device.clone(), device.with_caps(|c| Caps { plane: None, ..c })] {
        let (full, half) = (step(&gpu, DType::F32), step(&gpu, DType::F16));
        for slot in [
            Slot::CriticLoss,
            Slot::ActorLoss,
            Slot::BcLoss,
            Slot::BestQ,
            Slot::CandidateQ,
            Slot::Entropy,
        ] {
            let (a, b) = (full.0.get(slot), half.0.get(slot));
            assert!(
                (a - b).abs() <= 5e-3 * a.abs().max(0.1),
                "{slot:?}: {a} in f32, {b} in f16"
            );
        }
        let (pi0, critic) = (cosine(&full.1, &half.1), cosine(&full.2, &half.2));
        assert!(pi0 > 0.999 && critic > 0.999, "cosines {pi0} and {critic}");
    }
}
