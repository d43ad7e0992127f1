//! The files that real runs leave.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use acrlpd::monitor::wandb::{OfflineRun, Record};
use acrlpd::monitor::{RunFile, blocks, tensorboard};
use prost::Message;

/// Trains `debug` in small; returns what is on stderr.
fn train(root: &Path, flags: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.args([
        "train",
        "--config=debug",
        "--exp-name=a",
        "--batch-size=4",
        "--eval-interval=0",
    ]);
    command.args([
        "--set=acrlpd.diffusion_steps=2",
        "--set=acrlpd.num_action_samples=2",
        "--set=model.dims.depth=2",
    ]);
    command.arg(format!("--checkpoint-dir={}", root.display()));
    let output = command.args(flags).output().expect("it starts");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    stderr
}

/// Steps of all rows in TensorBoard's files.
fn shown(run: &Path) -> Vec<i64> {
    let files = tensorboard::files(run).expect("a folder");
    let events = files.iter().flat_map(|file| tensorboard::read(file).expect("events"));
    events
        .filter(|event| event.summary.is_some())
        .map(|event| event.step)
        .collect()
}

/// Records of all wandb files, oldest first.
fn offline(run: &Path) -> Vec<Vec<Record>> {
    let mut folders: Vec<PathBuf> = fs::read_dir(run.join("wandb"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    folders.sort();
    let id = RunFile::read(run).expect("run.json").id;
    let file = |folder: PathBuf| {
        let bytes = fs::read(folder.join(format!("run-{id}.wandb"))).expect("a file of the run's id");
        let records = blocks::records(&bytes).expect("whole");
        records
            .iter()
            .map(|r| Record::decode(&r[..]).expect("a record"))
            .collect()
    };
    folders.into_iter().map(file).collect()
}

#[test]
fn a_run_that_goes_on_leaves_whole_files() {
    let root = tempfile::tempdir().expect("a folder");
    let run = root.path().join("debug/a");
    train(root.path(), &["--max-steps=2", "--wandb-project=towels"]);
    train(root.path(), &["--max-steps=3", "--wandb-project=towels", "--resume"]);
    assert_eq!(shown(&run), [1, 2, 3]);
    let files = offline(&run);
    let steps = |records: &[Record]| -> Vec<i64> {
        let steps = records.iter().filter_map(|r| r.history.as_ref()?.step.as_ref());
        steps.map(|step| step.num).collect()
    };
    assert_eq!(
        files.iter().map(|f| steps(f)).collect::<Vec<_>>(),
        [vec![1, 2], vec![1, 2, 3]]
    );
    for records in &files {
        assert_eq!(records[1].run.as_ref().expect("a run").project, "towels");
        let exit = records.last().and_then(|r| r.exit.as_ref()).expect("an end");
        assert_eq!(exit.exit_code, 0);
    }
    // A run that starts anew is another one.
    let before = RunFile::read(&run).expect("run.json").id;
    train(root.path(), &["--max-steps=1", "--overwrite", "--no-wandb"]);
    assert_eq!(shown(&run), [1]);
    assert_ne!(RunFile::read(&run).expect("run.json").id, before);
}

#[test]
fn a_sink_that_cannot_be_written_is_warned_about_once() {
    let root = tempfile::tempdir().expect("a folder");
    let run = root.path().join("debug/a");
    fs::create_dir_all(&run).expect("a folder");
    fs::write(run.join("wandb"), "in the way").expect("written");
    let stderr = train(root.path(), &["--max-steps=2"]);
    assert_eq!(stderr.matches(OfflineRun::NAME).count(), 1, "{stderr}");
    assert_eq!(shown(&run), [1, 2]);
    let rows = fs::read_to_string(run.join("metrics.jsonl")).expect("rows");
    assert_eq!(rows.lines().count(), 2);
}
