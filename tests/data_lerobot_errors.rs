//! The lists of v3.0 and videos, broken in one way each: what the message must say.

mod data_support;

use std::fs::{self, File};
use std::path::Path;
#[cfg(feature = "video")]
use std::path::PathBuf;
use std::sync::Arc;

use acrlpd::data::{DataError, open};
use arrow_array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch};
use data_support::{data, synthetic};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use synthetic::{Table, set};
use tempfile::TempDir;

const LIST: &str = "meta/episodes/chunk-000/file-000.parquet";
const INFO: &str = "meta/info.json";

/// A copy of a dataset to break.
fn copied(name: &str) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let to = to.join(entry.file_name());
            match entry.file_type().unwrap().is_dir() {
                true => copy(&entry.path(), &to),
                false => drop(fs::copy(entry.path(), to).unwrap()),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&data(name), dir.path());
    dir
}

/// The whole of a table with few rows.
fn read(path: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let mut batches = reader.with_batch_size(1000).build().unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert!(batches.next().is_none());
    batch
}

fn write(path: &Path, batches: &[RecordBatch]) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batches[0].schema(), None).unwrap();
    batches.iter().for_each(|batch| writer.write(batch).unwrap());
    writer.close().unwrap();
}

/// Rewrites a table.
fn edit(path: &Path, change: impl Fn(&mut Table)) {
    let batch = read(path);
    let schema = batch.schema();
    let names = schema.fields().iter().map(|field| field.name().clone());
    let mut table: Table = names.zip(batch.columns().iter().cloned()).collect();
    change(&mut table);
    let table = table.into_iter().map(|(k, a)| (k, a, true));
    write(path, &[RecordBatch::try_from_iter_with_nullable(table).unwrap()]);
}

fn replace(root: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(root.join(file)).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(root.join(file), text.replacen(from, to, 1)).unwrap();
}

/// Opens the dataset and decodes every picture, in one go for each camera.
fn exercise(root: &Path) -> Result<(), DataError> {
    let dataset = open(root)?;
    let frames: Vec<usize> = (0..dataset.info().total_frames).collect();
    let mut cameras = dataset.info().cameras();
    cameras.try_for_each(|camera| dataset.images(camera, &frames).map(|_| ()))
}

/// One sentence that names every part.
fn check(what: &str, root: &Path, parts: &[&str]) {
    let message = exercise(root).expect_err(what).to_string();
    for part in parts {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "{what}: more than one line: {message}");
    assert!(message.contains("; "), "{what}: no remedy: {message}");
}

type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a [&'a str]);

fn check_all(name: &str, damages: &[Damage]) {
    for (what, damage, parts) in damages {
        let dir = copied(name);
        damage(dir.path());
        check(what, dir.path(), parts);
    }
}

fn integers(values: [i64; 6]) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

/// Replaces a column of the list of episodes.
fn column(root: &Path, key: &str, values: [i64; 6]) {
    edit(&root.join(LIST), |table| set(table, key, integers(values)));
}

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
        check(name, &data(name), &parts);
    }
}

#[cfg(feature = "video")]
const HIGH: &str = "observation.images.cam_high";

/// The video of an episode.
#[cfg(feature = "video")]
fn film(root: &Path, episode: usize) -> PathBuf {
    root.join(format!("videos/chunk-000/{HIGH}/episode_{episode:06}.mp4"))
}

