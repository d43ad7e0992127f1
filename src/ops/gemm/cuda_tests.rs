//! The kernels for CUDA's tensor cores against float64, run on an emulated device: every form, edge and epilogue.

use super::tests::{dims, gelu, product};
use super::*;
use crate::gpu::{DType, DType::Bf16, DType::F32};
use crate::ops::testing::{check, f64s, normals};

/// f32 sums; and rounding to bfloat16, half a unit in the last of 8 places.
const SUMS: f64 = 2e-6;
const ROUNDED: f64 = 1.0 / 256.0 + 2e-6;

fn tolerance(dtype: DType) -> f64 {
    if dtype == F32 { SUMS } else { ROUNDED }
}

/// A device of each kind and the kernel it has, with so few multiprocessors that a block gets several tiles.
fn devices(multiprocessors: u32) -> [(Gpu, Kernel); 2] {
    [(90, Kernel::Wgmma), (80, Kernel::Mma)].map(|(arch, kernel)| {
        let gpu = Gpu::emulated_cuda(arch).expect("a C++ compiler");
        let few = |caps| Caps {
            multiprocessors: Some(multiprocessors),
            ..caps
        };
        (gpu.with_caps(few), kernel)
    })
}

/// Normals that bfloat16 has.
fn halves(seed: u64, n: usize) -> Vec<f32> {
    let exact = |x: f32| half::bf16::from_f32(x).to_f32();
    normals(seed, n).into_iter().map(exact).collect()
}

/// `values [rows, cols]` as columns of something wider, whose rows start at multiples of 16 bytes and whose other columns
/// would not go unnoticed.
fn inside(gpu: &Gpu, values: &[f32], dtype: DType, [rows, cols]: [usize; 2]) -> Mat {
    let ld = cols.next_multiple_of(8) + 16;
    let mut wide = vec![1e4; rows * ld];
    for (to, from) in wide.chunks_mut(ld).zip(values.chunks(cols)) {
        to[8..8 + cols].copy_from_slice(from);
    }
    Mat::from(&gpu.upload_as(&wide, dtype, [rows, ld])).columns(8, cols)
}

fn form(a: Mat, b: Mat, ta: bool, tb: bool) -> Gemm {
    Gemm::new(a, b, ta, tb)
}

const FORMS: [(bool, bool); 4] = [(false, true), (false, false), (true, false), (true, true)];

#[test]
fn all_forms_and_edges() {
    for (gpu, kernel) in devices(2) {
        // Tiles of both widths on Hopper, less than one tile, one row, tails along k.
        for [m, n, k] in [[130, 400, 200], [150, 264, 72], [1, 8, 24], [37, 77, 131]] {
            let (a, b) = (halves(1, m * k), halves(2, k * n));
            for (ta, tb) in FORMS {
                let want = product(&f64s(&a), &f64s(&b), [m, n, k], ta, tb);
                let operands = || {
                    (
                        inside(&gpu, &a, Bf16, dims(m, k, ta)),
                        inside(&gpu, &b, Bf16, dims(k, n, tb)),
                    )
                };
                let c = gpu.f32([m, n]);
                let what = format!("{m}x{n}x{k} {ta} {tb} {kernel:?}");
                let (ga, gb) = operands();
                let one = form(ga, gb, ta, tb);
                assert_eq!(Kernel::pick(gpu.caps(), &one, &Mat::from(&c)), kernel, "{what}");
                one.to(&gpu, &c);
                check(&gpu, &what, &c, &want, SUMS);
                if m < 100 {
                    continue;
                }
                let (ga, gb) = operands();
                form(ga, gb, ta, tb).add_to(&gpu, &c);
                let twice: Vec<f64> = want.iter().map(|v| 2.0 * v).collect();
                check(&gpu, &format!("{what} +="), &c, &twice, SUMS);
            }
        }
    }
}

