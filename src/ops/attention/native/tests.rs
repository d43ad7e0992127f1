//! The CUDA kernels, run on the CPU, against float64 of the same bf16 operands. The emulated device takes threads, blocks and
//! background copies in another order at every launch, so equal bits say that nothing depends on it.

use super::super::tests::{Case, Precision, case, run};
use super::super::{Attention, Columns, KeyPlan, KeyRun, Keys, Method, Plan, Saved, Sequence};
use crate::gpu::nvrtc::Toolchain;
use crate::gpu::{Caps, DType, Gpu};
use crate::ops::rope::Heads;

/// What bf16 loses, relative to the largest element: o is rounded (2⁻⁹), as are the probabilities it is a mean with (2⁻⁹);
/// lse is never rounded. A gradient is rounded, as are p and ds that it is a sum with, and `delta` comes from the rounded
/// o.
const BF16: Precision = Precision {
    dtype: DType::Bf16,
    gradients: DType::F32,
    o: 4e-3,
    lse: 3e-6,
    gradient: 1e-2,
};

fn emulated(arch: u32) -> Gpu {
    Gpu::emulated_cuda(arch).expect("the emulated device needs a C++ compiler")
}

/// Sequences of no even length: `rows` queries of `keys` cached and their own keys; one more that sees the same cached keys
/// and none of its own; one with own keys alone; one with cached keys alone.
fn ragged(q: usize, kv: usize, dim: usize, rows: usize, keys: usize) -> Case {
    let sequence = |q_row0, q_rows, k_row0, k_rows, own_rows| Sequence {
        q_row0,
        q_rows,
        k_row0,
        k_rows,
        own_row0: q_row0,
        own_rows,
    };
    Case {
        heads: Heads { q, kv, dim },
        q_rows: rows + 12,
        cache_rows: keys + 9,
        sequences: vec![
            sequence(1, rows, 2, keys, rows),
            sequence(rows + 1, 2, 2, keys, 0),
            sequence(rows + 3, 3, 0, 0, 3),
            sequence(rows + 6, 5, keys + 3, 5, 0),
        ],
    }
}

/// Cached keys alone, and no second buffer.
fn cached_only(q: usize, kv: usize, dim: usize) -> Case {
    let mut c = case(q, kv, dim);
    c.sequences.iter_mut().for_each(|s| s.own_rows = 0);
    c
}

fn twice(gpu: &Gpu, c: &Case, precision: Precision) {
    let first = run(gpu, c, Method::Native, precision);
    let second = run(gpu, c, Method::Native, precision);
    let bits = |results: Vec<Vec<f32>>| -> Vec<u32> { results.concat().iter().map(|v| v.to_bits()).collect() };
    assert!(
        bits(first) == bits(second),
        "{:?}: results differ from run to run",
        c.heads
    );
}

#[test]
fn small_heads_meet_float64() {
    let gpu = emulated(80);
    twice(&gpu, &case(8, 1, 16), BF16);
    twice(&gpu, &ragged(4, 2, 32, 37, 70), BF16);
    twice(&gpu, &cached_only(2, 2, 8), BF16);
    // Heads that do not start at multiples of 16 bytes; bf16 gradients of the cache.
    let all = Precision {
        gradients: DType::Bf16,
        ..BF16
    };
    twice(&gpu, &ragged(3, 3, 10, 40, 66), all);
}

#[test]
fn heads_of_72_meet_float64() {
    twice(&emulated(80), &ragged(2, 2, 72, 70, 67), BF16);
    twice(&emulated(90), &cached_only(2, 2, 72), BF16);
}

#[test]
fn heads_of_256_meet_float64() {
    twice(&emulated(80), &ragged(8, 1, 256, 9, 40), BF16);
    twice(&emulated(89), &ragged(2, 1, 256, 33, 40), BF16);
    // Two warps share 16 keys, and neither has all columns.
    twice(&emulated(80), &ragged(2, 2, 146, 20, 70), BF16);
}

/// Long sequences take other tiles on each, and wgmma on the last.
#[test]
fn long_sequences_of_wide_heads_meet_float64() {
    twice(&emulated(80), &ragged(8, 1, 256, 65, 70), BF16);
    twice(&emulated(90), &ragged(8, 1, 256, 67, 203), BF16);
}

/// A launch of few blocks whose keys are shared by several.
#[test]
fn shared_keys_meet_float64() {
    twice(&emulated(80), &ragged(8, 1, 32, 20, 300), BF16);
    twice(&emulated(90), &ragged(8, 1, 256, 5, 300), BF16);
}

