//! The norm behind a product that was cut along k, and its backward: one launch adds up the parts, with the residual, stores
//! their sum and goes on with it. For the action expert, whose products are small, every launch counts.
//!
//! A unit reads of a sum only what it has stored itself, so nothing is waited for.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::kernels::{BackwardParts, backward_row, forward_row};
use super::{Backward, Modulation, backward, forward};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};
use crate::ops::gemm::{Parts, Sum};
use crate::ops::lanes::{Lanes, load, store};
use crate::ops::rows::{RowLayout, row_of_unit};

/// `y = norm(x)` of the sum `x`, which is returned.
pub fn forward_sum(gpu: &Gpu, sum: Sum, modulation: Modulation<'_>, y: &Tensor) -> Tensor {
    let (x, parts) = sum.split();
    let Some(Parts { sums, residual }) = parts else {
        forward(gpu, &x, modulation, y);
        return x;
    };
    let [splits, m, d] = *sums.shape() else {
        unreachable!("parts are [splits, M, D]")
    };
    let residual = residual.as_ref();
    let around = residual.unwrap_or(&sums);
    let tensors = [&sums, around, &x, modulation.table(), y];
    let lanes = Lanes::pick(gpu, &[d], &tensors);
    let layout = RowLayout::of_lanes(gpu, d, lanes);
    launch!(
        gpu,
        // That the product wrote x, and read the residual, is in its account.
        Cost::moving("rms_norm", 2 * sums.bytes() + x.bytes() + y.bytes()),
        rms_norm_forward_sum,
        layout.count(gpu, m),
        layout.dim(),
        [sums, around, x, modulation.table(), modulation.groups(), y],
        (
            splits,
            m,
            d,
            layout,
            residual.is_some(),
            modulation.adaptive(),
            lanes,
            lanes.types(tensors),
            lanes.sizes()
        ),
    );
    x
}

/// [`backward`] from the sum `dy`; that of `b` is ignored.
pub fn backward_sum(gpu: &Gpu, dy: Sum, b: Backward<'_>) {
    let (dy, parts) = dy.split();
    let b = Backward { dy: &dy, ..b };
    let Some(Parts { sums, residual: None }) = parts else {
        assert!(parts.is_none(), "gradients behind a norm have no residual");
        return backward(gpu, b);
    };
    let [splits, m, d] = *sums.shape() else {
        unreachable!("parts are [splits, M, D]")
    };
    let b = b.filled();
    let tensors = [&sums, b.x, b.table, b.dy, b.around, b.dx, b.rounded, b.y];
    // Pairs: with more, registers run out where many blocks are to share a multiprocessor.
    let lanes = Lanes::pick(gpu, &[d], &tensors).at_most(2);
    let layout = RowLayout::of_lanes(gpu, d, lanes);
    launch!(
        gpu,
        Cost::moving("rms_norm_backward", 2 * sums.bytes() + b.moved),
        rms_norm_backward_sum,
        layout.count(gpu, m),
        layout.dim(),
        [
            sums, b.x, b.table, b.groups, b.dy, b.around, b.dx, b.rounded, b.y, b.rstd
        ],
        (
            splits,
            m,
            d,
            layout,
            b.adaptive,
            b.parts,
            lanes,
            lanes.types(tensors),
            lanes.sizes()
        ),
    );
}

