//! Small charts as SVG.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Size of a chart, and of the margins around its axes (left, top, right, bottom), in pixels.
const SIZE: (f64, f64) = (640.0, 320.0);
const MARGIN: [f64; 4] = [56.0, 60.0, 16.0, 44.0];

/// A chart whose y axis runs from 0 to 1.
pub struct Chart {
    body: String,
    x_end: f64,
}

impl Chart {
    /// An empty chart over `0..x_end`; `ticks` are places on the x axis and what is written there.
    pub fn new(title: &str, x_title: &str, x_end: f64, ticks: &[(f64, String)]) -> Chart {
        let mut chart = Chart {
            body: String::new(),
            x_end,
        };
        let (width, height) = SIZE;
        chart.text((width / 2.0, 18.0), "middle", 14, "#222", title);
        chart.text((width / 2.0, height - 8.0), "middle", 12, "#222", x_title);
        for step in 0..=5 {
            let y = f64::from(step) / 5.0;
            chart.stroke(&[(0.0, y), (x_end, y)], "#ddd", "1");
            chart.text(
                (MARGIN[0] - 6.0, chart.at(0.0, y).1 + 4.0),
                "end",
                11,
                "#555",
                &format!("{y:.1}"),
            );
        }
        for (x, label) in ticks {
            chart.text((chart.at(*x, 0.0).0, height - 26.0), "middle", 11, "#555", label);
        }
        chart
    }

    /// A line through `points`.
    pub fn line(&mut self, points: &[(f64, f64)], colour: &str) {
        self.stroke(points, colour, "1.8");
    }

    /// A dashed line across the chart.
    pub fn level(&mut self, y: f64, colour: &str) {
        let (from, to) = (self.at(0.0, y), self.at(self.x_end, y));
        let (x1, y1, x2, y2) = (from.0, from.1, to.0, to.1);
        let _ = writeln!(
            self.body,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-dasharray="5 4"/>"#
        );
    }

    /// A bar of `width` around `x` with its interval, and its height above it.
    pub fn bar(&mut self, x: f64, width: f64, y: f64, (low, high): (f64, f64), colour: &str) {
        let (left, right, floor) = (
            self.at(x - width / 2.0, y),
            self.at(x + width / 2.0, y),
            self.at(x, 0.0).1,
        );
        let (w, h) = (right.0 - left.0, floor - left.1);
        let _ = writeln!(
            self.body,
            r#"<rect x="{:.1}" y="{:.1}" width="{w:.1}" height="{h:.1}" fill="{colour}"/>"#,
            left.0, left.1
        );
        self.stroke(&[(x, low), (x, high)], "#222", "1.4");
        let above = (self.at(x, 0.0).0, self.at(x, high).1 - 4.0);
        self.text(above, "middle", 10, "#222", &format!("{y:.2}"));
    }

    /// Names and colours, in a row under the title.
    pub fn legend(&mut self, entries: &[(&str, &str)]) {
        let share = (SIZE.0 - MARGIN[0] - MARGIN[2]) / entries.len() as f64;
        for (i, (name, colour)) in entries.iter().enumerate() {
            let x = MARGIN[0] + i as f64 * share;
            let _ = writeln!(
                self.body,
                r#"<rect x="{x:.1}" y="25" width="10" height="10" fill="{colour}"/>"#
            );
            self.text((x + 14.0, 34.0), "start", 11, "#222", name);
        }
    }

    /// Writes the file.
    pub fn save(self, path: &Path) {
        let (width, height) = SIZE;
        let head = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">"#
        );
        let ground = r##"<rect width="100%" height="100%" fill="#fff"/>"##;
        fs::create_dir_all(path.parent().expect("a folder")).unwrap();
        fs::write(path, format!("{head}\n{ground}\n{}</svg>\n", self.body)).unwrap();
    }

    /// Where a value lies, in pixels.
    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let [left, top, right, bottom] = MARGIN;
        (
            left + x / self.x_end * (SIZE.0 - left - right),
            SIZE.1 - bottom - y * (SIZE.1 - top - bottom),
        )
    }

    fn stroke(&mut self, points: &[(f64, f64)], colour: &str, width: &str) {
        let points: Vec<String> = points
            .iter()
            .map(|&(x, y)| self.at(x, y))
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            self.body,
            r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="{width}"/>"#,
            points.join(" ")
        );
    }

    fn text(&mut self, (x, y): (f64, f64), anchor: &str, size: u32, colour: &str, text: &str) {
        let _ = writeln!(
            self.body,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" font-size="{size}" fill="{colour}">{text}</text>"#
        );
    }
}
