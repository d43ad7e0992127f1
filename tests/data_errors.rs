//! Datasets, norm stats and tokenizers broken in one way each: what the message must say.

mod data_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use acrlpd::data::inspect::Summary;
use acrlpd::data::transforms::Kind;
use acrlpd::data::{BatchBuilder, DataError, DataSpec, NormStats, Parts, PromptSource, PromptTokenizer, open};
use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, BinaryArray, Int64Array, ListArray, StringArray, StructArray};
use arrow_schema::{DataType, Field};
use data_support::synthetic::{self, ACTION, HEIGHT, Recipe, STATE, WIDTH, set};
use data_support::{aloha_spec, asset, data, identity_stats, tokenizer};
use proptest::prelude::*;
use serde_json::json;

const INFO: &str = "meta/info.json";
const EPISODES: &str = "meta/episodes.jsonl";
const TASKS: &str = "meta/tasks.jsonl";
const TABLE: &str = "data/chunk-000/episode_000001.parquet";

/// Opens the dataset, decodes the first picture of each camera, and builds a batch of its first chunk.
fn exercise(root: &Path) -> Result<(), DataError> {
    let dataset = open(root)?;
    Summary::of(dataset.as_ref())?;
    let builder = BatchBuilder::new(dataset, toy_spec(), &identity_stats(STATE, ACTION), tokenizer())?;
    builder.build(&[0]).map(|_| ())
}

fn toy_spec() -> DataSpec {
    let mut spec = aloha_spec();
    spec.cameras.truncate(2);
    spec.cameras[0].dataset = Some("cam_a".to_owned());
    spec.cameras[1].dataset = Some("cam_b".to_owned());
    spec.state_key = Parts::feature("state");
    spec.action_dim = 4;
    spec.real_action_dim = ACTION;
    spec.horizon = 3;
    spec.image_size = 8;
    spec
}

fn message(root: &Path) -> String {
    exercise(root).expect_err("the dataset should be refused").to_string()
}

/// One sentence that names every part.
fn check(what: &str, message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{what}: `{part}` is not in: {message}");
    }
    assert!(!message.contains('\n'), "{what}: more than one line: {message}");
    assert!(message.contains("; "), "{what}: no remedy: {message}");
}

fn written(recipe: &Recipe) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    recipe.write(dir.path());
    dir
}

