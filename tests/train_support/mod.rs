//! Runs of the program in a folder of their own.

#![allow(dead_code)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A small step, and everything of it.
pub const SMALL: [&str; 9] = [
    "train",
    "--config=debug",
    "--batch-size=4",
    "--set=acrlpd.diffusion_steps=3",
    "--set=acrlpd.num_action_samples=2",
    "--set=model.action_horizon=4",
    "--set=acrlpd.chunk_length=4",
    "--set=model.dims.depth=2",
    "--eval-interval=0",
];

/// Runs with checkpoints in a folder that goes with it.
pub struct Runs {
    pub folder: tempfile::TempDir,
}

impl Runs {
    pub fn new() -> Runs {
        Runs {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// `train` with a small step.
    pub fn command(&self, exp: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(SMALL).args(flags);
        command.arg(format!("--exp-name={exp}"));
        command.arg(format!("--checkpoint-dir={}", self.folder.path().display()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, code: i32, exp: &str, flags: &[&str]) -> (String, String) {
        let out = self.command(exp, flags).output().expect("it starts");
        check(code, &out)
    }

    pub fn dir(&self, exp: &str) -> PathBuf {
        self.folder.path().join("debug").join(exp)
    }

    pub fn rows(&self, exp: &str) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(self.dir(exp).join("metrics.jsonl")).expect("metrics are there");
        text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    pub fn steps(&self, exp: &str) -> Vec<u64> {
        acrlpd::checkpoint::steps(&self.dir(exp)).expect("a run's folder")
    }
}

/// Asserts the exit code and that nothing panicked: stdout and stderr.
pub fn check(code: i32, out: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{stdout}\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    (stdout, stderr)
}
