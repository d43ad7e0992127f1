//! The product for GPUs that wgpu drives, in WGSL: 128 × 128 tiles of C, an 8 × 8 block per unit, 16-byte loads, slices of
//! 8 along k staged twice in shared memory (`shaders/wgsl/gemm_blocked.wgsl`).

use cubecl::prelude::CubeCount;

use super::Call;
use super::wgsl::{self, Form};
use crate::gpu::{Caps, Cost, Forms, Gpu, RawKernel, Source};

const SLICE: &str = include_str!("../../../shaders/wgsl/include/gemm_slice.wgsl");
const MAIN: &str = include_str!("../../../shaders/wgsl/gemm_blocked.wgsl");

/// Side of a workgroup's tile of C.
const TILE: usize = 128;
/// Units of a workgroup.
const UNITS: u32 = 256;
/// Shared memory of a workgroup: two slices of each operand, 8 deep, f32.
const SHARED_BYTES: u32 = 2 * 2 * 8 * TILE as u32 * 4;
/// Has the device what the kernel needs, and is the product large enough for it?
pub(super) fn takes(caps: &Caps, grid: [usize; 3]) -> bool {
    caps.wgsl() && caps.max_units >= UNITS && caps.max_shared_bytes >= SHARED_BYTES && wgsl::fills_large_tiles(grid)
}

pub(super) fn launch_blocked(gpu: &Gpu, cost: Cost, call: &Call<'_>) {
    let [m, n, matrices] = call.grid;
    static FORMS: Forms<Form> = Forms::new();
    let kernel = RawKernel {
        entry: "gemm_blocked",
        wgsl: FORMS.get(Form::new(call), |form| Source::text(source(form))),
        cuda: Source::NONE,
        units: UNITS,
        shared_bytes: 0,
    };
    let count = CubeCount::Static(n.div_ceil(TILE) as u32, m.div_ceil(TILE) as u32, matrices as u32);
    let buffers = wgsl::buffers(call);
    gpu.launch_raw(cost, &kernel, count, &buffers, &wgsl::scalars(call, TILE));
}

fn source(form: &Form) -> String {
    // Two runs of four rows by two of four columns: sum 2·i + j is row i, run of columns j.
    let (mut multiply, mut store) = (String::new(), String::new());
    for i in 0..8 {
        let (run, lane) = (i / 4, ["x", "y", "z", "w"][i % 4]);
        for j in 0..2 {
            let at = 2 * i + j;
            multiply += &format!("            s[{at}] = fma(vec4<f32>(a{run}.{lane}), b{j}, s[{at}]);\n");
            store += &format!("            case {at}u: {{\n                sum = s[{at}];\n            }}\n");
        }
    }
    let slices = form.operands(SLICE, [&[("FIRST_UNIT", "0u")], &[("FIRST_UNIT", "64u")]]);
    let main = crate::gpu::raw::fill_in(MAIN, &[], &[("MULTIPLY", &multiply), ("STORE", &store)]);
    form.common(&[]) + &slices + &main
}