fn replace(root: &Path, file: &str, from: &str, to: &str) {
    let text = fs::read_to_string(root.join(file)).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(root.join(file), text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_whole_dataset_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    Recipe::default().write(dir.path());
    exercise(dir.path()).unwrap();
}

/// file | text in it | replacement | what the message must contain, in parts.
const REPLACED: &str = r#"
meta/info.json | "fps": 10, | "fps": | info.json` line 8 | expected `,` or `}`
meta/info.json | "fps": 10, |  | info.json` line | missing field `fps`
meta/info.json | "fps": 10, | "fps": 0, | `fps` = `0` | positive
meta/info.json | "fps": 10, | "fps": "10", | info.json` line 7 | invalid type: string
meta/info.json | "chunks_size": 1000 | "chunks_size": 0 | `chunks_size` = `0`
meta/info.json | {episode_index:06d} | {video_key} | `data_path` | `{video_key}` is neither
meta/info.json | {episode_index:06d} | all | `data_path` | all episodes would share a file
meta/info.json | v2.1 | v1.6 | codebase_version `v1.6` | only v2.0, v2.1 and v3.0 | convert
meta/info.json | "total_episodes": 3 | "total_episodes": 4 | announces 4 episodes | episodes.jsonl` holds 3
meta/info.json | "total_frames": 16 | "total_frames": 15 | announces 15 frames | holds 16
meta/tasks.jsonl | "stack" | " " | frame 0 has an empty task | default prompt
meta/tasks.jsonl | "task_index": 0 | "task_index": 3 | episode_000000.parquet` row 0 | task_index 0 is not in
meta/tasks.jsonl | "task": | "text": | tasks.jsonl` line 1 | missing field `task`
meta/episodes.jsonl | {"episode_index":1 | {episode_index:1 | episodes.jsonl` line 2 | key must be a string
meta/episodes.jsonl | "length":7 | "length":"7" | episodes.jsonl` line 2 | invalid type: string
meta/episodes.jsonl | "episode_index":1 | "episode_index":5 | line 2 describes episode 5 where episode 1 | without gaps
meta/episodes.jsonl | "episode_index":2 | "episode_index":1 | line 3 describes episode 1 where episode 2
"#;

#[test]
fn broken_metadata() {
    for line in REPLACED.lines().filter(|l| !l.is_empty()) {
        let [file, from, to, parts @ ..] = &line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let dir = written(&Recipe::default());
        replace(dir.path(), file, from, to);
        check(line, &message(dir.path()), parts);
    }
}

#[test]
fn lengths_that_do_not_match() {
    for (length, total) in [("8", "17"), ("18446744073709551615", "18446744073709551615")] {
        let dir = written(&Recipe::default());
        replace(dir.path(), EPISODES, "\"length\":7", &format!("\"length\":{length}"));
        replace(
            dir.path(),
            INFO,
            "\"total_frames\": 16",
            &format!("\"total_frames\": {total}"),
        );
        let announced = format!("announced with {length} frames");
        check(
            length,
            &message(dir.path()),
            &["episode_000001.parquet` holds 7 rows", &announced],
        );
    }
    let dir = written(&Recipe::default());
    fs::write(dir.path().join(EPISODES), "\n").unwrap();
    replace(dir.path(), INFO, "\"total_frames\": 16", "\"total_frames\": 0");
    replace(dir.path(), INFO, "\"total_episodes\": 3", "\"total_episodes\": 0");
    check("empty", &message(dir.path()), &["has no frames"]);
}

#[test]
fn missing_and_foreign_files() {
    let dir = tempfile::tempdir().unwrap();
    check(
        "folder",
        &message(&dir.path().join("none")),
        &["no dataset at", "none` does not exist", "meta/info.json"],
    );
    check(
        "info",
        &message(dir.path()),
        &["no dataset at", "meta/info.json` does not exist"],
    );
    for (file, parts) in [
        (EPISODES, ["episodes.jsonl", "the list of episodes"]),
        (TASKS, ["tasks.jsonl", "the list of tasks"]),
        (TABLE, ["episode_000001.parquet", "the table of an episode"]),
    ] {
        let dir = written(&Recipe::default());
        fs::remove_file(dir.path().join(file)).unwrap();
        check(
            file,
            &message(dir.path()),
            &["cannot read", parts[0], parts[1], "check the path"],
        );
    }
    let unreadable = [
        "episode_000001.parquet` cannot be read as parquet",
        "export this file again",
    ];
    let dir = written(&Recipe::default());
    let whole = fs::read(dir.path().join(TABLE)).unwrap();
    for bytes in [&whole[..whole.len() / 2], &whole[..3], b"PAR2, but not at all"] {
        fs::write(dir.path().join(TABLE), bytes).unwrap();
        check("table", &message(dir.path()), &unreadable);
    }
    fs::write(dir.path().join(INFO), [0xff, 0xfe]).unwrap();
    check(
        "no text",
        &message(dir.path()),
        &["cannot read", "meta/info.json", "UTF-8"],
    );
    fs::remove_file(dir.path().join(INFO)).unwrap();
    fs::create_dir(dir.path().join(INFO)).unwrap();
    check(
        "a folder",
        &message(dir.path()),
        &["cannot read", "meta/info.json", "the description of a dataset"],
    );
}

#[test]
fn newer_and_filmed_datasets() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("meta")).unwrap();
    // A later version may lack any field; the version must be the complaint.
    fs::write(dir.path().join(INFO), "{\"codebase_version\": \"v4.0\"}").unwrap();
    check(
        "v4.0",
        &message(dir.path()),
        &["codebase_version `v4.0`", "only v2.0, v2.1 and v3.0", "convert"],
    );
    for file in [INFO, EPISODES, TASKS] {
        let text = fs::read_to_string(data("aloha_v20_image").join(file)).unwrap();
        fs::write(dir.path().join(file), text.replace("\"image\"", "\"video\"")).unwrap();
    }
    let refused = match cfg!(feature = "video") {
        true => ["`observation.images.cam_high`", "there is no `video_path`"],
        false => ["`observation.images.cam_high` as video", "built without FFmpeg"],
    };
    check("video", &message(dir.path()), &refused);
}

