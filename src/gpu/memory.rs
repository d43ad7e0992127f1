//! What a device holds.

use super::{ArenaUse, Backend, Gpu, Result};

/// Memory of a device in bytes, now and at most so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Activations and workspaces of the running step.
    pub scratch: ArenaUse,
    /// Weights, gradients and optimizer states.
    pub states: ArenaUse,
    /// All that was taken from the driver: the pages of both arenas, and the pool of uploads.
    pub reserved: u64,
    /// Pages of the pool of uploads, where there is no backend to ask.
    pub uploads: Vec<u64>,
}

impl MemoryUse {
    /// Bytes handed out now.
    pub fn used(&self) -> u64 {
        self.scratch.used + self.states.used
    }

    /// Most bytes handed out: an upper bound, as the two arenas may have peaked at different times.
    pub fn peak(&self) -> u64 {
        self.scratch.peak + self.states.peak
    }
}

impl Gpu {
    /// Current and peak use of memory. Waits until earlier work is issued, not until it is done.
    pub fn memory(&self) -> Result<MemoryUse> {
        self.check()?;
        let (scratch, states) = (self.scratch().usage(), self.states().usage());
        let usage = match self.backend() {
            Backend::Wgpu(c) => Some(c.memory_usage()),
            Backend::Cuda(c) => Some(c.memory_usage()),
            Backend::Dry(_) | Backend::DryWgpu(_) | Backend::Null => None,
        };
        let uploads = self.0.pool.as_ref().map(|pool| pool.pages()).unwrap_or_default();
        let reserved = match usage {
            Some(usage) => self.settle(usage)?.bytes_reserved,
            None => scratch.reserved + states.reserved + uploads.iter().sum::<u64>(),
        };
        Ok(MemoryUse {
            scratch,
            states,
            reserved,
            uploads,
        })
    }

    /// Gives back to the driver what nothing uses any more: pages of devices that were closed.
    pub fn release_memory(&self) {
        match self.backend() {
            Backend::Wgpu(c) => c.memory_cleanup(),
            Backend::Cuda(c) => c.memory_cleanup(),
            Backend::Dry(_) | Backend::DryWgpu(_) | Backend::Null => {}
        }
    }
}
