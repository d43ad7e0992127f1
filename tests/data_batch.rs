//! Batches and norm stats: the whole way from a dataset, against arithmetic written out here.

mod data_support;

use acrlpd::data::aloha::ALOHA_DELTAS;
use acrlpd::data::chunks::{ChunkRule, Running};
use acrlpd::data::labels::{EpisodeLabels, label};
use acrlpd::data::resize::resize_with_pad;
use acrlpd::data::transforms::{Kind, mask};
use acrlpd::data::{
    BatchBuilder, Boundary, CameraSpec, ChunkBatch, Column, DataSpec, Dataset, EpisodeEnd, NormKind, NormStats,
    PromptSource, RewardMode,
};
use data_support::memory::{self, MemoryDataset};
use data_support::{aloha, aloha_spec, data, distance, identity_stats, json, tokenizer};
use proptest::prelude::*;

fn pi_spec() -> DataSpec {
    let mut spec = aloha_spec();
    spec.transforms = vec![Kind::Aloha];
    spec.delta_mask = Some(mask(&ALOHA_DELTAS, 14));
    spec.boundary = Boundary::Pad;
    spec
}

/// The row of a column, in π₀'s joint space by the formulas of openpi's aloha_policy.py.
fn adapted(dataset: &dyn Dataset, key: &str, frame: usize) -> Vec<f64> {
    let column = dataset.columns().iter().find(|c| c.key == key).unwrap();
    let sign = [1, -1, -1, 1, 1, 1, 1];
    let adapt = |(i, x): (usize, f64)| match (i % 7, key) {
        (6, "action") => x * (1.4910 + 0.6213) - 0.6213 - 0.5476,
        (6, _) => {
            let metres = x * (0.05800 - 0.01844) + 0.01844;
            let sine: f64 = (0.022f64.powi(2) + metres * metres - 0.036f64.powi(2)) / (2.0 * 0.022 * metres);
            (sine.clamp(-1.0, 1.0).asin() - 0.5476) / (1.6296 - 0.5476)
        }
        (joint, _) => x * f64::from(sign[joint]),
    };
    column
        .row(frame)
        .iter()
        .map(|v| f64::from(*v))
        .enumerate()
        .map(adapt)
        .collect()
}

/// One chunk's actions relative to its first state, `[H][14]`.
fn delta_chunk(dataset: &dyn Dataset, frame: usize, last: usize, horizon: usize) -> Vec<Vec<f64>> {
    let state = adapted(dataset, "observation.state", frame);
    let action = |h: usize| {
        let action = adapted(dataset, "action", (frame + h).min(last));
        action
            .iter()
            .enumerate()
            .map(|(i, a)| if i % 7 == 6 { *a } else { a - state[i] })
            .collect()
    };
    (0..horizon).map(action).collect()
}

#[test]
fn states_and_actions_take_the_whole_way() {
    let dataset = aloha();
    let stats = NormStats::compute(dataset.as_ref(), &pi_spec(), |_, _| ()).unwrap();
    let normalize = |x: &[f64], s: &acrlpd::data::Stats, kind| -> Vec<f64> {
        let (q01, q99) = (s.q01.as_ref().unwrap(), s.q99.as_ref().unwrap());
        let coordinate = |(i, x): (usize, &f64)| match kind {
            NormKind::ZScore => (x - s.mean[i]) / (s.std[i] + 1e-6),
            NormKind::Quantile => (x - q01[i]) / (q99[i] - q01[i] + 1e-6) * 2.0 - 1.0,
        };
        let mut y: Vec<f64> = x.iter().enumerate().map(coordinate).collect();
        y.resize(32, 0.0);
        y
    };
    for kind in [NormKind::ZScore, NormKind::Quantile] {
        let mut spec = pi_spec();
        spec.norm = kind;
        let builder = BatchBuilder::new(dataset.clone(), spec, &stats, tokenizer()).unwrap();
        // Inside episode 0, at its end, at the start of episode 5.
        let starts = [(3, 29, 13), (25, 29, 29), (191, 235, 201)];
        let batch = builder.build(&starts.map(|(frame, _, _)| frame)).unwrap();
        assert_eq!(batch.state.len(), 3 * 32);
        assert_eq!(batch.actions.len(), 3 * 10 * 32);
        for (b, (frame, last, next)) in starts.into_iter().enumerate() {
            let check = |ours: &[f32], expected: Vec<f64>| {
                let worst = distance(ours.iter().map(|v| f64::from(*v)), expected);
                assert!(worst < 1.2e-7, "{kind:?} frame {frame}: {worst}");
            };
            let state = |frame| {
                normalize(
                    &adapted(dataset.as_ref(), "observation.state", frame),
                    &stats.state,
                    kind,
                )
            };
            check(&batch.state[b * 32..(b + 1) * 32], state(frame));
            check(&batch.next_state[b * 32..(b + 1) * 32], state(next));
            for (h, action) in delta_chunk(dataset.as_ref(), frame, last, 10).iter().enumerate() {
                let at = (b * 10 + h) * 32;
                check(&batch.actions[at..at + 32], normalize(action, &stats.actions, kind));
            }
        }
    }
}

