//! Rows of a run for TensorBoard and wandb, beside `metrics.jsonl`, which stays the truth.
//!
//! | file | what it does |
//! |---|---|
//! | [`scalars`] | a row, whatever its fields, as named numbers |
//! | [`rows`] | `metrics.jsonl` read back |
//! | [`run_file`] | `run.json`: who the run is, with its configuration |
//! | [`tensorboard`] | event files |
//! | [`wandb`], [`blocks`] | an offline run for `wandb sync`, and the framing of its file |
//!
//! Rows wait in memory and are written every few seconds, at checkpoints and at the end: that much a kill can cost.
//! Nothing here can end a run: a sink that fails is warned about once and left out from then on.

pub mod blocks;
pub mod rows;
pub mod run_file;
pub mod scalars;
pub mod tensorboard;
pub mod wandb;

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

pub use run_file::RunFile;
use tensorboard::Events;
use wandb::OfflineRun;

/// The longest that rows wait in memory while steps go on.
const FLUSH_EVERY: Duration = Duration::from_secs(3);

/// The numbers of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Optimizer steps done.
    pub step: u64,
    /// Seconds since 1970; `None` for a row that was read back.
    pub time: Option<f64>,
    /// Names like `train/critic_loss`, in the order of the row. All numbers are finite.
    pub scalars: Vec<(String, f64)>,
}

/// Somewhere rows go.
pub trait Sink {
    /// What a warning calls it.
    fn name(&self) -> &'static str;

    /// Takes in a row; it may stay in memory until [`Sink::flush`].
    ///
    /// # Errors
    /// Whatever keeps it from writing. It is not used any more then.
    fn write(&mut self, point: &Point) -> io::Result<()>;

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// As [`Sink::write`].
    fn flush(&mut self) -> io::Result<()>;

    /// The program ends with `exit_code`. Nothing is written afterwards.
    ///
    /// # Errors
    /// As [`Sink::write`].
    fn finish(&mut self, exit_code: u8) -> io::Result<()>;
}

/// The sinks of a run.
pub struct Monitor {
    sinks: Vec<Box<dyn Sink>>,
    waiting: Vec<Point>,
    flushed: Instant,
}

/// What a monitor has to know of a run.
pub struct Setup<'a, C> {
    /// The run's folder.
    pub dir: &'a Path,
    /// Its `metrics.jsonl`, with the rows up to `step` only.
    pub metrics: &'a Path,
    /// Steps done already; 0: the run starts anew.
    pub step: u64,
    /// `--exp-name`.
    pub name: &'a str,
    /// At wandb.
    pub project: &'a str,
    /// Write a wandb run at all?
    pub wandb: bool,
    pub config: &'a C,
}

impl Monitor {
    /// Writes nothing.
    pub fn off() -> Monitor {
        Monitor::new(Vec::new())
    }

    /// With the sinks of a run. What cannot be written is warned about.
    pub fn open(setup: &Setup<'_, impl Serialize>) -> Monitor {
        let run = RunFile::update(setup.dir, setup.step, setup.name, setup.project, setup.config);
        let mut opened = vec![(Events::NAME, events(setup.dir, setup.step))];
        if setup.wandb {
            opened.push((OfflineRun::NAME, run.and_then(|run| offline_run(setup, &run))));
        } else if let Err(e) = run {
            tracing::warn!("`{}` cannot be written: {e}", setup.dir.join(RunFile::NAME).display());
        }
        Monitor::new(opened)
    }