#[test]
fn operands_of_any_alignment() {
    for (gpu, _) in devices(2) {
        let [m, n, k] = [133, 75, 101];
        let (a, b) = (halves(1, m * k), halves(2, k * n));
        // Rows that start at odd elements, at pairs, and at fours of them.
        for (ld_more, start) in [(0, 0), (3, 1), (3, 2), (7, 4)] {
            for (ta, tb) in FORMS {
                let operand = |x: &[f32], [rows, cols]: [usize; 2]| {
                    let ld = cols + ld_more + start;
                    let mut wide = vec![1e4; rows * ld];
                    for (to, from) in wide.chunks_mut(ld).zip(x.chunks(cols)) {
                        to[start..start + cols].copy_from_slice(from);
                    }
                    Mat::from(&gpu.upload_as(&wide, Bf16, [rows, ld])).columns(start, cols)
                };
                let one = form(operand(&a, dims(m, k, ta)), operand(&b, dims(k, n, tb)), ta, tb);
                let wide = gpu.upload_as(&vec![7.0; m * 90], Bf16, [m, 90]);
                let c = Mat::from(&wide).columns(3, n);
                assert_eq!(Kernel::pick(gpu.caps(), &one, &c), Kernel::Mma);
                one.to(&gpu, c);
                let sums = product(&f64s(&a), &f64s(&b), [m, n, k], ta, tb);
                let want: Vec<f64> = (0..m * 90)
                    .map(|x| match x % 90 {
                        j if (3..3 + n).contains(&j) => sums[x / 90 * n + j - 3],
                        _ => 7.0,
                    })
                    .collect();
                check(&gpu, &format!("{ld_more} {start} {ta} {tb}"), &wide, &want, ROUNDED);
            }
        }
    }
}

#[test]
fn epilogues() {
    for (gpu, kernel) in devices(3) {
        for ([m, n, k], dtype, other) in [([140, 136, 72], Bf16, F32), ([140, 137, 72], F32, Bf16)] {
            let within = tolerance(dtype);
            let (a, b) = (halves(1, m * k), halves(2, n * k));
            let (bias, residual, table) = (halves(3, n), halves(4, m * n), halves(5, 5 * n));
            let index: Vec<u32> = (0..m as u32).map(|i| (i * 3) % 5).collect();
            let plain = product(&f64s(&a), &f64s(&b), [m, n, k], false, true);
            let (ga, gb) = (gpu.upload_as(&a, Bf16, [m, k]), gpu.upload_as(&b, Bf16, [n, k]));
            let (g_bias, g_res) = (
                gpu.upload_as(&bias, other, [n]),
                gpu.upload_as(&residual, dtype, [m, n]),
            );
            let (g_table, g_index) = (gpu.upload_as(&table, other, [5, n]), gpu.upload_u32(&index, [m]));
            let c = gpu.alloc(dtype, [m, n]);

            nt(&ga, &gb)
                .bias(&g_bias)
                .scale(-0.25)
                .residual(&g_res)
                .with(kernel)
                .to(&gpu, &c);
            let want: Vec<f64> = (0..m * n)
                .map(|e| -0.25 * (plain[e] + bias[e % n] as f64) + residual[e] as f64)
                .collect();
            check(&gpu, "scaled", &c, &want, within);

            for (act, f) in [
                (Act::Gelu, gelu as fn(f64) -> f64),
                (Act::Swish, |x| x / (1.0 + (-x).exp())),
            ] {
                let pre = gpu.alloc(dtype, [m, n]);
                nt(&ga, &gb)
                    .extra(&g_table, RowMap::Index(g_index.clone()))
                    .act(act)
                    .save_pre(&pre)
                    .with(kernel)
                    .to(&gpu, &c);
                let want: Vec<f64> = (0..m * n)
                    .map(|e| plain[e] + table[index[e / n] as usize * n + e % n] as f64)
                    .collect();
                check(&gpu, "pre", &pre, &want, within);
                check(&gpu, "act", &c, &want.iter().map(|&x| f(x)).collect::<Vec<_>>(), within);
            }

            let c = gpu.upload_as(&residual, dtype, [m, n]);
            nt(&ga, &gb)
                .extra(&g_table, RowMap::Modulo(5))
                .with(kernel)
                .add_to(&gpu, &c);
            let want: Vec<f64> = (0..m * n)
                .map(|e| residual[e] as f64 + plain[e] + table[(e / n % 5) * n + e % n] as f64)
                .collect();
            check(&gpu, "modulo +=", &c, &want, within);
        }
    }
}

