//! `acrlpd bench step` as users call it, and its peers.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs `acrlpd bench step` on the test device and expects `code`; returns stdout and stderr.
#[track_caller]
fn expect(code: i32, args: &[&str]) -> (String, String) {
    let device = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
    let out = command
        .current_dir(ROOT)
        .args(["bench", "step", "--device", &device])
        .args(args)
        .output()
        .expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"))
}

#[test]
fn a_ladder_is_measured_planned_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (saved, peer) = (path("steps.json"), path("peer.json"));
    let text = |path: &Path| path.display().to_string();
    let sizes = [
        "--config=debug",
        "--synthetic",
        "--ladder=4,1",
        "--candidates=2,8",
        "--steps=2",
    ];
    let (shown, _) = expect(0, &[&sizes[..], &["--save", &text(&saved)]].concat());
    for part in ["debug 1/4 N2", "of plan", "8 instead of 2 candidates"] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    let mut all = json(&std::fs::read_to_string(&saved).expect("it was written"));
    let rows = all["rows"].as_array().expect("rows").clone();
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["debug 1/4 N2", "debug 1/4 N8", "debug N2", "debug N8"]);
    for row in &rows {
        assert_eq!(
            (row["status"].as_str(), number(row, "waits")),
            (Some("ok"), 0.0),
            "{row}"
        );
        let memory = &row["memory"];
        let of_plan = number(memory, "used") / number(memory, "planned");
        assert!((0.97..=1.03).contains(&of_plan), "{memory}");
        let phases: f64 = row["phases"]
            .as_array()
            .expect("phases")
            .iter()
            .map(|p| number(p, "tflop"))
            .sum();
        assert!((phases / number(row, "tflop") - 1.0).abs() < 1e-6, "{row}");
        assert!(
            number(row, "of_peak") > 0.0 && number(row, "first_step_ms") > 0.0,
            "{row}"
        );
    }
    // As many launches at every size, more work with more candidates.
    assert_eq!(rows[0]["launches"], rows[2]["launches"]);
    assert!(number(&rows[3], "tflop") > 1.5 * number(&rows[2], "tflop"));

    // A peer that takes twice as long, in one of its ways, and fails in the other.
    let (twice, failed) = (2.0 * number(&rows[3]["step"], "median_ms"), "out of memory");
    all["program"] = "a peer".into();
    all["rows"] = serde_json::json!([
        {"name": "debug N8", "way": "cached", "status": "ok", "samples": 8, "candidates": 8, "samples_per_s": 1.5,
         "step": {"median_ms": twice, "p10_ms": twice, "p90_ms": twice}},
        {"name": "debug N8", "way": "original", "status": "failed", "why": failed, "samples": 8},
    ]);
    std::fs::write(&peer, all.to_string()).expect("it is written");
    let again = [
        "--config=debug",
        "--synthetic",
        "--candidates=8",
        "--steps=1",
        "--json",
        "--peer",
        &text(&peer),
    ];
    let found = json(&expect(0, &again).0);
    let peers = &found["rows"][0]["peers"];
    let own = number(&found["rows"][0]["step"], "median_ms");
    assert!((number(&peers[0], "of_peer") - twice / own).abs() < 1e-9, "{peers}");
    assert_eq!(
        (peers[1]["of_peer"].as_f64(), peers[1]["why"].as_str()),
        (None, Some(failed))
    );

    // In another type nothing can be compared.
    all["dtype"] = "bfloat16".into();
    std::fs::write(&peer, all.to_string()).expect("it is written");
    let (_, told) = expect(2, &again);
    assert!(
        told.contains("bfloat16") && told.contains("cannot be compared"),
        "{told}"
    );
}

#[test]
fn a_fixture_and_a_dataset_are_measured() {
    let fixture = [
        "--config=debug",
        "--fixture=tests/golden/acrlpd_tiny",
        "--steps=1",
        "--json",
    ];
    let all = json(&expect(0, &fixture).0);
    let row = &all["rows"][0];
    assert_eq!(
        (row["name"].as_str(), row["samples"].as_u64()),
        (Some("acrlpd_tiny"), Some(4))
    );
    assert!(
        row["memory"]["planned"].is_null() && number(row, "waits") == 0.0,
        "{row}"
    );
    let all = json(&expect(0, &["--config=debug", "--steps=1", "--json"]).0);
    assert_eq!(all["rows"][0]["name"], "debug");
}

#[test]
fn what_does_not_fit_is_left_out_with_the_reason() {
    if std::env::var("ACRLPD_TEST_DEVICE").is_ok_and(|device| device.starts_with("cuda")) {
        return;
    }
    let full = [
        "--config=rl_fold_box",
        "--set=model.dtype=float32",
        "--ladder=1",
        "--json",
    ];
    let all = json(&expect(0, &full).0);
    let row = &all["rows"][0];
    let why = row["why"].as_str().expect("a reason");
    assert!(
        row["status"] == "skipped" && (why.contains("needs") || why.contains("bytes")),
        "{row}"
    );
}

#[test]
fn wrong_flags_and_files_are_one_sentence() {
    for (code, args, part) in [
        (2, &["--config=debug", "--ladder=0"][..], "from 1 on"),
        (2, &["--config=debug", "--list"], "--json"),
        (2, &["--config=debug", "--fixture=x", "--ladder"], "--ladder"),
        (3, &["--config=debug", "--peer=/nonexistent.json"], "/nonexistent.json"),
        (3, &["--config=debug", "--fixture=no/such/group"], "no/such/group"),
    ] {
        let (_, told) = expect(code, args);
        assert!(told.contains("error: ") && told.contains(part), "{args:?}: {told}");
    }
}

#[test]
fn the_peers_read_the_list() {
    let python = Command::new("python3").arg("--version").output();
    if !python.is_ok_and(|out| out.status.success()) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let list = folder.path().join("cases.json");
    let listed = expect(
        0,
        &[
            "--config=rl_fold_box",
            "--ladder",
            "--candidates=4,32",
            "--list",
            "--json",
        ],
    )
    .0;
    let cases = json(&listed);
    assert_eq!(cases["cases"].as_array().map(Vec::len), Some(8));
    let full = cases["cases"]
        .as_array()
        .and_then(|all| all.iter().find(|c| c["name"] == "rl_fold_box N4"));
    let work = number(full.expect("full size"), "tflop_per_sample");
    assert!((15.0..17.0).contains(&work), "{work}");
    std::fs::write(&list, listed).expect("it is written");
    let out = Command::new("python3")
        .current_dir(ROOT)
        .args(["-B", "benches/peers/test_step.py"])
        .arg(&list)
        .output()
        .expect("it starts");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && told.contains("OK"), "{told}");
    for peer in ["step_torch.py", "step_jax.py"] {
        let check = format!("import ast; ast.parse(open('benches/peers/{peer}').read())");
        let out = Command::new("python3").current_dir(ROOT).args(["-c", &check]).output();
        assert!(out.expect("it starts").status.success(), "{peer}");
    }
}
