//! Operations, policies and training steps against the golden fixtures, on every class of kernel this device can run.

use std::path::Path;

use acrlpd::gpu::{Caps, DeviceChoice, Gpu};
use acrlpd::verify;

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device")
}

/// The kernels of a GPU: rows shared by teams of units, vectors of four, shared memory instead of register broadcasts.
fn gpu_kernels() -> Gpu {
    device().with_caps(|c| Caps {
        software: false,
        plane: None,
        lanes: 4,
        ..c
    })
}

/// The kernels of the plainest device: no planes, no vectors, no 64-bit words.
fn portable_kernels() -> Gpu {
    device().with_caps(|c| Caps {
        plane: None,
        wide_loads: false,
        lanes: 1,
        max_shared_bytes: 1024,
        ..c
    })
}

/// Checks a group; `least` rows must have been compared.
#[track_caller]
fn check(gpu: &Gpu, group: &str, least: usize) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(group);
    let report = verify::run(gpu, &golden, &|_| true).expect("the fixture can be checked");
    assert!(report.passed(), "{report}");
    assert!(report.rows.len() >= least, "{} rows", report.rows.len());
}

#[test]
fn ops() {
    check(&device(), "ops", 150);
}

#[test]
fn ops_with_gpu_kernels() {
    check(&gpu_kernels(), "ops", 150);
}

#[test]
fn ops_with_portable_kernels() {
    check(&portable_kernels(), "ops", 150);
}

#[test]
fn data_ops() {
    check(&device(), "data_ops", 23);
}

#[test]
fn full_size_tables() {
    check(&device(), "pi0_full_shapes", 776);
    check(&device(), "pi05_full_shapes", 811);
}

#[test]
fn a_folder_holds_these_groups() {
    let found = verify::find(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")).expect("groups are found");
    let names = |paths: &[std::path::PathBuf]| -> Vec<String> {
        let name = |p: &std::path::PathBuf| p.file_name().unwrap().to_string_lossy().into_owned();
        paths.iter().map(name).collect()
    };
    let groups = [
        "acrlpd_tiny",
        "data_ops",
        "ops",
        "pi05_full_shapes",
        "pi05_tiny",
        "pi0_full_shapes",
        "pi0_tiny",
    ];
    assert_eq!(names(&found.groups), groups);
    assert_eq!(
        names(&found.skipped),
        [
            "README.md",
            "lora.json",
            "lora.py",
            "orbax_nodes",
            "orbax_tiny",
            "resize",
            "switches.json",
            "tokenizer"
        ]
    );
}

#[test]
fn pi0() {
    check(&device(), "pi0_tiny", 280);
}

#[test]
fn pi0_with_gpu_kernels() {
    check(&gpu_kernels(), "pi0_tiny", 280);
}

#[test]
fn pi05() {
    check(&device(), "pi05_tiny", 285);
}

#[test]
fn pi05_with_portable_kernels() {
    check(&portable_kernels(), "pi05_tiny", 285);
}

#[test]
fn training() {
    check(&device(), "acrlpd_tiny", 1000);
}

#[test]
fn training_with_gpu_kernels() {
    check(&gpu_kernels(), "acrlpd_tiny", 1000);
}
