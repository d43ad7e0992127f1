//! What this device reaches at best, measured on it: a large copy and a large matrix product.
//!
//! The product is this library's own, in the storage type the step computes in: a share of 100 % says that a kernel
//! runs as well as the best one here, not that the hardware can do no more. For that, write the numbers of the data
//! sheet into a [`Roofline`].

use std::time::{Duration, Instant};

use super::blocks::{self, Rect};
use super::{fill, gemm};
use crate::gpu::{DType, Gpu, Result, Roofline};

/// Measurements of each; the fastest counts.
const ROUNDS: usize = 5;
/// Words copied, and side of the square product: on a GPU far more than caches hold, on a CPU what takes under a second.
const SIZES: [(usize, usize); 2] = [(64 << 20, 8192), (4 << 20, 512)];
/// Launches of one measurement, so that waiting for the device does not count.
const LAUNCHES: usize = 4;

/// Measures copy bandwidth and the rate of products of `dtype` operands. Takes about a second. The bandwidth is that of
/// memory: work that fits into caches can be faster than the roofline.
pub fn measure(gpu: &Gpu, dtype: DType) -> Result<Roofline> {
    let (words, side) = SIZES[usize::from(gpu.caps().software)];
    let words = words.min(gpu.caps().max_binding_bytes as usize / 16) / side * side;
    let (from, to) = (gpu.f32([words]), gpu.f32([words]));
    fill::zero(gpu, &from);
    // By words, and by pairs of them where the device has those: which is faster depends on the device.
    let by_words = fastest(gpu, || gpu.copy(&from, &to))?;
    let by_pairs = fastest(gpu, || {
        let rows = (Rect::rows(&from, side), Rect::rows(&to, side));
        blocks::copy(gpu, rows.0, rows.1, words / side, side, false);
    })?;
    let copy = by_words.min(by_pairs);
    Ok(Roofline {
        flops_per_s: product_rate(gpu, dtype, side)?,
        bytes_per_s: 8.0 * words as f64 / copy.as_secs_f64(),
    })
}

/// Floating point operations a second in a product of `dtype` matrices of `side` rows and columns.
pub fn product_rate(gpu: &Gpu, dtype: DType, side: usize) -> Result<f64> {
    let matrix = || gpu.alloc(dtype, [side, side]);
    let (a, b, c) = (matrix(), matrix(), matrix());
    fill::set(gpu, &a, 1.0);
    fill::set(gpu, &b, 1.0);
    let product = fastest(gpu, || gemm::nt(&a, &b).to(gpu, &c))?;
    Ok(2.0 * (side as f64).powi(3) / product.as_secs_f64())
}

/// The least time of one launch; the first, which compiles, does not count.
fn fastest(gpu: &Gpu, launch: impl Fn()) -> Result<Duration> {
    launch();
    gpu.sync()?;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            launch();
        }
        gpu.sync()?;
        best = best.min(start.elapsed() / LAUNCHES as u32);
    }
    Ok(best.max(Duration::from_nanos(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{gpu, normals};

    #[test]
    fn a_profile_of_a_product_comes_near_the_roofline() {
        let gpu = gpu();
        let roofline = measure(&gpu, DType::F32).expect("the device works");
        assert!(roofline.flops_per_s > 1e8 && roofline.bytes_per_s > 1e8, "{roofline:?}");
        let n = 256;
        let a = gpu.upload_f32(&normals(1, n * n), [n, n]);
        let c = gpu.f32([n, n]);
        let work = || {
            gpu.phase(&[("forward", 1.0)]);
            gemm::nt(&a, &a).to(&gpu, &c);
            gpu.phase(&[("backward", 1.0)]);
            gpu.copy(&a, &c);
        };
        work();
        let ((), profile) = gpu.profile(roofline, work).expect("the device works");
        let rows: Vec<_> = profile.rows.iter().map(|r| (r.phase, r.launches)).collect();
        assert_eq!(rows, [("forward", 1), ("backward", 1)]);
        assert_eq!(profile.rows[0].flops, 2.0 * (n as f64).powi(3));
        assert!(profile.rows.iter().all(|r| r.ms > 0.0), "{}", profile.table());
        assert!(profile.total().ms <= profile.wall_ms, "{}", profile.table());
        // A machine shared with others is slow at times, but never ten times as fast as at its best.
        assert!(profile.total().of_roofline() < 10.0, "{}", profile.table());
        // The timer is off again.
        gpu.take_record();
        work();
        assert_eq!(gpu.take_record().total().time, Duration::ZERO);
    }
}
