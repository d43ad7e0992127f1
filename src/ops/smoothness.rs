//! Smoothness of action chunks: the mean squared step from one action to the next.
//!
//! ```text
//! e[r] = mean over h < H-1 and j < J of (a[r, h+1, j] - a[r, h, j])²          loss = Σ_r weight[r] e[r]
//! da[r, h, j] += weight[r] · factor · 2 ((a[h] - a[h-1]) - (a[h+1] - a[h])) / ((H-1) J)
//! ```
//! Terms over the ends of a chunk are absent. Rows r are chunks; coordinates from J on are padding and get nothing.
//!
//! Cost: memory bound.

use cubecl::prelude::*;

use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// `error [R]` of `actions [R, H, A]`, whose first `joints` coordinates count, and the gradient added to `dactions` of
/// the same shape. `weight [W]` is repeated: row r has weight `r mod W`. H is at least 2.
pub fn run(
    gpu: &Gpu,
    actions: &Tensor,
    joints: usize,
    weight: &Tensor,
    factor: f32,
    error: &Tensor,
    dactions: &Tensor,
) {
    let [rows, steps, width] = *actions.shape() else {
        panic!("actions are [R, H, A], not {actions:?}")
    };
    assert!(steps > 1 && joints <= width && dactions.len() == actions.len());
    launch!(
        gpu,
        Cost::moving("smoothness", actions.bytes() + error.bytes()),
        error_kernel,
        gpu.cubes(rows, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [actions, error],
        (rows, steps, width, joints),
    );
    launch!(
        gpu,
        Cost::moving("smoothness_backward", actions.bytes() + 2 * dactions.bytes()),
        backward_kernel,
        gpu.cubes(actions.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [actions, weight, dactions],
        (actions.len(), steps, width, joints, weight.len(), factor),
    );
}

#[cube(launch_unchecked)]
fn error_kernel(actions: &View<f32>, error: &mut View<f32>, rows: usize, steps: usize, width: usize, joints: usize) {
    let row = ABSOLUTE_POS;
    if row < rows {
        let mut sum = 0.0f32;
        for h in 0..steps - 1 {
            let at = (row * steps + h) * width;
            for j in 0..joints {
                let step = actions.get(at + width + j) - actions.get(at + j);
                sum += step * step;
            }
        }
        error.set(row, sum / f32::cast_from(((steps - 1) * joints) as u32));
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn backward_kernel(
    actions: &View<f32>,
    weight: &View<f32>,
    dactions: &mut View<f32>,
    n: usize,
    steps: usize,
    width: usize,
    joints: usize,
    weights: usize,
    factor: f32,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let (j, h, row) = (i % width, i / width % steps, i / (width * steps));
        if j < joints {
            let a = actions.get(i);
            let mut bend = 0.0f32;
            if h > 0 {
                bend += a - actions.get(i - width);
            }
            if h + 1 < steps {
                bend -= actions.get(i + width) - a;
            }
            let mean = f32::cast_from(((steps - 1) * joints) as u32);
            let scale = 2.0 * factor * weight.get(row % weights) / mean;
            dactions.set(i, dactions.get(i) + scale * bend);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, f64s, gpu, normals};

    const JOINTS: usize = 5;

    /// Error of one chunk `[H, A]` in float64.
    fn error(chunk: &[f64], width: usize) -> f64 {
        let steps = chunk.len() / width;
        let pairs = chunk.chunks(width).zip(chunk[width..].chunks(width));
        let squares = pairs.map(|(a, b)| (0..JOINTS).map(|j| (b[j] - a[j]).powi(2)).sum::<f64>());
        squares.sum::<f64>() / ((steps - 1) * JOINTS) as f64
    }

    #[test]
    fn error_and_gradient_meet_finite_differences_in_float64() {
        let gpu = gpu();
        // Two actions: every step is at an end.
        for steps in [2, 7] {
            let (rows, width, factor) = (6, 8, 0.7f32);
            let (a, before, weight) = (
                normals(1, rows * steps * width),
                normals(2, rows * steps * width),
                [0.5f32, 0.0, 2.0],
            );
            let shape = [rows, steps, width];
            let (actions, dactions) = (gpu.upload_f32(&a, shape), gpu.upload_f32(&before, shape));
            let errors = gpu.f32([rows]);
            run(
                &gpu,
                &actions,
                JOINTS,
                &gpu.upload_f32(&weight, [3]),
                factor,
                &errors,
                &dactions,
            );

            let a = f64s(&a);
            let chunk = |a: &[f64], r: usize| error(&a[r * steps * width..(r + 1) * steps * width], width);
            let want: Vec<f64> = (0..rows).map(|r| chunk(&a, r)).collect();
            check(&gpu, "error", &errors, &want, 1e-6);

            let eps = 1e-5;
            let gradient = |i: usize| {
                let row = i / (steps * width);
                let moved = |by: f64| {
                    let mut a = a.clone();
                    a[i] += by;
                    chunk(&a, row)
                };
                f64::from(weight[row % 3] * factor) * (moved(eps) - moved(-eps)) / (2.0 * eps)
            };
            // It adds to what is there.
            let want: Vec<f64> = (0..a.len()).map(|i| f64::from(before[i]) + gradient(i)).collect();
            check(&gpu, "gradient", &dactions, &want, 1e-6);
        }
    }
}