#[test]
fn batches() {
    for (gpu, kernel) in devices(2) {
        let [e, m, n, k] = [3, 35, 40, 72];
        let (a, w, bias) = (halves(1, m * k), halves(2, e * n * k), normals(3, e * n));
        let (ga, gw) = (gpu.upload_as(&a, Bf16, [m, k]), gpu.upload_as(&w, Bf16, [e, n, k]));
        let c = gpu.f32([e, m, n]);
        // The same rows through an ensemble of weights.
        nt(Mat::from(&ga).repeat(e), &gw)
            .bias(&gpu.upload_f32(&bias, [e, n]))
            .with(kernel)
            .to(&gpu, &c);
        let want: Vec<f64> = (0..e)
            .flat_map(|i| {
                let one = product(&f64s(&a), &f64s(&w[i * n * k..][..n * k]), [m, n, k], false, true);
                let bias = &bias[i * n..][..n];
                one.into_iter()
                    .enumerate()
                    .map(|(x, v)| v + bias[x % n] as f64)
                    .collect::<Vec<_>>()
            })
            .collect();
        check(&gpu, "ensemble", &c, &want, SUMS);

        // Matrices of their own on both sides, transposed.
        let x = halves(4, e * k * m);
        let gx = gpu.upload_as(&x, Bf16, [e, k, m]);
        let c = gpu.alloc(Bf16, [e, m, n]);
        let all = tt(&gx, &gw);
        // Rows of 35 elements are none for the copy engine.
        assert_eq!(Kernel::pick(gpu.caps(), &all, &Mat::from(&c)), Kernel::Mma);
        all.to(&gpu, &c);
        let want: Vec<f64> = (0..e)
            .flat_map(|i| {
                let (x, w) = (&x[i * k * m..][..k * m], &w[i * n * k..][..n * k]);
                product(&f64s(x), &f64s(w), [m, n, k], true, true)
            })
            .collect();
        check(&gpu, "batch", &c, &want, ROUNDED);
    }
}

#[test]
fn groups() {
    for (gpu, _) in devices(2) {
        // One product larger than a tile, a small one at odd places, and an empty one.
        let (a, b) = (halves(1, 140 * 40), halves(2, 150 * 40));
        let (ga, gb) = (gpu.upload_as(&a, Bf16, [140, 40]), gpu.upload_as(&b, Bf16, [150, 40]));
        let table = [
            [0, 0, 0, 140, 150, 40],
            [3, 81, 140 * 160 + 1, 2, 7, 5],
            [0, 0, 0, 0, 9, 9],
        ];
        let groups = Groups {
            table: gpu.upload_u32(table.as_flattened(), [3, 6]),
            max_m: 140,
            max_n: 150,
            products: 140.0 * 150.0 * 40.0 + 70.0,
        };
        let out = gpu.upload_f32(&vec![0.5; 143 * 160], [143, 160]);
        let all = nt(&ga, &gb).grouped(groups);
        assert_eq!(Kernel::pick(gpu.caps(), &all, &Mat::from(&out)), Kernel::Mma);
        all.add_to(&gpu, &out);
        let mut want = vec![0.5; 143 * 160];
        for [at_a, at_b, at_c, m, n, k] in table.map(|g| g.map(|x| x as usize)) {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                want[at_c + i * 160 + j] += (0..k)
                    .map(|r| a[at_a + i * 40 + r] as f64 * b[at_b + j * 40 + r] as f64)
                    .sum::<f64>();
            }
        }
        check(&gpu, "groups", &out, &want, SUMS);
    }
}

#[test]
fn long_sums_of_few_tiles_are_cut() {
    // Four multiprocessors and one tile: each part has steps enough only if k is long.
    for (gpu, kernel) in devices(4) {
        let [m, n, k] = [40, 72, 2104];
        let (a, b, old) = (halves(1, k * m), halves(2, k * n), normals(3, m * n));
        let (ga, gb) = (gpu.upload_as(&a, Bf16, [k, m]), gpu.upload_as(&b, Bf16, [k, n]));
        let plain = product(&f64s(&a), &f64s(&b), [m, n, k], true, false);
        let c = gpu.upload_f32(&old, [m, n]);
        tn(&ga, &gb).with(kernel).add_to(&gpu, &c);
        let want: Vec<f64> = plain.iter().zip(&old).map(|(x, &y)| x + y as f64).collect();
        check(&gpu, "cut +=", &c, &want, SUMS);

        let (pre, c) = (gpu.alloc(Bf16, [m, n]), gpu.alloc(Bf16, [m, n]));
        let bias = normals(4, n);
        tn(&ga, &gb)
            .bias(&gpu.upload_f32(&bias, [n]))
            .act(Act::Gelu)
            .save_pre(&pre)
            .with(kernel)
            .to(&gpu, &c);
        let want: Vec<f64> = (0..m * n).map(|e| plain[e] + bias[e % n] as f64).collect();
        check(&gpu, "cut, pre", &pre, &want, ROUNDED);
        check(
            &gpu,
            "cut, act",
            &c,
            &want.iter().map(|&x| gelu(x)).collect::<Vec<_>>(),
            ROUNDED,
        );
        let cut = gpu.take_record().lines.iter().any(|line| line.1 == "gemm_reduce");
        assert!(cut, "{kernel:?} was not cut");
    }
}

