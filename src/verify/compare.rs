//! Comparing numbers with references, and the table of the result.

use std::fmt;

use serde::Serialize;

use super::Fixture;

/// What a tensor is, which decides how near it must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A forward value: 1e-4 of the tensor's largest element.
    Forward,
    /// A gradient: 5e-4 of the tensor's largest element.
    Gradient,
    /// Computed in f64 and rounded once: 1.2e-7, a unit in the last place, of the larger of 1 and the element.
    Rounded,
    /// Zero in exact arithmetic: at most this much, absolute.
    Zero(f64),
    /// Relative L2 distance of an update: at most `relative`, and what storing the weights in f32 loses (`rounding`,
    /// an L2 norm): it outweighs updates by weight decay alone.
    Update { relative: f64, rounding: f64 },
    /// Every element within this much, absolute.
    Absolute(f64),
    /// Bit for bit.
    Exact,
}

impl Kind {
    fn tolerance(self, want: &[f32]) -> f64 {
        match self {
            Kind::Forward => 1e-4,
            Kind::Gradient => 5e-4,
            Kind::Rounded => 1.2e-7,
            Kind::Zero(t) | Kind::Absolute(t) => t,
            Kind::Update { relative, rounding } => relative + rounding / norm(want),
            Kind::Exact => 0.0,
        }
    }
}

/// One compared tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub tensor: String,
    pub kind: Kind,
    /// The error in the sense of `kind`; infinite where shapes differ or a value is not a number.
    pub error: f64,
    pub tolerance: f64,
    pub elements: usize,
    pub passed: bool,
}

/// The outcome of one group.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub group: String,
    pub rows: Vec<Row>,
    /// What the group holds that has no check here.
    pub unknown: Vec<String>,
}

impl Report {
    pub(crate) fn new(group: &str) -> Report {
        Report {
            group: group.into(),
            ..Report::default()
        }
    }

    /// Did everything pass, and was there anything to check?
    pub fn passed(&self) -> bool {
        self.unknown.is_empty() && !self.rows.is_empty() && self.rows.iter().all(|r| r.passed)
    }

    /// The row that is nearest to (or furthest beyond) its tolerance.
    pub fn worst(&self) -> Option<&Row> {
        let share = |r: &Row| {
            if r.tolerance > 0.0 {
                r.error / r.tolerance
            } else {
                r.error
            }
        };
        self.rows.iter().max_by(|a, b| share(a).total_cmp(&share(b)))
    }

    /// Marks tensors that nothing has read as unknown, where they are `wanted`.
    pub(crate) fn untouched(&mut self, f: &Fixture, wanted: impl Fn(&str) -> bool) {
        let names = f.untouched().into_iter();
        self.unknown.extend(names.filter(|n| wanted(n)));
    }

    /// Adds a comparison.
    pub(crate) fn compare(&mut self, tensor: impl Into<String>, kind: Kind, got: &[f32], want: &[f32]) {
        let tolerance = kind.tolerance(want);
        let error = if got.len() == want.len() {
            error(kind, got, want)
        } else {
            f64::INFINITY
        };
        let passed = error <= tolerance;
        self.rows.push(Row {
            tensor: tensor.into(),
            kind,
            error,
            tolerance,
            elements: want.len(),
            passed,
        });
    }
}

fn norm(values: &[f32]) -> f64 {
    values
        .iter()
        .map(|&v| f64::from(v).powi(2))
        .sum::<f64>()
        .sqrt()
        .max(1e-150)
}

