use super::*;
use crate::ops::optimizers::{Hyper, Optimizer, Update};
use crate::ops::split::{self, Values};
use crate::ops::testing::{close, gpu, normals};
use crate::ops::{fill, reduce};

const HYPER: Hyper = Hyper {
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
};
const MOMENTS: [Moment; 2] = [Moment::First, Moment::Second];

/// Everything an update touches.
struct Trained {
    weights: Values,
    m: Tensor,
    v: Tensor,
    average: Tensor,
    optimizer: Optimizer,
    control: Control,
}

impl Trained {
    fn new(gpu: &Gpu, optimizer: Optimizer, start: &[f32], halves: bool, blocks: bool) -> Trained {
        let n = start.len();
        let weights = if halves {
            split::halves(gpu, n)
        } else {
            Values::from(gpu.f32([n]))
        };
        weights.write(gpu, start);
        let zeros = || {
            let t = if blocks {
                gpu.alloc(DType::U32, [words(n)])
            } else {
                gpu.f32([n])
            };
            fill::zero(gpu, &t);
            t
        };
        Trained {
            weights,
            m: zeros(),
            v: zeros(),
            average: gpu.upload_f32(start, [n]),
            optimizer,
            control: Control::new(gpu, &[1], 3),
        }
    }

    /// One update; returns the gradients as they are afterwards.
    fn step(&self, gpu: &Gpu, grads: &[f32], limit: f32, update: Update) -> Vec<f32> {
        let g = gpu.upload_f32(grads, [grads.len()]);
        let squares = gpu.f32([1, 2]);
        reduce::squares(gpu, std::slice::from_ref(&g), &squares);
        self.control.decide(gpu, &squares, &gpu.upload_f32(&[limit], [1]));
        let flat = Flat {
            p: &self.weights.high,
            low: self.weights.low.as_ref(),
            g: &g,
            m: &self.m,
            v: self.optimizer.second_moment().then_some(&self.v),
            average: Some(&self.average),
            compute: None,
        };
        self.optimizer.step(gpu, update, &self.control, 0, flat);
        gpu.read_f32(&g).unwrap()
    }

    fn words(&self, gpu: &Gpu) -> [Vec<u32>; 2] {
        [&self.m, &self.v].map(|t| gpu.read_u32(t).unwrap())
    }
}

fn decode(moment: Moment, words: &[u32]) -> Vec<f32> {
    let blocks = words.as_chunks::<WORDS>().0;
    blocks.iter().flat_map(|w| moment.decode_block(w)).collect()
}

/// As [`chance`] on the device.
fn host_chance(i: usize, t: u64, stream: u32) -> f32 {
    let mixed = |x: u32| {
        let a = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        let b = (a ^ (a >> 15)).wrapping_mul(0x846c_a68b);
        b ^ (b >> 16)
    };
    let bits = mixed(mixed((i as u32).wrapping_add(stream.wrapping_mul(0x85eb_ca6b))).wrapping_add(seed(t)));
    (bits >> 8) as f32 / (1u32 << 24) as f32
}

/// The code that encoding must give `x`, unless the odds are within rounding of the way to the upper one.
fn expected(moment: Moment, x: f64, scale: f32, odds: f32) -> Option<u8> {
    let size = x.abs();
    let of = |c: u8| f64::from(moment.decode(c, scale));
    let last = (moment.steps() - 1) as u8;
    if scale == 0.0 {
        return Some(0);
    }
    if size >= f64::from(scale) * (1.0 - 5e-7) {
        return Some(if moment == Moment::First && x < 0.0 {
            last + 128
        } else {
            last
        });
    }
    let above = (0..=last).find(|&c| of(c) >= size)?;
    let below = above.saturating_sub(1);
    let way = (size - of(below)) / (of(above) - of(below)).max(1e-300);
    if moment == Moment::Second && below == 0 && size > 0.0 {
        return Some(1);
    }
    if (way - f64::from(odds)).abs() < 1e-3 {
        return None;
    }
    let c = if f64::from(odds) < way { above } else { below };
    Some(if moment == Moment::First && x < 0.0 && c > 0 {
        c + 128
    } else {
        c
    })
}

