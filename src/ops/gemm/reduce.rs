//! The second half of a product that was cut along k: adds up the parts, in their order, and finishes the sums.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::epilogue::{Sizes, extra_row, locate, pre_row, store, strides};
use super::{Call, Config};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 256;

/// `parts [splits, m, n]` f32 to what `call` makes of their sum. The bytes are those of the parts, written and read: the
/// operands are in the product's account.
pub(super) fn launch_reduce(gpu: &Gpu, parts: &Tensor, call: &Call<'_>) {
    let types = [call.c, call.bias, call.extra].map(|t| t.dtype().storage());
    let [m, n, _] = call.grid;
    launch!(
        gpu,
        Cost::moving("gemm_reduce", 2 * parts.bytes()),
        gemm_reduce,
        gpu.cubes(m * n, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [parts, call.c, call.bias, call.extra, call.pre, call.index],
        (
            parts.dim(0),
            call.sizes.launch(),
            call.scale,
            call.config.narrow(),
            types
        ),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn gemm_reduce<C: Numeric, Y: Numeric, X: Numeric>(
    parts: &View<f32>,
    c: &mut View<C>,
    bias: &View<Y>,
    extra: &View<X>,
    pre: &mut View<C>,
    index: &View<u32>,
    splits: usize,
    sizes: &Sizes,
    scale: f32,
    #[comptime] cfg: Config,
    #[define(C, Y, X)] _types: [StorageType; 3],
) {
    let (at_parts, at_c, at_bias) = (parts.start(), c.start(), bias.start());
    let (at_extra, at_pre) = (extra.start(), pre.start());
    // A single product: there is no table to look into.
    let place = locate(index, sizes, at_parts, at_parts, at_c, at_bias, at_extra, at_pre, cfg);
    let row = ABSOLUTE_POS / place.n;
    let col = ABSOLUTE_POS % place.n;
    if row < place.m {
        let mut at = place.a + row * place.n + col;
        let mut sum = 0.0f32;
        for _ in 0..splits {
            sum += parts.raw(at);
            at += place.m * place.n;
        }
        let strides = strides(sizes, cfg);
        let pre_row = pre_row(&strides, &place, row, cfg);
        let x_row = extra_row(index, &strides, &place, row, cfg);
        store::<C, Y, X>(
            c,
            pre,
            bias,
            extra,
            sum,
            scale,
            place.c + row * sizes.ld_c + col,
            pre_row + col,
            place.bias + col,
            x_row + col,
            cfg,
        );
    }
}