fn error(kind: Kind, got: &[f32], want: &[f32]) -> f64 {
    let pairs = || got.iter().zip(want).map(|(&g, &w)| (g as f64, w as f64));
    // f64::max drops NaN; a NaN must fail.
    let largest = |mut values: Box<dyn Iterator<Item = f64> + '_>| -> f64 {
        let mut top = 0.0f64;
        for v in &mut *values {
            if v.is_nan() {
                return f64::INFINITY;
            }
            top = top.max(v);
        }
        top
    };
    match kind {
        Kind::Exact => {
            if got.iter().zip(want).all(|(g, w)| g.to_bits() == w.to_bits()) {
                0.0
            } else {
                f64::INFINITY
            }
        }
        Kind::Zero(_) => largest(Box::new(pairs().map(|(g, _)| g.abs()))),
        Kind::Absolute(_) => largest(Box::new(pairs().map(|(g, w)| (g - w).abs()))),
        Kind::Rounded => largest(Box::new(pairs().map(|(g, w)| (g - w).abs() / w.abs().max(1.0)))),
        Kind::Update { .. } => {
            let distance: f64 = pairs().map(|(g, w)| (g - w).powi(2)).sum();
            let relative = distance.sqrt() / norm(want);
            if relative.is_nan() { f64::INFINITY } else { relative }
        }
        Kind::Forward | Kind::Gradient => {
            let scale = want.iter().fold(0.0f64, |a, &w| a.max((w as f64).abs()));
            let worst = largest(Box::new(pairs().map(|(g, w)| (g - w).abs())));
            // A tensor of zeros must come out as zeros to within f32 rounding of its inputs.
            if scale == 0.0 {
                if worst <= 1e-7 { 0.0 } else { f64::INFINITY }
            } else {
                worst / scale
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|r| r.tensor.len()).max().unwrap_or(6).min(100);
        writeln!(f, "{}: {} tensors", self.group, self.rows.len())?;
        for r in &self.rows {
            let mark = if r.passed { "ok" } else { "FAIL" };
            writeln!(
                f,
                "  {:width$}  {:>10.2e} of {:>8.1e}  {mark}",
                r.tensor, r.error, r.tolerance
            )?;
        }
        for name in &self.unknown {
            writeln!(f, "  {name}: no check for this here  FAIL")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kind: Kind, got: &[f32], want: &[f32]) -> bool {
        let mut r = Report::new("t");
        r.compare("x", kind, got, want);
        r.passed()
    }

    #[test]
    fn what_is_off_fails() {
        assert!(row(Kind::Forward, &[1.0, 0.00009], &[1.0, 0.0]));
        assert!(!row(Kind::Forward, &[1.0, 0.00011], &[1.0, 0.0]));
        assert!(row(Kind::Gradient, &[1.0, 0.0004], &[1.0, 0.0]));
        assert!(!row(Kind::Forward, &[f32::NAN, 0.0], &[1.0, 0.0]));
        assert!(!row(Kind::Forward, &[1.0], &[1.0, 0.0]), "missing elements");
        let update = |rounding| Kind::Update {
            relative: 1e-3,
            rounding,
        };
        assert!(!row(update(0.0), &[f32::NAN], &[1.0]));
        assert!(row(update(0.0), &[1.0009], &[1.0]) && !row(update(0.0), &[1.0011], &[1.0]));
        assert!(row(update(1e-8), &[1.2e-7], &[1.1e-7]) && !row(update(1e-8), &[1.3e-7], &[1.1e-7]));
        assert!(row(Kind::Rounded, &[100.00001, 1e-7], &[100.0, 0.0]) && !row(Kind::Rounded, &[1.3e-7], &[0.0]));
        assert!(!row(Kind::Rounded, &[f32::NAN], &[0.0]) && !row(Kind::Rounded, &[100.00002], &[100.0]));
        assert!(!row(Kind::Zero(1e-6), &[f32::NAN], &[0.0]));
        assert!(row(Kind::Forward, &[0.0], &[0.0]) && !row(Kind::Forward, &[1e-3], &[0.0]));
        assert!(row(Kind::Exact, &[0.5], &[0.5]) && !row(Kind::Exact, &[0.5], &[0.50000006]));
    }

    #[test]
    fn an_empty_report_does_not_pass() {
        assert!(!Report::new("t").passed());
        let mut r = Report::new("t");
        r.compare("x", Kind::Forward, &[1.0], &[1.0]);
        assert!(r.passed());
        r.unknown.push("op".into());
        assert!(!r.passed());
    }
}
