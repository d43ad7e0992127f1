//! Datasets: the parquet file of an episode, and the pictures in it.

#[path = "../data_support/synthetic.rs"]
#[allow(dead_code)] // Other tests use the rest.
mod synthetic;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use synthetic::{Table, floats, images, list, set};

use crate::room::{Row, check, cut, dataset, replace, row};

const INSPECT: &str = "data inspect data";
/// Frames of episode 2.
const FRAMES: usize = 50;

fn path(dir: &Path, episode: usize) -> PathBuf {
    dir.join(format!("data/data/chunk-000/episode_{episode:06}.parquet"))
}

/// Changes the columns of an episode.
fn edit(dir: &Path, episode: usize, change: impl Fn(&mut Table)) {
    let path = path(dir, episode);
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    let batch = builder.build().unwrap().next().unwrap().unwrap();
    let fields = batch.schema();
    let names = fields.fields().iter().map(|field| field.name().clone());
    let mut table: Table = names.zip(batch.columns().iter().cloned()).collect();
    change(&mut table);
    let batch = RecordBatch::try_from_iter_with_nullable(table.into_iter().map(|(k, a)| (k, a, true))).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// Replaces a column of episode 2.
fn column(dir: &Path, key: &str, array: ArrayRef) {
    assert_eq!(array.len(), FRAMES);
    edit(dir, 2, |table| set(table, key, array.clone()));
}

/// Vectors of 14 numbers, all 0.5 but one in row 7.
fn vectors(odd: f32) -> ArrayRef {
    list((0..FRAMES).map(|row| (0..14).map(|i| if (row, i) == (7, 3) { odd } else { 0.5 }).collect()))
}

fn numbers(of: impl Fn(i64) -> i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values((0..FRAMES as i64).map(of)))
}

/// Every picture that a camera took in episode 0.
fn pictures(dir: &Path, bytes: &[u8]) {
    edit(dir, 0, |table| {
        let cells = (0..30).map(|_| (Some(bytes.to_vec()), None));
        set(table, "observation.images.cam_high", images(cells));
    });
}

