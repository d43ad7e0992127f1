//! Axes: from values to places, with ticks at round numbers.

/// Positive values that differ by this factor are shown on a logarithmic axis.
const DECADES: f64 = 100.0;
/// And so much must their bulk (without a tenth at both ends) span: noise that comes near to zero does not.
const BULK: f64 = 20.0;

/// An axis from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    pub low: f64,
    pub high: f64,
    pub log: bool,
}

impl Scale {
    /// The axis of steps.
    pub fn steps(first: u64, last: u64) -> Scale {
        let (low, high) = (first as f64, last as f64);
        Scale {
            low,
            high: if high > low { high } else { low + 1.0 },
            log: false,
        }
    }

    /// An axis that shows all `values` (finite, at least one), with a little room.
    pub fn of(values: impl Iterator<Item = f64>) -> Scale {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values[((values.len() - 1) * part + 5) / 10];
        let (low, high) = (at(0), at(10));
        if low > 0.0 && high / low >= DECADES && at(9) / at(1) >= BULK {
            let room = 10f64.powf(0.04 * (high.log10() - low.log10()));
            return Scale {
                low: (low / room).max(f64::MIN_POSITIVE),
                high: (high * room).min(f64::MAX),
                log: true,
            };
        }
        let room = match high - low {
            // All the same: a tenth of it on both sides.
            0.0 if high == 0.0 => 1.0,
            0.0 => 0.1 * high.abs(),
            // Halves, for what is as far apart as numbers get.
            _ => 2.0 * (0.5 * high - 0.5 * low) * 0.06,
        };
        // Zero is a border no one should have to look for.
        let zero_below = low == 0.0;
        let zero_above = high == 0.0 && low < 0.0;
        Scale {
            low: if zero_below { 0.0 } else { (low - room).max(f64::MIN) },
            high: if zero_above { 0.0 } else { (high + room).min(f64::MAX) },
            log: false,
        }
    }

    /// Where `x` lies: 0 at `low`, 1 at `high`.
    pub fn place(&self, x: f64) -> f64 {
        let at = |x: f64| if self.log { x.log10() } else { 0.5 * x };
        (at(x) - at(self.low)) / (at(self.high) - at(self.low))
    }

    /// Round numbers on the axis: about `count`, in order.
    pub fn ticks(&self, count: usize) -> Vec<f64> {
        if self.log {
            return self.decades(count);
        }
        let step = round_step((0.5 * self.high - 0.5 * self.low) / count.max(1) as f64 * 2.0);
        let first = (self.low / step).ceil();
        (0..=2 * count)
            .map(|i| (first + i as f64) * step)
            .take_while(|x| *x <= self.high * (1.0 + 1e-12) + 1e-300)
            .collect()
    }

    /// Powers of ten, only some of them if there are many; with threes between if there are few.
    fn decades(&self, count: usize) -> Vec<f64> {
        let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
        let few = self.high.log10() - self.low.log10() <= 3.0;
        let digits: &[f64] = if few { &[1.0, 3.0] } else { &[1.0] };
        let every = if few {
            1
        } else {
            ((last - first) as usize).div_ceil(count.max(1))
        };
        let powers = (first..=last).step_by(every);
        let all = powers.flat_map(|e| digits.iter().map(move |d| d * 10f64.powi(e)));
        all.filter(|x| (self.low..=self.high).contains(x)).collect()
    }
}

/// The next of 1, 2, 2.5, 5, 10 times a power of ten.
fn round_step(rough: f64) -> f64 {
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .find(|s| s * power >= rough * (1.0 - 1e-9));
    step.unwrap_or(10.0) * power
}

/// A number in few characters: `0.25`, `12k`, `3e-5`; at most `digits` that matter.
pub fn short(x: f64, digits: usize) -> String {
    let trim = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    let plain = |x: f64, suffix: &str| {
        let decimals = digits as i32 - 1 - x.abs().log10().floor() as i32;
        trim(format!("{x:.*}", decimals.max(0) as usize)).replace('-', "\u{2212}") + suffix
    };
    match x.abs() {
        a if !a.is_finite() => "\u{2013}".into(),
        0.0 => "0".into(),
        a if !(1e-3..1e12).contains(&a) => {
            let text = format!("{x:.*e}", digits.saturating_sub(1));
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            format!("{}e{exponent}", trim(mantissa.into())).replace('-', "\u{2212}")
        }
        a if a >= 1e9 => plain(x / 1e9, "G"),
        a if a >= 1e6 => plain(x / 1e6, "M"),
        a if a >= 1e4 => plain(x / 1e3, "k"),
        _ => plain(x, ""),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ticks_are_round() {
        let linear = Scale::of([0.0, 0.93].into_iter());
        assert_eq!(linear.low, 0.0);
        let labels = |scale: Scale| scale.ticks(4).iter().map(|x| short(*x, 3)).collect::<Vec<_>>();
        assert_eq!(labels(linear), ["0", "0.25", "0.5", "0.75"]);
        let log = Scale::of([1e-5, 3.0].into_iter());
        assert_eq!(
            (log.log, labels(log)),
            (true, ["1e\u{2212}4", "0.01", "1"].map(String::from).to_vec())
        );
        assert_eq!(
            labels(Scale::of([0.2, 60.0].into_iter())),
            ["0.3", "1", "3", "10", "30"]
        );
        assert_eq!(labels(Scale::steps(0, 100_000)), ["0", "25k", "50k", "75k", "100k"]);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.25, "0.25"),
            (-1.5, "−1.5"),
            (1234.0, "1234"),
            (12_345.0, "12.3k"),
            (3e-5, "3e−5"),
        ];
        for (x, text) in cases {
            assert_eq!(short(x, 3), text);
        }
        assert_eq!(
            (short(5.3e9, 3), short(0.01234, 3), short(f64::NAN, 3)),
            ("5.3G".into(), "0.0123".into(), "–".into())
        );
        assert_eq!((short(100.0, 3), short(20.0, 3)), ("100".into(), "20".into()));
    }

    proptest! {
        #[test]
        fn every_value_lies_on_its_axis(values in prop::collection::vec(prop::num::f64::NORMAL | prop::num::f64::ZERO, 1..20)) {
            let scale = Scale::of(values.iter().copied());
            for x in &values {
                let place = scale.place(*x);
                prop_assert!((-1e-9..=1.0 + 1e-9).contains(&place), "{} at {} of {:?}", x, place, scale);
            }
            let ticks = scale.ticks(4);
            prop_assert!(ticks.len() <= 10 && ticks.is_sorted(), "{:?} of {:?}", ticks, scale);
        }
    }
}
