//! The summary of a checkpoint and of bare weights.

mod checkpoint_support;

use std::fs;
use std::path::Path;

use acrlpd::checkpoint::inspect;
use checkpoint_support::{critic, golden_weights, read_plain, save, write_plain};
use safetensors::Dtype;
use tempfile::TempDir;

#[test]
fn bare_weights() {
    let summary = inspect(&golden_weights(true)).unwrap();
    let plain = read_plain(golden_weights(true));
    let parameters: usize = plain.values().map(|(_, values)| values.len()).sum();
    let [file] = &summary.files[..] else {
        panic!("{summary:?}")
    };
    assert_eq!(
        (file.tensors.len(), file.parameters, file.bytes),
        (plain.len(), parameters as u64, 4 * parameters as u64)
    );
    assert_eq!(
        (summary.model, summary.state.is_none(), summary.bytes),
        (Some("π₀.₅"), true, file.bytes)
    );
    let text = summary.to_string();
    assert!(
        text.contains("model π₀.₅") && text.contains(&format!("F32 ({})", plain.len())),
        "{text}"
    );
    assert!(text.contains("pi05_tiny.weights.safetensors"), "{text}");

    let dir = TempDir::new().unwrap();
    write_plain(dir.path().join("model.safetensors"), &plain, Dtype::BF16);
    let summary = inspect(dir.path()).unwrap();
    assert_eq!(summary.bytes, 2 * parameters as u64);
    assert_eq!(summary.files[0].dtypes["BF16"], plain.len());
}

#[test]
fn training_checkpoints_and_runs() {
    let dir = TempDir::new().unwrap();
    for step in [1000, 2000] {
        save(dir.path(), step, 5).unwrap();
    }
    // A run's folder means its newest checkpoint.
    let summary = inspect(dir.path()).unwrap();
    assert_eq!(summary, inspect(&dir.path().join("2000")).unwrap());
    let names: Vec<&str> = summary.files.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        names,
        ["config.toml", "critic.safetensors", "norm_stats.json", "state.json"]
    );
    assert_eq!(summary.files[1].parameters, 2 * critic().len() as u64);
    assert_eq!(summary.bytes, summary.files.iter().map(|f| f.bytes).sum::<u64>());
    let state = summary.state.as_ref().unwrap();
    assert_eq!((state.step, state.config.as_str()), (2000, "debug"));
    let text = summary.to_string();
    assert!(text.contains("step 2000, config debug, seed 7, saved 20"), "{text}");
    assert!(
        text.lines()
            .any(|l| l.starts_with("critic.safetensors") && l.contains("F32 (28)")),
        "{text}"
    );
    assert!(text.lines().all(|l| l == l.trim_end()), "{text}");
    let json: serde_json::Value = serde_json::to_value(&summary).unwrap();
    assert_eq!(json["state"]["step"], 2000);
    assert_eq!(json["files"][1]["tensors"][0]["dtype"], "F32");

    // Another program's step with the usual file in it is bare weights.
    let other = dir.path().join("3000");
    fs::create_dir(&other).unwrap();
    fs::copy(golden_weights(false), other.join("model.safetensors")).unwrap();
    assert_eq!(inspect(&other).unwrap().model, Some("π₀"));
    assert_eq!(inspect(dir.path()).unwrap(), summary);

    // Broken ones are shown as what they are.
    fs::remove_file(dir.path().join("2000/state.json")).unwrap();
    let summary = inspect(&dir.path().join("2000")).unwrap();
    assert!(
        summary.problem.as_ref().unwrap().contains("state.json cannot be found"),
        "{summary}"
    );
    assert!(summary.to_string().contains("is not complete"));
    assert!(inspect(dir.path()).unwrap().path.ends_with("1000"));
}

#[test]
fn anything_else_is_an_error() {
    let dir = TempDir::new().unwrap();
    let message = |path: &Path| inspect(path).unwrap_err().to_string();
    assert!(
        message(dir.path()).contains("holds no weights"),
        "{}",
        message(dir.path())
    );
    assert!(message(&dir.path().join("gone")).contains("cannot read"));
    assert!(message(&dir.path().join("12")).contains("cannot read"));
    fs::write(dir.path().join("model.safetensors"), "junk").unwrap();
    assert!(
        inspect(dir.path())
            .unwrap_err()
            .to_string()
            .contains("not a whole safetensors file")
    );
}