#[test]
fn norm_stats_describe_every_action_of_every_chunk() {
    let dataset = aloha();
    let mut spec = pi_spec();
    spec.horizon = 5;
    let mut told = Vec::new();
    let stats = NormStats::compute(dataset.as_ref(), &spec, |done, all| told.push((done, all))).unwrap();
    // Twice 6 episodes, in whatever order.
    assert_eq!((told.len(), told.last()), (12, Some(&(236, 236))));
    assert!(told.is_sorted());
    let mut actions = Vec::new();
    for episode in dataset.episodes() {
        let last = episode.start + episode.length - 1;
        (episode.start..=last).for_each(|f| actions.extend(delta_chunk(dataset.as_ref(), f, last, 5)));
    }
    assert_eq!(actions.len(), 236 * 5);
    let states: Vec<Vec<f64>> = (0..236)
        .map(|f| adapted(dataset.as_ref(), "observation.state", f))
        .collect();
    for (rows, stats) in [(&states, &stats.state), (&actions, &stats.actions)] {
        for i in 0..14 {
            let mut values: Vec<f64> = rows.iter().map(|r| r[i]).collect();
            values.sort_by(f64::total_cmp);
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
            assert!((stats.mean[i] - mean).abs() < 1e-12 && (stats.std[i] - std).abs() < 1e-12);
            let bin = (values[values.len() - 1] - values[0]) / 5000.0 + 1e-9;
            for (q, found) in [(0.01, &stats.q01), (0.99, &stats.q99)] {
                let exact = values[(q * n).ceil() as usize - 1];
                let found = found.as_ref().unwrap()[i];
                assert!(
                    found <= exact + 1e-9 && found > exact - bin,
                    "{i} {q}: {found} against {exact}"
                );
            }
        }
    }
}

/// `truth/norm_stats_numpy.json` is what `norm_stats_numpy.py` beside it prints.
#[test]
fn norm_stats_are_numpys() {
    let mut spec = pi_spec();
    spec.horizon = 5;
    let stats = NormStats::compute(aloha().as_ref(), &spec, |_, _| ()).unwrap();
    let expected = json(data("truth/norm_stats_numpy.json"));
    for (key, ours) in [("state", &stats.state), ("actions", &stats.actions)] {
        let numpy = |name: &str| -> Vec<f64> { serde_json::from_value(expected[key][name].clone()).unwrap() };
        assert!(distance(ours.mean.clone(), numpy("mean")) < 1e-6, "{key}");
        assert!(distance(ours.std.clone(), numpy("std")) < 1e-6, "{key}");
        for (name, ours) in [("q01", &ours.q01), ("q99", &ours.q99)] {
            for ((ours, exact), range) in ours.iter().flatten().zip(numpy(name)).zip(numpy("range")) {
                assert!(
                    (exact - ours).abs() <= range / 5000.0 + 1e-9,
                    "{key} {name}: {ours} {exact}"
                );
            }
        }
    }
}

