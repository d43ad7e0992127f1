//! Learning rate: linear warm-up, cosine decay.

use std::f64::consts::PI;

/// The learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Highest rate, reached at step `warmup`.
    pub peak: f64,
    /// Rate from step `decay` on.
    pub end: f64,
    pub warmup: u64,
    /// Greater than `warmup`.
    pub decay: u64,
}

impl Schedule {
    /// The rate of the update that `step` counts from 0. Source: optax `warmup_cosine_decay_schedule` with openpi's
    /// initial value `peak / (warmup + 1)`. The cosine is `libm`'s, so that all machines learn at the same rate.
    pub fn lr(&self, step: u64) -> f64 {
        let start = self.peak / (self.warmup as f64 + 1.0);
        if step < self.warmup {
            return start + (self.peak - start) * step as f64 / self.warmup as f64;
        }
        let length = self.decay.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        self.end + (self.peak - self.end) * 0.5 * (1.0 + libm::cos(PI * done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_to_the_peak_and_falls_to_the_end() {
        let s = Schedule {
            peak: 1.0,
            end: 0.1,
            warmup: 10,
            decay: 110,
        };
        assert!((1..10).all(|t| s.lr(t) > s.lr(t - 1)) && (11..111).all(|t| s.lr(t) < s.lr(t - 1)));
        assert_eq!((s.lr(0), s.lr(10)), (1.0 / 11.0, 1.0));
        assert!((s.lr(60) - 0.55).abs() < 1e-12 && (s.lr(110) - 0.1).abs() < 1e-12);
        assert_eq!(s.lr(110), s.lr(u64::MAX));
        assert_eq!(Schedule { warmup: 0, ..s }.lr(0), 1.0);
    }
}
