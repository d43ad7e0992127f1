//! One chart as SVG. Colours and fonts are the page's: lines have the class of their colour.

use std::fmt::Write;

use super::escape;
use super::reduce::{extremes, moving_mean};
use super::scale::{Scale, short};
use super::sections::Chart;

/// Colours a page has; further lines begin again.
pub const COLOURS: usize = 8;

/// Size of the drawing, in units that are about pixels; the page scales it.
const SIZE: (f64, f64) = (420.0, 210.0);
/// Of the plot in it.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 410.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 186.0;

/// Stretches of steps of which least and greatest are drawn: more than a line has pixels to show.
const BUCKETS: usize = 240;
/// Rows from which on a moving mean is drawn over the pale rows.
const SMOOTH_FROM: usize = 60;
/// Part of the rows on each side that a moving mean takes in.
const SMOOTH_PART: usize = 40;
/// Rows up to which each is marked with a dot.
const DOTS_UP_TO: usize = 24;

/// The chart over steps `first..=last`.
pub fn svg(chart: &Chart<'_>, first: u64, last: u64) -> String {
    let x = Scale::steps(first, last);
    let y = Scale::of(chart.lines.iter().flat_map(|l| l.series.points.iter().map(|p| p.1)));
    let mut out = format!(
        "<svg viewBox=\"0 0 {} {}\" role=\"img\" aria-label=\"{}\">",
        SIZE.0,
        SIZE.1,
        escape(&chart.title)
    );
    axes(&mut out, &x, &y);
    for line in &chart.lines {
        let points = &line.series.points;
        let class = format!("c{}", line.colour % COLOURS);
        let raw = path(&extremes(points, BUCKETS), &x, &y);
        if points.len() >= SMOOTH_FROM {
            let mean = extremes(&moving_mean(points, points.len() / SMOOTH_PART), BUCKETS);
            put(&mut out, format_args!("<path class=\"{class} raw\" d=\"{raw}\"/>"));
            put(
                &mut out,
                format_args!("<path class=\"{class}\" d=\"{}\"/>", path(&mean, &x, &y)),
            );
        } else {
            put(&mut out, format_args!("<path class=\"{class}\" d=\"{raw}\"/>"));
        }
        if points.len() <= DOTS_UP_TO {
            for (step, value) in points {
                let (px, py) = (across(&x, *step), up(&y, *value));
                put(
                    &mut out,
                    format_args!("<circle class=\"{class}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2\"/>"),
                );
            }
        }
    }
    out + "</svg>"
}

/// Writing to memory cannot fail.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).unwrap_or_default();
}

fn axes(out: &mut String, x: &Scale, y: &Scale) {
    for tick in y.ticks(4) {
        let at = up(y, tick);
        put(
            out,
            format_args!("<line class=\"grid\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"),
        );
        let label = short(tick, 4);
        put(
            out,
            format_args!(
                "<text class=\"y\" x=\"{}\" y=\"{:.1}\">{label}</text>",
                LEFT - 6.0,
                at + 3.5
            ),
        );
    }
    put(
        out,
        format_args!("<line class=\"axis\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{BOTTOM}\" y2=\"{BOTTOM}\"/>"),
    );
    // Steps are whole.
    for tick in x.ticks(5).into_iter().filter(|tick| tick.fract() == 0.0) {
        let at = LEFT + x.place(tick) * (RIGHT - LEFT);
        // The last label stays inside the drawing.
        let anchor = if at > RIGHT - 14.0 { "end" } else { "middle" };
        put(
            out,
            format_args!(
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{BOTTOM}\" y2=\"{}\"/>",
                BOTTOM + 4.0
            ),
        );
        let label = short(tick, 4);
        put(
            out,
            format_args!(
                "<text text-anchor=\"{anchor}\" x=\"{at:.1}\" y=\"{}\">{label}</text>",
                BOTTOM + 17.0
            ),
        );
    }
}

fn across(x: &Scale, step: u64) -> f64 {
    LEFT + x.place(step as f64) * (RIGHT - LEFT)
}

fn up(y: &Scale, value: f64) -> f64 {
    BOTTOM - y.place(value) * (BOTTOM - TOP)
}

/// The line through points, in tenths of a unit.
fn path(points: &[(u64, f64)], x: &Scale, y: &Scale) -> String {
    let mut d = String::with_capacity(12 * points.len());
    for (i, (step, value)) in points.iter().enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        put(
            &mut d,
            format_args!("{letter}{:.1} {:.1}", across(x, *step), up(y, *value)),
        );
    }
    d
}

#[cfg(test)]
mod tests {
    use super::super::run::Series;
    use super::super::sections::Line;
    use super::*;

    fn drawn(points: Vec<(u64, f64)>) -> String {
        let series = Series {
            name: "train/q".into(),
            points,
        };
        let chart = Chart {
            title: "<q>".into(),
            unit: "",
            lines: vec![Line {
                label: "a".into(),
                colour: 9,
                series: &series,
            }],
        };
        let last = series.points.last().map_or(1, |p| p.0);
        svg(&chart, 0, last)
    }

    #[test]
    fn one_row_is_a_dot_and_many_are_a_mean_over_pale_rows() {
        let one = drawn(vec![(0, 0.5)]);
        assert!(
            one.contains("<circle class=\"c1\"") && one.contains("aria-label=\"&lt;q&gt;\""),
            "{one}"
        );
        let many = drawn((0..100_000).map(|i| (i, i as f64)).collect());
        assert!(many.contains("c1 raw") && !many.contains("<circle"));
        assert!(many.len() < 16_000, "{}", many.len());
        assert!(![one, many].iter().any(|s| s.contains("NaN") || s.contains("inf")));
    }
}
