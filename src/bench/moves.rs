//! Ops that move numbers as cases: copies, gathers, rotary positions, embeddings, patches, pictures, pools.

use serde::Serialize;

use super::check::{Expected, Sum};
use super::work::{Room, Work};
use crate::gpu::{DType, Gpu};
use crate::ops::blocks::{self, Rect};
use crate::ops::embedding::{self, Lookup};
use crate::ops::mean_pool::{self, Runs};
use crate::ops::{fill, head_sum, image, patch_embed};

/// Which op, and which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MoveKind {
    Copy,
    Fill,
    /// A column range into a narrower matrix: the critics' flattened actions.
    CopyColumns,
    Gather,
    Scatter,
    MeanPool,
    MeanPoolBackward,
    Embedding,
    EmbeddingBackward,
    PatchCut,
    Image,
    /// Adapters' matrices of all heads: `parts` of them next to each other, `width` columns each.
    HeadSum,
    HeadSumBackward,
}

/// One op on `[rows, width]`; pictures are `rows` squares of `width` pixels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    pub op: MoveKind,
    pub rows: usize,
    pub width: usize,
    /// Samples that the rows belong to; rows of an embedding's table; side of a patch; heads.
    pub parts: usize,
}

impl Move {
    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        let (m, d, parts) = (self.rows, self.width, self.parts);
        match self.op {
            MoveKind::Copy => copy(room, m, d),
            MoveKind::Fill => zero(room, m, d),
            MoveKind::CopyColumns => columns(room, m, d, parts),
            MoveKind::Gather => indexed(room, m, d, false),
            MoveKind::Scatter => indexed(room, m, d, true),
            MoveKind::MeanPool => pool(room, m, d, parts),
            MoveKind::MeanPoolBackward => unpool(room, m, d, parts),
            MoveKind::Embedding => embed(room, m, d, parts),
            MoveKind::EmbeddingBackward => embed_backward(room, m, d, parts),
            MoveKind::PatchCut => cut(room, m, d, parts),
            MoveKind::Image => picture(room, m, d),
            MoveKind::HeadSum => heads(room, m, d, parts),
            MoveKind::HeadSumBackward => heads_backward(room, m, d, parts),
        }
    }
}

fn heads(mut room: Room<'_>, m: usize, rank: usize, heads: usize) -> Work {
    let (x, y) = (room.input([m, heads * rank], 1.0), room.output([m, rank]));
    let expected = {
        let x = x.clone();
        Expected::new("y", &y, move |at| {
            let mut sum = Sum::of(0.0);
            let first = at / rank * heads * rank + at % rank;
            (0..heads).for_each(|h| sum.add(x.at(first + h * rank)));
            sum
        })
    };
    room.work(move |gpu: &Gpu| head_sum::forward(gpu, &x.tensor, &y), [expected])
}

fn heads_backward(mut room: Room<'_>, m: usize, rank: usize, heads: usize) -> Work {
    let dx = room.in_place(DType::F32, [m, heads * rank], 1.0, 0.0);
    let dy = room.input_f32([m, rank], 1.0, 0.0);
    let expected = {
        let (before, dy) = (dx.clone(), dy.clone());
        Expected::new("dx", &dx.tensor, move |at| {
            let mut sum = Sum::of(before.at(at));
            sum.add(dy.at(at / (heads * rank) * rank + at % rank));
            sum
        })
    };
    let launch = move |gpu: &Gpu| head_sum::backward(gpu, &dy.tensor, &dx.tensor);
    room.work(launch, [expected])
}

fn copy(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let (x, y) = (room.input_f32([m, d], 1.0, 0.0), room.output_as(DType::F32, [m, d]));
    let expected = {
        let x = x.clone();
        Expected::new("y", &y, move |at| Sum::of(x.at(at)))
    };
    room.work(move |gpu: &Gpu| gpu.copy(&x.tensor, &y), [expected])
}

fn zero(mut room: Room<'_>, m: usize, d: usize) -> Work {
    let y = room.output([m, d]);
    let expected = Expected::new("y", &y, |_| Sum::of(0.0));
    room.work(move |gpu: &Gpu| fill::zero(gpu, &y), [expected])
}