#[cfg(feature = "video")]
fn change(path: &Path, change: impl Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[cfg(feature = "video")]
fn find(bytes: &[u8], name: &[u8; 4]) -> usize {
    bytes.windows(4).position(|w| w == name).unwrap()
}

#[cfg(feature = "video")]
#[test]
fn videos() {
    check_all(
        "aloha_v21_h264",
        &[
            (
                "a missing video",
                &|root| fs::remove_file(film(root, 3)).unwrap(),
                &["cannot read", "episode_000003.mp4", "the video of a camera"],
            ),
            (
                "half a video",
                &|root| change(&film(root, 3), |bytes| bytes.truncate(bytes.len() / 2)),
                &["episode_000003.mp4`: the video of `observation.images.cam_high` cannot be opened"],
            ),
            (
                "an empty video",
                &|root| fs::write(film(root, 3), "").unwrap(),
                &["episode_000003.mp4`", "cannot be opened"],
            ),
            (
                "no video",
                &|root| fs::write(film(root, 3), "a text about pictures").unwrap(),
                &["episode_000003.mp4`", "cannot be opened"],
            ),
            (
                "another frame rate",
                &|root| {
                    change(&film(root, 2), |bytes| {
                        // Ticks of a second, behind version, flags and two dates.
                        let at = find(bytes, b"mdhd") + 16;
                        assert_eq!(bytes[at..at + 4], 12800u32.to_be_bytes());
                        bytes[at..at + 4].copy_from_slice(&6400u32.to_be_bytes());
                    })
                },
                &[
                    "episode_000002.mp4`: the video of `observation.images.cam_high` has no frame at 0.0200 s",
                    "only at 0.0000 s and 0.0400 s",
                    "frame rate",
                ],
            ),
            (
                "a video that is too short",
                &|root| _ = fs::copy(film(root, 0), film(root, 2)).unwrap(),
                &[
                    "episode_000002.mp4`",
                    "has no frame at 0.6000 s, its last is at 0.5800 s",
                ],
            ),
            (
                "broken data",
                &|root| {
                    change(&film(root, 1), |bytes| {
                        let begin = find(bytes, b"mdat") + 4;
                        let size = u32::from_be_bytes(bytes[begin - 8..begin - 4].try_into().unwrap()) as usize;
                        bytes[begin + size / 2..begin + size - 8].fill(0xff);
                    })
                },
                &["episode_000001.mp4`", "cannot be decoded at"],
            ),
            (
                "another size",
                &|root| {
                    let text = fs::read_to_string(root.join(INFO)).unwrap();
                    let lines: String = text.split_whitespace().collect();
                    let smaller = lines.replace("\"shape\":[3,72,96]", "\"shape\":[3,36,48]");
                    assert_ne!(lines, smaller);
                    fs::write(root.join(INFO), smaller).unwrap();
                },
                &["episode_000000.mp4`", "shows 72x96 pixels", "announces 36x48"],
            ),
            (
                "a path out of the dataset",
                &|root| replace(root, INFO, "\"videos/chunk-", "\"../videos/chunk-"),
                &["info.json`", "`video_path`", "out of the dataset"],
            ),
            (
                "a camera out of the dataset",
                &|root| replace(root, INFO, HIGH, "../../../cam"),
                &["info.json`", "`../../../cam`", "out of the dataset"],
            ),
            (
                "one file for all cameras",
                &|root| replace(root, INFO, "{video_key}/", ""),
                &["info.json`", "`video_path`", "all cameras would share a file"],
            ),
            (
                "no path",
                &|root| replace(root, INFO, "\"video_path\"", "\"film_path\""),
                &[
                    "info.json`",
                    "`observation.images.cam_high`",
                    "there is no `video_path`",
                ],
            ),
            (
                "a path with a zero byte",
                &|root| replace(root, INFO, "\"videos/chunk-", "\"videos\\u0000/chunk-"),
                &["cannot read", "the video of a camera"],
            ),
            (
                "no times",
                &|root| replace(root, INFO, "\"timestamp\"", "\"reward2\""),
                &["info.json`", "`observation.images.cam_high`", "no feature `timestamp`"],
            ),
        ],
    );
}

#[cfg(feature = "video")]
#[test]
fn clips_of_a_video() {
    let times = |root: &Path, values: [f64; 6]| {
        let times: ArrayRef = Arc::new(Float64Array::from_iter_values(values));
        let key = format!("videos/{HIGH}/from_timestamp");
        edit(&root.join(LIST), |table| set(table, &key, times.clone()));
    };
    check_all(
        "aloha_v30_av1",
        &[
            (
                "a clip beyond the end",
                &|root| times(root, [0.0, 0.6, 100.0, 0.0, 0.74, 1.4]),
                &[
                    "cam_high/chunk-000/file-000.mp4`",
                    "has no frame at 100.0000 s, its last is at 2.4000 s",
                ],
            ),
            (
                "a clip between frames",
                &|root| times(root, [0.0, 0.61, 1.42, 0.0, 0.74, 1.4]),
                &[
                    "file-000.mp4`",
                    "has no frame at 0.6100 s, only at 0.6000 s and 0.6200 s",
                ],
            ),
            (
                "NaN",
                &|root| times(root, [0.0, 0.6, 1.42, f64::NAN, 0.74, 1.4]),
                &["row 3", "from_timestamp` is NaN"],
            ),
            (
                "a time before the video",
                &|root| times(root, [0.0, -0.6, 1.42, 0.0, 0.74, 1.4]),
                &["row 1", "from_timestamp` is -0.6"],
            ),
            (
                "a file out of range",
                &|root| column(root, &format!("videos/{HIGH}/file_index"), [0, 0, 0, 1, 1, 9]),
                &["cannot read", "file-009.mp4", "the video of a camera"],
            ),
            (
                "a camera nobody lists",
                &|root| replace(root, INFO, HIGH, "observation.images.cam_low"),
                &["file-000.parquet` has no column `videos/observation.images.cam_low/chunk_index`"],
            ),
        ],
    );
}

/// Whatever is in a file: an answer, soon, and none of another frame.
#[cfg(feature = "video")]
#[test]
fn changed_bytes_are_errors_or_pictures() {
    for name in ["aloha_v21_h264", "aloha_v21_av1"] {
        let dir = copied(name);
        let path = film(dir.path(), 0);
        let whole = fs::read(&path).unwrap();
        for case in 0..150usize {
            let mut bytes = whole.clone();
            for i in 0..1 + case % 4 {
                let at = (case * 7919 + i * 104_729) % bytes.len();
                bytes[at] = bytes[at].wrapping_add(1 + (case * 31 + i) as u8 % 255);
            }
            fs::write(&path, bytes).unwrap();
            let dataset = open(dir.path()).unwrap();
            if let Err(error) = dataset.images(HIGH, &[3, 13, 29]) {
                let message = error.to_string();
                assert!(
                    message.contains("episode_000000.mp4") && !message.contains('\n'),
                    "{message}"
                );
            }
        }
    }
}
