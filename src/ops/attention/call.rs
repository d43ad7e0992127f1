//! What the implementations of attention are given, and what a pass costs, whichever of them does it.

use super::{Attention, Columns, KeyPlan, Keys, Plan, Saved};
use crate::gpu::{Cost, Tensor};

/// [`Attention::forward`].
pub(super) struct Forward<'a> {
    pub a: &'a Attention,
    pub plan: &'a Plan,
    pub q: Columns<'a>,
    pub keys: Keys<'a>,
    pub own: Option<Keys<'a>>,
    pub o: &'a Tensor,
    pub lse: Option<&'a Tensor>,
}

impl Forward<'_> {
    pub fn cost(&self) -> Cost {
        let moved = bytes(&[self.q.rows, self.keys.rows, self.o]);
        Cost::new("attention", self.a.flops(self.plan.pairs(), 4.0), moved)
    }
}

/// [`Attention::backward_queries`].
pub(super) struct BackwardQueries<'a> {
    pub a: &'a Attention,
    pub plan: &'a Plan,
    pub q: Columns<'a>,
    pub keys: Keys<'a>,
    pub own: Option<Keys<'a>>,
    pub saved: Saved<'a>,
    pub d_o: &'a Tensor,
    pub dq: Columns<'a>,
    pub delta: &'a Tensor,
}

impl BackwardQueries<'_> {
    /// Of the ten multiply-adds of backward, dq is counted with the scores and do·v.
    pub fn cost(&self) -> Cost {
        let moved = bytes(&[self.q.rows, self.keys.rows, self.d_o, self.dq.rows]);
        Cost::new("attention_backward", self.a.flops(self.plan.pairs(), 6.0), moved)
    }
}

/// [`Attention::backward_keys`].
pub(super) struct BackwardKeys<'a> {
    pub a: &'a Attention,
    pub plan: &'a KeyPlan,
    pub q: Columns<'a>,
    pub keys: Keys<'a>,
    pub saved: Saved<'a>,
    pub d_o: &'a Tensor,
    pub delta: &'a Tensor,
    pub dkeys: Keys<'a>,
    pub add: bool,
}

impl BackwardKeys<'_> {
    /// Scores and do·v are recomputed here; they are counted once, with dq.
    pub fn cost(&self) -> Cost {
        let moved = bytes(&[self.q.rows, self.keys.rows, self.d_o, self.dkeys.rows]);
        Cost::new("attention_backward", self.a.flops(self.plan.pairs(), 4.0), moved)
    }
}

pub(super) fn bytes(tensors: &[&Tensor]) -> u64 {
    tensors.iter().map(|t| t.bytes()).sum()
}
