//! What was launched: one line per (phase, op) with counts, FLOPs, bytes and, when profiling, time.

use std::collections::HashMap;
use std::time::Duration;

/// What one launch does, as counted from its shapes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The op's name, as in its file under `ops/`.
    pub op: &'static str,
    /// Useful floating point operations (a multiply-add is two).
    pub flops: f64,
    /// Bytes its operands hold: each read or written once.
    pub bytes: f64,
}

impl Cost {
    /// A launch whose work is moving `bytes`.
    pub fn moving(op: &'static str, bytes: u64) -> Self {
        Cost {
            op,
            flops: 0.0,
            bytes: bytes as f64,
        }
    }

    /// A launch with arithmetic that counts.
    pub fn new(op: &'static str, flops: f64, bytes: u64) -> Self {
        Cost {
            op,
            flops,
            bytes: bytes as f64,
        }
    }
}

/// A phase of the step, and its share of the launches that serve several phases at once.
pub type Share = (&'static str, f64);

/// Totals of one (phase, op).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Kernel launches. A launch shared by phases counts in the first of them.
    pub launches: u64,
    pub flops: f64,
    pub bytes: f64,
    pub time: Duration,
}

impl Totals {
    fn add(&mut self, other: &Totals, share: f64, first: bool) {
        self.launches += if first { other.launches } else { 0 };
        self.flops += share * other.flops;
        self.bytes += share * other.bytes;
        self.time += other.time.mul_f64(share);
    }
}

/// The running account of a device.
#[derive(Default)]
pub struct Recorder {
    shares: Vec<Share>,
    lines: HashMap<(&'static str, &'static str), Totals>,
    order: Vec<(&'static str, &'static str)>,
    peaks: HashMap<&'static str, u64>,
}

impl Recorder {
    /// Ends the running phases, which had up to `peak_bytes` in use, and starts others.
    pub(crate) fn set_phase(&mut self, shares: &[Share], peak_bytes: u64) {
        self.note_peak(peak_bytes);
        self.shares.clear();
        self.shares.extend_from_slice(shares);
    }

    /// The running phase: the first, where several share it.
    pub(crate) fn phase(&self) -> &'static str {
        self.shares.first().map_or("other", |(phase, _)| phase)
    }

    fn note_peak(&mut self, bytes: u64) {
        for &(phase, _) in &self.shares {
            let peak = self.peaks.entry(phase).or_default();
            *peak = bytes.max(*peak);
        }
    }

    pub(crate) fn add(&mut self, cost: &Cost, launches: u64, time: Duration) {
        let one = Totals {
            launches,
            flops: cost.flops,
            bytes: cost.bytes,
            time,
        };
        let shares: &[Share] = if self.shares.is_empty() {
            &[("other", 1.0)]
        } else {
            &self.shares
        };
        for (i, &(phase, share)) in shares.iter().enumerate() {
            let key = (phase, cost.op);
            let line = self.lines.entry(key).or_insert_with(|| {
                self.order.push(key);
                Totals::default()
            });
            line.add(&one, share, i == 0);
        }
    }

    /// The account so far; the running phase had up to `peak_bytes` in use.
    pub(crate) fn take(&mut self, peak_bytes: u64) -> Record {
        self.note_peak(peak_bytes);
        let lines = std::mem::take(&mut self.lines);
        let order = std::mem::take(&mut self.order);
        Record {
            lines: order.into_iter().map(|key| (key.0, key.1, lines[&key])).collect(),
            peaks: std::mem::take(&mut self.peaks),
        }
    }
}

/// A finished account, in order of first launch.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// (phase, op, totals)
    pub lines: Vec<(&'static str, &'static str, Totals)>,
    /// Most bytes of both arenas in use during a phase.
    pub peaks: HashMap<&'static str, u64>,
}

impl Record {
    /// The account of the same work done several times.
    #[must_use]
    pub fn repeated(mut self, times: usize) -> Record {
        for (.., line) in &mut self.lines {
            let once = *line;
            *line = Totals {
                launches: once.launches * times as u64,
                flops: once.flops * times as f64,
                bytes: once.bytes * times as f64,
                time: once.time * times as u32,
            };
        }
        self
    }

    /// Adds an account of what came after.
    pub fn append(&mut self, later: Record) {
        for (phase, op, totals) in later.lines {
            match self.lines.iter_mut().find(|l| (l.0, l.1) == (phase, op)) {
                Some(line) => line.2.add(&totals, 1.0, true),
                None => self.lines.push((phase, op, totals)),
            }
        }
        for (phase, peak) in later.peaks {
            let known = self.peaks.entry(phase).or_default();
            *known = peak.max(*known);
        }
    }

    /// Sum over everything.
    pub fn total(&self) -> Totals {
        self.sum(|_| true)
    }

    /// Sums by phase, in order of first launch.
    pub fn phases(&self) -> Vec<(&'static str, Totals)> {
        let mut names: Vec<&'static str> = Vec::new();
        for (phase, _, _) in &self.lines {
            if !names.contains(phase) {
                names.push(phase);
            }
        }
        names
            .into_iter()
            .map(|n| (n, self.sum(|(phase, _)| phase == n)))
            .collect()
    }

    fn sum(&self, keep: impl Fn((&'static str, &'static str)) -> bool) -> Totals {
        let mut total = Totals::default();
        for &(phase, op, t) in &self.lines {
            if keep((phase, op)) {
                total.add(&t, 1.0, true);
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_launch_is_split_between_its_phases() {
        let mut r = Recorder::default();
        r.set_phase(&[("candidates", 0.75), ("target", 0.25)], 0);
        r.add(&Cost::new("gemm", 100.0, 40), 1, Duration::from_micros(8));
        r.set_phase(&[("critics", 1.0)], 300);
        r.add(&Cost::moving("copy", 12), 1, Duration::ZERO);
        let record = r.take(100);
        let phases = record.phases();
        assert_eq!(
            phases.iter().map(|p| p.0).collect::<Vec<_>>(),
            ["candidates", "target", "critics"]
        );
        assert_eq!(
            (phases[0].1.flops, phases[1].1.flops, phases[2].1.bytes),
            (75.0, 25.0, 12.0)
        );
        assert_eq!((phases[0].1.launches, phases[1].1.launches), (1, 0));
        assert_eq!(record.total().launches, 2);
        assert_eq!((record.peaks["target"], record.peaks["critics"]), (300, 100));
        assert!(r.take(0).lines.is_empty());
    }
}
