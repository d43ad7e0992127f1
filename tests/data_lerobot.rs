//! The LeRobot reader against what the `lerobot` package returns for the same datasets.

mod data_support;

use std::sync::Arc;

use acrlpd::data::inspect::Summary;
use acrlpd::data::{BatchBuilder, Boundary, FeatureKind, open};
use arrow_array::types::Float64Type;
use arrow_array::{FixedSizeListArray, Int16Array, UInt64Array};
use data_support::synthetic::{self, Recipe};
use data_support::{Tensors, aloha, aloha_spec, data, identity_stats, json, tokenizer};

const CAMERAS: [&str; 3] = [
    "observation.images.cam_high",
    "observation.images.cam_left_wrist",
    "observation.images.cam_right_wrist",
];

fn truth() -> (Tensors, serde_json::Value) {
    (
        Tensors::open(data("truth/aloha_v21_image.safetensors")),
        json(data("truth/aloha_v21_image.json")),
    )
}

fn flags(value: &serde_json::Value) -> Vec<bool> {
    value.as_array().unwrap().iter().map(|v| v.as_bool().unwrap()).collect()
}

#[test]
fn columns_tasks_and_episodes() {
    let (tensors, truth) = truth();
    let dataset = aloha();
    let column = |key: &str| dataset.columns().iter().find(|c| c.key == key).unwrap();
    for key in ["observation.state", "action", "reward", "next.reward", "timestamp"] {
        assert_eq!(column(key).values, tensors.f32(&format!("all/{key}")), "{key}");
    }
    for key in ["next.done", "next.success"] {
        let expected: Vec<f32> = tensors.u8(&format!("all/{key}")).into_iter().map(f32::from).collect();
        assert_eq!(column(key).values, expected, "{key}");
    }
    assert_eq!(dataset.columns().len(), 7);
    let frames = dataset.info().total_frames;
    assert_eq!(frames as u64, truth["num_frames"].as_u64().unwrap());
    assert_eq!(tensors.i64("all/index"), (0..frames as i64).collect::<Vec<_>>());
    let (episodes, offsets) = (tensors.i64("all/episode_index"), tensors.i64("all/frame_index"));
    let tasks = tensors.i64("all/task_index");
    for frame in 0..frames {
        let episode = &dataset.episodes()[episodes[frame] as usize];
        assert_eq!(frame - episode.start, offsets[frame] as usize);
        assert_eq!(dataset.task(frame).unwrap(), truth["tasks"][tasks[frame].to_string()]);
        let (file, row) = dataset.locate(frame);
        assert!(file.ends_with(format!("data/chunk-000/episode_{:06}.parquet", episode.index)));
        assert_eq!(row, offsets[frame] as usize);
    }
    for (i, episode) in dataset.episodes().iter().enumerate() {
        assert_eq!(
            (i as u64, episode.index),
            (truth["episodes"][i]["episode_index"].as_u64().unwrap(), i)
        );
        assert_eq!(episode.start as u64, truth["episode_from"][i].as_u64().unwrap());
        assert_eq!(
            (episode.start + episode.length) as u64,
            truth["episode_to"][i].as_u64().unwrap()
        );
        assert_eq!(serde_json::json!(episode.tasks), truth["episodes"][i]["tasks"]);
        assert_eq!(episode.success, Some(i != 1 && i != 3));
    }
    assert_eq!(dataset.info().fps, truth["fps"].as_f64().unwrap());
}

#[test]
fn action_windows_and_states_of_all_queries() {
    let (tensors, truth) = truth();
    let mut spec = aloha_spec();
    spec.action_dim = 14;
    spec.boundary = Boundary::Pad;
    spec.horizon = truth["horizon"].as_u64().unwrap() as usize;
    let builder = BatchBuilder::new(aloha(), spec, &identity_stats(14, 14), tokenizer()).unwrap();
    let queries = truth["queries"].as_array().unwrap();
    assert_eq!(queries.len(), 24);
    for query in queries {
        let index = query["index"].as_u64().unwrap();
        let batch = builder.build(&[index as usize]).unwrap();
        assert_eq!(batch.actions, tensors.f32(&format!("q{index}/action")), "q{index}");
        let states = [batch.state, batch.next_state].concat();
        assert_eq!(states, tensors.f32(&format!("q{index}/observation.state")), "q{index}");
        let valid: Vec<bool> = flags(&query["action_is_pad"]).into_iter().map(|pad| !pad).collect();
        assert_eq!(batch.action_valid, valid, "q{index}");
        // Past the end means past `next.done`, so the chunk does not bootstrap.
        for key in ["observation.state"].into_iter().chain(CAMERAS) {
            let padded = flags(&query[format!("{key}_is_pad")]);
            assert_eq!((padded[0], padded[1]), (false, batch.mask[0] == 0.0), "q{index} {key}");
        }
        assert_eq!(batch.index, [index as i64]);
        assert_eq!(batch.episode_index[0], query["episode"].as_i64().unwrap());
        assert_eq!(batch.frame_index[0], query["frame"].as_i64().unwrap());
        let timestamp = aloha()
            .columns()
            .iter()
            .find(|c| c.key == "timestamp")
            .unwrap()
            .row(index as usize)[0];
        assert_eq!(f64::from(timestamp), query["timestamp"].as_f64().unwrap());
        assert_eq!(aloha().task(index as usize).unwrap(), query["task"].as_str().unwrap());
    }
}

