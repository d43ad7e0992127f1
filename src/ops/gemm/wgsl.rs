//! What the hand-written WGSL kernels share: buffers, compiled-in forms and scalars. The other half is
//! `shaders/wgsl/include/gemm.wgsl`.

use super::{Act, Call, Map};
use crate::gpu::raw::fill_in;
use crate::gpu::{DType, Tensor};

const COMMON: &str = include_str!("../../../shaders/wgsl/include/gemm.wgsl");
const READ: &str = include_str!("../../../shaders/wgsl/include/gemm_read.wgsl");

/// The form of a launch: all that its source depends on, apart from the kernel's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Names of the buffers and the types of their elements, in order.
    buffers: Vec<(&'static str, &'static str)>,
    flags: Vec<&'static str>,
    /// Four neighbours at a time.
    quad_a: bool,
    quad_b: bool,
    quad_c: bool,
    half_c: bool,
}

/// Fewest tiles of 128 × 128: with less, most of a GPU has none, and tiles of 64 are four times as many.
const LEAST_TILES: usize = 24;

/// Is a product (rows, columns, matrices) large enough for tiles with sides of 128?
pub(super) fn fills_large_tiles([m, n, matrices]: [usize; 3]) -> bool {
    let padded = |side: usize| m.next_multiple_of(side) * n.next_multiple_of(side);
    // What lies beyond the edges costs as much as what is inside; a tile of 64 costs up to twice as much an element.
    m.div_ceil(128) * n.div_ceil(128) * matrices >= LEAST_TILES && padded(128) < 2 * padded(64)
}

/// Four elements as one vector: of `inner` neighbours, with these distances between lines and matrices.
fn quads(tensor: &Tensor, inner: usize, strides: &[usize]) -> bool {
    tensor.at().is_multiple_of(4) && inner.is_multiple_of(4) && strides.iter().all(|s| s.is_multiple_of(4))
}

/// WGSL's name for a type.
fn scalar(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "f16",
        _ => "f32",
    }
}

impl Form {
    pub(super) fn new(call: &Call<'_>) -> Form {
        let (cfg, s) = (&call.config, &call.sizes);
        // Groups may start and end anywhere.
        let whole = !cfg.grouped;
        let (inner_a, inner_b) = (
            if cfg.a_transposed { s.m } else { s.k },
            if cfg.b_transposed { s.k } else { s.n },
        );
        let quad_a = whole && quads(call.a, inner_a, &[s.ld_a, s.stride_a]);
        let quad_b = whole && quads(call.b, inner_b, &[s.ld_b, s.stride_b]);
        let quad_c = whole
            && quads(call.c, s.n, &[s.ld_c, s.stride_c])
            && (!cfg.pre || quads(call.pre, s.n, &[s.ld_pre, s.stride_pre]))
            && (!cfg.bias || quads(call.bias, s.n, &[s.stride_bias]))
            && (cfg.extra.is_none() || quads(call.extra, s.n, &[s.ld_extra, s.stride_extra]));
        let of = |tensor: &Tensor, quad: bool| match (tensor.dtype(), quad) {
            (DType::F16, true) => "vec4<f16>",
            (_, true) => "vec4<f32>",
            (dtype, false) => scalar(dtype),
        };
        let index = cfg.extra == Some(Map::Index);
        let present = [
            ("a", true, of(call.a, quad_a)),
            ("b", true, of(call.b, quad_b)),
            ("c", true, of(call.c, quad_c)),
            ("bias", cfg.bias, of(call.bias, quad_c)),
            ("extra", cfg.extra.is_some(), of(call.extra, quad_c)),
            ("pre", cfg.pre, of(call.pre, quad_c)),
            ("index", index, "u32"),
            ("table", cfg.grouped, "u32"),
        ];
        let flags = [
            ("GROUPED", cfg.grouped),
            ("BIAS", cfg.bias),
            ("SCALED", cfg.scaled),
            ("EXTRA", cfg.extra.is_some()),
            ("MODULO", cfg.extra == Some(Map::Modulo)),
            ("INDEX", index),
            ("PRE", cfg.pre),
            ("GELU", cfg.act == Act::Gelu),
            ("SWISH", cfg.act == Act::Swish),
            ("PLAIN", cfg.act == Act::None),
            ("ACCUMULATE", cfg.accumulate),
            ("QUAD_C", quad_c),
            ("ALONG_M", cfg.a_transposed),
            ("ALONG_N", !cfg.b_transposed),
        ];
        Form {
            buffers: present
                .into_iter()
                .filter(|(_, used, _)| *used)
                .map(|(name, _, of)| (name, of))
                .collect(),
            flags: flags.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect(),
            quad_a,
            quad_b,
            quad_c,
            half_c: call.c.dtype() == DType::F16,
        }
    }

