//! Where the time of a step goes: launches, FLOPs, bytes and milliseconds of every op in every phase, and how close
//! each comes to what the device can do.
//!
//! While profiling, each launch runs alone: the device is drained before and after it. So the times are those of
//! isolated kernels, and their sum is more than an ordinary step takes, in which launches overlap and nothing waits.
//! [`Profile::table`] shows both sums. Times are device timestamps where the driver has them, else the host's clock,
//! which adds the cost of a launch and a wait (0.1-0.3 ms on software Vulkan). The first launch of a kernel
//! includes its compilation: run the work once before it is profiled.

use std::fmt::Write;
use std::time::{Duration, Instant};

use cubecl::prelude::{ComputeClient, Runtime};
use cubecl_common::future::block_on;
use serde::{Deserialize, Serialize};

use super::{Backend, Gpu, GpuError, Record, Result, Totals};

/// What a device reaches at best. Measured on the device by [`ops::roofline`](crate::ops::roofline), or taken from a
/// data sheet.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Floating point operations per second in a large matrix product.
    pub flops_per_s: f64,
    /// Bytes read and written per second in a large copy.
    pub bytes_per_s: f64,
}

impl Roofline {
    /// The least milliseconds that this much work takes.
    pub fn least_ms(&self, flops: f64, bytes: f64) -> f64 {
        1e3 * (flops / self.flops_per_s).max(bytes / self.bytes_per_s)
    }
}

/// One line of a profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProfileRow {
    pub phase: &'static str,
    pub op: &'static str,
    /// A launch that serves several phases counts in the first of them.
    pub launches: u64,
    pub flops: f64,
    pub bytes: f64,
    pub ms: f64,
    /// Milliseconds the same work takes at the roofline.
    pub least_ms: f64,
}

impl ProfileRow {
    /// Share of the roofline that was reached, 1 at best; 0 where nothing ran.
    pub fn of_roofline(&self) -> f64 {
        if self.ms > 0.0 { self.least_ms / self.ms } else { 0.0 }
    }

    fn new(phase: &'static str, op: &'static str, t: &Totals, roofline: &Roofline) -> Self {
        ProfileRow {
            phase,
            op,
            launches: t.launches,
            flops: t.flops,
            bytes: t.bytes,
            ms: t.time.as_secs_f64() * 1e3,
            least_ms: roofline.least_ms(t.flops, t.bytes),
        }
    }

    fn add(&mut self, other: &ProfileRow) {
        self.launches += other.launches;
        self.flops += other.flops;
        self.bytes += other.bytes;
        self.ms += other.ms;
        self.least_ms += other.least_ms;
    }
}

/// What ran, and for how long.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// One for each (phase, op), in order of first launch.
    pub rows: Vec<ProfileRow>,
    /// From the first launch to the last, as the host saw it.
    pub wall_ms: f64,
    pub roofline: Roofline,
}

/// Stands for all phases, or all ops, in sums.
const ALL: &str = "all";

impl Profile {
    fn new(record: &Record, wall_ms: f64, roofline: Roofline) -> Profile {
        let rows = record.lines.iter();
        Profile {
            rows: rows
                .map(|(phase, op, totals)| ProfileRow::new(phase, op, totals, &roofline))
                .collect(),
            wall_ms,
            roofline,
        }
    }

    /// Sums by phase, in order of first launch.
    pub fn phases(&self) -> Vec<ProfileRow> {
        self.sums(|r| (r.phase, ALL))
    }

    /// Sums by op, the slowest first.
    pub fn ops(&self) -> Vec<ProfileRow> {
        let mut ops = self.sums(|r| (ALL, r.op));
        ops.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        ops
    }

    /// Sum of everything.
    pub fn total(&self) -> ProfileRow {
        let nothing = ProfileRow::new(ALL, ALL, &Totals::default(), &self.roofline);
        self.sums(|_| (ALL, ALL)).pop().unwrap_or(nothing)
    }

    fn sums(&self, key: impl Fn(&ProfileRow) -> (&'static str, &'static str)) -> Vec<ProfileRow> {
        let mut sums: Vec<ProfileRow> = Vec::new();
        for row in &self.rows {
            let (phase, op) = key(row);
            match sums.iter_mut().find(|s| (s.phase, s.op) == (phase, op)) {
                Some(sum) => sum.add(row),
                None => sums.push(ProfileRow {
                    phase,
                    op,
                    ..row.clone()
                }),
            }
        }
        sums
    }

    /// Phases, ops and the roofline as text for a terminal.
    pub fn table(&self) -> String {
        let total = self.total();
        let mut text = String::new();
        section(&mut text, "phase", &self.phases(), &total, |r| r.phase);
        text.push('\n');
        section(&mut text, "op", &self.ops(), &total, |r| r.op);
        let (gflops, gbytes) = (self.roofline.flops_per_s * 1e-9, self.roofline.bytes_per_s * 1e-9);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "\nroofline: {gflops:.1} GFLOP/s, {gbytes:.1} GB/s; kernels one by one: {:.2} ms in {:.2} ms",
            total.ms, self.wall_ms,
        );
        text
    }
}

