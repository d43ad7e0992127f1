//! Activations and compute weights in half precision: golden groups, and whole steps against the same steps in f32: f16 on
//! this machine's device, bf16 with the kernels of CUDA devices, emulated. Residual streams in halves, or in f32.

use std::path::Path;

use acrlpd::gpu::{Caps, DType, DeviceChoice, Gpu};
use acrlpd::model::dims::Pi0Dims;
use acrlpd::model::params::ParamStore;
use acrlpd::model::remat::Remat;
use acrlpd::model::stream::Storage;
use acrlpd::step::config::{LossWeights, StepConfig};
use acrlpd::step::learner::Learner;
use acrlpd::step::metrics::{Metrics, Slot, Values};
use acrlpd::step::schedule;
use acrlpd::verify::{self, Fixture, Report, TrainingGroup};

/// Losses of a micro-batch, and the gradients of π₀ and of the critics in one row each.
type Step = (Values, Vec<f32>, Vec<f32>);

/// Residual streams in f32, the rest as `dtype`.
fn wide(dtype: DType) -> Storage {
    Storage {
        dtype,
        f32_residual: true,
    }
}

fn step(gpu: &Gpu, storage: impl Into<Storage>) -> Step {
    step_with(gpu, storage, Remat::None)
}

fn step_with(gpu: &Gpu, storage: impl Into<Storage>, remat: Remat) -> Step {
    let storage = storage.into();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group");
    let mut config = group.config().expect("a step");
    config.dtype = storage.dtype;
    config.f32_residual = storage.f32_residual;
    config.remat = remat;
    let learner = group.learner(gpu, config).expect("a learner");
    group.stored_targets(&learner).expect("targets");
    let metrics = Metrics::new(&learner, group.batch);
    let batch = group.micro(0, 0..group.batch).expect("a batch");
    schedule::micro_batch(&learner, &metrics, &batch, true);
    let values = metrics.read(gpu).expect("numbers");
    (values, flat(gpu, &learner.pi0.grads), flat(gpu, &learner.critic.grads))
}

fn flat(gpu: &Gpu, store: &ParamStore) -> Vec<f32> {
    let tensors = store.named().into_iter().flat_map(|(_, ranges)| ranges);
    tensors.flat_map(|range| range.read(gpu).expect("a gradient")).collect()
}

/// The gradients of the flow loss with random weights and as many layers as the published model has in its language stream.
fn deep_step(gpu: &Gpu, storage: impl Into<Storage>, pi05: bool, seed: u64) -> Vec<f32> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group");
    let storage = storage.into();
    let config = StepConfig {
        dtype: storage.dtype,
        f32_residual: storage.f32_residual,
        euler_steps: 2,
        // The flow loss alone: which candidate or critic is chosen may turn on the last digit.
        weights: LossWeights {
            actor: 0.0,
            ..group.config().expect("a step").weights
        },
        ..group.config().expect("a step")
    };
    let dims = Pi0Dims {
        depth: 18,
        vision_depth: 18,
        pi05,
        ..group.dims.clone()
    };
    let learner = Learner::new(gpu, config, dims, group.critic_dims.clone()).expect("a learner");
    learner.init(seed);
    let metrics = Metrics::new(&learner, group.batch);
    let batch = group.micro(0, 0..group.batch).expect("a batch");
    schedule::micro_batch(&learner, &metrics, &batch, true);
    flat(gpu, &learner.pi0.grads)
}

/// Eighteen layers add to a stream in halves and round it each time; in f32 the gradients come closer to those of the step
/// in f32. Single weights may be lucky either way: what counts is the geometric mean over `seeds`.
fn deep_streams_come_closer(full: &Gpu, gpu: &Gpu, dtype: DType, seeds: &[u64]) {
    for (pi05, most) in [(false, 0.9), (true, 1.0)] {
        let mut logs = 0.0;
        for &seed in seeds {
            let reference = deep_step(full, DType::F32, pi05, seed);
            let away = |storage: Storage| {
                let got = deep_step(gpu, storage, pi05, seed);
                let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
                let error = squares(&mut got.iter().zip(&reference).map(|(a, b)| a - b));
                (error / squares(&mut reference.iter().copied())).sqrt()
            };
            let (halves, f32s) = (away(dtype.into()), away(wide(dtype)));
            println!(
                "{}, π₀.₅ {pi05}, seed {seed}: {halves:.2e} with streams in halves, {f32s:.2e} in f32",
                dtype.name()
            );
            logs += (f32s / halves).ln();
        }
        let ratio = (logs / seeds.len() as f64).exp();
        assert!(ratio < most, "{ratio} is not below {most}");
    }
}

