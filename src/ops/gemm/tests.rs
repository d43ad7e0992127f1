//! Every kernel, form, shape class and epilogue against float64.

use super::*;
use crate::gpu::DType;
use crate::ops::testing::{check, close, f64s, gpu, normals};

const KERNELS: [Kernel; 4] = [Kernel::Plane, Kernel::Tiled, Kernel::Portable, Kernel::Blocked];

/// `op(A) op(B)` in float64, row-major.
pub(super) fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3], ta: bool, tb: bool) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            c[i * n + j] = (0..k)
                .map(|r| {
                    (if ta { a[r * m + i] } else { a[i * k + r] }) * (if tb { b[j * k + r] } else { b[r * n + j] })
                })
                .sum();
        }
    }
    c
}

fn form(a: &Tensor, b: &Tensor, ta: bool, tb: bool) -> Gemm {
    match (ta, tb) {
        (false, true) => nt(a, b),
        (false, false) => nn(a, b),
        (true, false) => tn(a, b),
        (true, true) => tt(a, b),
    }
}

pub(super) fn dims(rows: usize, cols: usize, transposed: bool) -> [usize; 2] {
    if transposed { [cols, rows] } else { [rows, cols] }
}

#[test]
fn all_forms_and_edges() {
    forms(&gpu(), &KERNELS);
}

pub(super) fn forms(gpu: &Gpu, kernels: &[Kernel]) {
    // Below, at and beyond a tile; odd sizes that forbid pairs; tails along k.
    for (case, [m, n, k]) in [
        [16, 32, 16],
        [17, 33, 19],
        [1, 1, 1],
        [5, 64, 40],
        [70, 7, 3],
        [48, 66, 98],
        [2, 100, 64],
        [132, 140, 36],
    ]
    .into_iter()
    .enumerate()
    {
        for (ta, tb) in [(false, true), (false, false), (true, false), (true, true)] {
            let (a, b) = (normals(case as u64, m * k), normals(100 + case as u64, k * n));
            let want = product(&f64s(&a), &f64s(&b), [m, n, k], ta, tb);
            let (ga, gb) = (gpu.upload_f32(&a, dims(m, k, ta)), gpu.upload_f32(&b, dims(k, n, tb)));
            for &kernel in kernels {
                let c = gpu.f32([m, n]);
                form(&ga, &gb, ta, tb).with(kernel).to(gpu, &c);
                check(gpu, &format!("{m}x{n}x{k} {ta} {tb} {kernel:?}"), &c, &want, 2e-6);
                form(&ga, &gb, ta, tb).with(kernel).add_to(gpu, &c);
                let twice: Vec<f64> = want.iter().map(|v| 2.0 * v).collect();
                check(gpu, &format!("{m}x{n}x{k} {ta} {tb} {kernel:?} +="), &c, &twice, 2e-6);
            }
        }
    }
}

#[test]
fn all_epilogues() {
    epilogues(&gpu(), &KERNELS);
}

