//! What happens between the sum and memory, shared by all kernels of this folder.

use cubecl::prelude::*;

use super::{Act, Config, Map, Sizes as HostSizes};
use crate::gpu::launch::View;
use crate::ops::math::{gelu, swish};

/// Scalars of a launch, in elements (see [`super::Sizes`]). Each field read in a kernel is a load: take copies
/// outside of loops.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub ld_a: usize,
    pub ld_b: usize,
    pub ld_c: usize,
    pub ld_extra: usize,
    pub ld_pre: usize,
    pub stride_a: usize,
    pub stride_b: usize,
    pub stride_c: usize,
    pub stride_bias: usize,
    pub stride_extra: usize,
    pub stride_pre: usize,
    pub period: usize,
}

impl HostSizes {
    pub(super) fn launch<R: Runtime>(self) -> SizesLaunch<R> {
        SizesLaunch::new(
            self.m,
            self.n,
            self.k,
            self.ld_a,
            self.ld_b,
            self.ld_c,
            self.ld_extra,
            self.ld_pre,
            self.stride_a,
            self.stride_b,
            self.stride_c,
            self.stride_bias,
            self.stride_extra,
            self.stride_pre,
            self.period,
        )
    }
}

/// Where one product of the launch lies: sizes, and first elements of its matrices.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Place {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: usize,
    pub b: usize,
    pub c: usize,
    pub bias: usize,
    pub extra: usize,
    pub pre: usize,
}

/// Finds product `z` of a plain, batched or grouped launch. `at_*` are the starts of the views.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn locate(
    table: &View<u32>,
    sizes: &Sizes,
    at_a: usize,
    at_b: usize,
    at_c: usize,
    at_bias: usize,
    at_extra: usize,
    at_pre: usize,
    #[comptime] cfg: Config,
) -> Place {
    let mut place = Place {
        m: sizes.m,
        n: sizes.n,
        k: sizes.k,
        a: at_a,
        b: at_b,
        c: at_c,
        bias: at_bias,
        extra: at_extra,
        pre: at_pre,
    };
    let z = CUBE_POS_Z as usize;
    if comptime!(cfg.batched) {
        place.a += z * sizes.stride_a;
        place.b += z * sizes.stride_b;
        place.c += z * sizes.stride_c;
        if comptime!(cfg.bias) {
            place.bias += z * sizes.stride_bias;
        }
        if comptime!(cfg.extra.is_some()) {
            place.extra += z * sizes.stride_extra;
        }
        if comptime!(cfg.pre) {
            place.pre += z * sizes.stride_pre;
        }
    }
    if comptime!(cfg.grouped) {
        place.a += table.get(z * 6) as usize;
        place.b += table.get(z * 6 + 1) as usize;
        place.c += table.get(z * 6 + 2) as usize;
        place.m = table.get(z * 6 + 3) as usize;
        place.n = table.get(z * 6 + 4) as usize;
        place.k = table.get(z * 6 + 5) as usize;
    }
    place
}

/// What finds the rows of `extra` and `pre`, copied once: every use of a scalar argument would be a load.
#[derive(CubeType)]
pub(super) struct Strides {
    ld_extra: usize,
    period: usize,
    ld_pre: usize,
}

#[cube]
pub(super) fn strides(sizes: &Sizes, #[comptime] cfg: Config) -> Strides {
    let mut ld_extra = 0usize;
    let mut period = 1usize;
    let mut ld_pre = 0usize;
    if comptime!(cfg.extra.is_some()) {
        ld_extra = sizes.ld_extra * 1;
    }
    if comptime!(cfg.extra == Some(Map::Modulo)) {
        period = sizes.period * 1;
    }
    if comptime!(cfg.pre) {
        ld_pre = sizes.ld_pre * 1;
    }
    Strides {
        ld_extra,
        period,
        ld_pre,
    }
}

/// First element of the row of `extra` that belongs to `row`.
#[cube]
pub(super) fn extra_row(
    index: &View<u32>,
    strides: &Strides,
    place: &Place,
    row: usize,
    #[comptime] cfg: Config,
) -> usize {
    let mut at = place.extra;
    if comptime!(cfg.extra.is_some()) {
        let mut mapped = row;
        if comptime!(cfg.extra == Some(Map::Modulo)) {
            mapped = row % strides.period;
        }
        if comptime!(cfg.extra == Some(Map::Index)) {
            mapped = index.get(row) as usize;
        }
        at += mapped * strides.ld_extra;
    }
    at
}

/// First element of the row of `pre` that belongs to `row`.
#[cube]
pub(super) fn pre_row(strides: &Strides, place: &Place, row: usize, #[comptime] cfg: Config) -> usize {
    let mut at = place.pre;
    if comptime!(cfg.pre) {
        at += row * strides.ld_pre;
    }
    at
}

/// The activation.
#[cube]
pub(super) fn activate(x: f32, #[comptime] act: Act) -> f32 {
    match act {
        Act::None => x,
        Act::Gelu => gelu(x),
        Act::Swish => swish(x),
    }
}

/// Finishes and stores one element. `extra_at` is the element of `extra` to add.
#[cube]
#[allow(clippy::too_many_arguments)]
pub(super) fn store<C: Numeric, Y: Numeric, X: Numeric>(
    c: &mut View<C>,
    pre: &mut View<C>,
    bias: &View<Y>,
    extra: &View<X>,
    x: f32,
    scale: f32,
    at_c: usize,
    at_pre: usize,
    at_bias: usize,
    at_extra: usize,
    #[comptime] cfg: Config,
) {
    let mut y = x;
    if comptime!(cfg.bias) {
        y += f32::cast_from(bias.raw(at_bias));
    }
    if comptime!(cfg.scaled) {
        y *= scale;
    }
    if comptime!(cfg.extra.is_some()) {
        y += f32::cast_from(extra.raw(at_extra));
    }
    if comptime!(cfg.pre) {
        pre.raw_set(at_pre, C::cast_from(y));
    }
    y = activate(y, cfg.act);
    if comptime!(cfg.accumulate) {
        y += f32::cast_from(c.raw(at_c));
    }
    c.raw_set(at_c, C::cast_from(y));
}
