//! Rotary positions as a case.

use serde::Serialize;

use super::check::{Expected, Sum};
use super::moves::shuffled;
use super::work::{Room, Work};
use crate::gpu::Gpu;
use crate::ops::rope::{self, Cache, Heads, Table};

/// Rotary positions on fused rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rotation {
    pub rows: usize,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub backward: bool,
    /// Whether keys and values go to (come from) a cache.
    pub cached: bool,
    /// Longest position, and one.
    pub positions: usize,
}

impl Rotation {
    /// The work, in `room`.
    pub fn work(&self, mut room: Room<'_>) -> Work {
        let heads = Heads {
            q: self.q_heads,
            kv: self.kv_heads,
            dim: self.head_dim,
        };
        let (m, positions, cached, backward) = (self.rows, self.positions, self.cached, self.backward);
        let fused = heads.fused();
        let kv = 2 * heads.kv_width();
        let rows = room.in_place(room.dtype, [m, fused], 1.0, 0.0);
        let into = (cached && !backward).then(|| room.output([m, kv]));
        // The gradients of the cache are f32.
        let from = (cached && backward).then(|| room.input_f32([m, kv], 1.0, 0.0));
        let line = shuffled(m);
        let at_line = room.table(&line, [m]);
        let index = room.table(&(0..m).map(|r| (r % positions) as u32).collect::<Vec<_>>(), [m]);
        let table = Table::new(room.gpu, 0, positions, heads.dim);
        let half = heads.dim / 2;
        // A pair of a row in front of the rotation, and the rotation itself; column 0 is the first of q.
        let turned = {
            let (rows, from, line) = (rows.clone(), from.clone(), line.clone());
            move |r: usize, column: usize| -> Sum {
                let value = |column: usize| match &from {
                    Some(from) if column >= heads.q_width() => {
                        from.at(line[r] as usize * kv + column - heads.q_width())
                    }
                    _ => rows.at(r * fused + column),
                };
                // Values, and keys that wait in the rows for nobody, stay.
                if column >= heads.q_width() + heads.kv_width() {
                    return Sum::of(value(column));
                }
                let (i, low) = (column % heads.dim % half, column % heads.dim < half);
                let angle = (r % positions) as f64 * rope::BASE.powf(-2.0 * i as f64 / heads.dim as f64);
                let sine = if backward { -angle.sin() } else { angle.sin() };
                let other = if low {
                    value(column + half)
                } else {
                    value(column - half)
                };
                [
                    value(column) * angle.cos(),
                    if low { -other * sine } else { other * sine },
                ]
                .into_iter()
                .collect()
            }
        };
        let in_rows = {
            let (turned, rows) = (turned.clone(), rows.clone());
            let kept = cached && !backward;
            Expected::new("rows", &rows.tensor.clone(), move |at| {
                let (r, column) = (at / fused, at % fused);
                if kept && column >= heads.q_width() {
                    Sum::of(rows.at(at))
                } else {
                    turned(r, column)
                }
            })
        };
        let mut expected = vec![in_rows];
        if let Some(into) = &into {
            let mut row_of = line.clone();
            line.iter()
                .enumerate()
                .for_each(|(r, &l)| row_of[l as usize] = r as u32);
            expected.push(Expected::new("cache", into, move |at| {
                turned(row_of[at / kv] as usize, heads.q_width() + at % kv)
            }));
        }
        let bytes = 2.0 * rows.tensor.bytes() as f64;
        let launch = move |gpu: &Gpu| {
            let kv = into.as_ref().or(from.as_ref().map(|f| &f.tensor));
            let cache = kv.map(|kv| Cache { kv, lines: &at_line });
            match backward {
                false => rope::forward(gpu, heads, &table, &index, &rows.tensor, cache),
                true => rope::backward(gpu, heads, &table, &index, &rows.tensor, cache),
            }
        };
        room.work(launch, expected).bytes(bytes)
    }
}
