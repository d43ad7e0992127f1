//! Whether what was timed is right: a sample of every output, computed again on the host in float64 from the same
//! inputs, and every element of it finite (outputs hold NaN before the launch).

use serde::{Deserialize, Serialize};

use crate::gpu::{DType, Gpu, Result, Tensor};
use crate::ops::reduce;
use crate::rng::Key;

/// Elements read at a time; those of one read are neighbours.
const RUN: usize = 8;
/// Rounding of one f32 operation against the sizes of all terms: far above what any order of summation loses, far below
/// one missing term.
const ARITHMETIC: f64 = 2e-6;
/// Standard deviations of accumulated rounding, which is random, that are allowed.
const DEVIATIONS: f64 = 6.0;

/// A sum in float64, with what its rounding errors are measured against.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    pub value: f64,
    /// Sum of the terms' sizes.
    pub size: f64,
    /// Sum of their squares.
    pub squares: f64,
}

impl Sum {
    /// One term.
    pub fn of(term: f64) -> Sum {
        let mut sum = Sum::default();
        sum.add(term);
        sum
    }

    /// Adds a term.
    pub fn add(&mut self, term: f64) {
        self.add_sized(term, term.abs());
    }

    /// Adds a term that is itself a sum of terms of this size.
    pub fn add_sized(&mut self, term: f64, size: f64) {
        self.value += term;
        self.size += size;
        self.squares += size * size;
    }

    /// The sum times a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Sum {
        Sum {
            value: self.value * factor,
            size: self.size * factor.abs(),
            squares: self.squares * factor * factor,
        }
    }

    /// `f` of the sum, where no slope of `f` is larger than `slope`.
    #[must_use]
    pub fn through(self, f: impl Fn(f64) -> f64, slope: f64) -> Sum {
        Sum {
            value: f(self.value),
            ..self.times(slope)
        }
    }
}

impl FromIterator<f64> for Sum {
    fn from_iter<T: IntoIterator<Item = f64>>(terms: T) -> Sum {
        let mut sum = Sum::default();
        terms.into_iter().for_each(|term| sum.add(term));
        sum
    }
}

/// What one output must be.
pub struct Expected {
    what: &'static str,
    tensor: Tensor,
    of: Box<dyn Fn(usize) -> Sum>,
    samples: usize,
    within: Box<dyn Fn(usize) -> bool>,
    /// Roundings to a short type on the way to the result, as a share of the terms.
    rounded: f64,
}

impl Expected {
    /// Element `i` of the flat `tensor` is `of(i)`, but for rounding.
    pub fn new(what: &'static str, tensor: &Tensor, of: impl Fn(usize) -> Sum + 'static) -> Expected {
        Expected {
            what,
            tensor: tensor.clone(),
            of: Box::new(of),
            samples: 64,
            within: Box::new(|_| true),
            rounded: 0.0,
        }
    }

    /// With fewer samples: for references that cost much.
    #[must_use]
    pub fn samples(self, samples: usize) -> Expected {
        Expected { samples, ..self }
    }

    /// Only where this holds: the rest of the tensor is not written. It must hold for the eight elements from any of
    /// their first ones on.
    #[must_use]
    pub fn within(self, within: impl Fn(usize) -> bool + 'static) -> Expected {
        Expected {
            within: Box::new(within),
            ..self
        }
    }

    /// Terms may be rounded to `dtype` on the way, as attention's probabilities are.
    #[must_use]
    pub fn rounded_to(self, dtype: DType) -> Expected {
        Expected {
            rounded: last_place(dtype),
            ..self
        }
    }

    /// How far an element may be off.
    fn allowed(&self, want: &Sum) -> f64 {
        ARITHMETIC * want.size
            + last_place(self.tensor.dtype()) * want.value.abs()
            + DEVIATIONS * self.rounded * want.squares.sqrt()
    }

    /// Where samples start: the first and the last run, and random ones.
    fn places(&self) -> Vec<usize> {
        let runs = self.tensor.len().div_ceil(RUN);
        let wanted = (self.samples / RUN).max(1);
        let key = Key::new(self.tensor.len() as u64);
        let candidates: Box<dyn Iterator<Item = usize>> = if runs <= wanted {
            Box::new(0..runs)
        } else {
            let random = (0..64 * wanted as u64).map(move |i| key.below(i, runs as u64) as usize);
            Box::new([0, runs - 1].into_iter().chain(random))
        };
        let mut places: Vec<usize> = Vec::new();
        for at in candidates.map(|run| run * RUN).filter(|&at| (self.within)(at)) {
            if places.len() < wanted && !places.contains(&at) {
                places.push(at);
            }
        }
        places.sort_unstable();
        places
    }
}

/// Distance of neighbouring numbers near one.
fn last_place(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-10),
        DType::Bf16 => 2f64.powi(-7),
        DType::F32 => 2f64.powi(-23),
        DType::U32 | DType::U16 | DType::U8 => 0.0,
    }
}

