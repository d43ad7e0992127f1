//! Long columns made short for a chart.

/// Points of a column in at most `2 * buckets`: the least and the greatest of each stretch of the steps, so that no spike
/// is lost.
pub fn extremes(points: &[(u64, f64)], buckets: usize) -> Vec<(u64, f64)> {
    if points.len() <= 2 * buckets {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * buckets);
    for i in 0..buckets {
        let bucket = &points[i * points.len() / buckets..(i + 1) * points.len() / buckets];
        let place = |better: fn(f64, f64) -> bool| {
            (1..bucket.len()).fold(0, |best, j| if better(bucket[j].1, bucket[best].1) { j } else { best })
        };
        let (least, greatest) = (place(|a, b| a < b), place(|a, b| a > b));
        kept.push(bucket[least.min(greatest)]);
        if least != greatest {
            kept.push(bucket[least.max(greatest)]);
        }
    }
    kept
}

/// The mean of every point with its `half` neighbours on both sides, fewer at the ends.
pub fn moving_mean(points: &[(u64, f64)], half: usize) -> Vec<(u64, f64)> {
    let sums: Vec<f64> = std::iter::once(0.0)
        .chain(points.iter().scan(0.0, |sum, p| {
            *sum += p.1;
            Some(*sum)
        }))
        .collect();
    let n = points.len();
    let mean = |i: usize| {
        let (from, to) = (i.saturating_sub(half), (i + half + 1).min(n));
        (points[i].0, (sums[to] - sums[from]) / (to - from) as f64)
    };
    (0..n).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_in_a_hundred_thousand_rows_is_kept() {
        let mut points: Vec<(u64, f64)> = (0..100_000).map(|i| (i, (i as f64 / 1e4).sin())).collect();
        points[54_321].1 = 40.0;
        points[77_777].1 = -40.0;
        let short = extremes(&points, 200);
        assert!(short.len() <= 400 && short.is_sorted_by_key(|p| p.0), "{}", short.len());
        assert!(short.contains(&(54_321, 40.0)) && short.contains(&(77_777, -40.0)));
        assert_eq!(extremes(&points[..300], 200), points[..300]);
    }

    #[test]
    fn a_moving_mean_keeps_lines_and_quiets_noise() {
        let line: Vec<(u64, f64)> = (0..9).map(|i| (i, 2.0 * i as f64)).collect();
        assert_eq!(moving_mean(&line, 3)[3..6], line[3..6]);
        assert_eq!(moving_mean(&line, 3)[0].1, 3.0);
        let noise: Vec<(u64, f64)> = (0..9).map(|i| (i, if i % 2 == 0 { 1.0 } else { -1.0 })).collect();
        assert!(moving_mean(&noise, 3)[3..6].iter().all(|p| p.1.abs() < 0.2));
        assert_eq!(moving_mean(&[(4, 1.0)], 3), [(4, 1.0)]);
    }
}