#[test]
fn norm_stats_of_raw_numbers_are_lerobots() {
    let mut spec = aloha_spec();
    spec.horizon = 1;
    let stats = NormStats::compute(aloha().as_ref(), &spec, |_, _| ()).unwrap();
    let expected = json(data("aloha_v20_image/meta/stats.json"));
    for (key, stats) in [("observation.state", &stats.state), ("action", &stats.actions)] {
        for (name, ours) in [("mean", &stats.mean), ("std", &stats.std)] {
            let theirs: Vec<f64> = serde_json::from_value(expected[key][name].clone()).unwrap();
            // lerobot computes them in f32.
            assert!(distance(ours.clone(), theirs) < 2e-7, "{key} {name}");
        }
    }
}

#[test]
fn norm_stats_survive_their_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("norm_stats.json");
    let stats = NormStats::compute(aloha().as_ref(), &pi_spec(), |_, _| ()).unwrap();
    stats.write(&path).unwrap();
    assert_eq!(NormStats::read(&path).unwrap(), stats);
    let file = json(&path);
    assert_eq!(file["norm_stats"]["actions"]["q99"].as_array().unwrap().len(), 14);
}

#[test]
fn pictures_of_both_observations() {
    let dataset = aloha();
    let mut spec = aloha_spec();
    let absent = CameraSpec {
        model: "right_wrist_0_rgb".to_owned(),
        dataset: None,
    };
    spec.cameras[2] = absent;
    spec.cameras.swap(0, 1);
    let builder = BatchBuilder::new(dataset.clone(), spec, &identity_stats(14, 14), tokenizer()).unwrap();
    let batch = builder.build(&[0, 35]).unwrap();
    assert_eq!(
        batch.images.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
        ["left_wrist_0_rgb", "base_0_rgb", "right_wrist_0_rgb"]
    );
    let show = |key: &str, frame| resize_with_pad(&dataset.image(key, frame).unwrap(), 56, 56);
    for (camera, key) in batch.images.iter().zip(["cam_left_wrist", "cam_high"]) {
        let key = format!("observation.images.{key}");
        assert!(camera.current == [show(&key, 0), show(&key, 35)].concat());
        assert!(camera.next == [show(&key, 10), show(&key, 45)].concat());
        assert_eq!(
            (camera.current_mask.as_slice(), camera.next_mask.as_slice()),
            (&[true; 2][..], &[true; 2][..])
        );
    }
    let missing = &batch.images[2];
    assert!(missing.current == vec![0; 2 * 56 * 56 * 3] && missing.next == missing.current);
    assert_eq!(
        (missing.current_mask.as_slice(), missing.next_mask.as_slice()),
        (&[false; 2][..], &[false; 2][..])
    );
}

#[test]
fn a_chain_of_chunks_is_the_chunks_one_by_one() {
    let builder = BatchBuilder::new(aloha(), pi_spec(), &identity_stats(14, 14), tokenizer()).unwrap();
    // The third start is where the second chunk ends; the fourth begins elsewhere; the last two end at a clamped frame.
    let starts = [0, 10, 20, 35, 66, 70];
    let chain = builder.build(&starts).unwrap();
    for (b, start) in starts.into_iter().enumerate() {
        let single = builder.build(&[start]).unwrap();
        for (chained, alone) in chain.images.iter().zip(&single.images) {
            let area = alone.current.len();
            assert!(chained.current[b * area..(b + 1) * area] == alone.current, "{start}");
            assert!(chained.next[b * area..(b + 1) * area] == alone.next, "{start}");
        }
        assert_eq!(chain.next_index[b], single.next_index[0]);
    }
    assert_eq!(chain.next_index, [10, 20, 29, 45, 70, 70]);
}

