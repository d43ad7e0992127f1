//! Wrong configurations, flags and variables, one a row: the exit code, and one sentence that names the place and the
//! field. Nothing is written.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Arguments after `train --exp-name x --checkpoint-dir out --dry-run`, unless they start with another command.
struct Row {
    name: &'static str,
    /// Name and text of a file in the current folder.
    file: Option<(&'static str, &'static str)>,
    args: &'static [&'static str],
    variable: Option<(&'static str, &'static str)>,
    words: &'static [&'static str],
}

const fn flags(name: &'static str, args: &'static [&'static str], words: &'static [&'static str]) -> Row {
    Row {
        name,
        file: None,
        args,
        variable: None,
        words,
    }
}

const fn file(name: &'static str, file: &'static str, text: &'static str, words: &'static [&'static str]) -> Row {
    Row {
        name,
        file: Some((file, text)),
        args: &["--config"],
        variable: None,
        words,
    }
}

const fn variable(
    name: &'static str,
    variable: &'static str,
    value: &'static str,
    words: &'static [&'static str],
) -> Row {
    Row {
        name,
        file: None,
        args: &["--config=debug"],
        variable: Some((variable, value)),
        words,
    }
}

const ROWS: &[Row] = &[
    // Files.
    file(
        "not TOML",
        "a.toml",
        "batch_size = = 8",
        &["`a.toml` line 1", "not TOML"],
    ),
    file(
        "not JSON",
        "a.json",
        "{\n\"batch_size\": }",
        &["`a.json` line 2", "not JSON"],
    ),
    file("empty JSON", "a.json", "", &["`a.json` line 1", "not JSON"]),
    file("JSON list", "a.json", "[]", &["`a.json` line 1", "object"]),
    file("binary", "a.toml", "\u{0}\u{1}\u{2}", &["`a.toml` line 1", "not TOML"]),
    file(
        "unknown key",
        "a.toml",
        "base = \"debug\"\nbatch_sise = 8",
        &["`a.toml` line 2", "batch_sise", "batch_size"],
    ),
    file(
        "unknown table",
        "a.json",
        "{\"critics\":\n{\"x\": 1}}",
        &["`a.json` line 2", "critics", "critic"],
    ),
    file(
        "text for a number",
        "a.json",
        "{\"seed\":\n\"x\"}",
        &["`a.json` line 2", "seed", "whole number"],
    ),
    file(
        "list for a number",
        "a.toml",
        "base = \"debug\"\n[acrlpd]\ndiscount = [1]",
        &["line 3", "acrlpd.discount"],
    ),
    file(
        "negative",
        "a.toml",
        "batch_size = -1",
        &["`a.toml` line 1", "batch_size"],
    ),
    file(
        "too big",
        "a.toml",
        "seed = 9999999999999999999999",
        &["`a.toml` line 1", "seed"],
    ),
    file(
        "null",
        "a.json",
        "{\"seed\": null}",
        &["`a.json` line 1", "seed", "null"],
    ),
    file(
        "unknown word",
        "a.toml",
        "[model]\ndtype = \"fp8\"",
        &["line 2", "model.dtype", "bfloat16"],
    ),
    file(
        "twice in TOML",
        "a.toml",
        "seed = 1\nseed = 2",
        &["line 2", "duplicate key"],
    ),
    file(
        "twice in JSON",
        "a.json",
        "{\"seed\": 1,\n\"seed\": 2}",
        &["line 2", "duplicate key", "seed"],
    ),
    file(
        "two names",
        "a.toml",
        "max_steps = 1\nnum_train_steps = 2",
        &["line 2", "num_train_steps", "keep one"],
    ),
    file(
        "missing base",
        "a.toml",
        "base = \"b.toml\"",
        &["b.toml", "`a.toml` line 1"],
    ),
    file(
        "base is itself",
        "a.toml",
        "base = \"a.toml\"",
        &["line 1", "leads back"],
    ),
    file(
        "no prompt",
        "a.toml",
        "seed = 1",
        &["data.default_prompt", "data.prompt_from_task"],
    ),
    file(
        "no dataset",
        "a.toml",
        "[data]\nprompt_from_task = true",
        &["no data.path", "--data"],
    ),
    file(
        "chunk",
        "a.toml",
        "base = \"debug\"\nacrlpd.chunk_length = 3",
        &["line 2", "chunk_length", "action_horizon = 10"],
    ),
    file(
        "division",
        "a.toml",
        "base = \"debug\"\nbatch_size = 7",
        &["line 2", "7 samples", "2 micro-batches"],
    ),
    file(
        "of the original",
        "a.json",
        "{\"base\": \"debug\",\n\"fsdp_devices\": 8}",
        &["line 2", "fsdp_devices", "one device"],
    ),
    file(
        "camera",
        "a.toml",
        "base = \"debug\"\n[data.cameras]\nbase_rgb = \"x\"",
        &["data.cameras", "base_0_rgb"],
    ),
    file(
        "an address",
        "a.toml",
        "base = \"debug\"\nweights = \"gs://b/w\"",
        &["line 2", "model.weights", "download"],
    ),
    // Flags.
    flags("no configuration", &[], &["--config", "required"]),
    flags(
        "unknown preset",
        &["--config=debgu"],
        &["debgu", "did you mean `debug`"],
    ),
    flags(
        "unknown file",
        &["--config=no/such.toml"],
        &["no/such.toml", "check the path"],
    ),
    flags("a folder", &["--config=./"], &["`./`", "cannot read"]),
    flags(
        "unknown flag",
        &["--config=debug", "--bach-size=8"],
        &["--bach-size", "--batch-size"],
    ),
    flags(
        "flag without value",
        &["--config=debug", "--seed"],
        &["--seed", "value is required"],
    ),
    flags(
        "flag given twice",
        &["--config=debug", "--seed=1", "--seed=2"],
        &["--seed", "multiple times"],
    ),
    flags("stray word", &["--config=debug", "fast"], &["fast"]),
    flags(
        "no number",
        &["--config=debug", "--batch-size=many"],
        &["`--batch-size many`", "batch_size"],
    ),
    flags(
        "zero steps",
        &["--config=debug", "--max_steps=0"],
        &["`--max-steps 0`", "num_train_steps", "at least 1"],
    ),
    flags(
        "negative rate",
        &["--config=debug", "--pi0-lr=-1"],
        &["`--pi0-lr -1`", "acrlpd.actor_lr"],
    ),
    flags(
        "discount",
        &["--config=debug", "--set=acrlpd.discount=1.5"],
        &["acrlpd.discount=1.5", "(0, 1]"],
    ),
    flags(
        "no candidates",
        &["--config=debug", "--set=best_of_n=0"],
        &["acrlpd.num_action_samples", "at least 1"],
    ),
    flags("set without =", &["--config=debug", "--set=seed"], &["--set seed", "="]),
    flags(
        "set a table",
        &["--config=debug", "--set=acrlpd=1"],
        &["acrlpd", "table"],
    ),
    flags(
        "set unknown",
        &["--config=debug", "--set=acrlpd.discout=1"],
        &["acrlpd.discout", "acrlpd.discount"],
    ),
    flags(
        "action width",
        &["--config=debug", "--set=action_dim=40"],
        &["qchunking.action_dim", "model.action_dim = 32"],
    ),
    flags(
        "device",
        &["--config=debug", "--device=gpu"],
        &["--device", "gpu", "vulkan"],
    ),
    flags(
        "memory",
        &["--config=debug", "--memory-fraction=1.5"],
        &["--memory-fraction", "1.5", "(0, 1]"],
    ),
    flags(
        "both starts",
        &["--config=debug", "--resume", "--overwrite"],
        &["--resume", "--overwrite"],
    ),
    flags(
        "both formats",
        &["config", "show", "debug", "--json", "--toml"],
        &["--json", "--toml"],
    ),
    flags("show nothing", &["config", "show"], &["NAME|FILE"]),
    flags("shell", &["completions", "cobol"], &["cobol", "bash", "zsh"]),
    flags("command", &["tarin"], &["tarin", "train"]),
    // Variables.
    variable(
        "memory share",
        "ACRLPD_MEMORY_FRACTION",
        "lots",
        &["ACRLPD_MEMORY_FRACTION", "lots", "(0, 1]"],
    ),
    variable(
        "memory of nothing",
        "ACRLPD_MEMORY_FRACTION",
        "0",
        &["ACRLPD_MEMORY_FRACTION", "(0, 1]"],
    ),
    variable("log", "ACRLPD_LOG", "acrlpd=loud=no", &["ACRLPD_LOG", "acrlpd=debug"]),
];

/// What is in a folder, at any depth.
fn contents(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    let mut names: Vec<String> = entries.map(|p| p.display().to_string()).collect();
    names.sort();
    names
}

#[test]
fn each_is_answered_with_one_sentence_and_its_exit_code() {
    assert!(ROWS.len() >= 30);
    for row in ROWS {
        let dir = TempDir::new().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        command
            .current_dir(dir.path())
            .env_remove("ACRLPD_MEMORY_FRACTION")
            .env_remove("ACRLPD_LOG");
        if row.args.first().is_none_or(|arg| arg.starts_with("--")) {
            command.args(["train", "--exp-name=x", "--checkpoint-dir=out"]);
        }
        command.args(row.args);
        if let Some((name, text)) = row.file {
            fs::write(dir.path().join(name), text).unwrap();
            command.arg(name);
        }
        if let Some((name, value)) = row.variable {
            command.env(name, value);
        }
        let before = contents(dir.path());
        let out = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{}: {stderr}", row.name);
        let lines: Vec<&str> = stderr.lines().filter(|l| !l.trim_start().starts_with("INFO")).collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with("error: "),
            "{}: {stderr}",
            row.name
        );
        for word in row.words {
            assert!(lines[0].contains(word), "{}: {:?} lacks {word:?}", row.name, lines[0]);
        }
        assert!(
            !stderr.contains("panicked") && !stderr.contains("RUST_BACKTRACE"),
            "{}: {stderr}",
            row.name
        );
        assert!(
            out.stdout.is_empty(),
            "{}: {}",
            row.name,
            String::from_utf8_lossy(&out.stdout)
        );
        assert_eq!(contents(dir.path()), before, "{}", row.name);
    }
}

/// Bytes that are no text are refused like everything else.
#[cfg(unix)]
#[test]
fn arguments_that_are_not_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let out = Command::new(env!("CARGO_BIN_EXE_acrlpd"))
        .args(["config", "show", "debug", "--seed"])
        .arg(OsStr::from_bytes(b"\xff\xfe"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
}
