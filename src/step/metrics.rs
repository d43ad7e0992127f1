//! Numbers a step leaves on the device, and how they come back without waiting.

use crate::gpu::{DType, Gpu, PendingRead, Result, Tensor};
use crate::ops::fill;

/// One number per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Slot {
    CriticLoss,
    ActorLoss,
    BcLoss,
    /// Mean of Q over members and samples at the data's actions.
    Q,
    /// Mean target.
    Target,
    /// Mean over samples of the best candidate's aggregate, and of all candidates'.
    BestQ,
    CandidateQ,
    /// Entropy estimate of the candidates, and the temperature's loss.
    Entropy,
    TemperatureLoss,
    /// `log α` after the update.
    LogAlpha,
    /// Σ g² and non-finite gradients, of each group in the order of its index.
    Pi0Squares,
    Pi0Bad,
    CriticSquares,
    CriticBad,
    TemperatureSquares,
    TemperatureBad,
    /// Updates skipped so far because a gradient was not finite.
    Skipped,
    /// Number of slots.
    Count,
}

/// The slots of one step on the device.
pub struct Metrics {
    values: Tensor,
}

impl Metrics {
    /// Room for one step's numbers.
    pub fn new(gpu: &Gpu) -> Metrics {
        let values = gpu.alloc_in(gpu.states(), DType::F32, [Slot::Count as usize]);
        fill::zero(gpu, &values);
        Metrics { values }
    }

    /// Starts a step.
    pub fn clear(&self, gpu: &Gpu) {
        fill::zero(gpu, &self.values);
    }

    /// Where a number goes, `[1]`.
    pub fn slot(&self, slot: Slot) -> Tensor {
        self.values.slice(slot as usize, [1])
    }

    /// `[3, 2]`: Σ g² and non-finite count of each group.
    pub fn squares(&self) -> Tensor {
        self.values.slice(Slot::Pi0Squares as usize, [3, 2])
    }

    /// Starts reading all slots as they are after the work issued so far.
    pub fn read_later(&self, gpu: &Gpu) -> PendingRead {
        gpu.read_later(&self.values)
    }

    /// Reads all slots now.
    pub fn read(&self, gpu: &Gpu) -> Result<Values> {
        gpu.read_f32(&self.values).map(Values)
    }
}

/// One step's numbers on the host.
#[derive(Clone, Debug)]
pub struct Values(pub Vec<f32>);

impl Values {
    /// One number.
    pub fn get(&self, slot: Slot) -> f32 {
        self.0[slot as usize]
    }

    /// Norm of π₀'s gradient.
    pub fn pi0_norm(&self) -> f32 {
        self.get(Slot::Pi0Squares).sqrt()
    }

    /// Norm of the critics' gradient.
    pub fn critic_norm(&self) -> f32 {
        self.get(Slot::CriticSquares).sqrt()
    }
}
