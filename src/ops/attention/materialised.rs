//! Attention through the matrix product, with scores in memory: for heads of any size.
//!
//! Query rows are first packed so that all queries that share a k/v head of a sequence are neighbours: `[n, K]`, in
//! the order sequence (or key run), k/v head, row, head of the group. Scores of one such block are then one product
//! of a grouped launch. Scores never exceed [`BUDGET`] bytes: longer plans are done in parts.

use std::sync::{Arc, Mutex};

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::{Attention, Columns, KeyPlan, Keys, Plan, Saved};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, DType, Gpu, Tensor};
use crate::ops::gemm::{self, Groups, Mat};
use crate::ops::softmax;

/// Most bytes of scores alive at once (further bounded by what one kernel operand may hold).
const BUDGET: u64 = 1 << 30;
/// Units of a workgroup of the packing kernels.
const UNITS: usize = 64;

/// A run of keys in one of the two buffers: first row and number of rows.
#[derive(Clone, Copy)]
struct Run {
    row0: usize,
    rows: usize,
}

/// The queries that share a k/v head of a sequence (or of a key run), and the keys they meet.
struct Block {
    kv_head: usize,
    /// (first row, rows)
    queries: Vec<(usize, usize)>,
    /// In the cache, and in the rows' own buffer.
    keys: [Run; 2],
}

impl Block {
    fn query_rows(&self) -> usize {
        self.queries.iter().map(|q| q.1).sum()
    }

    fn keys(&self) -> usize {
        self.keys[0].rows + self.keys[1].rows
    }
}

/// Tables of one part of a plan.
pub(super) struct Part {
    /// Packed rows.
    rows: usize,
    /// Width of a line of scores.
    width: usize,
    /// `[rows, 2]` u32: source row, head.
    origin: Tensor,
    /// `[rows]` u32: keys seen.
    lens: Tensor,
    /// For each buffer of keys: scores = q kᵀ; values: o = p v; keys: dk = dsᵀ q.
    scores: [Option<Groups>; 2],
    values: [Option<Groups>; 2],
    keys: Option<Groups>,
}

/// Tables of a plan for buffers with these leading dimensions, made at first use.
#[derive(Default)]
pub(super) struct Tables(Mutex<Option<([usize; 3], Arc<Vec<Part>>)>>);

impl Tables {
    fn get(&self, key: [usize; 3], make: impl FnOnce() -> Vec<Part>) -> Arc<Vec<Part>> {
        let mut slot = self.0.lock().unwrap_or_else(|e| e.into_inner());
        match &*slot {
            Some((k, parts)) if *k == key => parts.clone(),
            _ => {
                let parts = Arc::new(make());
                *slot = Some((key, parts.clone()));
                parts
            }
        }
    }
}

fn parts_of_plan(gpu: &Gpu, a: &Attention, plan: &Plan, lds: [usize; 2]) -> Arc<Vec<Part>> {
    plan.tables.get([lds[0], lds[1], 0], || {
        let mut blocks = Vec::new();
        for s in &plan.sequences {
            for kv_head in 0..a.heads.kv {
                blocks.push(Block {
                    kv_head,
                    queries: vec![(s.q_row0, s.q_rows)],
                    keys: [
                        Run {
                            row0: s.k_row0,
                            rows: s.k_rows,
                        },
                        Run {
                            row0: s.own_row0,
                            rows: s.own_rows,
                        },
                    ],
                });
            }
        }
        parts(gpu, a, blocks, lds, 0)
    })
}

fn parts_of_keys(gpu: &Gpu, a: &Attention, plan: &KeyPlan, ld: usize, dk_ld: usize) -> Arc<Vec<Part>> {
    plan.tables.get([ld, 0, dk_ld], || {
        let mut blocks = Vec::new();
        for run in &plan.host {
            for kv_head in 0..a.heads.kv {
                blocks.push(Block {
                    kv_head,
                    queries: run.queries.clone(),
                    keys: [
                        Run {
                            row0: run.k_row0,
                            rows: run.k_rows,
                        },
                        Run { row0: 0, rows: 0 },
                    ],
                });
            }
        }
        parts(gpu, a, blocks, [ld, 0], dk_ld)
    })
}

