//! The product for Hopper: tiles of 128 × 256 or 128 × 128 by `wgmma`, operands through the copy engine, one block a
//! multiprocessor walking over its tiles (`shaders/cuda/gemm_wgmma.cu`).

use cubecl::prelude::CubeCount;

use super::cuda::{self, Form, Tiling};
use super::{Call, Gemm, Mat};
use crate::gpu::{Cost, Forms, Gpu, RawKernel, Source, Tensor, TensorMap};

const SOURCE: &str = concat!(
    include_str!("../../../shaders/cuda/include/gemm.cuh"),
    include_str!("../../../shaders/cuda/gemm_wgmma.cu")
);

/// Threads of a block: one warpgroup for the copies, two that multiply.
const THREADS: u32 = 384;
/// Rows of a tile, and depth of a step along k.
const ROWS: usize = 128;
const DEPTH: usize = 64;
/// Rows and columns of a box of an operand that lies with its rows along k.
const BOX: usize = 64;
/// The ring of stages, 192 KiB for either width, and its barriers.
pub(super) const SHARED_BYTES: usize = (192 << 10) + 128;
/// Fewest steps of a part of k: below, the sum of the parts costs what the cut saves.
const LEAST_STEPS: usize = 16;

/// Can the copy engine read both operands? Their rows must start at multiples of 16 bytes, and groups, whose offsets the
/// host does not know, may start anywhere.
pub(super) fn fits(product: &Gemm) -> bool {
    // Matrices that stand next to each other are closer than rows, which a tensor map does not say.
    let apart = |m: &Mat| m.batch == 1 || m.stride == 0 || m.stride >= m.ld;
    let operand = |m: &Mat| m.rows * m.cols > 0 && apart(m) && TensorMap::fits(&m.tensor, [m.stride, m.ld]);
    product.groups.is_none() && operand(&product.a) && operand(&product.b)
}

/// Wide tiles read less, narrow ones waste less at the edges and in the last round; a narrow one is counted as 0.55 of a
/// wide one: half of its work and more reads. An estimate, which no GPU has confirmed yet.
fn tiling(call: &Call<'_>, processors: usize) -> Tiling {
    let [m, n, matrices] = call.grid;
    let halves = 1 + call.config.gated as usize;
    let one = |width: usize| Tiling {
        rows: ROWS,
        columns: width / halves,
        depth: DEPTH,
        splits: 1,
    };
    let (wide, narrow) = (one(256), one(128));
    let rounds = |t: &Tiling| (t.tiles(m, n) * matrices).div_ceil(processors);
    let tiling = if rounds(&wide) * 20 <= rounds(&narrow) * 11 {
        wide
    } else {
        narrow
    };
    tiling.split(call, processors, LEAST_STEPS)
}

/// Writes C, or the parts of a product that is cut along k and returns these.
pub(super) fn launch_wgmma(gpu: &Gpu, cost: Cost, call: &Call<'_>) -> Option<Tensor> {
    let tiling = tiling(call, cuda::processors(gpu.caps()));
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
    let (s, cfg) = (&call.sizes, &call.config);
    let [m, n, matrices] = call.grid;
    let halves = 1 + cfg.gated as usize;
    let map = |tensor, mn: usize, mn_tile: usize, mn_major: bool, stride: usize, ld: usize| TensorMap {
        tensor,
        shape: if mn_major {
            [if stride == 0 { 1 } else { matrices }, s.k, mn]
        } else {
            [if stride == 0 { 1 } else { matrices }, mn, s.k]
        },
        strides: [stride, ld],
        tile: if mn_major { [DEPTH, BOX] } else { [mn_tile, DEPTH] },
    };
    let maps = [
        map(call.a, m, ROWS, cfg.a_transposed, s.stride_a, s.ld_a),
        map(
            call.b,
            n * halves,
            tiling.columns,
            !cfg.b_transposed,
            s.stride_b,
            s.ld_b,
        ),
    ];
    static FORMS: Forms<(Form, usize)> = Forms::new();
    let form = (Form::new(call), tiling.columns * halves);
    let source = FORMS.get(form, |(form, width)| {
        Source::cuda(SOURCE, &format!("{}#define TILE_N {width}\n", form.defines()))
    });
    let kernel = RawKernel {
        entry: "gemm_wgmma",
        wgsl: Source::NONE,
        cuda: source,
        units: THREADS,
        shared_bytes: SHARED_BYTES,
    };
    let tiles = tiling.tiles(m, n) * matrices * tiling.splits;
    let blocks = tiles.min(cuda::processors(gpu.caps())) as u32;
    gpu.launch_mapped(
        cost,
        &kernel,
        CubeCount::Static(blocks, 1, 1),
        &maps,
        &[call.c, call.pre, call.bias, call.extra, call.index],
        &cuda::scalars(call, tiling),
    );
}
