//! A case: a name that never changes, and one op on one shape.

use serde::Serialize;

use super::attention::AttentionCase;
use super::losses::Loss;
use super::moves::Move;
use super::product::Product;
use super::rotation::Rotation;
use super::rows::RowOp;
use super::updates::UpdateCase;
use super::work::{Room, Work};
use crate::gpu::{Caps, DType, Gpu};

/// One op on one shape. In lists its fields stand beside the name, and `kind` says which they are.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Op {
    Product(Product),
    Attention(AttentionCase),
    Rows(RowOp),
    Rope(Rotation),
    Move(Move),
    Update(UpdateCase),
    Loss(Loss),
}

impl Op {
    /// The work, in `room`.
    pub fn work(&self, room: Room<'_>) -> Work {
        match self {
            Op::Product(op) => op.work(room),
            Op::Attention(op) => op.work(room),
            Op::Rows(op) => op.work(room),
            Op::Rope(op) => op.work(room),
            Op::Move(op) => op.work(room),
            Op::Update(op) => op.work(room),
            Op::Loss(op) => op.work(room),
        }
    }

    /// Is it measured against the device's arithmetic, or against its memory alone?
    pub fn counts_flops(&self) -> bool {
        matches!(self, Op::Product(_) | Op::Attention(_))
    }
}

/// A named op.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// `op/where/direction/batch`: what results are joined by.
    pub name: String,
    #[serde(flatten)]
    pub op: Op,
}

/// A case as it is listed: what a peer needs to do the same.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    #[serde(flatten)]
    pub case: Case,
    pub flops: f64,
    pub bytes: f64,
    /// Memory of one copy of the operands.
    pub held_bytes: u64,
    /// The least time on a device whose rates are known, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_us: Option<f64>,
}

impl Case {
    /// With its costs, as counted without a device.
    pub fn listed(&self, dtype: DType) -> Listed {
        let gpu = Gpu::null(Caps::planning());
        let work = self.op.work(Room::new(&gpu, dtype, 0));
        Listed {
            case: self.clone(),
            flops: work.flops,
            bytes: work.bytes,
            held_bytes: work.held,
            floor_us: None,
        }
    }
}
