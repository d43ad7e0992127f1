//! The product on matrix units that wgpu reaches, in WGSL: each subgroup has a block of a tile of C in cooperative
//! matrices, operands staged in shared memory (`shaders/wgsl/gemm_cooperative.wgsl`).
//!
//! Matrices of f16 take f16 operands; those of f32 (8 × 8, Apple's) any. Sums are f32.

use cubecl::prelude::CubeCount;

use super::wgsl::{self, Form};
use super::{Call, Gemm, emulated};
use crate::gpu::raw::fill_in;
use crate::gpu::{Caps, Cooperative, Cost, DType, Dialect, Forms, Gpu, RawKernel, Source, Tensor};

const STAGE: &str = include_str!("../../../shaders/wgsl/include/gemm_stage.wgsl");
const MAIN: &str = include_str!("../../../shaders/wgsl/gemm_cooperative.wgsl");

/// Depth of a slice along k.
const DEPTH: usize = 32;
/// Fewest rows and columns: below, most of a tile lies outside.
const LEAST: usize = 16;
/// What a source is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Layout {
    /// Side of a tile of C; it has two units a row.
    tile: usize,
    /// Side of a matrix, and whether it is of f16.
    side: usize,
    halves: bool,
    /// Blocks of a tile, one a subgroup, and how many of them lie side by side.
    blocks: usize,
    across: usize,
    dialect: Dialect,
}

impl Layout {
    fn new(units: Cooperative, tile: usize, side: u32, halves: bool) -> Layout {
        let blocks = (2 * tile / units.subgroup.max(1) as usize).clamp(1, 16);
        Layout {
            tile,
            side: side as usize,
            halves,
            blocks,
            // 2 of 2, 4 of 2 × 2, 8 of 2 × 4, 16 of 4 × 4.
            across: match blocks {
                0..=1 => 1,
                2..=4 => 2,
                _ => 4,
            },
            dialect: units.dialect,
        }
    }

    fn units(&self) -> usize {
        2 * self.tile
    }

    /// Rows and columns of a block.
    fn block(&self) -> [usize; 2] {
        [self.tile / (self.blocks / self.across), self.tile / self.across]
    }

    /// Elements of a staged slice, and from one of its lines to the next: matrices start at multiples of 16 bytes, and
    /// lines a bit further than a power of two.
    fn slice(&self, along_k: bool) -> [usize; 2] {
        let (lines, width) = if along_k {
            (self.tile, DEPTH)
        } else {
            (DEPTH, self.tile)
        };
        let step = width + if self.halves { 8 } else { 4 };
        [lines * step, step]
    }

    fn shared_bytes(&self, along_k: [bool; 2]) -> usize {
        let slices: usize = along_k.map(|along| self.slice(along)[0]).iter().sum();
        slices * if self.halves { 2 } else { 4 } + self.blocks * self.side * self.side * 4
    }

    fn fits(&self, caps: &Caps, along_k: [bool; 2]) -> bool {
        let [rows, columns] = self.block();
        caps.max_units as usize >= self.units()
            && caps.max_shared_bytes as usize >= self.shared_bytes(along_k)
            && rows.is_multiple_of(self.side)
            && columns.is_multiple_of(self.side)
    }
}

/// The layout for operands of these types on a device, if there is one.
fn layout(caps: &Caps, [a, b]: [&Tensor; 2], along_k: [bool; 2], grid: [usize; 3]) -> Option<Layout> {
    let units = caps.cooperative?;
    let halves = units.halves.filter(|_| [a, b].iter().all(|t| t.dtype() == DType::F16));
    let (side, halves) = halves
        .map(|side| (side, true))
        .or(units.floats.map(|side| (side, false)))?;
    let sides: &[usize] = if wgsl::fills_large_tiles(grid) {
        &[128, 64]
    } else {
        &[64]
    };
    sides
        .iter()
        .map(|&tile| Layout::new(units, tile, side, halves))
        .find(|layout| layout.fits(caps, along_k))
}

/// Has the device matrix units for this product?
pub(super) fn takes(caps: &Caps, product: &Gemm, grid: [usize; 3]) -> bool {
    let operands = [&product.a.tensor, &product.b.tensor];
    let along_k = [!product.a_transposed, product.b_transposed];
    caps.wgsl() && grid[0] >= LEAST && grid[1] >= LEAST && layout(caps, operands, along_k, grid).is_some()
}

/// # Panics
/// If the device has no matrix units for these operands: [`takes`] comes first.
pub(super) fn launch_cooperative(gpu: &Gpu, cost: Cost, call: &Call<'_>) {
    let form = Form::new(call);
    let layout = layout(gpu.caps(), [call.a, call.b], form.along_k(), call.grid).expect("matrix units");
    let [m, n, matrices] = call.grid;
    static FORMS: Forms<(Form, Layout)> = Forms::new();
    let kernel = RawKernel {
        entry: "gemm_cooperative",
        wgsl: FORMS.get((form, layout), |(form, layout)| Source::text(source(form, layout))),
        cuda: Source::NONE,
        units: layout.units() as u32,
        shared_bytes: 0,
    };
    let count = CubeCount::Static(
        n.div_ceil(layout.tile) as u32,
        m.div_ceil(layout.tile) as u32,
        matrices as u32,
    );
    let buffers = wgsl::buffers(call);
    gpu.launch_raw(cost, &kernel, count, &buffers, &wgsl::scalars(call, layout.tile));
}

