//! The configuration for a reader: TOML, and behind every value where it comes from.

use std::fmt::Write;

use toml::Value;

use super::error::Place;
use super::names::{self, Names};
use super::schema::Config;

/// Lines longer than this do not move the column of the places.
const WIDEST: usize = 70;

impl Config {
    /// Every key with its value, and where that was written as a comment. It is TOML, and [`Config::parse`] gives an
    /// equal configuration back; keys that are unset are commented out, with what `memory.preset` makes of them.
    pub fn show(&self) -> String {
        let mut rows = Vec::new();
        let mut table = String::new();
        for key in Names::new().keys() {
            let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
            if section != table {
                rows.push((String::new(), None));
                rows.push((format!("[{section}]"), None));
                section.clone_into(&mut table);
            }
            let place = Some(self.origins.of(key));
            match self.value(key) {
                Some(Value::Table(entries)) => {
                    rows.push((String::new(), None));
                    rows.push((format!("[{}]", names::join(section, name)), place.clone()));
                    rows.extend(
                        entries
                            .iter()
                            .map(|(key, value)| (format!("{key} = {value}"), place.clone())),
                    );
                }
                Some(value) => rows.push((format!("{name} = {value}"), place)),
                None => rows.push(match self.by_preset(key) {
                    Some(value) => (
                        format!("#{name} is unset: {value}"),
                        Some(self.origins.of("memory.preset")),
                    ),
                    None => (format!("#{name} is unset"), place),
                }),
            }
        }
        let width = |text: &str| text.chars().count();
        let column = rows.iter().filter(|row| row.1.is_some()).map(|row| width(&row.0));
        let column = column.filter(|w| *w <= WIDEST).max().unwrap_or(0);
        let mut text = String::new();
        for (row, place) in rows {
            let comment =
                place.map(|place| format!("{}  # {}", " ".repeat(column.saturating_sub(width(&row))), said(&place)));
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{row}{}", comment.unwrap_or_default());
        }
        if !self.notes().is_empty() {
            let _ = writeln!(text, "\n# Names in the files:");
        }
        for note in self.notes() {
            let _ = writeln!(text, "# {note}");
        }
        text
    }
}

fn said(place: &Place) -> String {
    match place {
        Place::Default => "default".into(),
        Place::Flag { flag, key, .. } if *flag == super::SET => format!("--set {key}"),
        Place::Flag { flag, .. } => (*flag).to_owned(),
        written => written.to_string(),
    }
}
