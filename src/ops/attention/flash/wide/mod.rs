//! Attention of wide heads (up to [`MAX_DIM`]) with scores in shared memory, a block of them at a time, and results in
//! registers: for GPUs that wgpu drives.
//!
//! Query heads that share keys are rows of one matrix: 64 (row, head of the group) a workgroup, against blocks of 64 keys. Both
//! products of a block are 4 × 4 per unit and step: scores from slices of 16 of both operands, and their sums with
//! chunks of 8 keys (or queries). The pass for dk and dv has 32 keys a workgroup, because it holds two results.

mod forward;
mod keys;
mod queries;
mod tiles;

use cubecl::prelude::*;
use forward::flash_wide_forward;
use keys::flash_wide_backward_keys;
use queries::flash_wide_backward_queries;

use super::super::{Attention, BackwardKeys, BackwardQueries, Forward};
use crate::gpu::launch::launch;
use crate::gpu::{Caps, Gpu};
use crate::ops::rope::Heads;

/// Widest head: a unit holds four rows of `dim / 16` columns.
const MAX_DIM: usize = 256;
/// Units of a workgroup, 16 × 16 of them.
const UNITS: usize = 256;
const SIDE: usize = 16;
/// Queries and keys of a block of scores.
const QUERIES: usize = 64;
const KEYS: usize = 64;
const KEYS_BACK: usize = 32;
/// Elements of heads in a slice, and from one line of it to the next: an odd number, for the banks.
const DEPTH: usize = 16;
const PITCH: usize = DEPTH + 1;
/// From one query's scores to the next one's.
const TILE_PITCH: usize = KEYS + 1;
const PITCH_BACK: usize = KEYS_BACK + 1;
/// Keys or queries that are added up at a time.
const CHUNK: usize = 8;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    heads: Heads,
    own: bool,
    lse: bool,
    add: bool,
}

impl Form {
    fn new(a: &Attention) -> Form {
        Form {
            heads: a.heads,
            own: false,
            lse: false,
            add: false,
        }
    }
}

/// Elements of the staging memory: slices of both operands, or a chunk, whose last line is read beyond its end.
fn stage_len(dim: usize) -> usize {
    ((QUERIES + KEYS) * PITCH).max(CHUNK * dim + SIDE)
}

/// Has the device what heads of this width need? The forward pass has the most shared memory.
pub(super) fn takes(caps: &Caps, dim: usize) -> bool {
    let shared = stage_len(dim) + QUERIES * TILE_PITCH + 3 * QUERIES + UNITS;
    caps.wgsl()
        && !caps.software
        && dim <= MAX_DIM
        && caps.max_units as usize >= UNITS
        && caps.max_shared_bytes as usize >= shared * 4
}

fn count(lines: usize, of: usize, entries: usize, heads: usize) -> CubeCount {
    CubeCount::Static(lines.div_ceil(of) as u32, entries as u32, heads as u32)
}

pub(super) fn forward(gpu: &Gpu, call: &Forward<'_>) {
    let Forward {
        a,
        plan,
        q,
        keys,
        own,
        o,
        lse,
    } = *call;
    let second = own.unwrap_or(keys);
    let form = Form {
        own: own.is_some(),
        lse: lse.is_some(),
        ..Form::new(a)
    };
    let types = [q.rows, keys.rows, second.rows, o].map(|t| t.dtype().storage());
    launch!(
        gpu,
        call.cost(),
        flash_wide_forward,
        count(
            plan.longest() * a.heads.group(),
            QUERIES,
            plan.sequences.len(),
            a.heads.kv
        ),
        CubeDim::new_1d(UNITS as u32),
        [q.rows, keys.rows, second.rows, &plan.table, o, lse.unwrap_or(o)],
        (
            q.places(),
            keys.places(),
            second.places(),
            1.0 / (a.heads.dim as f32).sqrt(),
            form,
            types,
        ),
    );
}

pub(super) fn backward_queries(gpu: &Gpu, call: &BackwardQueries<'_>) {
    let BackwardQueries {
        a,
        plan,
        q,
        keys,
        own,
        saved,
        d_o,
        dq,
        delta,
    } = *call;
    let second = own.unwrap_or(keys);
    let form = Form {
        own: own.is_some(),
        ..Form::new(a)
    };
    let types = [q.rows, keys.rows, second.rows, saved.o, d_o, dq.rows].map(|t| t.dtype().storage());
    launch!(
        gpu,
        call.cost(),
        flash_wide_backward_queries,
        count(
            plan.longest() * a.heads.group(),
            QUERIES,
            plan.sequences.len(),
            a.heads.kv
        ),
        CubeDim::new_1d(UNITS as u32),
        [
            q.rows,
            keys.rows,
            second.rows,
            &plan.table,
            saved.o,
            saved.lse,
            d_o,
            dq.rows,
            delta
        ],
        (
            q.places(),
            keys.places(),
            second.places(),
            dq.places(),
            1.0 / (a.heads.dim as f32).sqrt(),
            form,
            types,
        ),
    );
}

pub(super) fn backward_keys(gpu: &Gpu, call: &BackwardKeys<'_>) {
    let BackwardKeys {
        a,
        plan,
        q,
        keys,
        saved,
        d_o,
        delta,
        dkeys,
        add,
    } = *call;
    let form = Form { add, ..Form::new(a) };
    let types = [q.rows, keys.rows, d_o, dkeys.rows].map(|t| t.dtype().storage());
    launch!(
        gpu,
        call.cost(),
        flash_wide_backward_keys,
        count(plan.longest(), KEYS_BACK, plan.host.len(), a.heads.kv),
        CubeDim::new_1d(UNITS as u32),
        [
            q.rows,
            keys.rows,
            &plan.runs,
            &plan.queries,
            saved.lse,
            d_o,
            delta,
            dkeys.rows
        ],
        (
            q.places(),
            keys.places(),
            dkeys.places(),
            1.0 / (a.heads.dim as f32).sqrt(),
            form,
            types,
        ),
    );
}