/// WGSL's names for a load and a store of a matrix whose rows (or columns) are the lines in memory.
fn names(dialect: Dialect, by_rows: bool) -> [&'static str; 2] {
    let documented = matches!(dialect, Dialect::Vulkan | Dialect::Emulated(_));
    match by_rows == documented {
        true => ["coopLoadT", "coopStoreT"],
        false => ["coopLoad", "coopStore"],
    }
}

fn source(form: &Form, layout: &Layout) -> String {
    let number = |n: usize| format!("{n}u");
    let of = if layout.halves { "f16" } else { "f32" };
    let [along_a, along_b] = form.along_k();
    let (slice_a, slice_b) = (layout.slice(along_a), layout.slice(along_b));
    let staged = |along_k: bool, [size, step]: [usize; 2]| {
        let width = number(if along_k { DEPTH } else { layout.tile });
        [
            ("T", of.to_owned()),
            ("WIDTH", width),
            ("STEP", number(step)),
            ("SIZE", size.to_string()),
        ]
    };
    let (values_a, values_b) = (staged(along_a, slice_a), staged(along_b, slice_b));
    let slices = form.operands(STAGE, [&borrowed(&values_a), &borrowed(&values_b)]);
    let [rows, columns] = layout.block();
    let [zero, multiply, store] = on_matrices(layout, [along_a, along_b], [slice_a[1], slice_b[1]]);
    let main = [
        ("MATRIX", format!("coop_mat{0}x{0}", layout.side)),
        ("T", of.to_owned()),
        ("UNITS", layout.units().to_string()),
        ("TILE", layout.tile.to_string()),
        ("SIDE", layout.side.to_string()),
        ("BLOCKS", layout.blocks.to_string()),
        ("ACROSS", layout.across.to_string()),
        ("BLOCK_ROWS", rows.to_string()),
        ("BLOCK_COLUMNS", columns.to_string()),
        ("MATRICES_DOWN", (rows / layout.side).to_string()),
        ("MATRICES_ACROSS", (columns / layout.side).to_string()),
        ("SUMS", (layout.blocks * layout.side * layout.side).to_string()),
        ("ZERO", zero),
        ("MULTIPLY", multiply),
        ("STORE", store),
    ];
    let halves: &[&str] = if layout.halves { &["f16"] } else { &[] };
    let extensions = [&["wgpu_cooperative_matrix"], halves].concat();
    let text = form.common(&extensions) + &slices + &fill_in(MAIN, &[], &borrowed(&main));
    match layout.dialect {
        Dialect::Vulkan | Dialect::Metal => text,
        Dialect::Emulated(lanes) => emulated::plain(&text, lanes as usize, layout.side, true),
        Dialect::EmulatedMetal(lanes) => emulated::plain(&text, lanes as usize, layout.side, false),
    }
}

fn borrowed<'a>(values: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    values.iter().map(|(name, value)| (*name, &**value)).collect()
}

/// The statements on a block's matrices: zero them, multiply a step of a slice, store them.
fn on_matrices(layout: &Layout, [along_a, along_b]: [bool; 2], [step_a, step_b]: [usize; 2]) -> [String; 3] {
    let side = layout.side;
    let [rows, columns] = layout.block().map(|n| n / side);
    let [load_a, _] = names(layout.dialect, along_a);
    let [load_b, _] = names(layout.dialect, !along_b);
    let [load_c, store_c] = names(layout.dialect, true);
    let (mut zero, mut multiply, mut store) = (String::new(), String::new(), String::new());
    for i in 0..rows {
        let at = match along_a {
            true => format!("(row0 + {}u) * {step_a}u + r", i * side),
            false => format!("r * {step_a}u + row0 + {}u", i * side),
        };
        multiply += &format!("                let a{i} = {load_a}<MatrixA>(&tile_a[{at}], {step_a}u);\n");
    }
    for j in 0..columns {
        let at = match along_b {
            true => format!("(col0 + {}u) * {step_b}u + r", j * side),
            false => format!("r * {step_b}u + col0 + {}u", j * side),
        };
        multiply += &format!("                let b{j} = {load_b}<MatrixB>(&tile_b[{at}], {step_b}u);\n");
    }
    for i in 0..rows {
        for j in 0..columns {
            let s = format!("s{i}_{j}");
            zero += &format!("        var {s} = {load_c}<MatrixC>(&sums[0u], SIDE);\n");
            multiply += &format!("                {s} = coopMultiplyAdd(a{i}, b{j}, {s});\n");
            store += &format!(
                "                    case {}u: {{\n                        {store_c}({s}, &sums[subgroup * WHOLE], SIDE);\n\
                 {}}}\n",
                i * columns + j,
                " ".repeat(20),
            );
        }
    }
    [zero, multiply, store]
}
