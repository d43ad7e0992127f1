//! Where the time of a step goes: one bar for each phase.

use std::fmt::Write;

use super::chart::COLOURS;
use super::escape;
use super::run::Run;
use super::scale::short;

/// Height of a bar with the space below it, and where bars begin and end, in a picture of `WIDTH` units.
const LINE: f64 = 26.0;
const WIDTH: f64 = 900.0;
const LEFT: f64 = 220.0;
const RIGHT: f64 = 690.0;
/// Digits of times.
const DIGITS: usize = 3;

/// A section for every run whose step was timed.
pub fn section(runs: &[Run]) -> String {
    let timed = runs
        .iter()
        .enumerate()
        .filter_map(|(i, run)| Some((i, run, run.phases.as_ref()?)));
    let mut html = String::new();
    for (i, run, times) in timed {
        if html.is_empty() {
            html += "<h2>Phases of a step</h2>\n";
        }
        let _ = writeln!(
            html,
            "<div class=\"soft\">{} \u{b7} step {} on {}, every launch timed by itself</div>",
            escape(&run.label),
            times.step,
            escape(&times.device)
        );
        let all: f64 = times.phases.iter().map(|p| p.ms).sum();
        let longest = times.phases.iter().fold(0.0f64, |most, p| p.ms.max(most)).max(1e-9);
        let height = LINE * times.phases.len() as f64;
        let _ = writeln!(
            html,
            "<figure><svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"milliseconds of each phase\">"
        );
        for (line, phase) in times.phases.iter().enumerate() {
            let (y, width) = (LINE * line as f64, (RIGHT - LEFT) * phase.ms / longest);
            let (text, share) = (y + 0.62 * LINE, 100.0 * phase.ms / all.max(1e-9));
            let _ = writeln!(
                html,
                "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text><rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" \
                 height=\"{}\" rx=\"3\" class=\"c{}\"/><text x=\"{:.1}\" y=\"{text}\">{} ms \u{b7} {share:.0} % \u{b7} {} \
                 launches</text>",
                LEFT - 10.0,
                escape(&phase.name),
                y + 0.2 * LINE,
                0.6 * LINE,
                i % COLOURS,
                LEFT + width + 8.0,
                short(phase.ms, DIGITS),
                phase.launches
            );
        }
        html += "</svg></figure>\n";
    }
    html
}
