//! Mean, standard deviation and quantiles of very many vectors, in two passes: [`Moments`], then [`Histograms`] over the
//! range that the first pass found. Both can be computed in parts and merged.
//!
//! Quantiles are those of openpi's `shared/normalize.py`: 5000 equal bins over the range, and the left edge of the bin in
//! which the cumulated count reaches the share. There the range grows while the bins fill, and counts are moved and
//! partly lost; here a result is low by at most a bin. Moments are merged by Chan's formula, which does not cancel.

use super::Stats;

const BINS: usize = 5000;
/// Margin of the range, so that both ends lie inside (openpi).
const MARGIN: f64 = 1e-10;

/// Moments and range of vectors, each list `[width]`.
#[derive(Clone, Debug)]
pub struct Moments {
    count: f64,
    mean: Vec<f64>,
    /// Sum of squared deviations from the mean.
    deviation: Vec<f64>,
    min: Vec<f64>,
    max: Vec<f64>,
}

impl Moments {
    /// Of nothing yet.
    pub fn new(width: usize) -> Self {
        Moments {
            count: 0.0,
            mean: vec![0.0; width],
            deviation: vec![0.0; width],
            min: vec![f64::INFINITY; width],
            max: vec![f64::NEG_INFINITY; width],
        }
    }

    /// Adds the finite vectors of `batch`, `[n, width]`.
    pub fn update(&mut self, batch: &[f64]) {
        let width = self.mean.len();
        let Some(first) = batch.get(..width) else { return };
        let mut added = Moments::new(width);
        added.count = (batch.len() / width) as f64;
        // Sums of x - first and of its square: small numbers, wherever the mean is.
        for row in batch.chunks_exact(width) {
            for (i, x) in row.iter().enumerate() {
                let shifted = x - first[i];
                added.mean[i] += shifted;
                added.deviation[i] += shifted * shifted;
                added.min[i] = added.min[i].min(*x);
                added.max[i] = added.max[i].max(*x);
            }
        }
        for (i, first) in first.iter().enumerate() {
            let sum = added.mean[i];
            added.deviation[i] = (added.deviation[i] - sum * sum / added.count).max(0.0);
            added.mean[i] = first + sum / added.count;
        }
        self.merge(&added);
    }

    /// Adds what `other` has seen.
    pub fn merge(&mut self, other: &Moments) {
        if other.count == 0.0 {
            return;
        }
        let total = self.count + other.count;
        for i in 0..self.mean.len() {
            let shift = other.mean[i] - self.mean[i];
            self.mean[i] += shift * other.count / total;
            self.deviation[i] += other.deviation[i] + shift * shift * self.count * other.count / total;
            self.min[i] = self.min[i].min(other.min[i]);
            self.max[i] = self.max[i].max(other.max[i]);
        }
        self.count = total;
    }

    /// The statistics, with quantiles from `histograms` of the same vectors; of nothing, they are NaN.
    pub fn finish(self, histograms: &Histograms) -> Stats {
        Stats {
            std: self.deviation.iter().map(|d| (d / self.count).sqrt()).collect(),
            mean: self.mean,
            q01: Some(histograms.quantiles(0.01)),
            q99: Some(histograms.quantiles(0.99)),
        }
    }
}

/// Counts in equal bins over the range of each coordinate.
#[derive(Clone, Debug)]
pub struct Histograms {
    low: Vec<f64>,
    /// Width of a bin.
    bin: Vec<f64>,
    /// `[width, BINS]`
    counts: Vec<u64>,
}

impl Histograms {
    /// Empty, over the range that `moments` has found.
    pub fn over(moments: &Moments) -> Self {
        let bin = |(low, high): (&f64, &f64)| ((high + MARGIN) - (low - MARGIN)) / BINS as f64;
        Histograms {
            low: moments.min.iter().map(|low| low - MARGIN).collect(),
            bin: moments.min.iter().zip(&moments.max).map(bin).collect(),
            counts: vec![0; moments.mean.len() * BINS],
        }
    }

