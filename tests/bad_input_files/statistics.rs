//! Normalisation statistics.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::room::{Row, check, dataset, row};

const STATS: &str = "TRAIN --set=data.norm_stats=stats.json";

/// Good ones beside the dataset.
fn room(dir: &Path) {
    dataset(dir);
    let of = |value: f64| json!({"mean": vec![value; 14], "std": vec![1.0; 14], "q01": vec![-1.0; 14], "q99": vec![1.0; 14]});
    write(
        dir,
        &json!({"norm_stats": {"state": of(0.0), "actions": of(0.1)}}).to_string(),
    );
}

fn write(dir: &Path, text: &str) {
    fs::write(dir.join("stats.json"), text).unwrap();
}

/// Sets what is at a JSON pointer.
fn put(dir: &Path, pointer: &str, value: Value) {
    let text = fs::read_to_string(dir.join("stats.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    *json.pointer_mut(pointer).unwrap() = value;
    write(dir, &json.to_string());
}

const ROWS: &[Row] = &[
    row(
        "missing",
        |dir| fs::remove_file(dir.join("stats.json")).unwrap(),
        STATS,
        3,
        &["cannot read `", "stats.json`", "norm stats", "No such file"],
    ),
    row(
        "no JSON",
        |dir| write(dir, "{\n\"norm_stats\": {"),
        STATS,
        3,
        &["stats.json` line 2", "EOF"],
    ),
    row(
        "a list",
        |dir| write(dir, "[]"),
        STATS,
        3,
        &["stats.json`", "`norm_stats.state` is missing"],
    ),
    row(
        "NaN",
        |dir| write(dir, "{\"norm_stats\":\n{\"state\": {\"mean\": [NaN]}}}"),
        STATS,
        3,
        &["stats.json` line 2"],
    ),
    row(
        "a number beyond all",
        |dir| write(dir, "{\"norm_stats\":\n{\"state\": {\"mean\": [1e999]}}}"),
        STATS,
        3,
        &["stats.json` line 2", "out of range"],
    ),
    row(
        "no actions",
        |dir| put(dir, "/norm_stats/actions", json!(null)),
        STATS,
        3,
        &["stats.json`", "`norm_stats.actions.mean` is missing"],
    ),
    row(
        "no deviations",
        |dir| put(dir, "/norm_stats/state/std", json!(null)),
        STATS,
        3,
        &["stats.json`", "`norm_stats.state.std` is missing"],
    ),
    row(
        "null in a list",
        |dir| put(dir, "/norm_stats/actions/mean/3", json!(null)),
        STATS,
        3,
        &["stats.json`", "`norm_stats.actions.mean` is not a list of numbers"],
    ),
    row(
        "lists of two lengths",
        |dir| put(dir, "/norm_stats/state/std", json!(vec![1.0; 13])),
        STATS,
        3,
        &["stats.json`", "`norm_stats.state.std` has 13 numbers", "`mean` has 14"],
    ),
    row(
        "negative deviation",
        |dir| put(dir, "/norm_stats/actions/std/2", json!(-0.5)),
        STATS,
        3,
        &[
            "stats.json`",
            "`norm_stats.actions.std` has the negative entry -0.5 at 2",
        ],
    ),
    row(
        "a mean beyond float32",
        |dir| put(dir, "/norm_stats/state/mean/5", json!(-1e300)),
        STATS,
        3,
        &["stats.json`", "`norm_stats.state.mean` has the entry", "at 5"],
    ),
    row(
        "quantiles crossed",
        |dir| put(dir, "/norm_stats/state/q01/1", json!(7)),
        STATS,
        3,
        &["stats.json`", "`norm_stats.state.q01` is above `q99` at 1"],
    ),
    row(
        "of a smaller robot",
        |dir| {
            put(
                dir,
                "/norm_stats/actions",
                json!({"mean": vec![0.0; 7], "std": vec![1.0; 7]}),
            )
        },
        STATS,
        3,
        &["norm stats `actions`", "7 wide, but 14 are needed"],
    ),
    row(
        "no quantiles",
        |dir| put(dir, "/norm_stats/state/q99", json!(null)),
        "TRAIN --set=data.norm_stats=stats.json --set=data.norm=quantile",
        3,
        &["norm stats `state`", "`q01` and `q99`"],
    ),
];

#[test]
fn broken_statistics() {
    check(room, ROWS);
}
