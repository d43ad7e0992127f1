//! The page around the charts: names, summary, all numbers, configuration.

use super::chart::{self, COLOURS};
use super::run::Run;
use super::scale::short;
use super::sections::{Chart, Section, sections};
use super::{escape, phases};

/// Digits of numbers in tables.
const DIGITS: usize = 4;

/// What is told of a run in the summary: heading, number, and which of its values.
const SUMMARY: [(&str, &str, Pick); 7] = [
    ("critic loss", "train/critic_loss", Pick::Last),
    ("actor loss", "train/actor_loss", Pick::Last),
    ("BC loss", "train/bc_loss", Pick::Last),
    ("Q", "train/q", Pick::Last),
    ("held-out action error", "eval/action_error", Pick::Least),
    ("steps/s", "train/steps_per_s", Pick::Median),
    ("skipped", "train/skipped", Pick::Last),
];

#[derive(Clone, Copy)]
enum Pick {
    Last,
    Least,
    Median,
}

/// The page of `runs` (at least one).
pub fn render(runs: &[Run]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let title = escape(&names.join(", "));
    let style = include_str!("style.css");
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title} \u{b7} acrlpd</title>\n<style>\n{style}{}</style>\n\
         </head>\n<body>\n<h1>{title}</h1>\n",
        colours()
    );
    for run in runs {
        let steps = format!("{} rows to step {}", run.rows, run.last_step);
        page += &format!(
            "<div class=\"soft\">{} \u{b7} {steps}</div>\n",
            escape(&run.dir.display().to_string())
        );
    }
    page += &summary(runs);
    if runs.len() > 1 {
        let names = runs.iter().enumerate().map(|(i, run)| swatch(i, &run.label));
        page += &format!("<div class=\"key\">{}</div>\n", names.collect::<String>());
    }
    let points = || runs.iter().flat_map(|run| &run.series).map(|series| &series.points);
    let first = points().filter_map(|p| Some(p.first()?.0)).min().unwrap_or(0);
    let last = points().filter_map(|p| Some(p.last()?.0)).max().unwrap_or(0);
    // Zero is a round number to begin with, unless that would leave much of the charts empty.
    let first = if first <= last / 10 { 0 } else { first };
    let all = sections(runs);
    for section in &all {
        page += &charts(section, first, last, runs.len() == 1);
    }
    page += &phases::section(runs);
    page += &numbers(runs, &all);
    page += &configuration(runs);
    page + "</body>\n</html>\n"
}

/// Rules of the classes that charts and swatches use.
fn colours() -> String {
    let rules = (0..COLOURS).map(|i| {
        format!(
            "svg path.c{i} {{ stroke: var(--c{i}); }} svg circle.c{i}, svg rect.c{i} {{ fill: var(--c{i}); }} \
             .swatch.c{i} {{ background: var(--c{i}); }}\n"
        )
    });
    rules.collect()
}

fn swatch(colour: usize, name: &str) -> String {
    format!(
        "<span><i class=\"swatch c{}\"></i>{}</span>",
        colour % COLOURS,
        escape(name)
    )
}

