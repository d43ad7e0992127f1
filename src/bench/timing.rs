//! How long a launch takes: spans of several launches between two timestamps of the device, over copies of the operands
//! that do not fit into its caches together.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::work::Work;
use crate::gpu::{Caps, Gpu, Result};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Copies of the operands hold at least this much together.
    pub rotate_bytes: u64,
    pub max_copies: usize,
    /// Launches between two timestamps take at least this long together: what reading a clock costs must not count.
    pub span: Duration,
    pub max_launches: usize,
    /// A case is measured until this is used up, and at least `least_spans` times.
    pub budget: Duration,
    pub least_spans: usize,
    pub most_spans: usize,
}

impl Pace {
    /// For a device. The largest cache of any GPU today is 128 MB (B200), of a workstation's card 96 MB; twice that is
    /// rotated. A processor that poses as a GPU has some 30 MB for each of its users, and its launches are slow.
    pub fn of(caps: &Caps) -> Pace {
        if caps.software {
            return Pace {
                rotate_bytes: 64 << 20,
                max_copies: 4,
                span: Duration::from_micros(500),
                max_launches: 16,
                budget: Duration::from_millis(60),
                least_spans: 3,
                most_spans: 31,
            };
        }
        Pace {
            rotate_bytes: 256 << 20,
            max_copies: 64,
            span: Duration::from_millis(1),
            max_launches: 256,
            budget: Duration::from_millis(200),
            least_spans: 7,
            most_spans: 101,
        }
    }

    /// Copies of work that holds so many bytes, on a device with so much memory.
    pub fn copies(&self, held: u64, memory: Option<u64>) -> usize {
        let wanted = self.rotate_bytes.div_ceil(held.max(1)).clamp(1, self.max_copies as u64);
        let fit = memory.map_or(wanted, |bytes| (bytes / 2 / held.max(1)).max(1));
        wanted.min(fit) as usize
    }
}

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median_ms: f64,
    pub p10_ms: f64,
    pub p90_ms: f64,
}

impl Spread {
    /// Of times in seconds, at least one.
    pub fn of(mut seconds: Vec<f64>) -> Spread {
        seconds.sort_by(f64::total_cmp);
        let at = |q: f64| 1e3 * seconds[((seconds.len() - 1) as f64 * q).round() as usize];
        Spread {
            median_ms: at(0.5),
            p10_ms: at(0.1),
            p90_ms: at(0.9),
        }
    }
}

/// The times of one case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timed {
    pub spread: Spread,
    /// Spans measured, and launches of each.
    pub spans: usize,
    pub launches: usize,
}

/// Times the copies of one case. The last span launches every copy once on fresh outputs: what it leaves is what is
/// checked.
///
/// # Errors
/// A device that failed.
pub fn measure(gpu: &Gpu, copies: &[Work], pace: &Pace) -> Result<Timed> {
    let mut timed = side_by_side(gpu, &[copies], pace)?;
    Ok(timed.pop().expect("one for each"))
}

/// Times several ways to do one case, a span of each in turn, so that what else the machine does meets all of them.
///
/// # Errors
/// A device that failed.
pub fn side_by_side(gpu: &Gpu, ways: &[&[Work]], pace: &Pace) -> Result<Vec<Timed>> {
    let mut all = ways
        .iter()
        .map(|copies| Way::warm(gpu, copies, pace))
        .collect::<Result<Vec<_>>>()?;
    let (began, budget) = (Instant::now(), pace.budget * ways.len() as u32);
    let mut spans = 0;
    while spans + 1 < pace.least_spans || (began.elapsed() < budget && spans + 1 < pace.most_spans) {
        for way in &mut all {
            let span = way.span(gpu, way.launches)?;
            way.seconds.push(span);
        }
        spans += 1;
    }
    all.into_iter().map(|way| way.last(gpu)).collect()
}

/// The copies of one case, as they are timed.
struct Way<'a> {
    copies: &'a [Work],
    /// Launches of a span.
    launches: usize,
    /// The copy that is next.
    next: usize,
    /// Of one launch, in each span.
    seconds: Vec<f64>,
}

impl<'a> Way<'a> {
    /// Compiles it, and finds how long a span is.
    fn warm(gpu: &Gpu, copies: &'a [Work], pace: &Pace) -> Result<Way<'a>> {
        let mut way = Way {
            copies,
            launches: 1,
            next: 0,
            seconds: Vec::new(),
        };
        // The first compiles, the second finds memory and clocks as they will be.
        way.span(gpu, 1)?;
        let rough = way.span(gpu, copies.len())?.max(1e-9);
        way.launches = ((pace.span.as_secs_f64() / rough).ceil() as usize).clamp(1, pace.max_launches);
        way.span(gpu, way.launches)?;
        Ok(way)
    }

    /// Seconds of one of so many launches.
    fn span(&mut self, gpu: &Gpu, launches: usize) -> Result<f64> {
        let first = self.next;
        self.next += launches;
        let launchers: Vec<_> = self.copies.iter().map(Work::launcher).collect();
        let work = || (first..first + launches).for_each(|i| launchers[i % launchers.len()](gpu));
        Ok(gpu.timed(work)?.as_secs_f64() / launches as f64)
    }

    /// Every copy once more, on fresh outputs.
    fn last(mut self, gpu: &Gpu) -> Result<Timed> {
        self.copies.iter().for_each(|copy| copy.reset(gpu));
        gpu.sync()?;
        let last = self.span(gpu, self.copies.len())?;
        // A span of fewer launches than the others' would count the clock.
        if self.copies.len() >= self.launches || self.seconds.is_empty() {
            self.seconds.push(last);
        }
        Ok(Timed {
            spans: self.seconds.len(),
            spread: Spread::of(self.seconds),
            launches: self.launches,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_exceed_caches_but_not_memory() {
        let pace = Pace::of(&Caps::planning());
        assert_eq!(pace.copies(1 << 20, None), 64);
        assert_eq!(pace.copies(100 << 20, None), 3);
        assert_eq!(pace.copies(1 << 30, Some(80 << 30)), 1);
        assert_eq!(pace.copies(100 << 20, Some(300 << 20)), 1);
        assert_eq!(pace.copies(0, None), 64);
    }

    #[test]
    fn medians_and_percentiles() {
        let s = Spread::of((1..=11).rev().map(|i| i as f64 * 1e-3).collect());
        assert_eq!([s.median_ms, s.p10_ms, s.p90_ms].map(f64::round), [6.0, 2.0, 10.0]);
        assert_eq!(Spread::of(vec![2.0]).p90_ms, 2e3);
    }
}
