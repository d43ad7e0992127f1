//! What the LeRobot reader makes of layouts, types and pictures. `data_lerobot_truth` compares it with lerobot itself.

mod data_support;

use std::sync::Arc;

use acrlpd::data::inspect::Summary;
use acrlpd::data::{FeatureKind, open};
use arrow_array::types::Float64Type;
use arrow_array::{FixedSizeListArray, Int16Array, UInt64Array};
use data_support::synthetic::{self, Recipe, set};
use data_support::{aloha, data, json};

const CAMERAS: [&str; 3] = [
    "observation.images.cam_high",
    "observation.images.cam_left_wrist",
    "observation.images.cam_right_wrist",
];

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
fn pictures_in_one_large_dictionary_are_read_from_where_they_were_unpacked() {
    let (height, width) = (600, 800);
    // Noise, so that five of them are more than a dictionary that is read in place.
    let noise = move |frame: usize| -> Vec<u8> {
        let mut state = 2 * frame as u32 + 1;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..height * width * 3).map(|_| next()).collect()
    };
    let lengths = [5, 7, 4];
    let start = move |episode: usize| lengths[..episode].iter().sum::<usize>();
    let mut recipe = Recipe::table(move |episode, table| {
        let png = |frame| synthetic::png_of(width, height, png::ColorType::Rgb, &noise(frame));
        // Frame 9 lies in a file beside the table, frame 10 is no picture at all.
        let cell = |t: usize| match start(episode) + t {
            9 => (None, Some("images/nine.png".to_owned())),
            10 => (Some(b"torn".to_vec()), None),
            frame => (Some(png(frame)), None),
        };
        set(table, "cam_a", synthetic::images((0..lengths[episode]).map(cell)));
    });
    recipe.dictionary = 1 << 30;
    recipe.edit_info = Box::new(move |info| info["features"]["cam_a"]["shape"] = serde_json::json!([3, height, width]));
    let dir = tempfile::tempdir().unwrap();
    recipe.write(dir.path());
    let nine = synthetic::png_of(width, height, png::ColorType::Rgb, &noise(9));
    std::fs::write(dir.path().join("images/nine.png"), nine).unwrap();
    let dataset = open(dir.path()).unwrap();
    for frames in [[3, 4], [0, 3], [8, 9], [14, 15]] {
        for (image, frame) in dataset.images("cam_a", &frames).unwrap().iter().zip(frames) {
            assert!(image.pixels == noise(frame), "frame {frame}");
        }
    }
    let error = dataset.image("cam_a", 10).unwrap_err().to_string();
    assert!(error.contains("row 5") && error.contains("not a valid PNG"), "{error}");
    // What is unpacked is not read again: the table may be zeros now.
    let table = dir.path().join("data/chunk-000/episode_000000.parquet");
    let zeros = vec![0; std::fs::metadata(&table).unwrap().len() as usize];
    std::fs::write(&table, zeros).unwrap();
    assert!(dataset.image("cam_a", 2).unwrap().pixels == noise(2));
    assert!(dataset.image("cam_b", 2).is_err());
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
    #[cfg(feature = "video")]
    {
        let summary = Summary::of(open(data("aloha_v30_hevc")).unwrap().as_ref()).unwrap();
        let filmed = "(96x72 pixels, hevc, yuv420p, 50 frames/s)";
        assert_eq!(summary.to_string().matches(filmed).count(), 3, "{summary}");
    }
    let value = serde_json::to_value(&summary).unwrap();
    assert_eq!(value["total_frames"], 236);
    assert_eq!(value["features"].as_array().unwrap().len(), 14);
}