    /// Declarations of the buffers, the part that all kernels share, and how they read A and B.
    pub(super) fn common(&self, extensions: &[&str]) -> String {
        let mut text = String::new();
        let halves = self.buffers.iter().any(|(_, of)| of.contains("f16"));
        for extension in extensions.iter().copied().chain(halves.then_some("f16")) {
            text += &format!("enable {extension};\n");
        }
        for (slot, (name, of)) in self.buffers.iter().enumerate() {
            text += &format!("@group(0) @binding({slot}) var<storage, read_write> {name}: array<{of}>;\n");
        }
        let slot = self.buffers.len();
        text += &format!("@group(0) @binding({slot}) var<storage, read> info: array<u32>;\n\n");
        let (of_sum, of_c, per) = match (self.quad_c, self.half_c) {
            (true, true) => ("vec4<f32>", "vec4<f16>", "4u"),
            (true, false) => ("vec4<f32>", "vec4<f32>", "4u"),
            (false, true) => ("f32", "f16", "1u"),
            (false, false) => ("f32", "f32", "1u"),
        };
        text += &fill_in(COMMON, &self.flags, &[("V", of_sum), ("C", of_c), ("PER", per)]);
        for (name, quad) in [("a", self.quad_a), ("b", self.quad_b)] {
            text += &fill_in(READ, if quad { &["QUAD"] } else { &[] }, &[("X", name)]);
        }
        text
    }

    /// Do the lines of A, and those of B, run along k?
    pub(super) fn along_k(&self) -> [bool; 2] {
        [!self.flags.contains(&"ALONG_M"), !self.flags.contains(&"ALONG_N")]
    }

    /// A kernel's text about one operand, written for both of them, and what else it names.
    pub(super) fn operands(&self, text: &str, more: [&[(&str, &str)]; 2]) -> String {
        let [along_a, along_b] = self.along_k();
        let [more_a, more_b] = more;
        let one = |names: [(&str, &str); 3], more: &[(&str, &str)], along_k: bool| {
            let flags: &[&str] = if along_k { &["ALONG_K"] } else { &[] };
            fill_in(text, flags, &[&names, more].concat())
        };
        one([("X", "a"), ("LD", "LD_A"), ("ROWS", "p.m")], more_a, along_a)
            + &one([("X", "b"), ("LD", "LD_B"), ("ROWS", "p.n")], more_b, along_b)
    }
}

/// The buffers of a launch, in the order of the declarations.
pub(super) fn buffers<'a>(call: &Call<'a>) -> Vec<&'a Tensor> {
    let cfg = &call.config;
    [
        (call.a, true),
        (call.b, true),
        (call.c, true),
        (call.bias, cfg.bias),
        (call.extra, cfg.extra.is_some()),
        (call.pre, cfg.pre),
        (call.index, cfg.extra == Some(Map::Index)),
        (call.table, cfg.grouped),
    ]
    .into_iter()
    .filter(|(_, used)| *used)
    .map(|(tensor, _)| tensor)
    .collect()
}

/// `info` of `gemm.wgsl`, for tiles with sides of `side`.
pub(super) fn scalars(call: &Call<'_>, side: usize) -> Vec<u32> {
    let (s, [m, n, _]) = (&call.sizes, call.grid);
    let tiles = [m, n].map(|lines| lines.div_ceil(side));
    let words = [s.m, s.n, s.k].into_iter().chain(call.places());
    let words = words.map(|word| word as u32).chain([call.scale.to_bits()]);
    words.chain(tiles.map(|count| count as u32)).collect()
}
