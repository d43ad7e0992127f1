//! openpi's robots by configuration: state and actions from several features, the robot's own transforms, deltas, and
//! the way back to the robot.

mod data_support;

use std::sync::Arc;

use acrlpd::config::Config;
use acrlpd::data::aloha::ALOHA_DELTAS;
use acrlpd::data::transforms::{DataTransforms, Kind, Normalizer, mask};
use acrlpd::data::{BatchBuilder, Boundary, Column, DataSpec, NormKind, NormStats, Parts};
use data_support::memory::{self, MemoryDataset};
use data_support::{aloha, aloha_spec, distance, identity_stats, tokenizer};
use proptest::prelude::*;

/// A column of `width` numbers that tell frame and coordinate.
fn column(key: &str, width: usize, frames: usize) -> Column {
    Column {
        key: key.to_owned(),
        width,
        values: (0..frames * width)
            .map(|i| i as f32 * 0.25 + key.len() as f32)
            .collect(),
    }
}

/// The numbers of a configuration's `[data]`, over a dataset with `columns`.
fn batch(text: &str, columns: Vec<Column>, frame: usize) -> Result<(Vec<f32>, Vec<f32>), String> {
    let text = format!("data.prompt_from_task = true\ndata.cameras.base_0_rgb = \"cam\"\n{text}");
    let config = Config::parse(&text, "x.toml").map_err(|e| e.to_string())?;
    let DataSpec {
        state_key,
        action_key,
        transforms,
        delta_mask,
        real_action_dim,
        ..
    } = config.data_spec();
    let spec = DataSpec {
        state_key,
        action_key,
        transforms,
        delta_mask,
        real_action_dim,
        action_dim: 16,
        ..memory::spec()
    };
    let dataset = Arc::new(MemoryDataset::new(&[12]).with_columns(columns));
    let stats = identity_stats(16, 16);
    let builder = BatchBuilder::new(dataset, spec, &stats, tokenizer()).map_err(|e| e.to_string())?;
    let batch = builder.build(&[frame]).map_err(|e| e.to_string())?;
    Ok((batch.state, batch.actions))
}

/// Rounded to f32 once.
fn assert_close(ours: &[f32], expected: &[f64]) {
    let worst = distance(ours.iter().map(|v| f64::from(*v)), expected.to_vec());
    assert!(worst < 1.2e-7, "{ours:?} {expected:?}");
}

fn row(column: &Column, frame: usize) -> Vec<f64> {
    column.row(frame).iter().map(|v| f64::from(*v)).collect()
}

fn padded(mut row: Vec<f64>) -> Vec<f64> {
    row.resize(16, 0.0);
    row
}

/// DroidInputs: `concatenate([joint_position, gripper_position])`; velocities as they are. DroidOutputs: the first 8.
#[test]
fn droid_has_its_state_in_two_features() {
    let droid = Config::load("rl_droid").unwrap().data_spec();
    assert_eq!(droid.state_key.to_string(), "`joint_position` + `gripper_position`");
    assert_eq!((droid.real_action_dim, droid.delta_mask), (8, None));
    let columns = || {
        let widths = [("joint_position", 7), ("gripper_position", 1), ("actions", 8)];
        widths.map(|(key, width)| column(key, width, 12)).to_vec()
    };
    let [joints, gripper, actions] = &columns()[..] else {
        unreachable!()
    };
    let text = r#"base = "rl_droid""#;
    let (state, chunk) = batch(text, columns(), 3).unwrap();
    assert_close(&state, &padded([row(joints, 3), row(gripper, 3)].concat()));
    let expected: Vec<f64> = (3..7).flat_map(|frame| padded(row(actions, frame))).collect();
    assert_close(&chunk, &expected);
}

/// LiberoInputs: state of 8, actions of 7; `extra_delta_transform` with make_bool_mask(6, -1).
#[test]
fn libero_has_a_wider_state_than_actions() {
    let columns = || vec![column("libero_state", 8, 12), column("actions", 7, 12)];
    let keys = "data.state_key = \"libero_state\"\ndata.action_key = \"actions\"\nqchunking.action_dim = 7\n";
    let [state, actions] = &columns()[..] else {
        unreachable!()
    };
    for (extra, deltas) in [
        ("data.extra_delta_transform = false", 0),
        ("data.extra_delta_transform = true", 6),
        ("data.delta_mask = [6, -1]", 6),
        ("data.delta_mask = [2]", 2),
    ] {
        let (ours, chunk) = batch(&format!("{keys}{extra}"), columns(), 5).unwrap();
        let first = row(state, 5);
        assert_close(&ours, &padded(first.clone()));
        let relative = |frame| {
            let action = row(actions, frame).into_iter().enumerate();
            padded(action.map(|(i, a)| if i < deltas { a - first[i] } else { a }).collect())
        };
        assert_close(&chunk, &(5..9).flat_map(relative).collect::<Vec<f64>>());
    }
}