#[test]
fn pictures_of_all_queries() {
    let (tensors, truth) = truth();
    let dataset = aloha();
    let mut compared = 0;
    for query in truth["queries"].as_array().unwrap() {
        let frame = query["index"].as_u64().unwrap() as usize;
        let episode = &dataset.episodes()[query["episode"].as_u64().unwrap() as usize];
        let next = (frame + 10).min(episode.start + episode.length - 1);
        for camera in CAMERAS {
            let name = format!("q{frame}/{camera}/rgb_pyav");
            if !tensors.names().contains(&name) {
                continue;
            }
            let expected = tensors.u8(&name);
            for (expected, frame) in expected.chunks(3 * 72 * 96).zip([frame, next]) {
                let image = dataset.image(camera, frame).unwrap();
                assert_eq!((image.height, image.width), (72, 96));
                let ours: Vec<u8> = (0..3)
                    .flat_map(|c| image.pixels[c..].iter().step_by(3).copied().collect::<Vec<_>>())
                    .collect();
                assert!(ours == expected, "{camera} at {frame}");
                compared += 1;
            }
        }
    }
    let available = tensors.names().iter().filter(|n| n.ends_with("rgb_pyav")).count();
    assert_eq!(compared, 2 * available);
    assert!(available >= 48);
}

/// Every picture carries its own number: 8 bits in blocks of 6x6 pixels, the frame at the top, 4 * episode + camera at
/// the bottom.
#[test]
fn every_frame_of_every_camera_is_the_right_one() {
    let dataset = aloha();
    for episode in dataset.episodes() {
        for (c, camera) in CAMERAS.into_iter().enumerate() {
            for t in 0..episode.length {
                let image = dataset.image(camera, episode.start + t).unwrap();
                let number = |y: usize| {
                    (0..8)
                        .map(|bit| usize::from(image.pixels[(y * 96 + 6 * bit + 3) * 3] > 127) << bit)
                        .sum::<usize>()
                };
                assert_eq!((number(3), number(72 - 3)), (t, 4 * episode.index + c));
            }
        }
    }
}

#[test]
fn v20_reads_like_v21() {
    let (old, new) = (open(data("aloha_v20_image")).unwrap(), aloha());
    assert_eq!(old.info().format, "LeRobot v2.0");
    assert_eq!(new.info().format, "LeRobot v2.1");
    assert_eq!(old.columns(), new.columns());
    assert_eq!(old.episodes(), new.episodes());
    assert_eq!(old.info().features, new.info().features);
    assert_eq!(old.info().tasks, new.info().tasks);
    for frame in (0..236).step_by(19) {
        assert_eq!(old.task(frame).unwrap(), new.task(frame).unwrap());
        for camera in CAMERAS {
            assert_eq!(old.image(camera, frame).unwrap(), new.image(camera, frame).unwrap());
        }
    }
}

#[test]
fn list_layouts_axis_orders_and_row_groups() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        lengths: vec![5, 30, 1],
        row_group: 7,
        ..Default::default()
    };
    recipe.write(dir.path());
    let dataset = open(dir.path()).unwrap();
    let kind = |key: &str| dataset.info().features.iter().find(|f| f.key == key).unwrap().kind;
    assert_eq!(kind("cam_a"), FeatureKind::Image { height: 6, width: 8 });
    assert_eq!(kind("cam_b"), FeatureKind::Image { height: 6, width: 8 });
    assert_eq!(kind("note"), FeatureKind::Other);
    for frame in 0..36 {
        assert_eq!(
            dataset.columns()[0].row(frame),
            synthetic::vector(synthetic::STATE, frame)
        );
        assert_eq!(
            dataset.columns()[1].row(frame),
            synthetic::vector(synthetic::ACTION, frame)
        );
        for (c, camera) in ["cam_a", "cam_b"].into_iter().enumerate() {
            assert!(
                dataset.image(camera, frame).unwrap().pixels == synthetic::pixels(c, frame),
                "{camera} {frame}"
            );
        }
    }
}