#[test]
fn deep_streams_come_closer_in_f16() {
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    if gpu.caps().f16 {
        deep_streams_come_closer(&gpu, &gpu, DType::F16, &[1, 2, 3]);
    }
}

#[test]
fn deep_streams_come_closer_in_bf16() {
    let cuda = Gpu::emulated_cuda(90).expect("a C++ compiler");
    let full = Gpu::open(DeviceChoice::Auto).expect("a device");
    deep_streams_come_closer(&full, &cuda, DType::Bf16, &[7]);
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

/// Nothing that is computed again differs from what is kept.
#[test]
fn f32_residuals_survive_every_remat() {
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    if !gpu.caps().f16 {
        return;
    }
    let (_, pi0, critic) = step(&gpu, wide(DType::F16));
    for remat in [Remat::Mlp, Remat::Full] {
        let again = step_with(&gpu, wide(DType::F16), remat);
        assert!(again.1 == pi0 && again.2 == critic, "{remat:?}");
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

/// Holds the wanted tensors of a group to their reference with the model stored like this; `least` rows must have been
/// held to a cosine.
#[track_caller]
fn hold(gpu: &Gpu, storage: impl Into<Storage>, group: &str, least: usize, wanted: &dyn Fn(&str) -> bool) -> Report {
    let storage = storage.into();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(group);
    let report = verify::run_as(gpu, &path, storage, wanted).expect("the fixture can be checked");
    assert!(report.passed(), "{report}");
    assert_eq!(report.dtype, storage.dtype.name());
    assert_eq!(report.residual_dtype, storage.residual().name());
    let held = report.rows.iter().filter(|r| r.cosine.is_some()).count();
    assert!(held >= least, "{held} rows");
    report
}

/// A group with residual streams in f32 and in halves: the distance from the reference must shrink, in the geometric mean
/// of all tensors, to `most` of what it was, forward and backward.
#[track_caller]
fn closer(gpu: &Gpu, dtype: DType, group: &str, least: usize, most: [f64; 2], wanted: &dyn Fn(&str) -> bool) {
    let [halves, f32s] = [dtype.into(), wide(dtype)].map(|storage| hold(gpu, storage, group, least, wanted));
    for (kind, most) in [verify::Kind::Forward, verify::Kind::Gradient].into_iter().zip(most) {
        let mut logs = Vec::new();
        for (a, b) in halves.rows.iter().zip(&f32s.rows) {
            assert_eq!(a.tensor, b.tensor);
            if a.kind == kind && a.cosine.is_some() && a.error > 0.0 {
                logs.push((b.error / a.error).ln());
            }
        }
        let ratio = (logs.iter().sum::<f64>() / logs.len() as f64).exp();
        println!(
            "{group} in {}, {kind:?}: {ratio:.3} over {} tensors",
            dtype.name(),
            logs.len()
        );
        assert!(ratio < most, "{kind:?}: {ratio}");
    }
}

/// The same with the model stored as f16, if the device can.
#[track_caller]
fn closer_in_f16(group: &str, least: usize, most: [f64; 2]) {
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    if gpu.caps().f16 {
        closer(&gpu, DType::F16, group, least, most, &|_| true);
    }
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
fn ops_in_f16_with_f32_residuals() {
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    if gpu.caps().f16 {
        let streams = |name: &str| {
            ["rms_norm/", "layer_norm/", "vit_block/"]
                .iter()
                .any(|op| name.contains(op))
        };
        hold(&gpu, wide(DType::F16), "ops", 50, &streams);
    }
}

#[test]
fn pi0_in_f16() {
    closer_in_f16("pi0_tiny", 250, [1.0, 0.9]);
}

#[test]
fn pi05_in_f16() {
    closer_in_f16("pi05_tiny", 250, [0.85, 0.9]);
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
    let once = |name: &str| !name.contains("sample");
    closer(&gpu, DType::Bf16, "pi0_tiny", 130, [0.97, 0.98], &once);
}

/// The same with gated residuals and adaptive norms, whose streams are f32.
#[test]
fn pi05_in_bf16_on_emulated_cuda() {
    let gpu = Gpu::emulated_cuda(90).expect("a C++ compiler");
    let once = |name: &str| !name.contains("sample");
    hold(&gpu, wide(DType::Bf16), "pi05_tiny", 130, &once);
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
