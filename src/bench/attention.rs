//! Attention as a case: the plans that the step's layouts make, forward and backward.
//!
//! Backward needs no forward pass here: output, denominators and the gradient above are inputs like any other, and the
//! formulas hold for whatever they are.

mod reference;

use serde::Serialize;

use super::check::{Expected, Sum};
use super::work::{Room, Work};
use crate::gpu::{DType, Gpu};
use crate::ops::attention::{Attention, Columns, KeyPlan, KeyRun, Keys, Plan, Saved, Sequence};
use crate::ops::rope::Heads;
use reference::{Key, Values, keys_of, remembered};

/// Which half of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Forward,
    /// dq, then dk and dv of the keys that the plan names.
    Backward,
    /// dk and dv of a cache alone.
    BackwardKeys,
}

/// One attention over packed rows. The plan is in the fields that are not written to lists.
#[derive(Clone, Debug, Serialize)]
pub struct AttentionCase {
    pub direction: Direction,
    pub q_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Number of sequences, and rows of the largest.
    pub sequences: usize,
    pub queries: usize,
    pub keys: usize,
    /// Whether keys and values lie in a cache of their own, or beside the queries.
    pub cached: bool,
    #[serde(skip)]
    pub plan: Vec<Sequence>,
    #[serde(skip)]
    pub runs: Vec<KeyRun>,
}

/// Scales of queries' rows and of the cache: scores then spread by 1.3 to 2.7, so that a few keys dominate.
const ROWS: f32 = 2.0;
const CACHE: f32 = 4.0;

impl AttentionCase {
    fn heads(&self) -> Heads {
        Heads {
            q: self.q_heads,
            kv: self.kv_heads,
            dim: self.head_dim,
        }
    }