#[test]
fn every_number_type_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = Recipe::table(|_, table| {
        let rows = table[0].1.len();
        let pairs = (0..rows).map(|r| Some([Some(r as f64 + 0.5), Some(-1.0)]));
        let doubles = FixedSizeListArray::from_iter_primitive::<Float64Type, _, _>(pairs, 2);
        synthetic::set(table, "doubles", Arc::new(doubles));
        synthetic::set(
            table,
            "short",
            Arc::new(Int16Array::from_iter_values((0..rows).map(|r| -(r as i16)))),
        );
        synthetic::set(
            table,
            "wide",
            Arc::new(UInt64Array::from_iter_values((0..rows).map(|r| r as u64))),
        );
        synthetic::set(table, "done", synthetic::bools((0..rows).map(|r| r == 2)));
        // A feature of shape [1] as a list of one.
        synthetic::set(table, "reward", synthetic::list((0..rows).map(|r| vec![r as f32])));
    });
    recipe.edit_info = Box::new(|info| {
        for (key, dtype, width) in [("doubles", "float64", 2), ("short", "int16", 1), ("wide", "uint64", 1)] {
            info["features"][key] = serde_json::json!({"dtype": dtype, "shape": [width], "names": null});
        }
        info["features"]["done"] = serde_json::json!({"dtype": "bool", "shape": [1], "names": null});
        info["features"]["matrix"] = serde_json::json!({"dtype": "float32", "shape": [2, 2], "names": null});
    });
    recipe.write(dir.path());
    let dataset = open(dir.path()).unwrap();
    let row = |key: &str, frame| dataset.columns().iter().find(|c| c.key == key).unwrap().row(frame);
    // Frame 8 is row 3 of episode 1.
    assert_eq!(row("doubles", 8), [3.5, -1.0]);
    assert_eq!(
        (row("short", 8), row("wide", 8), row("reward", 8)),
        (&[-3.0][..], &[3.0][..], &[3.0][..])
    );
    assert_eq!((row("done", 7), row("done", 8)), (&[1.0][..], &[0.0][..]));
    assert!(dataset.columns().iter().all(|c| c.key != "matrix" && c.key != "note"));
}

#[test]
fn pictures_read_together_are_those_read_alone() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        lengths: vec![5, 30, 1],
        row_group: 7,
        ..Default::default()
    };
    recipe.write(dir.path());
    let dataset = open(dir.path()).unwrap();
    // In one row group, over several, over files, repeated, descending, none at all.
    let cases: [&[usize]; 8] = [
        &[5, 11],
        &[5, 12],
        &[6, 13, 14, 33, 34],
        &[4, 5],
        &[0, 35],
        &[9, 9],
        &[20, 8, 7, 8],
        &[],
    ];
    for frames in cases {
        let images = dataset.images("cam_b", frames).unwrap();
        let pixels: Vec<_> = images.into_iter().map(|i| i.pixels).collect();
        assert_eq!(
            pixels,
            frames.iter().map(|f| synthetic::pixels(1, *f)).collect::<Vec<_>>(),
            "{frames:?}"
        );
    }
    assert!(
        dataset
            .images("cam_b", &[3, 36])
            .unwrap_err()
            .to_string()
            .contains("frame 36")
    );
}

#[test]
fn more_files_than_footers_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        lengths: vec![1; 300],
        ..Default::default()
    };
    recipe.write(dir.path());
    let dataset = open(dir.path()).unwrap();
    for frame in (0..300).chain(0..300) {
        assert_eq!(
            dataset.image("cam_a", frame).unwrap().pixels,
            synthetic::pixels(0, frame)
        );
    }
}

#[test]
fn the_row_of_a_broken_picture_is_named() {
    let dir = tempfile::tempdir().unwrap();
    Recipe::table(|_, table| {
        let cell = |row| {
            (
                if row == 3 {
                    None
                } else {
                    Some(synthetic::png(&synthetic::pixels(0, row)))
                },
                None,
            )
        };
        let rows = table[0].1.len();
        synthetic::set(table, "cam_a", synthetic::images((0..rows).map(cell)));
    })
    .write(dir.path());
    let error = open(dir.path())
        .unwrap()
        .images("cam_a", &[1, 3])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("episode_000000.parquet` row 3") && error.contains("neither"),
        "{error}"
    );
}