/// The table of runs.
fn summary(runs: &[Run]) -> String {
    let shown = SUMMARY
        .iter()
        .filter(|(_, name, _)| runs.iter().any(|run| run.series(name).is_some()));
    let shown: Vec<_> = shown.collect();
    let heads: String = shown
        .iter()
        .map(|(head, _, pick)| match pick {
            Pick::Last => format!("<th>{head}</th>"),
            Pick::Least => format!("<th>best {head}</th>"),
            Pick::Median => format!("<th>median {head}</th>"),
        })
        .collect();
    let row = |(i, run): (usize, &Run)| {
        let cell = |(_, name, pick): &&(&str, &str, Pick)| match (run.series(name), pick) {
            (None, _) => "<td>\u{2013}</td>".to_owned(),
            (Some(s), Pick::Last) => format!("<td>{}</td>", short(s.last(), DIGITS)),
            (Some(s), Pick::Median) => format!("<td>{}</td>", short(s.median(), DIGITS)),
            (Some(s), Pick::Least) => {
                let (step, value) = s.least();
                format!("<td>{} <small>at {step}</small></td>", short(value, DIGITS))
            }
        };
        let cells: String = shown.iter().map(cell).collect();
        format!(
            "<tr><th>{}</th><td>{}</td>{cells}</tr>\n",
            swatch(i, &run.label),
            run.last_step
        )
    };
    let rows: String = runs.iter().enumerate().map(row).collect();
    format!(
        "<div class=\"wide\"><table><thead><tr><th>run</th><th>steps</th>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    )
}

fn charts(section: &Section<'_>, first: u64, last: u64, single: bool) -> String {
    let figure = |chart: &Chart<'_>| {
        let unit = match chart.unit {
            "" => String::new(),
            unit => format!(" <small>{unit}</small>"),
        };
        let (now, elements) = match chart.lines.as_slice() {
            [line] => (short(line.series.last(), DIGITS), String::new()),
            lines if single => {
                let names: String = lines.iter().map(|line| swatch(line.colour, &line.label)).collect();
                (String::new(), format!("<div class=\"elements\">{names}</div>"))
            }
            _ => Default::default(),
        };
        format!(
            "<figure><figcaption><b>{}{unit}</b><span>{now}</span></figcaption>{elements}{}</figure>\n",
            escape(&chart.title),
            chart::svg(chart, first, last)
        )
    };
    let figures: String = section.charts.iter().map(figure).collect();
    format!(
        "<h2>{}</h2>\n<div class=\"charts\">\n{figures}</div>\n",
        escape(&section.title)
    )
}

/// Every number of every run: last, least, greatest.
fn numbers(runs: &[Run], sections: &[Section<'_>]) -> String {
    let mut rows = String::new();
    let lines = sections.iter().flat_map(|s| &s.charts).flat_map(|c| &c.lines);
    for line in lines {
        let series = line.series;
        let place = |(step, value): (u64, f64)| format!("{} <small>at {step}</small>", short(value, DIGITS));
        let run = if runs.len() > 1 {
            swatch(line.colour, &line.label)
        } else {
            String::new()
        };
        rows += &format!(
            "<tr><th>{}</th><td>{run}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
            escape(&series.name),
            short(series.last(), DIGITS),
            place(series.least()),
            place(series.greatest())
        );
    }
    format!(
        "<details><summary>All numbers</summary><div class=\"wide\"><table><thead><tr><th>number</th><th></th><th>last</th>\
         <th>least</th><th>greatest</th></tr></thead><tbody>\n{rows}</tbody></table></div></details>\n"
    )
}

/// The keys of the configuration, those that differ between runs first and open.
fn configuration(runs: &[Run]) -> String {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in runs.iter().flat_map(|run| &run.config) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    if keys.is_empty() {
        return String::new();
    }
    let value = |run: &Run, key: &str| run.config.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let (same, different): (Vec<&str>, Vec<&str>) = keys
        .into_iter()
        .partition(|key| runs.iter().all(|run| value(run, key) == value(&runs[0], key)));
    let heads = |runs: &[Run]| -> String {
        runs.iter()
            .map(|run| format!("<th>{}</th>", escape(&run.label)))
            .collect()
    };
    let table = |keys: &[&str], runs: &[Run], heads: String| {
        let row = |key: &&str| {
            let cell = |run: &Run| format!("<td>{}</td>", value(run, key).map_or("\u{2013}".into(), |v| escape(&v)));
            let cells: String = runs.iter().map(cell).collect();
            format!("<tr><td>{}</td>{cells}</tr>\n", escape(key))
        };
        let rows: String = keys.iter().map(row).collect();
        format!(
            "<div class=\"wide\"><table class=\"words\"><thead><tr><th>key</th>{heads}</tr></thead><tbody>\n{rows}</tbody></table></div>"
        )
    };
    let mut html = String::from("<h2>Configuration</h2>\n");
    if !different.is_empty() {
        html += &format!(
            "<div class=\"soft\">What differs</div>{}\n",
            table(&different, runs, heads(runs))
        );
    }
    let title = if runs.len() > 1 { "What is the same" } else { "All keys" };
    html + &format!(
        "<details><summary>{title}</summary>{}</details>\n",
        table(&same, &runs[..1], "<th>value</th>".into())
    )
}
