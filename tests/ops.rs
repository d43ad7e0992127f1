//! Every operation against the golden fixture, on every class of kernel this device can run.

use std::path::Path;

use acrlpd::gpu::{Caps, DeviceChoice, Gpu};
use acrlpd::verify;

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    Gpu::open(choice.parse().expect("ACRLPD_TEST_DEVICE")).expect("tests need a device")
}

#[track_caller]
fn check(gpu: &Gpu) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ops");
    let report = verify::run(gpu, &golden, &|_| true).expect("the fixture can be checked");
    assert!(report.passed(), "{report}");
    assert!(report.rows.len() > 150, "{} rows", report.rows.len());
}

#[test]
fn golden_ops() {
    check(&device());
}

/// The kernels of a GPU: rows shared by teams of units, shared memory instead of register broadcasts.
#[test]
fn golden_ops_with_gpu_kernels() {
    check(&device().with_caps(|c| Caps { software: false, plane: None, ..c }));
}

/// The kernels of the plainest device: no planes, no 64-bit words.
#[test]
fn golden_ops_with_portable_kernels() {
    check(&device().with_caps(|c| Caps { plane: None, wide_loads: false, max_shared_bytes: 1024, ..c }));
}
