//! Grouped-query attention over packed rows.
//!
//! ```text
//! o[r, h] = Σ_s softmax_s(q[r, h] · k[s, g(h)] / sqrt(K)) v[s, g(h)]        g(h) = h / (Hq / Hkv)
//! ```
//! There is no mask tensor. Rows are packed (padding is gone), and a [`Sequence`] says which rows of queries see which
//! rows of keys: all queries of a sequence see the same one or two runs of keys. That is exactly π₀'s prefix-LM
//! mask: prefix rows see the prefix; the state token sees the prefix and itself; action rows see the cached prefix
//! with the state, and each other.
//!
//! | what | shape |
//! |---|---|
//! | queries | columns of `[M, ld]` rows: heads side by side |
//! | keys, values | columns of the rows of a [`Keys`] buffer: a cache, or the fused rows themselves |
//! | `o` | `[M, Hq K]` |
//! | `lse` | `[M, Hq]` f32: log of the softmax denominators, for backward |
//!
//! Backward works in passes that need no atomics: [`Attention::backward_queries`] writes dq and
//! `delta = Σ do·o`; [`Attention::backward_keys`] gives each key its dk and dv from the queries that saw it, in order.
//! Dao et al. 2022 for the recomputation from `lse`.
//!
//! Cost (per query-key pair and head): forward `4K` FLOPs, backward `10K`. Three implementations: `native` is CUDA C++
//! for tensor cores (bf16), `flash` keeps scores in registers (heads up to 32) or in shared memory (up to 256, on GPUs
//! that wgpu drives), `materialised` writes them out and uses the matrix product (any head).

mod call;
mod flash;
mod materialised;
mod native;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use call::{BackwardKeys, BackwardQueries, Forward};

use crate::gpu::{Gpu, Tensor};
use crate::ops::rope::Heads;

/// Queries `q_row0 .. + q_rows` see keys `k_row0 .. + k_rows` of the first buffer and `own_row0 .. + own_rows` of the
/// second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    pub q_row0: usize,
    pub q_rows: usize,
    pub k_row0: usize,
    pub k_rows: usize,
    pub own_row0: usize,
    pub own_rows: usize,
}

/// A run of keys and the runs of queries that see it.
#[derive(Clone, Debug, Default)]
pub struct KeyRun {
    pub k_row0: usize,
    pub k_rows: usize,
    /// (first row, rows)
    pub queries: Vec<(usize, usize)>,
}

/// Which queries see which keys, on the device.
#[derive(Clone)]
pub struct Plan {
    /// `[n, 6]` u32, the fields of [`Sequence`].
    table: Tensor,
    sequences: Vec<Sequence>,
    tables: Arc<materialised::Tables>,
}

/// Which keys are seen by which queries, on the device.
#[derive(Clone)]
pub struct KeyPlan {
    /// `[n, 4]` u32: first key row, key rows, first entry of `queries`, entries.
    runs: Tensor,
    /// `[_, 2]` u32: first row, rows.
    queries: Tensor,
    host: Vec<KeyRun>,
    tables: Arc<materialised::Tables>,
}

impl Plan {
    /// Uploads the table.
    pub fn new(gpu: &Gpu, sequences: Vec<Sequence>) -> Plan {
        let words: Vec<u32> = sequences
            .iter()
            .flat_map(|s| [s.q_row0, s.q_rows, s.k_row0, s.k_rows, s.own_row0, s.own_rows])
            .map(|v| v as u32)
            .collect();
        Plan {
            table: gpu.upload_u32(&words, [sequences.len(), 6]),
            sequences,
            tables: Arc::default(),
        }
    }

    /// Sequences `range` alone.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Plan {
        let sequences = self.sequences[range.clone()].to_vec();
        Plan {
            table: self.table.rows(range),
            sequences,
            tables: Arc::default(),
        }
    }

    /// Who sees whom.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Number of (query row, key row) pairs.
    fn pairs(&self) -> f64 {
        self.sequences
            .iter()
            .map(|s| (s.q_rows * (s.k_rows + s.own_rows)) as f64)
            .sum()
    }

    fn longest(&self) -> usize {
        self.sequences.iter().map(|s| s.q_rows).max().unwrap_or(0)
    }
}

impl KeyPlan {
    /// Uploads the tables.
    pub fn new(gpu: &Gpu, runs: Vec<KeyRun>) -> KeyPlan {
        let (mut table, mut queries) = (Vec::new(), Vec::new());
        for run in &runs {
            table.extend([run.k_row0, run.k_rows, queries.len() / 2, run.queries.len()].map(|v| v as u32));
            queries.extend(run.queries.iter().flat_map(|&(row0, rows)| [row0 as u32, rows as u32]));
        }
        let entries = queries.len() / 2;
        KeyPlan {
            runs: gpu.upload_u32(&table, [runs.len(), 4]),
            queries: gpu.upload_u32(&queries, [entries, 2]),
            host: runs,
            tables: Arc::default(),
        }
    }

    /// Runs `range` alone.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> KeyPlan {
        KeyPlan {
            runs: self.runs.rows(range.clone()),
            queries: self.queries.clone(),
            host: self.host[range].to_vec(),
            tables: Arc::default(),
        }
    }

    /// The keys, and who sees them.
    pub fn runs(&self) -> &[KeyRun] {
        &self.host
    }

    fn pairs(&self) -> f64 {
        self.host
            .iter()
            .map(|r| (r.k_rows * r.queries.iter().map(|q| q.1).sum::<usize>()) as f64)
            .sum()
    }

    fn longest(&self) -> usize {
        self.host.iter().map(|r| r.k_rows).max().unwrap_or(0)
    }
}