/// Cuts the blocks into parts within the budget and makes their tables.
fn parts(gpu: &Gpu, a: &Attention, blocks: Vec<Block>, lds: [usize; 2], dk_ld: usize) -> Vec<Part> {
    let budget = BUDGET.min(gpu.caps().max_binding_bytes);
    let group = a.heads.group();
    let mut parts = Vec::new();
    let mut open: Vec<Block> = Vec::new();
    let size = |blocks: &[Block]| -> u64 {
        let width = blocks.iter().map(Block::keys).max().unwrap_or(0);
        blocks.iter().map(|b| (b.query_rows() * group * width * 4) as u64).sum()
    };
    for block in blocks {
        open.push(block);
        if open.len() > 1 && size(&open) > budget {
            let last = open.pop();
            parts.push(part(gpu, a, &open, lds, dk_ld));
            open.clear();
            open.extend(last);
        }
    }
    if !open.is_empty() {
        parts.push(part(gpu, a, &open, lds, dk_ld));
    }
    parts
}

fn part(gpu: &Gpu, a: &Attention, blocks: &[Block], lds: [usize; 2], dk_ld: usize) -> Part {
    let (dim, group) = (a.heads.dim, a.heads.group());
    let width = blocks.iter().map(Block::keys).max().unwrap_or(0).max(1);
    let (mut origin, mut lens) = (Vec::new(), Vec::new());
    let mut scores: [GroupsBuilder; 2] = Default::default();
    let mut values: [GroupsBuilder; 2] = Default::default();
    let mut keys = GroupsBuilder::default();
    for block in blocks {
        let first = lens.len();
        for &(row0, rows) in &block.queries {
            for row in row0..row0 + rows {
                for g in 0..group {
                    origin.extend([row as u32, (block.kv_head * group + g) as u32]);
                    lens.push(block.keys() as u32);
                }
            }
        }
        let m = lens.len() - first;
        let mut column = 0;
        for (side, run) in block.keys.iter().enumerate() {
            let key_at = run.row0 * lds[side] + block.kv_head * dim;
            let score_at = first * width + column;
            if run.rows > 0 && m > 0 {
                scores[side].push([first * dim, key_at, score_at], [m, run.rows, dim]);
                values[side].push([score_at, key_at, first * dim], [m, dim, run.rows]);
                if side == 0 {
                    keys.push(
                        [score_at, first * dim, run.row0 * dk_ld + block.kv_head * dim],
                        [run.rows, dim, m],
                    );
                }
            }
            column += run.rows;
        }
    }
    let rows = lens.len();
    Part {
        rows,
        width,
        origin: gpu.upload_u32(&origin, [rows, 2]),
        lens: gpu.upload_u32(&lens, [rows]),
        scores: scores.map(|g| g.finish(gpu)),
        values: values.map(|g| g.finish(gpu)),
        keys: keys.finish(gpu),
    }
}

#[derive(Default)]
struct GroupsBuilder {
    words: Vec<u32>,
    max_m: usize,
    max_n: usize,
}

impl GroupsBuilder {
    fn push(&mut self, at: [usize; 3], [m, n, k]: [usize; 3]) {
        self.words.extend(at.iter().chain(&[m, n, k]).map(|&v| v as u32));
        self.max_m = self.max_m.max(m);
        self.max_n = self.max_n.max(n);
    }

    fn finish(self, gpu: &Gpu) -> Option<Groups> {
        if self.words.is_empty() {
            return None;
        }
        let table = gpu.upload_u32(&self.words, [self.words.len() / 6, 6]);
        // The FLOPs are counted by attention itself, the same for every implementation.
        Some(Groups {
            table,
            max_m: self.max_m,
            max_n: self.max_n,
            products: 0.0,
        })
    }
}

