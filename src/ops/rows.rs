//! How kernels that reduce along a row are laid out.
//!
//! On a GPU several units share a row and combine their sums through shared memory, so that neighbours read
//! neighbours. On software Vulkan a load costs the same wherever it points and a barrier costs a lot: there every
//! unit has a row of its own.

use cubecl::prelude::*;

use crate::gpu::Gpu;

/// Units of a workgroup and how they share rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RowLayout {
    /// Units of one row: a power of two.
    pub team: usize,
    /// Rows of one workgroup.
    pub rows: usize,
}

impl RowLayout {
    /// The layout for rows of `width` elements.
    pub(crate) fn pick(gpu: &Gpu, width: usize) -> RowLayout {
        if gpu.caps().software {
            return RowLayout { team: 1, rows: 8 };
        }
        // Pairs per unit: about four, so that a 2048-wide row keeps 256 units busy.
        let team = (width / 8).next_power_of_two().clamp(8, 256);
        RowLayout { team, rows: 256 / team }
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

/// Sum of `x` over the team, in a fixed order; every unit of the workgroup must take part.
#[cube]
pub(crate) fn team_sum(x: f32, #[comptime] layout: RowLayout) -> f32 {
    if comptime!(layout.team == 1) {
        x
    } else {
        let unit = UNIT_POS as usize;
        let mut shared = SharedMemory::<f32>::new(comptime!(layout.team * layout.rows));
        shared[unit] = x;
        sync_cube();
        let mut half = comptime!(layout.team / 2).runtime();
        while half > 0 {
            if unit % layout.team < half {
                shared[unit] += shared[unit + half];
            }
            sync_cube();
            half /= 2;
        }
        let sum = shared[unit / layout.team * layout.team];
        // The next sum reuses the memory.
        sync_cube();
        sum
    }
}

/// Largest `x` of the team; every unit of the workgroup must take part.
#[cube]
pub(crate) fn team_max(x: f32, #[comptime] layout: RowLayout) -> f32 {
    if comptime!(layout.team == 1) {
        x
    } else {
        let unit = UNIT_POS as usize;
        let mut shared = SharedMemory::<f32>::new(comptime!(layout.team * layout.rows));
        shared[unit] = x;
        sync_cube();
        let mut half = comptime!(layout.team / 2).runtime();
        while half > 0 {
            if unit % layout.team < half {
                shared[unit] = max(shared[unit], shared[unit + half]);
            }
            sync_cube();
            half /= 2;
        }
        let largest = shared[unit / layout.team * layout.team];
        sync_cube();
        largest
    }
}
