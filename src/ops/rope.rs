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

use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};

/// Base of the wavelengths.
pub const BASE: f64 = 10_000.0;
/// Units of a workgroup.
const UNITS: usize = 64;

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
    let wide = is_wide(gpu, heads.dim / 2, &[rows, &table.lines, kv]) && heads.dim.is_multiple_of(4);
    let types = [storage(rows, wide), storage(kv, wide), storage(&table.lines, wide)];
    // A unit turns two pairs, or moves two pairs of v.
    let per_head = heads.dim.div_ceil(4);
    // Without a cache v stays where it is.
    let touched = heads.q + heads.kv * if cache.is_some() { 2 } else { 1 };
    let count = gpu.cubes(m * touched * per_head, UNITS);
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
        CubeDim::new_1d(UNITS as u32),
        [rows, &table.lines, positions, kv, lines],
        (m, form, wide, types),
    );
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    heads: Heads,
    cached: bool,
    backward: bool,
}

/// A pair of the row, or of the cache where `cached` (never in a forward pass).
#[cube]
#[allow(clippy::too_many_arguments)]
fn fetch<X: Numeric, C: Numeric>(
    rows: &View<X>,
    kv: &View<C>,
    at: usize,
    kv_at: usize,
    cached: bool,
    more: bool,
    #[comptime] backward: bool,
    #[comptime] wide: bool,
) -> Pair {
    let mut pair = Pair { a: 0.0, b: 0.0 };
    if comptime!(backward) {
        if cached {
            let p = load2::<C>(kv, kv_at, more, wide);
            pair.a = p.a;
            pair.b = p.b;
        } else {
            let p = load2::<X>(rows, at, more, wide);
            pair.a = p.a;
            pair.b = p.b;
        }
    } else {
        let p = load2::<X>(rows, at, more, wide);
        pair.a = p.a;
        pair.b = p.b;
    }
    pair
}

#[cube(launch_unchecked)]
fn rope_kernel<X: Numeric, C: Numeric, T: Numeric>(
    rows: &mut View<X>,
    table: &View<T>,
    positions: &View<u32>,
    kv: &mut View<C>,
    lines: &View<u32>,
    m: usize,
    #[comptime] form: Form,
    #[comptime] wide: bool,
    #[define(X, C, T)] _types: [StorageType; 3],
) {
    let heads = comptime!(form.heads);
    let half = comptime!(heads.dim / 2);
    let per_head = comptime!(heads.dim.div_ceil(4));
    let per_row = comptime!((heads.q + heads.kv * if form.cached { 2 } else { 1 }) * per_head);
    let row = ABSOLUTE_POS / per_row;
    let slot = ABSOLUTE_POS % per_row;
    let head = slot / per_head;
    let i = slot % per_head * 2;
    if row < m {
        let more = i + 1 < half;
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
        let read = outside && comptime!(form.backward);
        let mut first = fetch::<X, C>(rows, kv, at, kv_at, read, more, form.backward, wide);
        let mut second = fetch::<X, C>(rows, kv, at + half, kv_at + half, read, more, form.backward, wide);
        if !is_v {
            let line = table.start() + positions.get(row) as usize * heads.dim + i;
            let cos = load2::<T>(table, line, more, wide);
            let mut sin = load2::<T>(table, line + half, more, wide);
            if comptime!(form.backward) {
                sin.a = -sin.a;
                sin.b = -sin.b;
            }
            let turned = Pair {
                a: first.a * cos.a - second.a * sin.a,
                b: first.b * cos.b - second.b * sin.b,
            };
            second.a = second.a * cos.a + first.a * sin.a;
            second.b = second.b * cos.b + first.b * sin.b;
            first.a = turned.a;
            first.b = turned.b;
        }
        if comptime!(form.cached && !form.backward) {
            if outside {
                store2::<C>(kv, kv_at, more, first, wide);
                store2::<C>(kv, kv_at + half, more, second, wide);
            } else {
                store2::<X>(rows, at, more, first, wide);
                store2::<X>(rows, at + half, more, second, wide);
            }
        } else {
            store2::<X>(rows, at, more, first, wide);
            store2::<X>(rows, at + half, more, second, wide);
        }
    }
}
