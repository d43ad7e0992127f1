//! What the emulated device takes from hardware, and that it notices what kernels get wrong.

use std::collections::BTreeSet;

use cubecl::prelude::CubeCount;

use crate::gpu::raw::{RawKernel, Source, TensorMap};
use crate::gpu::{Cost, DType, Gpu, GpuError, Tensor};

fn gpu() -> Gpu {
    Gpu::emulated_cuda(90).expect("tests need a C++ compiler")
}

fn kernel(entry: &'static str, source: &'static str, units: u32) -> RawKernel {
    RawKernel {
        entry,
        wgsl: Source::NONE,
        cuda: Source::cuda(source, ""),
        units,
        shared_bytes: 65536 + 64,
    }
}

/// Results of eight launches, which run in eight orders.
fn outcomes(gpu: &Gpu, kernel: &RawKernel, maps: &[TensorMap<'_>], len: usize) -> BTreeSet<Vec<u32>> {
    let run = |_| {
        let out = gpu.f32([len]);
        let cost = Cost::moving("test", 0);
        gpu.launch_mapped(
            cost,
            kernel,
            CubeCount::Static(1, 1, 1),
            maps,
            &[&out],
            &[out.at() as u32],
        );
        let values = gpu.read_f32(&out).expect("the kernel runs");
        values.into_iter().map(f32::to_bits).collect()
    };
    (0..8).map(run).collect()
}

const SHIFT: &str = "
struct info_st { u32 at, unused; };
extern \"C\" __global__ void __launch_bounds__(64) shift(float* out, const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    float* values = (float*)memory;
    values[threadIdx.x] = (float)threadIdx.x;
    BARRIER;
    out[info.at + threadIdx.x] = values[(threadIdx.x + 33) % 64];
}";

#[test]
fn a_missing_barrier_shows() {
    let gpu = gpu();
    for (barrier, right) in [("__syncthreads()", true), ("__syncwarp()", false)] {
        let shift = RawKernel {
            cuda: Source::cuda(SHIFT, &format!("#define BARRIER {barrier}")),
            ..kernel("shift", SHIFT, 64)
        };
        let seen = outcomes(&gpu, &shift, &[], 64);
        let wanted: Vec<u32> = (0..64).map(|i| (((i + 33) % 64) as f32).to_bits()).collect();
        assert_eq!(
            seen.iter().all(|s| *s == wanted),
            right,
            "{barrier}: {} outcomes",
            seen.len()
        );
    }
}

/// `C = A Bᵀ` of one tile, the copy and the product both in the background.
const TILE: &str = "
struct info_st { u32 at, unused; };
extern \"C\" __global__ void __launch_bounds__(128) tile(
    const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, const bf16*, const bf16*, float* out,
    const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    u64* full = (u64*)(memory + 65536);
    if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_fence_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(full, 2 * 64 * 128);
        tma_load(memory, &a, 0, 0, 0, full);
        tma_load(memory + 8192, &b, 0, 0, 0, full);
    }
    WAIT_FOR_COPY;
    float d[32];
    wgmma_fence();
    for (int k = 0; k < 4; k++)
        wgmma<0, 0>(d, wgmma_k_major(memory + 32 * k), wgmma_k_major(memory + 8192 + 32 * k), k > 0);
    wgmma_commit();
    WAIT_FOR_PRODUCT;
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
    for (int j = 0; j < 8; j++)
        for (int c = 0; c < 4; c++) out[info.at + (row + c / 2 * 8) * 64 + 8 * j + lane % 4 * 2 + c % 2] = d[4 * j + c];
    mbarrier_wait(full, 0);
}";

/// 60 × 56 elements inside rows of 72.
fn operand(gpu: &Gpu, salt: usize) -> (Tensor, Vec<f64>) {
    let value = |i: usize| ((i * 37 + salt) % 101) as f32 / 32.0 - 1.5;
    let values: Vec<f32> = (0..60 * 72).map(|i| half::bf16::from_f32(value(i)).to_f32()).collect();
    let inside = |i: usize, k: usize| {
        if i < 60 && k < 56 {
            values[i * 72 + k] as f64
        } else {
            0.0
        }
    };
    let padded = (0..64 * 64).map(|e| inside(e / 64, e % 64)).collect();
    (gpu.upload_as(&values, DType::Bf16, [60, 72]), padded)
}

#[test]
fn products_of_copied_tiles_are_right_and_nothing_may_be_read_early() {
    let gpu = self::gpu();
    let ((a, a_values), (b, b_values)) = (operand(&gpu, 3), operand(&gpu, 50));
    let map = |tensor| TensorMap {
        tensor,
        shape: [1, 60, 56],
        strides: [60 * 72, 72],
        tile: [64, 64],
    };
    let wanted: Vec<f64> = (0..64 * 64)
        .map(|e| {
            (0..64)
                .map(|k| a_values[e / 64 * 64 + k] * b_values[e % 64 * 64 + k])
                .sum()
        })
        .collect();
    let good = |bits: &Vec<u32>| {
        let close = |(&x, &y): (&u32, &f64)| (f32::from_bits(x) as f64 - y).abs() <= 1e-4 * (1.0 + y.abs());
        bits.iter().zip(&wanted).all(close)
    };
    for (copy, product, right) in [
        ("mbarrier_wait(full, 0)", "wgmma_wait<0>()", true),
        ("(void)0", "wgmma_wait<0>()", false),
        ("mbarrier_wait(full, 0)", "(void)0", false),
    ] {
        let defines = format!("#define WAIT_FOR_COPY {copy}\n#define WAIT_FOR_PRODUCT {product}");
        let tile = RawKernel {
            cuda: Source::cuda(TILE, &defines),
            ..kernel("tile", TILE, 128)
        };
        let seen = outcomes(&gpu, &tile, &[map(&a), map(&b)], 64 * 64);
        assert_eq!(
            seen.iter().all(good),
            right,
            "{copy}, {product}: {} outcomes",
            seen.len()
        );
    }
}

#[test]
fn what_waits_forever_is_named() {
    // A device that no other test uses: all who opened it learn of its failures.
    let gpu = Gpu::emulated_cuda(86).expect("tests need a C++ compiler");
    const STUCK: &str = "
struct info_st { u32 at, unused; };
extern \"C\" __global__ void __launch_bounds__(32) stuck(float* out, const __grid_constant__ info_st info) {
    DYNAMIC_SHARED(memory);
    if (threadIdx.x == 0) mbarrier_init((u64*)memory, 2);
    __syncthreads();
    if (threadIdx.x == 0) mbarrier_arrive((u64*)memory);
    mbarrier_wait((u64*)memory, 0);
    out[info.at] = 1.f;
}";
    let out = gpu.f32([1]);
    let stuck = kernel("stuck", STUCK, 32);
    gpu.launch_raw(
        Cost::moving("test", 0),
        &stuck,
        CubeCount::Static(1, 1, 1),
        &[&out],
        &[0],
    );
    let Err(GpuError::Launch { why, .. }) = gpu.sync() else {
        panic!("a kernel that cannot end is an error")
    };
    assert!(
        why.contains("stuck") && why.contains("every thread waits") && why.contains("mbarrier"),
        "{why}"
    );
}