/// Every update starts from what the device holds, so that differences do not add up.
#[test]
fn updates_meet_float64_and_codes_fall_as_the_odds_say() {
    let gpu = gpu();
    let n = 5 * BLOCK;
    let [beta1, beta2, eps, decay] = [HYPER.beta1, HYPER.beta2, HYPER.eps, HYPER.weight_decay].map(f64::from);
    for (kind, halves) in [
        (Kind::AdamW, false),
        (Kind::AdamW, true),
        (Kind::Lion, false),
        (Kind::Lion, true),
    ] {
        let start = normals(1, n);
        let trained = Trained::new(&gpu, kind.with(HYPER), &start, halves, true);
        let mut unsure = 0;
        for t in 1..=6u64 {
            let (p, average) = (
                trained.weights.read(&gpu).unwrap(),
                gpu.read_f32(&trained.average).unwrap(),
            );
            let before = trained.words(&gpu);
            let mut grads = normals(10 + t, n);
            // Sizes of every order, a weight without gradients, and a block without.
            for (i, g) in grads.iter_mut().enumerate() {
                *g *= 10.0f32.powi(-((i % 7) as i32));
            }
            grads[3] = 0.0;
            grads[2 * BLOCK..3 * BLOCK].fill(0.0);
            if t == 4 {
                grads[5] = f32::NAN;
            }
            let update = Update {
                lr: 1e-2,
                t,
                rate: 0.25,
            };
            let after = trained.step(&gpu, &grads, 5.0, update);
            assert!(after.iter().all(|g| *g == 0.0), "gradients are zero");
            let now = trained.words(&gpu);
            if t == 4 {
                assert!(
                    now == before && trained.weights.read(&gpu).unwrap() == p,
                    "nothing but gradients changes"
                );
                continue;
            }
            let [m, v] = [decode(Moment::First, &before[0]), decode(Moment::Second, &before[1])];
            let norm = grads.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            let factor = (5.0 / norm).min(1.0);
            let (mut want_p, mut want_average, mut exact) = (Vec::new(), Vec::new(), Vec::new());
            for i in 0..n {
                let (w, mm, vv) = (f64::from(p[i]), f64::from(m[i]), f64::from(v[i]));
                let c = factor * f64::from(grads[i]);
                let (first, second, direction) = match kind {
                    Kind::AdamW => {
                        let first = beta1 * mm + (1.0 - beta1) * c;
                        let second = beta2 * vv + (1.0 - beta2) * c * c;
                        let unbias = |x: f64, beta: f64| x / (1.0 - beta.powi(t as i32));
                        (
                            first,
                            second,
                            unbias(first, beta1) / (unbias(second, beta2).sqrt() + eps),
                        )
                    }
                    Kind::Lion => {
                        let u = beta1 * mm + (1.0 - beta1) * c;
                        (
                            beta2 * mm + (1.0 - beta2) * c,
                            0.0,
                            if u == 0.0 { 0.0 } else { u.signum() },
                        )
                    }
                };
                let new = w - 1e-2 * (direction + decay * w);
                want_p.push(new);
                want_average.push(f64::from(average[i]) + 0.25 * (new - f64::from(average[i])));
                exact.push([first, second]);
            }
            let name = format!("{kind:?}, halves {halves}, update {t}");
            close(&name, &trained.weights.read(&gpu).unwrap(), &want_p, 1e-6);
            close(&name, &gpu.read_f32(&trained.average).unwrap(), &want_average, 1e-6);
            let moments = if kind == Kind::AdamW { 2 } else { 1 };
            for (which, moment) in MOMENTS.into_iter().enumerate().take(moments) {
                for (block, words) in now[which].as_chunks::<WORDS>().0.iter().enumerate() {
                    let of_block = &exact[block * BLOCK..][..BLOCK];
                    let scale = f32::from_bits(words[WORDS - 1]);
                    let most = of_block.iter().fold(0.0f64, |most, x| most.max(x[which].abs()));
                    assert!(
                        (f64::from(scale) - most).abs() <= 1e-6 * most,
                        "{name}: {scale} is not {most}"
                    );
                    for (i, x) in of_block.iter().enumerate() {
                        let code = words[i / CODES].to_le_bytes()[i % CODES];
                        let odds = host_chance(block * BLOCK + i, t, which as u32);
                        match expected(moment, x[which], scale, odds) {
                            Some(want) => assert_eq!(code, want, "{name}, {moment:?} {i}: {} of {scale}", x[which]),
                            None => unsure += 1,
                        }
                    }
                }
            }
        }
        assert!(unsure < n / 10, "{unsure}");
    }
}

