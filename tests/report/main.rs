//! `acrlpd report`: what it says, what it refuses, and what a browser makes of the page.

mod browser;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;

/// A folder of runs.
struct Runs {
    root: tempfile::TempDir,
}

impl Runs {
    fn new() -> Runs {
        Runs {
            root: tempfile::tempdir().expect("a folder"),
        }
    }

    /// A run of `rows` rows whose losses fall `speed` times as fast.
    fn write(&self, name: &str, rows: u64, speed: f64) -> PathBuf {
        let dir = self.root.path().join(name);
        fs::create_dir_all(&dir).expect("a folder");
        let mut log = String::new();
        for i in 1..=rows {
            let part = speed * i as f64 / rows as f64;
            let noise = (i as f64 * 12.9898).sin() * 0.1;
            let mut row = json!({
                "step": 10 * i, "critic_loss": (-5.0 * part).exp() * (1.0 + noise), "q": part + noise,
                "actor_loss": if i % 2 == 0 { json!(null) } else { json!(-part) },
                "pi0_lr": 1e-4 * (1.0 - part / 2.0), "steps_per_s": 3.0 + noise, "skipped": 0,
                "td_error": [0.1 + noise, 0.2 + noise, 0.3 - noise],
            });
            if i % 10 == 0 {
                row["eval"] = json!({"action_error": 0.5 - 0.3 * part});
            }
            log += &format!("{row}\n");
        }
        // What a killed program leaves.
        fs::write(dir.join("metrics.jsonl"), log + "{\"step\": 99").expect("written");
        let config = json!({"batch_size": 8, "model": {"dtype": "float32"}, "acrlpd": {"actor_lr": 1e-4 * speed}});
        let run = json!({"id": "abcd1234", "name": name, "project": "p", "config": config});
        fs::write(dir.join("run.json"), run.to_string()).expect("written");
        dir
    }

    fn report(&self, args: &[&Path]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        command.arg("report").args(args).current_dir(self.root.path());
        command.output().expect("it starts")
    }

    /// The page of these runs.
    fn page(&self, args: &[&Path]) -> String {
        let output = self.report(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        fs::read_to_string(self.root.path().join(path)).expect("the page")
    }
}

/// The titles of the charts.
fn charts(page: &str) -> Vec<&str> {
    let labels = page.split("aria-label=\"").skip(1);
    labels.map(|rest| rest.split('"').next().unwrap_or_default()).collect()
}

#[test]
fn every_number_of_a_run_is_in_its_page() {
    let runs = Runs::new();
    let dir = runs.write("one", 200, 1.0);
    let page = runs.page(&[&dir]);
    assert!(dir.join("report.html").is_file());
    let expected = [
        "critic_loss",
        "actor_loss",
        "td_error",
        "q",
        "eval/action_error",
        "pi0_lr",
        "skipped",
        "steps_per_s",
    ];
    assert_eq!(charts(&page), expected);
    for text in [
        "200 rows to step 2000",
        "model.dtype",
        "float32",
        "td_error/2",
        "prefers-color-scheme: dark",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // Nothing is fetched: no address, no script, no import.
    for outside in ["http", "<script", "@import", "url(", "<link", "<img"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("NaN"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn runs_are_compared() {
    let runs = Runs::new();
    let (one, two) = (runs.write("one", 200, 1.0), runs.write("two", 100, 2.0));
    let page = runs.page(&[&one, &two, Path::new("--out=both.html")]);
    let critic = page.split("aria-label=\"critic_loss\"").nth(1).expect("a chart");
    let critic = critic.split("</svg>").next().expect("its end");
    assert!(
        critic.contains("class=\"c0\"") && critic.contains("class=\"c1\""),
        "{critic}"
    );
    let differs = page
        .split("What differs")
        .nth(1)
        .expect("a table")
        .split("</table>")
        .next()
        .expect("its end");
    assert!(
        differs.contains("acrlpd.actor_lr") && differs.contains("0.0002"),
        "{differs}"
    );
    assert!(!differs.contains("batch_size"), "{differs}");
    // The same folder twice: the paths tell them apart.
    let page = runs.page(&[&one, &runs.root.path().join("two/../one"), Path::new("--out=same.html")]);
    assert!(page.contains("two/../one"));
}

#[test]
fn names_are_not_markup_and_a_single_row_is_enough() {
    let runs = Runs::new();
    let dir = runs.write("<b>&amp;", 1, 1.0);
    fs::write(
        dir.join("metrics.jsonl"),
        "{\"step\":1,\"<script>alert(1)</script>\":0.5}\n",
    )
    .expect("written");
    let page = runs.page(&[&dir]);
    assert!(!page.contains("<script") && !page.contains("<b>&amp;<"), "{page}");
    assert!(
        page.contains("&lt;b&gt;&amp;amp;") && page.contains("<circle"),
        "{page}"
    );
}

#[test]
fn what_is_no_run_is_refused_in_a_sentence() {
    let runs = Runs::new();
    let empty = runs.root.path().join("empty");
    fs::create_dir_all(&empty).expect("a folder");
    let no_rows = runs.write("none", 0, 1.0);
    let cases = [
        (&empty, "not the folder of a run"),
        (&empty.join("missing"), "not the folder"),
        (&no_rows, "no rows yet"),
    ];
    for (dir, why) in cases {
        let output = runs.report(&[dir]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(why) && stderr.trim().lines().count() == 1, "{stderr}");
        assert!(!dir.join("report.html").exists());
    }
    let run = runs.write("one", 3, 1.0);
    let output = runs.report(&[&run, Path::new("--out=no/such/folder.html")]);
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn a_hundred_thousand_rows_make_a_small_page() {
    let runs = Runs::new();
    let page = runs.page(&[&runs.write("long", 100_000, 1.0)]);
    assert!(page.len() < 400_000, "{} bytes", page.len());
}

#[test]
fn a_browser_draws_every_chart() {
    let runs = Runs::new();
    let (one, two) = (runs.write("one", 200, 1.0), runs.write("two", 100, 2.0));
    let page = runs.page(&[&one, &two, Path::new("--out=both.html")]);
    browser::every_chart_has_lines(&page, &charts(&page));
}
