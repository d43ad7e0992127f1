//! Flow matching: interpolation, and the velocity loss of behaviour cloning.
//!
//! ```text
//! x_t = t · noise + (1 - t) · action            u = noise - action
//! e[r] = mean_A (v[r] - u[r])²                  loss = Σ_r weight[r] e[r]
//! dv[r, a] = weight[r] · factor · 2 (v - u) / A
//! ```
//! Rows r are action steps (b, h); t is shared by the H rows of a sample. Time runs from 1 (noise) to 0 (data); the
//! Euler update `x ← x - v / T` is the epilogue of the product that makes v ([`gemm`](super::gemm): scale -1/T, add x).
//! Source: Lipman et al. 2023; openpi's direction of time.
//!
//! Cost: memory bound.

use cubecl::prelude::*;

use super::rows::{RowLayout, row_of_unit, team_sum};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// `x_t`; `noise`, `actions`, `x` are `[n, H·A]` f32, `time [n]` f32.
pub fn interpolate(gpu: &Gpu, noise: &Tensor, actions: &Tensor, time: &Tensor, x: &Tensor) {
    let per_sample = noise.len() / time.len().max(1);
    launch!(
        gpu,
        Cost::moving("flow_interpolate", 3 * noise.bytes()),
        interpolate_kernel,
        gpu.cubes(noise.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [noise, actions, time, x],
        (noise.len(), per_sample),
    );
}

/// `error [R]` and, where asked, `dv [R, A]`, from `v`, `noise`, `actions` `[R, A]` and `weight [R]`.
#[allow(clippy::too_many_arguments)]
pub fn velocity_loss(
    gpu: &Gpu,
    v: &Tensor,
    noise: &Tensor,
    actions: &Tensor,
    weight: &Tensor,
    factor: f32,
    error: &Tensor,
    dv: Option<&Tensor>,
) {
    let rows = error.len();
    let width = v.len() / rows.max(1);
    launch!(
        gpu,
        Cost::moving("flow_loss", 4 * v.bytes()),
        velocity_loss_kernel,
        gpu.cubes(rows, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [v, noise, actions, weight, error, dv.unwrap_or(v)],
        (rows, width, factor, dv.is_some()),
    );
}

/// `errors[j] += Σ_r weight[r] (v[r, j] - u[r, j])²`: the velocity loss of each of the first coordinates, before it is
/// averaged over them.
pub fn joint_errors(gpu: &Gpu, v: &Tensor, noise: &Tensor, actions: &Tensor, weight: &Tensor, errors: &Tensor) {
    let (rows, joints) = (weight.len(), errors.len());
    let layout = RowLayout::pick(gpu, rows);
    launch!(
        gpu,
        Cost::moving("flow_joint_errors", 3 * v.bytes()),
        joint_errors_kernel,
        layout.count(gpu, joints),
        layout.dim(),
        [v, noise, actions, weight, errors],
        (rows, v.len() / rows.max(1), joints, layout),
    );
}

/// `y = factor · x`: the gradient of a velocity from that of the Euler step's result.
pub fn scaled(gpu: &Gpu, x: &Tensor, factor: f32, y: &Tensor) {
    launch!(
        gpu,
        Cost::moving("flow_scaled", x.bytes() + y.bytes()),
        scaled_kernel,
        gpu.cubes(x.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [x, y],
        (x.len(), factor),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn joint_errors_kernel(
    v: &View<f32>,
    noise: &View<f32>,
    actions: &View<f32>,
    weight: &View<f32>,
    errors: &mut View<f32>,
    rows: usize,
    width: usize,
    joints: usize,
    #[comptime] layout: RowLayout,
) {
    let (joint, unit) = row_of_unit(layout);
    let mut sum = 0.0f32;
    if joint < joints {
        let mut row = unit;
        while row < rows {
            let i = row * width + joint;
            let e = v.get(i) - (noise.get(i) - actions.get(i));
            sum += weight.get(row) * e * e;
            row += comptime!(layout.team);
        }
    }
    let sum = team_sum(sum, layout);
    if joint < joints {
        if unit == 0 {
            errors.set(joint, errors.get(joint) + sum);
        }
    }
}

#[cube(launch_unchecked)]
fn scaled_kernel(x: &View<f32>, y: &mut View<f32>, n: usize, factor: f32) {
    if ABSOLUTE_POS < n {
        y.set(ABSOLUTE_POS, factor * x.get(ABSOLUTE_POS));
    }
}

#[cube(launch_unchecked)]
fn interpolate_kernel(
    noise: &View<f32>,
    actions: &View<f32>,
    time: &View<f32>,
    x: &mut View<f32>,
    n: usize,
    per_sample: usize,
) {
    let i = ABSOLUTE_POS;
    if i < n {
        let t = time.get(i / per_sample);
        x.set(i, t * noise.get(i) + (1.0 - t) * actions.get(i));
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn velocity_loss_kernel(
    v: &View<f32>,
    noise: &View<f32>,
    actions: &View<f32>,
    weight: &View<f32>,
    error: &mut View<f32>,
    dv: &mut View<f32>,
    rows: usize,
    width: usize,
    factor: f32,
    #[comptime] gradient: bool,
) {
    let row = ABSOLUTE_POS;
    if row < rows {
        let width = width * 1;
        let first = row * width;
        let slope = 2.0 * weight.get(row) * factor / width as f32;
        let mut sum = 0.0f32;
        for i in first..first + width {
            let e = v.get(i) - (noise.get(i) - actions.get(i));
            sum += e * e;
            if comptime!(gradient) {
                dv.set(i, slope * e);
            }
        }
        error.set(row, sum / width as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, gpu, normals};

    #[test]
    fn joint_errors_are_the_velocity_loss_by_coordinate() {
        let gpu = gpu();
        let (rows, width, joints) = (37, 8, 5);
        let [v, noise, actions] = [1, 2, 3].map(|seed| normals(seed, rows * width));
        let weight: Vec<f32> = (0..rows).map(|r| (r % 3) as f32 / 10.0).collect();
        let before: Vec<f32> = normals(4, joints);
        let want: Vec<f64> = (0..joints)
            .map(|j| {
                let error = |r: usize| {
                    let i = r * width + j;
                    f64::from(v[i]) - (f64::from(noise[i]) - f64::from(actions[i]))
                };
                f64::from(before[j]) + (0..rows).map(|r| f64::from(weight[r]) * error(r).powi(2)).sum::<f64>()
            })
            .collect();
        let upload = |x: &[f32]| gpu.upload_f32(x, [rows, width]);
        let errors = gpu.upload_f32(&before, [joints]);
        joint_errors(
            &gpu,
            &upload(&v),
            &upload(&noise),
            &upload(&actions),
            &gpu.upload_f32(&weight, [rows]),
            &errors,
        );
        check(&gpu, "joint errors", &errors, &want, 1e-5);
    }
}
