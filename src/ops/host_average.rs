//! A moving average of device weights in host memory.
//!
//! ```text
//! e ← e + rate (p - e)
//! ```
//! the operations, in the order and with the roundings, of the update kernels' average ([`adamw`](super::adamw)), so that
//! both have the same bits: CUDA's compiler makes one rounding of the product and the sum, other devices round both.
//!
//! New weights are read after the update that makes them, and averaged by a thread while the next step runs. An update that
//! the guard skips does not move the average. Whoever reads the average waits for the thread first.
//!
//! Cost: per update 4 bytes a weight over the host's link, in the order of the device's work; 12 bytes a weight of host
//! memory traffic. Host memory: 4 bytes a weight, and what has arrived and is not averaged yet.

use std::sync::{Arc, Mutex, MutexGuard};

use cubecl_common::bytes::Bytes;

use super::split::Values;
use crate::gpu::follow::{Batch, Follower};
use crate::gpu::{Api, Gpu, Result, Tensor};

/// Values that are read at a time.
const PIECE: usize = 8 << 20;
/// Values of a thread, at least.
const SHARE: usize = 1 << 16;
/// Most threads that average.
const THREADS: usize = 16;

type Page = Arc<Mutex<Vec<f32>>>;

/// Pages of averages.
pub struct HostAverage {
    gpu: Gpu,
    pages: Vec<Page>,
    /// None on devices that hold no weights.
    follower: Option<Follower<Part>>,
}

/// What a read is for.
enum Part {
    /// Does the update apply?
    Flag,
    Move {
        page: Page,
        start: usize,
        /// `None`: the average becomes the weights.
        rate: Option<f32>,
    },
}

impl HostAverage {
    /// Zeros, of these lengths; at most `room` bytes of weights wait to be averaged.
    ///
    /// # Errors
    /// A system that gives no thread.
    pub fn new(gpu: &Gpu, lengths: &[usize], room: u64) -> Result<Arc<HostAverage>> {
        let fused = gpu.caps().api == Api::Cuda;
        let mut apply = true;
        let take = move |part: Part, bytes: &[Bytes]| match part {
            Part::Flag => apply = bytes.first().is_some_and(|b| b[..4] == 1.0f32.to_le_bytes()),
            Part::Move { page, start, rate } => {
                if apply || rate.is_none() {
                    take_in(&mut lock(&page)[start..], bytes, rate, fused);
                }
            }
        };
        let follower = Follower::new(gpu, room, Box::new(take))?;
        // Without a device nothing is ever written, and nothing has to be there.
        let zeros = |&n: &usize| Page::new(Mutex::new(vec![0.0; if follower.is_some() { n } else { 0 }]));
        Ok(Arc::new(HostAverage {
            gpu: gpu.clone(),
            pages: lengths.iter().map(zeros).collect(),
            follower,
        }))
    }

    /// Moves the averages of flat ranges of pages, given as (page, start, weights), if `flag` (f32) is one: both as they
    /// are after all work so far. Returns when everything is on its way.
    pub fn update(&self, flag: &Tensor, weights: &[(usize, usize, Values)], rate: f32) {
        let mut batch = vec![(Part::Flag, vec![flag.clone()])];
        self.pieces(weights, Some(rate), &mut batch);
        self.follow(batch);
    }

    /// Sets the averages of flat ranges to the weights.
    pub fn begin(&self, weights: &[(usize, usize, Values)]) {
        let mut batch = Vec::new();
        self.pieces(weights, None, &mut batch);
        self.follow(batch);
    }

    fn follow(&self, batch: Batch<Part>) {
        if let (Some(follower), None) = (&self.follower, self.gpu.fault()) {
            follower.follow(&self.gpu, batch);
        }
    }

    fn pieces(&self, weights: &[(usize, usize, Values)], rate: Option<f32>, batch: &mut Batch<Part>) {
        for (page, start, values) in weights {
            for first in (0..values.len()).step_by(PIECE) {
                let piece = values.slice(first, PIECE.min(values.len() - first));
                let part = Part::Move {
                    page: self.pages[*page].clone(),
                    start: start + first,
                    rate,
                };
                batch.push((part, std::iter::once(piece.high).chain(piece.low).collect()));
            }
        }
    }

