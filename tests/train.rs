//! Whole runs: resuming, overwriting, being killed, and what lies on disk afterwards.

#[path = "run_support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Runs, check, timeless, wait_for_rows};

/// Content of every tensor file of a checkpoint.
fn tensors(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    ["params", "ema", "critic", "optimizer"]
        .map(|name| format!("{name}.safetensors"))
        .map(|name| (name.clone(), fs::read(checkpoint.join(name)).expect("it is there")))
        .into()
}

#[test]
fn resuming_gives_the_bits_of_a_run_that_was_never_interrupted() {
    let runs = Runs::new();
    runs.tiny(0, "whole", &["--max-steps=6", "--save-interval=6"]);
    runs.tiny(0, "halves", &["--max-steps=3"]);
    let (out, _) = runs.tiny(0, "halves", &["--max-steps=6", "--resume", "--save-interval=6"]);
    assert!(out.contains("steps 3 to 6"), "{out}");
    for (whole, halves) in std::iter::zip(
        tensors(&runs.dir("whole").join("6")),
        tensors(&runs.dir("halves").join("6")),
    ) {
        assert_eq!(whole.0, halves.0);
        assert!(whole.1 == halves.1, "{} differs", whole.0);
    }
    let rows = |exp: &str| runs.rows(exp).iter().map(timeless).collect::<Vec<_>>();
    // The count of skipped steps and everything else agree, row by row.
    assert_eq!(rows("whole"), rows("halves"));
    assert_eq!(rows("whole").len(), 6);
    let (out, _) = runs.tiny(0, "halves", &["--max-steps=6", "--resume"]);
    assert!(out.contains("nothing to do"), "{out}");
}

#[test]
fn threads_and_the_division_into_micro_batches_change_nothing_that_matters() {
    let runs = Runs::new();
    runs.tiny(
        0,
        "a",
        &[
            "--max-steps=2",
            "--set=data.loader_threads=1",
            "--set=critic.dropout_rate=0",
        ],
    );
    let more = [
        "--max-steps=2",
        "--set=data.loader_threads=4",
        "--set=critic.dropout_rate=0",
        "--grad-accum=4",
    ];
    runs.tiny(0, "b", &more);
    for (a, b) in std::iter::zip(runs.rows("a"), runs.rows("b")) {
        for key in [
            "critic_loss",
            "actor_loss",
            "bc_loss",
            "q",
            "pi0_grad_norm",
            "critic_grad_norm",
            "entropy",
        ] {
            let (a, b) = (a[key].as_f64().expect("a number"), b[key].as_f64().expect("a number"));
            assert!((a - b).abs() <= 1e-3 * a.abs().max(1e-2), "{key}: {a} and {b}");
        }
    }
}

#[test]
fn runs_are_not_overwritten_by_accident() {
    let runs = Runs::new();
    runs.tiny(
        0,
        "x",
        &["--max-steps=4", "--save-interval=1", "--set=keep_checkpoints=2"],
    );
    assert_eq!(runs.steps("x"), [3, 4]);
    let before = tensors(&runs.dir("x").join("4"));
    let (_, stderr) = runs.tiny(2, "x", &["--max-steps=4"]);
    assert!(
        stderr.contains("--resume") && stderr.contains("--overwrite") && stderr.contains("step 4"),
        "{stderr}"
    );
    let (out, _) = runs.tiny(0, "x", &["--overwrite", "--dry-run"]);
    assert!(out.contains("none (dry run)"), "{out}");
    assert!(
        before == tensors(&runs.dir("x").join("4")),
        "a dry run changed a checkpoint"
    );
    runs.tiny(0, "x", &["--max-steps=1", "--overwrite"]);
    assert_eq!((runs.steps("x"), runs.rows("x").len()), (vec![1], 1));
}

#[test]
fn a_dry_run_writes_nothing() {
    let runs = Runs::new();
    let (out, _) = runs.tiny(0, "dry", &["--dry-run", "--debug"]);
    assert!(out.contains("steps       1 in"), "{out}");
    assert_eq!(fs::read_dir(runs.folder.path()).expect("a folder").count(), 0);
}

