//! One whole training step as CUDA would run it, without a GPU: every kernel is lowered to CUDA C++ by the compiler that
//! CUDA devices use, and, where NVRTC and ptxas are installed (`./x cuda-check` does that), compiled for sm_80 and sm_90.
//!
//! `ACRLPD_CUDA_WHEELS` names the folder of the wheels; `ACRLPD_CUDA_ARCHS` (such as `sm_90`) what to compile for.

use std::path::Path;

use acrlpd::gpu::nvrtc::Toolchain;
use acrlpd::gpu::{DType, DryKernel, Gpu};
use acrlpd::model::remat::Remat;
use acrlpd::ops::ensemble::Aggregate;
use acrlpd::step::config::{Features, Objective, StepConfig};
use acrlpd::step::learner::Learner;
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-4,
    critic: 1e-4,
    temperature: 1e-4,
};

/// A step of the tiny model: forward, backward, update, metrics.
fn step(gpu: &Gpu, pi05: bool, change: impl FnOnce(&mut StepConfig)) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let mut group = TrainingGroup::new(Fixture::open(&golden).expect("a fixture")).expect("a group");
    group.dims.pi05 = pi05;
    let mut config = group.config().expect("a config");
    change(&mut config);
    let learner = Learner::new(gpu, config, group.dims.clone(), group.critic_dims.clone()).expect("a learner");
    learner.init(1);
    let metrics = Metrics::new(gpu);
    let batch = group.micro(0, 0..group.batch).expect("a batch");
    micro_batch(&learner, &metrics, &batch, true);
    optimizer::update(&learner, &metrics, 0, RATES);
    metrics.read(gpu).expect("every kernel is lowered");
}

/// The kernels of the steps people run, and of the variants of the algorithm.
fn kernels() -> Vec<DryKernel> {
    let gpu = Gpu::dry_cuda().expect("needs no device");
    for pi05 in [false, true] {
        for dtype in [DType::F32, DType::Bf16] {
            step(&gpu, pi05, |c| c.dtype = dtype);
            step(&gpu, pi05, |c| {
                c.dtype = dtype;
                c.objective = Objective::MeanN;
                c.features = Features::Llm;
                c.feature_grad = true;
                c.actor_rule = Aggregate::Weighted;
                c.target_rule = Aggregate::Mean;
                c.skip_dead_rows = true;
                c.remat = Remat::Full;
            });
        }
    }
    gpu.dry_kernels().expect("every kernel is lowered")
}

#[test]
fn a_training_step_is_cuda() {
    let kernels = kernels();
    assert!(kernels.len() > 50, "{} kernels", kernels.len());
    for kernel in &kernels {
        assert!(
            kernel.source.contains("__global__"),
            "{}: {}",
            kernel.entry,
            kernel.source
        );
        assert!((1..=1024).contains(&kernel.threads), "{}", kernel.entry);
    }
    let bf16 = kernels.iter().filter(|k| k.source.contains("__nv_bfloat16")).count();
    assert!(bf16 > 20, "{bf16} kernels in bfloat16");
    assert!(
        kernels.iter().any(|k| k.entry == "copy_words"),
        "hand-written kernels too"
    );

    let Some(toolchain) = Toolchain::from_env() else {
        println!(
            "{} kernels lowered; ACRLPD_CUDA_WHEELS names no CUDA compiler, so none compiled",
            kernels.len()
        );
        return;
    };
    let archs = std::env::var("ACRLPD_CUDA_ARCHS").unwrap_or("sm_80,sm_90".into());
    let archs: Vec<&str> = archs.split(',').collect();
    let report = toolchain.check(&kernels, &archs);
    println!("{report}");
    assert!(report.passed(), "{} kernels do not compile", report.failures().count());
}
