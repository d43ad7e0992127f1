//! Both implementations against float64: packed sequences of different lengths, cached and own keys, shared heads.

use super::*;
use crate::ops::testing::{check, f64s, gpu, normals};

/// Float64 attention over explicit lists of keys, with gradients.
struct Reference {
    o: Vec<f64>,
    lse: Vec<f64>,
    dq: Vec<f64>,
    dcache: Vec<f64>,
    down: Vec<f64>,
}

struct Case {
    heads: Heads,
    q_rows: usize,
    cache_rows: usize,
    sequences: Vec<Sequence>,
}

fn case(q: usize, kv: usize, dim: usize) -> Case {
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

fn run(q: usize, kv: usize, dim: usize, method: Method) {
    let gpu = gpu();
    let c = case(q, kv, dim);
    let h = c.heads;
    let (fused, cache) = (
        normals(1, c.q_rows * h.fused()),
        normals(2, c.cache_rows * 2 * h.kv_width()),
    );
    let d_o = normals(3, c.q_rows * h.q_width());
    let want = reference(&c, &f64s(&fused), &f64s(&cache), &f64s(&d_o));
    let name = format!("{q}/{kv}x{dim} {method:?}");

    let g_fused = gpu.upload_f32(&fused, [c.q_rows, h.fused()]);
    let g_cache = gpu.upload_f32(&cache, [c.cache_rows, 2 * h.kv_width()]);
    let g_do = gpu.upload_f32(&d_o, [c.q_rows, h.q_width()]);
    let plan = Plan::new(&gpu, c.sequences.clone());
    let attention = Attention {
        heads: h,
        method: Some(method),
    };
    let (keys, own) = (Keys::cache(&g_cache, h), Keys::fused(&g_fused, h));
    // What no sequence writes must stay.
    let o = gpu.upload_f32(&vec![0.0; want.o.len()], [c.q_rows, h.q_width()]);
    let lse = gpu.upload_f32(&vec![0.0; want.lse.len()], [c.q_rows, h.q]);
    attention.forward(&gpu, &plan, Columns::all(&g_fused), keys, Some(own), &o, Some(&lse));
    check(&gpu, &format!("{name} o"), &o, &want.o, 3e-6);
    check(&gpu, &format!("{name} lse"), &lse, &want.lse, 3e-6);

    // The gradient of fused rows: dq in place of q, dk and dv of own rows in their columns.
    let dfused = gpu.upload_f32(&vec![0.0; fused.len()], [c.q_rows, h.fused()]);
    let delta = gpu.f32([c.q_rows, h.q]);
    let saved = Saved { o: &o, lse: &lse };
    attention.backward_queries(
        &gpu,
        &plan,
        Columns::all(&g_fused),
        keys,
        Some(own),
        saved,
        &g_do,
        Columns::all(&dfused),
        &delta,
    );
    let own_runs = c.sequences.iter().map(|s| KeyRun {
        k_row0: s.own_row0,
        k_rows: s.own_rows,
        queries: vec![(s.q_row0, s.q_rows)],
    });
    let own_plan = KeyPlan::new(&gpu, own_runs.collect());
    let q_columns = Columns::all(&g_fused);
    attention.backward_keys(
        &gpu,
        &own_plan,
        q_columns,
        own,
        saved,
        &g_do,
        &delta,
        Keys::fused(&dfused, h),
        false,
    );
    let mut want_fused = want.down.clone();
    for row in 0..c.q_rows {
        for i in 0..h.q_width() {
            want_fused[row * h.fused() + i] = want.dq[row * h.q_width() + i];
        }
    }
    check(&gpu, &format!("{name} dfused"), &dfused, &want_fused, 1e-5);

    // The cache, on top of something that is already there; the last sequence's queries in two pieces.
    let mut runs: Vec<KeyRun> = c
        .sequences
        .iter()
        .map(|s| KeyRun {
            k_row0: s.k_row0,
            k_rows: s.k_rows,
            queries: vec![(s.q_row0, s.q_rows)],
        })
        .collect();
    runs[2].queries = vec![(6, 4), (10, 5)];
    let dcache = gpu.upload_f32(&vec![0.5; cache.len()], [c.cache_rows, 2 * h.kv_width()]);
    let plan = KeyPlan::new(&gpu, runs);
    attention.backward_keys(
        &gpu,
        &plan,
        q_columns,
        keys,
        saved,
        &g_do,
        &delta,
        Keys::cache(&dcache, h),
        true,
    );
    let want_cache: Vec<f64> = want.dcache.iter().map(|v| v + 0.5).collect();
    check(&gpu, &format!("{name} dcache"), &dcache, &want_cache, 1e-5);
}

#[test]
fn flash_meets_float64() {
    run(8, 1, 16, Method::Flash);
    run(4, 2, 24, Method::Flash);
    run(2, 2, 6, Method::Flash);
}

#[test]
fn materialised_meets_float64() {
    run(8, 1, 16, Method::Materialised);
    run(4, 2, 24, Method::Materialised);
    run(3, 3, 72, Method::Materialised);
    run(2, 1, 256, Method::Materialised);
}
