//! Whole training steps as the classes of GPUs that wgpu drives would get them, without an adapter: every kernel is
//! lowered to WGSL by the compiler that such devices use, validated with what the class allows, and translated to SPIR-V,
//! MSL and HLSL. So a Mac or a Windows laptop is not the first to find out.
//!
//! A class is what [`Caps`] can say, for nothing else decides which kernels run.

mod dry_support;

use acrlpd::gpu::{Caps, Cooperative, DType, Dialect, Gpu, check_wgsl};

/// The least that WebGPU promises: no subgroups, no f16, no 64-bit integers, 16 KiB of workgroup memory. Buffers alone may be
/// larger, because with 128 MiB a step of the published size is refused.
fn plain() -> Caps {
    Caps {
        name: "plain GPU".into(),
        plane: None,
        wide_loads: false,
        f16: false,
        bf16: false,
        max_binding_bytes: 2 << 30,
        max_page_bytes: 4 << 30,
        max_units: 256,
        max_shared_bytes: 16 << 10,
        max_cubes: [65535; 3],
        alignment: 256,
        ..Caps::planning()
    }
}

/// A GPU with all that its driver can offer beyond that.
fn able() -> Caps {
    Caps {
        wide_loads: true,
        f16: true,
        max_units: 1024,
        max_shared_bytes: 32 << 10,
        ..plain()
    }
}

/// A CPU behind Vulkan, or behind DX12.
fn software(plane: u32) -> Caps {
    Caps {
        name: format!("software, subgroups of {plane}"),
        software: true,
        plane: Some(plane),
        ..able()
    }
}

/// Every kernel of a training step, tiny and at the published size, on such a device.
fn check(caps: Caps) {
    let formats: &[DType] = if caps.f16 {
        &[DType::F32, DType::F16]
    } else {
        &[DType::F32]
    };
    let gpu = Gpu::dry_wgpu(caps).expect("needs no device");
    dry_support::drive(&gpu, formats);
    for &dtype in formats {
        dry_support::drive_preset(&gpu, "rl_fold_box", dtype);
    }
    let kernels = gpu.dry_kernels().expect("every kernel is lowered");
    let report = check_wgsl(&kernels, gpu.caps());
    println!("{report}");
    assert!(report.passed(), "{} refusals", report.failures.len());
    assert!(report.checked > 50, "{} kernels", report.checked);
    assert!(
        kernels.iter().any(|k| k.entry == "copy_words"),
        "hand-written kernels too"
    );
    // Large tiles wherever they fit, and matrix units wherever there are some.
    let entry = |name| kernels.iter().any(|k| k.entry.starts_with(name));
    let caps = gpu.caps();
    let room = !caps.software && caps.max_shared_bytes >= 16 << 10;
    let all_on_matrices = caps.cooperative.is_some_and(|m| m.floats.is_some());
    assert_eq!(entry("gemm_blocked"), room && !all_on_matrices);
    assert_eq!(entry("gemm_cooperative"), caps.cooperative.is_some());
    // No scores in memory where a block of them fits into shared memory.
    let blocks_of_scores = !caps.software && caps.max_shared_bytes >= 32 << 10;
    assert_eq!(entry("flash_wide_forward"), blocks_of_scores);
    let halves = kernels.iter().filter(|k| k.source.contains("enable f16")).count();
    assert_eq!(halves > 20, gpu.caps().f16, "{halves} kernels in f16");
}

#[test]
fn a_plain_gpu() {
    check(plain());
}

#[test]
fn a_gpu_with_subgroups_of_32() {
    check(Caps {
        name: "subgroups of 32".into(),
        plane: Some(32),
        ..plain()
    });
}

#[test]
fn a_gpu_with_subgroups_of_32_f16_and_64_bit_integers() {
    check(Caps {
        name: "subgroups of 32, f16, int64".into(),
        plane: Some(32),
        ..able()
    });
}

/// Apple's and Intel's subgroups have more than one size, so no kernel may use them.
#[test]
fn a_gpu_with_subgroups_of_any_size_and_f16() {
    check(Caps {
        name: "subgroups of any size, f16, int64".into(),
        ..able()
    });
}

#[test]
fn a_gpu_with_f16_alone() {
    check(Caps {
        name: "f16".into(),
        f16: true,
        ..plain()
    });
}

/// As NVIDIA's and AMD's drivers offer them on Vulkan: f16, 16 × 16; on AMD subgroups may have 32 or 64 units.
#[test]
fn a_vulkan_gpu_with_matrix_units_for_f16() {
    for plane in [Some(32), None] {
        check(Caps {
            name: format!("matrix units for f16 on Vulkan, subgroups {plane:?}"),
            plane,
            max_shared_bytes: 48 << 10,
            cooperative: Some(Cooperative {
                halves: Some(16),
                floats: None,
                dialect: Dialect::Vulkan,
                subgroup: plane.unwrap_or(64),
            }),
            ..able()
        });
    }
}

/// Apple's: f32, 8 × 8, for operands of both types.
#[test]
fn a_metal_gpu_with_matrix_units_for_f32() {
    check(Caps {
        name: "matrix units for f32 on Metal".into(),
        wide_loads: false,
        cooperative: Some(Cooperative {
            halves: None,
            floats: Some(8),
            dialect: Dialect::Metal,
            subgroup: 32,
        }),
        ..able()
    });
}

/// Too little for tiles of products, which then live in registers alone.
#[test]
fn a_gpu_with_little_shared_memory() {
    check(Caps {
        name: "8 KiB of workgroup memory".into(),
        max_shared_bytes: 8 << 10,
        ..plain()
    });
}

#[test]
fn software_with_subgroups_of_4() {
    check(software(4));
}

#[test]
fn software_with_subgroups_of_8() {
    check(software(8));
}

#[test]
fn software_with_subgroups_of_16() {
    check(software(16));
}

#[test]
fn software_without_subgroups() {
    check(Caps {
        name: "software, plain".into(),
        software: true,
        ..plain()
    });
}
