//! Which charts there are, and in which order: by name alone, so that a new number of the rows has its place.

use super::run::{Run, Series};

/// A line of a chart.
pub struct Line<'a> {
    pub label: String,
    /// Which of the page's colours: that of the run, or of the element of a list.
    pub colour: usize,
    pub series: &'a Series,
}

/// A chart: one number of every run, or all elements of a list of one run.
pub struct Chart<'a> {
    pub title: String,
    pub unit: &'static str,
    pub lines: Vec<Line<'a>>,
}

/// Charts that belong together.
pub struct Section<'a> {
    pub title: String,
    pub charts: Vec<Chart<'a>>,
}

/// Section of a number by what its name has in it: the first that fits.
const KINDS: [(&str, &[&str]); 7] = [
    ("Temperature", &["entropy", "temperature", "alpha"]),
    ("Losses", &["loss", "td_error", "bc_error"]),
    ("Learning rates", &["_lr"]),
    ("Norms", &["norm"]),
    ("Memory", &["byte", "memory", "_gb", "_mb"]),
    ("Speed", &["_per_s", "_ms", "wait", "flop", "seconds"]),
    ("Values", &["q"]),
];
/// Order of the sections; others come after these, as the rows name them.
const ORDER: [&str; 9] = [
    "Losses",
    "Values",
    "Held-out episodes",
    "Norms",
    "Learning rates",
    "Temperature",
    "Batches",
    "Speed",
    "Memory",
];
/// Group of numbers at the top of a row.
const TOP: &str = "train/";

/// The charts of `runs`. Lists (names that end in an index) of a single run are drawn as one chart.
pub fn sections(runs: &[Run]) -> Vec<Section<'_>> {
    let mut sections: Vec<Section> = Vec::new();
    let mut seen: Vec<(String, usize, usize)> = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        for series in &run.series {
            let (family, element) = family(&series.name);
            let (key, label) = match (runs.len(), element) {
                (1, Some(element)) => (family, element.to_owned()),
                _ => (series.name.as_str(), run.label.clone()),
            };
            let mut line = Line {
                label,
                colour: number,
                series,
            };
            if let Some((_, i, j)) = seen.iter().find(|(name, ..)| name == key) {
                let lines = &mut sections[*i].charts[*j].lines;
                if runs.len() == 1 {
                    line.colour = lines.len();
                }
                lines.push(line);
                continue;
            }
            let title = section(&series.name);
            let i = sections.iter().position(|s| s.title == title).unwrap_or_else(|| {
                sections.push(Section {
                    title,
                    charts: Vec::new(),
                });
                sections.len() - 1
            });
            seen.push((key.to_owned(), i, sections[i].charts.len()));
            sections[i].charts.push(Chart {
                title: key.strip_prefix(TOP).unwrap_or(key).to_owned(),
                unit: unit(key),
                lines: vec![line],
            });
        }
    }
    let rank = |s: &Section| ORDER.iter().position(|o| *o == s.title).unwrap_or(ORDER.len());
    sections.sort_by_key(rank);
    sections
}

/// The name of a list and the index in it.
fn family(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('/') {
        Some((list, index)) if index.bytes().all(|b| b.is_ascii_digit()) => (list, Some(index)),
        _ => (name, None),
    }
}

fn section(name: &str) -> String {
    if name.starts_with("eval/") {
        return "Held-out episodes".into();
    }
    let has = |part: &&str| match *part {
        // A word of its own, not a letter of another.
        "q" => name.split(['_', '/']).any(|word| word == "q"),
        part => name.contains(part),
    };
    if let Some((title, _)) = KINDS.iter().find(|(_, parts)| parts.iter().any(has)) {
        return (*title).into();
    }
    match name.split_once('/') {
        None | Some(("train", _)) => "Batches".into(),
        Some((group, _)) => {
            let (first, rest) = group.split_at(group.chars().next().map_or(0, char::len_utf8));
            first.to_uppercase() + &rest.replace('_', " ")
        }
    }
}

fn unit(name: &str) -> &'static str {
    let units = [
        ("_per_s", "1/s"),
        ("_ms", "ms"),
        ("_bytes", "bytes"),
        ("_gb", "GB"),
        ("_s", "s"),
    ];
    units
        .iter()
        .find(|(end, _)| name.ends_with(end))
        .map_or("", |(_, unit)| unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(label: &str, names: &[&str]) -> Run {
        Run {
            dir: label.into(),
            label: label.into(),
            rows: 1,
            last_step: 1,
            phases: None,
            config: Vec::new(),
            series: names
                .iter()
                .map(|name| Series {
                    name: (*name).into(),
                    points: vec![(1, 1.0)],
                })
                .collect(),
        }
    }

    #[test]
    fn every_number_has_its_place() {
        let names = [
            "train/sequence",
            "train/best_q",
            "train/bc_loss",
            "gpu_state/clock",
            "eval/q",
            "train/pi0_lr",
        ];
        let runs = [run("a", &names)];
        let all = sections(&runs);
        let titles: Vec<&str> = all.iter().map(|s| s.title.as_str()).collect();
        assert_eq!(
            titles,
            [
                "Losses",
                "Values",
                "Held-out episodes",
                "Learning rates",
                "Batches",
                "Gpu state"
            ]
        );
        assert_eq!(
            (all[0].charts[0].title.as_str(), all[3].charts[0].title.as_str()),
            ("bc_loss", "pi0_lr")
        );
    }

    #[test]
    fn lists_are_one_chart_and_runs_are_compared_element_by_element() {
        let lists = ["q/mean/0", "q/mean/1", "q/max/0"];
        let (one, two) = ([run("a", &lists)], [run("a", &lists), run("b", &lists[..2])]);
        let shape = |runs: &[Run]| -> Vec<(String, usize)> {
            let charts = sections(runs).remove(0).charts;
            charts.into_iter().map(|c| (c.title, c.lines.len())).collect()
        };
        assert_eq!(shape(&one), [("q/mean".to_owned(), 2), ("q/max".to_owned(), 1)]);
        let pairs = [("q/mean/0", 2), ("q/mean/1", 2), ("q/max/0", 1)];
        assert_eq!(shape(&two), pairs.map(|(name, n)| (name.to_owned(), n)));
    }
}