fn columns(mut room: Room<'_>, m: usize, d: usize, kept: usize) -> Work {
    let (x, y) = (room.input_f32([m, d], 1.0, 0.0), room.output_as(DType::F32, [m, kept]));
    let expected = {
        let x = x.clone();
        Expected::new("y", &y, move |at| Sum::of(x.at(at / kept * d + at % kept)))
    };
    let bytes = 2.0 * y.bytes() as f64;
    let launch = move |gpu: &Gpu| blocks::copy(gpu, Rect::rows(&x.tensor, d), Rect::rows(&y, kept), m, kept, false);
    room.work(launch, [expected]).bytes(bytes)
}

/// A permutation of `0..n` that is no run anywhere: multiplication by an odd number near the golden ratio.
pub(super) fn shuffled(n: usize) -> Vec<u32> {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let mut step = (n as f64 * 0.618) as usize | 1;
    while gcd(step, n) != 1 {
        step += 2;
    }
    (0..n).map(|i| (i * step % n) as u32).collect()
}

fn indexed(mut room: Room<'_>, m: usize, d: usize, scatter: bool) -> Work {
    let (x, y) = (room.input([m, d], 1.0), room.output([m, d]));
    let lines = shuffled(m);
    let index = room.table(&lines, [m]);
    let mut from = lines.clone();
    if scatter {
        lines
            .iter()
            .enumerate()
            .for_each(|(i, &line)| from[line as usize] = i as u32);
    }
    let expected = {
        let x = x.clone();
        Expected::new("y", &y, move |at| Sum::of(x.at(from[at / d] as usize * d + at % d)))
    };
    let launch = move |gpu: &Gpu| match scatter {
        true => blocks::scatter(gpu, &x.tensor, &index, &y),
        false => blocks::gather(gpu, &x.tensor, &index, &y),
    };
    room.work(launch, [expected])
}

fn pool(mut room: Room<'_>, m: usize, d: usize, b: usize) -> Work {
    let x = room.input([m, d], 1.0);
    let each = m / b;
    let starts = room.table(&(0..b).map(|i| (i * each) as u32).collect::<Vec<_>>(), [b]);
    let lens = room.table(&vec![each as u32; b], [b]);
    let y = room.output_as(DType::F32, [b, d]);
    let expected = {
        let x = x.clone();
        Expected::new("pool", &y, move |at| {
            let first = at / d * each;
            (first..first + each)
                .map(|r| x.at(r * d + at % d) / each as f64)
                .collect()
        })
    };
    let launch = move |gpu: &Gpu| {
        let (starts, lens) = (&starts, &lens);
        mean_pool::forward(gpu, &x.tensor, Runs { starts, lens }, &y);
    };
    room.work(launch, [expected])
}

fn unpool(mut room: Room<'_>, m: usize, d: usize, b: usize) -> Work {
    let each = m / b;
    let dpool = room.input_f32([b, d], 1.0, 0.0);
    let dx = room.in_place(room.dtype, [b * each, d], 1.0, 0.0);
    let starts = room.table(&(0..b).map(|i| (i * each) as u32).collect::<Vec<_>>(), [b]);
    let lens = room.table(&vec![each as u32; b], [b]);
    let expected = {
        let (dpool, before) = (dpool.clone(), dx.clone());
        Expected::new("dx", &dx.tensor, move |at| {
            let mut sum = Sum::of(dpool.at(at / d / each * d + at % d) / each as f64);
            sum.add(before.at(at));
            sum
        })
    };
    let launch = move |gpu: &Gpu| {
        let (starts, lens) = (&starts, &lens);
        mean_pool::backward(gpu, &dpool.tensor, Runs { starts, lens }, &dx.tensor);
    };
    room.work(launch, [expected])
}

/// Tokens of a prompt: eight that every sample has, as prompts of one task do.
fn prompt(m: usize, vocab: usize) -> Vec<(u32, u32)> {
    (0..m)
        .map(|line| ((line % 8 * (vocab / 9)) as u32, line as u32))
        .collect()
}

