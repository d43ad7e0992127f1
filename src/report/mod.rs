//! `acrlpd report`: the numbers of one run or several as one HTML page that needs nothing beside it.
//!
//! | file | what it does |
//! |---|---|
//! | [`run`] | a run's folder: its rows by column, its configuration |
//! | [`reduce`] | long columns: least and greatest of a bucket, moving mean |
//! | [`scale`] | axes: linear or logarithmic, round ticks, short numbers |
//! | [`chart`] | one chart as SVG |
//! | [`phases`] | where the time of a step goes |
//! | [`sections`] | which charts there are, and in which order |
//! | [`page`] | the page around them |

pub mod chart;
pub mod page;
pub mod phases;
pub mod reduce;
pub mod run;
pub mod scale;
pub mod sections;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use page::render;
pub use run::Run;

/// Why there is no report. Each message is one sentence: what, where, what to do.
#[derive(Debug, Error)]
pub enum ReportError {
    #[error("`{0}` is not the folder of a run: it has no metrics.jsonl; give CHECKPOINT_DIR/CONFIG/EXP_NAME")]
    NotARun(PathBuf),
    #[error("`{0}` has no rows yet: train at least log_interval steps first")]
    NoRows(PathBuf),
    #[error("cannot read `{path}`: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write `{path}`: {source}; give another file with --out")]
    Write { path: PathBuf, source: io::Error },
}

impl ReportError {
    /// The exit code that stands for this kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            ReportError::Write { .. } => 5,
            _ => 3,
        }
    }
}

/// Text as it may stand in HTML, in attributes too.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // HTML has no way to write the other control characters.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_of_a_name_is_markup() {
        assert_eq!(
            super::escape("<a b=\"c\" & 'd'>\u{0}"),
            "&lt;a b=&quot;c&quot; &amp; &#39;d&#39;&gt;\u{fffd}"
        );
    }
}
