//! Matrix product with a fused epilogue: `C = act(scale · (A·B + bias) + extra)`, or `C += A·B`.
//!
//! | form | A | B | used for |
//! |---|---|---|---|
//! | `nt` | `[m, k]` | `[n, k]` | `y = x Wᵀ` (weights are stored `[out, in]`) |
//! | `nn` | `[m, k]` | `[k, n]` | `dx = dy W` |
//! | `tn` | `[k, m]` | `[k, n]` | `dW += dyᵀ x` |
//! | `tt` | `[k, m]` | `[n, k]` | completeness |
//!
//! All operands may have a leading dimension larger than their width (a range of columns) and a batch. Storage is
//! f32, f16 or bf16, accumulation f32, always in the order of `k`: the result does not depend on the device's mood.
//!
//! Cost: `2·m·n·k` FLOPs per batch entry; each operand read or written once.
//!
//! The kernels share the epilogue and are picked by the capability table (`Kernel::pick`): for bf16 operands on CUDA
//! `wgmma` (Hopper) and `mma` (8.0 and later); else `plane` (software Vulkan), `tiled` (GPUs), `portable` (anything).

mod blocked;
mod call;
mod cooperative;
mod cuda;
#[cfg(test)]
mod cuda_tests;
mod emulated;
mod epilogue;
mod gated;
mod mat;
mod mma;
mod plane;
mod portable;
mod reduce;
mod run;
mod split;
mod sum;
#[cfg(test)]
mod tests;
mod tiled;
mod wgmma;
#[cfg(test)]
mod wgpu_tests;
mod wgsl;

pub use mat::Mat;
pub(crate) use sum::Parts;
pub use sum::Sum;

use call::{Call, Sizes};

use crate::gpu::{Caps, Gpu, Tensor};

/// Applied to the sum before it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Act {
    None,
    /// tanh-approximated GELU.
    Gelu,
    /// `x · sigmoid(x)`.
    Swish,
}

/// Which row of `extra` is added to row `i` of the product.
#[derive(Clone, Debug)]
pub enum RowMap {
    /// Row `i`: a residual.
    Same,
    /// Row `i % period`: position embeddings.
    Modulo(usize),
    /// Row `index[i]` (u32): a value shared by a group of rows.
    Index(Tensor),
}

/// Comptime form of [`RowMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Map {
    Same,
    Modulo,
    Index,
}

/// Everything that is compiled into a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Config {
    a_transposed: bool,
    b_transposed: bool,
    wide_a: bool,
    wide_b: bool,
    wide_c: bool,
    wide_extra: bool,
    batched: bool,
    grouped: bool,
    bias: bool,
    extra: Option<Map>,
    act: Act,
    /// Also store the value before `act`.
    pre: bool,
    accumulate: bool,
    scaled: bool,
    /// C is half as wide as the product: see [`Gemm::gated`].
    gated: bool,
}

impl Config {
    /// Element by element, whatever the operands would allow.
    fn narrow(self) -> Config {
        Config {
            wide_a: false,
            wide_b: false,
            wide_c: false,
            wide_extra: false,
            ..self
        }
    }
}

/// The kernels to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Tensor cores by four warps together, operands by the copy engine: bf16 on Hopper, rows at multiples of 16 bytes.
    Wgmma,
    /// Tensor cores by single warps: bf16 on CUDA devices from 8.0 on, any alignment.
    Mma,
    /// One plane a tile, operands broadcast between its units: fewest loads, for CPUs posing as GPUs.
    Plane,
    /// Matrix units by subgroups, hand-written for GPUs that wgpu drives: f16, and f32 where they take it.
    Cooperative,
    /// Large tiles in shared memory, hand-written for GPUs that wgpu drives.
    Blocked,
    /// Tiles in shared memory, for GPUs.
    Tiled,
    /// Registers only.
    Portable,
}

impl Kernel {
    /// The kernel for a product into `c` on a device: a table, not a race.
    fn pick(caps: &Caps, product: &Gemm, c: &Mat) -> Kernel {
        if let Some(native) = cuda::pick(caps, product, c) {
            return native;
        }
        match (caps.software, caps.plane) {
            (true, Some(4 | 8 | 16)) => Kernel::Plane,
            (true, _) => Kernel::Portable,
            (false, _) if cooperative::takes(caps, product, product.grid(c)) => Kernel::Cooperative,
            (false, _) if blocked::takes(caps, product.grid(c)) => Kernel::Blocked,
            (false, _) if caps.max_units >= tiled::UNITS && caps.max_shared_bytes >= tiled::SHARED_BYTES => {
                Kernel::Tiled
            }
            (false, _) => Kernel::Portable,
        }
    }
}