#[test]
fn a_signal_saves_and_the_run_goes_on_from_there() {
    let runs = Runs::new();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let exp = format!("stopped-by-{signal}");
        let flags = ["--max-steps=100000", "--save-interval=100000"];
        let mut child = runs.tiny_command(&exp, &flags).spawn().expect("it starts");
        wait_for_rows(&mut child, || runs.dir(&exp));
        support::signal(&child, signal);
        let out = child.wait_with_output().expect("it ends");
        let (stdout, _) = check(code, &out);
        let [step] = runs.steps(&exp)[..] else {
            panic!("{stdout}")
        };
        assert_eq!(runs.rows(&exp).last().expect("rows")["step"], step);
        runs.tiny(0, &exp, &[&format!("--max-steps={}", step + 1), "--resume"]);
        assert_eq!(runs.steps(&exp), [step, step + 1]);
    }
}

#[test]
fn being_killed_at_any_moment_leaves_whole_checkpoints() {
    let runs = Runs::new();
    let began = Instant::now();
    let flags = ["--max-steps=100000", "--save-interval=1", "--set=keep_checkpoints=3"];
    let mut child = runs.tiny_command("killed", &flags).spawn().expect("it starts");
    wait_for_rows(&mut child, || runs.dir("killed"));
    let warm = began.elapsed();
    // Now and at other moments of a step that saves.
    std::thread::sleep(Duration::from_millis(137));
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    for pause in [35, 61] {
        let mut child = runs
            .command("killed", &[&flags[..], &["--resume"]].concat())
            .spawn()
            .expect("it starts");
        std::thread::sleep(warm + Duration::from_millis(pause));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        if let Some(folder) = acrlpd::checkpoint::latest(&runs.dir("killed")).expect("a folder") {
            acrlpd::checkpoint::open(&folder).expect("the newest checkpoint is whole");
        }
    }
    let newest = runs.steps("killed").last().copied().unwrap_or(0);
    let last = format!("--max-steps={}", newest + 1);
    runs.tiny(0, "killed", &[&last, "--resume", "--save-interval=1"]);
    let rows = runs.rows("killed");
    let steps: Vec<u64> = rows.iter().map(|r| r["step"].as_u64().expect("a step")).collect();
    assert_eq!(steps, (1..=newest + 1).collect::<Vec<_>>(), "every step has one row");
}

#[test]
fn trained_weights_can_be_sampled_from_and_started_from() {
    let runs = Runs::new();
    runs.tiny(0, "first", &["--max-steps=2"]);
    let checkpoint = runs.dir("first").join("2");
    let sample = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command
            .args(["sample", "--json", "--checkpoint"])
            .arg(&checkpoint)
            .args(flags);
        let (out, _) = check(0, &command.output().expect("it starts"));
        serde_json::from_str::<serde_json::Value>(&out).expect("JSON")
    };
    let all = sample(&["--frames=0,40,100"]);
    // A frame's actions do not depend on the frames beside it.
    assert_eq!(all[1], sample(&["--frames=40"])[0]);
    assert_ne!(all[1]["actions"], sample(&["--frames=40", "--ema"])[0]["actions"]);
    assert_eq!(all[0]["actions"].as_array().map(Vec::len), Some(4));
    assert_eq!(all[0]["actions"][0].as_array().map(Vec::len), Some(14));

    // As pretrained weights, under another critic.
    let weights = format!("--set=model.weights={}", checkpoint.display());
    let (out, _) = runs.tiny(
        0,
        "second",
        &["--max-steps=1", &weights, "--set=critic_hidden_dims=[16]"],
    );
    assert!(out.contains("weights of "), "{out}");
    let (_, stderr) = runs.tiny(5, "third", &["--max-steps=1", &weights, "--set=model.dims.depth=3"]);
    assert!(stderr.contains("layers.2") && stderr.contains("error: "), "{stderr}");
    let (_, stderr) = runs.tiny(
        5,
        "third",
        &["--max-steps=1", &weights, "--set=model.dims.expert_mlp=48"],
    );
    assert!(stderr.contains("mlp") && stderr.contains("48"), "{stderr}");
}

#[test]
fn steps_that_leave_pi0_alone_say_nothing_about_it() {
    let runs = Runs::new();
    runs.tiny(0, "x", &["--max-steps=3", "--set=acrlpd.actor_update_freq=2"]);
    let known: Vec<[bool; 3]> = runs
        .rows("x")
        .iter()
        .map(|r| ["critic_loss", "actor_loss", "pi0_grad_norm"].map(|key| r[key].is_number()))
        .collect();
    assert_eq!(known, [[true; 3], [true, false, false], [true; 3]]);
}
