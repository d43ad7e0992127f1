//! Eight datasets against what the `lerobot` package returned for them: every format and codec, every query.

mod data_support;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use acrlpd::data::export::{self, Tensor};
use acrlpd::data::{BatchBuilder, Boundary, Dataset, open};
use data_support::{aloha_spec, asset, data, identity_stats, tokenizer};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const CAMERAS: [&str; 3] = [
    "observation.images.cam_high",
    "observation.images.cam_left_wrist",
    "observation.images.cam_right_wrist",
];
const IMAGES: [&str; 3] = ["aloha_v20_image", "aloha_v21_image", "aloha_v30_image"];
#[cfg(feature = "video")]
const VIDEOS: [&str; 5] = [
    "aloha_v21_av1",
    "aloha_v21_h264",
    "aloha_v30_av1",
    "aloha_v30_h264",
    "aloha_v30_hevc",
];
#[cfg(not(feature = "video"))]
const VIDEOS: [&str; 0] = [];

fn sets() -> impl Iterator<Item = &'static str> {
    IMAGES.into_iter().chain(VIDEOS)
}

fn folder(name: &str) -> PathBuf {
    match name {
        "aloha_v21_image" => asset("datasets/aloha_v21_image"),
        name => data(name),
    }
}

fn dataset(name: &str) -> Arc<dyn Dataset> {
    open(folder(name)).unwrap()
}

fn truth(name: &str) -> Value {
    data_support::json(data(&format!("truth/{name}.json")))
}

/// Every tensor that lerobot returned is among ours, with the same type, shape and content.
fn compare(name: &str, truth: &Value, ours: &[Tensor]) {
    let ours: HashMap<&str, &Tensor> = ours.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let expected = truth["tensors"].as_object().unwrap();
    assert!(expected.len() >= 107, "{name}");
    for (key, expected) in expected {
        let tensor = ours.get(key.as_str()).unwrap_or_else(|| panic!("{name}: {key}"));
        let found = json!([
            format!("{:?}", tensor.dtype),
            tensor.shape,
            format!("{:016x}", xxh3_64(&tensor.data))
        ]);
        assert_eq!(&found, expected, "{name}: {key}");
    }
}

#[test]
fn columns_and_windows_of_all_queries() {
    let deltas = ["action=0..9", "observation=0,10"].map(|text| text.parse().unwrap());
    for name in sets() {
        let (truth, dataset) = (truth(name), dataset(name));
        let queries = truth["queries"].as_array().unwrap();
        assert_eq!(queries.len(), 24);
        let frames: Vec<usize> = queries.iter().map(|q| q["index"].as_u64().unwrap() as usize).collect();
        let mut ours = export::windows(dataset.as_ref(), &frames, &deltas).unwrap();
        for query in queries {
            let padded = |key: &str| {
                let name = format!("q{}/{key}_is_pad", query["index"]);
                let tensor = ours.iter().find(|tensor| tensor.name == name).unwrap();
                json!(tensor.data.iter().map(|flag| *flag == 1).collect::<Vec<_>>())
            };
            for key in ["action", "observation.state"].into_iter().chain(CAMERAS) {
                assert_eq!(padded(key), query[format!("{key}_is_pad")], "{name} {key}");
            }
        }
        ours.extend(export::columns(dataset.as_ref()).unwrap());
        compare(name, &truth, &ours);
    }
}

/// `acrlpd data export` with these arguments, and what it says.
fn command(arguments: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_acrlpd"))
        .args(["data", "export"])
        .args(arguments)
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8(out.stderr).unwrap())
}

