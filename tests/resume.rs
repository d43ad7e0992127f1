//! A run that went on from a checkpoint has the bits of one that was never interrupted: every file, every row.

mod run_support;

use std::fs;
use std::path::Path;
use std::time::Duration;

use run_support::{Runs, TINY, check, timeless};

/// Every file of a checkpoint, without the time in `state.json` and what depends on it, and without the number of
/// threads, which may differ.
fn content(checkpoint: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(checkpoint).expect("a checkpoint") {
        let (path, name) = entry.map(|e| (e.path(), e.file_name())).expect("an entry");
        let (name, bytes) = (name.into_string().expect("a name"), fs::read(path).expect("a file"));
        let without = |word: &str| {
            let text = String::from_utf8(bytes.clone()).expect("text");
            let lines: Vec<_> = text.lines().filter(|line| !line.contains(word)).collect();
            assert!(lines.len() + 1 == text.lines().count(), "{word}");
            lines.join("\n").into_bytes()
        };
        let bytes = match &name[..] {
            "state.json" => without("saved_unix_s"),
            "config.toml" => without("loader_threads"),
            "manifest.json" => continue,
            _ => bytes,
        };
        files.push((name, bytes));
    }
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    files
}

/// Trains 2k steps with a checkpoint after k, then takes everything after it away and goes on from it.
fn goes_on_exactly(k: u64, flags: &[&str], flags_of_the_second_half: &[&str]) {
    let runs = Runs::new();
    let (save, end) = (format!("--save-interval={k}"), format!("--max-steps={}", 2 * k));
    let all = [&[&save[..], &end, "--set=keep_checkpoints=2"], flags].concat();
    runs.run(0, "x", &all);
    let (whole, rows) = (runs.dir("x").join((2 * k).to_string()), runs.rows("x"));
    let expected = content(&whole);
    fs::remove_dir_all(&whole).expect("it can go");
    // The rows are as a run leaves them that was killed just before it saved.
    let (out, _) = runs.run(0, "x", &[&all[..], flags_of_the_second_half, &["--resume"]].concat());
    assert!(out.contains(&format!("steps {k} to {}", 2 * k)), "{out}");
    for (a, b) in std::iter::zip(&expected, content(&whole)) {
        assert_eq!(a.0, b.0);
        assert!(a.1 == b.1, "{} differs", a.0);
    }
    let now: Vec<_> = runs.rows("x").iter().map(timeless).collect();
    assert_eq!(now, rows.iter().map(timeless).collect::<Vec<_>>());
}

/// A preset at tiny size on the shipped dataset.
fn preset_goes_on_exactly(name: &str, more: &[&str]) {
    let config = format!("--config={name}");
    let shrunk = [
        &[
            &config[..],
            "--set=model.paligemma_variant=tiny",
            "--set=model.action_expert_variant=tiny",
            "--set=model.image_size=56",
            "--set=model.dtype=float32",
            "--set=critic_hidden_dims=[16]",
            "--set=acrlpd.diffusion_steps=3",
            "--set=acrlpd.num_action_samples=2",
            "--set=qchunking.action_dim=14",
            "--batch-size=4",
            "--log-interval=2",
            "--data=assets/datasets/aloha_v21_image",
            "--set=data.tokenizer=assets/tokenizer/tiny_paligemma.model",
            "--set=data.state_key=observation.state",
            "--set=data.action_key=action",
            "--set=data.cameras.base_0_rgb=observation.images.cam_high",
            "--set=data.cameras.left_wrist_0_rgb=observation.images.cam_left_wrist",
            "--set=data.loader_threads=2",
        ],
        more,
    ];
    // Three steps, so that the checkpoint lies between two rows.
    goes_on_exactly(3, &shrunk.concat(), &["--set=data.loader_threads=5"]);
}

#[test]
fn rl_fold_box_goes_on_exactly() {
    preset_goes_on_exactly(
        "rl_fold_box",
        &["--set=model.action_horizon=4", "--set=acrlpd.chunk_length=4"],
    );
}

#[test]
fn rl_aloha_fold_goes_on_exactly() {
    preset_goes_on_exactly(
        "rl_aloha_fold",
        &["--set=model.action_horizon=4", "--set=acrlpd.chunk_length=4"],
    );
}

#[test]
fn rl_libero_goes_on_exactly() {
    preset_goes_on_exactly("rl_libero", &[]);
}

