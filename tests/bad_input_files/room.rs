//! A folder of good files, what breaks one of them, and what the program says to that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tempfile::TempDir;

/// One mistake.
pub struct Row {
    pub name: &'static str,
    /// Breaks the files in the current folder.
    pub damage: fn(&Path),
    /// Divided at spaces; `TRAIN` stands for the beginning of a training command.
    pub args: &'static str,
    pub code: i32,
    /// All are in the message.
    pub words: &'static [&'static str],
}

pub const fn row(
    name: &'static str,
    damage: fn(&Path),
    args: &'static str,
    code: i32,
    words: &'static [&'static str],
) -> Row {
    Row {
        name,
        damage,
        args,
        code,
        words,
    }
}

const TRAIN: &str = "train --config=debug --exp-name=x --checkpoint-dir=out --data=data --set=data.tokenizer=tok.model";

/// Runs every row in a folder of its own that `room` has filled, a few at a time.
pub fn check(room: fn(&Path), rows: &[Row]) {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        while let Some(row) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
            let dir = TempDir::new().unwrap();
            room(dir.path());
            (row.damage)(dir.path());
            wrong.extend(row.complaint(dir.path()));
        }
        wrong
    };
    let wrong: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

impl Row {
    /// What is wrong with how the program answers, if anything is.
    fn complaint(&self, dir: &Path) -> Option<String> {
        let before = contents(dir);
        let out = Command::new(env!("CARGO_BIN_EXE_acrlpd"))
            .current_dir(dir)
            .env_remove("ACRLPD_MEMORY_FRACTION")
            .env_remove("ACRLPD_LOG")
            .args(self.args.replace("TRAIN", TRAIN).split_whitespace())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        let told = |line: &&str| !line.starts_with(" INFO") && !line.starts_with(" WARN");
        let lines: Vec<&str> = stderr.lines().filter(told).collect();
        let line = lines.first().copied().unwrap_or_default();
        let lacks = self.words.iter().find(|word| !line.contains(**word));
        let why = if out.status.code() != Some(self.code) {
            format!("ended with {:?} instead of {}", out.status, self.code)
        } else if lines.len() != 1 || !line.starts_with("error: ") {
            "is not one sentence".into()
        } else if line.matches("os error").count() > 1 {
            "says it twice".into()
        } else if let Some(word) = lacks {
            format!("lacks {word:?}")
        } else if !out.stdout.is_empty() {
            format!("printed {:?}", String::from_utf8_lossy(&out.stdout))
        } else if contents(dir) != before {
            "changed files".into()
        } else {
            return None;
        };
        Some(format!("{} {why}: {}", self.name, stderr.trim_end()))
    }
}

/// Every file below a folder with its content, every other thing by what it is; not the lock of a run, which is touched
/// by whoever looks.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                folders.push(path.clone());
            }
            let content = match kind.is_file() {
                true => fs::read(&path).unwrap_or_default(),
                false => format!("{kind:?}").into(),
            };
            if entry.file_name() != ".lock" {
                all.insert(path, content);
            }
        }
    }
    all
}

/// A file of the repository.
pub fn ours(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// The dataset and the tokenizer of the program, as `data` and `tok.model`.
pub fn dataset(dir: &Path) {
    copy(&ours("assets/datasets/aloha_v21_image"), &dir.join("data"));
    fs::copy(ours("assets/tokenizer/tiny_paligemma.model"), dir.join("tok.model")).unwrap();
}

/// Puts `to` where the file says `from`.
pub fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// Keeps the first `share` of a file.
pub fn cut(path: &Path, share: f64) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..(bytes.len() as f64 * share) as usize]).unwrap();
}

/// Turns one bit of a file in its middle.
pub fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}
