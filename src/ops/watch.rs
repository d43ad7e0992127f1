//! Which launch was the first to write a number that is not finite.
//!
//! While a [`Watch`] lives, the non-finite elements of every floating point operand are counted on the device before and
//! after each launch, and new memory is zeroed, so that leftovers are not mistaken for results. Counts stay on the device
//! until [`Watch::finish`]: nothing waits. A launch is the first culprit when an operand has more such elements after it
//! than before; constants that are infinite by design do not grow.
//!
//! Cost: every operand is read twice more, and some eight launches are added to each: for debugging.

use std::sync::{Arc, Mutex, PoisonError};

use super::{fill, reduce};
use crate::gpu::watch::Witness;
use crate::gpu::{DType, Gpu, Result, Tensor};

/// Counts that are allocated together.
const PAGE: usize = 4096;

/// The first launch that wrote something not finite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub op: &'static str,
    pub phase: &'static str,
    /// Which launch it was since the watch began, from 0, and which of its operands.
    pub launch: usize,
    pub operand: usize,
    pub shape: Vec<usize>,
    /// Its elements that are not finite now.
    pub bad: usize,
    /// Whether the launch was given such elements, rather than making them of finite ones.
    pub given: bool,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Finding { op, phase, bad, .. } = self;
        let elements: usize = self.shape.iter().product();
        let given = if self.given { ", given such numbers," } else { "" };
        write!(
            f,
            "`{op}` in phase \"{phase}\"{given} was the first to write numbers that are not finite ({bad} of {elements} in an \
             operand of shape {:?})",
            self.shape
        )
    }
}

/// One count.
struct Entry {
    launch: usize,
    operand: usize,
    after: bool,
    op: &'static str,
    phase: &'static str,
    shape: Vec<usize>,
}

#[derive(Default)]
struct Ledger {
    /// `[PAGE, 2]` each: Σ x² and non-finite count of every entry.
    pages: Vec<Tensor>,
    entries: Vec<Entry>,
    launches: usize,
}

struct Counter(Mutex<Ledger>);

/// Watches every launch of a device as long as it lives.
pub struct Watch {
    gpu: Gpu,
    counter: Arc<Counter>,
}

impl Watch {
    /// Watches from now on.
    pub fn begin(gpu: &Gpu) -> Watch {
        let counter = Arc::new(Counter(Mutex::default()));
        gpu.watch(Some(counter.clone()));
        Watch {
            gpu: gpu.clone(),
            counter,
        }
    }

    /// Ends the watch and waits for what it saw.
    ///
    /// # Errors
    /// A device that failed.
    pub fn finish(self) -> Result<Option<Finding>> {
        self.gpu.watch(None);
        let ledger = self.counter.ledger();
        let mut counts = Vec::with_capacity(ledger.pages.len() * PAGE);
        for page in &ledger.pages {
            counts.extend(self.gpu.read_f32(page)?.chunks(2).map(|pair| pair[1]));
        }
        Ok(ledger.first_culprit(&counts))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.gpu.watch(None);
    }
}

impl Ledger {
    fn first_culprit(&self, counts: &[f32]) -> Option<Finding> {
        let numbered: Vec<(&Entry, f32)> = self.entries.iter().zip(counts.iter().copied()).collect();
        numbered.chunk_by(|a, b| a.0.launch == b.0.launch).find_map(|launch| {
            let before = |operand: usize| {
                let entry = launch.iter().find(|(e, _)| !e.after && e.operand == operand);
                entry.map_or(0.0, |(_, bad)| *bad)
            };
            let (entry, bad) = launch.iter().find(|(e, bad)| e.after && *bad > before(e.operand))?;
            Some(Finding {
                op: entry.op,
                phase: entry.phase,
                launch: entry.launch,
                operand: entry.operand,
                shape: entry.shape.clone(),
                bad: *bad as usize,
                given: launch.iter().any(|(e, bad)| !e.after && *bad > 0.0),
            })
        })
    }
}

impl Counter {
    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, gpu: &Gpu, op: &'static str, operands: &[&Tensor], after: bool) {
        let mut ledger = self.ledger();
        let (launch, phase) = (ledger.launches, gpu.current_phase());
        let floats = operands
            .iter()
            .enumerate()
            .filter(|(_, t)| is_float(t) && !t.is_empty());
        for (operand, tensor) in floats {
            let row = ledger.entries.len();
            if row == ledger.pages.len() * PAGE {
                ledger.pages.push(gpu.f32([PAGE, 2]));
            }
            let out = ledger.pages[row / PAGE].rows(row % PAGE..row % PAGE + 1);
            reduce::squares(gpu, &[tensor.view([tensor.len()])], &out);
            ledger.entries.push(Entry {
                launch,
                operand,
                after,
                op,
                phase,
                shape: tensor.shape().to_vec(),
            });
        }
        ledger.launches += usize::from(after);
    }
}

fn is_float(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::Bf16)
}

impl Witness for Counter {
    fn fresh(&self, gpu: &Gpu, memory: &Tensor) {
        if is_float(memory) {
            fill::zero(gpu, memory);
        }
    }

    fn before(&self, gpu: &Gpu, operands: &[&Tensor]) {
        self.count(gpu, "", operands, false);
    }

    fn after(&self, gpu: &Gpu, op: &'static str, operands: &[&Tensor]) {
        self.count(gpu, op, operands, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::flow;
    use crate::ops::testing::gpu;

    #[test]
    fn the_first_launch_is_named() {
        let gpu = gpu();
        let x = gpu.upload_f32(&[1.0, 3e38, 2.0], [3]);
        let (y, z) = (gpu.f32([3]), gpu.f32([3]));
        let watch = Watch::begin(&gpu);
        gpu.phase(&[("forward", 1.0)]);
        flow::scaled(&gpu, &x, 0.5, &y);
        gpu.phase(&[("backward", 1.0)]);
        flow::scaled(&gpu, &x, 10.0, &y);
        flow::scaled(&gpu, &y, 1.0, &z);
        let found = watch.finish().expect("the device works").expect("a finding");
        let wanted = Finding {
            op: "flow_scaled",
            phase: "backward",
            launch: 1,
            operand: 1,
            shape: vec![3],
            bad: 1,
            given: false,
        };
        assert_eq!(found, wanted);
        assert_eq!(gpu.read_f32(&z).expect("the device works")[2], 20.0);
    }

    #[test]
    fn what_was_given_is_told_from_what_was_made() {
        let gpu = gpu();
        let x = gpu.upload_f32(&[f32::NAN, 1.0], [2]);
        let y = gpu.f32([2]);
        let watch = Watch::begin(&gpu);
        flow::scaled(&gpu, &x, 0.5, &y);
        let found = watch.finish().expect("the device works").expect("a finding");
        assert!(found.given && found.operand == 1, "{found}");
        // Nobody watches any more, and new memory is no launch.
        let watch = Watch::begin(&gpu);
        let fresh = gpu.f32([2]);
        assert_eq!(gpu.read_f32(&fresh).expect("the device works"), [0.0, 0.0]);
        assert_eq!(watch.finish().expect("the device works"), None);
    }
}
