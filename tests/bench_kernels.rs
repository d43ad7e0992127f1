//! `acrlpd bench kernels` as users call it, its peers, and `./x gpu`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs `acrlpd bench kernels` on the test device.
fn kernels(args: &[&str]) -> Output {
    let device = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
    command
        .current_dir(ROOT)
        .args(["bench", "kernels", "--device", &device])
        .args(args);
    command.output().expect("it starts")
}

/// Runs and expects `code`; returns stdout and stderr.
#[track_caller]
fn expect(code: i32, args: &[&str]) -> (String, String) {
    let out = kernels(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// Runs, expects `code` and one sentence that says all of `parts`.
#[track_caller]
fn complains(code: i32, args: &[&str], parts: &[&str]) {
    let (_, stderr) = expect(code, args);
    let line = stderr
        .lines()
        .find(|l| l.starts_with("error: "))
        .unwrap_or_else(|| panic!("{args:?}: {stderr}"));
    for part in parts {
        assert!(line.contains(part), "{args:?}: {line:?} lacks {part:?}");
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn read(path: &Path) -> Value {
    json(&std::fs::read_to_string(path).expect("a file"))
}

fn path(folder: &tempfile::TempDir, name: &str) -> (PathBuf, String) {
    let path = folder.path().join(name);
    let text = path.display().to_string();
    (path, text)
}

const FEW: [&str; 4] = [
    "--filter=square/nt/64",
    "--filter=square/tn/128",
    "--filter=geglu/sweep/1MB",
    "--quick",
];

#[test]
fn results_are_timed_checked_saved_and_compared() {
    let folder = tempfile::tempdir().expect("a folder");
    let (saved, saved_text) = path(&folder, "new.json");
    let (table, _) = expect(0, &[&FEW[..], &["--save", &saved_text]].concat());
    for part in [
        "product/square/nt/64",
        "shapes scaled down",
        "3 cases right, 0 wrong",
        "copy",
    ] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    let all = read(&saved);
    assert_eq!(
        (all["format"].as_u64(), all["quick"].as_bool(), all["dtype"].as_str()),
        (Some(1), Some(true), Some("float32"))
    );
    let best = all["roofline"]["bytes_per_s"].as_f64().expect("a rate");
    assert!(best > 1e8, "{best}");
    let rows = all["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 3);
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        assert_eq!(row["status"], "ok");
        assert!(
            row["check"]["compared"].as_u64() >= Some(64) && row["check"]["worst"].as_f64() <= Some(1.0),
            "{row}"
        );
        assert!(
            number("p10_ms") > 0.0
                && number("p10_ms") <= number("median_ms")
                && number("median_ms") <= number("p90_ms")
        );
        assert!(
            number("of_roofline") > 0.0 && number("copies") >= 1.0 && number("launches") == 1.0,
            "{row}"
        );
        assert!(!row["kernel"].as_str().expect("a kernel").is_empty());
    }
    let flops = |name: &str| rows.iter().find(|r| r["name"] == name).expect(name)["flops"].as_f64();
    assert_eq!(flops("product/square/nt/64"), Some(2.0 * 64f64.powi(3)));

    // Earlier results in which one case was a hundred times as fast, and one was not there.
    let mut old = all.clone();
    let median = old["rows"][0]["median_ms"].as_f64().expect("a time");
    old["rows"][0]["median_ms"] = (median / 100.0).into();
    old["rows"][1]["name"] = "gone".into();
    old["device"] = "another device".into();
    let (old_path, old_text) = path(&folder, "old.json");
    std::fs::write(&old_path, old.to_string()).expect("it is written");
    // A peer that is half as fast in its best way, twice as slow in another, and wrong in a third.
    let mut peer = all.clone();
    let mut ways: Vec<Value> = [2.0, 4.0, 0.01]
        .iter()
        .map(|factor| {
            let mut row = all["rows"][0].clone();
            row["median_ms"] = (median * factor).into();
            row["kernel"] = format!("way {factor}").into();
            row
        })
        .collect();
    ways[2]["status"] = "skipped".into();
    peer["rows"] = ways.into();
    peer["program"] = "a peer".into();
    let (peer_path, peer_text) = path(&folder, "peer.json");
    std::fs::write(&peer_path, peer.to_string()).expect("it is written");

    let beside = ["--from", &saved_text, "--compare", &old_text, "--peer", &peer_text];
    let (table, _) = expect(0, &beside);
    let line = table.lines().find(|l| l.contains("square/nt/64")).expect("a row");
    assert!(line.contains("0.01 SLOWER") && line.contains("2.00 way 2"), "{line}");
    for part in [
        "1 cases slower",
        "another device",
        "beside a peer",
        "product: 2.00 (1 cases)",
    ] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    let joined = json(&expect(0, &[&beside[..], &["--json"]].concat()).0);
    let first = &joined["rows"][0];
    assert!((first["of_peer"].as_f64().expect("a ratio") - 2.0).abs() < 1e-9);
    assert!((first["of_old"].as_f64().expect("a ratio") - 0.01).abs() < 1e-9);
    assert!(joined["rows"][1].get("of_old").is_none() && joined["rows"][1].get("of_peer").is_none());

    // A wrong case is exit code 1, also when it is shown again.
    let mut wrong = all.clone();
    wrong["rows"][1]["status"] = "wrong".into();
    wrong["rows"][1]["why"] = "C[0] is 1, not 2".into();
    std::fs::write(&saved, wrong.to_string()).expect("it is written");
    let (table, _) = expect(1, &["--from", &saved_text]);
    assert!(table.contains("WRONG") && table.contains("C[0] is 1, not 2"), "{table}");

    // What cannot be compared is refused before anything is measured.
    let mut other = all.clone();
    other["dtype"] = "bfloat16".into();
    std::fs::write(&peer_path, other.to_string()).expect("it is written");
    complains(
        2,
        &["--from", &old_text, "--peer", &peer_text],
        &["bfloat16", "cannot be compared"],
    );
}

#[test]
fn wrong_flags_and_files_are_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let (broken, text) = path(&folder, "broken.json");
    std::fs::write(&broken, "[1, 2").expect("it is written");
    complains(2, &["--quick", "--filter", "no such op"], &["no such op", "--list"]);
    complains(2, &["--list", "--filter", "no such op"], &["no such op"]);
    complains(2, &["--dtype", "f8"], &["f8", "bfloat16"]);
    complains(2, &["--list", "--save", "x.json"], &["--save"]);
    complains(2, &["--minutes", "soon"], &["soon"]);
    complains(2, &["--sizes", "64"], &["--sizes"]);
    complains(3, &["--from", &text], &["broken.json", "no results"]);
    complains(3, &["--peer", "/nonexistent.json"], &["/nonexistent.json"]);
    if cfg!(target_os = "linux") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        let out = command
            .args(["bench", "kernels", "--device=vulkan", "--dtype=bf16"])
            .output()
            .expect("it starts");
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(
            out.status.code() == Some(2) && told.contains("does not store bfloat16"),
            "{told}"
        );
    }
}

#[test]
fn lists_name_every_op_and_the_shapes_of_the_model() {
    let full = json(&expect(0, &["--list", "--json", "--dtype", "bf16"]).0);
    let cases = full["cases"].as_array().expect("cases");
    let names: Vec<&str> = cases.iter().map(|c| c["name"].as_str().expect("a name")).collect();
    let distinct: std::collections::HashSet<&&str> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "names are keys");
    let case = |name: &str| {
        cases
            .iter()
            .find(|c| c["name"] == name)
            .unwrap_or_else(|| panic!("{name}"))
    };
    // Rows of a batch of 8: three pictures of 256 tokens and a prompt of 8 in each sample.
    let gate_up = case("product/language.gate_up/forward/b8");
    assert_eq!(
        [&gate_up["m"], &gate_up["n"], &gate_up["k"]].map(Value::as_u64),
        [Some(6208), Some(32768), Some(2048)]
    );
    assert_eq!(gate_up["flops"].as_f64(), Some(2.0 * 6208.0 * 32768.0 * 2048.0));
    let dw = case("product/vision.fc2/dw/b32");
    assert_eq!(
        [&dw["m"], &dw["n"], &dw["k"]].map(Value::as_u64),
        [Some(1152), Some(4304), Some(24576)]
    );
    let euler = case("attention/suffix.euler/forward/b8.h20");
    assert_eq!(
        [&euler["sequences"], &euler["queries"], &euler["keys"]].map(Value::as_u64),
        [Some(40), Some(20), Some(797)]
    );
    // Every file of src/ops that launches something is measured, but for those that are part of another or of none.
    let without = [
        "augmentations",
        "erase",
        "initial",
        "lr_schedule",
        "noise",
        "optimizers",
        "roofline",
        "testing",
        "time_embedding",
        "watch",
        "lanes",
        "split",
        "packed",
        "host_average",
    ];
    let inside = [
        "math",
        "mod",
        "pair",
        "rows",
        "wide",
        "blocks",
        "fill",
        "flow",
        "activation",
        "ensemble",
        "reduce",
        "td",
        "attention",
        "gemm",
        "update",
    ];
    for entry in std::fs::read_dir(Path::new(ROOT).join("src/ops")).expect("a folder") {
        let op = entry
            .expect("an entry")
            .path()
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        if without.contains(&op.as_str()) || inside.contains(&op.as_str()) {
            continue;
        }
        let op = if op == "patch_embed" { "patch_cut".into() } else { op };
        assert!(
            names.iter().any(|name| name.starts_with(&op)),
            "no case of src/ops/{op}.rs"
        );
    }
    let quick = json(&expect(0, &["--list", "--json", "--quick"]).0);
    assert!(quick["cases"].as_array().expect("cases").len() > 140);
    assert_eq!(quick["quick"], true);
}

/// The floors that docs/KERNELS.md shows are those of the program.
#[test]
fn the_ladder_in_the_documents_is_what_the_program_prints() {
    let printed = expect(0, &["--list", "--dtype=bf16", "--tflops=798", "--bandwidth=3.0TB/s"]).0;
    let cells = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
    let rows: std::collections::HashSet<Vec<String>> = printed.lines().map(|line| cells(line)[..].to_vec()).collect();
    let text = std::fs::read_to_string(Path::new(ROOT).join("docs/KERNELS.md")).expect("a document");
    let (_, ladder) = text.split_once("## The ladder").expect("a section");
    let (ladder, _) = ladder.split_once("\n## ").expect("another section");
    let mut shown = 0;
    for line in ladder
        .lines()
        .filter(|line| line.starts_with("| ") && line.contains("/b8"))
    {
        let mut row = cells(line);
        // The share is the document's own.
        let measured = row.remove(row.len() - 2);
        assert!(rows.contains(&row), "`{line}` is not what --list prints");
        assert!(measured == "not measured yet" || measured.ends_with('%'), "{line}");
        shown += 1;
    }
    assert!(shown > 20, "{shown} rows");
    complains(2, &["--list", "--tflops=798"], &["--bandwidth"]);
    complains(2, &["--list", "--tflops=798", "--bandwidth=fast"], &["fast", "3.0TB/s"]);
    let json = json(
        &expect(
            0,
            &[
                "--list",
                "--json",
                "--tflops=800",
                "--bandwidth=1TB/s",
                "--filter=square/nt/",
            ],
        )
        .0,
    );
    let case = &json["cases"][0];
    let (flops, bytes) = (
        case["flops"].as_f64().expect("FLOPs"),
        case["bytes"].as_f64().expect("bytes"),
    );
    let floor = case["floor_us"].as_f64().expect("a time");
    assert!(
        (floor / (1e6 * (flops / 800e12).max(bytes / 1e12)) - 1.0).abs() < 1e-9,
        "{case}"
    );
}

#[test]
fn the_peers_know_every_kind_of_case() {
    if !python() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (list, text) = path(&folder, "cases.json");
    std::fs::write(&list, expect(0, &["--list", "--json"]).0).expect("it is written");
    let out = Command::new("python3")
        .current_dir(ROOT)
        .args(["-B", "benches/peers/test_kernels.py", &text])
        .output()
        .expect("it starts");
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.success() && told.contains("OK") && !told.contains("skipped"),
        "{told}"
    );
}

