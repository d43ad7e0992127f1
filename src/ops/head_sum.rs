//! Sum over heads of matrices that stand next to each other: `y[o, l] = Σ_h x[o, h·r + l]`, `x [O, H·r]`, `y [O, r]`.
//!
//! Backward is the other way round: `dx[o, h·r + l] += dy[o, l]`.
//! For the adapters of attention's last projection, of which every head has its own B and all are multiplied with the
//! same vector. The sum is f32, in the order of the heads.
//!
//! Cost: memory bound; x is small.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

/// `y = Σ_h x_h`
pub fn forward(gpu: &Gpu, x: &Tensor, y: &Tensor) {
    run(gpu, x, y, false);
}

/// `dx_h += dy` of every head.
pub fn backward(gpu: &Gpu, dy: &Tensor, dx: &Tensor) {
    run(gpu, dx, dy, true);
}

fn run(gpu: &Gpu, x: &Tensor, y: &Tensor, back: bool) {
    let ([rows, width], [rows_y, rank]) = (two(x), two(y));
    assert!(rows == rows_y && width.is_multiple_of(rank), "{x:?}, {y:?}");
    let types = [x, y].map(|t| t.dtype().storage());
    let passes = if back { 2 } else { 1 };
    launch!(
        gpu,
        Cost::moving("head_sum", passes * x.bytes() + y.bytes()),
        head_sum_kernel,
        gpu.cubes(y.len(), UNITS),
        CubeDim::new_1d(UNITS as u32),
        [x, y],
        (y.len(), rank, width / rank, back, types),
    );
}

fn two(t: &Tensor) -> [usize; 2] {
    match *t.shape() {
        [rows, columns] => [rows, columns],
        ref shape => panic!("a matrix has two dimensions, not {shape:?}"),
    }
}

#[cube(launch_unchecked)]
fn head_sum_kernel<X: Numeric, Y: Numeric>(
    x: &mut View<X>,
    y: &mut View<Y>,
    n: usize,
    rank: usize,
    heads: usize,
    #[comptime] back: bool,
    #[define(X, Y)] _types: [StorageType; 2],
) {
    let at = ABSOLUTE_POS;
    if at < n {
        let (rank, heads) = (rank * 1, heads * 1);
        let mut from = at / rank * (rank * heads) + at % rank;
        if comptime!(back) {
            let dy = f32::cast_from(y.get(at));
            for _ in 0..heads {
                let sum = f32::cast_from(x.get(from)) + dy;
                x.set(from, X::cast_from(sum));
                from += rank;
            }
        } else {
            let mut sum = 0.0f32;
            for _ in 0..heads {
                sum += f32::cast_from(x.get(from));
                from += rank;
            }
            y.set(at, Y::cast_from(sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::gpu;

    #[test]
    fn sums_and_spreads() {
        let gpu = gpu();
        let (rows, heads, rank) = (70, 3, 2);
        let values: Vec<f32> = (0..rows * heads * rank).map(|i| (i * i % 23) as f32 - 7.5).collect();
        let x = gpu.upload_f32(&values, [rows, heads * rank]);
        let y = gpu.f32([rows, rank]);
        forward(&gpu, &x, &y);
        let at = |o: usize, h: usize, l: usize| values[(o * heads + h) * rank + l];
        let sum = |i: usize| (0..heads).map(|h| at(i / rank, h, i % rank)).sum::<f32>();
        let want: Vec<f32> = (0..rows * rank).map(sum).collect();
        assert_eq!(gpu.read_f32(&y).unwrap(), want);

        backward(&gpu, &y, &x);
        let added = |i: usize| values[i] + want[i / (heads * rank) * rank + i % rank];
        let want: Vec<f32> = (0..values.len()).map(added).collect();
        assert_eq!(gpu.read_f32(&x).unwrap(), want);
    }
}
