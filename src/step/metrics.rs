//! Numbers a step leaves on the device, and how they come back without waiting.
//!
//! ```text
//! [ slots | gradients | weights | joints: J | first micro-batch: q [E, b], target [b] | second micro-batch … ]
//! ```
//! Losses and norms are sums made on the device. Values of single samples are kept as they are, E + 1 floats each: the
//! host makes extremes and quantiles of them, and a few kilobytes a step cost nothing.

use std::cell::RefCell;

use super::learner::Learner;
use crate::gpu::{DType, Gpu, PendingRead, Result, Tensor};
use crate::model::params::Room;
use crate::ops::fill;

/// One number per step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Slot {
    CriticLoss,
    ActorLoss,
    BcLoss,
    /// Zero where its weight is.
    SmoothnessLoss,
    /// Mean over samples of the best candidate's aggregate, and of all candidates'.
    BestQ,
    CandidateQ,
    /// Entropy estimate of the candidates, and the temperature's loss.
    Entropy,
    TemperatureLoss,
    /// `log α` after the update.
    LogAlpha,
    /// Updates skipped so far because a gradient was not finite.
    Skipped,
    /// Number of slots.
    Count,
}

const ROOMS: usize = Room::ALL.len();
/// Σ g² and non-finite gradients of each room, then of the temperature.
const GRADIENTS: usize = Slot::Count as usize;
/// Σ p² and non-finite weights of each room.
const WEIGHTS: usize = GRADIENTS + 2 * (ROOMS + 1);
/// Squared velocity errors of the robot's coordinates.
const JOINTS: usize = WEIGHTS + 2 * ROOMS;

/// What is measured of single samples and joints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// E.
    pub critics: usize,
    /// Samples of an optimizer step.
    pub samples: usize,
    /// Coordinates the robot has (J).
    pub joints: usize,
}

impl Layout {
    fn samples_at(&self) -> usize {
        JOINTS + self.joints
    }

    fn len(&self) -> usize {
        self.samples_at() + (self.critics + 1) * self.samples
    }
}

/// The numbers of one step on the device.
pub struct Metrics {
    values: Tensor,
    layout: Layout,
    /// Samples of each micro-batch since [`Metrics::clear`].
    parts: RefCell<Vec<usize>>,
}

impl Metrics {
    /// Room for the numbers of one step of `samples` samples.
    pub fn new(learner: &Learner, samples: usize) -> Metrics {
        let gpu = &learner.gpu;
        let layout = Layout {
            critics: learner.critic_dims.critics,
            samples,
            joints: learner.critic_dims.real_action_dim,
        };
        let values = gpu.alloc_in(gpu.states(), DType::F32, [layout.len()]);
        fill::zero(gpu, &values);
        Metrics {
            values,
            layout,
            parts: RefCell::default(),
        }
    }

    /// Starts a step.
    pub fn clear(&self, gpu: &Gpu) {
        fill::zero(gpu, &self.values);
        self.parts.borrow_mut().clear();
    }

    /// Where a number goes, `[1]`.
    pub fn slot(&self, slot: Slot) -> Tensor {
        self.values.slice(slot as usize, [1])
    }

    /// Σ g² and non-finite gradients of each room in the order of [`Room::ALL`], then of the temperature, `[5, 2]`.
    pub fn gradients(&self) -> Tensor {
        self.values.slice(GRADIENTS, [ROOMS + 1, 2])
    }

    /// Σ p² and non-finite weights of each room, `[4, 2]`.
    pub fn weights(&self) -> Tensor {
        self.values.slice(WEIGHTS, [ROOMS, 2])
    }

    /// Squared velocity error of each of the robot's coordinates, `[J]`.
    pub fn joints(&self) -> Tensor {
        self.values.slice(JOINTS, [self.layout.joints])
    }

    /// Keeps `q [E, b]` and `target [b]` of the next micro-batch.
    pub(super) fn keep(&self, gpu: &Gpu, q: &Tensor, target: &Tensor) {
        let (b, e) = (target.len(), self.layout.critics);
        let mut parts = self.parts.borrow_mut();
        let first: usize = parts.iter().sum();
        assert!(
            first + b <= self.layout.samples,
            "a step of {} samples got more than that",
            self.layout.samples
        );
        let at = self.layout.samples_at() + first * (e + 1);
        gpu.copy(&q.view([e * b]), &self.values.slice(at, [e * b]));
        gpu.copy(target, &self.values.slice(at + e * b, [b]));
        parts.push(b);
    }

    /// Starts reading everything as it is after the work issued so far.
    pub fn read_later(&self, gpu: &Gpu) -> PendingValues {
        PendingValues {
            read: gpu.read_later(&self.values),
            layout: self.layout,
            parts: self.parts.borrow().clone(),
        }
    }

    /// Reads everything now.
    pub fn read(&self, gpu: &Gpu) -> Result<Values> {
        self.read_later(gpu).wait()
    }
}

/// Numbers on their way to the host.
pub struct PendingValues {
    read: PendingRead,
    layout: Layout,
    parts: Vec<usize>,
}

impl PendingValues {
    /// The numbers, as soon as they have come.
    ///
    /// # Errors
    /// A device that failed.
    pub fn wait(self) -> Result<Values> {
        let PendingValues { read, layout, parts } = self;
        read.wait().map(|values| Values { values, layout, parts })
    }
}

/// One step's numbers on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    values: Vec<f32>,
    layout: Layout,
    parts: Vec<usize>,
}

impl Values {
    /// One number.
    pub fn get(&self, slot: Slot) -> f32 {
        self.values[slot as usize]
    }

    /// What the numbers are of.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Norm of the gradients of some rooms.
    pub fn gradient_norm(&self, rooms: &[Room]) -> f64 {
        self.norm(GRADIENTS, rooms)
    }

    /// Norm of the weights of some rooms; zero where it was not computed.
    pub fn weight_norm(&self, rooms: &[Room]) -> f64 {
        self.norm(WEIGHTS, rooms)
    }

    fn norm(&self, first: usize, rooms: &[Room]) -> f64 {
        let squares = |room: &Room| f64::from(self.values[first + 2 * (*room as usize)]);
        rooms.iter().map(squares).sum::<f64>().sqrt()
    }

    /// Gradients that were not finite: of some rooms, or of the temperature (`None`).
    pub fn bad_gradients(&self, rooms: Option<&[Room]>) -> f32 {
        let count = |room: usize| self.values[GRADIENTS + 2 * room + 1];
        match rooms {
            Some(rooms) => rooms.iter().map(|room| count(*room as usize)).sum(),
            None => count(ROOMS),
        }
    }

    /// Squared velocity error of each joint, weighted as the BC loss.
    pub fn joints(&self) -> &[f32] {
        &self.values[JOINTS..self.layout.samples_at()]
    }

    /// Values of all samples at the data's actions by critic `member`, with their targets: (Q, target).
    pub fn q(&self, member: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        let e = self.layout.critics;
        let mut at = self.layout.samples_at();
        self.parts.iter().flat_map(move |&b| {
            let (q, target) = (at + member * b, at + e * b);
            at += (e + 1) * b;
            (0..b).map(move |i| (self.values[q + i], self.values[target + i]))
        })
    }
}
