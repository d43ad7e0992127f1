//! Mean, standard deviation and quantiles of vectors that arrive in batches.
//!
//! Quantiles follow openpi's `shared/normalize.py`: 5000 equal bins over the range seen so far. When the range grows,
//! the counts of each old bin move to the new bin that holds its left edge, and a quantile is the left edge of the bin
//! in which the cumulated count reaches it, so a result is low by up to a bin for every time the range has grown.
//! Unlike there, counts at the lower end survive a growing range, and mean and variance are merged by Chan's formula,
//! which does not cancel.

use super::Stats;

const BINS: usize = 5000;
/// Margin of the first range, so that both ends lie inside (openpi).
const MARGIN: f64 = 1e-10;

/// Statistics of vectors that arrive in batches.
#[derive(Clone, Debug)]
pub struct RunningStats {
    count: f64,
    coordinates: Vec<Coordinate>,
}

#[derive(Clone, Debug)]
struct Coordinate {
    mean: f64,
    /// Sum of squared deviations from the mean.
    deviation: f64,
    min: f64,
    max: f64,
    histogram: Histogram,
}

impl RunningStats {
    /// For vectors of `width` numbers.
    pub fn new(width: usize) -> Self {
        let coordinate = Coordinate {
            mean: 0.0,
            deviation: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            histogram: Histogram {
                low: 0.0,
                high: 0.0,
                counts: Vec::new(),
            },
        };
        RunningStats {
            count: 0.0,
            coordinates: vec![coordinate; width],
        }
    }

    /// Adds the finite vectors of `batch`, `[n, width]`.
    pub fn update(&mut self, batch: &[f64]) {
        let width = self.coordinates.len();
        let added = (batch.len() / width) as f64;
        if added == 0.0 {
            return;
        }
        let total = self.count + added;
        for (i, coordinate) in self.coordinates.iter_mut().enumerate() {
            let values = || batch[i..].iter().step_by(width).copied();
            let mean = values().sum::<f64>() / added;
            let deviation: f64 = values().map(|x| (x - mean) * (x - mean)).sum();
            let shift = mean - coordinate.mean;
            coordinate.mean += shift * added / total;
            coordinate.deviation += deviation + shift * shift * self.count * added / total;
            let (min, max) = values().fold((coordinate.min, coordinate.max), |(l, h), x| (l.min(x), h.max(x)));
            if self.count == 0.0 {
                let (low, high) = (min - MARGIN, max + MARGIN);
                coordinate.histogram = Histogram {
                    low,
                    high,
                    counts: vec![0; BINS],
                };
            } else if min < coordinate.min || max > coordinate.max {
                coordinate.histogram.rebin(min, max);
            }
            (coordinate.min, coordinate.max) = (min, max);
            values().for_each(|x| coordinate.histogram.add(x, 1));
        }
        self.count = total;
    }

    /// The statistics of everything added; of nothing, they are NaN.
    pub fn finish(&self) -> Stats {
        let each = |f: &dyn Fn(&Coordinate) -> f64| self.coordinates.iter().map(f).collect();
        Stats {
            mean: each(&|c| c.mean),
            std: each(&|c| (c.deviation / self.count).sqrt()),
            q01: Some(each(&|c| c.histogram.quantile(0.01))),
            q99: Some(each(&|c| c.histogram.quantile(0.99))),
        }
    }
}

/// Counts in equal bins over `[low, high]`.
#[derive(Clone, Debug)]
struct Histogram {
    low: f64,
    high: f64,
    counts: Vec<u64>,
}

impl Histogram {
    fn edge(&self, bin: usize) -> f64 {
        self.low + (self.high - self.low) * bin as f64 / BINS as f64
    }

    fn add(&mut self, x: f64, count: u64) {
        // A range of zero width gives NaN or infinity here, which the cast turns into a bin all the same.
        let bin = (x - self.low) / (self.high - self.low) * BINS as f64;
        self.counts[(bin as usize).min(BINS - 1)] += count;
    }

    fn rebin(&mut self, low: f64, high: f64) {
        let old = std::mem::replace(
            self,
            Histogram {
                low,
                high,
                counts: vec![0; BINS],
            },
        );
        for (bin, count) in old.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.add(old.edge(bin), *count);
        }
    }

    fn quantile(&self, q: f64) -> f64 {
        let target = q * self.counts.iter().sum::<u64>() as f64;
        let mut reached = 0;
        let bin = self.counts.iter().position(|count| {
            reached += count;
            reached as f64 >= target
        });
        self.edge(bin.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_give_the_moments_and_quantiles_of_the_whole() {
        // A skewed sequence around a large mean, its range growing with every batch.
        let all: Vec<f64> = (0..20_000)
            .map(|i| 1e6 + ((i * 7919) % 20_011) as f64 * (1.0 + i as f64 / 5e3))
            .collect();
        let mut running = RunningStats::new(1);
        all.chunks(1234).for_each(|batch| running.update(batch));
        let stats = running.finish();
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let std = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((stats.mean[0] / mean - 1.0).abs() < 1e-12);
        assert!((stats.std[0] / std - 1.0).abs() < 1e-10);
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let bin = (sorted[sorted.len() - 1] - sorted[0]) / BINS as f64;
        for (found, q) in [(stats.q01.unwrap()[0], 0.01), (stats.q99.unwrap()[0], 0.99)] {
            let exact = sorted[(q * n) as usize];
            // 17 batches, so the range grew at most 16 times.
            assert!(
                found <= exact && found > exact - 17.0 * bin,
                "{q}: {found} against {exact}"
            );
        }
    }

    #[test]
    fn a_constant_coordinate_keeps_its_value() {
        let mut running = RunningStats::new(2);
        running.update(&[3.0, 0.0, 3.0, 1.0]);
        running.update(&[3.0, 2.0]);
        let stats = running.finish();
        assert_eq!((stats.mean[0], stats.std[0]), (3.0, 0.0));
        assert!((stats.q01.unwrap()[0] - 3.0).abs() < 1e-9 && (stats.q99.unwrap()[0] - 3.0).abs() < 1e-9);
    }

    #[test]
    fn no_count_is_lost_when_the_range_grows() {
        let mut running = RunningStats::new(1);
        for step in 0..50 {
            running.update(&[0.0, f64::from(step), -f64::from(step * step)]);
            let counted: u64 = running.coordinates[0].histogram.counts.iter().sum();
            assert_eq!(counted as f64, running.count);
        }
    }
}
