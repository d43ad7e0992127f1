//! Sine-cosine embedding of the flow time, on the host in float64.
//!
//! ```text
//! period_i = min (max / min)^(i / (n - 1))      i < n = D/2, min = 4e-3, max = 4.0
//! y[i] = sin(2π t / period_i)      y[n + i] = cos(2π t / period_i)
//! ```
//! Angles reach 2π / 4e-3 ≈ 1571 rad, where f32 angles are off by 1.5e-4; so they are computed in float64 and rounded
//! once. There are only T + B values of t in a step, so the host does it while the device works.
//! Source: openpi `posemb_sincos`.
//!
//! Cost: `D` sines per value of t, on the host.

use std::f64::consts::TAU;

/// Shortest and longest period.
const PERIODS: (f64, f64) = (4e-3, 4.0);

/// `[times, D]`
pub fn forward(times: &[f64], width: usize) -> Vec<f32> {
    let half = width / 2;
    let periods: Vec<f64> = (0..half).map(|i| period(i, half)).collect();
    let mut out = vec![0.0; times.len() * width];
    for (line, &t) in out.chunks_mut(width).zip(times) {
        for (i, period) in periods.iter().enumerate() {
            let angle = t * TAU / period;
            line[i] = libm::sin(angle) as f32;
            line[half + i] = libm::cos(angle) as f32;
        }
    }
    out
}

/// `dt` from `dy [times, D]`: the times are data in training, but the embedding is differentiable.
pub fn backward(times: &[f64], width: usize, dy: &[f32]) -> Vec<f64> {
    let half = width / 2;
    let slope = |t: f64, line: &[f32]| -> f64 {
        (0..half)
            .map(|i| {
                let w = TAU / period(i, half);
                w * (libm::cos(t * w) * line[i] as f64 - libm::sin(t * w) * line[half + i] as f64)
            })
            .sum()
    };
    times
        .iter()
        .zip(dy.chunks(width))
        .map(|(&t, line)| slope(t, line))
        .collect()
}

fn period(i: usize, half: usize) -> f64 {
    let share = if half > 1 { i as f64 / (half - 1) as f64 } else { 0.0 };
    PERIODS.0 * libm::pow(PERIODS.1 / PERIODS.0, share)
}
