//! Transforms, resize, tokenizer and chunk sums against the reference implementation's numbers.

mod data_support;

use acrlpd::data::chunks::Running;
use acrlpd::data::resize::{resize_with_pad, resize_with_pad_f32};
use acrlpd::data::transforms::{
    DataTransforms, Normalizer, adapt_action_to_pi, adapt_state_to_pi, aloha_delta_mask, pad_into, pixel_to_model,
};
use acrlpd::data::{NormKind, RgbImage, Stats};
use data_support::{Tensors, distance, golden, json, tokenizer};

/// Computed in f64 on both sides and rounded to f32: one unit in the last place.
const ROUNDING: f64 = 1.2e-7;

fn data_ops() -> Tensors {
    Tensors::open(golden("data_ops.safetensors"))
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|v| f64::from(*v))
}

#[test]
fn normalisation_and_its_inverse() {
    let g = data_ops();
    let stats = Stats {
        mean: g.f64("norm/mean"),
        std: g.f64("norm/std"),
        q01: Some(g.f64("norm/q01")),
        q99: Some(g.f64("norm/q99")),
    };
    for (kind, name) in [(NormKind::ZScore, "zscore"), (NormKind::Quantile, "quantile")] {
        let normalizer = Normalizer::new(&stats, kind, "state", 14).unwrap();
        let mut x = g.f64("norm/x");
        x.chunks_mut(14).for_each(|row| normalizer.normalize(row));
        assert!(distance(x, g.f64(&format!("norm/{name}"))) < ROUNDING, "{name}");
        let mut x = g.f64("norm/x32");
        x.chunks_mut(32).for_each(|row| normalizer.unnormalize(row));
        assert!(distance(x, g.f64(&format!("norm/un_{name}32"))) < ROUNDING, "un_{name}");
        // Statistics wider than the vector are cut to its width.
        let mut narrow = g.f64("norm/x")[..5].to_vec();
        normalizer.normalize(&mut narrow);
        assert!(distance(narrow, g.f64(&format!("norm/{name}"))[..5].to_vec()) < ROUNDING);
        assert!(
            Normalizer::new(&stats, kind, "state", 15)
                .unwrap_err()
                .to_string()
                .contains("14 wide, but 15")
        );
    }
    let old = Stats {
        q01: None,
        q99: None,
        ..stats
    };
    assert!(Normalizer::new(&old, NormKind::ZScore, "state", 14).is_ok());
    assert!(
        Normalizer::new(&old, NormKind::Quantile, "state", 14)
            .unwrap_err()
            .to_string()
            .contains("`q01` and `q99`")
    );
}

#[test]
fn aloha_space_and_delta_actions() {
    let g = data_ops();
    assert_eq!(
        aloha_delta_mask(),
        g.u8("aloha/delta_dims").iter().map(|v| *v == 1).collect::<Vec<_>>()
    );
    let mut state = g.f64("aloha/state");
    state.chunks_mut(14).for_each(adapt_state_to_pi);
    assert!(distance(state.clone(), g.f64("aloha/state_pi")) < ROUNDING);
    let mut actions = g.f64("aloha/actions");
    actions.chunks_mut(14).for_each(adapt_action_to_pi);
    assert!(distance(actions, g.f64("aloha/actions_pi")) < ROUNDING);

    let transforms = DataTransforms {
        adapt_to_pi: true,
        delta_mask: Some(aloha_delta_mask()),
    };
    let mut state = g.f64("aloha/state");
    let mut actions = g.f64("aloha/actions");
    for (state, chunk) in state.chunks_mut(14).zip(actions.chunks_mut(8 * 14)) {
        transforms.state(state);
        transforms.actions(chunk, 14, state);
    }
    assert!(distance(actions.clone(), g.f64("aloha/actions_pi_delta")) < ROUNDING);

    // There and back again.
    for (state, chunk) in state.chunks(14).zip(actions.chunks_mut(8 * 14)) {
        transforms.actions_to_robot(chunk, 14, state);
    }
    assert!(distance(actions, g.f64("aloha/actions")) < 1e-12);
}

#[test]
fn model_actions_come_back_to_the_robot() {
    let g = data_ops();
    let state = g.f64("aloha/state_pi");
    let absolute = DataTransforms {
        adapt_to_pi: false,
        delta_mask: Some(aloha_delta_mask()),
    };
    let robot = DataTransforms {
        adapt_to_pi: true,
        delta_mask: Some(aloha_delta_mask()),
    };
    let (mut wide_actions, mut narrow) = (g.f64("aloha/model_actions"), Vec::new());
    for (state, chunk) in state.chunks(14).zip(wide_actions.chunks_mut(8 * 32)) {
        let mut cut: Vec<f64> = chunk.chunks(32).flat_map(|a| a[..14].to_vec()).collect();
        robot.actions_to_robot(&mut cut, 14, state);
        narrow.extend(cut);
        absolute.actions_to_robot(chunk, 32, state);
    }
    assert!(distance(wide_actions, g.f64("aloha/model_actions_absolute")) < ROUNDING);
    assert!(distance(narrow, g.f64("aloha/model_actions_robot")) < ROUNDING);
}