#[test]
fn the_device_and_the_operands_decide() {
    let gpu = emulated(80);
    let heads = |dim| Heads { q: 2, kv: 1, dim };
    let method = |gpu: &Gpu, dim: usize, dtype, column| {
        let rows = gpu.alloc(dtype, [3, 4 * dim + 2]);
        Attention::new(heads(dim)).method(gpu, &[Columns { rows: &rows, column }.operand()], &[])
    };
    assert_eq!(method(&gpu, 256, DType::Bf16, 0), Method::Native);
    assert_eq!(method(&gpu, 16, DType::Bf16, 2), Method::Native);
    assert_eq!(method(&gpu, 16, DType::Bf16, 1), Method::Flash);
    assert_eq!(method(&gpu, 16, DType::F32, 0), Method::Flash);
    assert_eq!(method(&gpu, 258, DType::Bf16, 0), Method::Materialised);
    let older = gpu.with_caps(|caps| Caps {
        cuda_arch: Some(75),
        ..caps
    });
    assert_eq!(method(&older, 256, DType::Bf16, 0), Method::Materialised);
}

/// All passes of `sequences` alike, with a second buffer of keys or without, on any device.
fn launch(gpu: &Gpu, heads: Heads, sequences: usize, rows: usize, keys: usize, own: bool) {
    let all: Vec<Sequence> = (0..sequences)
        .map(|i| Sequence {
            q_row0: i * rows,
            q_rows: rows,
            k_row0: i * keys,
            k_rows: keys,
            own_row0: i * rows,
            own_rows: if own { rows } else { 0 },
        })
        .collect();
    let runs = all.iter().map(|s| KeyRun {
        k_row0: s.k_row0,
        k_rows: s.k_rows,
        queries: vec![(s.q_row0, s.q_rows)],
    });
    let (plan, key_plan) = (Plan::new(gpu, all.clone()), KeyPlan::new(gpu, runs.collect()));
    let of_queries = |width| gpu.alloc(DType::Bf16, [sequences * rows, width]);
    let (qkv, o, d_o, dqkv) = (
        of_queries(heads.fused()),
        of_queries(heads.q_width()),
        of_queries(heads.q_width()),
        of_queries(heads.fused()),
    );
    let (lse, delta) = (
        gpu.f32([sequences * rows, heads.q]),
        gpu.f32([sequences * rows, heads.q]),
    );
    let cache = gpu.alloc(DType::Bf16, [sequences * keys, 2 * heads.kv_width()]);
    let dcache = gpu.f32([sequences * keys, 2 * heads.kv_width()]);
    let (attention, q, cached) = (Attention::new(heads), Columns::all(&qkv), Keys::cache(&cache, heads));
    let own = own.then_some(Keys::fused(&qkv, heads));
    let saved = Saved { o: &o, lse: &lse };
    attention.forward(gpu, &plan, q, cached, own, &o, Some(&lse));
    attention.backward_queries(gpu, &plan, q, cached, own, saved, &d_o, Columns::all(&dqkv), &delta);
    let dkeys = Keys::cache(&dcache, heads);
    attention.backward_keys(gpu, &key_plan, q, cached, saved, &d_o, &delta, dkeys, true);
}

/// What π₀ and the tiny models run, compiled for each kind of device.
#[test]
fn no_kernel_spills_registers() {
    let Some(toolchain) = Toolchain::from_env() else {
        return eprintln!("skipped: ACRLPD_CUDA_WHEELS names no CUDA compiler (./x cuda-check installs one)");
    };
    for (arch, name) in [(80, "sm_80"), (89, "sm_89"), (90, "sm_90a")] {
        let gpu = Gpu::dry_cuda(arch).expect("a dry device");
        let heads = |q, kv, dim| Heads { q, kv, dim };
        // The prefix; its state token; the suffix of one sample and of many; SigLIP; a tiny model.
        launch(&gpu, heads(8, 1, 256), 8, 780, 780, false);
        launch(&gpu, heads(8, 1, 256), 8, 1, 781, false);
        launch(&gpu, heads(8, 1, 256), 1, 20, 800, true);
        launch(&gpu, heads(8, 1, 256), 40, 20, 800, true);
        launch(&gpu, heads(16, 16, 72), 24, 256, 256, false);
        launch(&gpu, heads(8, 1, 16), 2, 20, 30, true);
        let kernels = gpu.dry_kernels().expect("kernels");
        let of_attention: Vec<_> = kernels
            .into_iter()
            .filter(|k| k.arch == arch && k.entry.starts_with("attention"))
            .map(|k| (k, name))
            .collect();
        assert!(of_attention.len() >= 10, "{name}: only {} kernels", of_attention.len());
        let report = toolchain.check(&of_attention, None);
        assert!(report.passed() && report.spills().is_empty(), "{report}");
        println!("{report}");
    }
}
