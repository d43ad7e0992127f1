//! From noise to actions: T Euler steps along the flow, all sequences in the same launches.
//!
//! Flow time runs from 1 (noise) to 0 (actions) as in openpi: `x ← x − v(x, t) / T`.

use crate::gpu::{Gpu, Tensor};
use crate::model::flow_time::FlowTimes;
use crate::model::prefix::Net;
use crate::model::suffix::{self, Output, RowTimes, Rows};

/// The times of T Euler steps: 1, 1 − 1/T, …, 1/T.
pub fn euler_times(steps: usize) -> Vec<f64> {
    (0..steps).map(|i| 1.0 + i as f64 * euler_step(steps)).collect()
}

/// What a step adds to the time.
pub fn euler_step(steps: usize) -> f64 {
    -1.0 / steps as f64
}

/// Fills `states [T + 1, rows · A]` from the noise in its first row. The first T of `times` are [`euler_times`];
/// nothing is kept for backward but the states themselves.
pub fn euler(gpu: &Gpu, net: &Net<'_>, rows: &Rows, times: &FlowTimes, cache: &[Tensor], states: &Tensor) {
    let (steps, a) = (states.dim(0) - 1, net.dims.action_dim);
    let at = |i: usize| states.rows(i..i + 1).view([rows.len, a]);
    let zeros = gpu.upload_u32(&vec![0; rows.len], [rows.len]);
    for index in 0..steps {
        let next = at(index + 1);
        let output = Output::Step {
            next: &next,
            step: euler_step(steps) as f32,
        };
        let all = RowTimes::All { index, zeros: &zeros };
        suffix::forward(gpu, net, rows, &at(index), times, all, cache, None, output);
    }
}
