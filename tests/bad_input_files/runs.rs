//! Folders of runs, for `report`.

use std::fs;
use std::path::Path;

use acrlpd::train::metrics::Log;

use crate::room::{Row, check, row};

fn room(dir: &Path) {
    fs::create_dir(dir.join("run")).unwrap();
    metrics(dir, b"{\"step\": 1, \"critic_loss\": 0.5}\n");
}

fn metrics(dir: &Path, rows: &[u8]) {
    fs::write(dir.join("run/metrics.jsonl"), rows).unwrap();
}

const ROWS: &[Row] = &[
    row(
        "no folder",
        |_| (),
        "report no/such/run",
        3,
        &["`no/such/run` is not the folder of a run", "metrics.jsonl"],
    ),
    row(
        "a folder of something else",
        |dir| fs::remove_file(dir.join("run/metrics.jsonl")).unwrap(),
        "report run",
        3,
        &["`run` is not the folder of a run", "metrics.jsonl"],
    ),
    row(
        "a file",
        |_| (),
        "report run/metrics.jsonl",
        3,
        &["`run/metrics.jsonl` is not the folder of a run"],
    ),
    row(
        "a folder for a file",
        |dir| {
            fs::remove_file(dir.join("run/metrics.jsonl")).unwrap();
            fs::create_dir(dir.join("run/metrics.jsonl")).unwrap();
        },
        "report run",
        3,
        &["`run` is not the folder of a run"],
    ),
    row(
        "no rows",
        |dir| metrics(dir, b""),
        "report run",
        3,
        &["`run/metrics.jsonl` has no rows"],
    ),
    row(
        "nothing that is a row",
        |dir| metrics(dir, b"{\"step\": -1}\n{\"step\": \"1\"}\n\xff\xfe\n[1, 2]\n{\"st"),
        "report run",
        3,
        &["`run/metrics.jsonl` has no rows"],
    ),
    row(
        "one of two runs",
        |_| (),
        "report run other",
        3,
        &["`other` is not the folder of a run"],
    ),
    row(
        "a page that cannot be written",
        |_| (),
        "report run --out=no/such/page.html",
        5,
        &["cannot write `no/such/page.html`", "--out"],
    ),
];

#[test]
fn broken_runs() {
    check(room, ROWS);
}

/// A power cut can leave anything at the end of a file.
#[test]
fn a_log_that_is_no_text_keeps_no_run_from_going_on() {
    let dir = tempfile::tempdir().unwrap();
    room(dir.path());
    metrics(
        dir.path(),
        b"{\"step\": 1, \"q\": 2.5}\n{\"step\": 3}\n{\"step\": 2, \"q\"\xff\0\xfe",
    );
    drop(Log::open(&dir.path().join("run"), 2).unwrap());
    let kept = fs::read_to_string(dir.path().join("run/metrics.jsonl")).unwrap();
    assert_eq!(kept, "{\"step\": 1, \"q\": 2.5}\n");
}
