//! What this device reaches at best, measured on it: a large copy and a large matrix product, of random numbers.
//!
//! The copy is the fastest of three: by words, by pairs, by 16 bytes at a time. The product is this library's own, in the
//! storage type the step computes in: a share of 100 % says that a kernel runs as well as the best one here, not that the
//! hardware can do no more. For that, write the numbers of the data sheet into a [`Roofline`].

use std::time::Duration;

use super::blocks::{self, Rect};
use super::gemm;
use super::noise::Noise;
use crate::gpu::{DType, Gpu, Result, Roofline, Tensor};

/// Measurements of each; the fastest counts.
const ROUNDS: usize = 5;
/// Bytes read by a copy: on a GPU four times the largest cache of any, so that what is left of it there does not count;
/// on a CPU what takes a few milliseconds.
const COPIED: [u64; 2] = [512 << 20, 16 << 20];
/// Side of the square product.
const SIDE: [usize; 2] = [8192, 512];
/// Launches of one measurement, so that waiting for the device does not count.
const LAUNCHES: [usize; 2] = [16, 4];

/// Measures copy bandwidth and the rate of products of `dtype` operands. Takes about a second. The bandwidth is that of
/// memory: work that fits into caches can be faster than the roofline.
pub fn measure(gpu: &Gpu, dtype: DType) -> Result<Roofline> {
    let (caps, kind) = (gpu.caps(), usize::from(gpu.caps().software));
    // Small devices have room for an eighth of their memory twice.
    let room = caps
        .memory_bytes
        .map_or(u64::MAX, |bytes| bytes / 8)
        .min(caps.max_binding_bytes / 4);
    let side = SIDE[kind];
    let words = (COPIED[kind].min(room) / 4) as usize / side * side;
    let (from, to) = (random(gpu, DType::F32, words, 1), gpu.f32([words]));
    let by_words = fastest(gpu, || gpu.copy(&from, &to))?;
    let by_pairs = fastest(gpu, || {
        let rows = (Rect::rows(&from, side), Rect::rows(&to, side));
        blocks::copy(gpu, rows.0, rows.1, words / side, side, false);
    })?;
    let by_quads = fastest(gpu, || gpu.copy_quads(&from, &to))?;
    let copy = by_words.min(by_pairs).min(by_quads);
    drop((from, to));
    Ok(Roofline {
        flops_per_s: product_rate(gpu, dtype, side)?,
        bytes_per_s: 8.0 * words as f64 / copy.as_secs_f64(),
    })
}

/// Floating point operations a second in a product of `dtype` matrices of `side` rows and columns.
pub fn product_rate(gpu: &Gpu, dtype: DType, side: usize) -> Result<f64> {
    let matrix = |seed| random(gpu, dtype, side * side, seed).view([side, side]);
    let (a, b) = (matrix(2), matrix(3));
    let c = gpu.alloc(dtype, [side, side]);
    let product = fastest(gpu, || gemm::nt(&a, &b).to(gpu, &c))?;
    Ok(2.0 * (side as f64).powi(3) / product.as_secs_f64())
}

fn random(gpu: &Gpu, dtype: DType, n: usize, seed: u32) -> Tensor {
    let x = gpu.alloc(dtype, [n]);
    let (scale, shift) = (1.0 / 64.0, 0.0);
    Noise {
        seed,
        dtype,
        scale,
        shift,
    }
    .fill(gpu, &x);
    x
}

/// The least time of one launch; the first, which compiles, does not count.
fn fastest(gpu: &Gpu, launch: impl Fn() + Sync) -> Result<Duration> {
    launch();
    gpu.sync()?;
    let mut best = Duration::MAX;
    let launches = LAUNCHES[usize::from(gpu.caps().software)];
    for _ in 0..ROUNDS {
        let work = || (0..launches).for_each(|_| launch());
        best = best.min(gpu.timed(work)? / launches as u32);
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