    /// A range of a page.
    pub fn range(self: &Arc<Self>, page: usize, start: usize, len: usize) -> HostRange {
        HostRange {
            average: self.clone(),
            page,
            start,
            len,
        }
    }
}

/// Bytes of weights that may wait to be averaged: a quarter of the memory that the system has left.
pub fn room() -> u64 {
    const UNKNOWN: u64 = 1 << 30;
    crate::host_memory::free().map_or(UNKNOWN, |bytes| bytes / 4)
}

/// A range of averages.
#[derive(Clone)]
pub struct HostRange {
    average: Arc<HostAverage>,
    page: usize,
    start: usize,
    pub len: usize,
}

impl HostRange {
    /// Values `start..start + len` of these.
    #[must_use]
    pub fn slice(&self, start: usize, len: usize) -> HostRange {
        assert!(start + len <= self.len, "{start} + {len} of {}", self.len);
        HostRange {
            start: self.start + start,
            len,
            ..self.clone()
        }
    }

    /// The averages, after all updates so far.
    ///
    /// # Errors
    /// A device that failed.
    pub fn read(&self) -> Result<Vec<f32>> {
        let average = &self.average;
        let Some(follower) = &average.follower else {
            return Ok(vec![0.0; self.len]);
        };
        follower.settle(&average.gpu)?;
        Ok(lock(&average.pages[self.page])[self.start..self.start + self.len].to_vec())
    }

    /// Overwrites the averages.
    pub fn write(&self, values: &[f32]) {
        let average = &self.average;
        if let Some(follower) = &average.follower {
            // An error is the device's from here on.
            let _ = follower.settle(&average.gpu);
            lock(&average.pages[self.page])[self.start..self.start + self.len].copy_from_slice(values);
        }
    }
}

impl std::fmt::Debug for HostRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "host[{}; {}..+{}]", self.page, self.start, self.len)
    }
}

fn lock(page: &Page) -> MutexGuard<'_, Vec<f32>> {
    page.lock().unwrap_or_else(|e| e.into_inner())
}

/// Averages the weights that have arrived, f32 or high and low halves, by as many threads as are worth it.
fn take_in(averages: &mut [f32], bytes: &[Bytes], rate: Option<f32>, fused: bool) {
    let (high, low) = match bytes {
        [whole] => (&whole[..], None),
        [high, low] => (&high[..], Some(&low[..])),
        _ => return,
    };
    let size = if low.is_some() { 2 } else { 4 };
    let n = averages.len().min(high.len() / size);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    let share = n.div_ceil(threads).max(SHARE);
    let work = |averages: &mut [f32], first: usize| {
        let of = |half: &[u8; 2]| u32::from(u16::from_le_bytes(*half));
        match low {
            None => {
                let words = high[4 * first..].as_chunks::<4>().0;
                move_by(averages, words.iter().map(|w| f32::from_le_bytes(*w)), rate, fused);
            }
            Some(low) => {
                let [highs, lows] = [high, low].map(|half| half[2 * first..].as_chunks::<2>().0);
                let weights = highs.iter().zip(lows).map(|(high, low)| {
                    let (high, low) = (of(high), of(low));
                    f32::from_bits((high.wrapping_sub(low >> 15) << 16) | low)
                });
                move_by(averages, weights, rate, fused);
            }
        }
    };
    std::thread::scope(|scope| {
        let mut parts = averages[..n].chunks_mut(share).enumerate();
        let own = parts.next();
        for (i, part) in parts {
            scope.spawn(move || work(part, i * share));
        }
        if let Some((_, part)) = own {
            work(part, 0);
        }
    });
}

/// `e ← e + rate (p - e)`
fn move_by(averages: &mut [f32], weights: impl Iterator<Item = f32>, rate: Option<f32>, fused: bool) {
    match rate {
        None => averages.iter_mut().zip(weights).for_each(|(e, p)| *e = p),
        Some(rate) if fused => move_fused(averages, weights, rate),
        Some(rate) => {
            for (e, p) in averages.iter_mut().zip(weights) {
                *e += (p - *e) * rate;
            }
        }
    }
}

