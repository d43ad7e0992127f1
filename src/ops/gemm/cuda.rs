//! What the kernels for CUDA's tensor cores share: when they apply, how a product is cut, what is compiled in, and
//! their scalars. The other half is `shaders/cuda/include/gemm.cuh`.

use super::{Act, Call, Config, Gemm, Kernel, Map, Mat, mma, wgmma};
use crate::gpu::{Caps, DType, Tensor};

/// Most rows of tiles walked together. Tiles are twice as wide as high or square, and some 132 are under way at a time:
/// about 16 rows of them read the least.
const BAND: usize = 16;
/// Multiprocessors of a device that does not say.
const PROCESSORS: usize = 108;

/// The native kernel for a product, if there is one: operands in bf16, the rest in bf16 or f32.
pub(super) fn pick(caps: &Caps, product: &Gemm, c: &Mat) -> Option<Kernel> {
    let arch = caps.cuda_arch?;
    let bf16 = |m: &Mat| m.tensor.dtype() == DType::Bf16;
    let stored = |m: &Mat| matches!(m.tensor.dtype(), DType::Bf16 | DType::F32);
    let extra = product.extra.as_ref().map(|(m, _)| m);
    let types = bf16(&product.a)
        && bf16(&product.b)
        && [Some(c), product.bias.as_ref(), extra]
            .into_iter()
            .flatten()
            .all(stored)
        && product
            .pre
            .as_ref()
            .is_none_or(|p| p.tensor.dtype() == c.tensor.dtype());
    if arch < 80 || !types || caps.max_shared_bytes < mma::SHARED_BYTES as u32 {
        return None;
    }
    // wgmma exists on 9.0 alone.
    match arch == 90 && caps.max_shared_bytes >= wgmma::SHARED_BYTES as u32 && wgmma::fits(product) {
        true => Some(Kernel::Wgmma),
        false => Some(Kernel::Mma),
    }
}

/// Multiprocessors, the number of tiles that are under way at a time.
pub(super) fn processors(caps: &Caps) -> usize {
    caps.multiprocessors.map_or(PROCESSORS, |n| n.max(1) as usize)
}

/// How a product is cut: by its shape and the number of multiprocessors alone, so that sums have one order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiling {
    /// Rows and columns of C in a tile.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Depth of a step along k.
    pub(super) depth: usize,
    /// Parts that k is cut in; each gives sums of its own.
    pub(super) splits: usize,
}

impl Tiling {
    /// Tiles of one product, all of k.
    pub(super) fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.columns)
    }

    /// Where a single product has too few tiles for the device, and k is long enough for each part to have
    /// `least` steps, it is cut along k.
    pub(super) fn split(self, call: &Call<'_>, processors: usize, least: usize) -> Tiling {
        let [m, n, matrices] = call.grid;
        if matrices > 1 || call.config.grouped || call.config.gated {
            return self;
        }
        let steps = call.sizes.k.div_ceil(self.depth);
        let most = (processors / self.tiles(m, n)).min(steps / least);
        // As many as are needed for the longest part to be as short as it can be: none is empty.
        let splits = if most < 2 {
            1
        } else {
            steps.div_ceil(steps.div_ceil(most))
        };
        Tiling { splits, ..self }
    }
}

/// What is compiled into both kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    config: Config,
    /// Types of C, and of what the epilogue reads.
    c: DType,
    bias: Option<DType>,
    extra: Option<DType>,
    vectors: bool,
}

impl Form {
    pub(super) fn new(call: &Call<'_>) -> Form {
        let config = call.config;
        // Stand-ins for absent operands are never read.
        let of = |t: &Tensor, used: bool| used.then(|| t.dtype());
        Form {
            config,
            c: call.c.dtype(),
            bias: of(call.bias, config.bias),
            extra: of(call.extra, config.extra.is_some()),
            vectors: vectors(call),
        }
    }

    /// One definition a line.
    pub(super) fn defines(&self) -> String {
        let cfg = &self.config;
        let name = |dtype: Option<DType>| match dtype {
            Some(DType::Bf16) => "bf16",
            _ => "float",
        };
        let extra = match cfg.extra {
            None => 0,
            Some(Map::Same) => 1,
            Some(Map::Modulo) => 2,
            Some(Map::Index) => 3,
        };
        let act = match cfg.act {
            Act::None => 0,
            Act::Gelu => 1,
            Act::Swish => 2,
        };
        let types = [
            ("TYPE_C", name(Some(self.c))),
            ("TYPE_BIAS", name(self.bias)),
            ("TYPE_EXTRA", name(self.extra)),
        ];
        let numbers = [
            ("MN_A", cfg.a_transposed as u32),
            ("MN_B", !cfg.b_transposed as u32),
            ("BIAS", cfg.bias as u32),
            ("SCALED", cfg.scaled as u32),
            ("EXTRA", extra),
            ("PRE", cfg.pre as u32),
            ("ACT", act),
            ("ACCUMULATE", cfg.accumulate as u32),
            ("GATED", cfg.gated as u32),
            ("WIDE", self.vectors as u32),
        ];
        let types = types
            .into_iter()
            .map(|(name, value)| format!("#define {name} {value}\n"));
        let numbers = numbers
            .into_iter()
            .map(|(name, value)| format!("#define {name} {value}\n"));
        types.chain(numbers).collect()
    }
}

/// May the epilogue move 8 bytes of C and of what is stored before the activation, and pairs of the rest?
fn vectors(call: &Call<'_>) -> bool {
    let (s, cfg) = (&call.sizes, &call.config);
    let whole = |t: &Tensor, strides: &[usize], of: usize| {
        t.at().is_multiple_of(of) && strides.iter().all(|s| s.is_multiple_of(of))
    };
    let vector = 8 / call.c.dtype().bytes() as usize;
    // Groups may start anywhere.
    !cfg.grouped
        && whole(call.c, &[s.n, s.ld_c, s.stride_c], vector)
        && (!cfg.pre || whole(call.pre, &[s.ld_pre, s.stride_pre], vector))
        && (!cfg.bias || whole(call.bias, &[s.stride_bias], 2))
        && (cfg.extra.is_none() || whole(call.extra, &[s.ld_extra, s.stride_extra], 2))
}

/// `info_st` of `gemm.cuh`.
pub(super) fn scalars(call: &Call<'_>, tiling: &Tiling) -> Vec<u32> {
    let (k, [m, n, matrices]) = (call.sizes.k, call.grid);
    let bands = m.div_ceil(tiling.rows).div_ceil(BAND).max(1);
    let walk = [
        tiling.splits,
        k.div_ceil(tiling.depth).div_ceil(tiling.splits),
        m.div_ceil(tiling.rows).div_ceil(bands),
    ];
    let words = [m, n, k, matrices].into_iter().chain(call.places()).chain(walk);
    words.map(|word| word as u32).chain([call.scale.to_bits()]).collect()
}
