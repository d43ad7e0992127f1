//! Numbers for measurements: made on the device, known on the host.
//!
//! ```text
//! x[i] = scale · u(i) + shift        u(i) in [-1, 1), from a hash of i and a seed
//! ```
//! `u` has as many bits as the storage type holds exactly, so the host can name any element without reading it back:
//! references of huge products need a few columns of their operands. Real data is random, too: chips draw less power, and
//! run faster, on zeros.
//! Source of the hash: the finaliser of MurmurHash3 (public domain).
//!
//! Cost: writes the tensor once.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Units of a workgroup, and elements each of them sets.
const UNITS: usize = 64;
const EACH: usize = 8;

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Noise {
    pub seed: u32,
    /// Storage of the tensor.
    pub dtype: DType,
    /// A power of two, so that every element is exact in `dtype`; at least 1/64 for f16.
    pub scale: f32,
    /// Zero, except for f32.
    pub shift: f32,
}

impl Noise {
    /// Bits of an element: fractions of f32 and bf16 are full, f16 keeps two bits off its smallest numbers.
    fn bits(self) -> u32 {
        match self.dtype {
            DType::F16 => 9,
            DType::Bf16 => 8,
            _ => 24,
        }
    }

    /// Half of the numbers that the bits tell apart.
    fn half(self) -> f32 {
        (1u32 << (self.bits() - 1)) as f32
    }

    /// Element `i`.
    pub fn at(self, i: usize) -> f64 {
        let whole = (hash(i as u32, self.seed) >> (32 - self.bits())) as f32;
        ((whole - self.half()) * (self.scale / self.half()) + self.shift) as f64
    }

    /// Fills `x` with elements 0, 1, 2, …
    ///
    /// # Panics
    /// If `x` is of another type, or has elements that its type does not hold exactly.
    pub fn fill(self, gpu: &Gpu, x: &Tensor) {
        assert!(x.dtype() == self.dtype && (self.shift == 0.0 || self.dtype == DType::F32));
        let most = ((gpu.caps().max_binding_bytes / x.dtype().bytes()) as usize / 2).max(1);
        for start in (0..x.len()).step_by(most) {
            let part = x.slice(start, [most.min(x.len() - start)]);
            launch!(
                gpu,
                Cost::moving("noise", part.bytes()),
                noise_kernel,
                gpu.cubes(part.len(), UNITS * EACH),
                CubeDim::new_1d(UNITS as u32),
                [&part],
                (
                    part.len(),
                    start as u32,
                    self.seed,
                    self.half(),
                    self.scale / self.half(),
                    self.shift,
                    32 - self.bits(),
                    part.dtype().storage()
                ),
            );
        }
    }
}

fn hash(i: u32, seed: u32) -> u32 {
    let mut h = i.wrapping_mul(0x9E37_79B9) ^ seed;
    h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn noise_kernel<X: Numeric>(
    x: &mut View<X>,
    n: usize,
    start: u32,
    seed: u32,
    half: f32,
    step: f32,
    shift: f32,
    #[comptime] unused: u32,
    #[define(X)] _type: StorageType,
) {
    let first = CUBE_POS * comptime!(UNITS * EACH) + UNIT_POS as usize;
    let base = x.start();
    #[unroll]
    for i in 0..EACH {
        let at = first + comptime!(i * UNITS);
        if at < n {
            let mut h = ((at as u32 + start) * 0x9E37_79B9u32) ^ seed;
            h = (h ^ (h >> 16u32)) * 0x85EB_CA6Bu32;
            h = (h ^ (h >> 13u32)) * 0xC2B2_AE35u32;
            h ^= h >> 16u32;
            let whole = f32::cast_from(h >> unused);
            x.raw_set(base + at, X::cast_from((whole - half) * step + shift));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::gpu;

    #[test]
    fn the_host_knows_every_element() {
        let gpu = gpu();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            if !gpu.caps().stores(dtype) {
                continue;
            }
            for (scale, shift) in [(1.0, 0.0), (0.015625, 0.0), (0.25, 7.5)] {
                if shift != 0.0 && dtype != DType::F32 {
                    continue;
                }
                let noise = Noise {
                    seed: 7,
                    dtype,
                    scale,
                    shift,
                };
                let x = gpu.alloc(dtype, [1237]);
                noise.fill(&gpu, &x);
                let got = gpu.read_f32(&x).expect("the device works");
                let want: Vec<f64> = (0..1237).map(|i| noise.at(i)).collect();
                assert!(
                    got.iter().zip(&want).all(|(&g, &w)| g as f64 == w),
                    "{dtype:?} {scale} {shift}"
                );
                let mean = want.iter().sum::<f64>() / 1237.0 - shift as f64;
                assert!(mean.abs() < 0.1 * scale as f64, "{mean}");
            }
        }
    }

    #[test]
    fn tensors_larger_than_a_binding_go_on_where_a_part_ends() {
        let gpu = gpu().with_caps(|caps| crate::gpu::Caps {
            max_binding_bytes: 2048,
            ..caps
        });
        let noise = Noise {
            seed: 1,
            dtype: DType::F32,
            scale: 1.0,
            shift: 0.0,
        };
        let x = gpu.f32([1000]);
        noise.fill(&gpu, &x);
        let tail = gpu.read_f32(&x.slice(900, [100])).expect("the device works");
        assert!(tail.iter().enumerate().all(|(i, &v)| v as f64 == noise.at(900 + i)));
    }
}
