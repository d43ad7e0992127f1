//! Whole runs of the program in a folder of their own.
#![allow(dead_code)] // Each test file uses its own part.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A small step, and everything of it.
pub const TINY: [&str; 8] = [
    "--config=debug",
    "--batch-size=4",
    "--set=acrlpd.diffusion_steps=3",
    "--set=acrlpd.num_action_samples=2",
    "--set=model.action_horizon=4",
    "--set=acrlpd.chunk_length=4",
    "--set=model.dims.depth=2",
    "--eval-interval=0",
];

pub struct Runs {
    pub folder: tempfile::TempDir,
}

impl Runs {
    pub fn new() -> Runs {
        Runs {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A run of [`TINY`] to its end, which must be `code`.
    pub fn tiny(&self, code: i32, exp: &str, flags: &[&str]) -> (String, String) {
        self.run(code, exp, &[&TINY[..], flags].concat())
    }

    pub fn tiny_command(&self, exp: &str, flags: &[&str]) -> Command {
        self.command(exp, &[&TINY[..], flags].concat())
    }

    pub fn command(&self, exp: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("train").args(flags);
        command.arg(format!("--exp-name={exp}"));
        command.arg(format!("--checkpoint-dir={}", self.folder.path().display()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end, which must be `code`; returns stdout and stderr.
    pub fn run(&self, code: i32, exp: &str, flags: &[&str]) -> (String, String) {
        check(code, &self.command(exp, flags).output().expect("it starts"))
    }

    /// The folder of a run, of whatever configuration.
    pub fn dir(&self, exp: &str) -> PathBuf {
        let configs = fs::read_dir(self.folder.path()).expect("a folder");
        let mut dirs = configs.map(|config| config.expect("an entry").path().join(exp));
        let found = dirs.find(|dir| dir.is_dir());
        found.unwrap_or_else(|| self.folder.path().join("debug").join(exp))
    }

    pub fn rows(&self, exp: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.dir(exp).join("metrics.jsonl")).expect("metrics are there");
        text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    pub fn steps(&self, exp: &str) -> Vec<u64> {
        acrlpd::checkpoint::steps(&self.dir(exp)).expect("a run's folder")
    }
}

pub fn check(code: i32, out: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{stdout}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (stdout, stderr)
}

/// A row without what depends on the clock, or on when the program started.
pub fn timeless(row: &serde_json::Value) -> serde_json::Value {
    let mut row = row.clone();
    let fields = row.as_object_mut().expect("an object");
    for key in [
        "steps_per_s",
        "samples_per_s",
        "data_wait_ms",
        "tflops",
        "peak_memory_bytes",
    ] {
        assert!(fields.remove(key).is_some_and(|v| v.is_number()), "{key}");
    }
    row
}

/// Waits until a run has written a row.
pub fn wait_for_rows(child: &mut Child, dir: impl Fn() -> PathBuf) {
    let began = Instant::now();
    let rows = || fs::metadata(dir().join("metrics.jsonl")).map_or(0, |m| m.len());
    while rows() == 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "no row after two minutes");
        assert!(
            child.try_wait().expect("it can be asked").is_none(),
            "it ended without a row"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn signal(child: &Child, name: &str) {
    let done = Command::new("kill")
        .args([format!("-{name}"), child.id().to_string()])
        .status();
    assert!(done.expect("kill is there").success());
}
