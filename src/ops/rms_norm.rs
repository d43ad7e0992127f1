//! RMS normalisation with the scale stored as an offset from one, and its adaptive form.
//!
//! ```text
//! x̂ = x / sqrt(mean(x²) + ε)            ε = 1e-6, mean over the width D
//! y = x̂ (1 + w)                          plain:    w [D]
//! y = x̂ (1 + scale_g) + shift_g          adaptive: modulation [G, 3D] = scale | shift | gate of row group g
//!
//! g = dy (1 + w)     dx = (g - x̂ mean(g x̂)) / sqrt(…)      dw += Σ_rows dy x̂      dshift += Σ_rows dy
//! ```
//! x, y, dy, dx `[M, D]`. The gate is applied by [`gated_residual`](super::gated_residual), not here.
//! Source: Zhang & Sennrich 2019; Gemma's `1 + w`; π₀.₅'s adaRMS (openpi `gemma.py`).
//!
//! x and dx are a residual stream and may be of a wider type than y and dy; backward then writes dx in both.
//!
//! The kernels are in `rms_norm/kernels.rs`, those that also add up a product's parts in `rms_norm/sum.rs`.
//!
//! Cost: memory bound; forward reads x and writes y, backward reads x, dy (and a residual) and writes dx.

mod kernels;
mod sum;

pub use sum::{backward_sum, forward_sum};

use kernels::{BackwardParts, rms_norm_backward, rms_norm_forward};

use super::column_sum::{self, Term};
use super::lanes::Lanes;
use super::rows::RowLayout;
use crate::gpu::launch::launch;
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Added to the mean square.
pub const EPS: f32 = 1e-6;

/// Where a row's scale and shift come from.
#[derive(Clone, Copy, Debug)]
pub enum Modulation<'a> {
    /// One scale `[D]` for all rows.
    Plain(&'a Tensor),
    /// `table [G, 3D]`; row `m` uses row `groups[m]` (u32 `[M]`).
    Adaptive { table: &'a Tensor, groups: &'a Tensor },
}

impl<'a> Modulation<'a> {
    fn table(&self) -> &'a Tensor {
        match *self {
            Modulation::Plain(w) => w,
            Modulation::Adaptive { table, .. } => table,
        }
    }

    /// The group index, or a stand-in that the kernel does not touch.
    fn groups(&self) -> &'a Tensor {
        match *self {
            Modulation::Plain(w) => w,
            Modulation::Adaptive { groups, .. } => groups,
        }
    }

    fn adaptive(&self) -> bool {
        matches!(self, Modulation::Adaptive { .. })
    }
}

/// `y = norm(x)`
pub fn forward(gpu: &Gpu, x: &Tensor, modulation: Modulation<'_>, y: &Tensor) {
    let [m, d] = *x.shape() else {
        panic!("x is [M, D], not {x:?}")
    };
    let tensors = [x, modulation.table(), y];
    let lanes = Lanes::pick(gpu, &[d], &tensors);
    let layout = RowLayout::of_lanes(gpu, d, lanes);
    launch!(
        gpu,
        Cost::moving("rms_norm", x.bytes() + y.bytes()),
        rms_norm_forward,
        layout.count(gpu, m),
        layout.dim(),
        [x, modulation.table(), modulation.groups(), y],
        (
            m,
            d,
            layout,
            modulation.adaptive(),
            lanes,
            lanes.types(tensors),
            lanes.sizes()
        ),
    );
}

/// What [`backward`] reads and writes.
pub struct Backward<'a> {
    pub x: &'a Tensor,
    pub modulation: Modulation<'a>,
    pub dy: &'a Tensor,
    /// Gradient that reaches x around the norm (the residual), added to dx.
    pub around: Option<&'a Tensor>,
    pub dx: &'a Tensor,
    /// dx again in another type, for products that read it.
    pub rounded: Option<&'a Tensor>,
    /// The forward result again, for the weight gradient of the layer behind the norm.
    pub y: Option<&'a Tensor>,
    /// `1 / sqrt(mean(x²) + ε)` per row `[M]` f32, for [`backward_scale`].
    pub rstd: Option<&'a Tensor>,
}

/// Gradient with respect to x.
pub fn backward(gpu: &Gpu, b: Backward<'_>) {
    let [m, d] = *b.x.shape() else {
        panic!("x is [M, D], not {:?}", b.x)
    };
    let b = b.filled();
    let tensors = [b.x, b.table, b.dy, b.around, b.dx, b.rounded, b.y];
    let lanes = Lanes::pick(gpu, &[d], &tensors);
    let layout = RowLayout::of_lanes(gpu, d, lanes);
    launch!(
        gpu,
        Cost::moving("rms_norm_backward", b.moved),
        rms_norm_backward,
        layout.count(gpu, m),
        layout.dim(),
        [b.x, b.table, b.groups, b.dy, b.around, b.dx, b.rounded, b.y, b.rstd],
        (
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

/// Operands of [`backward`] as its kernels have them, with stand-ins that they do not touch.
struct Filled<'a> {
    x: &'a Tensor,
    table: &'a Tensor,
    groups: &'a Tensor,
    dy: &'a Tensor,
    around: &'a Tensor,
    dx: &'a Tensor,
    rounded: &'a Tensor,
    y: &'a Tensor,
    rstd: &'a Tensor,
    adaptive: bool,
    parts: BackwardParts,
    /// Bytes read and written.
    moved: u64,
}

impl<'a> Backward<'a> {
    fn filled(&self) -> Filled<'a> {
        let moved = [
            Some(self.x),
            Some(self.dy),
            self.around,
            Some(self.dx),
            self.rounded,
            self.y,
        ];
        Filled {
            x: self.x,
            table: self.modulation.table(),
            groups: self.modulation.groups(),
            dy: self.dy,
            around: self.around.unwrap_or(self.dy),
            dx: self.dx,
            rounded: self.rounded.unwrap_or(self.dx),
            y: self.y.unwrap_or(self.dx),
            rstd: self.rstd.unwrap_or(self.dx),
            adaptive: self.modulation.adaptive(),
            parts: BackwardParts {
                around: self.around.is_some(),
                rounded: self.rounded.is_some(),
                y: self.y.is_some(),
                rstd: self.rstd.is_some(),
            },
            moved: moved.into_iter().flatten().map(Tensor::bytes).sum(),
        }
    }
}

/// `dw [D] += Σ_rows dy x̂`, from the `rstd` that [`backward`] left.
pub fn backward_scale(gpu: &Gpu, x: &Tensor, rstd: &Tensor, dy: &Tensor, dw: &Tensor) {
    column_sum::accumulate(gpu, Term::Product { dy, x, rstd }, dw);
}

/// `dtable [G, 3D]`: scale and shift parts, summed over the rows of each group. `starts [G + 1]` (u32) are the first
/// rows of the groups, which must be contiguous; the gate part is left as it is.
pub fn backward_modulation(gpu: &Gpu, x: &Tensor, rstd: &Tensor, dy: &Tensor, starts: &Tensor, dtable: &Tensor) {
    let d = x.dim(1);
    column_sum::grouped(gpu, Term::Product { dy, x, rstd }, starts, dtable, 0, 3 * d);
    column_sum::grouped(gpu, Term::Plain { dy }, starts, dtable, d, 3 * d);
}

/// A tensor for [`Backward::rstd`].
pub fn rstd(gpu: &Gpu, rows: usize) -> Tensor {
    gpu.alloc(DType::F32, [rows])
}