/// Products of different sizes in one launch: group `g` is described by row `g` of `table [groups, 6]` (u32):
/// offsets of its A, B and C from the starts of the operands, in elements, then m, n, k. Leading dimensions are those
/// of the operands.
#[derive(Clone, Debug)]
pub struct Groups {
    pub table: Tensor,
    /// Largest m and n of any group: the size of the launch.
    pub max_m: usize,
    pub max_n: usize,
    /// Sum of m·n·k over the groups, for the account.
    pub products: f64,
}

/// One product, under construction.
#[derive(Debug)]
pub struct Gemm {
    a: Mat,
    b: Mat,
    a_transposed: bool,
    b_transposed: bool,
    bias: Option<Mat>,
    extra: Option<(Mat, RowMap)>,
    act: Act,
    pre: Option<Mat>,
    scale: Option<f32>,
    kernel: Option<Kernel>,
    groups: Option<Groups>,
    gated: bool,
    name: &'static str,
}

/// `A [m,k] · B [n,k]ᵀ`
pub fn nt(a: impl Into<Mat>, b: impl Into<Mat>) -> Gemm {
    Gemm::new(a.into(), b.into(), false, true)
}

/// `A [m,k] · B [k,n]`
pub fn nn(a: impl Into<Mat>, b: impl Into<Mat>) -> Gemm {
    Gemm::new(a.into(), b.into(), false, false)
}

/// `A [k,m]ᵀ · B [k,n]`
pub fn tn(a: impl Into<Mat>, b: impl Into<Mat>) -> Gemm {
    Gemm::new(a.into(), b.into(), true, false)
}

/// `A [k,m]ᵀ · B [n,k]ᵀ`
pub fn tt(a: impl Into<Mat>, b: impl Into<Mat>) -> Gemm {
    Gemm::new(a.into(), b.into(), true, true)
}

impl Gemm {
    fn new(a: Mat, b: Mat, a_transposed: bool, b_transposed: bool) -> Gemm {
        Gemm {
            a,
            b,
            a_transposed,
            b_transposed,
            bias: None,
            extra: None,
            act: Act::None,
            pre: None,
            scale: None,
            kernel: None,
            groups: None,
            gated: false,
            name: "gemm",
        }
    }

    /// Adds `bias [n]` (or `[batch, n]`) to every row.
    #[must_use]
    pub fn bias(mut self, bias: &Tensor) -> Gemm {
        let n = bias.dim(bias.shape().len() - 1);
        self.bias = Some(Mat::from(&bias.view([bias.len() / n, 1, n])));
        self
    }

    /// Adds rows of `extra` after scaling.
    #[must_use]
    pub fn extra(mut self, extra: impl Into<Mat>, map: RowMap) -> Gemm {
        self.extra = Some((extra.into(), map));
        self
    }

    /// Adds `residual [m, n]`.
    #[must_use]
    pub fn residual(self, residual: impl Into<Mat>) -> Gemm {
        self.extra(residual, RowMap::Same)
    }

    /// Multiplies the product and the bias, not `extra`.
    #[must_use]
    pub fn scale(mut self, scale: f32) -> Gemm {
        self.scale = Some(scale);
        self
    }

    /// Applies `act` to the sum.
    #[must_use]
    pub fn act(mut self, act: Act) -> Gemm {
        self.act = act;
        self
    }

    /// Also stores the value before the activation, for its backward.
    #[must_use]
    pub fn save_pre(mut self, pre: &Tensor) -> Gemm {
        self.pre = Some(pre.into());
        self
    }

    /// Uses this kernel whatever the capability table says (tests, benches).
    #[must_use]
    pub fn with(mut self, kernel: Kernel) -> Gemm {
        self.kernel = Some(kernel);
        self
    }

    /// Many products of different sizes; operands then only give the buffers and leading dimensions.
    #[must_use]
    pub fn grouped(mut self, groups: Groups) -> Gemm {
        self.groups = Some(groups);
        self
    }

    /// Accounts the product under this name.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Gemm {
        self.name = name;
        self
    }

    /// `C = …`
    pub fn to(self, gpu: &Gpu, c: impl Into<Mat>) {
        self.run(gpu, c.into(), false);
    }

    /// `C += …`
    pub fn add_to(self, gpu: &Gpu, c: impl Into<Mat>) {
        self.run(gpu, c.into(), true);
    }
}
