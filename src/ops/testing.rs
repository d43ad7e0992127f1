//! Shared by the tests of this room: a device, numbers, and a comparison that names what differs.

use crate::gpu::{DeviceChoice, Gpu, Tensor};
use crate::rng::Key;

/// The device tests run on: `ACRLPD_TEST_DEVICE`, else the best there is.
pub(crate) fn gpu() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device: apt-get install mesa-vulkan-drivers")
}

/// Standard normals.
pub(crate) fn normals(seed: u64, n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Key::new(seed).normals(&mut x);
    x
}

/// Largest difference relative to the largest reference value; panics past `tolerance`.
#[track_caller]
pub(crate) fn close(what: &str, got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.0f64, |a, v| a.max(v.abs())).max(1e-30);
    let (mut worst, mut at) = (0.0, 0);
    for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
        let d = (g as f64 - w).abs();
        if d > worst || d.is_nan() {
            (worst, at) = (d, i);
        }
    }
    let relative = worst / scale;
    assert!(
        relative <= tolerance,
        "{what}: element {at} is {}, not {} (relative {relative:.2e})",
        got[at],
        want[at]
    );
}

/// Reads a tensor and compares.
#[track_caller]
pub(crate) fn check(gpu: &Gpu, what: &str, got: &Tensor, want: &[f64], tolerance: f64) {
    close(what, &gpu.read_f32(got).expect(what), want, tolerance);
}

/// f32 values as f64.
pub(crate) fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| v as f64).collect()
}
