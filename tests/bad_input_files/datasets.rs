//! Datasets: metadata and folders. Their tables are in `tables`.

use std::fs;
use std::path::Path;

use crate::room::{Row, check, dataset, replace, row};

const INSPECT: &str = "data inspect data";

fn info(dir: &Path, from: &str, to: &str) {
    replace(&dir.join("data/meta/info.json"), from, to);
}

fn episodes(dir: &Path, from: &str, to: &str) {
    replace(&dir.join("data/meta/episodes.jsonl"), from, to);
}

fn remove(dir: &Path, file: &str) {
    fs::remove_file(dir.join("data").join(file)).unwrap();
}

const ROWS: &[Row] = &[
    // Folders.
    row(
        "no folder",
        |dir| fs::remove_dir_all(dir.join("data")).unwrap(),
        INSPECT,
        3,
        &["no dataset `data`", "no such folder"],
    ),
    row(
        "a file",
        |dir| {
            fs::remove_dir_all(dir.join("data")).unwrap();
            fs::write(dir.join("data"), "x").unwrap();
        },
        "TRAIN",
        3,
        &["no dataset at", "info.json` does not exist"],
    ),
    row(
        "no info.json",
        |dir| remove(dir, "meta/info.json"),
        "TRAIN",
        3,
        &["no dataset at", "meta/info.json` does not exist"],
    ),
    row(
        "info.json is a folder",
        |dir| {
            remove(dir, "meta/info.json");
            fs::create_dir(dir.join("data/meta/info.json")).unwrap();
        },
        INSPECT,
        3,
        &["cannot read `data/meta/info.json`", "the description of a dataset"],
    ),
    #[cfg(unix)]
    row(
        "symlinks in a circle",
        |dir| {
            remove(dir, "meta/info.json");
            std::os::unix::fs::symlink("info.json", dir.join("data/meta/info.json")).unwrap();
        },
        INSPECT,
        3,
        &["`data/meta/info.json`"],
    ),
    // info.json.
    row(
        "info.json ends early",
        |dir| crate::room::cut(&dir.join("data/meta/info.json"), 0.5),
        INSPECT,
        3,
        &["`data/meta/info.json` line ", "EOF"],
    ),
    row(
        "info.json is no text",
        |dir| fs::write(dir.join("data/meta/info.json"), [0xff, 0xfe, 0]).unwrap(),
        INSPECT,
        3,
        &["cannot read `data/meta/info.json`", "UTF-8"],
    ),
    row(
        "version 4",
        |dir| info(dir, "v2.1", "v4.0"),
        "TRAIN",
        3,
        &["info.json`", "codebase_version `v4.0`", "v2.0, v2.1 and v3.0"],
    ),
    row(
        "files of version 2, announced as version 3",
        |dir| info(dir, "v2.1", "v3.0"),
        "TRAIN",
        3,
        &[
            "info.json`",
            "`data_path`",
            "`{episode_chunk}` is neither `chunk_index`",
        ],
    ),
    row(
        "no fps",
        |dir| info(dir, "\"fps\": 50,", ""),
        INSPECT,
        3,
        &["info.json` line", "missing field `fps`"],
    ),
    row(
        "fps 0",
        |dir| info(dir, "\"fps\": 50", "\"fps\": 0"),
        INSPECT,
        3,
        &["info.json`", "`fps` = `0`", "positive"],
    ),
    row(
        "path pattern",
        |dir| info(dir, "{episode_index:06d}", "all"),
        INSPECT,
        3,
        &["info.json`", "`data_path`", "share a file"],
    ),
    row(
        "a path out of the dataset",
        |dir| info(dir, "data/chunk-", "../data/data/chunk-"),
        INSPECT,
        3,
        &["info.json`", "`data_path`", "out of the dataset"],
    ),
    row(
        "video",
        |dir| info(dir, "\"dtype\": \"image\"", "\"dtype\": \"video\""),
        INSPECT,
        3,
        match cfg!(feature = "video") {
            true => &["info.json`", "`observation.images.cam_high`", "no `video_path`"],
            false => &["info.json`", "`observation.images.cam_high` as video", "without FFmpeg"],
        },
    ),
    row(
        "a camera is missing",
        |dir| info(dir, "images.cam_high", "images.cam_low"),
        "TRAIN",
        3,
        &[
            "no camera `observation.images.cam_high`",
            "`observation.images.cam_low`",
        ],
    ),
    row(
        "no state",
        |dir| info(dir, "\"observation.state\"", "\"observation.stat\""),
        "TRAIN",
        3,
        &["`observation.stat`"],
    ),
    row(
        "no labels of success",
        |dir| {
            for key in ["\"next.success\"", "\"reward\"", "\"next.reward\""] {
                info(dir, key, "\"timestamp\"");
            }
        },
        "TRAIN",
        3,
        &["which episodes succeeded", "data.default_success"],
    ),
    row(
        "more frames than there are",
        |dir| info(dir, "\"total_frames\": 236", "\"total_frames\": 300"),
        INSPECT,
        3,
        &["info.json` announces 300 frames", "episodes.jsonl` holds 236"],
    ),
    row(
        "no episodes",
        |dir| {
            info(dir, "\"total_frames\": 236", "\"total_frames\": 0");
            info(dir, "\"total_episodes\": 6", "\"total_episodes\": 0");
            fs::write(dir.join("data/meta/episodes.jsonl"), "").unwrap();
        },
        "TRAIN",
        3,
        &["/data` has no frames"],
    ),
    // The lists.
    row(
        "no episodes.jsonl",
        |dir| remove(dir, "meta/episodes.jsonl"),
        INSPECT,
        3,
        &["cannot read `data/meta/episodes.jsonl`", "the list of episodes"],
    ),
    row(
        "fewer episodes than announced",
        |dir| {
            episodes(
                dir,
                "{\"episode_index\": 5, \"tasks\": [\"pick_up the Red cube\\nwith the left arm\"], \"length\": 45}\n",
                "",
            )
        },
        INSPECT,
        3,
        &["info.json` announces 6 episodes", "episodes.jsonl` holds 5"],
    ),
    row(
        "a gap between episodes",
        |dir| episodes(dir, "\"episode_index\": 3", "\"episode_index\": 4"),
        INSPECT,
        3,
        &["episodes.jsonl` line 4", "episode 4 where episode 3"],
    ),
    row(
        "a length that is text",
        |dir| episodes(dir, "\"length\": 50", "\"length\": \"50\""),
        INSPECT,
        3,
        &["episodes.jsonl` line 3", "invalid type"],
    ),
    row(
        "no tasks.jsonl",
        |dir| remove(dir, "meta/tasks.jsonl"),
        INSPECT,
        3,
        &["cannot read `data/meta/tasks.jsonl`", "the list of tasks"],
    ),
    row(
        "a task is missing",
        |dir| {
            replace(
                &dir.join("data/meta/tasks.jsonl"),
                "\"task_index\": 1",
                "\"task_index\": 2",
            )
        },
        "TRAIN",
        3,
        &["episode_000005.parquet` row 0", "task_index 1", "meta/tasks.jsonl"],
    ),
    // What does not fit the configuration.
    row(
        "episodes shorter than a chunk",
        |_| (),
        "TRAIN --set=model.action_horizon=60 --set=acrlpd.chunk_length=60",
        3,
        &["/data` can start a chunk of 60 steps", "50 frames"],
    ),
    row(
        "statistics to nowhere",
        |_| (),
        "data norm-stats --config=debug --data=data --out=no/such/stats.json",
        5,
        &["cannot write `no/such/stats.json"],
    ),
];

#[test]
fn broken_metadata() {
    check(dataset, ROWS);
}

/// Only where permissions mean something: the superuser reads everything.
#[cfg(unix)]
#[test]
fn files_without_permission() {
    use std::os::unix::fs::PermissionsExt;
    fn close(dir: &Path) {
        let path = dir.join("data/meta/info.json");
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    let probe = tempfile::tempdir().unwrap();
    dataset(probe.path());
    close(probe.path());
    if fs::read(probe.path().join("data/meta/info.json")).is_ok() {
        eprintln!("skipped: this user can read every file");
        return;
    }
    let words = &["cannot read `data/meta/info.json`", "ermission denied"];
    check(dataset, &[row("no permission", close, INSPECT, 3, words)]);
}
