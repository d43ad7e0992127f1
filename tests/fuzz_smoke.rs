//! The targets of `fuzz/`, a few thousand cases each: files that are good, with bytes changed, removed, repeated and
//! spliced. The cases follow from counters, so that a failure comes again.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

use acrlpd::rng::Key;

/// Cases of a target.
const CASES: u64 = 2500;

/// Memory that they may take at most, all of them together.
const MEMORY_KB: u64 = 400_000;

/// Good files of a target, in order of their names.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("fuzz/seeds").join(target)];
    if target == "config" {
        folders.push(root.join("configs"));
    }
    let list = |folder: &std::path::PathBuf| fs::read_dir(folder).expect("seeds").map(|e| e.expect("a seed").path());
    let mut paths: Vec<_> = folders.iter().flat_map(list).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths.iter().map(|path| fs::read(path).expect("a seed")).collect()
}

/// What formats are sensitive to.
const WORDS: [&[u8]; 12] = [
    b"\0",
    b"\n",
    b"{",
    b"}",
    b"[[",
    b"\"",
    b"-1",
    b"1e999",
    b"18446744073709551615",
    b"null",
    b"\xff\xfe",
    b"../",
];

/// One of the seeds with up to eight changes.
fn mutated(seeds: &[Vec<u8>], key: Key) -> Vec<u8> {
    let pick = |i: u64, n: usize| key.below(i, n.max(1) as u64) as usize;
    let mut bytes = seeds[pick(0, seeds.len())].clone();
    for change in 0..=pick(1, 8) as u64 {
        let i = 2 + 5 * change;
        let (from, other) = (pick(i, bytes.len()), pick(i + 1, bytes.len()));
        let few = from..bytes.len().min(from + 1 + pick(i + 2, 16));
        match pick(i + 3, 6) {
            0 => bytes[few].iter_mut().for_each(|byte| *byte = key.bits(i + 4)[0] as u8),
            1 => drop(bytes.drain(few)),
            2 => drop(bytes.splice(few, WORDS[pick(i + 4, WORDS.len())].iter().copied())),
            3 => bytes.truncate(from.max(1)),
            4 => {
                let part = bytes[from.min(other)..from.max(other).min(from.min(other) + 200)].to_vec();
                bytes.splice(other..other, part);
            }
            _ => {
                let donor = &seeds[pick(i + 4, seeds.len())];
                let start = from.min(donor.len());
                bytes.truncate(from);
                bytes.extend(&donor[start..]);
            }
        }
        bytes.resize(bytes.len().max(1), b' ');
    }
    bytes
}

fn run(name: &str) {
    let (stream, target) = targets::TARGETS
        .iter()
        .enumerate()
        .find(|(_, t)| t.0 == name)
        .expect("a target");
    let seeds = seeds(name);
    for seed in &seeds {
        (target.1)(seed);
    }
    for case in 0..CASES {
        let bytes = mutated(&seeds, Key::new(7).fold(stream as u64).fold(case));
        if let Err(panic) = std::panic::catch_unwind(|| (target.1)(&bytes)) {
            eprintln!("case {case} of {name}: {:?}", String::from_utf8_lossy(&bytes));
            std::panic::resume_unwind(panic);
        }
    }
    // Where the system tells: no length in a file is believed before the bytes are there.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    assert!(peak.is_none_or(|kb: u64| kb < MEMORY_KB), "{name} took {peak:?} kB");
}

#[test]
fn configurations() {
    run("config");
}

#[test]
fn metrics() {
    run("metrics");
}

#[test]
fn manifests() {
    run("manifest");
}

#[test]
fn tokenizers() {
    run("tokenizer");
}

#[test]
fn norm_stats() {
    run("norm_stats");
}

#[test]
fn safetensors() {
    run("safetensors");
}

#[test]
fn datasets() {
    run("dataset");
}

#[test]
fn orbax() {
    run("orbax");
}