#[test]
fn gated() {
    for (gpu, kernel) in devices(2) {
        for ([m, f, k], dtype) in [([130, 200, 72], Bf16), ([130, 77, 40], F32)] {
            let (a, b) = (halves(1, m * k), halves(2, 2 * f * k));
            let both = product(&f64s(&a), &f64s(&b), [m, 2 * f, k], false, true);
            let (ga, gb) = (gpu.upload_as(&a, Bf16, [m, k]), gpu.upload_as(&b, Bf16, [2 * f, k]));
            let want: Vec<f64> = (0..m * f)
                .map(|e| gelu(both[e / f * 2 * f + e % f]) * both[e / f * 2 * f + f + e % f])
                .collect();
            // The other kernels round both halves before they go on.
            let within = match kernel {
                Kernel::Wgmma => tolerance(dtype),
                _ => 3.0 * tolerance(dtype),
            };
            let (act, gate_up) = (gpu.alloc(dtype, [m, f]), gpu.alloc(dtype, [m, 2 * f]));
            nt(&ga, &gb).gated().to(&gpu, &act);
            check(&gpu, "act alone", &act, &want, within);
            let act = gpu.alloc(dtype, [m, f]);
            nt(&ga, &gb).gated().save_pre(&gate_up).to(&gpu, &act);
            check(&gpu, "act", &act, &want, within);
            check(&gpu, "gate | up", &gate_up, &both, tolerance(dtype));
            let fused = !gpu.take_record().lines.iter().any(|line| line.1 == "geglu");
            assert_eq!(fused, kernel == Kernel::Wgmma);
        }
    }
}

#[test]
fn no_sums_at_all() {
    for (gpu, _) in devices(2) {
        let bias = normals(1, 9);
        let (a, b) = (gpu.alloc(Bf16, [5, 0]), gpu.alloc(Bf16, [9, 0]));
        let c = gpu.f32([5, 9]);
        nt(&a, &b).bias(&gpu.upload_f32(&bias, [9])).to(&gpu, &c);
        let want: Vec<f64> = (0..45).map(|e| bias[e % 9] as f64).collect();
        check(&gpu, "k = 0", &c, &want, 0.0);
    }
}

#[test]
fn the_same_bits_every_time() {
    for (gpu, kernel) in devices(4) {
        let [m, n, k] = [40, 72, 2104];
        let (a, b) = (halves(1, m * k), halves(2, n * k));
        let (ga, gb) = (gpu.upload_as(&a, Bf16, [m, k]), gpu.upload_as(&b, Bf16, [n, k]));
        let run = || {
            let c = gpu.f32([m, n]);
            nt(&ga, &gb).with(kernel).to(&gpu, &c);
            gpu.read_f32(&c).expect("a result")
        };
        let first = run();
        for _ in 0..3 {
            assert_eq!(run(), first);
        }
    }
}

#[test]
fn the_table_of_kernels() {
    let gpu = Gpu::null(Caps::planning());
    let pick = |gpu: &Gpu, product: &Gemm| Kernel::pick(gpu.caps(), product, &Mat::from(&gpu.alloc(Bf16, [8, 8])));
    let t = |dtype, shape: [usize; 2]| gpu.alloc(dtype, shape);
    let bf16 = nt(&t(Bf16, [8, 64]), &t(Bf16, [8, 64]));
    assert_eq!(pick(&gpu, &bf16), Kernel::Wgmma);
    // Rows between multiples of 16 bytes, f32 operands, other generations, other APIs.
    assert_eq!(pick(&gpu, &nt(&t(Bf16, [8, 60]), &t(Bf16, [8, 60]))), Kernel::Mma);
    assert_eq!(pick(&gpu, &nt(&t(F32, [8, 64]), &t(F32, [8, 64]))), Kernel::Tiled);
    assert_eq!(pick(&gpu, &nt(&t(Bf16, [8, 64]), &t(F32, [8, 64]))), Kernel::Tiled);
    for (arch, kernel) in [
        (Some(75), Kernel::Tiled),
        (Some(80), Kernel::Mma),
        (Some(89), Kernel::Mma),
        (Some(100), Kernel::Mma),
        (None, Kernel::Tiled),
    ] {
        let other = gpu.with_caps(|c| Caps { cuda_arch: arch, ..c });
        assert_eq!(pick(&other, &bf16), kernel, "{arch:?}");
    }
}
