//! Prompt embedding: rows of a table, scaled by `sqrt(D)`, with a sparse gradient.
//!
//! `y[line_j] = scale · table[token_j]`, `dtable[v] += scale · Σ_{j: token_j = v} dy[line_j]`.
//! The table may be larger than what one kernel can bind; it then comes in parts (runs of its rows), and each part is a
//! launch that serves the tokens it holds. Repeated tokens are summed in the order of their lines: the host knows the
//! tokens and sorts them ([`Lookup`]), so there are no atomics.
//! Source: Gemma's embedder (`sqrt(width)` scaling).
//!
//! Cost: memory bound; rows of tokens that do not occur are never touched.

use cubecl::ir::StorageType;
use cubecl::prelude::*;

use super::lanes::{Lanes, load, store};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Which token goes to which line, on the device, in both orders.
pub struct Lookup {
    /// u32 `[J]`: token and line of each occurrence.
    tokens: Tensor,
    lines: Tensor,
    /// u32 `[V]`: distinct tokens, ascending; `[V + 1]`: first occurrence of each in `sorted`; `[J]`: lines by token.
    distinct: Tensor,
    starts: Tensor,
    sorted: Tensor,
    host: Vec<(u32, u32)>,
}

impl Lookup {
    /// From (token, line) pairs.
    pub fn new(gpu: &Gpu, occurrences: Vec<(u32, u32)>) -> Lookup {
        let mut by_token = occurrences.clone();
        by_token.sort();
        let (mut distinct, mut starts) = (Vec::new(), Vec::new());
        for (i, &(token, _)) in by_token.iter().enumerate() {
            if distinct.last() != Some(&token) {
                distinct.push(token);
                starts.push(i as u32);
            }
        }
        starts.push(by_token.len() as u32);
        let column = |pairs: &[(u32, u32)], f: fn(&(u32, u32)) -> u32| -> Tensor {
            let words: Vec<u32> = pairs.iter().map(f).collect();
            gpu.upload_u32(&words, [words.len()])
        };
        Lookup {
            tokens: column(&occurrences, |p| p.0),
            lines: column(&occurrences, |p| p.1),
            distinct: gpu.upload_u32(&distinct, [distinct.len()]),
            starts: gpu.upload_u32(&starts, [starts.len()]),
            sorted: column(&by_token, |p| p.1),
            host: occurrences,
        }
    }

    /// Number of occurrences.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// No prompt at all?
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }

    /// Whether a part with these rows is asked for at all.
    fn touches(&self, first: usize, rows: usize) -> bool {
        self.host
            .iter()
            .any(|&(token, _)| (first..first + rows).contains(&(token as usize)))
    }
}

/// `y[line] = scale · table[token]`; `parts` are (first row, rows) of the table.
pub fn forward(gpu: &Gpu, parts: &[(usize, Tensor)], lookup: &Lookup, scale: f32, y: &Tensor) {
    for (first, part) in parts {
        let [rows, d] = *part.shape() else {
            panic!("a table is [V, D], not {part:?}")
        };
        if !lookup.touches(*first, rows) {
            continue;
        }
        let lanes = Lanes::pick(gpu, &[d], &[part, y]);
        let (count, dim) = lanes.grid(gpu, lookup.len() * d);
        let moved = (lookup.len() * d) as u64 * (part.dtype().bytes() + y.dtype().bytes());
        launch!(
            gpu,
            Cost::moving("embedding", moved),
            embedding_forward,
            count,
            dim,
            [part, &lookup.tokens, &lookup.lines, y],
            (
                lookup.len(),
                d,
                *first,
                rows,
                scale,
                lanes,
                lanes.types([part, y]),
                lanes.sizes()
            ),
        );
    }
}

/// `dtable[token] += scale · Σ dy[line]`; `parts` as in [`forward`].
pub fn backward(gpu: &Gpu, parts: &[(usize, Tensor)], lookup: &Lookup, scale: f32, dy: &Tensor) {
    let distinct = lookup.distinct.len();
    for (first, part) in parts {
        let [rows, d] = *part.shape() else {
            panic!("a table is [V, D], not {part:?}")
        };
        if !lookup.touches(*first, rows) {
            continue;
        }
        let lanes = Lanes::pick(gpu, &[d], &[part, dy]);
        let (count, dim) = lanes.grid(gpu, distinct * d);
        let moved = (lookup.len() * d) as u64 * dy.dtype().bytes() + (2 * distinct * d) as u64 * part.dtype().bytes();
        launch!(
            gpu,
            Cost::moving("embedding_backward", moved),
            embedding_backward,
            count,
            dim,
            [part, &lookup.distinct, &lookup.starts, &lookup.sorted, dy],
            (
                distinct,
                d,
                *first,
                rows,
                scale,
                lanes,
                lanes.types([part, dy]),
                lanes.sizes()
            ),
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn embedding_forward<T: Numeric, Y: Numeric, W: Size, N: Size>(
    table: &View<Vector<T, W>>,
    tokens: &View<u32>,
    lines: &View<u32>,
    y: &mut View<Vector<Y, W>>,
    n: usize,
    d: usize,
    first: usize,
    rows: usize,
    scale: f32,
    #[comptime] lanes: Lanes,
    #[define(T, Y)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let per_row = d / lanes.count;
    let j = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * lanes.count;
    if j < n {
        let token = tokens.get(j) as usize;
        if token >= first && token < first + rows {
            let v = load::<T, W, N>(table, table.start() + (token - first) * d + i, lanes);
            let at = y.start() + lines.get(j) as usize * d + i;
            store::<Y, W, N>(y, at, v * Vector::new(scale), lanes);
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn embedding_backward<T: Numeric, D: Numeric, W: Size, N: Size>(
    dtable: &mut View<Vector<T, W>>,
    distinct: &View<u32>,
    starts: &View<u32>,
    sorted: &View<u32>,
    dy: &View<Vector<D, W>>,
    n: usize,
    d: usize,
    first: usize,
    rows: usize,
    scale: f32,
    #[comptime] lanes: Lanes,
    #[define(T, D)] _types: [StorageType; 2],
    #[define(W, N)] _sizes: [usize; 2],
) {
    let per_row = d / lanes.count;
    let j = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * lanes.count;
    if j < n {
        let token = distinct.get(j) as usize;
        if token >= first && token < first + rows {
            let from = starts.get(j) as usize;
            let to = starts.get(j + 1) as usize;
            let d = d * 1;
            let mut sum = Vector::<f32, N>::zeroed();
            for k in from..to {
                sum += load::<D, W, N>(dy, dy.start() + sorted.get(k) as usize * d + i, lanes);
            }
            let at = dtable.start() + (token - first) * d + i;
            let old = load::<T, W, N>(dtable, at, lanes);
            store::<T, W, N>(dtable, at, old + sum * Vector::new(scale), lanes);
        }
    }
}