    /// Counts the vectors of `batch`, `[n, width]`, which lie in the range.
    pub fn update(&mut self, batch: &[f64]) {
        for row in batch.chunks_exact(self.low.len().max(1)) {
            for (i, x) in row.iter().enumerate() {
                // A range of zero width gives NaN here, which the cast turns into a bin all the same.
                let bin = ((x - self.low[i]) / self.bin[i]) as usize;
                self.counts[i * BINS + bin.min(BINS - 1)] += 1;
            }
        }
    }

    /// Adds the counts of `other`, over the same range.
    pub fn merge(&mut self, other: &Histograms) {
        self.counts
            .iter_mut()
            .zip(&other.counts)
            .for_each(|(to, from)| *to += from);
    }

    /// The left edges of the bins that reach the share `q` of all counts.
    fn quantiles(&self, q: f64) -> Vec<f64> {
        let quantile = |(i, counts): (usize, &[u64])| {
            let target = q * counts.iter().sum::<u64>() as f64;
            let mut reached = 0;
            let bin = counts.iter().position(|count| {
                reached += count;
                reached as f64 >= target
            });
            self.low[i] + self.bin[i] * bin.unwrap_or(0) as f64
        };
        self.counts.chunks_exact(BINS).enumerate().map(quantile).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(width: usize, batches: &[&[f64]]) -> Stats {
        let mut moments = Moments::new(width);
        batches.iter().for_each(|batch| moments.update(batch));
        let mut histograms = Histograms::over(&moments);
        batches.iter().for_each(|batch| histograms.update(batch));
        moments.finish(&histograms)
    }

    #[test]
    fn batches_give_the_moments_and_quantiles_of_the_whole() {
        // A skewed sequence around a large mean, its range growing with every batch.
        let all: Vec<f64> = (0..20_000)
            .map(|i| 1e6 + ((i * 7919) % 20_011) as f64 * (1.0 + i as f64 / 5e3))
            .collect();
        let stats = stats(1, &all.chunks(1234).collect::<Vec<_>>());
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let std = (all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!((stats.mean[0] / mean - 1.0).abs() < 1e-12);
        assert!((stats.std[0] / std - 1.0).abs() < 1e-10);
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let bin = (sorted[sorted.len() - 1] - sorted[0] + 2.0 * MARGIN) / BINS as f64;
        for (found, q) in [(stats.q01.unwrap()[0], 0.01), (stats.q99.unwrap()[0], 0.99)] {
            let exact = sorted[(q * n) as usize - 1];
            assert!(found <= exact && found > exact - bin, "{q}: {found} against {exact}");
        }
    }

    #[test]
    fn a_constant_coordinate_keeps_its_value() {
        for constant in [3.0, -1e9] {
            let stats = stats(2, &[&[constant, 0.0, constant, 1.0], &[], &[constant, 2.0]]);
            assert_eq!((stats.mean[0], stats.std[0]), (constant, 0.0));
            assert_eq!(stats.mean[1], 1.0);
            for q in [stats.q01.unwrap()[0], stats.q99.unwrap()[0]] {
                assert!((q - constant).abs() < 1e-9, "{q}");
            }
        }
    }

    #[test]
    fn parts_merge_into_the_whole() {
        let all: Vec<f64> = (0..600).map(|i| f64::from((i * 37) % 101) - 7.0).collect();
        let (a, b) = all.split_at(202);
        let mut moments = Moments::new(2);
        for part in [a, b] {
            let mut own = Moments::new(2);
            own.update(part);
            moments.merge(&own);
        }
        let mut histograms = Histograms::over(&moments);
        for part in [b, a] {
            let mut own = Histograms::over(&moments);
            own.update(part);
            histograms.merge(&own);
        }
        assert_eq!(histograms.counts.iter().sum::<u64>(), 600);
        let (merged, whole) = (moments.finish(&histograms), stats(2, &[&all]));
        assert_eq!((merged.q01, merged.q99), (whole.q01, whole.q99));
        for i in 0..2 {
            assert!((merged.mean[i] - whole.mean[i]).abs() < 1e-12 && (merged.std[i] - whole.std[i]).abs() < 1e-12);
        }
    }
}
