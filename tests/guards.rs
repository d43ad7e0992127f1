//! What a run does about numbers that are not finite, and what it reports of those that are.

#[path = "run_support/mod.rs"]
mod support;

use std::process::Command;

use serde_json::Value;
use support::{Runs, check, timeless};

const DIVERGING: [&str; 4] = [
    "--max-steps=20",
    "--critic-lr=1e30",
    "--set=optimizer.critic.warmup_steps=0",
    "--save-interval=1",
];

fn acrlpd(code: i32, args: &[&str]) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
    check(code, &command.args(args).output().expect("it starts"))
}

#[test]
fn a_run_that_diverged_says_where_and_leaves_a_dump_that_can_be_done_again() {
    let runs = Runs::new();
    let (_, stderr) = runs.tiny(1, "x", &DIVERGING);
    let error = stderr.lines().last().expect("an error");
    for part in [
        "3 steps in a row",
        "the gradient of `",
        "in micro-batch",
        "phase \"",
        "chunks",
        "learning rate",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    // What was saved before is whole, and is what the message names.
    let newest = acrlpd::checkpoint::latest(&runs.dir("x"))
        .expect("a folder")
        .expect("a checkpoint");
    acrlpd::checkpoint::open(&newest).expect("it is whole");
    assert!(error.contains(&newest.display().to_string()), "{error}");

    let dumps = runs.dir("x").join("dumps");
    let dump = dumps.join("1");
    assert!(error.contains(&format!("acrlpd verify {}", dump.display())), "{error}");
    let json = |path: &std::path::Path| -> Value {
        let (out, _) = acrlpd(1, &["verify", "--json", &path.display().to_string()]);
        serde_json::from_str(&out).expect("JSON")
    };
    let again = json(&dump);
    // The same numbers as when it failed: the message was made of the same diagnosis.
    let gradient = again["gradient"].as_str().expect("a parameter");
    assert!(error.contains(gradient), "{gradient} in {error}");
    assert!(error.contains(again["launch"].as_str().expect("a launch")), "{again}");
    assert!(!again["chunks"].as_array().expect("a list").is_empty(), "{again}");
    assert_eq!(json(&dumps), again, "a folder of dumps is taken too");
    assert_eq!(json(&dumps.join("1.json")), again);
    let (_, stderr) = {
        std::fs::write(dump.with_extension("batch.safetensors"), b"no tensors").expect("it can be written");
        acrlpd(5, &["verify", &dump.display().to_string()])
    };
    assert!(stderr.contains("1.batch.safetensors"), "{stderr}");
}

#[test]
fn debug_names_the_launch_that_made_the_first_bad_number_and_nothing_else() {
    let runs = Runs::new();
    let (_, stderr) = runs.tiny(0, "good", &["--max-steps=2", "--debug"]);
    assert!(!stderr.contains("not finite"), "{stderr}");
    let (_, stderr) = runs.tiny(1, "bad", &[&DIVERGING[..], &["--debug"]].concat());
    let first = stderr.lines().find(|l| l.contains("not finite")).expect("a warning");
    assert!(first.contains("step 2: `") && first.contains("in phase \""), "{first}");
}

#[test]
fn rows_hold_what_people_look_at() {
    let runs = Runs::new();
    let flags = [
        "--max-steps=4",
        "--set=log_interval=2",
        "--save-interval=4",
        "--set=acrlpd.num_critics=3",
    ];
    runs.tiny(0, "x", &flags);
    let rows = runs.rows("x");
    assert_eq!(rows.len(), 2);
    for row in &rows {
        let number = |path: &str| {
            row.pointer(path)
                .and_then(Value::as_f64)
                .unwrap_or_else(|| panic!("{path}: {row}"))
        };
        let list = |path: &str| row.pointer(path).and_then(Value::as_array).map_or(0, Vec::len);
        assert_eq!((list("/critics"), list("/bc_joint_error")), (3, 14));
        let mut mean = 0.0;
        for i in 0..3 {
            let of = |part: &str| number(&format!("/critics/{i}/{part}"));
            assert!(of("q_min") < of("q") && of("q") < of("q_max"), "{row}");
            mean += of("q") / 3.0;
        }
        assert!((mean - number("/q")).abs() < 1e-9);
        assert!(
            number("/td_error/p50") <= number("/td_error/p90") && number("/td_error/p99") <= number("/td_error/max")
        );
        assert!(
            number("/best_of_n_gain") >= 0.0,
            "the best of N is no worse than their mean"
        );
        assert!((number("/best_q") - number("/candidate_q") - number("/best_of_n_gain")).abs() < 1e-9);
        for room in ["vision", "language", "expert", "critic"] {
            assert!(number(&format!("/grad_norm/{room}")) > 0.0 && number(&format!("/weight_norm/{room}")) > 0.0);
        }
        let rooms: f64 = ["vision", "language", "expert"]
            .map(|r| number(&format!("/grad_norm/{r}")).powi(2))
            .iter()
            .sum();
        // Means of norms, not norms of means: near, but not the same.
        assert!((rooms.sqrt() / number("/pi0_grad_norm") - 1.0).abs() < 0.2, "{row}");
        assert!(number("/tflops") > 0.0 && number("/memory_bytes") < number("/peak_memory_bytes"));
        // The loss is the mean over 32 model coordinates, 18 of which are padding, of squares.
        let joints: f64 = row["bc_joint_error"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|e| e.as_f64().expect("a number").powi(2))
            .sum();
        assert!(joints / 32.0 < number("/bc_loss"), "{row}");
    }
}

#[test]
fn eval_scores_a_checkpoint_on_held_out_episodes() {
    let runs = Runs::new();
    runs.tiny(0, "x", &["--max-steps=2", "--save-interval=2", "--set=eval_interval=2"]);
    let row = &runs.rows("x")[1]["eval"];
    assert!(row["action_error"].is_number() && row["flow_loss"].is_number(), "{row}");
    let run = runs.dir("x").display().to_string();
    let eval = |code: i32, more: &[&str]| acrlpd(code, &[&["eval", "--checkpoint", &run], more].concat());
    let json = |more: &[&str]| -> Value {
        let (out, _) = eval(0, &[&["--json"], more].concat());
        serde_json::from_str(&out).expect("JSON")
    };
    let all = json(&["--episodes=all", "--samples=12"]);
    assert_eq!(
        (&all["step"], all["scores"].as_array().map(Vec::len)),
        (&2.into(), Some(12))
    );
    let means = &all["evaluation"];
    let count = |group: &str| means[group]["samples"].as_u64().unwrap_or(0);
    assert_eq!(count("good") + count("bad"), 12, "{means}");
    assert_eq!(means["joint_error"].as_array().map(Vec::len), Some(14));
    // Means are of the scores, and a score does not depend on the chunks beside it.
    let score = all["scores"][3].clone();
    let errors = all["scores"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s["action_error"].as_f64().expect("a number"));
    assert!((errors.sum::<f64>() / 12.0 - means["action_error"].as_f64().expect("a number")).abs() < 1e-12);
    let episode = format!("--episodes={}", score["episode"]);
    let own = json(&[&episode, "--samples=0"]);
    assert!(own["scores"].as_array().expect("a list").contains(&score), "{score}");
    assert_eq!(json(&["--samples=4"])["episodes"].as_array().map(Vec::len), Some(1));
    let (table, _) = eval(0, &["--samples=4"]);
    assert!(
        table.contains("error of joint 13") && table.contains("rank correlation"),
        "{table}"
    );
    let (_, stderr) = eval(2, &["--episodes=99"]);
    assert!(stderr.contains("99") && stderr.contains("--episodes"), "{stderr}");
}

#[test]
fn a_timed_step_is_the_same_step_and_its_phases_are_in_the_report() {
    let runs = Runs::new();
    runs.tiny(0, "plain", &["--max-steps=6"]);
    runs.tiny(0, "timed", &["--max-steps=6", "--profile"]);
    assert_eq!(
        runs.rows("plain").iter().map(timeless).collect::<Vec<_>>(),
        runs.rows("timed").iter().map(timeless).collect::<Vec<_>>()
    );
    assert!(!runs.dir("plain").join("phases.json").exists());
    let dir = runs.dir("timed");
    let text = std::fs::read_to_string(dir.join("phases.json")).expect("it is there");
    let times: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(times["step"], 5);
    let phases = times["phases"].as_array().expect("a list");
    let named: Vec<&str> = phases.iter().filter_map(|p| p["name"].as_str()).collect();
    for name in [
        "current prefix forward",
        "critics",
        "current prefix backward",
        "optimizer",
    ] {
        assert!(named.contains(&name), "{named:?}");
    }
    assert!(
        phases.iter().all(|p| p["ms"].as_f64().is_some_and(|ms| ms > 0.0)),
        "{text}"
    );
    acrlpd(0, &["report", &dir.display().to_string()]);
    let page = std::fs::read_to_string(dir.join("report.html")).expect("a page");
    for name in named {
        assert!(page.contains(&format!(">{name}</text>")), "{name}");
    }
}