/// The same with one rounding for product and sum.
fn move_fused(averages: &mut [f32], weights: impl Iterator<Item = f32>, rate: f32) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "fma")]
        fn by_instruction(averages: &mut [f32], weights: impl Iterator<Item = f32>, rate: f32) {
            for (e, p) in averages.iter_mut().zip(weights) {
                *e = (p - *e).mul_add(rate, *e);
            }
        }
        if is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the instruction.
            return unsafe { by_instruction(averages, weights, rate) };
        }
    }
    for (e, p) in averages.iter_mut().zip(weights) {
        *e = (p - *e).mul_add(rate, *e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::soft_update::soft_update;
    use crate::ops::split;
    use crate::ops::testing::{gpu, normals};

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn it_has_the_bits_of_the_device_s_average() {
        let gpu = gpu();
        // Room for everything, and for next to nothing.
        for (n, halves, room) in [(5000, false, 1 << 30), (4096, true, 1 << 30), (3 * SHARE, false, 1)] {
            let start = normals(1, n);
            let on_device = gpu.upload_f32(&start, [n]);
            let host = HostAverage::new(&gpu, &[7, n], room).unwrap();
            let weights = if halves {
                split::halves(&gpu, n)
            } else {
                Values::from(gpu.f32([n]))
            };
            // Halves in words of 32 bits, on devices without others, are not what learners have.
            if halves && !gpu.caps().u16 {
                continue;
            }
            weights.write(&gpu, &start);
            host.begin(&[(1, 0, weights.clone())]);
            let range = host.range(1, 0, n);
            assert_eq!(bits(&range.read().unwrap()), bits(&start));
            let flag = gpu.upload_f32(&[0.0, 1.0, 0.0], [3]);
            for t in 0..5 {
                let new = normals(10 + t, n);
                weights.write(&gpu, &new);
                // The fourth update is skipped, as the guard does.
                let flag = flag.slice(if t == 3 { 2 } else { 1 }, [1]);
                host.update(
                    &flag,
                    &[
                        (1, 0, weights.slice(0, n / 2)),
                        (1, n / 2, weights.slice(n / 2, n - n / 2)),
                    ],
                    0.01,
                );
                if t != 3 {
                    soft_update(&gpu, &on_device, &gpu.upload_f32(&new, [n]), 0.01);
                }
                // Later work does not reach what is read.
                weights.write(&gpu, &vec![f32::NAN; n]);
            }
            let want = gpu.read_f32(&on_device).unwrap();
            assert_eq!(bits(&range.read().unwrap()), bits(&want), "{n}, halves {halves}");
            assert_eq!(bits(&range.slice(3, 9).read().unwrap()), bits(&want[3..12]));
            range.slice(3, 2).write(&[1.0, 2.0]);
            assert_eq!(range.read().unwrap()[2..6], [want[2], 1.0, 2.0, want[5]]);
            assert_eq!(host.range(0, 0, 7).read().unwrap(), [0.0; 7]);
        }
    }

    #[test]
    fn a_device_that_has_failed_is_told_by_reading() {
        let gpu = gpu().with_caps(|c| c);
        let (host, weights) = (
            HostAverage::new(&gpu, &[8], 1 << 20).unwrap(),
            gpu.upload_f32(&[1.0; 8], [8]),
        );
        host.begin(&[(0, 0, weights.into())]);
        gpu.fail(crate::gpu::GpuError::Launch {
            device: "this one".into(),
            why: "it is gone".into(),
        });
        assert!(host.range(0, 0, 8).read().is_err() || gpu.fault().is_some());
    }

    #[test]
    fn fused_means_one_rounding() {
        let (mut fused, mut apart) = (normals(1, 1000), normals(1, 1000));
        let weights = normals(2, 1000);
        move_by(&mut fused, weights.iter().copied(), Some(0.3), true);
        move_by(&mut apart, weights.iter().copied(), Some(0.3), false);
        for ((e, p), (f, a)) in normals(1, 1000).iter().zip(&weights).zip(fused.iter().zip(&apart)) {
            assert_eq!(*f, (p - e).mul_add(0.3, *e));
            assert_eq!(*a, e + (p - e) * 0.3);
        }
        assert!(fused != apart);
    }
}