#[test]
fn threads_read_pictures_at_the_same_time() {
    let dataset = aloha();
    let alone: Vec<_> = (0..60)
        .map(|frame| dataset.image(CAMERAS[frame % 3], frame).unwrap())
        .collect();
    std::thread::scope(|scope| {
        for offset in 0..4 {
            let (dataset, alone) = (&dataset, &alone);
            scope.spawn(move || {
                for i in 0..120 {
                    let frame = (i * 7 + offset * 13) % 60;
                    assert_eq!(dataset.image(CAMERAS[frame % 3], frame).unwrap(), alone[frame]);
                }
            });
        }
    });
}

#[test]
fn pictures_may_lie_beside_the_table() {
    let dir = tempfile::tempdir().unwrap();
    Recipe::table(|episode, table| {
        let rows = table[0].1.len();
        let cells = (0..rows).map(|row| (None, Some(format!("images/{episode}-{row}.png"))));
        synthetic::set(table, "cam_a", synthetic::images(cells));
    })
    .write(dir.path());
    std::fs::write(
        dir.path().join("images/1-2.png"),
        synthetic::png(&synthetic::pixels(0, 99)),
    )
    .unwrap();
    let dataset = open(dir.path()).unwrap();
    assert_eq!(dataset.image("cam_a", 7).unwrap().pixels, synthetic::pixels(0, 99));
    let missing = dataset.image("cam_a", 8).unwrap_err().to_string();
    assert!(missing.contains("images/1-3.png"), "{missing}");
}

#[test]
fn opening_reads_no_picture() {
    let dir = tempfile::tempdir().unwrap();
    Recipe::table(|_, table| {
        let rows = table[0].1.len();
        synthetic::set(
            table,
            "cam_a",
            synthetic::images((0..rows).map(|_| (Some(b"no picture".to_vec()), None))),
        );
    })
    .write(dir.path());
    // Overwrite what the column stores, too: decoding its pages would fail now.
    for episode in 0..3 {
        let path = dir.path().join(format!("data/chunk-000/episode_{episode:06}.parquet"));
        let mut bytes = std::fs::read(&path).unwrap();
        let places: Vec<usize> = (0..bytes.len() - 10)
            .filter(|i| &bytes[*i..*i + 10] == b"no picture")
            .collect();
        assert!(!places.is_empty());
        // The four bytes before it are its length.
        bytes[places[0] - 4..places[0] + 10].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
    }
    let dataset = open(dir.path()).unwrap();
    assert!(dataset.image("cam_a", 0).is_err());
    assert_eq!(dataset.image("cam_b", 0).unwrap().pixels, synthetic::pixels(1, 0));
}

#[test]
fn the_summary_tells_what_is_there() {
    let summary = Summary::of(aloha().as_ref()).unwrap();
    assert_eq!(
        (summary.episodes, summary.shortest, summary.median, summary.longest),
        (6, 30, 37, 50)
    );
    assert_eq!((summary.successes, summary.seconds), (Some(4), 236.0 / 50.0));
    assert_eq!(summary.cameras, CAMERAS);
    assert_eq!(summary.reward_columns, ["reward", "next.reward"]);
    assert_eq!(
        (summary.done_columns, summary.success_columns),
        (vec!["next.done".into()], vec!["next.success".into()])
    );
    // lerobot's own statistics of the same columns.
    let stats = json(data("aloha_v20_image/meta/stats.json"));
    for column in summary.columns.iter().filter(|c| c.min.len() > 1) {
        let expected = |name: &str| -> Vec<f64> {
            stats[&column.key][name]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect()
        };
        let wide = |v: &[f32]| v.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        assert!(
            data_support::distance(wide(&column.min), expected("min")) < 1e-7,
            "{}",
            column.key
        );
        assert!(
            data_support::distance(wide(&column.max), expected("max")) < 1e-7,
            "{}",
            column.key
        );
        assert!(
            data_support::distance(column.mean.clone(), expected("mean")) < 1e-6,
            "{}",
            column.key
        );
        assert_eq!(column.not_finite, 0);
    }
    let summary = Summary::of(aloha().as_ref()).unwrap();
    let text = summary.to_string();
    for part in [
        "LeRobot v2.1, robot aloha, 50 frames/s",
        "6 episodes, 236 frames",
        "4 of 6 episodes (67 %)",
        "96x72",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let value = serde_json::to_value(&summary).unwrap();
    assert_eq!(value["total_frames"], 236);
    assert_eq!(value["features"].as_array().unwrap().len(), 14);
}
