//! What the programs people watch runs with make of our files: TensorBoard and wandb themselves, from Python packages.

mod python;
mod runs;

use std::fs;
use std::path::{Path, PathBuf};

use acrlpd::monitor::{Monitor, RunFile, Setup};
use python::Packages;
use serde_json::{Value, json};

/// A run of several programs, each from one step to another; rows have `q = program + step / 100`.
struct Recorded {
    dir: tempfile::TempDir,
}

impl Recorded {
    fn new() -> Recorded {
        Recorded {
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A program that goes on after `first` steps and has done `end` when it ends, if `exit_code` says that it did.
    fn program(&self, number: u32, first: u64, end: u64, exit_code: Option<u8>) {
        let metrics = self.dir.path().join("metrics.jsonl");
        let before = fs::read_to_string(&metrics).unwrap_or_default();
        let mut rows: String = before
            .lines()
            .take(first as usize)
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(&metrics, &rows).expect("written");
        let mut monitor = Monitor::open(&Setup {
            dir: self.dir.path(),
            metrics: &metrics,
            step: first,
            name: "towels-1",
            project: "towels",
            wandb: true,
            // More than a block of the file.
            config: &json!({"batch_size": 8, "note": "ü".repeat(40_000), "model": {"dtype": "float32"}}),
        });
        for step in first + 1..=end {
            let row = json!({"step": step, "q": f64::from(number) + step as f64 / 100.0, "actor_loss": null,
                "eval": {"error": [0.5, step]}});
            rows += &format!("{row}\n");
            monitor.row(step, &row);
        }
        fs::write(&metrics, &rows).expect("written");
        match exit_code {
            Some(code) => monitor.finish(code),
            None => monitor.flush(),
        }
    }

    /// Folders of its wandb runs, oldest first.
    fn offline(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = fs::read_dir(self.dir.path().join("wandb"))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        folders.sort();
        folders
    }
}

/// Ten rows, of which a second program repeats those after the sixth.
fn interrupted() -> Recorded {
    let run = Recorded::new();
    run.program(1, 0, 10, None);
    // Folders of wandb are named by the second.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    run.program(2, 6, 12, Some(0));
    run
}

/// The value of `q` at every step of [`interrupted`].
fn expected() -> Vec<(u64, f64)> {
    (1..=12)
        .map(|step| (step, if step <= 6 { 1.0 } else { 2.0 } + step as f64 / 100.0))
        .collect()
}

#[test]
fn tensorboard_shows_the_rows_and_forgets_those_that_were_done_again() {
    let Some(python) = python::with(Packages::New) else {
        return;
    };
    let run = interrupted();
    let shown = python.run("tensorboard_read.py", &[run.dir.path()]);
    let tags: Vec<&String> = shown.as_object().expect("an object").keys().collect();
    assert_eq!(tags, ["train/q", "eval/error/0", "eval/error/1"]);
    let points = shown["train/q"].as_array().expect("a list");
    assert_eq!(points.len(), 12, "{points:?}");
    for (point, (step, q)) in std::iter::zip(points, expected()) {
        assert_eq!(point[0], step);
        assert!((point[1].as_f64().expect("a number") - q).abs() < 1e-6, "{point}");
    }
}

#[test]
fn todays_wandb_takes_the_run() {
    syncs_with(Packages::New);
}

#[test]
fn the_wandb_of_early_2025_takes_the_run() {
    syncs_with(Packages::Old);
}

/// Both files of a run that was interrupted, in order: what is there in the end is the whole run.
fn syncs_with(packages: Packages) {
    let Some(python) = python::with(packages) else { return };
    let run = interrupted();
    let folders = run.offline();
    assert_eq!(folders.len(), 2);
    let sync = |folder: &Path| {
        let scratch = tempfile::tempdir().expect("a folder");
        let sent = python.run("wandb_sync.py", &[scratch.path(), folder]);
        assert_eq!(sent["status"], 0, "{}", sent["output"]);
        sent
    };
    let q = |sent: &Value| -> Vec<(u64, f64)> {
        let rows = sent["history"].as_array().expect("a list").iter();
        rows.map(|row| {
            (
                row["_step"].as_u64().expect("a step"),
                row["train/q"].as_f64().expect("a number"),
            )
        })
        .collect()
    };
    let killed = sync(&folders[0]);
    assert_eq!(q(&killed).len(), 10);
    if let Packages::New = packages {
        assert_eq!(killed["exit_code"], 1, "a file without an end is of a killed program");
    }
    let sent = sync(&folders[1]);
    assert_eq!(q(&sent), expected());
    let id = RunFile::read(run.dir.path()).expect("run.json").id;
    for told in [&killed, &sent] {
        assert_eq!(told["run"]["name"], id.as_str());
        assert_eq!(told["run"]["project"], "towels");
        assert_eq!(told["run"]["displayName"], "towels-1");
    }
    assert_eq!(sent["config"]["model"]["value"]["dtype"], "float32");
    assert_eq!(
        sent["config"]["note"]["value"].as_str().expect("text").chars().count(),
        40_000
    );
    let summary = |name: &str| sent["summary"][name].as_f64();
    assert_eq!((summary("train/q"), summary("eval/error/1")), (Some(2.12), Some(12.0)));
    assert_eq!(sent["exit_code"], 0);
    let last = &sent["history"][11];
    assert!(
        last["_timestamp"].as_f64().expect("a time") > 1.7e9 && last["_runtime"].is_number(),
        "{last}"
    );
}
