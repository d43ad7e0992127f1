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

use super::pair::{Pair, is_wide, load2, storage, store2};
use crate::gpu::launch::{View, launch};
use crate::gpu::{Cost, Gpu, Tensor};

/// Units of a workgroup.
const UNITS: usize = 64;

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
        let wide = is_wide(gpu, d, &[part, y]);
        let moved = (lookup.len() * d) as u64 * (part.dtype().bytes() + y.dtype().bytes());
        launch!(
            gpu,
            Cost::moving("embedding", moved),
            embedding_forward,
            gpu.cubes(lookup.len() * d.div_ceil(2), UNITS),
            CubeDim::new_1d(UNITS as u32),
            [part, &lookup.tokens, &lookup.lines, y],
            (
                lookup.len(),
                d,
                *first,
                rows,
                scale,
                wide,
                [storage(part, wide), storage(y, wide)]
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
        let wide = is_wide(gpu, d, &[part, dy]);
        let moved = (lookup.len() * d) as u64 * dy.dtype().bytes() + (2 * distinct * d) as u64 * part.dtype().bytes();
        launch!(
            gpu,
            Cost::moving("embedding_backward", moved),
            embedding_backward,
            gpu.cubes(distinct * d.div_ceil(2), UNITS),
            CubeDim::new_1d(UNITS as u32),
            [part, &lookup.distinct, &lookup.starts, &lookup.sorted, dy],
            (
                distinct,
                d,
                *first,
                rows,
                scale,
                wide,
                [storage(part, wide), storage(dy, wide)]
            ),
        );
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn embedding_forward<T: Numeric, Y: Numeric>(
    table: &View<T>,
    tokens: &View<u32>,
    lines: &View<u32>,
    y: &mut View<Y>,
    n: usize,
    d: usize,
    first: usize,
    rows: usize,
    scale: f32,
    #[comptime] wide: bool,
    #[define(T, Y)] _types: [StorageType; 2],
) {
    let per_row = d.div_ceil(2);
    let j = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * 2;
    if j < n {
        let token = tokens.get(j) as usize;
        if token >= first && token < first + rows {
            let more = i + 1 < d;
            let v = load2::<T>(table, table.start() + (token - first) * d + i, more, wide);
            let at = y.start() + lines.get(j) as usize * d + i;
            store2::<Y>(
                y,
                at,
                more,
                Pair {
                    a: v.a * scale,
                    b: v.b * scale,
                },
                wide,
            );
        }
    }
}

#[cube(launch_unchecked)]
#[allow(clippy::too_many_arguments)]
fn embedding_backward<T: Numeric, D: Numeric>(
    dtable: &mut View<T>,
    distinct: &View<u32>,
    starts: &View<u32>,
    sorted: &View<u32>,
    dy: &View<D>,
    n: usize,
    d: usize,
    first: usize,
    rows: usize,
    scale: f32,
    #[comptime] wide: bool,
    #[define(T, D)] _types: [StorageType; 2],
) {
    let per_row = d.div_ceil(2);
    let j = ABSOLUTE_POS / per_row;
    let i = ABSOLUTE_POS % per_row * 2;
    if j < n {
        let token = distinct.get(j) as usize;
        if token >= first && token < first + rows {
            let more = i + 1 < d;
            let from = starts.get(j) as usize;
            let to = starts.get(j + 1) as usize;
            let d = d * 1;
            let mut sum = Pair { a: 0.0, b: 0.0 };
            for k in from..to {
                let v = load2::<D>(dy, dy.start() + sorted.get(k) as usize * d + i, more, wide);
                sum.a += v.a;
                sum.b += v.b;
            }
            let at = dtable.start() + (token - first) * d + i;
            let old = load2::<T>(dtable, at, more, wide);
            store2::<T>(
                dtable,
                at,
                more,
                Pair {
                    a: old.a + sum.a * scale,
                    b: old.b + sum.b * scale,
                },
                wide,
            );
        }
    }
}
