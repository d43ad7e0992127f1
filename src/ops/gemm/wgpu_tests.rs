//! The kernels for GPUs that wgpu drives: which is picked, large tiles, and matrix units, emulated.

use super::tests::{dims, epilogues, forms, halves, places, product};
use super::*;
use crate::gpu::{Cooperative, DType, Dialect};
use crate::ops::testing::{check, f64s, gpu, normals};

/// The test device with matrix units.
fn with_matrices(halves: Option<u32>, floats: Option<u32>, dialect: Dialect, subgroup: u32) -> Gpu {
    gpu().with_caps(|caps| Caps {
        cooperative: Some(Cooperative {
            halves,
            floats,
            dialect,
            subgroup,
        }),
        ..caps
    })
}

fn rounded(x: Vec<f32>) -> Vec<f32> {
    x.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect()
}

#[test]
fn matrices_of_f32_do_every_form_and_epilogue() {
    let gpu = with_matrices(None, Some(8), Dialect::Emulated(32), 32);
    forms(&gpu, &[Kernel::Cooperative]);
    epilogues(&gpu, &[Kernel::Cooperative]);
    places(&gpu, &[Kernel::Cooperative]);
    halves(&gpu, &[Kernel::Cooperative]);
}

/// f16 operands in every form: whole vectors, or single elements with edges and tails.
fn forms_in_halves(gpu: &Gpu, shapes: &[[usize; 3]]) {
    for (case, &[m, n, k]) in shapes.iter().enumerate() {
        let (a, b) = (
            rounded(normals(case as u64, m * k)),
            rounded(normals(50 + case as u64, k * n)),
        );
        for (ta, tb) in [(false, true), (false, false), (true, false), (true, true)] {
            let want = product(&f64s(&a), &f64s(&b), [m, n, k], ta, tb);
            let (ga, gb) = (
                gpu.upload_as(&a, DType::F16, dims(m, k, ta)),
                gpu.upload_as(&b, DType::F16, dims(k, n, tb)),
            );
            let c = gpu.f32([m, n]);
            let form = Gemm::new((&ga).into(), (&gb).into(), ta, tb);
            form.with(Kernel::Cooperative).to(gpu, &c);
            check(gpu, &format!("{m}x{n}x{k} {ta} {tb}"), &c, &want, 2e-6);
        }
    }
}

#[test]
fn matrices_of_f16_do_every_form() {
    if !gpu().caps().f16 {
        return;
    }
    let gpu = with_matrices(Some(16), None, Dialect::Emulated(32), 32);
    forms_in_halves(&gpu, &[[64, 64, 32], [72, 36, 40], [17, 33, 19], [129, 5, 70]]);
    halves(&gpu, &[Kernel::Cooperative]);
    let of_8 = with_matrices(Some(8), None, Dialect::Emulated(32), 32);
    forms_in_halves(&of_8, &[[72, 36, 40]]);
}

/// The other way to name layouts gives the same.
#[test]
fn metal_names_layouts_the_other_way_round() {
    if gpu().caps().f16 {
        let gpu = with_matrices(None, Some(8), Dialect::EmulatedMetal(32), 32);
        forms_in_halves(&gpu, &[[72, 36, 40], [17, 33, 19]]);
    }
}

/// Fewer subgroups than blocks: several passes. More: some repeat a block. As many: other shapes of blocks.
#[test]
fn subgroups_may_have_any_size() {
    if !gpu().caps().f16 {
        return;
    }
    for (real, expected) in [(64, 32), (128, 32), (16, 32), (64, 64), (16, 16), (128, 128)] {
        let gpu = with_matrices(Some(16), None, Dialect::Emulated(real), expected);
        forms_in_halves(&gpu, &[[72, 36, 40]]);
    }
}

#[test]
fn large_tiles_of_both_kernels() {
    let (e, m, n, k) = (12, 130, 70, 40);
    for dtype in [DType::F32, DType::F16] {
        for subgroup in [32, 64] {
            let gpu = with_matrices(Some(16), Some(8), Dialect::Emulated(subgroup), subgroup);
            if !gpu.caps().stores(dtype) {
                continue;
            }
            let (a, b) = (rounded(normals(1, e * m * k)), rounded(normals(2, e * n * k)));
            let want: Vec<f64> = (0..e)
                .flat_map(|i| {
                    let (a, b) = (&a[i * m * k..][..m * k], &b[i * n * k..][..n * k]);
                    product(&f64s(a), &f64s(b), [m, n, k], false, true)
                })
                .collect();
            let (ga, gb) = (gpu.upload_as(&a, dtype, [e, m, k]), gpu.upload_as(&b, dtype, [e, n, k]));
            for kernel in [Kernel::Cooperative, Kernel::Blocked] {
                let c = gpu.f32([e, m, n]);
                nt(&ga, &gb).with(kernel).to(&gpu, &c);
                check(&gpu, &format!("{dtype:?} {kernel:?} {subgroup}"), &c, &want, 2e-6);
            }
        }
    }
}

#[test]
fn the_table_picks_by_abilities_limits_and_shape() {
    let plain = Caps {
        api: crate::gpu::Api::Vulkan,
        cuda_arch: None,
        f16: true,
        max_units: 256,
        max_shared_bytes: 16 << 10,
        ..Caps::planning()
    };
    let matrices = |halves, floats| {
        Some(Cooperative {
            halves,
            floats,
            dialect: Dialect::Vulkan,
            subgroup: 32,
        })
    };
    let picked = |caps: &Caps, dtype, [m, n]: [usize; 2]| {
        let gpu = Gpu::null(caps.clone());
        let t = |rows| gpu.alloc(dtype, [rows, 64]);
        Kernel::pick(caps, &nt(&t(m), &t(n)), &(&gpu.f32([m, n])).into())
    };
    use DType::{F16, F32};
    let (large, small) = ([1024, 1024], [64, 1024]);
    assert_eq!(picked(&plain, F32, large), Kernel::Blocked);
    assert_eq!(picked(&plain, F16, large), Kernel::Blocked);
    assert_eq!(picked(&plain, F32, small), Kernel::Tiled);
    // Half of each tile would lie outside.
    assert_eq!(picked(&plain, F32, [16, 65536]), Kernel::Tiled);
    let less = |caps: &Caps| Caps {
        max_shared_bytes: (16 << 10) - 1,
        ..caps.clone()
    };
    assert_eq!(picked(&less(&plain), F32, large), Kernel::Tiled);
    let of_f16 = Caps {
        cooperative: matrices(Some(16), None),
        ..plain.clone()
    };
    assert_eq!(picked(&of_f16, F16, large), Kernel::Cooperative);
    assert_eq!(picked(&of_f16, F16, small), Kernel::Cooperative);
    assert_eq!(picked(&of_f16, F16, [8, 1024]), Kernel::Tiled);
    assert_eq!(picked(&of_f16, F32, large), Kernel::Blocked);
    // Matrices of f32 need more shared memory than the least that there is.
    let of_f32 = Caps {
        cooperative: matrices(None, Some(8)),
        ..plain.clone()
    };
    assert_eq!(picked(&of_f32, F32, large), Kernel::Blocked);
    let of_f32 = Caps {
        max_shared_bytes: 32 << 10,
        ..of_f32
    };
    assert_eq!(picked(&of_f32, F32, large), Kernel::Cooperative);
    assert_eq!(picked(&of_f32, F16, large), Kernel::Cooperative);
    // CUDA has no WGSL.
    let cuda = Caps {
        api: crate::gpu::Api::Cuda,
        ..of_f32
    };
    assert_eq!(picked(&cuda, F32, large), Kernel::Tiled);
}