/// What `unit` of a row's team has of `to = Σ sums (+ residual)`, parts in their order.
#[cube]
#[allow(clippy::too_many_arguments)]
fn add_up<P: Numeric, R: Numeric, X: Numeric, W: Size, N: Size>(
    sums: &View<Vector<P, W>>,
    residual: &View<Vector<R, W>>,
    to: &mut View<Vector<X, W>>,
    splits: usize,
    row: usize,
    unit: usize,
    m: usize,
    d: usize,
    #[comptime] with_residual: bool,
    #[comptime] layout: RowLayout,
    #[comptime] lanes: Lanes,
) {
    let at = row * d;
    let (sums_at, residual_at, to_at) = (sums.start() + at, residual.start() + at, to.start() + at);
    let mut i = unit * lanes.count;
    while i < d {
        let mut sum = Vector::<f32, N>::zeroed();
        let mut part = sums_at + i;
        for _ in 0..splits {
            sum += load::<P, W, N>(sums, part, lanes);
            part += m * d;
        }
        if comptime!(with_residual) {
            sum += load::<R, W, N>(residual, residual_at + i, lanes);
        }
        store::<X, W, N>(to, to_at + i, sum, lanes);
        i += comptime!(layout.team * lanes.count);
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn rms_norm_forward_sum<P: Numeric, R: Numeric, X: Numeric, T: Numeric, Y: Numeric, W: Size, N: Size>(
    sums: &View<Vector<P, W>>,
    residual: &View<Vector<R, W>>,
    x: &mut View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    y: &mut View<Vector<Y, W>>,
    splits: usize,
    m: usize,
    d: usize,
    #[comptime] layout: RowLayout,
    #[comptime] with_residual: bool,
    #[comptime] adaptive: bool,
    #[comptime] lanes: Lanes,
    #[define(P, R, X, T, Y)] _types: [StorageType; 5],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    let d = d * 1;
    if row < m {
        add_up::<P, R, X, W, N>(sums, residual, x, splits, row, unit, m, d, with_residual, layout, lanes);
    }
    forward_row::<X, T, Y, W, N>(x, table, groups, y, row, unit, m, d, layout, adaptive, lanes);
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn rms_norm_backward_sum<
    P: Numeric,
    X: Numeric,
    T: Numeric,
    DY: Numeric,
    R: Numeric,
    DX: Numeric,
    DR: Numeric,
    Y: Numeric,
    W: Size,
    N: Size,
>(
    sums: &View<Vector<P, W>>,
    x: &View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    groups: &View<u32>,
    dy: &mut View<Vector<DY, W>>,
    around: &View<Vector<R, W>>,
    dx: &mut View<Vector<DX, W>>,
    rounded: &mut View<Vector<DR, W>>,
    y: &mut View<Vector<Y, W>>,
    rstd: &mut View<f32>,
    splits: usize,
    m: usize,
    d: usize,
    #[comptime] layout: RowLayout,
    #[comptime] adaptive: bool,
    #[comptime] parts: BackwardParts,
    #[comptime] lanes: Lanes,
    #[define(P, X, T, DY, R, DX, DR, Y)] _types: [StorageType; 8],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let (row, unit) = row_of_unit(layout);
    let d = d * 1;
    if row < m {
        add_up::<P, P, DY, W, N>(sums, sums, dy, splits, row, unit, m, d, false, layout, lanes);
    }
    backward_row::<X, T, DY, R, DX, DR, Y, W, N>(
        x, table, groups, dy, around, dx, rounded, y, rstd, row, unit, m, d, layout, adaptive, parts, lanes,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{Caps, DType};
    use crate::ops::gemm;
    use crate::ops::rms_norm::rstd;
    use crate::ops::testing::{close, f64s, normals};

    /// Rows that do not fill the last workgroup, a width of several vectors a unit, k long enough to be cut.
    const SIZES: [usize; 3] = [21, 320, 4096];

    /// Devices that cut products along k, and one whose kernels do not.
    fn devices() -> [(Gpu, bool); 3] {
        let emulated = |arch| Gpu::emulated_cuda(arch).expect("a C++ compiler");
        let many = |gpu: Gpu| {
            gpu.with_caps(|caps| Caps {
                multiprocessors: Some(132),
                ..caps
            })
        };
        [
            (many(emulated(90)), true),
            (many(emulated(80)), true),
            (crate::ops::testing::gpu(), false),
        ]
    }

    struct Operands {
        a: Tensor,
        b: Tensor,
        residual: Tensor,
        weight: Tensor,
    }

    fn operands(gpu: &Gpu, dtype: DType) -> Operands {
        let [m, d, k] = SIZES;
        let of = |seed, shape: [usize; 2]| gpu.upload_as(&normals(seed, shape[0] * shape[1]), dtype, shape);
        Operands {
            a: of(1, [m, k]),
            b: of(2, [d, k]),
            residual: of(3, [m, d]),
            weight: gpu.upload_f32(&normals(4, d), [d]),
        }
    }

    #[test]
    fn the_sum_and_its_norm_are_those_of_two_launches() {
        let [m, d, _] = SIZES;
        for (gpu, cut) in devices() {
            let dtype = if cut { DType::Bf16 } else { DType::F32 };
            for with_residual in [true, false] {
                let o = operands(&gpu, dtype);
                let product = || {
                    let product = gemm::nt(&o.a, &o.b);
                    if with_residual {
                        product.residual(&o.residual)
                    } else {
                        product
                    }
                };
                let room = || gpu.alloc(dtype, [m, d]);
                let (whole, apart, y, want) = (room(), room(), room(), room());
                product().to(&gpu, &whole);
                forward(&gpu, &whole, Modulation::Plain(&o.weight), &want);

                gpu.take_record();
                let sum = product().sum_to(&gpu, &apart);
                let x = forward_sum(&gpu, sum, Modulation::Plain(&o.weight), &y);
                let launches = gpu.take_record().total().launches;
                assert_eq!(launches, 2, "a product and a norm");
                assert_eq!(gpu.read_f32(&x), gpu.read_f32(&whole), "the same sum");
                // Rows are summed by other teams: the rounding of y may differ by one place.
                let (y, want) = (gpu.read_f32(&y).unwrap(), f64s(&gpu.read_f32(&want).unwrap()));
                close("y", &y, &want, if cut { 1.0 / 128.0 } else { 0.0 });
                let again = product().sum_to(&gpu, &apart).whole(&gpu);
                assert_eq!(gpu.take_record().total().launches, 1 + u64::from(cut));
                assert_eq!(gpu.read_f32(&again), gpu.read_f32(&whole));
            }
        }
    }

    #[test]
    fn backward_of_a_sum_is_that_of_two_launches() {
        let [m, d, _] = SIZES;
        for (gpu, cut) in devices() {
            let dtype = if cut { DType::Bf16 } else { DType::F32 };
            let o = operands(&gpu, dtype);
            let x = gpu.upload_as(&normals(5, m * d), dtype, [m, d]);
            let run = |in_parts: bool| {
                let room = || gpu.alloc(dtype, [m, d]);
                let (dy, dx, r) = (room(), room(), rstd(&gpu, m));
                let b = Backward {
                    x: &x,
                    modulation: Modulation::Plain(&o.weight),
                    dy: &dy,
                    around: Some(&o.residual),
                    dx: &dx,
                    rounded: None,
                    y: None,
                    rstd: Some(&r),
                };
                gpu.take_record();
                let sum = gemm::nt(&o.a, &o.b).sum_to(&gpu, &dy);
                if in_parts {
                    backward_sum(&gpu, sum, b);
                    assert_eq!(gpu.take_record().total().launches, 2);
                } else {
                    let _ = sum.whole(&gpu);
                    backward(&gpu, b);
                }
                [&dy, &dx, &r].map(|t| gpu.read_f32(t).unwrap())
            };
            let (got, want) = (run(true), run(false));
            assert_eq!(got[0], want[0], "the same sum");
            let most = if cut { 1.0 / 128.0 } else { 0.0 };
            close("dx", &got[1], &f64s(&want[1]), most);
            close("1 / sqrt(mean(x²) + ε)", &got[2], &f64s(&want[2]), 1e-6);
        }
    }
}
