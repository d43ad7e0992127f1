//! Histograms of a numeric feature as SVG, one small chart a coordinate.

use std::fmt::Write;

use super::dataset::Column;
use crate::report::escape;
use crate::report::scale::short;

const BINS: usize = 40;
/// Charts side by side.
const ACROSS: usize = 4;
/// A chart, and the plot in it.
const CELL: (f64, f64) = (220.0, 120.0);
const PLOT: (f64, f64) = (200.0, 76.0);
const MARGIN: (f64, f64) = (10.0, 22.0);

/// One drawing with all coordinates of `column`. Bars are counts over the finite values, on a scale of their own for each
/// coordinate; smallest and largest value stand below.
pub fn svg(column: &Column) -> String {
    let rows = column.width.div_ceil(ACROSS);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"11\" \
         fill=\"#444\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>",
        CELL.0 * ACROSS.min(column.width) as f64,
        CELL.1 * rows as f64
    );
    for i in 0..column.width {
        let (x, y) = ((i % ACROSS) as f64 * CELL.0, (i / ACROSS) as f64 * CELL.1);
        let (left, top) = (x + MARGIN.0, y + MARGIN.1);
        let bottom = top + PLOT.1;
        put(
            &mut out,
            format_args!(
                "<text x=\"{left:.1}\" y=\"{:.1}\">{}[{i}]</text>",
                top - 6.0,
                escape(&column.key)
            ),
        );
        let (low, high, counts) = counts(column, i);
        let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
        let width = PLOT.0 / BINS as f64;
        for (bin, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let height = PLOT.1 * *count as f64 / most;
            put(
                &mut out,
                format_args!(
                    "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#4477aa\"/>",
                    left + bin as f64 * width,
                    bottom - height,
                    width - 0.5
                ),
            );
        }
        put(
            &mut out,
            format_args!(
                "<path d=\"M{left:.1} {bottom:.1}h{:.1}\" stroke=\"#888\"/><text x=\"{left:.1}\" y=\"{:.1}\">{}</text><text \
                 x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                PLOT.0,
                bottom + 13.0,
                short(low, 4),
                left + PLOT.0,
                bottom + 13.0,
                short(high, 4)
            ),
        );
    }
    out + "</svg>\n"
}

/// Smallest and largest finite value, and the counts between them; without any value, nothing.
fn counts(column: &Column, i: usize) -> (f64, f64, Vec<usize>) {
    let values = || {
        let all = column.values.iter().skip(i).step_by(column.width);
        all.map(|v| f64::from(*v)).filter(|v| v.is_finite())
    };
    let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    let mut counts = vec![0; BINS];
    for v in values() {
        let share = if high > low { (v - low) / (high - low) } else { 0.5 };
        counts[((share * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    (low, high, counts)
}

/// Writing to memory cannot fail.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_counted_once() {
        let column = Column {
            key: "a<b".into(),
            width: 2,
            values: vec![0.0, 5.0, 1.0, 5.0, f32::NAN, 5.0, 2.0, 5.0],
        };
        let (low, high, of_first) = counts(&column, 0);
        assert_eq!(
            (low, high, of_first[0], of_first[20], of_first[39]),
            (0.0, 2.0, 1, 1, 1)
        );
        assert_eq!(of_first.iter().sum::<usize>(), 3);
        let (low, high, of_second) = counts(&column, 1);
        assert_eq!((low, high, of_second[20]), (5.0, 5.0, 4));
        let drawn = svg(&column);
        // A background, three bars and one.
        assert_eq!(drawn.matches("<rect").count(), 5);
        assert!(
            drawn.contains("a&lt;b[1]") && !drawn.contains("NaN") && !drawn.contains("inf"),
            "{drawn}"
        );
    }
}
