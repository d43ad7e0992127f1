//! How kernels that reduce along a row are laid out.
//!
//! On a GPU several units share a row and combine their sums through shared memory, so that neighbours read
//! neighbours. On software Vulkan a load costs the same wherever it points and a barrier costs a lot: there every
//! unit has a row of its own.

use cubecl::prelude::*;

use super::lanes::Lanes;
use crate::gpu::{Api, Gpu};

/// Units of a workgroup and how they share rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowLayout {
    /// Units of one row: a power of two.
    pub team: usize,
    /// Rows of one workgroup.
    pub rows: usize,
    /// Units of a team that exchange registers; 1 where shared memory is the only way.
    pub plane: usize,
}

impl RowLayout {
    /// The layout for rows of `width` elements that are read one by one.
    pub(crate) fn pick(gpu: &Gpu, width: usize) -> RowLayout {
        RowLayout::of_lanes(gpu, width, Lanes::ONE)
    }

    /// The layout for rows of `width` elements.
    pub(crate) fn of_lanes(gpu: &Gpu, width: usize, lanes: Lanes) -> RowLayout {
        let caps = gpu.caps();
        if caps.software {
            return RowLayout {
                team: 1,
                rows: 8,
                plane: 1,
            };
        }
        // Two vectors a unit, or eight elements: a 2048-wide row keeps 128 or 256 units busy.
        let team = (width / (2 * lanes.count).max(8)).next_power_of_two().clamp(8, 256);
        // WGSL does not promise that neighbouring units are neighbours in their plane; CUDA does.
        let wgsl = matches!(caps.api, Api::Vulkan | Api::Metal | Api::Dx12);
        let plane = caps.plane.filter(|_| !wgsl).map_or(1, |units| units as usize);
        RowLayout {
            team,
            rows: 256 / team,
            plane: plane.min(team),
        }
    }

    pub(crate) fn dim(self) -> CubeDim {
        CubeDim::new_1d((self.team * self.rows) as u32)
    }

    pub(crate) fn count(self, gpu: &Gpu, rows: usize) -> CubeCount {
        gpu.cubes(rows, self.rows)
    }
}

/// The row of this unit, and its place in the row's team.
#[cube]
pub(crate) fn row_of_unit(#[comptime] layout: RowLayout) -> (usize, usize) {
    let unit = UNIT_POS as usize;
    (CUBE_POS * layout.rows + unit / layout.team, unit % layout.team)
}

/// What a team makes of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Join {
    Sum,
    Max,
}

/// Sum of `x` over the team, in a fixed order; every unit of the workgroup must take part.
#[cube]
pub(crate) fn team_sum(x: f32, #[comptime] layout: RowLayout) -> f32 {
    over_team(x, layout, Join::Sum)
}

/// Largest `x` of the team; every unit of the workgroup must take part.
#[cube]
pub(crate) fn team_max(x: f32, #[comptime] layout: RowLayout) -> f32 {
    over_team(x, layout, Join::Max)
}

#[cube]
fn both(a: f32, b: f32, #[comptime] join: Join) -> f32 {
    match join {
        Join::Sum => a + b,
        Join::Max => max(a, b),
    }
}

/// A tree over the team: within planes by registers, then over what is left by shared memory.
#[cube]
fn over_team(x: f32, #[comptime] layout: RowLayout, #[comptime] join: Join) -> f32 {
    let mut value = x;
    #[unroll]
    for level in 0..comptime!(layout.plane.ilog2()) {
        value = both(value, plane_shuffle_xor(value, comptime!(1u32 << level)), join);
    }
    if comptime!(layout.team > layout.plane) {
        let unit = UNIT_POS as usize;
        let left = comptime!(layout.team / layout.plane);
        let mut shared = SharedMemory::<f32>::new(comptime!(left * layout.rows));
        let (slot, lane) = (unit / layout.plane, unit % layout.plane);
        if lane == 0 {
            shared[slot] = value;
        }
        sync_cube();
        let mut half = comptime!(left / 2).runtime();
        while half > 0 {
            if lane == 0 && slot % left < half {
                shared[slot] = both(shared[slot], shared[slot + half], join);
            }
            sync_cube();
            half /= 2;
        }
        value = shared[slot / left * left];
        // The next value reuses the memory.
        sync_cube();
    }
    value
}
