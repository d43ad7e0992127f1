//! Rotary positions on fused q | k | v rows, and the hand-over of k and v to the cache.
//!
//! ```text
//! (a, b) = (x[i], x[i + K/2])      θ = position · 10000^(-2i/K)
//! y[i] = a cos θ - b sin θ         y[i + K/2] = b cos θ + a sin θ
//! ```
//! `qkv [M, (Hq + 2 Hkv) K]` holds q heads, k heads, v heads. q is rotated in place. Without a cache k is rotated in
//! place too; with one, rotated k and plain v go to line `lines[m]` of `cache [R, 2 Hkv K]` and qkv keeps them as they
//! were. Backward is the rotation by `-θ`: it collects the gradients of k and v from the cache's gradient.
//! Angles are computed in float64 on the host and rounded once ([`Table`]): f32 angles lose 1e-5 at position 800.
//! Source: Su et al. 2021, half-split pairs as in Gemma.
//!
//! Cost: reads and writes the rows once.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Base of the wavelengths.
pub const BASE: f64 = 10_000.0;

/// Number and size of heads in fused rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heads {
    pub q: usize,
    pub kv: usize,
    /// Elements of one head.
    pub dim: usize,
}

impl Heads {
    /// Width of a fused q | k | v row.
    pub fn fused(self) -> usize {
        (self.q + 2 * self.kv) * self.dim
    }

    /// Width of all q heads: what attention puts out.
    pub fn q_width(self) -> usize {
        self.q * self.dim
    }

    /// Width of all k (or v) heads.
    pub fn kv_width(self) -> usize {
        self.kv * self.dim
    }

    /// q heads that share one k/v head.
    pub fn group(self) -> usize {
        self.q / self.kv
    }
}

/// Cosines and sines on the device: line `p` holds `cos θ_i` for `i < K/2`, then `sin θ_i`.
#[derive(Clone)]
pub struct Table {
    lines: Tensor,
}

impl Table {
    /// Angles for positions `first..first + count`.
    pub fn new(gpu: &Gpu, first: i64, count: usize, head_dim: usize) -> Table {
        let half = head_dim / 2;
        let mut lines = vec![0.0f32; count * head_dim];
        for p in 0..count {
            for i in 0..half {
                let angle = (first + p as i64) as f64 * libm::pow(BASE, -2.0 * i as f64 / head_dim as f64);
                lines[p * head_dim + i] = libm::cos(angle) as f32;
                lines[p * head_dim + half + i] = libm::sin(angle) as f32;
            }
        }
        let on_device = gpu.alloc_in(gpu.states(), DType::F32, [count, head_dim]);
        gpu.write_f32(&on_device, &lines);
        Table { lines: on_device }
    }

    /// Number of positions.
    pub fn len(&self) -> usize {
        self.lines.dim(0)
    }

    /// No positions at all?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Lines of a k | v cache.
#[derive(Clone, Copy)]
pub struct Cache<'a> {
    /// `[R, 2 Hkv K]`
    pub kv: &'a Tensor,
    /// Line of each row, u32 `[M]`.
    pub lines: &'a Tensor,
}

/// Rotates q (and k) of `qkv`; see the head of the file. `positions [M]` (u32) are lines of the table.
pub fn forward(gpu: &Gpu, heads: Heads, table: &Table, positions: &Tensor, qkv: &Tensor, cache: Option<Cache<'_>>) {
    run(gpu, heads, table, positions, qkv, cache, false);
}

/// Turns the gradient of the rotated rows into that of the rows, in place; `cache` holds the gradients of k and v.
pub fn backward(gpu: &Gpu, heads: Heads, table: &Table, positions: &Tensor, dqkv: &Tensor, cache: Option<Cache<'_>>) {
    run(gpu, heads, table, positions, dqkv, cache, true);
}

