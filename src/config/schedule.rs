//! Learning rate: linear warm-up, cosine decay.

use crate::ops::lr_schedule::warmup_cosine;

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
    /// The rate of the update that `step` counts from 0.
    pub fn lr(&self, step: u64) -> f64 {
        warmup_cosine(step, self.peak, self.end, self.warmup, self.decay)
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