/// The table in parts that can be bound.
fn table_parts(gpu: &Gpu, table: &crate::gpu::Tensor) -> Vec<(usize, crate::gpu::Tensor)> {
    let (rows, d) = (table.dim(0), table.dim(1));
    let most = (gpu.caps().max_binding_bytes / (d as u64 * table.dtype().bytes())).max(1) as usize;
    let starts = (0..rows).step_by(most);
    starts
        .map(|first| (first, table.rows(first..rows.min(first + most))))
        .collect()
}

fn embed(mut room: Room<'_>, m: usize, d: usize, vocab: usize) -> Work {
    let table = room.input([vocab, d], 1.0);
    let y = room.output([m, d]);
    let tokens = prompt(m, vocab);
    let lookup = Lookup::new(room.gpu, tokens.clone());
    let scale = (d as f64).sqrt();
    let expected = {
        let table = table.clone();
        Expected::new("y", &y, move |at| {
            Sum::of(scale * table.at(tokens[at / d].0 as usize * d + at % d))
        })
    };
    let parts = table_parts(room.gpu, &table.tensor);
    let bytes = 2.0 * y.bytes() as f64;
    let launch = move |gpu: &Gpu| embedding::forward(gpu, &parts, &lookup, scale as f32, &y);
    room.work(launch, [expected]).bytes(bytes)
}

fn embed_backward(mut room: Room<'_>, m: usize, d: usize, vocab: usize) -> Work {
    let dy = room.input([m, d], 1.0);
    let grads = room.in_place(DType::F32, [vocab, d], 1.0, 0.0);
    let tokens = prompt(m, vocab);
    let lookup = Lookup::new(room.gpu, tokens.clone());
    let scale = (d as f64).sqrt();
    let expected = {
        let (dy, before, tokens) = (dy.clone(), grads.clone(), tokens.clone());
        // The first row of the table is a token's, so it is among the samples.
        Expected::new("dtable", &grads.tensor, move |at| {
            let lines = tokens.iter().filter(|t| t.0 as usize == at / d);
            let mut sum: Sum = lines.map(|t| scale * dy.at(t.1 as usize * d + at % d)).collect();
            sum.add(before.at(at));
            sum
        })
    };
    let parts = table_parts(room.gpu, &grads.tensor);
    let bytes = dy.tensor.bytes() as f64 + (2 * 8.min(m) * d * 4) as f64;
    let launch = move |gpu: &Gpu| embedding::backward(gpu, &parts, &lookup, scale as f32, &dy.tensor);
    room.work(launch, [expected]).bytes(bytes)
}

fn cut(mut room: Room<'_>, n: usize, side: usize, patch: usize) -> Work {
    let images = room.input_f32([n, side, side, 3], 1.0, 0.0);
    let (across, size) = (side / patch, 3 * patch * patch);
    let patches = room.output([n * across * across, size]);
    let expected = {
        let images = images.clone();
        Expected::new("patches", &patches, move |at| {
            let (token, place) = (at / size, at % size);
            let (picture, place_in) = (token / (across * across), token % (across * across));
            let (c, y, x) = (place / (patch * patch), place / patch % patch, place % patch);
            let (row, column) = (place_in / across * patch + y, place_in % across * patch + x);
            Sum::of(images.at(((picture * side + row) * side + column) * 3 + c))
        })
    };
    let launch = move |gpu: &Gpu| patch_embed::cut(gpu, &images.tensor, patch, &patches);
    room.work(launch, [expected])
}

fn picture(mut room: Room<'_>, n: usize, side: usize) -> Work {
    let bytes: Vec<u8> = (0..(n * side * side * 3) as u32)
        .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
        .collect();
    let pictures = room.gpu.upload_u8(&bytes, [n, side, side, 3]);
    let y = room.output_as(DType::F32, [n, side, side, 3]);
    let moved = room.moved() + bytes.len() as f64;
    let expected = Expected::new("y", &y, move |at| {
        let mut sum = Sum::of(f64::from(bytes[at]) / 255.0 * 2.0);
        sum.add(-1.0);
        sum
    });
    let launch = move |gpu: &Gpu| image::forward(gpu, &pictures, None, &y);
    room.work(launch, [expected]).bytes(moved)
}
