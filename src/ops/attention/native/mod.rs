//! Attention on tensor cores, in CUDA C++ (`shaders/cuda/attention_*.cu`): scores live in registers, keys pass through
//! shared memory once for all query heads that share them. bf16 heads of any even size up to 256, compute capability 8.0
//! and later.
//!
//! Rounding: probabilities and gradients of scores are rounded to bf16 before they are multiplied; sums, the softmax and
//! its statistics are f32.

/// The source of a kernel: what they share, then its file.
macro_rules! source {
    ($file:literal) => {
        concat!(
            include_str!("../../../../shaders/cuda/include/attention.cuh"),
            include_str!(concat!("../../../../shaders/cuda/", $file))
        )
    };
}

mod forward;
mod keys;
mod queries;
#[cfg(test)]
mod tests;

pub(super) use forward::forward;
pub(super) use keys::backward_keys;
pub(super) use queries::backward_queries;

use super::{Columns, Keys, Operand};
use crate::gpu::{DType, Forms, Gpu, RawKernel, Source, Tensor};
use crate::ops::rope::Heads;

/// Largest head whose rows of results fit into the registers of a warp.
const MAX_DIM: usize = 256;
/// A multiprocessor of every device since compute capability 8.0 can give a block this much shared memory.
const LEAST_SHARED: usize = 99 << 10;
/// Items of a sequence from which on tiles of 128 are better than more tiles of 64.
const MANY_ITEMS: usize = 512;

/// Can these heads of these operands be taken? `results` may also be f32.
pub(super) fn takes(gpu: &Gpu, heads: Heads, operands: &[Operand<'_>], results: &[Operand<'_>]) -> bool {
    let even = |(rows, columns): &Operand<'_>| {
        let start = |c: &usize| (rows.at() + c).is_multiple_of(2);
        rows.dim(1).is_multiple_of(2) && columns.iter().all(start)
    };
    gpu.caps().cuda_arch.is_some_and(|arch| arch >= 80)
        && gpu.caps().max_shared_bytes as usize >= LEAST_SHARED
        && heads.dim <= MAX_DIM
        && heads.dim.is_multiple_of(2)
        && operands.iter().all(|(rows, _)| rows.dtype() == DType::Bf16)
        && results
            .iter()
            .all(|(rows, _)| matches!(rows.dtype(), DType::Bf16 | DType::F32))
        && operands.iter().chain(results).all(even)
}

/// How the work is cut: a block has `rows` items (or keys) and walks over the other side `columns` at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Tiles {
    warps: usize,
    rows: usize,
    columns: usize,
    /// Tiles of the other side in shared memory: 2, one is loaded while one is worked on, or 1.
    stages: usize,
}

impl Tiles {
    const fn new(warps: usize, rows: usize, columns: usize, stages: usize) -> Tiles {
        Tiles {
            warps,
            rows,
            columns,
            stages,
        }
    }

    /// Shared memory in bytes for heads of `dim` when each of a block's rows needs `own` heads, and a column two heads and
    /// `more` bytes.
    fn shared_bytes(self, dim: usize, own: usize, more: usize) -> usize {
        own * self.rows * pitch(dim) * 2 + self.stages * self.columns * (2 * pitch(dim) * 2 + more)
    }

    /// The first of `choices` that fits.
    ///
    /// # Panics
    /// If none does: the last must fit into [`LEAST_SHARED`].
    fn first(gpu: &Gpu, choices: &[Tiles], bytes: impl Fn(Tiles) -> usize) -> Tiles {
        let limit = gpu.caps().max_shared_bytes as usize;
        let fits = |tiles: &&Tiles| bytes(**tiles) <= limit;
        *choices
            .iter()
            .find(fits)
            .expect("the smallest tiles fit into any device")
    }
}

/// Heads that the Hopper kernels take: their layout of registers is made for them.
const HOPPER_DIM: usize = 256;

/// Does the device have warpgroup products (compute capability 9.0 alone), `shared_bytes` for them, and are heads of 256
/// aligned?
fn hopper(gpu: &Gpu, heads: Heads, alignments: &[u32], shared_bytes: usize) -> bool {
    gpu.caps().cuda_arch == Some(90)
        && gpu.caps().max_shared_bytes as usize >= shared_bytes
        && heads.dim == HOPPER_DIM
        && alignments.iter().all(|&a| a == 1)
}

/// Elements of a head in shared memory, as in `attention.cuh`.
fn depth(dim: usize) -> usize {
    dim.next_multiple_of(if dim > 128 { 32 } else { 16 })
}

/// Elements from row to row of a tile.
fn pitch(dim: usize) -> usize {
    depth(dim) + 8
}

/// What a kernel has compiled in, with N definitions of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form<const N: usize> {
    heads: Heads,
    tiles: Tiles,
    /// Gradients are stored as f32.
    wide: bool,
    more: [(&'static str, u32); N],
}

impl<const N: usize> Form<N> {
    fn new(heads: Heads, tiles: Tiles, more: [(&'static str, u32); N]) -> Self {
        Form {
            heads,
            tiles,
            wide: false,
            more,
        }
    }

    /// Gradients as `rows` stores them.
    fn gradient(self, rows: &Tensor) -> Self {
        Form {
            wide: rows.dtype() == DType::F32,
            ..self
        }
    }

    /// One definition a line.
    fn defines(&self) -> String {
        let Form { heads, tiles, wide, .. } = *self;
        let numbers = [
            ("DIM", heads.dim),
            ("GROUP", heads.group()),
            ("Q_HEADS", heads.q),
            ("KV_HEADS", heads.kv),
            ("WARPS", tiles.warps),
            ("TILE_M", tiles.rows),
            ("TILE_N", tiles.columns),
            ("STAGES", tiles.stages),
        ];
        let more = self.more.map(|(name, value)| (name, value as usize));
        let lines = numbers
            .into_iter()
            .chain(more)
            .map(|(name, value)| format!("#define {name} {value}\n"));
        let gradient = if wide { "float" } else { "bf16" };
        lines.collect::<String>() + &format!("#define GRADIENT {gradient}\n")
    }
}

/// 1 if every head from these columns on starts at a multiple of 16 bytes.
fn aligned(rows: &Tensor, columns: &[usize], heads: Heads) -> u32 {
    let starts = columns.iter().map(|c| rows.at() + c);
    let eights = starts.chain([rows.dim(1), heads.dim]).all(|n| n.is_multiple_of(8));
    eights.into()
}

/// The kernel `entry` of `file` in this form; `forms` has those of all its files.
fn kernel<const N: usize>(
    forms: &Forms<(&'static str, Form<N>)>,
    (entry, file): (&'static str, &'static str),
    form: Form<N>,
    shared_bytes: usize,
) -> RawKernel {
    RawKernel {
        entry,
        wgsl: Source::NONE,
        cuda: forms.get((entry, form), |(_, form)| Source::cuda(file, &form.defines())),
        units: 32 * form.tiles.warps as u32,
        shared_bytes,
    }
}

/// First element and elements from row to row.
fn place(columns: Columns<'_>) -> [u32; 2] {
    [columns.rows.at() + columns.column, columns.ld()].map(|n| n as u32)
}

/// First elements of k and v, and elements from row to row.
fn places(keys: Keys<'_>) -> [u32; 3] {
    let at = keys.rows.at();
    [at + keys.k, at + keys.v, keys.ld()].map(|n| n as u32)
}

fn scale(heads: Heads) -> u32 {
    (1.0 / (heads.dim as f32).sqrt()).to_bits()
}
