//! Comparing numbers with references, and the table of the result.

use std::fmt;

use serde::Serialize;

use super::Fixture;
use crate::gpu::DType;
use crate::model::stream::Storage;

/// What a tensor is, which decides how near it must be.
///
/// What comes from storage of half precision is held to other rules, where `Kind::half` has one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A forward value: 1e-4 of the tensor's largest element.
    Forward,
    /// A gradient: 5e-4 of the tensor's largest element.
    Gradient,
    /// Computed in f64 and rounded once: 1.2e-7, a unit in the last place, of the larger of 1 and the element.
    Rounded,
    /// Zero in exact arithmetic: at most `tolerance`, absolute. What storage of half precision leaves of it is rounding
    /// of the terms that cancel, which are as large as those of the tensor whose largest element is `beside`: at most
    /// the type's epsilon of it.
    Zero { tolerance: f64, beside: f64 },
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
            Kind::Zero { tolerance, .. } | Kind::Absolute(tolerance) => tolerance,
            Kind::Update { relative, rounding } => relative + rounding / norm(want),
            Kind::Exact => 0.0,
        }
    }

    /// The least cosine that a tensor may have with the reference if it comes from storage of half precision. `None`
    /// where such storage changes nothing.
    fn half(self) -> Option<f64> {
        match self {
            Kind::Forward => Some(0.999),
            Kind::Gradient => Some(0.99),
            Kind::Update { .. } | Kind::Rounded | Kind::Zero { .. } | Kind::Absolute(_) | Kind::Exact => None,
        }
    }
}

/// One compared tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub tensor: String,
    pub kind: Kind,
    /// The error in the sense of `kind`; infinite where shapes differ or a value is not a number. From storage of half
    /// precision: the L2 norm of the difference, relative to that of the reference.
    pub error: f64,
    /// The error may be this large. With storage of half precision it is what the cosine allows two tensors of one
    /// norm: a cosine says nothing of the scale, nor of a single number.
    pub tolerance: f64,
    /// Of storage of half precision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cosine: Option<Cosine>,
    pub elements: usize,
    pub passed: bool,
}

/// How a tensor lies to the reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cosine {
    pub value: f64,
    /// What it must exceed.
    pub least: f64,
}

impl Row {
    /// How much of what is allowed it takes: up to 1 passes.
    fn share(&self) -> f64 {
        let of = |error: f64, tolerance: f64| if tolerance > 0.0 { error / tolerance } else { error };
        let distance = of(self.error, self.tolerance);
        self.cosine
            .map_or(distance, |c| distance.max(of(1.0 - c.value, 1.0 - c.least)))
    }
}

/// The outcome of one group.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub group: String,
    /// How the model was stored: `float32`, `float16` or `bfloat16`.
    pub dtype: &'static str,
    /// How its residual streams were.
    pub residual_dtype: &'static str,
    pub rows: Vec<Row>,
    /// What the group holds that has no check here.
    pub unknown: Vec<String>,
    /// The epsilon of the storage that the rows that follow come from, if it is of half precision.
    #[serde(skip)]
    half: Option<f64>,
}

impl Report {
    /// Of a model stored like this.
    pub(crate) fn new(group: &str, storage: impl Into<Storage>) -> Report {
        let storage = storage.into();
        Report {
            group: group.into(),
            dtype: storage.dtype.name(),
            residual_dtype: storage.residual().name(),
            rows: Vec::new(),
            unknown: Vec::new(),
            half: epsilon_of_half(storage.dtype),
        }
    }

    /// Whether the rows that `part` adds come from storage of half precision: what is f32 whatever the model is stored
    /// as keeps its rules.
    pub(crate) fn with_storage<T>(&mut self, dtype: DType, part: impl FnOnce(&mut Report) -> T) -> T {
        let before = std::mem::replace(&mut self.half, epsilon_of_half(dtype));
        let done = part(self);
        self.half = before;
        done
    }

    /// Did everything pass, and was there anything to check?
    pub fn passed(&self) -> bool {
        self.unknown.is_empty() && !self.rows.is_empty() && self.rows.iter().all(|r| r.passed)
    }

    /// The row that is nearest to (or furthest beyond) its tolerance.
    pub fn worst(&self) -> Option<&Row> {
        self.rows.iter().max_by(|a, b| a.share().total_cmp(&b.share()))
    }

    /// Marks tensors that nothing has read as unknown, where they are `wanted`.
    pub(crate) fn untouched(&mut self, f: &Fixture, wanted: impl Fn(&str) -> bool) {
        let names = f.untouched().into_iter();
        self.unknown.extend(names.filter(|n| wanted(n)));
    }

    /// Adds a comparison.
    pub(crate) fn compare(&mut self, tensor: impl Into<String>, kind: Kind, got: &[f32], want: &[f32]) {
        // What is zero must stay zero, however it is stored.
        let least = kind
            .half()
            .filter(|_| self.half.is_some() && want.iter().any(|&w| w != 0.0));
        let cosine = least.map(|least| Cosine {
            value: cosine(got, want),
            least,
        });
        let tolerance = match (least, kind, self.half) {
            (Some(least), ..) => (2.0 * (1.0 - least)).sqrt(),
            (None, Kind::Zero { beside, .. }, Some(epsilon)) => epsilon * beside,
            _ => kind.tolerance(want),
        };
        let error = match least {
            _ if got.len() != want.len() => f64::INFINITY,
            Some(_) => distance(got, want),
            None => error(kind, got, want),
        };
        let passed = error <= tolerance && cosine.is_none_or(|c| c.value > c.least);
        self.rows.push(Row {
            tensor: tensor.into(),
            kind,
            error,
            tolerance,
            cosine,
            elements: want.len(),
            passed,
        });
    }
}

