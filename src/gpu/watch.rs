//! A witness of every launch: sees its operands before and after.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::{Gpu, Tensor};

/// Sees launches go by, and may launch kernels itself, which it does not see.
pub(crate) trait Witness: Send + Sync {
    /// Memory that nothing has written yet.
    fn fresh(&self, gpu: &Gpu, memory: &Tensor);
    fn before(&self, gpu: &Gpu, operands: &[&Tensor]);
    fn after(&self, gpu: &Gpu, op: &'static str, operands: &[&Tensor]);
}

impl Gpu {
    /// Calls `witness` for every launch from now on; `None`: nobody any more.
    pub(crate) fn watch(&self, witness: Option<Arc<dyn Witness>>) {
        self.0.watching.store(witness.is_some(), Ordering::Relaxed);
        *self.0.witness.lock().unwrap_or_else(PoisonError::into_inner) = witness;
    }

    pub(crate) fn before(&self, operands: &[&Tensor]) {
        self.testify(|witness| witness.before(self, operands));
    }

    pub(crate) fn after(&self, op: &'static str, operands: &[&Tensor]) {
        self.testify(|witness| witness.after(self, op, operands));
    }

    pub(super) fn fresh(&self, memory: &Tensor) {
        self.testify(|witness| witness.fresh(self, memory));
    }

    fn testify(&self, what: impl FnOnce(&dyn Witness)) {
        if !self.0.watching.load(Ordering::Relaxed) {
            return;
        }
        // Off while the witness works, which launches kernels of its own.
        self.0.watching.store(false, Ordering::Relaxed);
        let witness = self.0.witness.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(witness) = witness {
            what(witness.as_ref());
            self.0.watching.store(true, Ordering::Relaxed);
        }
    }

    /// The kernels that `work` launches, in the order of their first launch.
    pub fn kernels_of(&self, work: impl FnOnce()) -> Vec<&'static str> {
        let noted = || self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        *noted() = Some(Vec::new());
        work();
        noted().take().unwrap_or_default()
    }

    /// Notes a launch for [`Gpu::kernels_of`].
    pub(crate) fn launches(&self, kernel: &'static str) {
        let mut noted = self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernels) = noted.as_mut()
            && !kernels.contains(&kernel)
        {
            kernels.push(kernel);
        }
    }

    /// The running phase: the first, where several share it.
    pub(crate) fn current_phase(&self) -> &'static str {
        self.recorder().phase()
    }
}
