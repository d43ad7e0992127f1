//! Attention with scores in registers: one unit per query (or per key, for dk and dv), keys passed around by
//! broadcast. For heads up to [`MAX_DIM`]; larger ones do not fit into registers, and have passes of their own.
//!
//! A workgroup is one plane. It walks over the keys of its sequence a plane at a time: each unit loads one key, and
//! every unit then meets all of them: by register broadcast where planes are known, else through shared memory.

mod forward;
mod keys;
mod parts;
mod queries;
mod registers;
mod wide;

use cubecl::prelude::*;
use forward::flash_forward;
use keys::flash_backward_keys;
use queries::flash_backward_queries;

use super::{Attention, BackwardKeys, BackwardQueries, Forward};
use crate::gpu::launch::launch;
use crate::gpu::{Caps, Gpu, Tensor};
use crate::ops::pair::storage;
use crate::ops::rope::Heads;

/// Largest head whose scores stay in registers; wider ones go to [`wide`].
pub const MAX_DIM: usize = 32;
/// Queries of one unit in the forward pass: more of them share each loaded key.
const QUERIES: usize = 2;
/// Below every score: the start of a running maximum.
const LOWEST: f32 = -1.0e30;

/// What is compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Form {
    heads: Heads,
    /// Units of a workgroup.
    units: usize,
    /// Broadcast between registers; else through shared memory.
    plane: bool,
    own: bool,
    lse: bool,
    add: bool,
    wide_q: bool,
    wide_k: bool,
    wide_own: bool,
    wide_o: bool,
    wide_d: bool,
}

impl Form {
    fn new(gpu: &Gpu, a: &Attention) -> Form {
        let caps = gpu.caps();
        let plane = caps.plane.is_some() && (caps.software || matches!(caps.plane, Some(32)));
        Form {
            heads: a.heads,
            units: if plane { caps.plane.unwrap_or(32) as usize } else { 32 },
            plane,
            own: false,
            lse: false,
            add: false,
            wide_q: false,
            wide_k: false,
            wide_own: false,
            wide_o: false,
            wide_d: false,
        }
    }
}

/// Does this implementation serve heads of this width on such a device?
pub(super) fn takes(caps: &Caps, dim: usize) -> bool {
    dim <= MAX_DIM || wide::takes(caps, dim)
}

/// May the heads in these columns be moved as pairs?
fn wide(gpu: &Gpu, rows: &Tensor, columns: &[usize], dim: usize) -> bool {
    gpu.caps().wide_loads
        && rows.pairs()
        && dim.is_multiple_of(2)
        && rows.dim(1).is_multiple_of(2)
        && columns.iter().all(|c| c.is_multiple_of(2))
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
    let dim = a.heads.dim;
    if dim > MAX_DIM {
        return wide::forward(gpu, call);
    }
    let second = own.unwrap_or(keys);
    let form = Form {
        own: own.is_some(),
        lse: lse.is_some(),
        wide_q: wide(gpu, q.rows, &[q.column], dim),
        wide_k: wide(gpu, keys.rows, &[keys.k, keys.v], dim),
        wide_own: wide(gpu, second.rows, &[second.k, second.v], dim),
        wide_o: wide(gpu, o, &[], dim),
        ..Form::new(gpu, a)
    };
    let types = [
        storage(q.rows, form.wide_q),
        storage(keys.rows, form.wide_k),
        storage(second.rows, form.wide_own),
        storage(o, form.wide_o),
    ];
    let blocks = (plan.longest() * a.heads.group()).div_ceil(form.units * QUERIES);
    let count = CubeCount::Static(blocks as u32, plan.sequences.len() as u32, a.heads.kv as u32);
    launch!(
        gpu,
        call.cost(),
        flash_forward,
        count,
        CubeDim::new_1d(form.units as u32),
        [q.rows, keys.rows, second.rows, &plan.table, o, lse.unwrap_or(o)],
        (
            q.places(),
            keys.places(),
            second.places(),
            1.0 / (dim as f32).sqrt(),
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
    let dim = a.heads.dim;
    if dim > MAX_DIM {
        return wide::backward_queries(gpu, call);
    }
    let second = own.unwrap_or(keys);
    let form = Form {
        own: own.is_some(),
        wide_q: wide(gpu, q.rows, &[q.column], dim),
        wide_k: wide(gpu, keys.rows, &[keys.k, keys.v], dim),
        wide_own: wide(gpu, second.rows, &[second.k, second.v], dim),
        wide_o: wide(gpu, saved.o, &[], dim) && wide(gpu, d_o, &[], dim),
        wide_d: wide(gpu, dq.rows, &[dq.column], dim),
        ..Form::new(gpu, a)
    };
    let types = [
        storage(q.rows, form.wide_q),
        storage(keys.rows, form.wide_k),
        storage(second.rows, form.wide_own),
        storage(saved.o, form.wide_o),
        storage(d_o, form.wide_o),
        storage(dq.rows, form.wide_d),
    ];
    let blocks = (plan.longest() * a.heads.group()).div_ceil(form.units);
    let count = CubeCount::Static(blocks as u32, plan.sequences.len() as u32, a.heads.kv as u32);
    launch!(
        gpu,
        call.cost(),
        flash_backward_queries,
        count,
        CubeDim::new_1d(form.units as u32),
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
            1.0 / (dim as f32).sqrt(),
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
    let dim = a.heads.dim;
    if dim > MAX_DIM {
        return wide::backward_keys(gpu, call);
    }
    let form = Form {
        add,
        wide_q: wide(gpu, q.rows, &[q.column], dim),
        wide_k: wide(gpu, keys.rows, &[keys.k, keys.v], dim),
        wide_o: wide(gpu, d_o, &[], dim),
        wide_d: wide(gpu, dkeys.rows, &[dkeys.k, dkeys.v], dim),
        ..Form::new(gpu, a)
    };
    let types = [
        storage(q.rows, form.wide_q),
        storage(keys.rows, form.wide_k),
        storage(d_o, form.wide_o),
        storage(dkeys.rows, form.wide_d),
    ];
    let blocks = plan.longest().div_ceil(form.units);
    let count = CubeCount::Static(blocks as u32, plan.host.len() as u32, a.heads.kv as u32);
    launch!(
        gpu,
        call.cost(),
        flash_backward_keys,
        count,
        CubeDim::new_1d(form.units as u32),
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
            q.ld(),
            q.column,
            keys.ld(),
            keys.k,
            keys.v,
            dkeys.ld(),
            dkeys.k,
            dkeys.v,
            1.0 / (dim as f32).sqrt(),
            form,
            types,
        ),
    );
}
