//! Runs on disks that are full or slow, two runs in one folder, and signals.

mod run_support;

use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use acrlpd::files::fault::VARIABLE;
use run_support::{Runs, TINY, check, signal, wait_for_rows};

const FOREVER: [&str; 2] = ["--max-steps=100000", "--save-interval=100000"];

impl Runs {
    /// Starts a run whose disk follows `script`, and waits for its first row.
    fn start(&self, exp: &str, flags: &[&str], script: &str) -> Child {
        let mut command = self.command(exp, &[&TINY[..], flags].concat());
        if !script.is_empty() {
            command.env(VARIABLE, script);
        }
        let mut child = command.spawn().expect("it starts");
        wait_for_rows(&mut child, || self.dir(exp));
        child
    }
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_bit() {
    let runs = Runs::new();
    let flags = [
        &TINY[..],
        &["--max-steps=8", "--save-interval=2", "--set=keep_checkpoints=9"],
    ]
    .concat();
    runs.run(0, "well", &flags);
    let mut command = runs.command("full", &flags);
    let out = command
        .env(VARIABLE, "full@40..41@.writing-")
        .output()
        .expect("it starts");
    let (_, stderr) = check(0, &out);
    let warnings: Vec<_> = stderr.lines().filter(|line| line.contains("saved")).collect();
    let [warning] = warnings[..] else { panic!("{stderr}") };
    for words in ["step 2 could not be saved", ".writing-2/", "training goes on"] {
        assert!(warning.contains(words), "{warning}");
    }
    // The failed save was made good before the next one was due, or by that one.
    let steps = runs.steps("full");
    assert!(
        !steps.contains(&2) && steps.ends_with(&[6, 8]) && steps.len() >= 3,
        "{steps:?}"
    );
    for name in ["params", "ema", "critic", "optimizer"] {
        let file = |exp: &str| fs::read(runs.dir(exp).join(format!("8/{name}.safetensors"))).expect("it is there");
        assert!(file("well") == file("full"), "{name} differs");
    }
    let left: Vec<_> = fs::read_dir(runs.dir("full"))
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().starts_with(".w")),
        "{left:?}"
    );
}

#[test]
fn a_disk_that_stays_full_ends_the_run_with_an_error_in_the_end_only() {
    let runs = Runs::new();
    let flags = [&TINY[..], &["--max-steps=5", "--save-interval=1"]].concat();
    let mut command = runs.command("x", &flags);
    let script = "full@0..1000000@.writing-";
    let out = command.env(VARIABLE, script).output().expect("it starts");
    let (_, stderr) = check(5, &out);
    let last = stderr.lines().last().unwrap_or_default();
    for words in [
        "error: step 5 could not be saved and is lost",
        "free space",
        "newest checkpoint is none yet",
    ] {
        assert!(last.contains(words), "{stderr}");
    }
    assert_eq!((runs.steps("x"), runs.rows("x").len()), (vec![], 5));

    // The same when it is told to stop.
    let child = runs.start("y", &FOREVER, "error@0..1000000@.writing-");
    signal(&child, "TERM");
    let (_, stderr) = check(5, &child.wait_with_output().expect("it ends"));
    assert!(
        stderr.contains("is lost") && stderr.contains("input/output error"),
        "{stderr}"
    );
}

#[test]
fn a_second_trainer_in_the_same_folder_is_refused() {
    let runs = Runs::new();
    let mut child = runs.start("x", &FOREVER, "");
    let flags = [&TINY[..], &["--max-steps=1"]].concat();
    for start in ["--resume", "--overwrite"] {
        let (_, stderr) = runs.run(2, "x", &[&flags[..], &[start]].concat());
        assert!(
            stderr.contains(&format!("process {}", child.id())) && stderr.contains("--exp-name"),
            "{stderr}"
        );
    }
    runs.run(0, "another", &flags);
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    runs.run(0, "x", &[&flags[..], &["--resume"]].concat());
    assert_eq!(runs.steps("x"), [1]);
}

#[cfg(unix)]
#[test]
fn sigusr1_saves_and_is_a_good_end() {
    let runs = Runs::new();
    let child = runs.start("x", &FOREVER, "");
    signal(&child, "USR1");
    check(0, &child.wait_with_output().expect("it ends"));
    let last = runs.rows("x").last().expect("rows")["step"].as_u64();
    assert_eq!(runs.steps("x").last().copied(), last);
}

#[cfg(unix)]
#[test]
fn a_second_ctrl_c_does_not_wait_for_the_disk() {
    let runs = Runs::new();
    let mut child = runs.start("x", &FOREVER, "slow:300000@0..1@.writing-");
    signal(&child, "INT");
    std::thread::sleep(Duration::from_secs(3));
    assert!(
        child.try_wait().expect("it can be asked").is_none(),
        "it did not wait for its checkpoint"
    );
    let began = Instant::now();
    signal(&child, "INT");
    let out = child.wait_with_output().expect("it ends");
    assert!(began.elapsed() < Duration::from_secs(5));
    check(130, &out);
    assert!(runs.steps("x").is_empty());
}

/// The loop does not wait for the disk: with a disk that takes far longer than a step, steps go on while it works.
#[test]
fn steps_go_on_while_the_disk_works() {
    let runs = Runs::new();
    // The first save takes two minutes.
    let flags = ["--max-steps=100000", "--save-interval=2", "--log-interval=1"];
    let mut child = runs.start("x", &flags, "slow:120000@0..1@.writing-2");
    let began = Instant::now();
    while runs.rows("x").len() < 4 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "no step after the save began"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(runs.steps("x").is_empty());
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn a_slow_disk_and_little_memory_change_no_number() {
    let runs = Runs::new();
    let flags = ["--max-steps=4", "--save-interval=2", "--grad-accum=2"];
    runs.tiny(0, "quick", &flags);
    // Less memory than the state takes: what is left is read while the next step runs, and holds its update up.
    let mut command = runs.tiny_command("slow", &[&flags[..], &["--set=save_memory_mb=1"]].concat());
    let out = command.env(VARIABLE, "slow:2@0..1000000@.writing-").output();
    check(0, &out.expect("it starts"));
    for step in ["2", "4"] {
        let (quick, slow) = (runs.dir("quick").join(step), runs.dir("slow").join(step));
        let mut bytes = 0;
        for name in ["params", "ema", "critic", "optimizer"] {
            let read = |folder: &std::path::Path| {
                let path = folder.join(format!("{name}.safetensors"));
                fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            };
            let expected = read(&quick);
            bytes += expected.len();
            assert!(read(&slow) == expected, "{name} of step {step}");
        }
        assert!(bytes > 2_000_000, "{bytes} bytes fit into the memory");
    }
}
