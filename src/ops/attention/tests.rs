//! All implementations against float64: packed sequences of different lengths, cached and own keys, shared heads.

use super::*;
use crate::gpu::DType;
use crate::ops::testing::{check, f64s, gpu, normals};

/// Float64 attention over explicit lists of keys, with gradients.
struct Reference {
    o: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dcache: Vec<f64>,
    down: Vec<f64>,
}

pub(super) struct Case {
    pub heads: Heads,
    pub q_rows: usize,
    pub cache_rows: usize,
    pub sequences: Vec<Sequence>,
}

/// How tensors are stored, and what may be lost, relative to the largest element.
#[derive(Clone, Copy)]
pub(super) struct Precision {
    pub dtype: DType,
    /// Of the cache's gradient.
    pub gradients: DType,
    pub o: f64,
    pub lse: f64,
    pub gradient: f64,
}

const F32: Precision = Precision {
    dtype: DType::F32,
    gradients: DType::F32,
    o: 3e-6,
    lse: 3e-6,
    gradient: 1e-5,
};

pub(super) fn case(q: usize, kv: usize, dim: usize) -> Case {
    // Three sequences: cached keys and own rows; own rows only as cache (self attention); a long one. Row 4 of the
    // queries belongs to none of them.
    let sequences = vec![
        Sequence {
            q_row0: 0,
            q_rows: 4,
            k_row0: 3,
            k_rows: 11,
            own_row0: 0,
            own_rows: 4,
        },
        Sequence {
            q_row0: 5,
            q_rows: 1,
            k_row0: 0,
            k_rows: 3,
            own_row0: 5,
            own_rows: 1,
        },
        Sequence {
            q_row0: 6,
            q_rows: 9,
            k_row0: 14,
            k_rows: 21,
            own_row0: 6,
            own_rows: 9,
        },
    ];
    Case {
        heads: Heads { q, kv, dim },
        q_rows: 15,
        cache_rows: 36,
        sequences,
    }
}

/// `fused [q_rows, (Hq + 2 Hkv) K]`, `cache [cache_rows, 2 Hkv K]`, `d_o [q_rows, Hq K]`.
fn reference(c: &Case, fused: &[f64], cache: &[f64], d_o: &[f64]) -> Reference {
    let h = c.heads;
    let (ld, kv_ld, dim) = (h.fused(), 2 * h.kv_width(), h.dim);
    let mut r = Reference {
        o: vec![0.0; c.q_rows * h.q_width()],
        lse: vec![0.0; c.q_rows * h.q],
        dq: vec![0.0; c.q_rows * h.q_width()],
        dcache: vec![0.0; cache.len()],
        down: vec![0.0; fused.len()],
    };
    let scale = 1.0 / (dim as f64).sqrt();
    for s in &c.sequences {
        // (is own, offset of k, offset of v) of every key of the sequence
        for head in 0..h.q {
            let g = head / h.group();
            let keys: Vec<(bool, usize, usize)> = (0..s.k_rows)
                .map(|i| (s.k_row0 + i) * kv_ld + g * dim)
                .map(|at| (false, at, at + h.kv_width()))
                .chain(
                    (0..s.own_rows)
                        .map(|i| (s.own_row0 + i) * ld + h.q_width() + g * dim)
                        .map(|at| (true, at, at + h.kv_width())),
                )
                .collect();
            let value = |own: bool, at: usize| if own { fused[at] } else { cache[at] };
            for row in s.q_row0..s.q_row0 + s.q_rows {
                let q_at = row * ld + head * dim;
                let o_at = row * h.q_width() + head * dim;
                let z: Vec<f64> = keys
                    .iter()
                    .map(|&(own, k, _)| scale * (0..dim).map(|i| fused[q_at + i] * value(own, k + i)).sum::<f64>())
                    .collect();
                let top = z.iter().cloned().fold(f64::MIN, f64::max);
                let sum: f64 = z.iter().map(|z| (z - top).exp()).sum();
                r.lse[row * h.q + head] = top + sum.ln();
                let p: Vec<f64> = z.iter().map(|z| (z - top).exp() / sum).collect();
                for (&(own, _, v), p) in keys.iter().zip(&p) {
                    for i in 0..dim {
                        r.o[o_at + i] += p * value(own, v + i);
                    }
                }
                let delta: f64 = (0..dim).map(|i| r.o[o_at + i] * d_o[o_at + i]).sum();
                for (&(own, k, v), p) in keys.iter().zip(&p) {
                    let dp: f64 = (0..dim).map(|i| d_o[o_at + i] * value(own, v + i)).sum();
                    let dz = scale * p * (dp - delta);
                    for i in 0..dim {
                        r.dq[o_at + i] += dz * value(own, k + i);
                        let to = if own { &mut r.down } else { &mut r.dcache };
                        to[k + i] += dz * fused[q_at + i];
                        to[v + i] += p * d_o[o_at + i];
                    }
                }
            }
        }
    }
    r
}

