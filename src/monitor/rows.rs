//! `metrics.jsonl` read back, row by row.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use super::{Point, scalars};

/// The rows of a `metrics.jsonl`. Lines that are no rows are left out: a killed program leaves half of one.
///
/// # Errors
/// A file that cannot be opened.
pub fn read(path: &Path) -> io::Result<impl Iterator<Item = Point> + use<>> {
    let lines = BufReader::new(File::open(path)?).split(b'\n');
    Ok(lines.map_while(Result::ok).filter_map(|line| {
        let row: Value = serde_json::from_slice(&line).ok()?;
        Some(Point {
            step: row["step"].as_u64()?,
            time: None,
            scalars: scalars::flatten(&row),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_no_row() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("metrics.jsonl");
        std::fs::write(
            &path,
            "{\"step\":1,\"q\":0.5}\n\n{\"step\":2,\"q\":null}\n{\"step\":3,\"q",
        )
        .expect("written");
        let rows: Vec<Point> = read(&path).expect("it is there").collect();
        assert_eq!(rows.iter().map(|r| r.step).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(rows[0].scalars, [("train/q".to_owned(), 0.5)]);
        assert!(rows[1].scalars.is_empty());
    }
}
