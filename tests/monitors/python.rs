//! Python packages in virtual environments under the build folder, made when first needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// Which packages.
#[derive(Clone, Copy)]
pub enum Packages {
    New,
    /// The last wandb that read its files in Python.
    Old,
}

impl Packages {
    fn wanted(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Packages::New => ("python-new", &["wandb==0.31.0", "tensorboard==2.21.0"]),
            Packages::Old => ("python-old", &["wandb==0.19.11"]),
        }
    }
}

/// A Python that has packages.
pub struct Python(PathBuf);

/// The Python with `packages`; `None` if the network must not be used (`ACRLPD_OFFLINE_TESTS=1`).
pub fn with(packages: Packages) -> Option<Python> {
    if std::env::var_os("ACRLPD_OFFLINE_TESTS").is_some_and(|v| v == "1") {
        eprintln!("skipped: ACRLPD_OFFLINE_TESTS=1");
        return None;
    }
    let (name, wanted) = packages.wanted();
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&home).expect("a folder for the packages");
    // Tests that need the same packages run side by side.
    let lock = File::create(home.with_extension("lock")).expect("a lock");
    lock.lock().expect("the lock");
    let python = home.join("bin/python");
    let done = home.join("done");
    if fs::read_to_string(&done).unwrap_or_default() != wanted.join(" ") {
        install(&home, &python, wanted);
        fs::write(&done, wanted.join(" ")).expect("written");
    }
    Some(Python(python))
}

fn install(home: &Path, python: &Path, wanted: &[&str]) {
    let venv = Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(home)
        .output();
    succeeded("`python3 -m venv` (Debian: python3-venv)", venv);
    let pip = Command::new(python)
        .args(["-m", "pip", "install", "--quiet"])
        .args(wanted)
        .output();
    succeeded(
        &format!(
            "`pip install {}` (ACRLPD_OFFLINE_TESTS=1 leaves this test out)",
            wanted.join(" ")
        ),
        pip,
    );
}

fn succeeded(what: &str, output: std::io::Result<Output>) -> Output {
    let output = output.unwrap_or_else(|e| panic!("{what} cannot be started: {e}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed: {text}");
    output
}

impl Python {
    /// Runs a script of this folder; returns the JSON it prints last.
    pub fn run(&self, script: &str, args: &[&Path]) -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/monitors")
            .join(script);
        let output = succeeded(script, Command::new(&self.0).arg(path).args(args).output());
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).unwrap_or_else(|e| panic!("{script} printed {text:?}: {e}"))
    }
}