/// Runs of cached keys and all queries that see them, a long run of queries in two pieces.
fn cached_runs(c: &Case) -> Vec<KeyRun> {
    let mut runs: Vec<KeyRun> = Vec::new();
    for s in c.sequences.iter().filter(|s| s.k_rows > 0) {
        let piece = s.q_rows / 2;
        let queries = match piece > 3 {
            true => vec![(s.q_row0, piece), (s.q_row0 + piece, s.q_rows - piece)],
            false => vec![(s.q_row0, s.q_rows)],
        };
        match runs.iter_mut().find(|r| (r.k_row0, r.k_rows) == (s.k_row0, s.k_rows)) {
            Some(run) => run.queries.extend(queries),
            None => runs.push(KeyRun {
                k_row0: s.k_row0,
                k_rows: s.k_rows,
                queries,
            }),
        }
    }
    runs
}

/// Both passes against float64, on operands that start in the middle of a buffer. Gives all results, for a comparison bit
/// by bit.
pub(super) fn run(gpu: &Gpu, c: &Case, method: Method, precision: Precision) -> Vec<Vec<f32>> {
    let (h, Precision { dtype, gradients, .. }) = (c.heads, precision);
    let stored = |seed, n| -> Vec<f32> {
        let values = normals(seed, n);
        match dtype {
            DType::F16 => values.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect(),
            DType::Bf16 => values.iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect(),
            _ => values,
        }
    };
    let (fused, cache) = (
        stored(1, c.q_rows * h.fused()),
        stored(2, c.cache_rows * 2 * h.kv_width()),
    );
    let d_o = stored(3, c.q_rows * h.q_width());
    let want = reference(c, &f64s(&fused), &f64s(&cache), &f64s(&d_o));
    let name = format!("{}/{}x{} {method:?}", h.q, h.kv, h.dim);
    // One row more in front, so that operands start somewhere in memory.
    let upload = |values: &[f32], dtype, width: usize| {
        let padded = [&vec![f32::NAN; width][..], values].concat();
        let rows = padded.len() / width;
        gpu.upload_as(&padded, dtype, [rows, width]).rows(1..rows)
    };

    let g_fused = upload(&fused, dtype, h.fused());
    let g_cache = upload(&cache, dtype, 2 * h.kv_width());
    let g_do = upload(&d_o, dtype, h.q_width());
    let plan = Plan::new(gpu, c.sequences.clone());
    let attention = Attention {
        heads: h,
        method: Some(method),
    };
    let keys = Keys::cache(&g_cache, h);
    let all_own = Keys::fused(&g_fused, h);
    let own = c.sequences.iter().any(|s| s.own_rows > 0).then_some(all_own);
    // What no sequence writes must stay.
    let o = upload(&vec![0.0; want.o.len()], dtype, h.q_width());
    let lse = upload(&vec![0.0; want.lse.len()], DType::F32, h.q);
    attention.forward(gpu, &plan, Columns::all(&g_fused), keys, own, &o, Some(&lse));
    check(gpu, &format!("{name} o"), &o, &want.o, precision.o);
    check(gpu, &format!("{name} lse"), &lse, &want.lse, precision.lse);

    // The gradient of fused rows: dq in place of q, dk and dv of own rows in their columns.
    let dfused = upload(&vec![0.0; fused.len()], dtype, h.fused());
    let delta = upload(&vec![0.0; want.lse.len()], DType::F32, h.q);
    let saved = Saved { o: &o, lse: &lse };
    let q_columns = Columns::all(&g_fused);
    attention.backward_queries(
        gpu,
        &plan,
        q_columns,
        keys,
        own,
        saved,
        &g_do,
        Columns::all(&dfused),
        &delta,
    );
    let own_runs = c.sequences.iter().filter(|s| s.own_rows > 0).map(|s| KeyRun {
        k_row0: s.own_row0,
        k_rows: s.own_rows,
        queries: vec![(s.q_row0, s.q_rows)],
    });
    if own.is_some() {
        let own_plan = KeyPlan::new(gpu, own_runs.collect());
        let dkeys = Keys::fused(&dfused, h);
        attention.backward_keys(gpu, &own_plan, q_columns, all_own, saved, &g_do, &delta, dkeys, false);
    }
    let mut want_fused = want.down.clone();
    for row in 0..c.q_rows {
        for i in 0..h.q_width() {
            want_fused[row * h.fused() + i] = want.dq[row * h.q_width() + i];
        }
    }
    check(gpu, &format!("{name} dfused"), &dfused, &want_fused, precision.gradient);

    // The cache, on top of something that is already there.
    let dcache = upload(&vec![0.5; cache.len()], gradients, 2 * h.kv_width());
    let plan = KeyPlan::new(gpu, cached_runs(c));
    let dkeys = Keys::cache(&dcache, h);
    attention.backward_keys(gpu, &plan, q_columns, keys, saved, &g_do, &delta, dkeys, true);
    let want_cache: Vec<f64> = want.dcache.iter().map(|v| v + 0.5).collect();
    check(gpu, &format!("{name} dcache"), &dcache, &want_cache, precision.gradient);
    [&o, &lse, &dfused, &delta, &dcache]
        .map(|t| gpu.read_f32(t).expect("a result"))
        .to_vec()
}

