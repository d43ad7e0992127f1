//! The kernel suite: every op on every shape of the step, timed on a device and checked.
//!
//! ```text
//! shapes   which cases there are          case     a name and an op
//! product, attention, rows, norms, rotation, moves, updates, losses      the work of an op, and what must come out
//! work     operands and launch            check    outputs against float64
//! timing   spans between timestamps       results  files, comparisons, peers
//! ```
//! [`step`] measures whole training steps instead.
//!
//! Inputs are random; launches rotate over copies that exceed the caches; what is checked are the outputs of a timed span,
//! which hold NaN before it. Nothing here chooses a kernel: what runs is what the step would run.

mod attention;
mod case;
mod check;
#[cfg(feature = "peer-cubek")]
pub mod cubek;
mod losses;
mod moves;
mod norms;
mod product;
mod reference;
pub mod results;
mod rotation;
mod rows;
pub mod shapes;
pub mod step;
pub mod timing;
mod updates;
mod work;

pub use case::{Case, Listed, Op};
pub use check::Check;
pub use results::{Results, ResultsError, Row, Status};
pub use timing::{Pace, Spread};

use crate::gpu::{DType, Gpu, Result, Roofline};
use work::{Room, Work};

/// Copies of a case whose outputs are compared with the reference; all others are the same launch on other numbers.
const CHECKED: usize = 2;

/// Cases whose name contains one of the patterns; all without any.
pub fn filtered(cases: Vec<Case>, patterns: &[String]) -> Vec<Case> {
    let wanted = |case: &Case| patterns.is_empty() || patterns.iter().any(|p| case.name.contains(p.as_str()));
    cases.into_iter().filter(wanted).collect()
}

/// Measures one case on a device that has not failed.
///
/// # Errors
/// A device that failed: nothing more can be measured on this [`Gpu`].
pub fn measure(gpu: &Gpu, case: &Case, dtype: DType, roofline: &Roofline, pace: &Pace) -> Result<Row> {
    let ours = |room: Room<'_>| case.op.work(room);
    let mut rows = side_by_side(gpu, case, dtype, roofline, pace, &[Way { name: "", make: &ours }])?;
    Ok(rows.pop().expect("one for each way"))
}

/// One way to do a case.
struct Way<'a> {
    /// What stands in the row's `kernel`; the kernels that ran if empty.
    name: &'a str,
    make: &'a dyn Fn(Room<'_>) -> Work,
}

/// Measures a case in several ways, in turn; a row for each.
fn side_by_side(
    gpu: &Gpu,
    case: &Case,
    dtype: DType,
    roofline: &Roofline,
    pace: &Pace,
    ways: &[Way<'_>],
) -> Result<Vec<Row>> {
    let listed = case.listed(dtype);
    if let Some(why) = does_not_fit(gpu, &listed, ways.len()) {
        let skipped = |way: &Way<'_>| Row {
            kernel: way.name.into(),
            ..row(case, dtype, Status::Skipped, &why)
        };
        return Ok(ways.iter().map(skipped).collect());
    }
    let copies = pace.copies(
        listed.held_bytes,
        gpu.caps().memory_bytes.map(|room| room / ways.len() as u64),
    );
    let works: Vec<Vec<Work>> = ways
        .iter()
        .map(|way| {
            (0..copies)
                .map(|i| (way.make)(Room::new(gpu, dtype, i as u32 + 1)))
                .collect()
        })
        .collect();
    works.iter().flatten().for_each(|copy| copy.prepare(gpu));
    gpu.sync()?;
    let views: Vec<&[Work]> = works.iter().map(Vec::as_slice).collect();
    let timed = timing::side_by_side(gpu, &views, pace)?;
    let mut rows = Vec::new();
    for ((way, copies), timed) in ways.iter().zip(&works).zip(timed) {
        let mut row = row(case, dtype, Status::Ok, "");
        let mut check = Check::default();
        for copy in copies.iter().take(CHECKED) {
            check.and(copy.check(gpu)?);
        }
        // What one run launches: counted apart, after the check, because it launches once more.
        gpu.take_record();
        let kernels = gpu.kernels_of(|| copies[0].launch(gpu));
        gpu.sync()?;
        row.launches = gpu.take_record().total().launches;
        row.kernel = if way.name.is_empty() {
            kernels.join(", ")
        } else {
            way.name.to_owned()
        };
        row.spread = timed.spread;
        row.copies = copies.len();
        row.of_roofline = roofline.least_ms(row.flops, row.bytes) / row.spread.median_ms.max(1e-9);
        row.status = if check.wrong.is_some() {
            Status::Wrong
        } else {
            Status::Ok
        };
        row.why = check.wrong.take();
        row.check = check;
        rows.push(row);
    }
    Ok(rows)
}