/// feature | its entry in info.json, or nothing | what the message must contain, in parts.
const FEATURES: &str = r#"
cam_a | {"dtype": "video", "shape": [3, 6, 8], "names": null} | feature `cam_a` | `names`
cam_a | {"dtype": "image", "shape": [3, 6, 8], "names": null} | feature `cam_a` | `names`
cam_a | {"dtype": "image", "shape": [3, 6, 8], "names": ["a", "height", "width"]} | `cam_a` | do not contain `channels`
cam_a | {"dtype": "image", "shape": [1, 6, 8], "names": ["channels", "height", "width"]} | not an RGB picture
cam_b | {"dtype": "image", "shape": [8, 6, 3], "names": ["height", "width", "channels"]} | `cam_b` is 6x8x3 | announces 8x6x3
cam_b |  | has no camera `cam_b`, only `cam_a` | camera map
state | {"dtype": "float32"} | feature `state` | missing field `shape`
state | {"dtype": "float32", "shape": [0]} | feature `state` | empty
state |  | has no numeric feature `state`, only `action`, `reward`
action | {"dtype": "float32", "shape": [3]} | episode_000000.parquet` row 0: column `action` is 2 wide | announces 3
force | {"dtype": "float32", "shape": [6]} | has no column `force`, only `state`, `action` | `cam_a`
reward |  | which episodes succeeded | `data.default_success`
"#;

#[test]
fn broken_features() {
    for line in FEATURES.lines().filter(|l| !l.is_empty()) {
        let [key, entry, parts @ ..] = &line.split('|').map(str::trim).collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        let (key, entry) = (key.to_string(), entry.to_string());
        let recipe = Recipe::info(move |info| match entry.as_str() {
            "" => drop(info["features"].as_object_mut().unwrap().remove(&key)),
            entry => info["features"][&key] = serde_json::from_str(entry).unwrap(),
        });
        check(line, &message(written(&recipe).path()), parts);
    }
}

/// Replaces column `key` of episode 1, which has seven rows.
fn column(key: &'static str, array: ArrayRef) -> Recipe {
    Recipe::table(move |episode, table| {
        if episode == 1 {
            set(table, key, array.clone());
        }
    })
}

fn without(key: &'static str) -> Recipe {
    Recipe::table(move |episode, table| table.retain(|(k, _)| episode != 1 || k != key))
}

fn integers(f: fn(i64) -> i64) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values((0..7).map(f)))
}

/// Seven states; the closure gives element `i` of row `r`, or the row's end.
fn states(element: impl Fn(usize, usize) -> Option<Option<f32>>) -> ArrayRef {
    let row = |r: usize| Some((0..STATE).map_while(|i| element(r, i)).collect::<Vec<_>>());
    Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>((0..7).map(row)))
}

#[test]
fn broken_tables() {
    let state_with = |bad: f32| states(move |r, i| Some(Some(if (r, i) == (3, 2) { bad } else { 0.5 })));
    let nan_action = synthetic::fixed(ACTION, (0..7).map(|r| vec![0.0, if r == 6 { f32::NAN } else { 0.0 }]));
    let ragged = states(|r, i| (r != 4 || i < 2).then_some(Some(0.0)));
    let null_element = states(|r, i| Some(((r, i) != (5, 1)).then_some(0.0)));
    let null_row = (0..7).map(|r| (r != 2).then(|| vec![Some(0.0); STATE]));
    let null_row: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(null_row));
    let text: ArrayRef = Arc::new(StringArray::from(vec!["x"; 7]));
    let scalars = || synthetic::floats((0..7).map(|r| r as f32));
    let cases: &[(Recipe, &[&str])] = &[
        (
            without("action"),
            &["episode_000001.parquet` has no column `action`, only `state`"],
        ),
        (without("index"), &["has no column `index`"]),
        (without("task_index"), &["has no column `task_index`"]),
        (
            column("state", state_with(f32::NAN)),
            &["episode_000001.parquet` row 3: `state`[2] is NaN"],
        ),
        (
            column("state", state_with(f32::INFINITY)),
            &["episode_000001.parquet` row 3: `state`[2] is inf"],
        ),
        (
            column("action", nan_action),
            &["episode_000001.parquet` row 6: `action`[1] is NaN"],
        ),
        (
            column("state", ragged),
            &["episode_000001.parquet` row 4: column `state` is 2 wide", "announces 3"],
        ),
        (column("state", null_row), &["row 2: column `state` is null"]),
        (column("state", null_element), &["row 5: column `state` is null"]),
        (
            column("state", scalars()),
            &["column `state` as Float32", "a list of 3 numbers"],
        ),
        (
            column("reward", text),
            &["column `reward` as Utf8", "numbers or booleans"],
        ),
        (column("index", scalars()), &["column `index` as Float32", "int64"]),
        (
            column("index", integers(|i| 5 + i + i / 4)),
            &["row 4: column `index` says 10, but 9", "without gaps"],
        ),
        (
            column("frame_index", integers(|i| i * 2)),
            &["row 1: column `frame_index` says 2, but 1"],
        ),
        (
            column("episode_index", integers(|_| 0)),
            &["row 0: column `episode_index` says 0, but 1"],
        ),
        (
            column("task_index", integers(|i| i / 6)),
            &["episode_000001.parquet` row 6: task_index 1 is not in"],
        ),
    ];
    for (recipe, parts) in cases {
        check(parts[0], &message(written(recipe).path()), parts);
    }
}

