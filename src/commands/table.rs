//! Tables and units for people.

use comfy_table::{CellAlignment, Table, presets};

/// A Markdown table with a header; all columns but the first `text` are numbers, aligned to the right.
pub fn table<H: AsRef<str>>(header: &[H], text: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_header(header.iter().map(AsRef::as_ref));
    for (i, column) in table.column_iter_mut().enumerate() {
        if i >= text {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Bytes in the unit that suits them: `1.5 GB` (10⁹).
pub fn bytes(n: u64) -> String {
    let (scale, unit) = match n {
        1_000_000_000.. => (1e9, "GB"),
        1_000_000.. => (1e6, "MB"),
        1_000.. => (1e3, "kB"),
        _ => (1.0, "B"),
    };
    let value = n as f64 / scale;
    if value < 10.0 && scale > 1.0 {
        format!("{value:.2} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

/// A number in four significant digits.
pub fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.3e}"),
        a if a < 1.0 => format!("{x:.4}"),
        a if a < 100.0 => format!("{x:.3}"),
        _ => format!("{x:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_fit_the_number() {
        assert_eq!(
            [999, 1_000, 12_345_678, 53_200_000_000].map(bytes),
            ["999 B", "1.00 kB", "12 MB", "53 GB"]
        );
        assert_eq!(
            [0.0, 1.0, -0.25, 2e-6].map(number),
            ["0", "1.000", "-0.2500", "2.000e-6"]
        );
    }
}