#[test]
fn prompts_of_both_models() {
    let dataset = aloha();
    let stats = NormStats::compute(dataset.as_ref(), &pi_spec(), |_, _| ()).unwrap();
    let build = |change: fn(&mut DataSpec), frame: usize| -> ChunkBatch {
        let mut spec = pi_spec();
        change(&mut spec);
        BatchBuilder::new(dataset.clone(), spec, &stats, tokenizer())
            .unwrap()
            .build(&[frame])
            .unwrap()
    };
    let prompt = |text: &str, state: Option<&[f64]>, len| tokenizer().prompt(text, state, len).unwrap();

    let pi0 = build(|_| (), 200);
    let expected = prompt("pick_up the Red cube\nwith the left arm", None, 48);
    assert_eq!((&pi0.tokens, &pi0.token_mask), (&expected.tokens, &expected.mask));
    assert_eq!((&pi0.next_tokens, &pi0.next_token_mask), (&pi0.tokens, &pi0.token_mask));
    let fixed = build(|s| s.prompt = PromptSource::Text("fold the box".to_owned()), 200);
    assert_eq!(fixed.tokens, prompt("fold the box", None, 48).tokens);

    let pi05 = build(
        |s| {
            s.state_in_prompt = true;
            s.token_len = 200;
            s.norm = NormKind::Quantile;
        },
        3,
    );
    let (low, high) = (stats.state.q01.as_ref().unwrap(), stats.state.q99.as_ref().unwrap());
    let state = |frame| -> Vec<f64> {
        let raw = adapted(dataset.as_ref(), "observation.state", frame);
        (0..14)
            .map(|i| (raw[i] - low[i]) / (high[i] - low[i] + 1e-6) * 2.0 - 1.0)
            .collect()
    };
    assert_eq!(pi05.tokens, prompt("fold the box", Some(&state(3)), 200).tokens);
    assert_eq!(pi05.next_tokens, prompt("fold the box", Some(&state(13)), 200).tokens);
    assert_ne!(pi05.tokens, pi05.next_tokens);
}

#[test]
fn an_empty_task_uses_the_default_prompt() {
    let spec = |prompt| DataSpec {
        prompt,
        ..memory::spec()
    };
    let tokens = |task: &str, prompt| {
        let dataset = MemoryDataset::new(&[10]).with_tasks(task);
        memory::builder(dataset, spec(prompt))
            .unwrap()
            .build(&[0])
            .map(|b| b.tokens)
    };
    let or = || PromptSource::TaskOr("fold".to_owned());
    assert_eq!(
        tokens(" \n", or()).unwrap(),
        tokens("fold", PromptSource::Task).unwrap()
    );
    assert_ne!(
        tokens("box", or()).unwrap(),
        tokens("fold", PromptSource::Task).unwrap()
    );
    assert!(tokens("", PromptSource::Task).is_err());
}

#[test]
fn rewards_of_the_three_modes() {
    let gamma = 0.99f32;
    let build = |mode, frame| {
        let spec = DataSpec {
            reward_mode: mode,
            reward_scale: 2.0,
            terminal_reward: 5.0,
            ..aloha_spec()
        };
        let builder = BatchBuilder::new(aloha(), spec, &identity_stats(14, 14), tokenizer()).unwrap();
        let batch = builder.build(&[frame]).unwrap();
        (batch.rewards.clone(), batch)
    };
    // Episode 0 (a success) has frames 0..30; its last start is 20. Episode 1 (a failure) has frames 30..71.
    let (rewards, batch) = build(RewardMode::Terminal, 20);
    assert_eq!(rewards, [[0.0; 9].as_slice(), &[10.0]].concat());
    assert!((batch.reward[0] - 10.0 * gamma.powi(9)).abs() < 1e-5);
    assert_eq!(
        (
            batch.mask[0],
            batch.discount[0],
            batch.chunk_valid[0],
            batch.is_positive[0]
        ),
        (0.0, 0.0, 1.0, true)
    );
    let (rewards, batch) = build(RewardMode::Terminal, 19);
    assert_eq!((rewards, batch.reward[0], batch.mask[0]), (vec![0.0; 10], 0.0, 1.0));
    assert!((batch.discount[0] - gamma.powi(10)).abs() < 1e-6);
    let (rewards, batch) = build(RewardMode::Terminal, 61);
    assert_eq!(
        (rewards, batch.mask[0], batch.is_positive[0]),
        (vec![0.0; 10], 0.0, false)
    );
    // `reward` is 1 in every frame of a success, and comes before the sparse `next.reward`.
    for mode in [RewardMode::Dataset, RewardMode::Constant] {
        assert_eq!(build(mode, 5).0, [2.0; 10], "{mode:?}");
        assert_eq!(build(mode, 40).0, [0.0; 10], "{mode:?}");
    }
}

