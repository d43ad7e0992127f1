//! Learning rate: linear warmup, then a cosine down to the end value.
//!
//! ```text
//! start = peak / (warmup + 1)
//! step < warmup:  start + (peak - start) step / warmup
//! else:           end + (peak - end) (1 + cos(π s)) / 2,  s = (step - warmup) / (decay - warmup), at most 1
//! ```
//! A pure function of the step, so resuming cannot shift it. Source: openpi's `CosineDecaySchedule` (optax).

use std::f64::consts::PI;

/// The rate of update number `step`, counted from 0.
pub fn warmup_cosine(step: u64, peak: f64, end: f64, warmup: u64, decay: u64) -> f64 {
    if step < warmup {
        let start = peak / (warmup + 1) as f64;
        return start + (peak - start) * step as f64 / warmup as f64;
    }
    let span = decay.saturating_sub(warmup).max(1) as f64;
    let share = ((step - warmup) as f64 / span).clamp(0.0, 1.0);
    end + (peak - end) * 0.5 * (1.0 + libm::cos(PI * share))
}