/// Every picture of `cam_a` is this cell.
fn picture(bytes: Option<&[u8]>, path: Option<&str>) -> Recipe {
    let cell = (bytes.map(<[u8]>::to_vec), path.map(str::to_owned));
    Recipe::table(move |_, table| {
        let rows = table[0].1.len();
        set(table, "cam_a", synthetic::images((0..rows).map(|_| cell.clone())));
    })
}

#[test]
fn broken_pictures() {
    let whole = synthetic::png(&synthetic::pixels(0, 0));
    let grey = synthetic::png_of(WIDTH, HEIGHT, png::ColorType::Grayscale, &[0; WIDTH * HEIGHT]);
    let small = synthetic::png_of(2, 4, png::ColorType::Rgb, &[0; 24]);
    let jpeg = [0xff, 0xd8, 0xff, 0xe0, 0, 16, 74, 70, 73, 70];
    let no_column = Recipe::table(|_, table| table.retain(|(key, _)| key != "cam_a"));
    let bare = Recipe::table(|_, table| {
        let bytes = BinaryArray::from_iter_values((0..table[0].1.len()).map(|_| b"x"));
        set(table, "cam_a", Arc::new(bytes));
    });
    let numbers = Recipe::table(|_, table| {
        let numbers = synthetic::floats((0..table[0].1.len()).map(|_| 1.0));
        let field = Arc::new(Field::new("bytes", DataType::Float32, true));
        set(table, "cam_a", Arc::new(StructArray::from(vec![(field, numbers)])));
    });
    let cases: &[(Recipe, &[&str])] = &[
        (
            picture(Some(&whole[..60]), None),
            &["episode_000000.parquet` row 0", "`cam_a`", "end too early"],
        ),
        (picture(Some(&[]), None), &["row 0", "`cam_a`", "too early"]),
        (picture(Some(&jpeg), None), &["`cam_a`", "not a valid PNG"]),
        (
            picture(Some(&grey), None),
            &["`cam_a`", "Grayscale instead of red, green, blue"],
        ),
        (picture(Some(&small), None), &["`cam_a` is 4x2x3", "announces 6x8x3"]),
        (picture(None, None), &["`cam_a`", "neither `bytes` nor a `path`"]),
        (
            picture(None, Some("../../secret.png")),
            &["../../secret.png", "out of the dataset"],
        ),
        (
            picture(None, Some("/etc/hostname")),
            &["/etc/hostname", "out of the dataset"],
        ),
        (
            picture(None, Some("images/x.png")),
            &["images/x.png", "an image file named in a table"],
        ),
        (no_column, &["has no column `cam_a`"]),
        (bare, &["column `cam_a` as Binary", "a struct of `bytes` and `path`"]),
        (numbers, &["column `cam_a` as Float32"]),
    ];
    for (recipe, parts) in cases {
        check(parts[0], &message(written(recipe).path()), parts);
    }
}