pub(super) fn epilogues(gpu: &Gpu, kernels: &[Kernel]) {
    for (m, n, k) in [(20, 36, 24), (9, 13, 11)] {
        let (a, b) = (normals(1, m * k), normals(2, n * k));
        let (bias, residual, table) = (normals(3, n), normals(4, m * n), normals(5, 5 * n));
        let index: Vec<u32> = (0..m as u32).map(|i| (i * 3) % 5).collect();
        let plain = product(&f64s(&a), &f64s(&b), [m, n, k], false, true);
        let (ga, gb) = (gpu.upload_f32(&a, [m, k]), gpu.upload_f32(&b, [n, k]));
        let (g_bias, g_res) = (gpu.upload_f32(&bias, [n]), gpu.upload_f32(&residual, [m, n]));
        let (g_table, g_index) = (gpu.upload_f32(&table, [5, n]), gpu.upload_u32(&index, [m]));
        for &kernel in kernels {
            let c = gpu.f32([m, n]);
            nt(&ga, &gb).bias(&g_bias).residual(&g_res).with(kernel).to(gpu, &c);
            let want: Vec<f64> = (0..m * n)
                .map(|e| plain[e] + bias[e % n] as f64 + residual[e] as f64)
                .collect();
            check(gpu, "bias + residual", &c, &want, 2e-6);

            nt(&ga, &gb)
                .bias(&g_bias)
                .scale(-0.25)
                .residual(&g_res)
                .with(kernel)
                .to(gpu, &c);
            let want: Vec<f64> = (0..m * n)
                .map(|e| -0.25 * (plain[e] + bias[e % n] as f64) + residual[e] as f64)
                .collect();
            check(gpu, "scaled", &c, &want, 2e-6);

            for (act, f) in [
                (Act::Gelu, gelu as fn(f64) -> f64),
                (Act::Swish, |x| x / (1.0 + (-x).exp())),
            ] {
                let pre = gpu.f32([m, n]);
                nt(&ga, &gb)
                    .extra(&g_table, RowMap::Index(g_index.clone()))
                    .act(act)
                    .save_pre(&pre)
                    .with(kernel)
                    .to(gpu, &c);
                let want_pre: Vec<f64> = (0..m * n)
                    .map(|e| plain[e] + table[index[e / n] as usize * n + e % n] as f64)
                    .collect();
                check(gpu, "pre", &pre, &want_pre, 2e-6);
                check(
                    gpu,
                    "act",
                    &c,
                    &want_pre.iter().map(|&x| f(x)).collect::<Vec<_>>(),
                    2e-6,
                );
            }
            nt(&ga, &gb).extra(&g_table, RowMap::Modulo(5)).with(kernel).to(gpu, &c);
            let want: Vec<f64> = (0..m * n)
                .map(|e| plain[e] + table[(e / n % 5) * n + e % n] as f64)
                .collect();
            check(gpu, "modulo", &c, &want, 2e-6);
        }
    }
}

pub(super) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
}

#[test]
fn batches_column_ranges_and_groups() {
    places(&gpu(), &KERNELS);
}

pub(super) fn places(gpu: &Gpu, kernels: &[Kernel]) {
    let (e, m, n, k) = (3, 7, 10, 12);
    let (a, w, bias) = (normals(1, m * k), normals(2, e * n * k), normals(3, e * n));
    let (ga, gw, gb) = (
        gpu.upload_f32(&a, [m, k]),
        gpu.upload_f32(&w, [e, n, k]),
        gpu.upload_f32(&bias, [e, n]),
    );
    let one = |i: usize| product(&f64s(&a), &f64s(&w[i * n * k..][..n * k]), [m, n, k], false, true);
    for &kernel in kernels {
        // The same rows through an ensemble of weights.
        let c = gpu.f32([e, m, n]);
        nt(Mat::from(&ga).repeat(e), &gw).bias(&gb).with(kernel).to(gpu, &c);
        let want: Vec<f64> = (0..e)
            .flat_map(|i| {
                one(i)
                    .into_iter()
                    .enumerate()
                    .map(move |(x, v)| (i, x, v))
                    .collect::<Vec<_>>()
            })
            .map(|(i, x, v)| v + bias[i * n + x % n] as f64)
            .collect();
        check(gpu, "batch", &c, &want, 2e-6);

        // A range of columns of A, written to a range of columns of C.
        let wide = gpu.upload_f32(&vec![7.0; m * 20], [m, 20]);
        nt(
            Mat::from(&ga).columns(4, 8),
            Mat::from(&gw.view([e * n, k])).row_range(2, 10).columns(4, 8),
        )
        .with(kernel)
        .to(gpu, Mat::from(&wide).columns(3, 10));
        let part = |r: usize, j: usize| {
            (4..12)
                .map(|x| a[r * k + x] as f64 * w[(2 + j) * k + x] as f64)
                .sum::<f64>()
        };
        let want: Vec<f64> = (0..m * 20)
            .map(|x| {
                if (3..13).contains(&(x % 20)) {
                    part(x / 20, x % 20 - 3)
                } else {
                    7.0
                }
            })
            .collect();
        check(gpu, "columns", &wide, &want, 2e-6);

        // Two products of different sizes in one launch.
        let out = gpu.upload_f32(&vec![0.0; 200], [10, 20]);
        let table = gpu.upload_u32(&[0, 0, 0, 3, 4, 12, 3 * 12, 12, 5 * 20 + 1, 2, 7, 5], [2, 6]);
        let groups = Groups {
            table,
            max_m: 3,
            max_n: 7,
            products: 3.0 * 4.0 * 12.0 + 70.0,
        };
        nt(&ga, &gw.view([e * n, k])).grouped(groups).with(kernel).to(gpu, &out);
        let mut want = vec![0.0; 200];
        for i in 0..3 {
            for j in 0..4 {
                want[i * 20 + j] = (0..12).map(|r| a[i * 12 + r] as f64 * w[j * 12 + r] as f64).sum();
            }
        }
        for i in 0..2 {
            for j in 0..7 {
                want[101 + i * 20 + j] = (0..5)
                    .map(|r| a[36 + i * 12 + r] as f64 * w[12 + j * 12 + r] as f64)
                    .sum();
            }
        }
        check(gpu, "groups", &out, &want, 2e-6);
    }
}