#[test]
fn the_command_writes_these_tensors() {
    let name = sets().last().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (folder(name), dir.path().join("out.safetensors"));
    let (path, out) = (path.to_str().unwrap(), out.to_str().unwrap());
    let truth = truth(name);
    let indices: Vec<String> = truth["queries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|q| q["index"].to_string())
        .collect();
    let index = format!("--index={}", indices.join(","));
    let deltas = ["--delta=action=0..9", "--delta=observation=0,10"];
    assert_eq!(
        command(&[&[path, &index, "--out", out, "--columns"][..], &deltas].concat()),
        (Some(0), String::new())
    );
    let bytes = std::fs::read(out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<Tensor> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| Tensor {
            name,
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            data: view.data().to_vec(),
        })
        .collect();
    compare(name, &truth, &tensors);

    let other = dir.path().join("other.safetensors");
    let other = other.to_str().unwrap();
    for (arguments, code, word) in [
        (["--index=236", "--delta=action=0"], 3, "frame 236 does not exist"),
        (["--index=0", "--delta=act=0"], 3, "no feature `act`"),
        (["--index=0", "--delta=action=9..0"], 2, "first to last"),
        (["--index=x", "--delta=action=0"], 2, "invalid digit"),
    ] {
        let (found, message) = command(&[&[path, "--out", other][..], &arguments].concat());
        assert_eq!(found, Some(code), "{message}");
        assert!(message.contains(word), "{message}");
    }
    let twice = ["--delta=action=0", "--delta=action=1"];
    let (code, message) = command(&[&[path, "--out", other, "--index=0"][..], &twice].concat());
    assert!(
        code == Some(3) && message.contains("`action` is asked for twice"),
        "{message}"
    );
    assert!(
        std::fs::read_dir(dir.path()).unwrap().count() == 1,
        "nothing half written"
    );
}

/// A batch of training holds the same windows as lerobot's loader.
#[test]
fn batches_of_all_queries() {
    for name in sets() {
        let truth = truth(name);
        let mut spec = aloha_spec();
        spec.action_dim = 14;
        spec.boundary = Boundary::Pad;
        spec.horizon = truth["horizon"].as_u64().unwrap() as usize;
        let builder = BatchBuilder::new(dataset(name), spec, &identity_stats(14, 14), tokenizer()).unwrap();
        for query in truth["queries"].as_array().unwrap() {
            let index = query["index"].as_i64().unwrap();
            let batch = builder.build(&[index as usize]).unwrap();
            let hashed = |key: &str, values: &[f32]| {
                let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                let expected = &truth["tensors"][format!("q{index}/{key}")][2];
                assert_eq!(&json!(format!("{:016x}", xxh3_64(&bytes))), expected, "{name} q{index}");
            };
            hashed("action", &batch.actions);
            hashed("observation.state", &[batch.state, batch.next_state].concat());
            let padded: Vec<bool> = batch.action_valid.iter().map(|valid| !valid).collect();
            assert_eq!(json!(padded), query["action_is_pad"], "{name} q{index}");
            // Past the end means past `next.done`, so the chunk does not bootstrap.
            for key in ["observation.state"].into_iter().chain(CAMERAS) {
                let expected = &query[format!("{key}_is_pad")];
                assert_eq!(&json!([false, batch.mask[0] == 0.0]), expected, "{name} q{index} {key}");
            }
            assert_eq!(batch.index, [index]);
            let place = json!([batch.episode_index[0], batch.frame_index[0]]);
            assert_eq!(place, json!([query["episode"], query["frame"]]));
        }
    }
}

#[test]
fn episodes_tasks_and_times() {
    for name in sets() {
        let (truth, dataset) = (truth(name), dataset(name));
        let info = dataset.info();
        assert_eq!(
            info.format,
            format!("LeRobot {}", truth["codebase_version"].as_str().unwrap())
        );
        assert_eq!(
            (json!(info.fps), json!(info.total_frames)),
            (json!(50.0), truth["num_frames"].clone())
        );
        for (i, text) in info.tasks.iter().enumerate() {
            assert_eq!(text, truth["tasks"][i.to_string()].as_str().unwrap());
        }
        for (i, episode) in dataset.episodes().iter().enumerate() {
            assert_eq!(episode.index, i);
            assert_eq!(json!(episode.start), truth["episode_from"][i]);
            assert_eq!(json!(episode.start + episode.length), truth["episode_to"][i]);
            assert_eq!(json!(episode.tasks), truth["episode_tasks"][i]);
            assert_eq!(episode.success, Some(i != 1 && i != 3));
        }
        let times = dataset.columns().iter().find(|c| c.key == "timestamp").unwrap();
        for query in truth["queries"].as_array().unwrap() {
            let frame = query["index"].as_u64().unwrap() as usize;
            assert_eq!(dataset.task(frame).unwrap(), query["task"].as_str().unwrap());
            assert_eq!(f64::from(times.row(frame)[0]), query["timestamp"].as_f64().unwrap());
        }
    }
}

/// Every picture carries its own number: 8 bits in blocks of 6x6 pixels, the frame at the top, 4 * episode + camera at
/// the bottom.
#[test]
fn every_frame_of_every_camera_is_the_right_one() {
    for name in sets() {
        let dataset = dataset(name);
        for episode in dataset.episodes() {
            for (c, camera) in CAMERAS.into_iter().enumerate() {
                for t in 0..episode.length {
                    let image = dataset.image(camera, episode.start + t).unwrap();
                    let number = |y: usize| {
                        (0..8)
                            .map(|bit| usize::from(image.pixels[(y * 96 + 6 * bit + 3) * 3] > 127) << bit)
                            .sum::<usize>()
                    };
                    let expected = (t, 4 * episode.index + c);
                    assert_eq!((number(3), number(72 - 3)), expected, "{name} {camera}");
                }
            }
        }
    }
}

#[test]
fn versions_read_alike() {
    let old = dataset("aloha_v20_image");
    for name in sets() {
        let new = dataset(name);
        assert_eq!(old.columns(), new.columns(), "{name}");
        assert_eq!(old.episodes(), new.episodes(), "{name}");
        assert_eq!(old.info().tasks, new.info().tasks, "{name}");
        assert!(old.info().cameras().eq(new.info().cameras()), "{name}");
        if IMAGES.contains(&name) {
            for frame in (0..236).step_by(19) {
                for camera in CAMERAS {
                    assert_eq!(old.image(camera, frame).unwrap(), new.image(camera, frame).unwrap());
                    assert_eq!(new.planes(camera, &[frame]).unwrap(), None);
                }
            }
        }
    }
}

#[test]
fn a_frame_is_found_in_its_file() {
    for frame in 0..236 {
        let (file, row) = dataset("aloha_v21_image").locate(frame);
        let starts = [0, 30, 71, 121, 158, 191];
        let episode = starts.iter().rposition(|start| *start <= frame).unwrap();
        assert!(file.ends_with(format!("data/chunk-000/episode_{episode:06}.parquet")));
        assert_eq!(row, frame - starts[episode]);
    }
    // Two episodes a file.
    for (frame, file, row) in [
        (0, 0, 0),
        (70, 0, 70),
        (71, 1, 0),
        (121, 1, 50),
        (158, 2, 0),
        (235, 2, 77),
    ] {
        let (path, found) = dataset("aloha_v30_image").locate(frame);
        assert!(
            path.ends_with(format!("data/chunk-000/file-{file:03}.parquet")),
            "{frame}"
        );
        assert_eq!(found, row, "{frame}");
    }
}

#[cfg(feature = "video")]
mod film {
    use super::*;

    #[test]
    fn the_order_of_reading_changes_nothing() {
        for name in VIDEOS {
            let one_by_one = dataset(name);
            let forward: Vec<_> = (0..236)
                .map(|f| one_by_one.planes(CAMERAS[1], &[f]).unwrap().unwrap())
                .collect();
            // All at once, backwards, in leaps, and in pairs as training wants them, with decoders in any state.
            let dataset = dataset(name);
            let all: Vec<usize> = (0..236).collect();
            let together = dataset.planes(CAMERAS[1], &all).unwrap().unwrap();
            assert!(together.iter().zip(&forward).all(|(a, b)| *a == b[0]), "{name}");
            let leaps = (0..236).map(|i| (i * 7919 + 5) % 236);
            for frame in (0..236).rev().chain(leaps) {
                let pair = [frame, (frame + 10).min(235)];
                let found = dataset.planes(CAMERAS[1], &pair).unwrap().unwrap();
                assert!(
                    found[0] == forward[pair[0]][0] && found[1] == forward[pair[1]][0],
                    "{name} {frame}"
                );
            }
        }
    }

    #[test]
    fn threads_share_the_decoders() {
        let dataset = dataset("aloha_v30_hevc");
        let alone: Vec<_> = (0..236).map(|f| dataset.image(CAMERAS[f % 3], f).unwrap()).collect();
        std::thread::scope(|scope| {
            for offset in 0..4 {
                let (dataset, alone) = (&dataset, &alone);
                scope.spawn(move || {
                    for i in 0..236 {
                        let frame = (i * 89 + offset * 61) % 236;
                        assert!(
                            dataset.image(CAMERAS[frame % 3], frame).unwrap() == alone[frame],
                            "{frame}"
                        );
                    }
                });
            }
        });
    }

    #[test]
    fn what_a_video_says_about_itself() {
        for (name, codec) in VIDEOS.into_iter().zip(["av1", "h264", "av1", "h264", "hevc"]) {
            let dataset = dataset(name);
            let footage = dataset.footage(CAMERAS[2]).unwrap().unwrap();
            assert_eq!(
                (footage.codec.as_str(), footage.pixel_format.as_str()),
                (codec, "yuv420p")
            );
            assert_eq!((footage.height, footage.width, footage.fps), (72, 96, 50.0));
            assert_eq!(dataset.footage("action").unwrap(), None);
        }
    }
}