#[test]
fn settings_that_do_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    Recipe::default().write(dir.path());
    let dataset = open(dir.path()).unwrap();
    type Change = fn(&mut DataSpec);
    let cases: Vec<(Change, &[&str])> = vec![
        (|s| s.horizon = 0, &["`horizon`", "at least one step"]),
        (
            |s| s.horizon = 50,
            &[
                "chunk of 50 steps",
                "longest of the 3 episodes has 7 frames",
                "boundary \"pad\"",
            ],
        ),
        (|s| s.image_size = 0, &["`image_size`"]),
        (|s| s.token_len = 0, &["`token_len`"]),
        (|s| s.cameras.clear(), &["`cameras`"]),
        (|s| s.discount = 1.5, &["`discount`", "1.5 is not in (0, 1]"]),
        (|s| s.discount = f64::NAN, &["`discount`"]),
        (|s| s.reward_scale = f32::NAN, &["`reward_scale`"]),
        (
            |s| s.real_action_dim = 3,
            &["`qchunking.action_dim`", "it is 3, but `action` is 2 wide"],
        ),
        (
            |s| s.action_dim = 2,
            &["`data.state_key`", "3 wide, but the model takes 2"],
        ),
        (
            |s| s.transforms = vec![Kind::Aloha],
            &["`data.transforms`", "`aloha` is for 14 numbers, but `state` is 3 wide"],
        ),
        (
            |s| s.delta_mask = Some(vec![true; 3]),
            &["`data.delta_mask`", "3 entries", "share only 2"],
        ),
        (
            |s| s.state_key = Parts::feature("observation.state"),
            &["no numeric feature `observation.state`, only `state`"],
        ),
        (
            |s| s.action_key = Parts::feature("note"),
            &["no numeric feature `note`"],
        ),
        (
            |s| s.cameras[0].dataset = Some("state".to_owned()),
            &["no camera `state`, only `cam_a`, `cam_b`"],
        ),
    ];
    for (change, parts) in cases {
        let mut spec = toy_spec();
        change(&mut spec);
        let error = BatchBuilder::new(dataset.clone(), spec, &identity_stats(STATE, ACTION), tokenizer());
        let message = error.expect_err("refused").to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in: {message}");
        }
    }
    let narrow = BatchBuilder::new(dataset.clone(), toy_spec(), &identity_stats(2, ACTION), tokenizer());
    check(
        "stats",
        &narrow.unwrap_err().to_string(),
        &["norm stats `state`", "2 wide, but 3 are needed"],
    );

    let builder = BatchBuilder::new(dataset.clone(), toy_spec(), &identity_stats(STATE, ACTION), tokenizer()).unwrap();
    check(
        "frame",
        &builder.build(&[16]).unwrap_err().to_string(),
        &["frame 16 does not exist", "has 16 frames"],
    );
    check(
        "image",
        &dataset.image("cam_a", 99).unwrap_err().to_string(),
        &["frame 99"],
    );
    check(
        "camera",
        &dataset.image("cam", 0).unwrap_err().to_string(),
        &["no camera `cam`, only `cam_a`, `cam_b`"],
    );
    assert!(dataset.task(16).is_err());
    let mut spec = toy_spec();
    spec.prompt = PromptSource::Text("go".to_owned());
    assert!(spec.prompt.text(dataset.as_ref(), 0).is_ok());
}

