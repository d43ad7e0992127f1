//! The lists of LeRobot v3.0, broken in one way each: what the message must say.

mod data_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch};
use data_support::broken::{INFO, LIST, check_all, column, copied, edit, exercise, read, replace, write};
use data_support::synthetic::set;

/// Keeps these rows of the list of episodes.
fn rows(root: &Path, kept: &[usize]) {
    let batch = read(&root.join(LIST));
    let kept: Vec<RecordBatch> = kept.iter().map(|row| batch.slice(*row, 1)).collect();
    write(&root.join(LIST), &kept);
}

#[test]
fn whole_copies_are_accepted() {
    exercise(copied("aloha_v30_image").path()).unwrap();
    #[cfg(feature = "video")]
    exercise(copied("aloha_v21_h264").path()).unwrap();
    // The order of rows means nothing.
    let dir = copied("aloha_v30_image");
    rows(dir.path(), &[3, 0, 5, 1, 4, 2]);
    exercise(dir.path()).unwrap();
}

#[test]
fn lists_of_episodes() {
    check_all(
        "aloha_v30_image",
        &[
            (
                "a gap",
                &|root| rows(root, &[0, 1, 3, 4, 5]),
                &[
                    "file-000.parquet` row 2 cannot be used",
                    "episode 3 where episode 2 should be",
                ],
            ),
            (
                "an episode twice",
                &|root| rows(root, &[0, 1, 1, 2, 3, 4, 5]),
                &["row 2 cannot be used", "episode 1 where episode 2 should be"],
            ),
            (
                "an end that is missing",
                &|root| rows(root, &[0, 1, 2, 3, 4]),
                &["info.json` announces 6 episodes", "meta/episodes` holds 5"],
            ),
            (
                "an overlap",
                &|root| column(root, "dataset_from_index", [0, 30, 70, 121, 158, 191]),
                &[
                    "row 2",
                    "`dataset_from_index` is 70, but the episodes before it end at 71",
                ],
            ),
            (
                "frames between episodes",
                &|root| column(root, "dataset_from_index", [0, 30, 71, 122, 158, 191]),
                &["row 3", "is 122, but the episodes before it end at 121"],
            ),
            (
                "another length",
                &|root| column(root, "length", [30, 41, 50, 36, 33, 45]),
                &["row 3", "frames 121 to 158, but its `length` is 36"],
            ),
            (
                "a length beyond numbers",
                &|root| column(root, "length", [30, 41, 50, 37, 33, i64::MAX]),
                &["row 5", "frames 191 to 236"],
            ),
            (
                "a negative file",
                &|root| column(root, "data/file_index", [0, 0, 1, 1, -1, 2]),
                &["row 4", "`data/file_index` is -1"],
            ),
            (
                "files out of order",
                &|root| column(root, "data/file_index", [0, 0, 1, 0, 2, 2]),
                &[
                    "row 3",
                    "file 0 of chunk 0, but the episode before it lies in file 1 of chunk 0",
                ],
            ),
            (
                "a file out of range",
                &|root| column(root, "data/file_index", [0, 0, 1, 1, 7, 7]),
                &[
                    "cannot read",
                    "data/chunk-000/file-007.parquet",
                    "the table of an episode",
                ],
            ),
            (
                "an episode too few in a file",
                &|root| column(root, "data/file_index", [0, 0, 0, 1, 2, 2]),
                &[
                    "file-000.parquet` holds 71 rows",
                    "its 3 episodes are announced with 121 frames",
                ],
            ),
            (
                "frames of another episode",
                &|root| {
                    column(root, "length", [31, 40, 50, 37, 33, 45]);
                    column(root, "dataset_to_index", [31, 71, 121, 158, 191, 236]);
                    column(root, "dataset_from_index", [0, 31, 71, 121, 158, 191]);
                },
                &["file-000.parquet` row 30", "`frame_index` says 0, but 30"],
            ),
            (
                "no lengths",
                &|root| edit(&root.join(LIST), |table| table.retain(|(key, _)| key != "length")),
                &["file-000.parquet` has no column `length`"],
            ),
            (
                "fractions",
                &|root| {
                    let half: ArrayRef = Arc::new(Float64Array::from(vec![0.5; 6]));
                    edit(&root.join(LIST), |table| set(table, "length", half.clone()));
                },
                &["file-000.parquet`", "`length` as Float64, but int64"],
            ),
            (
                "no list",
                &|root| fs::remove_dir_all(root.join("meta/episodes")).unwrap(),
                &["cannot read", "meta/episodes`", "the list of episodes"],
            ),
            (
                "an empty list",
                &|root| fs::remove_file(root.join(LIST)).unwrap(),
                &["announces 6 episodes", "meta/episodes` holds 0"],
            ),
            (
                "a list that is none",
                &|root| fs::write(root.join(LIST), "PAR1, but not at all").unwrap(),
                &["file-000.parquet` cannot be read as parquet"],
            ),
            (
                "no tasks",
                &|root| fs::remove_file(root.join("meta/tasks.parquet")).unwrap(),
                &["cannot read", "meta/tasks.parquet", "the list of tasks"],
            ),
            (
                "a task too few",
                &|root| {
                    edit(&root.join("meta/tasks.parquet"), |table| {
                        table.iter_mut().for_each(|(_, array)| *array = array.slice(0, 1));
                    })
                },
                &[
                    "file-002.parquet` row 33",
                    "task_index 1 is not in `meta/tasks.parquet`",
                ],
            ),
            (
                "tasks without text",
                &|root| {
                    edit(&root.join("meta/tasks.parquet"), |table| {
                        table.retain(|(key, _)| key == "task_index");
                    })
                },
                &["tasks.parquet` has no column `task`"],
            ),
            (
                "a path out of the dataset",
                &|root| replace(root, INFO, "data/chunk-", "../data/chunk-"),
                &["`data_path`", "out of the dataset"],
            ),
        ],
    );
}

#[cfg(not(feature = "video"))]
#[test]
fn video_needs_its_feature() {
    for name in ["aloha_v21_av1", "aloha_v30_hevc"] {
        let parts = [
            "info.json`",
            "`observation.images.cam_high` as video",
            "built without FFmpeg",
            "feature `video`",
        ];
        data_support::broken::check(name, &data_support::data(name), &parts);
    }
}