fn python() -> bool {
    Command::new("python3")
        .arg("--version")
        .output()
        .is_ok_and(|out| out.status.success())
}

/// `./x gpu` with the program that the tests were built with.
fn gpu_run(args: &[&str]) -> Output {
    let mut command = Command::new("./x");
    command
        .current_dir(ROOT)
        .arg("gpu")
        .args(args)
        .env("ACRLPD", env!("CARGO_BIN_EXE_acrlpd"));
    command.output().expect("it starts")
}

#[test]
#[cfg(target_os = "linux")]
fn the_gpu_run_refuses_what_it_does_not_know() {
    for (args, part) in [
        (&["--fast"][..], "--fast"),
        (&["--device"], "needs a value"),
        (&["--device", "tpu"], "tpu"),
    ] {
        let out = gpu_run(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(part), "{args:?}");
    }
    let none = Command::new("./x")
        .current_dir(ROOT)
        .arg("gpu")
        .env("ACRLPD", "/nonexistent")
        .output()
        .expect("it starts");
    assert_eq!(none.status.code(), Some(2));
}

#[test]
#[cfg(target_os = "linux")]
fn the_gpu_run_goes_through_on_software_vulkan() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, text) = path(&folder, "run.md");
    let out = gpu_run(&[
        "--device",
        "vulkan",
        "--quick",
        "--filter",
        "square/nt",
        "--filter",
        "geglu",
        "--out",
        &text,
    ]);
    let written = std::fs::read_to_string(&file).expect("the file is written");
    assert_eq!(
        out.status.code(),
        Some(0),
        "{written}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    for part in [
        "| devices |",
        "| correct in f32 |",
        "| kernels |",
        "| a step |",
        "product/square/nt/64",
        "0 stages failed",
    ] {
        assert!(written.contains(part), "{part} in\n{written}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn the_gpu_run_writes_down_what_fails_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, text) = path(&folder, "run.md");
    let out = gpu_run(&[
        "--device",
        "vulkan:99",
        "--quick",
        "--filter",
        "square/nt/64",
        "--out",
        &text,
    ]);
    let written = std::fs::read_to_string(&file).expect("the file is written");
    assert_eq!(out.status.code(), Some(1), "{written}");
    // With no device nothing works, and all of it is in the file.
    assert!(
        written.contains("5 stages failed") && written.contains("error: "),
        "{written}"
    );
    assert!(written.contains("| a step |") && written.contains("| 4 |"), "{written}");
}