#[test]
fn rl_droid_goes_on_exactly() {
    preset_goes_on_exactly(
        "rl_droid",
        &["--set=model.action_horizon=4", "--set=acrlpd.chunk_length=4"],
    );
}

#[test]
fn debug_with_accumulation_augmentation_and_dropout_goes_on_exactly() {
    let tiny = [
        &TINY[..],
        &["--grad-accum=4", "--log-interval=3", "--set=data.loader_threads=1"],
    ]
    .concat();
    goes_on_exactly(2, &tiny, &["--set=data.loader_threads=2"]);
}

/// Lion keeps no second moments; the pictures' rectangles are drawn again as they were.
#[test]
fn lion_smoothness_erasing_and_residual_critics_go_on_exactly() {
    let flags = [
        "--set=optimizer.actor.kind=lion",
        "--set=optimizer.critic.kind=lion",
        "--set=acrlpd.smoothness_weight=0.5",
        "--set=acrlpd.critic_network=residual",
        "--set=data.augmentations=[\"erase\"]",
    ];
    goes_on_exactly(2, &[&TINY[..], &flags].concat(), &[]);
}

/// Moments in 8 bits, π₀'s prefix computed twice in part.
#[test]
fn tight_memory_goes_on_exactly() {
    let tight = ["--set=memory.preset=tight", "--grad-accum=2", "--log-interval=2"];
    goes_on_exactly(3, &[&TINY[..], &tight].concat(), &[]);
}

/// Checkpoints hold moments as f32 numbers, so that either way of keeping them goes on from the other.
#[test]
fn moments_change_their_form_on_the_way() {
    let runs = Runs::new();
    let start = ["--save-interval=2", "--max-steps=2", "--set=memory.moments=blockwise8"];
    runs.tiny(0, "x", &start);
    for (end, moments) in [("3", "float32"), ("4", "blockwise8")] {
        let flags = [
            "--resume",
            "--save-interval=1",
            &format!("--max-steps={end}"),
            &format!("--set=memory.moments={moments}"),
        ];
        let (_, err) = runs.tiny(0, "x", &flags);
        assert!(err.contains("memory.moments") && err.contains(moments), "{err}");
    }
}

/// Kills a run again and again, wherever it is, until it has done its steps.
#[test]
fn a_run_that_is_killed_again_and_again_ends_with_the_same_bits() {
    let kills: u64 = std::env::var("ACRLPD_TEST_KILLS").map_or(5, |n| n.parse().expect("a number"));
    let runs = Runs::new();
    let steps = 3 + kills;
    let end = format!("--max-steps={steps}");
    let flags = [
        &TINY[..],
        &[
            "--save-interval=1",
            "--set=keep_checkpoints=2",
            "--log-interval=2",
            &end,
        ],
    ]
    .concat();
    runs.run(0, "whole", &flags);

    let flags = [&flags[..], &["--resume"]].concat();
    let newest = || {
        acrlpd::checkpoint::steps(&runs.dir("killed"))
            .expect("a folder")
            .last()
            .copied()
    };
    let (mut count, mut tries) = (0, 0u64);
    while count < kills && newest() != Some(steps) {
        let before = newest();
        let mut child = runs.command("killed", &flags).spawn().expect("it starts");
        // Somewhere between the start and a few steps after the first checkpoint of this program.
        let mut more = Duration::from_millis(10 * (tries * 37 % 71));
        tries += 1;
        let pause = Duration::from_millis(5);
        while more > Duration::ZERO && child.try_wait().expect("it can be asked").is_none() {
            std::thread::sleep(pause);
            // Every other time, nothing counts before a checkpoint, so that the run gets on.
            if tries.is_multiple_of(2) || newest() > before {
                more = more.saturating_sub(pause);
            }
        }
        if child.try_wait().expect("it can be asked").is_none() {
            child.kill().expect("it runs");
            count += 1;
        }
        let out = child.wait_with_output().expect("it ends");
        assert!(!String::from_utf8_lossy(&out.stderr).contains("panicked"), "{out:?}");
    }
    println!("{count} kills of {tries} programs");
    check(0, &runs.command("killed", &flags).output().expect("it starts"));

    let last = |exp: &str| content(&runs.dir(exp).join(steps.to_string()));
    for (a, b) in std::iter::zip(last("whole"), last("killed")) {
        assert!(a == b, "{} differs", a.0);
    }
    let rows = |exp: &str| runs.rows(exp).iter().map(timeless).collect::<Vec<_>>();
    assert_eq!(rows("whole"), rows("killed"));
}