/// The row of a case that was not measured.
pub fn row(case: &Case, dtype: DType, status: Status, why: &str) -> Row {
    let listed = case.listed(dtype);
    Row {
        name: case.name.clone(),
        kernel: String::new(),
        status,
        why: (!why.is_empty()).then(|| why.to_owned()),
        flops: listed.flops,
        bytes: listed.bytes,
        spread: Spread::default(),
        copies: 0,
        launches: 0,
        of_roofline: 0.0,
        check: Check::default(),
    }
}

/// Why the operands of a case cannot be on the device, if so: that is no failure.
fn does_not_fit(gpu: &Gpu, listed: &Listed, ways: usize) -> Option<String> {
    let (held, room) = (ways as f64 * listed.held_bytes as f64, gpu.caps().memory_bytes? as f64);
    // What the op allocates itself, and what earlier cases have left, needs room, too.
    (held > 0.6 * room).then(|| format!("needs {:.1} GB, the device has {:.1}", held * 1e-9, room * 1e-9))
}

#[cfg(test)]
mod tests {
    use super::check::{Expected, Sum};
    use super::*;
    use crate::ops::flow;
    use crate::ops::testing::gpu;

    /// `y = factor · x`, while the reference says `y = x`.
    fn scaled(gpu: &Gpu, factor: Option<f32>, seed: u32) -> Work {
        let mut room = Room::new(gpu, DType::F32, seed);
        let (x, y) = (room.input([4096], 1.0), room.output([4096]));
        let expected = {
            let x = x.clone();
            Expected::new("y", &y, move |i| Sum::of(x.at(i)))
        };
        let launch = move |gpu: &Gpu| {
            factor
                .iter()
                .for_each(|&factor| flow::scaled(gpu, &x.tensor, factor, &y))
        };
        room.work(launch, [expected])
    }

    #[test]
    fn a_wrong_launch_and_one_that_does_nothing_are_caught_on_the_timed_outputs() {
        let gpu = gpu();
        let verdict = |factor| {
            let copies = [scaled(&gpu, factor, 1), scaled(&gpu, factor, 2)];
            copies.iter().for_each(|copy| copy.prepare(&gpu));
            let timed = timing::measure(&gpu, &copies, &Pace::of(gpu.caps())).expect("the device works");
            assert!(timed.spans >= 3 && timed.spread.p10_ms <= timed.spread.p90_ms);
            copies[1].check(&gpu).expect("the device works").wrong
        };
        assert_eq!(verdict(Some(1.0)), None);
        assert!(verdict(Some(1.0001)).is_some_and(|why| why.starts_with("y[")));
        assert!(verdict(None).is_some_and(|why| why.contains("4096 of 4096")));
    }

    #[test]
    fn work_on_a_null_device_is_counted() {
        let cases = shapes::cases(true).expect("a preset");
        let case = |name: &str| {
            cases
                .iter()
                .find(|case| case.name == name)
                .expect(name)
                .listed(DType::Bf16)
        };
        let product = case("product/square/nt/64");
        assert_eq!(
            (product.flops, product.bytes),
            (2.0 * 64f64.powi(3), 3.0 * 64.0 * 64.0 * 2.0)
        );
        // Added to f32, which is read and written.
        assert_eq!(case("product/square/tn/64").bytes, 64.0 * 64.0 * (2.0 + 2.0 + 8.0));
        assert!(cases.iter().all(|case| case.listed(DType::F32).bytes > 0.0));
    }
}
