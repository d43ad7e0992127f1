//! Shares with intervals, and ranks.

/// `k` of `n`.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub k: usize,
    pub n: usize,
}

impl Share {
    pub fn rate(self) -> f64 {
        self.k as f64 / self.n as f64
    }

    /// Wilson's 95 % interval.
    pub fn interval(self) -> (f64, f64) {
        let (z, n, p) = (1.96f64, self.n as f64, self.rate());
        let centre = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        ((centre - half) / scale, (centre + half) / scale)
    }
}

/// Spearman's rank correlation; ties share their mean rank.
pub fn rank_correlation(x: &[f64], y: &[f64]) -> f64 {
    let (x, y) = (ranks(x), ranks(y));
    let mean = (x.len() as f64 - 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    product(&x, &y) / (product(&x, &x) * product(&y, &y)).sqrt()
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |v: &f64| {
        let below = values.iter().filter(|w| *w < v).count();
        let equal = values.iter().filter(|w| *w == v).count();
        below as f64 + (equal as f64 - 1.0) / 2.0
    };
    values.iter().map(rank).collect()
}

#[test]
fn statistics_are_the_textbooks() {
    let (low, high) = Share { k: 8, n: 10 }.interval();
    assert!(
        (low - 0.4902).abs() < 1e-4 && (high - 0.9433).abs() < 1e-4,
        "{low} {high}"
    );
    assert_eq!(ranks(&[3.0, 1.0, 3.0, 7.0]), [1.5, 0.0, 1.5, 3.0]);
    assert_eq!(rank_correlation(&[1.0, 5.0, 2.0], &[10.0, 30.0, 20.0]), 1.0);
    assert_eq!(rank_correlation(&[1.0, 2.0, 3.0], &[6.0, 5.0, 4.0]), -1.0);
}
