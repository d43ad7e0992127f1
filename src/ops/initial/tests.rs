use super::*;
use crate::gpu::Caps;
use crate::ops::split::halves;
use crate::ops::testing::gpu;
use crate::rng::Stream;

const LAWS: [Law; 6] = [
    Law::Normal(1.0),
    Law::Normal(0.02),
    Law::Normal(0.022097087),
    Law::Uniform(1.0),
    Law::Uniform(0.0123),
    Law::Constant(1.0),
];

fn key() -> Key {
    Key::stream(42, Stream::Init).fold(0x1234_5678_9abc_def0)
}

fn host(law: Law, first: u64, n: usize) -> Vec<u32> {
    (first..first + n as u64).map(|i| law.at(key(), i).to_bits()).collect()
}

fn device(gpu: &Gpu, law: Law, first: u64, values: &Values) -> Vec<u32> {
    law.fill(gpu, &Quantiles::new(gpu), key(), first, values);
    let read = values.read(gpu).expect("the device works");
    read.iter().map(|v| v.to_bits()).collect()
}

/// The device of the tests, and CUDA's kernels on the CPU.
fn devices() -> Vec<Gpu> {
    let emulated = Gpu::emulated_cuda(90).ok();
    [gpu()].into_iter().chain(emulated).collect()
}

#[test]
fn devices_draw_the_bits_of_the_host() {
    for gpu in devices() {
        for law in LAWS {
            // Ranges that start anywhere, pass 2³², and lie beyond 2⁴⁰.
            for (first, n) in [(0, 70_001), ((1 << 32) - 100, 300), ((1 << 40) + 7, 77)] {
                let x = gpu.f32([n + 3]).slice(3, [n]);
                let got = device(&gpu, law, first, &Values::from(&x));
                let want = host(law, first, n);
                let differs = got.iter().zip(&want).position(|(g, w)| g != w);
                assert_eq!(differs, None, "{gpu:?} {law:?} from {first}");
            }
        }
    }
}

#[test]
fn halves_and_small_bindings_make_no_difference() {
    for gpu in devices() {
        let small = gpu.with_caps(|caps| Caps {
            max_binding_bytes: 32 << 10,
            ..caps
        });
        let law = Law::Normal(0.02);
        let want = host(law, 5, 20_000);
        let x = Values::from(&small.f32([20_000]));
        // The table is one operand: it must fit.
        assert!(TABLE.len() * 4 <= 32 << 10);
        assert!(device(&small, law, 5, &x) == want, "{gpu:?} in small bindings");
        let both = halves(&gpu, 20_000);
        assert!(device(&gpu, law, 5, &both) == want, "{gpu:?} in halves");
        if gpu.caps().u16 {
            // What does not learn has no lower halves.
            let high = Values {
                low: None,
                ..both.clone()
            };
            let rounded: Vec<u32> = want
                .iter()
                .map(|bits| bits.wrapping_add(0x8000) & 0xffff_0000)
                .collect();
            assert!(device(&gpu, law, 5, &high) == rounded, "{gpu:?} in high halves");
            assert!(
                device(&gpu, Law::Constant(1.0), 0, &both)
                    .iter()
                    .all(|b| *b == 1f32.to_bits())
            );
        }
    }
}

#[test]
fn the_bits_never_change() {
    // What a seed means must not change with the compiler, the platform or the library of functions.
    let hash = |law| xxhash_rust::xxh3::xxh3_64(bytemuck::cast_slice(&host(law, 0, 100_000)));
    let got = [Law::Normal(0.02), Law::Uniform(0.5)].map(hash);
    assert_eq!(got, [0xb501_61e0_2926_0c0e, 0x4198_1418_e0ba_a826], "{got:016x?}");
}

#[test]
fn the_table_is_the_quantile_function() {
    let unit = 1.0 / f64::from(1u32 << QUANTILE_BITS);
    let mut worst = 0.0f64;
    for i in 0..200_000u64 {
        let [a, b] = key().bits(i);
        // Every octave alike.
        let upper = (a | SIGN) >> (i % 32);
        let u = (f64::from(upper) + f64::from(b & !SIGN) / 2f64.powi(31)) / 2f64.powi(32);
        let want = upper_quantile(u / 2.0);
        worst = worst.max((f64::from(quantile(upper, b & !SIGN)) * unit - want).abs());
    }
    assert!(worst < 2e-7, "off by {worst:.1e}");
    // The ends: the smallest number of the table, and the middle of the distribution, which does not wrap.
    assert_eq!(quantile(0, 0), quantile(1, 0));
    assert!((f64::from(quantile(0, 0)) * unit - upper_quantile(0.5f64.powi(33))).abs() < 2e-7);
    assert!(f64::from(quantile(u32::MAX, !SIGN)) * unit < 1e-7);
    // Known quantiles, from tables.
    for (p, z) in [
        (0.025, 1.959963984540054),
        (1e-3, 3.090232306167813),
        (1e-9, 5.997807015007774),
    ] {
        assert!((upper_quantile(p) - z).abs() < 1e-12, "{p}");
    }
}

#[test]
fn moments_and_tails_are_those_of_the_law() {
    let n = 1u64 << 21;
    let root = (n as f64).sqrt();
    let x: Vec<f64> = (0..n).map(|i| Law::Normal(1.0).at(key(), i).into()).collect();
    let moment = |k: i32| x.iter().map(|v| v.powi(k)).sum::<f64>() / n as f64;
    // Each against its own standard error, at 4.5 of them.
    for (k, mean, variance) in [
        (1, 0.0, 1.0),
        (2, 1.0, 2.0),
        (3, 0.0, 15.0),
        (4, 3.0, 96.0),
        (6, 15.0, 10170.0f64),
    ] {
        let off = (moment(k) - mean) * root / variance.sqrt();
        assert!(
            off.abs() < 4.5,
            "moment {k}: {} is {off:.1} standard errors off",
            moment(k)
        );
    }
    for limit in [0.01, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0] {
        let p = 0.5 * libm::erfc(limit * std::f64::consts::FRAC_1_SQRT_2);
        for side in [1.0, -1.0] {
            let count = x.iter().filter(|v| side * **v > limit).count() as f64;
            let expected = p * n as f64;
            let off = (count - expected) / (expected * (1.0 - p)).sqrt().max(1.0);
            assert!(off.abs() < 4.5, "{count} beyond {limit} instead of {expected:.1}");
        }
    }
    // Neighbours know nothing of each other.
    let with_next = x.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / root;
    assert!(with_next.abs() < 4.5, "{with_next}");

    let bound = 0.25;
    let u: Vec<f64> = (0..n).map(|i| Law::Uniform(0.25).at(key(), i).into()).collect();
    let mean = u.iter().sum::<f64>() / n as f64;
    let variance = u.iter().map(|v| v * v).sum::<f64>() / n as f64;
    assert!(u.iter().all(|v| v.abs() <= bound));
    assert!(mean.abs() * root < 4.5 * bound / 3f64.sqrt(), "{mean}");
    assert!(
        (variance / (bound * bound / 3.0) - 1.0).abs() * root < 4.5 * 0.9,
        "{variance}"
    );
}