#[test]
fn flash_meets_float64() {
    for (q, kv, dim) in [(8, 1, 16), (4, 2, 24), (2, 2, 6)] {
        run(&gpu(), &case(q, kv, dim), Method::Flash, F32);
    }
}

/// More queries and keys than a block of either, and none at all.
fn long_case(q: usize, kv: usize, dim: usize) -> Case {
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
        q_rows: 73,
        cache_rows: 150,
        sequences: vec![sequence(1, 70, 5, 140, 70), sequence(72, 1, 0, 3, 0)],
    }
}

#[test]
fn wide_heads_in_shared_memory_meet_float64() {
    for (q, kv, dim) in [(8, 1, 40), (3, 3, 72), (2, 1, 256), (2, 2, 33)] {
        run(&gpu(), &case(q, kv, dim), Method::Flash, F32);
    }
    run(&gpu(), &long_case(2, 1, 72), Method::Flash, F32);
}

#[test]
fn wide_heads_in_f16_meet_float64() {
    let halves = Precision {
        dtype: DType::F16,
        gradients: DType::F32,
        o: 6e-4,
        lse: 3e-6,
        gradient: 2e-3,
    };
    if gpu().caps().f16 {
        run(&gpu(), &case(4, 2, 72), Method::Flash, halves);
    }
}

#[test]
fn the_device_decides_about_wide_heads() {
    use crate::gpu::{Api, Caps};
    let method = |caps: Caps, dim: usize| {
        let gpu = Gpu::null(caps);
        let rows = gpu.f32([4, 3 * dim]);
        Attention::new(Heads { q: 1, kv: 1, dim }).method(&gpu, &[Columns::all(&rows).operand()], &[])
    };
    let able = Caps {
        api: Api::Vulkan,
        cuda_arch: None,
        max_units: 256,
        max_shared_bytes: 32 << 10,
        ..Caps::planning()
    };
    for (dim, want) in [
        (32, Method::Flash),
        (72, Method::Flash),
        (256, Method::Flash),
        (257, Method::Materialised),
    ] {
        assert_eq!(method(able.clone(), dim), want, "{dim}");
    }
    let small = Caps {
        max_shared_bytes: 16 << 10,
        ..able.clone()
    };
    assert_eq!(method(small, 72), Method::Materialised);
    let software = Caps { software: true, ..able };
    assert_eq!(method(software, 72), Method::Materialised);
}

#[test]
fn materialised_meets_float64() {
    for (q, kv, dim) in [(8, 1, 16), (4, 2, 24), (3, 3, 72), (2, 1, 256)] {
        run(&gpu(), &case(q, kv, dim), Method::Materialised, F32);
    }
}
