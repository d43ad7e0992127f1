//! Resize and tokenizer against the originals' numbers, and edges of the transforms that `verify` does not visit
//! (it judges the group `data_ops`, tests/golden.rs).

mod data_support;

use acrlpd::data::resize::resize_with_pad;
use acrlpd::data::transforms::{DataTransforms, Normalizer, aloha_delta_mask, pad_into};
use acrlpd::data::{NormKind, RgbImage, Stats};
use data_support::{Tensors, distance, golden, json, tokenizer};

/// Computed in f64 on both sides and rounded to f32: one unit in the last place.
const ROUNDING: f64 = 1.2e-7;

fn data_ops() -> Tensors {
    Tensors::open(golden("data_ops.safetensors"))
}

#[test]
fn normalisers_need_wide_statistics_with_quantiles() {
    let g = data_ops();
    let stats = Stats {
        mean: g.f64("norm/mean"),
        std: g.f64("norm/std"),
        q01: Some(g.f64("norm/q01")),
        q99: Some(g.f64("norm/q99")),
    };
    for (kind, name) in [(NormKind::ZScore, "zscore"), (NormKind::Quantile, "quantile")] {
        // Statistics wider than the vector are cut to its width.
        let normalizer = Normalizer::new(&stats, kind, "state", 5).unwrap();
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
fn robot_actions_survive_the_way_to_the_model_and_back() {
    let g = data_ops();
    let transforms = DataTransforms {
        adapt_to_pi: true,
        delta_mask: Some(aloha_delta_mask()),
    };
    let mut state = g.f64("aloha/state");
    let mut actions = g.f64("aloha/actions");
    for (state, chunk) in state.chunks_mut(14).zip(actions.chunks_mut(8 * 14)) {
        transforms.state(state);
        transforms.actions(chunk, 14, state);
        transforms.actions_to_robot(chunk, 14, state);
    }
    assert!(distance(actions, g.f64("aloha/actions")) < 1e-12);
}

#[test]
fn padding_rounds_and_fills_with_zeros() {
    let mut out = [9.0; 4];
    pad_into(&[0.1, -2.0], &mut out);
    assert_eq!(out, [0.1, -2.0, 0.0, 0.0]);
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