    /// With these sinks; each is what opening it gave, under the name for a warning if that failed.
    pub fn new(opened: Vec<(&'static str, io::Result<Box<dyn Sink>>)>) -> Monitor {
        let mut sinks = Vec::new();
        for (name, sink) in opened {
            match sink {
                Ok(sink) => sinks.push(sink),
                Err(e) => warn(name, &e),
            }
        }
        Monitor {
            sinks,
            waiting: Vec::new(),
            flushed: Instant::now(),
        }
    }

    /// Takes in the row of `step`.
    pub fn row(&mut self, step: u64, row: &impl Serialize) {
        if self.sinks.is_empty() {
            return;
        }
        self.waiting.push(Point {
            step,
            time: Some(unix_time()),
            scalars: scalars::flatten(row),
        });
        self.tick();
    }

    /// Writes what has waited long enough; to be called often.
    pub fn tick(&mut self) {
        if !self.waiting.is_empty() && self.flushed.elapsed() >= FLUSH_EVERY {
            self.flush();
        }
    }

    /// Writes what waits.
    pub fn flush(&mut self) {
        let points = std::mem::take(&mut self.waiting);
        self.each(|sink| {
            points.iter().try_for_each(|point| sink.write(point))?;
            sink.flush()
        });
        self.flushed = Instant::now();
    }

    /// The program ends with `exit_code`.
    pub fn finish(mut self, exit_code: u8) {
        self.flush();
        self.each(|sink| sink.finish(exit_code));
    }

    /// Does something with every sink, and parts with those that fail.
    fn each(&mut self, mut action: impl FnMut(&mut dyn Sink) -> io::Result<()>) {
        self.sinks.retain_mut(|sink| match action(sink.as_mut()) {
            Ok(()) => true,
            Err(e) => {
                warn(sink.name(), &e);
                false
            }
        });
    }
}

fn events(dir: &Path, step: u64) -> io::Result<Box<dyn Sink>> {
    if step == 0 {
        // Of a run that is forgotten now.
        tensorboard::files(dir)?.iter().try_for_each(fs::remove_file)?;
    }
    Ok(Box::new(Events::create(dir, step)?))
}

fn offline_run(setup: &Setup<'_, impl Serialize>, run: &RunFile) -> io::Result<Box<dyn Sink>> {
    Ok(Box::new(OfflineRun::create(
        setup.dir,
        run,
        rows::read(setup.metrics)?,
    )?))
}

fn warn(name: &str, e: &io::Error) {
    tracing::warn!("{name} gets no more rows: {e}; the run goes on, and metrics.jsonl has them all");
}

/// Seconds since 1970.
fn unix_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;

    type Calls = Rc<RefCell<Vec<String>>>;

    /// Remembers what was asked of it, and fails from the given call on.
    struct Recorder {
        calls: Calls,
        fails_after: usize,
    }

    impl Recorder {
        fn call(&mut self, what: String) -> io::Result<()> {
            let mut calls = self.calls.borrow_mut();
            calls.push(what);
            match calls.len() > self.fails_after {
                true => Err(io::Error::other("the disk is full")),
                false => Ok(()),
            }
        }
    }

    impl Sink for Recorder {
        fn name(&self) -> &'static str {
            "a recorder"
        }
        fn write(&mut self, point: &Point) -> io::Result<()> {
            self.call(format!("write {}", point.step))
        }
        fn flush(&mut self) -> io::Result<()> {
            self.call("flush".into())
        }
        fn finish(&mut self, exit_code: u8) -> io::Result<()> {
            self.call(format!("finish {exit_code}"))
        }
    }

    fn recorder(fails_after: usize) -> (Calls, io::Result<Box<dyn Sink>>) {
        let calls = Calls::default();
        let sink = Recorder {
            calls: calls.clone(),
            fails_after,
        };
        (calls, Ok(Box::new(sink)))
    }

    #[test]
    fn rows_wait_and_are_written_together() {
        let (calls, sink) = recorder(usize::MAX);
        let mut monitor = Monitor::new(vec![("a recorder", sink)]);
        for step in 1..=3 {
            monitor.row(step, &serde_json::json!({"loss": 1.0}));
        }
        assert!(calls.borrow().is_empty(), "{:?}", calls.borrow());
        // The last flush was long ago.
        monitor.flushed = Instant::now() - FLUSH_EVERY;
        monitor.tick();
        assert_eq!(*calls.borrow(), ["write 1", "write 2", "write 3", "flush"]);
        monitor.row(4, &serde_json::json!({"loss": 1.0}));
        monitor.finish(143);
        assert_eq!(calls.borrow()[4..], ["write 4", "flush", "finish 143"]);
    }

    #[test]
    fn a_sink_that_fails_is_left_out_and_the_others_go_on() {
        let (broken, first) = recorder(1);
        let (whole, second) = recorder(usize::MAX);
        let missing = Err(io::ErrorKind::NotFound.into());
        let mut monitor = Monitor::new(vec![("a", first), ("b", missing), ("c", second)]);
        for step in 1..=3 {
            monitor.row(step, &serde_json::json!({"loss": 1.0}));
            monitor.flush();
        }
        monitor.finish(0);
        assert_eq!(*broken.borrow(), ["write 1", "flush"]);
        assert_eq!(whole.borrow().len(), 8);
    }
}