    /// Pairs of a query and a key that sees it, of all heads.
    fn pairs(&self) -> f64 {
        let of_queries = self.plan.iter().map(|s| s.q_rows * (s.k_rows + s.own_rows));
        let of_keys = self
            .runs
            .iter()
            .map(|r| r.k_rows * r.queries.iter().map(|q| q.1).sum::<usize>());
        let pairs = match self.direction {
            Direction::BackwardKeys => of_keys.sum::<usize>(),
            _ => of_queries.sum::<usize>(),
        };
        (pairs * self.q_heads) as f64
    }

    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        match self.direction {
            Direction::Forward => self.forward(room),
            _ => self.backward(room),
        }
    }

    /// Whether queries see keys beside them, too.
    fn has_second(&self) -> bool {
        self.plan.iter().any(|s| s.own_rows > 0)
    }

    /// Rows of the queries, and lines of the cache.
    fn extent(&self) -> (usize, usize) {
        let of_runs = self.runs.iter().flat_map(|r| r.queries.iter().map(|q| q.0 + q.1));
        let rows = self.plan.iter().map(|s| s.q_row0 + s.q_rows).chain(of_runs).max();
        let of_runs = self.runs.iter().map(|r| r.k_row0 + r.k_rows);
        let lines = self.plan.iter().map(|s| s.k_row0 + s.k_rows).chain(of_runs).max();
        (rows.unwrap_or(0), lines.unwrap_or(0))
    }

    /// The sequence of each row.
    fn sequence_of_row(&self) -> Vec<usize> {
        let mut of = vec![0; self.extent().0];
        for (i, s) in self.plan.iter().enumerate() {
            of[s.q_row0..s.q_row0 + s.q_rows].fill(i);
        }
        of
    }

    fn forward(&self, mut room: Room<'_>) -> Work {
        let (heads, dtype) = (self.heads(), room.dtype);
        let (rows, lines) = self.extent();
        let qkv = room.input([rows, heads.fused()], ROWS);
        let cache = self.cached.then(|| room.input([lines, 2 * heads.kv_width()], CACHE));
        let (o, lse) = (
            room.output([rows, heads.q_width()]),
            room.output_as(DType::F32, [rows, heads.q]),
        );
        let plan = Plan::new(room.gpu, self.plan.clone());
        let values = Values {
            heads,
            qkv: qkv.clone(),
            cache: cache.clone(),
            o: None,
            lse: None,
            d_o: None,
            delta: None,
        };
        let softmax = |values: Values, plan: Vec<Sequence>, of: Vec<usize>, cached| {
            remembered(move |(r, h): (usize, usize)| {
                let keys = keys_of(&plan[of[r]], cached);
                let scores: Vec<f64> = keys.iter().map(|&key| values.score(r, h, key)).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
                (keys, scores.iter().map(|s| (s - lse).exp()).collect::<Vec<f64>>(), lse)
            })
        };
        let of = self.sequence_of_row();
        let first = softmax(values.clone(), self.plan.clone(), of.clone(), self.cached);
        let second = softmax(values.clone(), self.plan.clone(), of, self.cached);
        let (width, dim) = (heads.q_width(), heads.dim);
        let out = Expected::new("o", &o, move |at| {
            let (r, h) = (at / width, at % width / dim);
            let (keys, p, _) = first((r, h));
            let terms = keys
                .iter()
                .zip(p)
                .map(|(&key, p)| p * values.kv(key, 1, h / heads.group(), at % dim));
            terms.collect()
        });
        let denominator = Expected::new("lse", &lse, move |at| {
            let mut sum = Sum::default();
            // A rounding of a score is one of its logarithm.
            sum.add_sized(second((at / heads.q, at % heads.q)).2, 16.0);
            sum
        });
        let expected = [
            out.samples(32).rounded_to(dtype),
            denominator.samples(16).rounded_to(dtype),
        ];
        let flops = 4.0 * self.pairs() * dim as f64;
        let has_second = self.has_second();
        let launch = move |gpu: &Gpu| {
            let own = Keys::fused(&qkv.tensor, heads);
            let keys = cache.as_ref().map_or(own, |cache| Keys::cache(&cache.tensor, heads));
            let q = Columns::all(&qkv.tensor);
            Attention::new(heads).forward(gpu, &plan, q, keys, has_second.then_some(own), &o, Some(&lse));
        };
        room.work(launch, expected).flops(flops)
    }

    fn backward(&self, mut room: Room<'_>) -> Work {
        let (heads, dtype, keys_only) = (self.heads(), room.dtype, self.direction == Direction::BackwardKeys);
        let (rows, lines) = self.extent();
        let qkv = room.input([rows, heads.fused()], ROWS);
        let cache = self.cached.then(|| room.input([lines, 2 * heads.kv_width()], CACHE));
        let (o, d_o) = (
            room.input([rows, heads.q_width()], 1.0),
            room.input([rows, heads.q_width()], 1.0),
        );
        // About what a softmax over so many keys leaves.
        let lse = room.input_f32([rows, heads.q], 0.25, (self.keys as f32).ln() + 1.5);
        let given = keys_only.then(|| room.input_f32([rows, heads.q], 1.0, 0.0));
        let values = Values {
            heads,
            qkv: qkv.clone(),
            cache: cache.clone(),
            delta: given.clone(),
            o: Some(o.clone()),
            lse: Some(lse.clone()),
            d_o: Some(d_o.clone()),
        };
        // Keys of chunks get their gradients beside dq, those of a cache in f32 lines.
        let to_cache = self.cached && !self.has_second();
        let shape = [lines, 2 * heads.kv_width()];
        // A prefix adds to what its suffixes have left there.
        let added = (to_cache && !keys_only).then(|| room.in_place(DType::F32, shape, 1.0, 0.0));
        let dcache = match &added {
            Some(before) => Some(before.tensor.clone()),
            None => to_cache.then(|| room.output_as(DType::F32, shape)),
        };
        let columns = if keys_only { 0 } else { heads.fused() };
        let dqkv = room.partial(dtype, [rows, columns]);
        let delta = match &given {
            Some(delta) => delta.tensor.clone(),
            None => room.output_as(DType::F32, [rows, heads.q]),
        };
        let mut expected = Vec::new();
        if !keys_only {
            let (v, plan, of, cached) = (values.clone(), self.plan.clone(), self.sequence_of_row(), self.cached);
            let softmax = remembered(move |(r, h): (usize, usize)| {
                let delta = v.delta(r, h);
                let pair = |key| (key, v.pair(r, h, key, &delta).1);
                keys_of(&plan[of[r]], cached).into_iter().map(pair).collect::<Vec<_>>()
            });
            let (v, fused) = (values.clone(), heads.fused());
            let dq = Expected::new("dq", &dqkv, move |at| {
                let (r, column) = (at / fused, at % fused);
                let (h, j) = (column / heads.dim, column % heads.dim);
                let mut sum = Sum::default();
                for (key, ds) in softmax((r, h)) {
                    let k = v.kv(key, 0, h / heads.group(), j) * v.scale();
                    sum.add_sized(ds.value * k, ds.size * k.abs());
                }
                sum
            });
            let (width, fused_rows) = (heads.q_width(), heads.fused());
            expected.push(
                dq.samples(32)
                    .within(move |at| at % fused_rows < width)
                    .rounded_to(dtype),
            );
            let v = values.clone();
            let of_delta = move |at| v.delta(at / heads.q, at % heads.q);
            expected.push(Expected::new("delta", &delta, of_delta));
        }
        let (into, ld, first) = match &dcache {
            Some(dcache) => (dcache.clone(), 2 * heads.kv_width(), 0),
            None => (dqkv.clone(), heads.fused(), heads.q_width()),
        };
        let own = !to_cache;
        let mut of_line = vec![usize::MAX; into.dim(0)];
        for (i, run) in self.runs.iter().enumerate() {
            of_line[run.k_row0..run.k_row0 + run.k_rows].fill(i);
        }
        let covered = of_line.clone();
        let (v, runs) = (values.clone(), self.runs.clone());
        let seen = remembered(move |(line, g): (usize, usize)| {
            let key = Key { own, row: line };
            let queries = runs[of_line[line]]
                .queries
                .iter()
                .flat_map(|&(first, n)| first..first + n);
            let heads_of = |r| (g * heads.group()..(g + 1) * heads.group()).map(move |h| (r, h));
            let pair = |(r, h)| (r, h, v.pair(r, h, key, &v.delta(r, h)));
            queries.flat_map(heads_of).map(pair).collect::<Vec<_>>()
        });
        let (v, d) = (values.clone(), d_o.clone());
        let dkv = Expected::new("dk or dv", &into, move |at| {
            let (line, column) = (at / ld, at % ld - first);
            let (value, g, j) = (
                column / heads.kv_width(),
                column % heads.kv_width() / heads.dim,
                column % heads.dim,
            );
            let mut sum: Sum = added.iter().map(|before| before.at(at)).collect();
            for (r, h, (p, ds)) in seen((line, g)) {
                if value == 1 {
                    sum.add(p * d.at(r * heads.q_width() + h * heads.dim + j));
                } else {
                    let q = v.q(r, h, j) * v.scale();
                    sum.add_sized(ds.value * q, ds.size * q.abs());
                }
            }
            sum
        });
        let inside = move |at: usize| at % ld >= first && covered[at / ld] != usize::MAX;
        expected.push(dkv.samples(24).within(inside).rounded_to(dtype));

        let (plan, keys) = (
            Plan::new(room.gpu, self.plan.clone()),
            KeyPlan::new(room.gpu, self.runs.clone()),
        );
        let dims = heads.dim as f64;
        // Scores again, dp, and one product for each gradient: five of the forward pass's two, three with keys alone.
        let flops = self.pairs() * dims * if keys_only { 8.0 } else { 10.0 };
        let add = to_cache && !keys_only;
        let second = self.has_second();
        let launch = move |gpu: &Gpu| {
            let attention = Attention::new(heads);
            let own = Keys::fused(&qkv.tensor, heads);
            let from = cache.as_ref().map_or(own, |cache| Keys::cache(&cache.tensor, heads));
            let saved = Saved {
                o: &o.tensor,
                lse: &lse.tensor,
            };
            let (q, dq) = (Columns::all(&qkv.tensor), Columns::all(&dqkv));
            if !keys_only {
                let second = second.then_some(own);
                attention.backward_queries(gpu, &plan, q, from, second, saved, &d_o.tensor, dq, &delta);
            }
            let (seen, dkeys) = match &dcache {
                Some(dcache) => (from, Keys::cache(dcache, heads)),
                None => (own, Keys::fused(&dqkv, heads)),
            };
            attention.backward_keys(gpu, &keys, q, seen, saved, &d_o.tensor, &delta, dkeys, add);
        };
        room.work(launch, expected).flops(flops)
    }
}
