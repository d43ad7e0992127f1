//! The way of a configuration of the original: dumped by `docs/dump_original_config.py`, loaded here.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use acrlpd::config::{Config, What};
use acrlpd::data::Boundary;
use tempfile::TempDir;

/// Dumps a configuration of `tests/original/configs.py`.
fn dump(name: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Command::new("python3")
        .arg(root.join("docs/dump_original_config.py"))
        .args(["configs", name])
        .current_dir(root.join("tests/original"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("this test needs python3; install it")
}

fn dumped(name: &str) -> (TempDir, PathBuf, String) {
    let out = dump(name);
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{stderr}");
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("original.json");
    std::fs::write(&file, &out.stdout).unwrap();
    (dir, file, stderr)
}

fn load(file: &Path, changes: &[(&str, &str)]) -> Result<Config, String> {
    let changes: Vec<_> = changes.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    Config::load_with(file.to_str().unwrap(), &changes).map_err(|e| e.to_string())
}

#[test]
fn a_dump_loads_once_its_weights_are_here() {
    let (_dir, file, stderr) = dumped("FOLD_BOX");
    assert!(stderr.contains("left out freeze_filter: function"), "{stderr}");
    let message = load(&file, &[]).unwrap_err();
    assert!(
        message.contains("original.json` line") && message.contains("`model.weights`") && message.contains("download"),
        "{message}"
    );
    let config = load(&file, &[("model.weights", "/pi0_base")]).unwrap();

    // It is the preset of that name, but for what the preset changed on purpose.
    let preset = Config::load("rl_fold_box").unwrap();
    let differing: Vec<String> = config.differences(&preset).into_iter().map(|d| d.0).collect();
    let expected = [
        "project_name",
        "wandb_enabled",
        "model.weights",
        "acrlpd.actor_update_freq",
        "qchunking.boundary",
        "data.loader_threads",
        "data.cameras",
    ];
    let unexpected: Vec<_> = differing
        .iter()
        .filter(|key| !expected.contains(&key.as_str()))
        .collect();
    assert!(
        unexpected
            .iter()
            .all(|key| ["checkpoint_dir", "model.max_token_len"].contains(&key.as_str())),
        "{unexpected:?}"
    );
    assert_eq!(config.qchunking.boundary, Boundary::Pad);
    assert_eq!(config.data.cameras.len(), 2);
    assert_eq!(config.data.cameras["base_0_rgb"], "observation.images.top");
    assert_eq!(
        (config.project_name.as_str(), config.wandb_enabled),
        ("acrlpd_pi0_fold_box", true)
    );

    // Every name that is not ours is told.
    let ignored: Vec<&str> = config
        .notes()
        .iter()
        .filter(|note| matches!(note.what, What::Ignored { .. }))
        .map(|note| note.key.as_str())
        .collect();
    for key in [
        "exp_name",
        "fsdp_devices",
        "acrlpd.bootstrap_length",
        "critic_lr_schedule.peak_lr",
    ] {
        assert!(ignored.contains(&key), "{key}: {ignored:?}");
    }
    let renamed = config.notes().iter().map(|note| note.to_string());
    let renamed: Vec<String> = renamed
        .filter(|text| text.ends_with("is acrlpd.chunk_length"))
        .collect();
    assert!(
        renamed.len() == 1 && renamed[0].contains("`qchunking.horizon_length`"),
        "{renamed:?}"
    );
}

#[test]
fn what_asks_for_something_else_is_refused_with_the_reason() {
    let (dir, file, _) = dumped("FOLD_BOX");
    let text = std::fs::read_to_string(&file).unwrap();
    let here = ("model.weights", "/pi0_base");
    for (old, new, words) in [
        ("\"fsdp_devices\": 1", "\"fsdp_devices\": 8", "one device"),
        (
            "\"bootstrap_length\": 20",
            "\"bootstrap_length\": 10",
            "after the whole chunk",
        ),
        (
            "\"lr_min_factor\": 0.1",
            "\"lr_min_factor\": 0.2",
            "optimizer.actor.lr_min_factor",
        ),
        (
            "\"bootstrap_type\": \"standard\"",
            "\"bootstrap_type\": \"n_step\"",
            "discounted reward",
        ),
        ("\"assets_dir\": null", "\"assets_dir\": \"/a\"", "data.norm_stats"),
        ("\"ema_decay\": 0.99", "\"ema_decay\": 0.9", "acrlpd.pi0_ema_decay"),
        ("\"warmup_steps\": 20000", "\"warmup_steps\": 300", "warmup_steps"),
        ("\"resume\": false", "\"resume\": true", "--resume"),
    ] {
        assert!(text.contains(old), "{old}");
        let edited = dir.path().join("edited.json");
        std::fs::write(&edited, text.replacen(old, new, 1)).unwrap();
        let line = 1 + text.lines().position(|l| l.contains(old)).unwrap();
        let message = load(&edited, &[here]).unwrap_err();
        assert!(
            message.contains(&format!("edited.json` line {line}:")),
            "{new}: {message}"
        );
        assert!(
            message.contains("is not supported") && message.contains(words),
            "{new}: {message}"
        );
    }
    // The value of another key decides, flags included.
    let shorter = [here, ("acrlpd.chunk_length", "10"), ("model.action_horizon", "10")];
    assert!(load(&file, &shorter).unwrap_err().contains("bootstrap_length"));
}

#[test]
fn a_contradictory_one_is_refused_and_one_that_does_not_exist_too() {
    let (_dir, file, _) = dumped("rl_aloha_fold");
    let message = load(&file, &[("model.weights", "/w")]).unwrap_err();
    // Two batch sizes.
    assert!(
        message.contains("batch_size` sets") || message.contains("sets `batch_size`"),
        "{message}"
    );
    let out = dump("rl_nowhere");
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.code() == Some(1) && stderr.contains("no configuration 'rl_nowhere'"),
        "{stderr}"
    );
}