/// A moment whose gradients end decays as it should on the whole, though each step is less than half of what its codes
/// tell apart: rounding to the nearest would hold it for ever.
#[test]
fn moments_decay_in_the_mean() {
    let gpu = gpu();
    let n = 16 * BLOCK;
    let slow = Hyper {
        beta1: 0.99,
        beta2: 0.99,
        ..HYPER
    };
    let trained = Trained::new(&gpu, Kind::AdamW.with(slow), &vec![0.0; n], false, true);
    let mut grads = vec![1e-2; n];
    for t in 1..=100 {
        // One large value a block, so that the others are not the largest.
        for (i, g) in grads.iter_mut().enumerate() {
            *g = if i % BLOCK == 0 {
                1.0
            } else if t == 1 {
                0.1
            } else {
                0.0
            };
        }
        trained.step(&gpu, &grads, 1e9, Update { lr: 0.0, t, rate: 0.0 });
    }
    let [m, v] = trained.words(&gpu);
    let mean = |values: Vec<f32>| {
        let others = values.iter().enumerate().filter(|(i, _)| i % BLOCK > 0);
        others.map(|(_, x)| f64::from(*x)).sum::<f64>() / (n - 16) as f64
    };
    for (got, want) in [
        (mean(decode(Moment::First, &m)), 0.01 * 0.1 * 0.99f64.powi(99)),
        (mean(decode(Moment::Second, &v)), 0.01 * 0.01 * 0.99f64.powi(99)),
    ] {
        assert!((got / want - 1.0).abs() < 0.05, "{got:e}, not {want:e}");
    }
}

/// A linear model with noisy gradients, 400 updates: how far weights end from those of whole moments, relative to how far
/// they have moved, and how much worse the loss is. docs/KERNELS.md has the numbers.
#[test]
fn training_goes_where_whole_moments_go() {
    let gpu = gpu();
    let (n, steps) = (4 * BLOCK, 400u64);
    let goal = normals(2, n);
    for (kind, lr, far) in [(Kind::AdamW, 1e-2f32, 0.02), (Kind::Lion, 3e-3, 0.04)] {
        let hyper = Hyper {
            weight_decay: 0.0,
            ..HYPER
        };
        let run = |blocks: bool| -> Vec<f32> {
            let trained = Trained::new(&gpu, kind.with(hyper), &vec![0.0; n], false, blocks);
            for t in 1..=steps {
                let (p, noise) = (trained.weights.read(&gpu).unwrap(), normals(100 + t, n));
                // Directions of different sizes, as layers have.
                let of = |i: usize| (p[i] - goal[i] + 0.5 * noise[i]) * 10.0f32.powi(-((i % 4) as i32));
                let lr = lr * (1.0 - (t - 1) as f32 / steps as f32);
                trained.step(
                    &gpu,
                    &(0..n).map(of).collect::<Vec<_>>(),
                    1e9,
                    Update { lr, t, rate: 0.0 },
                );
            }
            trained.weights.read(&gpu).unwrap()
        };
        let (whole, blocks) = (run(false), run(true));
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
        let distance = norm(&mut whole.iter().zip(&blocks).map(|(a, b)| f64::from(a - b)));
        let moved = norm(&mut whole.iter().map(|a| f64::from(*a)));
        let loss = |p: &[f32]| norm(&mut p.iter().zip(&goal).map(|(a, b)| f64::from(a - b)));
        println!(
            "{kind:?}: {:.4} of the way, loss {:.5} and {:.5}",
            distance / moved,
            loss(&blocks),
            loss(&whole)
        );
        assert!(distance / moved < far, "{kind:?}: {}", distance / moved);
        assert!(loss(&blocks) < 1.02 * loss(&whole), "{kind:?}");
        assert!(whole != blocks, "{kind:?}: blocks round");
        assert!(blocks == run(true), "{kind:?}: the same run has the same bits");
    }
}

/// Checkpoints write tensors one after another, whose borders need not be those of blocks.
#[test]
fn ranges_written_piece_by_piece_are_blocks_written_at_once() {
    use crate::ops::packed::{Open, Packed};
    let gpu = gpu();
    let n = 6 * BLOCK;
    for moment in MOMENTS {
        let values: Vec<f32> = normals(5, n)
            .into_iter()
            .map(|x| if moment == Moment::First { x } else { x * x })
            .collect();
        let page = || {
            let page = gpu.alloc(DType::U32, [words(n)]);
            fill::zero(&gpu, &page);
            let packed = Packed {
                moment,
                start: 0,
                len: n,
                open: Open::default(),
            };
            Values {
                high: page,
                low: None,
                kept: Some(split::Kept::Blocks(packed)),
            }
        };
        let (whole, pieces) = (page(), page());
        whole.write(&gpu, &values);
        let borders = [0, 96, 100, 600, 601, 1100, n];
        for range in borders.windows(2).rev() {
            pieces
                .slice(range[0], range[1] - range[0])
                .write(&gpu, &values[range[0]..range[1]]);
        }
        let bits = |v: &Values| gpu.read_u32(&v.high).unwrap();
        assert_eq!(bits(&whole), bits(&pieces), "{moment:?}");
        let decoded = whole.read(&gpu).unwrap();
        assert_eq!(decoded[90..700], pieces.slice(90, 610).read(&gpu).unwrap()[..]);
        // What was read gives the same blocks.
        let again = page();
        again.write(&gpu, &decoded);
        assert_eq!(bits(&whole), bits(&again), "{moment:?}");
    }
}