fn section(
    text: &mut String,
    title: &str,
    rows: &[ProfileRow],
    total: &ProfileRow,
    name: impl Fn(&ProfileRow) -> &'static str,
) {
    let names = rows.iter().map(|r| name(r).len()).chain([title.len(), ALL.len()]);
    let width = names.max().unwrap_or(0);
    let _ = writeln!(
        text,
        "{title:width$}  launches       GFLOP         MB         ms   time  GFLOP/s    GB/s  roofline"
    );
    for (row, label) in rows.iter().map(|r| (r, name(r))).chain([(total, ALL)]) {
        let rate = |amount: f64| if row.ms > 0.0 { amount / row.ms * 1e-6 } else { 0.0 };
        let share = if total.ms > 0.0 { row.ms / total.ms } else { 0.0 };
        let _ = writeln!(
            text,
            "{label:width$}  {:8}  {:10.4} {:10.2} {:10.3} {:5.1}% {:8.2} {:7.2} {:8.1}%",
            row.launches,
            row.flops * 1e-9,
            row.bytes * 1e-6,
            row.ms,
            100.0 * share,
            rate(row.flops),
            rate(row.bytes),
            100.0 * row.of_roofline(),
        );
    }
}

/// Switches timing off again, whatever happens to the work.
struct Timed<'a>(&'a Gpu);

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.0.set_profiling(false);
    }
}

impl Gpu {
    /// How long the device takes for all launches of `work`, one after the other: by its own timestamps where the driver
    /// has them, else from an idle device to an idle device by the host's clock (CUDA, in cubecl 0.10), which adds some
    /// microseconds to the whole. Zero on devices that run nothing.
    pub fn timed(&self, work: impl FnOnce() + Send) -> Result<Duration> {
        self.check()?;
        let time = match self.backend() {
            Backend::Wgpu(c) => self.span(c, "timed", work),
            Backend::Cuda(c) => self.span(c, "timed", work),
            Backend::Dry(_) | Backend::DryWgpu(_) | Backend::Null => {
                work();
                Some(Duration::ZERO)
            }
        };
        self.check().map(|()| time.unwrap_or_default())
    }

    /// Runs `launch` between two timestamps. A failure is the device's error.
    pub(super) fn span<R: Runtime>(
        &self,
        client: &ComputeClient<R>,
        op: &'static str,
        launch: impl FnOnce() + Send,
    ) -> Option<Duration> {
        match client.profile(launch, op) {
            Ok(((), duration)) => Some(block_on(duration.resolve()).duration()),
            Err(error) => {
                self.fail(GpuError::Launch {
                    device: self.caps().name.clone(),
                    why: format!("{error:?}"),
                });
                None
            }
        }
    }

    /// Runs `work` with every launch timed on its own. The account of [`Gpu::take_record`] starts anew. On devices
    /// that run nothing all times are zero.
    pub fn profile<T>(&self, roofline: Roofline, work: impl FnOnce() -> T) -> Result<(T, Profile)> {
        self.sync()?;
        self.take_record();
        let start = Instant::now();
        let out = {
            self.set_profiling(true);
            let _timed = Timed(self);
            work()
        };
        self.sync()?;
        let wall_ms = start.elapsed().as_secs_f64() * 1e3;
        Ok((out, Profile::new(&self.take_record(), wall_ms, roofline)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOFLINE: Roofline = Roofline {
        flops_per_s: 1e9,
        bytes_per_s: 1e8,
    };

    fn profile() -> Profile {
        let totals = |launches, flops, bytes, ms| Totals {
            launches,
            flops,
            bytes,
            time: Duration::from_millis(ms),
        };
        let lines = vec![
            ("forward", "gemm", totals(2, 4e6, 1e5, 8)),
            ("forward", "copy", totals(1, 0.0, 1e5, 2)),
            ("backward", "gemm", totals(4, 8e6, 2e5, 10)),
        ];
        Profile::new(
            &Record {
                lines,
                ..Record::default()
            },
            25.0,
            ROOFLINE,
        )
    }

    #[test]
    fn sums_and_shares_of_the_roofline() {
        let p = profile();
        let phases = p.phases();
        assert_eq!(
            phases.iter().map(|r| (r.phase, r.launches, r.ms)).collect::<Vec<_>>(),
            [("forward", 3, 10.0), ("backward", 4, 10.0)]
        );
        // The product is bound by arithmetic (4 ms at best), the copy by memory (1 ms).
        assert!((phases[0].of_roofline() - 0.5).abs() < 1e-12);
        let ops = p.ops();
        assert_eq!((ops[0].op, ops[0].launches, ops[0].ms), ("gemm", 6, 18.0));
        assert!((ops[0].of_roofline() - 12.0 / 18.0).abs() < 1e-12);
        assert_eq!((p.total().launches, p.total().ms), (7, 20.0));
    }

    #[test]
    fn the_table_has_every_phase_and_op() {
        let table = profile().table();
        for name in ["forward", "backward", "gemm", "copy", "all", "1.0 GFLOP/s, 0.1 GB/s"] {
            assert!(table.contains(name), "{name} in\n{table}");
        }
        assert!(table.contains("66.7%") && table.contains("90.0%"), "{table}");
    }

    #[test]
    fn nothing_is_no_error() {
        let gpu = Gpu::null(crate::gpu::Caps::planning());
        let ((), p) = gpu.profile(ROOFLINE, || ()).expect("a null device cannot fail");
        assert_eq!((p.rows.len(), p.total().launches), (0, 0));
        assert!(p.table().contains("roofline"));
    }
}