/// `[ld - column]`-wide rows from `column` on, as an operand of a grouped product.
fn from_column(rows: &Tensor, column: usize) -> Mat {
    let ld = rows.dim(1);
    Mat::from(rows).columns(column, ld - column)
}

fn account(gpu: &Gpu, a: &Attention, name: &'static str, pairs: f64, per_pair: f64) {
    gpu.count(&Cost::new(name, a.flops(pairs, per_pair), 0), std::time::Duration::ZERO);
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward(
    gpu: &Gpu,
    a: &Attention,
    plan: &Plan,
    q: Columns<'_>,
    keys: Keys<'_>,
    own: Option<Keys<'_>>,
    o: &Tensor,
    lse: Option<&Tensor>,
) {
    let dim = a.heads.dim;
    let second = own.unwrap_or(keys);
    account(gpu, a, "attention", plan.pairs(), 4.0);
    for part in parts_of_plan(gpu, a, plan, [keys.ld(), second.ld()]).iter() {
        let packed = gpu.alloc(q.rows.dtype(), [part.rows, dim]);
        pack(gpu, part, a, q, &packed);
        let scores = gpu.f32([part.rows, part.width]);
        products_with_keys(gpu, part, &packed, keys, second, &scores, Side::Scores);
        let kept = lse.map(|_| gpu.f32([part.rows]));
        softmax::forward(
            gpu,
            &scores,
            &part.lens,
            1.0 / (dim as f32).sqrt(),
            &scores,
            kept.as_ref(),
        );
        products_with_values(gpu, part, &scores, [keys, second], |k| k.v, &packed);
        unpack(gpu, part, a, &packed, Columns::all(o));
        if let (Some(kept), Some(lse)) = (&kept, lse) {
            scatter(gpu, part, a, kept, lse);
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward_queries(
    gpu: &Gpu,
    a: &Attention,
    plan: &Plan,
    q: Columns<'_>,
    keys: Keys<'_>,
    own: Option<Keys<'_>>,
    saved: Saved<'_>,
    d_o: &Tensor,
    dq: Columns<'_>,
    delta: &Tensor,
) {
    let second = own.unwrap_or(keys);
    account(gpu, a, "attention_backward", plan.pairs(), 6.0);
    row_dots(gpu, a, saved.o, d_o, plan, delta);
    for part in parts_of_plan(gpu, a, plan, [keys.ld(), second.ld()]).iter() {
        let (scores, dscores, packed) = recompute(gpu, a, part, q, keys, second, saved.lse, d_o, delta);
        drop(scores);
        products_with_values(gpu, part, &dscores, [keys, second], |k| k.k, &packed.q);
        unpack(gpu, part, a, &packed.q, dq);
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn backward_keys(
    gpu: &Gpu,
    a: &Attention,
    plan: &KeyPlan,
    q: Columns<'_>,
    keys: Keys<'_>,
    saved: Saved<'_>,
    d_o: &Tensor,
    delta: &Tensor,
    dkeys: Keys<'_>,
    add: bool,
) {
    account(gpu, a, "attention_backward", plan.pairs(), 4.0);
    for part in parts_of_keys(gpu, a, plan, keys.ld(), dkeys.ld()).iter() {
        let (p, ds, packed) = recompute(gpu, a, part, q, keys, keys, saved.lse, d_o, delta);
        let Some(groups) = &part.keys else { continue };
        for (weights, rows, column) in [(&ds, &packed.q, dkeys.k), (&p, &packed.d_o, dkeys.v)] {
            let product = gemm::tn(weights, rows)
                .grouped(groups.clone())
                .named("attention_products");
            let to = from_column(dkeys.rows, column);
            if add {
                product.add_to(gpu, to)
            } else {
                product.to(gpu, to)
            }
        }
    }
}

struct Packed {
    q: Tensor,
    d_o: Tensor,
}

/// Probabilities and the gradient of the scores, with the packed rows they came from.
#[allow(clippy::too_many_arguments)]
fn recompute(
    gpu: &Gpu,
    a: &Attention,
    part: &Part,
    q: Columns<'_>,
    keys: Keys<'_>,
    second: Keys<'_>,
    lse: &Tensor,
    d_o: &Tensor,
    delta: &Tensor,
) -> (Tensor, Tensor, Packed) {
    let dim = a.heads.dim;
    let packed = Packed {
        q: gpu.alloc(q.rows.dtype(), [part.rows, dim]),
        d_o: gpu.alloc(d_o.dtype(), [part.rows, dim]),
    };
    pack(gpu, part, a, q, &packed.q);
    pack(gpu, part, a, Columns::all(d_o), &packed.d_o);
    let (scores, dscores) = (gpu.f32([part.rows, part.width]), gpu.f32([part.rows, part.width]));
    products_with_keys(gpu, part, &packed.q, keys, second, &scores, Side::Scores);
    products_with_keys(gpu, part, &packed.d_o, keys, second, &dscores, Side::Values);
    let (l, d) = (gpu.f32([part.rows]), gpu.f32([part.rows]));
    gather(gpu, part, a, lse, &l);
    gather(gpu, part, a, delta, &d);
    softmax::recompute(gpu, &scores, &part.lens, &l, &d, 1.0 / (dim as f32).sqrt(), &dscores);
    (scores, dscores, packed)
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Scores,
    Values,
}

/// `out = packed · kᵀ` (or `vᵀ`) for both buffers of keys.
fn products_with_keys(
    gpu: &Gpu,
    part: &Part,
    packed: &Tensor,
    keys: Keys<'_>,
    second: Keys<'_>,
    out: &Tensor,
    side: Side,
) {
    for (groups, keys) in part.scores.iter().zip([keys, second]) {
        let Some(groups) = groups else { continue };
        let column = if side == Side::Scores { keys.k } else { keys.v };
        gemm::nt(packed, from_column(keys.rows, column))
            .grouped(groups.clone())
            .named("attention_products")
            .to(gpu, out);
    }
}

/// `out = weights · v` (or `k`), summed over both buffers of keys.
fn products_with_values<'a>(
    gpu: &Gpu,
    part: &Part,
    weights: &Tensor,
    keys: [Keys<'a>; 2],
    column: impl Fn(Keys<'a>) -> usize,
    out: &Tensor,
) {
    let mut written = false;
    for (groups, keys) in part.values.iter().zip(keys) {
        let Some(groups) = groups else { continue };
        let product = gemm::nn(weights, from_column(keys.rows, column(keys)))
            .grouped(groups.clone())
            .named("attention_products");
        // A block without keys in the first buffer would keep what was there: clear it before.
        if written {
            product.add_to(gpu, out);
        } else {
            if groups.table.dim(0) < part.blocks() {
                clear(gpu, out);
                product.add_to(gpu, out);
            } else {
                product.to(gpu, out);
            }
            written = true;
        }
    }
}

impl Part {
    /// Number of blocks: the longer of the two lists names each block at most once.
    fn blocks(&self) -> usize {
        self.scores.iter().flatten().map(|g| g.table.dim(0)).max().unwrap_or(0)
    }
}

fn clear(gpu: &Gpu, x: &Tensor) {
    crate::ops::fill::zero(gpu, x);
}

/// Rows of heads into packed order.
fn pack(gpu: &Gpu, part: &Part, a: &Attention, from: Columns<'_>, to: &Tensor) {
    move_heads(gpu, part, a, from, to, false);
}

/// Packed rows back to their heads.
fn unpack(gpu: &Gpu, part: &Part, a: &Attention, from: &Tensor, to: Columns<'_>) {
    move_heads(gpu, part, a, to, from, true);
}

fn move_heads(gpu: &Gpu, part: &Part, a: &Attention, rows: Columns<'_>, packed: &Tensor, unpack: bool) {
    let dim = a.heads.dim;
    let types = [rows.rows.dtype().storage(), packed.dtype().storage()];
    launch!(
        gpu,
        Cost::moving("attention_pack", 2 * packed.bytes()),
        move_heads_kernel,
        gpu.cubes(part.rows * dim, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [rows.rows, packed, &part.origin],
        (part.rows, dim, rows.ld(), rows.column, unpack, types),
    );
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn move_heads_kernel<R: Numeric, P: Numeric>(
    rows: &mut View<R>,
    packed: &mut View<P>,
    origin: &View<u32>,
    n: usize,
    dim: usize,
    ld: usize,
    column: usize,
    #[comptime] unpack: bool,
    #[define(R, P)] _types: [StorageType; 2],
) {
    let line = ABSOLUTE_POS / dim;
    let i = ABSOLUTE_POS % dim;
    if line < n {
        let at = origin.get(2 * line) as usize * ld + column + origin.get(2 * line + 1) as usize * dim + i;
        if comptime!(unpack) {
            rows.set(at, R::cast_from(packed.get(line * dim + i)));
        } else {
            packed.set(line * dim + i, P::cast_from(rows.get(at)));
        }
    }
}

/// One f32 per head `[M, Hq]` into packed order.
fn gather(gpu: &Gpu, part: &Part, a: &Attention, from: &Tensor, to: &Tensor) {
    move_scalars(gpu, part, a, from, to, false);
}

/// One f32 per packed row back to `[M, Hq]`.
fn scatter(gpu: &Gpu, part: &Part, a: &Attention, from: &Tensor, to: &Tensor) {
    move_scalars(gpu, part, a, to, from, true);
}

fn move_scalars(gpu: &Gpu, part: &Part, a: &Attention, heads: &Tensor, packed: &Tensor, scatter: bool) {
    let f32_type = DType::F32.storage();
    launch!(
        gpu,
        Cost::moving("attention_pack", 2 * packed.bytes()),
        move_heads_kernel,
        gpu.cubes(part.rows, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [heads, packed, &part.origin],
        (part.rows, 1, a.heads.q, 0, scatter, [f32_type, f32_type]),
    );
}

/// `delta[r, h] = Σ_i o[r, h, i] do[r, h, i]` for the query rows of the plan.
fn row_dots(gpu: &Gpu, a: &Attention, o: &Tensor, d_o: &Tensor, plan: &Plan, delta: &Tensor) {
    // Rows outside of the plan may hold anything: results for them are not used.
    let rows = plan.sequences.iter().map(|s| s.q_row0 + s.q_rows).max().unwrap_or(0);
    let lines = rows * a.heads.q;
    launch!(
        gpu,
        Cost::moving("attention_delta", o.bytes() + d_o.bytes()),
        row_dots_kernel,
        gpu.cubes(lines, UNITS),
        CubeDim::new_1d(UNITS as u32),
        [o, d_o, delta],
        (lines, a.heads.dim, [o.dtype().storage(), d_o.dtype().storage()]),
    );
}

#[cube(launch_unchecked)]
fn row_dots_kernel<O: Numeric, D: Numeric>(
    o: &View<O>,
    d_o: &View<D>,
    delta: &mut View<f32>,
    lines: usize,
    dim: usize,
    #[define(O, D)] _types: [StorageType; 2],
) {
    if ABSOLUTE_POS < lines {
        let mut dot = 0.0f32;
        let dim = dim * 1;
        let o_at = o.start() + ABSOLUTE_POS * dim;
        let d_at = d_o.start() + ABSOLUTE_POS * dim;
        for i in 0..dim {
            dot = fma(f32::cast_from(o.raw(o_at + i)), f32::cast_from(d_o.raw(d_at + i)), dot);
        }
        delta.set(ABSOLUTE_POS, dot);
    }
}