/// Heads as columns of rows: `heads · K` columns from `column` on.
#[derive(Clone, Copy)]
pub struct Columns<'a> {
    /// `[rows, ld]`
    pub rows: &'a Tensor,
    pub column: usize,
}

impl<'a> Columns<'a> {
    /// Rows that hold nothing else.
    pub fn all(rows: &'a Tensor) -> Self {
        Columns { rows, column: 0 }
    }

    fn ld(&self) -> usize {
        self.rows.dim(1)
    }

    fn operand(&self) -> Operand<'a> {
        (self.rows, [self.column; 2])
    }
}

/// Rows, and the first columns of the heads in them.
type Operand<'a> = (&'a Tensor, [usize; 2]);

/// Keys and values as columns of the same rows.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// `[rows, ld]`
    pub rows: &'a Tensor,
    /// First column of the k heads.
    pub k: usize,
    /// First column of the v heads.
    pub v: usize,
}

impl<'a> Keys<'a> {
    /// A cache of k | v lines.
    pub fn cache(kv: &'a Tensor, heads: Heads) -> Self {
        Keys {
            rows: kv,
            k: 0,
            v: heads.kv_width(),
        }
    }

    /// The k and v parts of fused q | k | v rows.
    pub fn fused(qkv: &'a Tensor, heads: Heads) -> Self {
        Keys {
            rows: qkv,
            k: heads.q_width(),
            v: heads.q_width() + heads.kv_width(),
        }
    }

    fn ld(&self) -> usize {
        self.rows.dim(1)
    }

    fn operand(&self) -> Operand<'a> {
        (self.rows, [self.k, self.v])
    }
}

/// Which implementation to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// CUDA's tensor cores, scores in registers; bf16 heads of an even size up to 256.
    Native,
    /// Scores stay in registers (heads up to 32 elements), or in shared memory (up to 256, on GPUs that wgpu drives).
    Flash,
    /// Scores in memory.
    Materialised,
}

/// The implementations that take these heads in any type, for checks of each of them.
pub fn methods(heads: Heads) -> Vec<Method> {
    let flash = (heads.dim <= flash::MAX_DIM).then_some(Method::Flash);
    flash.into_iter().chain([Method::Materialised]).collect()
}

/// Attention with these heads.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    pub heads: Heads,
    /// `None`: by the capability table and the operands.
    pub method: Option<Method>,
}

/// What a forward pass leaves for backward.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[M, Hq K]`
    pub o: &'a Tensor,
    /// `[M, Hq]`
    pub lse: &'a Tensor,
}

impl Attention {
    /// Attention with the method of the device.
    pub fn new(heads: Heads) -> Attention {
        Attention { heads, method: None }
    }

    fn method(&self, gpu: &Gpu, operands: &[Operand<'_>], results: &[Operand<'_>]) -> Method {
        self.method.unwrap_or_else(|| {
            if native::takes(gpu, self.heads, operands, results) {
                Method::Native
            } else if flash::takes(gpu.caps(), self.heads.dim) {
                Method::Flash
            } else {
                Method::Materialised
            }
        })
    }

    fn flops(&self, pairs: f64, per_pair: f64) -> f64 {
        pairs * per_pair * self.heads.q_width() as f64
    }

    /// `o` (and `lse`) of all sequences. `own` is the second buffer of keys; it may be absent if no sequence uses it.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        gpu: &Gpu,
        plan: &Plan,
        q: Columns<'_>,
        keys: Keys<'_>,
        own: Option<Keys<'_>>,
        o: &Tensor,
        lse: Option<&Tensor>,
    ) {
        let second = own.unwrap_or(keys);
        let operands = [q.operand(), keys.operand(), second.operand(), Columns::all(o).operand()];
        let call = Forward {
            a: self,
            plan,
            q,
            keys,
            own,
            o,
            lse,
        };
        match self.method(gpu, &operands, &[]) {
            Method::Native => native::forward(gpu, &call),
            Method::Flash => flash::forward(gpu, &call),
            Method::Materialised => materialised::forward(gpu, &call),
        }
    }

    /// dq into the columns `dq`, and `delta [M, Hq]` f32 for [`Attention::backward_keys`].
    #[allow(clippy::too_many_arguments)]
    pub fn backward_queries(
        &self,
        gpu: &Gpu,
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
        let [of_o, of_do] = [saved.o, d_o].map(|rows| Columns::all(rows).operand());
        let operands = [q.operand(), keys.operand(), second.operand(), of_o, of_do];
        let call = BackwardQueries {
            a: self,
            plan,
            q,
            keys,
            own,
            saved,
            d_o,
            dq,
            delta,
        };
        match self.method(gpu, &operands, &[dq.operand()]) {
            Method::Native => native::backward_queries(gpu, &call),
            Method::Flash => flash::backward_queries(gpu, &call),
            Method::Materialised => materialised::backward_queries(gpu, &call),
        }
    }

    /// dk and dv of the key runs, written to (or, with `add`, added to) the columns `dkeys`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_keys(
        &self,
        gpu: &Gpu,
        plan: &KeyPlan,
        q: Columns<'_>,
        keys: Keys<'_>,
        saved: Saved<'_>,
        d_o: &Tensor,
        delta: &Tensor,
        dkeys: Keys<'_>,
        add: bool,
    ) {
        let operands = [q.operand(), keys.operand(), Columns::all(d_o).operand()];
        let call = BackwardKeys {
            a: self,
            plan,
            q,
            keys,
            saved,
            d_o,
            delta,
            dkeys,
            add,
        };
        match self.method(gpu, &operands, &[dkeys.operand()]) {
            Method::Native => native::backward_keys(gpu, &call),
            Method::Flash => flash::backward_keys(gpu, &call),
            Method::Materialised => materialised::backward_keys(gpu, &call),
        }
    }
}