#[test]
fn half_precision_storage() {
    halves(&gpu(), &KERNELS);
}

pub(super) fn halves(gpu: &Gpu, kernels: &[Kernel]) {
    if !gpu.caps().f16 {
        return;
    }
    let (m, n, k) = (18, 20, 26);
    let round = |x: Vec<f32>| -> Vec<f32> { x.iter().map(|&v| half::f16::from_f32(v).to_f32()).collect() };
    let (a, b) = (round(normals(1, m * k)), round(normals(2, n * k)));
    let want = product(&f64s(&a), &f64s(&b), [m, n, k], false, true);
    let (ga, gb) = (
        gpu.upload_as(&a, DType::F16, [m, k]),
        gpu.upload_as(&b, DType::F16, [n, k]),
    );
    for &kernel in kernels {
        // Half in, float out: exact to f32 rounding. Half out: half's rounding.
        let c = gpu.f32([m, n]);
        nt(&ga, &gb).with(kernel).to(gpu, &c);
        check(gpu, "f16 in", &c, &want, 2e-6);
        let c = gpu.alloc(DType::F16, [m, n]);
        nt(&ga, &gb).with(kernel).to(gpu, &c);
        check(gpu, "f16 out", &c, &want, 6e-4);
        // A float residual on a half product.
        let r = normals(3, m * n);
        let residual = gpu.upload_f32(&r, [m, n]);
        let want: Vec<f64> = want.iter().zip(&r).map(|(x, &y)| x + y as f64).collect();
        let c = gpu.alloc(DType::F16, [m, n]);
        nt(&ga, &gb).with(kernel).residual(&residual).to(gpu, &c);
        check(gpu, "f16 out, f32 residual", &c, &want, 6e-4);
    }
}

#[test]
fn operands_beyond_the_binding_limit_are_cut() {
    let real = gpu();
    // A device whose bindings hold 4 KiB: the same products come out, in more launches.
    let small = real.with_caps(|c| crate::gpu::Caps {
        max_binding_bytes: 4096,
        ..c
    });
    let (m, n, k) = (40, 50, 30);
    let (a, b, r) = (normals(1, m * k), normals(2, n * k), normals(3, m * n));
    for (ta, tb) in [(false, true), (false, false), (true, false), (true, true)] {
        let want = product(&f64s(&a), &f64s(&b), [m, n, k], ta, tb);
        let (ga, gb) = (real.upload_f32(&a, dims(m, k, ta)), real.upload_f32(&b, dims(k, n, tb)));
        let c = real.f32([m, n]);
        let residual = real.upload_f32(&r, [m, n]);
        form(&ga, &gb, ta, tb).residual(&residual).to(&small, &c);
        let want: Vec<f64> = want.iter().zip(&r).map(|(x, &y)| x + y as f64).collect();
        small.check().unwrap();
        close("cut", &real.read_f32(&c).unwrap(), &want, 2e-6);
    }
}
