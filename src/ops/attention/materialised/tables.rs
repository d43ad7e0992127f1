//! Which packed row is which query, and which block of scores belongs to which keys: the tables of a plan.

use std::sync::{Arc, Mutex};

use crate::gpu::{Gpu, Tensor};
use crate::ops::attention::{Attention, KeyPlan, Plan};
use crate::ops::gemm::Groups;

/// Most bytes of scores alive at once (further bounded by what one kernel operand may hold).
const BUDGET: u64 = 1 << 30;
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
pub(in crate::ops::attention) struct Part {
    /// Packed rows.
    pub(super) rows: usize,
    /// Width of a line of scores.
    pub(super) width: usize,
    /// `[rows, 2]` u32: source row, head.
    pub(super) origin: Tensor,
    /// `[rows]` u32: keys seen.
    pub(super) lens: Tensor,
    /// For each buffer of keys: scores = q kᵀ; values: o = p v; keys: dk = dsᵀ q.
    pub(super) scores: [Option<Groups>; 2],
    pub(super) values: [Option<Groups>; 2],
    pub(super) keys: Option<Groups>,
}

impl Part {
    /// Number of blocks: the longer of the two lists names each block at most once.
    pub(super) fn blocks(&self) -> usize {
        self.scores.iter().flatten().map(|g| g.table.dim(0)).max().unwrap_or(0)
    }
}

/// Tables of a plan for buffers with these leading dimensions, made at first use.
#[derive(Default)]
pub(in crate::ops::attention) struct Tables(Mutex<Option<Made>>);

/// Tables, and the leading dimensions they were made for.
type Made = ([usize; 3], Arc<Vec<Part>>);

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

pub(super) fn parts_of_plan(gpu: &Gpu, a: &Attention, plan: &Plan, lds: [usize; 2]) -> Arc<Vec<Part>> {
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

pub(super) fn parts_of_keys(gpu: &Gpu, a: &Attention, plan: &KeyPlan, ld: usize, dk_ld: usize) -> Arc<Vec<Part>> {
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