#[test]
fn slices_choose_and_order_coordinates() {
    let columns = || vec![column("wide", 10, 12), column("other", 3, 12)];
    let text = "data.state_key = [\"wide[7:]\", \"other[:2]\", \"wide[0:1]\"]\ndata.action_key = \"wide[2:5]\"\n\
                qchunking.action_dim = 3\ndata.use_delta_joint_actions = false";
    let [wide, other] = &columns()[..] else { unreachable!() };
    let (state, chunk) = batch(text, columns(), 2).unwrap();
    let expected = [&row(wide, 2)[7..], &row(other, 2)[..2], &row(wide, 2)[..1]].concat();
    assert_close(&state, &padded(expected));
    assert_close(&chunk[..3], &row(wide, 2)[2..5]);

    let nan_at = |i: usize| {
        let mut columns = columns();
        columns[0].values[4 * 10 + i] = f32::NAN;
        batch(text, columns, 2)
    };
    assert!(nan_at(5).is_ok(), "coordinate 5 is in neither");
    let error = nan_at(8).unwrap_err();
    assert!(error.contains("row 4") && error.contains("`wide`[8] is NaN"), "{error}");
}

#[test]
fn what_does_not_fit_is_one_sentence() {
    let columns = || vec![column("wide", 10, 12)];
    let three = "qchunking.action_dim = 3\ndata.use_delta_joint_actions = false\n";
    for (text, parts) in [
        ("data.state_key = \"wide[3:11]\"", ["`data.state_key`", "`wide[3:11]`"]),
        ("data.state_key = \"wide[10:]\"", ["`data.state_key`", "width 10 lacks"]),
        (
            "data.state_key = [\"wide\", \"narrow\"]",
            ["no numeric feature `narrow`", "`wide`"],
        ),
        ("data.state_key = [\"wide\", \"wide\"]", ["`data.state_key`", "20 wide"]),
        ("data.state_key = []", ["`data.state_key`", "must name a feature"]),
        ("data.state_key = [\"\"]", ["`data.state_key`", "must name a feature"]),
        ("data.state_key = 3", ["`data.state_key`", "or a list of them"]),
        (
            "data.action_key = [\"wide[0\", \"wide[0:x]\"]",
            ["`data.action_key`", "`wide[0:x]` is no slice"],
        ),
        ("data.action_key = \"wide[4:4]\"", ["`data.action_key`", "is empty"]),
        (
            "data.action_key = \"wide[0:4]\"",
            ["`qchunking.action_dim`", "`wide[0:4]` is 4 wide"],
        ),
        (
            "data.transforms = [\"aloha\"]",
            ["`data.transforms`", "`aloha` is for 14 coordinates"],
        ),
        ("data.transforms = [\"panda\"]", ["`data.transforms`", "`aloha`"]),
        ("data.adapt_to_pi = \"yes\"", ["data.adapt_to_pi", "true or false"]),
        (
            "data.delta_mask = [3, -1]",
            ["`data.delta_mask`", "speaks of 4 coordinates"],
        ),
        (
            "data.delta_mask = [9223372036854775807, -9223372036854775808]",
            ["`data.delta_mask`", "speaks of"],
        ),
        ("data.delta_mask = [true]", ["`data.delta_mask`", "whole number"]),
    ] {
        let defaults = ["data.state_key = \"wide\"", "data.action_key = \"wide[0:3]\""];
        let missing = defaults.iter().filter(|line| !text.starts_with(&line[..15]));
        let whole = format!("{three}{}\n{text}", missing.copied().collect::<Vec<_>>().join("\n"));
        let error = batch(&whole, columns(), 2).expect_err(text);
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let twice = "data.transforms = [\"aloha\", \"aloha\"]";
    assert!(batch(twice, columns(), 2).unwrap_err().contains("names `aloha` twice"));
}

#[test]
fn masks_are_openpis() {
    for (runs, expected) in [
        (&[2, -2, 2][..], &[true, true, false, false, true, true][..]),
        (&[2, 0, 2], &[true; 4]),
        (&[-1], &[false]),
        (&[], &[]),
    ] {
        assert_eq!(mask(runs, 14), expected);
    }
    assert_eq!(mask(&[i64::MIN, 3], 5), [false; 5]);
    let aloha = mask(&ALOHA_DELTAS, 14);
    assert!(aloha.len() == 14 && !aloha[6] && !aloha[13] && aloha.iter().filter(|m| **m).count() == 12);
}

#[test]
fn adapt_to_pi_names_alohas_transform() {
    let config = |text: &str| Config::parse(&format!("base = \"debug\"\n{text}"), "x.toml").unwrap();
    assert_eq!(config("data.adapt_to_pi = true").data.transforms, [Kind::Aloha]);
    assert_eq!(config("data.adapt_to_pi = false").data.transforms, []);
    let mut set = config("data.transforms = [\"aloha\"]");
    assert_eq!(set.data_spec().transforms, [Kind::Aloha]);
    set.set("data.adapt_to_pi", "false").unwrap();
    assert_eq!(set.data.transforms, []);
}

/// What a batch holds, on its way back, is what the dataset holds.
#[test]
fn actions_of_a_batch_return_to_the_robot() {
    let dataset = aloha();
    for norm in [NormKind::ZScore, NormKind::Quantile] {
        let spec = DataSpec {
            transforms: vec![Kind::Aloha],
            delta_mask: Some(mask(&ALOHA_DELTAS, 14)),
            boundary: Boundary::Pad,
            norm,
            ..aloha_spec()
        };
        let stats = NormStats::compute(dataset.as_ref(), &spec, |_, _| ()).unwrap();
        let builder = BatchBuilder::new(dataset.clone(), spec, &stats, tokenizer()).unwrap();
        let action = dataset.columns().iter().find(|c| c.key == "action").unwrap();
        for (frame, last) in [(0, 29), (27, 29), (200, 235)] {
            let batch = builder.build(&[frame]).unwrap();
            let model = batch
                .actions
                .chunks(32)
                .flat_map(|a| a[..14].iter().map(|v| f64::from(*v)));
            let mut robot: Vec<f64> = model.collect();
            builder.actions_to_robot(&mut robot, frame);
            let recorded: Vec<f64> = (0..10).flat_map(|h| row(action, (frame + h).min(last))).collect();
            assert!(distance(robot, recorded) < 1e-5, "{norm:?} frame {frame}");
        }
    }
}

proptest! {
    /// Unnormalise, make absolute, then the robot's own inverses: the way back undoes the way there, in that order only.
    #[test]
    fn the_way_back_undoes_the_way_there(
        numbers in proptest::collection::vec(-3.0..3.0f64, 14 * 4),
        runs in proptest::collection::vec(-4..5i64, 0..6),
        own in any::<bool>(),
        quantile in any::<bool>(),
    ) {
        let (state, actions) = numbers.split_at(14);
        let transforms = DataTransforms {
            robot: if own { vec![Kind::Aloha] } else { Vec::new() },
            delta_mask: Some(mask(&runs, 14)),
        };
        let stats = acrlpd::data::Stats {
            mean: (0..14).map(|i| f64::from(i) - 5.0).collect(),
            std: (0..14).map(|i| 0.1 + f64::from(i)).collect(),
            q01: Some((0..14).map(|i| f64::from(i) - 9.0).collect()),
            q99: Some((0..14).map(|i| f64::from(i * i)).collect()),
        };
        let kind = if quantile { NormKind::Quantile } else { NormKind::ZScore };
        let normalizer = Normalizer::new(&stats, kind, "actions", 14).unwrap();
        let (mut seen, mut there) = (state.to_vec(), actions.to_vec());
        transforms.state(&mut seen);
        transforms.actions(&mut there, 14, &seen);
        there.chunks_mut(14).for_each(|a| normalizer.normalize(a));
        there.chunks_mut(14).for_each(|a| normalizer.unnormalize(a));
        transforms.actions_to_robot(&mut there, 14, &seen);
        prop_assert!(distance(there, actions.to_vec()) < 1e-9);
    }
}

/// One feature whole is what most robots have, and is written as it was before.
#[test]
fn a_single_feature_stays_a_text() {
    let config = Config::load("debug").unwrap();
    assert_eq!(config.data.state_key, Parts::feature("observation.state"));
    assert!(config.to_toml().contains("state_key = \"observation.state\""));
    let droid = Config::load("rl_droid").unwrap();
    assert_eq!(Config::parse(&droid.to_toml(), "again.toml").unwrap().data, droid.data);
}