/// The distance from 1 to the next number, for types of half precision.
fn epsilon_of_half(dtype: DType) -> Option<f64> {
    match dtype {
        DType::F16 => Some(half::f16::EPSILON.to_f64()),
        DType::Bf16 => Some(half::bf16::EPSILON.to_f64()),
        DType::F32 | DType::U32 | DType::U16 | DType::U8 => None,
    }
}

/// The cosine of the angle between two tensors; 0 where one of them is zero.
fn cosine(got: &[f32], want: &[f32]) -> f64 {
    let dot: f64 = got.iter().zip(want).map(|(&g, &w)| f64::from(g) * f64::from(w)).sum();
    dot / (norm(got) * norm(want))
}

/// The L2 norm of the difference, relative to that of `want`.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let squares = got
        .iter()
        .zip(want)
        .map(|(&g, &w)| (f64::from(g) - f64::from(w)).powi(2));
    let relative = squares.sum::<f64>().sqrt() / norm(want);
    if relative.is_nan() { f64::INFINITY } else { relative }
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
        Kind::Zero { .. } => largest(Box::new(pairs().map(|(g, _)| g.abs()))),
        Kind::Absolute(_) => largest(Box::new(pairs().map(|(g, w)| (g - w).abs()))),
        Kind::Rounded => largest(Box::new(pairs().map(|(g, w)| (g - w).abs() / w.abs().max(1.0)))),
        Kind::Update { .. } => distance(got, want),
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
            let cosine = r
                .cosine
                .map_or(String::new(), |c| format!("  cosine {:.6} of {}", c.value, c.least));
            writeln!(
                f,
                "  {:width$}  {:>10.2e} of {:>8.1e}{cosine}  {mark}",
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

    fn judge(dtype: DType, kind: Kind, got: &[f32], want: &[f32]) -> bool {
        let mut r = Report::new("t", dtype);
        r.compare("x", kind, got, want);
        r.passed()
    }

    fn zero(tolerance: f64, beside: f64) -> Kind {
        Kind::Zero { tolerance, beside }
    }

    fn row(kind: Kind, got: &[f32], want: &[f32]) -> bool {
        judge(DType::F32, kind, got, want)
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
        assert!(!row(zero(1e-6, 1.0), &[f32::NAN], &[0.0]));
        assert!(row(zero(1e-6, 1.0), &[1e-6], &[0.0]) && !row(zero(1e-6, 1.0), &[1.1e-6], &[0.0]));
        assert!(row(Kind::Forward, &[0.0], &[0.0]) && !row(Kind::Forward, &[1e-3], &[0.0]));
        assert!(row(Kind::Exact, &[0.5], &[0.5]) && !row(Kind::Exact, &[0.5], &[0.50000006]));
    }

    #[test]
    fn half_precision_is_judged_by_angle_and_scale() {
        let half = |kind, got: &[f32], want: &[f32]| judge(DType::F16, kind, got, want);
        // An angle of 0.04 has a cosine of 0.9992, one of 0.05 has 0.99875, one of 0.13 has 0.9916, one of 0.15 has 0.989.
        let turned = |angle: f32| [angle.cos(), angle.sin()];
        assert!(half(Kind::Forward, &turned(0.04), &[1.0, 0.0]) && !half(Kind::Forward, &turned(0.05), &[1.0, 0.0]));
        assert!(half(Kind::Gradient, &turned(0.13), &[1.0, 0.0]) && !half(Kind::Gradient, &turned(0.15), &[1.0, 0.0]));
        assert!(
            !row(Kind::Forward, &turned(0.04), &[1.0, 0.0]),
            "f32 is held to its own rule"
        );
        assert!(!half(Kind::Forward, &[1.1, 2.2], &[1.0, 2.0]), "off in scale alone");
        assert!(half(Kind::Forward, &[1.04], &[1.0]) && !half(Kind::Forward, &[1.05], &[1.0]));
        assert!(!half(Kind::Forward, &[f32::NAN, 0.0], &[1.0, 0.0]) && !half(Kind::Forward, &[1.0], &[1.0, 0.0]));
        assert!(
            !half(Kind::Forward, &[0.0, 0.0], &[1.0, 0.0]),
            "nothing has no direction"
        );
        assert!(half(Kind::Forward, &[0.0], &[0.0]) && !half(Kind::Forward, &[1e-3], &[0.0]));
        assert!(!half(Kind::Exact, &[0.5], &[0.50000006]));
        // Epsilon is 2⁻¹⁰ of f16 and 2⁻⁷ of bf16.
        assert!(half(zero(1e-6, 2.0), &[1.9e-3], &[0.0]) && !half(zero(1e-6, 2.0), &[2.0e-3], &[0.0]));
        let bf16 = |got: f32| judge(DType::Bf16, zero(1e-6, 2.0), &[got], &[0.0]);
        assert!(bf16(0.0156) && !bf16(0.0157) && !bf16(f32::NAN));
        let mut r = Report::new("t", DType::Bf16);
        r.with_storage(DType::F32, |r| r.compare("x", Kind::Forward, &[1.001], &[1.0]));
        assert!(
            !r.passed() && r.rows[0].cosine.is_none(),
            "what stays in f32 keeps its rule"
        );
        r.compare("y", Kind::Forward, &[1.001], &[1.0]);
        assert!(r.rows[1].passed && r.rows[1].cosine.is_some());
        assert_eq!(r.worst().map(|r| r.tensor.as_str()), Some("x"));
    }

    #[test]
    fn an_empty_report_does_not_pass() {
        let mut r = Report::new("t", DType::F32);
        assert!(!r.passed());
        r.compare("x", Kind::Forward, &[1.0], &[1.0]);
        assert!(r.passed());
        r.unknown.push("op".into());
        assert!(!r.passed());
    }
}
