//! Ranges of numbers: one rule for the check, its message and the JSON Schema.

use serde_json::{Value, json};

/// Where a number may lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// 1, 2, ...
    AtLeastOne,
    /// A positive multiple.
    MultipleOf(usize),
    /// [0, 1]
    Share,
    /// [0, 1)
    BelowOne,
    /// (0, 1]
    UpToOne,
    /// Finite and above 0.
    Positive,
    /// Finite and at least 0.
    NotNegative,
}

impl Range {
    /// Whether `x` lies in it.
    pub fn holds(self, x: f64) -> bool {
        match self {
            Range::AtLeastOne => x >= 1.0,
            Range::MultipleOf(n) => x > 0.0 && x % n as f64 == 0.0,
            Range::Share => (0.0..=1.0).contains(&x),
            Range::BelowOne => (0.0..1.0).contains(&x),
            Range::UpToOne => x > 0.0 && x <= 1.0,
            Range::Positive => x.is_finite() && x > 0.0,
            Range::NotNegative => x.is_finite() && x >= 0.0,
        }
    }

    /// What a number outside of it is.
    pub fn complaint(self) -> String {
        match self {
            Range::AtLeastOne => "not at least 1".into(),
            Range::MultipleOf(n) => format!("not a multiple of {n}"),
            Range::Share => "not in [0, 1]".into(),
            Range::BelowOne => "not in [0, 1)".into(),
            Range::UpToOne => "not in (0, 1]".into(),
            Range::Positive => "not a number above 0".into(),
            Range::NotNegative => "not a number of at least 0".into(),
        }
    }

    /// Its keywords in JSON Schema.
    pub fn keywords(self) -> Value {
        match self {
            Range::AtLeastOne => json!({ "minimum": 1 }),
            Range::MultipleOf(n) => json!({ "minimum": n, "multipleOf": n }),
            Range::Share => json!({ "minimum": 0, "maximum": 1 }),
            Range::BelowOne => json!({ "minimum": 0, "exclusiveMaximum": 1 }),
            Range::UpToOne => json!({ "exclusiveMinimum": 0, "maximum": 1 }),
            Range::Positive => json!({ "exclusiveMinimum": 0 }),
            Range::NotNegative => json!({ "minimum": 0 }),
        }
    }
}