#[test]
fn broken_norm_stats() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("norm_stats.json");
    check(
        "missing",
        &NormStats::read(&path).unwrap_err().to_string(),
        &["cannot read", "norm_stats.json", "norm stats"],
    );
    let good = json!({"norm_stats": {
        "state": {"mean": [0.0, 1.0], "std": [1.0, 2.0], "q01": [-1.0, -1.0], "q99": [1, 3.0]},
        "actions": {"mean": [0.0], "std": [1.0]}
    }});
    fs::write(&path, good.to_string()).unwrap();
    let stats = NormStats::read(&path).unwrap();
    assert_eq!((stats.state.q99, stats.actions.q01), (Some(vec![1.0, 3.0]), None));
    let cases: Vec<(&str, serde_json::Value, &[&str])> = vec![
        (
            "/norm_stats",
            json!({"state": {"mean": [0], "std": [1]}}),
            &["`norm_stats.actions` is missing"],
        ),
        ("", json!({"state": 1}), &["`norm_stats.state` is missing"]),
        (
            "/norm_stats/state/mean",
            json!(null),
            &["`norm_stats.state.mean` is missing"],
        ),
        (
            "/norm_stats/state/std",
            json!([1.0]),
            &["`norm_stats.state.std` has 1 numbers, but `mean` has 2"],
        ),
        (
            "/norm_stats/state/std",
            json!([1.0, -0.5]),
            &["negative entry -0.5 at 1"],
        ),
        (
            "/norm_stats/actions/mean",
            json!(["a"]),
            &["`norm_stats.actions.mean` is not a list of numbers"],
        ),
        (
            "/norm_stats/state/q01",
            json!([0.0, 4.0]),
            &["`norm_stats.state.q01` is above `q99` at 1"],
        ),
    ];
    for (pointer, value, parts) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        fs::write(&path, bad.to_string()).unwrap();
        check(pointer, &NormStats::read(&path).unwrap_err().to_string(), parts);
    }
    fs::write(&path, "{\n\"norm_stats\": {\"state\": {\"mean\": [NaN]}}}").unwrap();
    check(
        "NaN",
        &NormStats::read(&path).unwrap_err().to_string(),
        &["norm_stats.json` line 2"],
    );
    let nowhere = dir.path().join("no/such/folder.json");
    check(
        "write",
        &stats_of(1).write(&nowhere).unwrap_err().to_string(),
        &["cannot write", "folder.json"],
    );
}

fn stats_of(width: usize) -> NormStats {
    identity_stats(width, width)
}

#[test]
fn broken_tokenizers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.model");
    let error = || PromptTokenizer::from_file(&path).unwrap_err().to_string();
    check(
        "missing",
        &error(),
        &["cannot read", "tokenizer.model", "the tokenizer"],
    );
    fs::write(&path, b"{\"model\": {\"type\": \"BPE\"}}").unwrap();
    check("JSON", &error(), &["tokenizer.model` is not a usable tokenizer"]);
    fs::write(&path, b"").unwrap();
    check("empty", &error(), &["tokenizer.model` is not a usable tokenizer"]);
}

/// Replaces `count` bytes at pseudo-random places.
fn damage(bytes: &mut [u8], places: &[(prop::sample::Index, u8)]) {
    places
        .iter()
        .for_each(|(index, value)| bytes[index.index(bytes.len())] = *value);
}

fn places() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the bytes of a file are, the answer is a value or an error.
    #[test]
    fn damaged_tables_never_panic(places in places()) {
        let dir = tempfile::tempdir().unwrap();
        Recipe { lengths: vec![5], ..Default::default() }.write(dir.path());
        let path = dir.path().join("data/chunk-000/episode_000000.parquet");
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes, &places);
        fs::write(&path, bytes).unwrap();
        let _ = exercise(dir.path());
    }

    #[test]
    fn damaged_metadata_never_panics(places in places(), which in 0..3usize) {
        let dir = tempfile::tempdir().unwrap();
        Recipe { lengths: vec![5], ..Default::default() }.write(dir.path());
        let path = dir.path().join([INFO, EPISODES, TASKS][which]);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes, &places);
        fs::write(&path, bytes).unwrap();
        let _ = exercise(dir.path());
    }

    #[test]
    fn damaged_tokenizers_never_panic(places in places()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.model");
        let mut bytes = fs::read(asset("tokenizer/tiny_paligemma.model")).unwrap();
        damage(&mut bytes, &places);
        fs::write(&path, bytes).unwrap();
        if let Ok(tokenizer) = PromptTokenizer::from_file(&path) {
            let _ = tokenizer.prompt("fold the box", Some(&[0.5, -2.0]), 20);
        }
    }
}