#[test]
fn settings_are_written_as_the_configuration_spells_them() {
    assert_eq!(serde_json::from_str::<Boundary>("\"pad\"").unwrap(), Boundary::Pad);
    assert_eq!(
        serde_json::from_str::<EpisodeEnd>("\"truncated\"").unwrap(),
        EpisodeEnd::Truncated
    );
    assert_eq!(
        serde_json::from_str::<RewardMode>("\"constant\"").unwrap(),
        RewardMode::Constant
    );
    assert_eq!(
        serde_json::from_str::<NormKind>("\"zscore\"").unwrap(),
        NormKind::ZScore
    );
}

fn scalar(key: &str, values: &[f32]) -> Column {
    Column {
        key: key.to_owned(),
        width: 1,
        values: values.to_vec(),
    }
}

fn labels_of(dataset: &MemoryDataset, change: fn(&mut DataSpec)) -> Result<Vec<EpisodeLabels>, String> {
    let mut spec = memory::spec();
    change(&mut spec);
    label(dataset, &spec).map_err(|e| e.to_string())
}

#[test]
fn the_end_of_an_episode_by_column_or_by_setting() {
    let plain = MemoryDataset::new(&[3, 2]);
    let ends = |dataset: &MemoryDataset, change| -> Vec<(usize, bool)> {
        labels_of(dataset, change)
            .unwrap()
            .iter()
            .map(|e| (e.length, e.terminal))
            .collect()
    };
    assert_eq!(ends(&plain, |_| ()), [(3, true), (2, true)]);
    assert_eq!(
        ends(&plain, |s| s.episode_end = EpisodeEnd::Truncated),
        [(3, false), (2, false)]
    );
    // A column decides, whatever the setting: the first mark ends an episode, no mark means a cut.
    for key in ["next.done", "done", "terminal"] {
        let marked = MemoryDataset::new(&[3, 2]).with_columns(vec![scalar(key, &[0.0, 1.0, 1.0, 0.0, 0.0])]);
        for change in [(|_| ()) as fn(&mut DataSpec), |s| s.episode_end = EpisodeEnd::Truncated] {
            assert_eq!(ends(&marked, change), [(2, true), (2, false)], "{key}");
        }
        let labels = labels_of(&marked, |_| ()).unwrap();
        assert_eq!(
            labels[0].rewards,
            [0.0, 1.0],
            "the reward of a success moves to the frame that ends it"
        );
    }
}

#[test]
fn success_and_reward_by_column_or_by_setting() {
    let rewards = |r: [f32; 5]| {
        MemoryDataset::new(&[3, 2])
            .without_success()
            .with_columns(vec![scalar("reward", &r)])
    };
    let bare = || MemoryDataset::new(&[3, 2]).without_success();
    assert!(
        labels_of(&bare(), |_| ())
            .unwrap_err()
            .contains("`data.default_success`")
    );
    for success in [true, false] {
        let mut spec = memory::spec();
        spec.default_success = Some(success);
        assert!(label(&bare(), &spec).unwrap().iter().all(|e| e.success == success));
    }
    let error = labels_of(&MemoryDataset::new(&[3, 2]), |s| s.reward_mode = RewardMode::Dataset).unwrap_err();
    assert!(
        error.contains("no reward column (`reward` or `next.reward`)"),
        "{error}"
    );
    let error = labels_of(&rewards([0.0, f32::NAN, 0.0, 0.0, 0.0]), |s| {
        s.reward_mode = RewardMode::Dataset;
        s.default_success = Some(true);
    });
    assert!(error.unwrap_err().contains("row 1: `reward`[0] is NaN"));

    let success = acrlpd::data::labels::success;
    let columns = |c: &[(&str, [f32; 5])]| c.iter().map(|(key, v)| scalar(key, v)).collect::<Vec<_>>();
    let by_reward = columns(&[("reward", [1.0, 1.0, 0.0, 0.0, 1.0])]);
    assert_eq!(
        (success(&by_reward, 0..3), success(&by_reward, 3..5)),
        (Some(false), Some(true))
    );
    // A mark anywhere in the episode, before any reward.
    let both = columns(&[("reward", [1.0; 5]), ("success", [0.0, 1.0, 0.0, 0.0, 0.0])]);
    assert_eq!((success(&both, 0..3), success(&both, 3..5)), (Some(true), Some(false)));
    let preferred = columns(&[("success", [0.0; 5]), ("next.success", [1.0; 5])]);
    assert_eq!(success(&preferred, 0..3), Some(true));
    assert_eq!(success(&[], 0..3), None);
}

