//! Rules, as they are written down.

use crate::config::range::Range;

/// The first broken rule: its key, and what would be right. And the ranges met on the way, for the schema.
#[derive(Default)]
pub(super) struct Rules {
    pub broken: Option<(String, String)>,
    pub ranges: Vec<(String, Range)>,
}

impl Rules {
    pub fn forbid(&mut self, broken: bool, key: impl Into<String>, fix: impl FnOnce() -> String) {
        if broken && self.broken.is_none() {
            self.broken = Some((key.into(), fix()));
        }
    }

    pub fn at_least_one<N: Default + PartialEq>(&mut self, key: &str, n: N) {
        self.at_least_one_or(key, n, "");
    }

    pub fn at_least_one_or<N: Default + PartialEq>(&mut self, key: &str, n: N, why: &str) {
        self.ranges.push((key.into(), Range::AtLeastOne));
        self.forbid(n == N::default(), key, || format!("it must be at least 1{why}"));
    }

    pub fn within(&mut self, key: impl Into<String>, x: f64, range: Range, fix: &str) {
        let key = key.into();
        self.forbid(!range.holds(x), key.as_str(), || {
            format!("{x} is {}{fix}", range.complaint())
        });
        self.ranges.push((key, range));
    }

    pub fn share(&mut self, key: impl Into<String>, x: f64) {
        self.within(key, x, Range::Share, "");
    }

    pub fn below_one(&mut self, key: impl Into<String>, x: f64, fix: &str) {
        self.within(key, x, Range::BelowOne, &format!("; {fix}"));
    }

    pub fn positive(&mut self, key: impl Into<String>, x: f64) {
        self.within(key, x, Range::Positive, "");
    }

    pub fn not_negative(&mut self, key: impl Into<String>, x: f64) {
        self.within(key, x, Range::NotNegative, "");
    }

    pub fn finite(&mut self, key: impl Into<String>, x: f64) {
        self.forbid(!x.is_finite(), key, || format!("{x} is not a finite number"));
    }
}
