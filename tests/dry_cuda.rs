//! Whole training steps as CUDA would run them, without a GPU: every kernel is lowered to CUDA C++ by the compiler that CUDA
//! devices use, once for each class of architecture, because kernels differ by it. Where NVIDIA's compiler is installed
//! (`./x test` and `./x cuda-check` do that), what was lowered for an architecture is compiled for it.
//!
//! `ACRLPD_CUDA_WHEELS` names the folder of the compiler. What compiled is remembered in the build folder. Generated kernels
//! that architectures share are compiled for the latest, and for each with `ACRLPD_CUDA_CHECK_ALL` (`./x cuda-check`).

mod cuda_text;
mod dry_support;

use std::collections::BTreeSet;
use std::path::Path;

use acrlpd::gpu::nvrtc::Toolchain;
use acrlpd::gpu::{DType, DryKernel, Gpu};

/// Compute capabilities that kernels are lowered for, and what each is compiled as.
const ARCHS: [(u32, &str); 3] = [(80, "sm_80"), (89, "sm_89"), (90, "sm_90a")];

/// Bytes a thread may store and load again because registers ran out: two registers, both ways. Kernels that live in
/// registers may not at all.
const MOST_SPILL_BYTES: u32 = 16;

/// Every kernel of a training step as a GPU of this architecture would get it.
fn kernels(arch: u32) -> Vec<DryKernel> {
    let gpu = Gpu::dry_cuda(arch).expect("needs no device");
    let formats = [DType::F32, DType::Bf16];
    dry_support::drive(&gpu, &formats);
    for dtype in formats {
        dry_support::drive_preset(&gpu, "rl_fold_box", dtype);
    }
    gpu.dry_kernels().expect("every kernel is lowered")
}

/// Of generated kernels that several architectures share, source for source, keeps that of the latest: such a source has
/// nothing that only one of them knows, and each build takes a second.
fn keep_one_of_each(lowered: &mut Vec<(DryKernel, &str)>) {
    let mut seen = BTreeSet::new();
    lowered.reverse();
    lowered.retain(|(k, _)| k.hand_written || seen.insert(k.source.clone()));
    lowered.reverse();
}

/// Matrix products and attention: what most of a step's time goes to.
fn is_matrix(kernel: &str) -> bool {
    ["gemm", "flash", "attention"].iter().any(|part| kernel.contains(part))
}

#[test]
fn a_training_step_is_cuda() {
    let hand_written = cuda_text::entries();
    let mut lowered: Vec<(DryKernel, &str)> = Vec::new();
    for (arch, name) in ARCHS {
        let kernels = kernels(arch);
        assert!(kernels.len() > 50, "{} kernels for {name}", kernels.len());
        for kernel in &kernels {
            let DryKernel { entry, source, .. } = kernel;
            assert!(source.contains("__global__"), "{entry}: {source}");
            assert!((1..=1024).contains(&kernel.threads), "{entry}");
            if kernel.hand_written {
                assert_eq!(cuda_text::launch_fault(kernel), None);
            }
        }
        let bf16 = kernels.iter().filter(|k| k.source.contains("__nv_bfloat16")).count();
        assert!(bf16 > 20, "{bf16} kernels in bfloat16");
        lowered.extend(kernels.into_iter().map(|k| (k, name)));
    }
    let used: BTreeSet<&str> = lowered.iter().map(|(k, _)| k.entry.as_str()).collect();
    for entry in &hand_written {
        assert!(
            used.contains(entry.as_str()),
            "no step launches {entry}, so nothing compiles it"
        );
    }

    let Some(toolchain) = Toolchain::from_env() else {
        let n = lowered.len();
        println!("{n} kernels lowered; ACRLPD_CUDA_WHEELS names no CUDA compiler, so none compiled");
        return;
    };
    if std::env::var_os("ACRLPD_CUDA_CHECK_ALL").is_none() {
        keep_one_of_each(&mut lowered);
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-check");
    std::fs::create_dir_all(&cache).expect("a folder in the build folder");
    let report = toolchain.check(&lowered, Some(&cache));
    println!("{report}");
    assert!(report.passed(), "{} kernels do not compile", report.failures().count());
    for (kernel, needs) in report.spills() {
        let most = if is_matrix(&kernel.entry) { 0 } else { MOST_SPILL_BYTES };
        let (entry, arch, spilled) = (&kernel.entry, &kernel.arch, needs.spill_bytes);
        assert!(
            spilled <= most,
            "{entry} for {arch} spills {spilled} bytes, {most} are allowed"
        );
    }
}

#[test]
fn the_compiler_refuses_what_is_wrong() {
    let Some(toolchain) = Toolchain::from_env() else { return };
    let kernel = |body: &str| format!("extern \"C\" __global__ void k(float* x) {{ {body} }}");
    let log = toolchain
        .compile(&kernel("x[0] = missing;"), "sm_80")
        .expect_err("a name is missing");
    assert!(log.contains("\"missing\" is undefined"), "{log}");
    // What only a later architecture has passes the first stage and fails in the assembler.
    let fence = kernel("asm volatile(\"wgmma.fence.sync.aligned;\");");
    assert!(toolchain.compile(&fence, "sm_90a").is_ok());
    assert!(toolchain.compile(&fence, "sm_90").is_err());
    // A thousand threads have 64 registers each: a hundred values do not fit.
    let values = "float s[100];\n#pragma unroll\nfor (int i = 0; i < 100; i++) s[i] = x[i * 1024 + threadIdx.x];\n\
                  __syncthreads();\n#pragma unroll\n\
                  for (int i = 0; i < 100; i++) x[(99 - i) * 1024 + threadIdx.x] = s[i];";
    let source = kernel(values).replace("void k", "void __launch_bounds__(1024) k");
    let needs = toolchain.compile(&source, "sm_80").expect("it compiles");
    assert!(needs.spill_bytes > 0 && needs.registers <= 64, "{needs:?}");
}