#[test]
fn every_start_lies_inside_its_episode() {
    let builder = memory::builder(MemoryDataset::new(&[10, 3, 0, 4]), memory::spec()).unwrap();
    let starts: Vec<_> = builder
        .starts()
        .iter()
        .map(|s| (s.episode, s.first, s.count, s.positive))
        .collect();
    assert_eq!(
        starts,
        [(0, 0, 7, true), (1, 10, 0, false), (2, 13, 0, true), (3, 13, 1, false)]
    );
    let batch = builder.build(&[6, 13]).unwrap();
    assert_eq!((batch.len(), batch.is_empty()), (2, false));
    assert_eq!(
        (batch.index, batch.episode_index, batch.frame_index),
        (vec![6, 13], vec![0, 3], vec![6, 0])
    );
}

prop_compose! {
    fn episodes()(length in 1..40usize)(
        rewards in prop::collection::vec(-2.0f32..2.0, length),
        terminal in any::<bool>(),
        t in 0..length,
    ) -> (EpisodeLabels, usize) {
        (EpisodeLabels { index: 0, start: 0, length: rewards.len(), terminal, success: true, rewards }, t)
    }
}

proptest! {
    #[test]
    fn a_chunk_is_the_definition((episode, t) in episodes(), horizon in 1..20usize, gamma in 0.1f64..=1.0, pad: bool) {
        let boundary = if pad { Boundary::Pad } else { Boundary::Drop };
        let rule = ChunkRule { horizon, discount: gamma, boundary };
        let (length, chunk) = (episode.length, rule.cut(&episode, t));
        let n = horizon.min(length - t);
        let reward: f64 = (0..n).map(|k| gamma.powi(k as i32) * f64::from(episode.rewards[t + k])).sum();
        prop_assert!((f64::from(chunk.reward) - reward).abs() < 1e-5);
        let ends = t + horizon >= length;
        let mask = if episode.terminal && ends { 0.0 } else { 1.0 };
        prop_assert_eq!(chunk.mask, mask);
        prop_assert!((f64::from(chunk.discount) - gamma.powi(n as i32) * f64::from(mask)).abs() < 1e-6);
        for h in 0..horizon {
            prop_assert_eq!(chunk.action_valid[h], t + h < length);
            prop_assert_eq!(chunk.rewards[h], if t + h < length { episode.rewards[t + h] } else { 0.0 });
        }
        let cut_by_termination = episode.terminal && pad;
        prop_assert_eq!(chunk.chunk_valid, if n == horizon || cut_by_termination { 1.0 } else { 0.0 });
        prop_assert_eq!(chunk.next, (t + horizon).min(length - 1));
        // Dropping keeps exactly the starts whose chunk is whole and whose target is known.
        let known = n == horizon && (episode.terminal || t + horizon < length);
        prop_assert_eq!(t < rule.starts(&episode), pad || known);
    }

    #[test]
    fn running_sums_are_the_definition(
        steps in prop::collection::vec((-2.0f32..2.0, prop::bool::weighted(0.2)), 1..15),
        gamma in 0.1f64..=1.0,
    ) {
        let (rewards, terminals): (Vec<f32>, Vec<bool>) = steps.into_iter().unzip();
        let running = Running::of(&rewards, &terminals, gamma);
        for i in 0..rewards.len() {
            let sum: f64 = (0..=i).map(|j| gamma.powi(j as i32) * f64::from(rewards[j])).sum();
            prop_assert!((running.reward[i] - sum).abs() < 1e-9);
            prop_assert_eq!(running.mask[i] == 0.0, terminals[..=i].contains(&true));
            prop_assert_eq!(running.valid[i], !terminals[..i].contains(&true));
        }
    }
}
