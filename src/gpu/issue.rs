//! What the host does for the device: launches issued, waits, and how fast it issues while nothing holds it up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::Gpu;

/// The account of one device.
#[derive(Default)]
pub(super) struct Issue {
    /// Launches so far.
    launches: AtomicU64,
    /// Times the host has waited for all work.
    waits: AtomicU64,
    /// The launch whose time is noted; none at zero.
    mark: AtomicU64,
    marked: Mutex<Option<Instant>>,
}

impl Gpu {
    /// Counts a launch.
    pub(super) fn count_launch(&self) {
        let issue = &self.0.issue;
        let launches = 1 + issue.launches.fetch_add(1, Ordering::Relaxed);
        if launches == issue.mark.load(Ordering::Relaxed) {
            *issue.marked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    /// Counts a wait.
    pub(super) fn count_wait(&self) {
        self.0.issue.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// Times that the host has waited for all work of this device, reads of results included.
    pub fn waits(&self) -> u64 {
        self.0.issue.waits.load(Ordering::Relaxed)
    }

    /// Notes the time of the launch that is the `n`-th from now on, for [`Gpu::marked`].
    pub fn mark_launch(&self, n: u64) {
        let issue = &self.0.issue;
        *issue.marked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let launches = issue.launches.load(Ordering::Relaxed);
        issue.mark.store(launches + n, Ordering::Relaxed);
    }

    /// When the marked launch was issued, if it was.
    pub fn marked(&self) -> Option<Instant> {
        *self.0.issue.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use crate::ops::fill;
    use crate::ops::testing::gpu;

    #[test]
    fn launches_are_marked_and_waits_are_counted() {
        let gpu = gpu();
        let x = gpu.f32([64]);
        let before = gpu.waits();
        let began = Instant::now();
        gpu.mark_launch(2);
        fill::zero(&gpu, &x);
        assert_eq!(gpu.marked(), None);
        fill::zero(&gpu, &x);
        let second = gpu.marked().expect("two launches");
        fill::zero(&gpu, &x);
        assert_eq!((gpu.marked(), gpu.waits()), (Some(second), before));
        assert!(second >= began && second <= Instant::now());
        gpu.sync().expect("the device works");
        gpu.read_f32(&x).expect("the device works");
        assert_eq!(gpu.waits(), before + 2);
    }
}