const ROWS: &[Row] = &[
    // Files.
    row(
        "a missing episode",
        |dir| fs::remove_file(path(dir, 3)).unwrap(),
        INSPECT,
        3,
        &[
            "cannot read `data/data/chunk-000/episode_000003.parquet`",
            "the table of an episode",
        ],
    ),
    row(
        "half an episode",
        |dir| cut(&path(dir, 3), 0.5),
        "TRAIN",
        3,
        &["episode_000003.parquet` cannot be read as parquet"],
    ),
    row(
        "an empty file",
        |dir| fs::write(path(dir, 3), "").unwrap(),
        INSPECT,
        3,
        &["episode_000003.parquet` cannot be read as parquet"],
    ),
    row(
        "no parquet",
        |dir| fs::write(path(dir, 0), "PAR1 but not PAR1").unwrap(),
        INSPECT,
        3,
        &["episode_000000.parquet` cannot be read as parquet"],
    ),
    row(
        "a footer that makes the parser panic",
        |dir| {
            let mut bytes = fs::read(path(dir, 0)).unwrap();
            // The length of a column in bytes, the first of its digits: it becomes negative.
            let at = bytes.len() - 7871;
            assert_eq!(bytes[at], 164);
            bytes[at] = 175;
            fs::write(path(dir, 0), bytes).unwrap();
        },
        INSPECT,
        3,
        &[
            "episode_000000.parquet` cannot be read as parquet: the parser gave up",
            "negative",
        ],
    ),
    row(
        "another length",
        |dir| {
            replace(&dir.join("data/meta/info.json"), "236", "237");
            replace(
                &dir.join("data/meta/episodes.jsonl"),
                "\"length\": 37",
                "\"length\": 38",
            );
        },
        INSPECT,
        3,
        &["episode_000003.parquet` holds 37 rows", "38 frames"],
    ),
    // Columns.
    row(
        "a missing column",
        |dir| edit(dir, 2, |table| table.retain(|(key, _)| key != "action")),
        INSPECT,
        3,
        &["episode_000002.parquet` has no column `action`"],
    ),
    row(
        "text for numbers",
        |dir| column(dir, "action", Arc::new(StringArray::from(vec!["x"; FRAMES]))),
        "TRAIN",
        3,
        &["episode_000002.parquet`", "`action` as Utf8", "a list of 14 numbers"],
    ),
    row(
        "too narrow",
        |dir| column(dir, "observation.state", list((0..FRAMES).map(|_| vec![0.5; 13]))),
        "TRAIN",
        3,
        &[
            "episode_000002.parquet` row 0",
            "`observation.state` is 13 wide",
            "announces 14",
        ],
    ),
    row(
        "NaN in a state",
        |dir| column(dir, "observation.state", vectors(f32::NAN)),
        "TRAIN",
        3,
        &["episode_000002.parquet` row 7", "`observation.state`[3] is NaN"],
    ),
    row(
        "infinite action",
        |dir| column(dir, "action", vectors(f32::NEG_INFINITY)),
        "TRAIN",
        3,
        &["episode_000002.parquet` row 7", "`action`[3] is -inf"],
    ),
    row(
        "NaN in an action, for statistics",
        |dir| column(dir, "action", vectors(f32::NAN)),
        "data norm-stats --config=debug --data=data --out=stats.json",
        3,
        &["episode_000002.parquet` row 7", "`action`[3] is NaN"],
    ),
    row(
        "NaN for a reward",
        |dir| {
            column(
                dir,
                "reward",
                floats((0..FRAMES).map(|i| if i == 9 { f32::NAN } else { 0.0 })),
            )
        },
        "TRAIN --set=qchunking.reward_mode=dataset",
        3,
        &["episode_000002.parquet` row 9", "`reward`[0] is NaN"],
    ),
    row(
        "a gap between frames",
        |dir| column(dir, "frame_index", numbers(|i| i + i / 20)),
        INSPECT,
        3,
        &["episode_000002.parquet` row 20", "`frame_index` says 21, but 20"],
    ),
    row(
        "frames of another episode",
        |dir| column(dir, "episode_index", numbers(|_| 1)),
        INSPECT,
        3,
        &["episode_000002.parquet` row 0", "`episode_index` says 1, but 2"],
    ),
    row(
        "fractions for an index",
        |dir| column(dir, "index", floats((0..FRAMES).map(|i| i as f32))),
        INSPECT,
        3,
        &["episode_000002.parquet`", "`index` as Float32", "int64"],
    ),
    row(
        "null",
        |dir| {
            column(
                dir,
                "task_index",
                Arc::new(Int64Array::from_iter((0..FRAMES).map(|i| (i != 4).then_some(0)))),
            )
        },
        INSPECT,
        3,
        &["episode_000002.parquet` row 4", "`task_index` is null"],
    ),
    // Pictures.
    row(
        "no picture",
        |dir| pictures(dir, b"GIF89a"),
        INSPECT,
        3,
        &[
            "episode_000000.parquet` row 0",
            "`observation.images.cam_high`",
            "not a valid PNG",
        ],
    ),
    row(
        "half a picture",
        |dir| {
            let whole = synthetic::png_of(96, 72, png::ColorType::Rgb, &[7; 96 * 72 * 3]);
            pictures(dir, &whole[..60]);
        },
        INSPECT,
        3,
        &["episode_000000.parquet` row 0", "end too early"],
    ),
    row(
        "a picture of another size",
        |dir| pictures(dir, &synthetic::png(&synthetic::pixels(0, 0))),
        INSPECT,
        3,
        &["episode_000000.parquet` row 0", "cam_high` is 6x8x3", "announces"],
    ),
    row(
        "a picture of ten gigabytes",
        |dir| pictures(dir, &huge()),
        INSPECT,
        3,
        &[
            "episode_000000.parquet` row 0",
            "cam_high` is 60000x60000x3",
            "announces",
        ],
    ),
    row(
        "a picture somewhere else",
        |dir| {
            edit(dir, 0, |table| {
                let cells = (0..30).map(|_| (None, Some("../../tok.model".to_owned())));
                set(table, "observation.images.cam_high", images(cells));
            });
        },
        INSPECT,
        3,
        &["episode_000000.parquet` row 0", "../../tok.model", "out of the dataset"],
    ),
];

/// The beginning of a picture that says it is larger than memory.
fn huge() -> Vec<u8> {
    let mut png = synthetic::png(&synthetic::pixels(0, 0));
    for at in [16, 20] {
        png[at..at + 4].copy_from_slice(&60_000u32.to_be_bytes());
    }
    let checksum = crc32fast::hash(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    png
}

#[test]
fn broken_episodes() {
    check(dataset, ROWS);
}