/// The verdict on one launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Elements that were compared.
    pub compared: usize,
    /// Largest error as a share of what is allowed: at most 1 if all is well.
    pub worst: f64,
    /// What is wrong, if anything.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wrong: Option<String>,
}

impl Check {
    /// Both verdicts.
    pub fn and(&mut self, other: Check) {
        self.compared += other.compared;
        self.worst = self.worst.max(other.worst);
        self.wrong = self.wrong.take().or(other.wrong);
    }
}

pub(super) fn check(gpu: &Gpu, outputs: &[Tensor], expected: &[Expected]) -> Result<Check> {
    let mut check = Check::default();
    for output in outputs.iter().filter(|t| t.dtype() != DType::U32 && !t.is_empty()) {
        let bad = not_finite(gpu, output)?;
        if bad > 0.0 {
            let wrong = format!("{bad} of {} elements were not written, or are not finite", output.len());
            check.worst = f64::INFINITY;
            check.wrong.get_or_insert(wrong);
        }
    }
    for one in expected {
        for start in one.places() {
            let run = RUN.min(one.tensor.len() - start);
            for (at, got) in (start..).zip(read(gpu, &one.tensor.view([one.tensor.len()]).slice(start, [run]))?) {
                let want = (one.of)(at);
                let (error, allowed) = ((got - want.value).abs(), one.allowed(&want));
                check.compared += 1;
                // NaN is wrong, too.
                if error <= allowed {
                    check.worst = check.worst.max(if error > 0.0 { error / allowed } else { 0.0 });
                    continue;
                }
                check.worst = f64::INFINITY;
                check.wrong.get_or_insert_with(|| {
                    let (what, value) = (one.what, want.value);
                    format!("{what}[{at}] is {got:e}, not {value:e} ± {allowed:.1e}")
                });
            }
        }
    }
    Ok(check)
}

fn read(gpu: &Gpu, tensor: &Tensor) -> Result<Vec<f64>> {
    Ok(match tensor.dtype() {
        DType::U32 => gpu.read_u32(tensor)?.into_iter().map(f64::from).collect(),
        _ => gpu.read_f32(tensor)?.into_iter().map(f64::from).collect(),
    })
}

/// Elements that are not finite, of the whole tensor.
fn not_finite(gpu: &Gpu, tensor: &Tensor) -> Result<f64> {
    let flat = tensor.view([tensor.len()]);
    let most =
        ((gpu.caps().max_binding_bytes / tensor.dtype().bytes()) as usize / 2 / reduce::ROW * reduce::ROW).max(1);
    let parts: Vec<Tensor> = (0..flat.len())
        .step_by(most)
        .map(|start| flat.slice(start, [most.min(flat.len() - start)]))
        .collect();
    let out = gpu.f32([2]);
    reduce::squares(gpu, &parts, &out);
    Ok(f64::from(gpu.read_f32(&out)?[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::gpu;

    fn verdict(values: &[f32], of: impl Fn(usize) -> Sum + 'static) -> Check {
        let gpu = gpu();
        let tensor = gpu.upload_f32(values, [values.len()]);
        let expected = [Expected::new("y", &tensor, of)];
        check(&gpu, &[tensor], &expected).expect("the device works")
    }

    #[test]
    fn right_values_pass_and_wrong_ones_are_named() {
        let mut values: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let right = verdict(&values, |i| Sum::of(i as f64));
        assert_eq!((right.compared, right.worst, right.wrong), (20, 0.0, None));
        let near = verdict(&values, |i| Sum::of(i as f64 * (1.0 + 1e-7)));
        assert!(
            near.wrong.is_none() && near.worst > 0.0 && near.worst <= 1.0,
            "{near:?}"
        );
        values[19] += 1.0 / 1024.0;
        let wrong = verdict(&values, |i| Sum::of(i as f64));
        assert!(
            wrong
                .wrong
                .as_deref()
                .is_some_and(|w| w.starts_with("y[19] is 1.90009765625e1, not 1.9e1")),
            "{wrong:?}"
        );
        assert!(wrong.worst.is_infinite());
    }

    #[test]
    fn what_was_not_written_is_found_wherever_it_is() {
        let mut values = vec![1.0f32; 100_000];
        values[77_777] = f32::NAN;
        let wrong = verdict(&values, |_| Sum::of(1.0));
        assert_eq!(
            wrong.wrong.as_deref(),
            Some("1 of 100000 elements were not written, or are not finite")
        );
    }

    #[test]
    fn sums_know_what_their_errors_are_measured_against() {
        let sum: Sum = [3.0, -4.0].into_iter().collect();
        assert_eq!((sum.value, sum.size, sum.squares), (-1.0, 7.0, 25.0));
        let through = sum.through(|x| 2.0 * x, 2.0);
        assert_eq!((through.value, through.size, through.squares), (-2.0, 14.0, 100.0));
    }
}