#[test]
fn pixels_in_the_models_range() {
    let g = data_ops();
    let ours: Vec<f32> = g.u8("u8_to_model/in").into_iter().map(pixel_to_model).collect();
    assert_eq!(ours, g.f32("u8_to_model/out"));
}

#[test]
fn padding_rounds_and_fills_with_zeros() {
    let mut out = [9.0; 4];
    pad_into(&[0.1, -2.0], &mut out);
    assert_eq!(out, [0.1, -2.0, 0.0, 0.0]);
}

#[test]
fn resize_of_the_reference_group() {
    let g = data_ops();
    for (i, size) in [56, 42, 56, 56].into_iter().enumerate() {
        let name = |part: &str| format!("resize{i}/{part}");
        let shape = g.shape(&name("u8_in"));
        let image = RgbImage {
            height: shape[0],
            width: shape[1],
            pixels: g.u8(&name("u8_in")),
        };
        assert_eq!(resize_with_pad(&image, size, size), g.u8(&name("u8_out")), "u8 {i}");
        let shape = g.shape(&name("f32_in"));
        let out = resize_with_pad_f32(&g.f32(&name("f32_in")), shape[0], shape[1], size, size);
        assert!(
            distance(wide(&out), wide(&g.f32(&name("f32_out")))) < ROUNDING,
            "f32 {i}"
        );
    }
}

#[test]
fn resize_is_pillows_bit_for_bit() {
    let g = Tensors::open(golden("resize/resize_with_pad_pil.safetensors"));
    let mut sizes = 0;
    for name in g
        .names()
        .iter()
        .filter_map(|n| n.strip_prefix("in_").map(str::to_owned))
    {
        let input = format!("in_{name}");
        let shape = g.shape(&input);
        let image = RgbImage {
            height: shape[0],
            width: shape[1],
            pixels: g.u8(&input),
        };
        assert!(
            resize_with_pad(&image, 224, 224) == g.u8(&format!("out_{name}")),
            "{name}"
        );
        sizes += 1;
    }
    assert_eq!(sizes, 8);
}

#[test]
fn running_sums_of_a_chunk() {
    let g = data_ops();
    let discount = json(golden("data_ops.json"))["groups"]["chunk"]["discount"]
        .as_f64()
        .unwrap();
    let (rewards, masks, terminals) = (g.f32("chunk/rewards"), g.f32("chunk/masks"), g.f32("chunk/terminals"));
    let horizon = g.shape("chunk/rewards")[1];
    let (sums, mins, valid) = (g.f64("chunk/cum_reward"), g.f32("chunk/mask"), g.f32("chunk/valid"));
    for (b, rewards) in rewards.chunks(horizon).enumerate() {
        let row = b * horizon..(b + 1) * horizon;
        // The fixture separates terminals (weights) from masks (bootstrap); with us a terminal is both.
        let by_terminal: Vec<bool> = terminals[row.clone()].iter().map(|t| *t == 1.0).collect();
        let by_mask: Vec<bool> = masks[row.clone()].iter().map(|m| *m == 0.0).collect();
        let running = Running::of(rewards, &by_terminal, discount);
        assert!(distance(running.reward, sums[row.clone()].to_vec()) < ROUNDING);
        let expected: Vec<bool> = valid[row.clone()].iter().map(|v| *v == 1.0).collect();
        assert_eq!(running.valid, expected);
        assert_eq!(Running::of(rewards, &by_mask, discount).mask, mins[row]);
    }
}

#[test]
fn prompts_are_openpis() {
    let expected = json(golden("tokenizer/expected.json"));
    let tokenizer = tokenizer();
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 50);
    for case in cases {
        let text = case["prompt"].as_str().unwrap();
        let state = case["state"]
            .as_array()
            .map(|s| s.iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>());
        let len = case["max_len"].as_u64().unwrap() as usize;
        let prompt = tokenizer.prompt(text, state.as_deref(), len).unwrap();
        let tokens: Vec<i32> = case["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_i64().unwrap() as i32)
            .collect();
        let mask: Vec<bool> = case["mask"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_bool().unwrap())
            .collect();
        assert_eq!(prompt.tokens, tokens, "{text:?} {state:?}");
        assert_eq!(prompt.mask, mask, "{text:?}");
        assert_eq!(prompt.untruncated as u64, case["untruncated_len"].as_u64().unwrap());
    }
}

#[test]
fn control_pieces_in_a_prompt_are_text() {
    let tokenizer = tokenizer();
    for text in ["<bos>", "a <eos> b", "<pad>", "<unk>", "a \u{2047} b"] {
        let tokens = tokenizer.prompt(text, None, 48).unwrap();
        let inside = &tokens.tokens[1..tokens.untruncated];
        assert!(inside.iter().all(|t| *t > 3), "{text}: {inside:?}");
    }
}
