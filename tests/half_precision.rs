//! Activations and compute weights in half precision: golden groups, and whole steps against the same steps in f32: f16 on
//! this machine's device, bf16 with the kernels of CUDA devices, emulated.

use std::path::Path;

use acrlpd::gpu::{Caps, DType, DeviceChoice, Gpu};
use acrlpd::step::metrics::{Metrics, Slot, Values};
use acrlpd::step::schedule;
use acrlpd::verify::{self, Fixture, TrainingGroup};

/// Losses of a micro-batch, and the gradients of π₀ and of the critics in one row each.
type Step = (Values, Vec<f32>, Vec<f32>);

fn step(gpu: &Gpu, dtype: DType) -> Step {
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
            .flat_map(|range| range.read(gpu).expect("a gradient"))
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
    // The kernels of this device, those of one without subgroups, and those of a GPU, which move vectors of four.
    let without = |c: Caps| Caps { plane: None, ..c };
    let hardware = |c: Caps| Caps {
        software: false,
        lanes: 4,
        ..without(c)
    };
    for gpu in [device.clone(), device.with_caps(without), device.with_caps(hardware)] {
        follows(&step(&gpu, DType::F32), &step(&gpu, DType::F16), 5e-3, 0.999);
    }
}

#[test]
fn bf16_steps_on_cuda_follow_f32_steps() {
    let full = step(&Gpu::open(DeviceChoice::Auto).expect("a device"), DType::F32);
    // Ampere's kernels and Hopper's. bf16 has three bits less than f16.
    for arch in [80, 90] {
        let gpu = Gpu::emulated_cuda(arch).expect("a C++ compiler");
        follows(&full, &step(&gpu, DType::Bf16), 4e-2, 0.99);
    }
}

/// A step in half precision gives the losses of a step in f32 up to `tolerance`, and gradients of the same direction.
fn follows(full: &Step, half: &Step, tolerance: f32, least_cosine: f64) {
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
            (a - b).abs() <= tolerance * a.abs().max(0.1),
            "{slot:?}: {a} in full precision, {b} in half"
        );
    }
    let (pi0, critic) = (cosine(&full.1, &half.1), cosine(&full.2, &half.2));
    println!("cosines: π₀ {pi0}, critics {critic}");
    assert!(
        pi0 > least_cosine && critic > least_cosine,
        "cosines {pi0} and {critic}"
    );
}

/// Holds the wanted tensors of a group to their reference with the model stored as `dtype`; `least` rows must have been
/// held to a cosine.
#[track_caller]
fn hold(gpu: &Gpu, dtype: DType, group: &str, least: usize, wanted: &dyn Fn(&str) -> bool) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(group);
    let report = verify::run_as(gpu, &path, dtype, wanted).expect("the fixture can be checked");
    assert!(report.passed(), "{report}");
    assert_eq!(report.dtype, dtype.name());
    let held = report.rows.iter().filter(|r| r.cosine.is_some()).count();
    assert!(held >= least, "{held} rows");
}

/// A whole group with the model stored as f16, if the device can.
#[track_caller]
fn golden(group: &str, least: usize) {
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    if gpu.caps().f16 {
        hold(&gpu, DType::F16, group, least, &|_| true);
    }
}

#[test]
fn ops_in_f16() {
    golden("ops", 100);
}

#[test]
fn pi0_in_f16() {
    golden("pi0_tiny", 250);
}

#[test]
fn pi05_in_f16() {
    golden("pi05_tiny", 250);
}

#[test]
fn training_in_f16() {
    golden("acrlpd_tiny", 800);
}

/// CUDA's own kernels in bf16, on the CPU. Most of the time goes into building them, so the operations are some of those
/// that have kernels of their own; `acrlpd verify tests/golden --device emulated:90 --dtype bfloat16` does all.
#[test]
fn ops_in_bf16_on_emulated_cuda() {
    const OPS: [&str; 8] = [
        "rms_norm/",
        "layer_norm/",
        "linear/",
        "rope/",
        "gqa_cached/",
        "geglu/",
        "embed_lookup/",
        "critic/",
    ];
    let gpu = Gpu::emulated_cuda(90).expect("a C++ compiler");
    hold(&gpu, DType::Bf16, "ops", 25, &|name| {
        OPS.iter().any(|op| name.starts_with(op))
    });
}

/// One evaluation of the flow loss in bf16, with its gradients.
#[test]
fn pi0_in_bf16_on_emulated_cuda() {
    let gpu = Gpu::emulated_cuda(90).expect("a C++ compiler");
    hold(&gpu, DType::Bf16, "pi0_tiny", 130, &|name| !name.contains("sample"));
}

#[test]
fn a_type_that_the_device_lacks_is_an_error() {
    let gpu = Gpu::open(DeviceChoice::Auto)
        .expect("a device")
        .with_caps(|c| Caps { bf16: false, ..c });
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ops");
    let error = verify::run_as(&gpu, &path, DType::Bf16, &|_| true).expect_err("there is no bf16");
    let text = error.to_string();
    assert!(
        text.contains("bfloat16") && text.contains("float32") && !text.contains('\n'),
        "{text}"
    );
}
