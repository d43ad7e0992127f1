//! The product for CUDA devices from 8.0 on: tiles of 128 × 128 by `mma`, operands of any alignment, also groups of
//! different sizes (`shaders/cuda/gemm_mma.cu`).

use cubecl::prelude::CubeCount;

use super::Call;
use super::cuda::{self, Form, Tiling};
use crate::gpu::{Cost, Forms, Gpu, RawKernel, Source, Tensor};

const SOURCE: &str = concat!(
    include_str!("../../../shaders/cuda/include/gemm.cuh"),
    include_str!("../../../shaders/cuda/gemm_mma.cu")
);

/// Threads of a block.
const THREADS: u32 = 256;
/// Sides of a tile, and depth of a step along k.
const SIDE: usize = 128;
const DEPTH: usize = 32;
/// Four stages of a slice of each operand.
pub(super) const SHARED_BYTES: usize = 64 << 10;
/// Fewest steps of a part of k: below, the sum of the parts costs what the cut saves.
const LEAST_STEPS: usize = 32;

/// Writes C, or the parts of a product that is cut along k and returns these.
pub(super) fn launch_mma(gpu: &Gpu, cost: Cost, call: &Call<'_>) -> Option<Tensor> {
    let tiling = Tiling {
        rows: SIDE,
        columns: SIDE,
        depth: DEPTH,
        splits: 1,
    }
    .split(call, cuda::processors(gpu.caps()), LEAST_STEPS);
    if tiling.splits == 1 {
        launch(gpu, cost, call, &tiling);
        return None;
    }
    let [m, n, _] = call.grid;
    let parts = gpu.f32([tiling.splits, m, n]);
    launch(gpu, cost, &call.sums(&parts), &tiling);
    Some(parts)
}

fn launch(gpu: &Gpu, cost: Cost, call: &Call<'_>, tiling: &Tiling) {
    let [m, n, matrices] = call.grid;
    static FORMS: Forms<(Form, bool)> = Forms::new();
    let form = (Form::new(call), call.config.grouped);
    let source = FORMS.get(form, |&(form, grouped)| {
        let defines = format!("{}#define GROUPED {}\n", form.defines(), grouped as u32);
        Source::cuda(SOURCE, &defines)
    });
    let kernel = RawKernel {
        entry: "gemm_mma",
        wgsl: Source::NONE,
        cuda: source,
        units: THREADS,
        shared_bytes: SHARED_BYTES,
    };
    let tiles = tiling.tiles(m, n) * matrices * tiling.splits;
    gpu.launch_raw(
        cost,
        &kernel,
        CubeCount::Static(tiles as u32, 1, 1),
        &[
            call.a, call.b, call.c, call.pre, call.bias, call.extra, call.index, call.table,
        ],
        &cuda::scalars(call, tiling),
    );
}