fn run(
    gpu: &Gpu,
    heads: Heads,
    table: &Table,
    positions: &Tensor,
    rows: &Tensor,
    cache: Option<Cache<'_>>,
    backward: bool,
) {
    let [m, width] = *rows.shape() else {
        panic!("rows are [M, (Hq + 2 Hkv) K], not {rows:?}")
    };
    assert_eq!(width, heads.fused());
    let kv = cache.map_or(rows, |c| c.kv);
    let lines = cache.map_or(positions, |c| c.lines);
    let tensors = [rows, kv, &table.lines];
    let lanes = Lanes::pick(gpu, &[heads.dim / 2], &tensors);
    // Without a cache v stays where it is.
    let touched = heads.q + heads.kv * if cache.is_some() { 2 } else { 1 };
    // A unit turns a vector of each half of a head, or moves them.
    let (count, dim) = lanes.grid(gpu, m * touched * heads.dim / 2);
    let moved = 2 * rows.bytes();
    let name = if backward { "rope_backward" } else { "rope" };
    let form = Form {
        heads,
        cached: cache.is_some(),
        backward,
    };
    launch!(
        gpu,
        Cost::moving(name, moved),
        rope_kernel,
        count,
        dim,
        [rows, &table.lines, positions, kv, lines],
        (m, form, lanes, lanes.types(tensors), lanes.sizes()),
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    heads: Heads,
    cached: bool,
    backward: bool,
}

/// A vector of the row, or, in backward passes, of the cache for what lies there.
#[cube]
#[allow(clippy::too_many_arguments)]
fn fetch<X: Numeric, C: Numeric, W: Size, N: Size>(
    rows: &View<Vector<X, W>>,
    kv: &View<Vector<C, W>>,
    at: usize,
    kv_at: usize,
    outside: bool,
    #[comptime] backward: bool,
    #[comptime] lanes: Lanes,
) -> Vector<f32, N> {
    if comptime!(backward) {
        if outside {
            load::<C, W, N>(kv, kv_at, lanes)
        } else {
            load::<X, W, N>(rows, at, lanes)
        }
    } else {
        load::<X, W, N>(rows, at, lanes)
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn rope_kernel<X: Numeric, C: Numeric, T: Numeric, W: Size, N: Size>(
    rows: &mut View<Vector<X, W>>,
    table: &View<Vector<T, W>>,
    positions: &View<u32>,
    kv: &mut View<Vector<C, W>>,
    lines: &View<u32>,
    m: usize,
    #[comptime] form: Form,
    #[comptime] lanes: Lanes,
    #[define(X, C, T)] _types: [StorageType; 3],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let heads = comptime!(form.heads);
    let half = comptime!(heads.dim / 2);
    let per_head = comptime!(half / lanes.count);
    let per_row = comptime!((heads.q + heads.kv * if form.cached { 2 } else { 1 }) * per_head);
    let row = ABSOLUTE_POS / per_row;
    let slot = ABSOLUTE_POS % per_row;
    let head = slot / per_head;
    let i = slot % per_head * lanes.count;
    if row < m {
        let at = rows.start() + row * comptime!(heads.fused()) + head * heads.dim + i;
        let is_q = head < heads.q;
        let is_v = head >= comptime!(heads.q + heads.kv);
        // Where k and v of this head live in the cache.
        let mut kv_at = kv.start() + i;
        if comptime!(form.cached) {
            kv_at += lines.get(row) as usize * comptime!(2 * heads.kv_width());
            if !is_q {
                kv_at += (head - heads.q) * heads.dim;
            }
        }
        let outside = !is_q && comptime!(form.cached);
        let mut first = fetch::<X, C, W, N>(rows, kv, at, kv_at, outside, form.backward, lanes);
        let mut second = fetch::<X, C, W, N>(rows, kv, at + half, kv_at + half, outside, form.backward, lanes);
        if !is_v {
            let line = table.start() + positions.get(row) as usize * heads.dim + i;
            let cos = load::<T, W, N>(table, line, lanes);
            let mut sin = load::<T, W, N>(table, line + half, lanes);
            if comptime!(form.backward) {
                // Not `-sin`: CUDA has no negation of vectors.
                sin *= Vector::new(-1.0);
            }
            let turned = first * cos - second * sin;
            second = second * cos + first * sin;
            first = turned;
        }
        if outside && comptime!(!form.backward) {
            store::<C, W, N>(kv, kv_at, first, lanes);
            store::<C, W, N>(kv, kv_at + half, second, lanes);
        } else {
            store::<X, W, N>(rows, at, first, lanes);
            store::<X, W, N>(rows, at + half, second, lanes);
        }
    }
}
