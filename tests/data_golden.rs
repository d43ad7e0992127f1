//! Resize and tokenizer against the originals' numbers, and edges of the transforms that `verify` does not visit
//! (it judges the group `data_ops`, tests/golden.rs).

mod data_support;

use acrlpd::data::aloha::ALOHA_DELTAS;
use acrlpd::data::resize::resize_with_pad;
use acrlpd::data::transforms::{DataTransforms, Kind, Normalizer, mask, pad_into};
use acrlpd::data::{NormKind, PromptTokenizer, RgbImage, Stats};
use data_support::{Tensors, distance, golden, json, tokenizer};
use serde_json::Value;

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
        robot: vec![Kind::Aloha],
        delta_mask: Some(mask(&ALOHA_DELTAS, 14)),
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

/// The same tokenizer as a SentencePiece model and as a `tokenizer.json`.
const FORMS: [&str; 2] = ["tokenizer/tiny_paligemma.model", "tokenizer/tiny_paligemma.json"];

#[test]
fn prompts_are_openpis() {
    let expected = json(golden("tokenizer/expected.json"));
    let cases = expected["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 50);
    for (form, case) in FORMS.iter().flat_map(|form| cases.iter().map(move |case| (form, case))) {
        let list = |key: &str| case[key].as_array();
        let text = case["prompt"].as_str().unwrap();
        let state: Option<Vec<f64>> = list("state").map(|s| s.iter().map(|v| v.as_f64().unwrap()).collect());
        let len = case["max_len"].as_u64().unwrap() as usize;
        let tokenizer = PromptTokenizer::from_file(golden(form)).unwrap();
        assert_eq!(tokenizer.ids(), 600);
        let prompt = tokenizer.prompt(text, state.as_deref(), len).unwrap();
        let tokens: Vec<i64> = list("tokens").unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
        let mask: Vec<bool> = list("mask").unwrap().iter().map(|v| v.as_bool().unwrap()).collect();
        assert!(
            prompt.tokens.iter().map(|t| i64::from(*t)).eq(tokens),
            "{form} {text:?} {state:?}"
        );
        assert_eq!(prompt.mask, mask, "{form} {text:?}");
        assert_eq!(prompt.untruncated as u64, case["untruncated_len"].as_u64().unwrap());
    }
}

#[test]
fn control_pieces_in_a_prompt_are_text() {
    for form in FORMS {
        let tokenizer = PromptTokenizer::from_file(golden(form)).unwrap();
        for text in [
            "<bos>",
            "<s>",
            "a </s> b",
            "a <eos> b",
            "<pad>",
            "<unk>",
            "a \u{2047} b",
        ] {
            let tokens = tokenizer.prompt(text, None, 48).unwrap();
            let inside = &tokens.tokens[1..tokens.untruncated];
            assert!(inside.iter().all(|t| *t > 3), "{form} {text}: {inside:?}");
        }
    }
}

/// A `tokenizer.json` as people have them: saved with padding, without a template, with tokens for pictures.
#[test]
fn a_tokenizer_json_may_say_more_or_less() {
    let dir = tempfile::tempdir().unwrap();
    let read = |edit: &dyn Fn(&mut Value)| {
        let mut file = json(golden(FORMS[1]));
        edit(&mut file);
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, file.to_string()).unwrap();
        PromptTokenizer::from_file(path).map_err(|e| e.to_string())
    };
    let expected = tokenizer().prompt("fold_the box", None, 48).unwrap();
    let padding = |file: &mut Value| {
        file["truncation"] =
            serde_json::json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        file["padding"] = serde_json::json!({
            "strategy": {"Fixed": 4_000_000_000u32}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<pad>"
        });
    };
    let pictures = |file: &mut Value| {
        let mut image = file["added_tokens"][0].clone();
        image["id"] = 600.into();
        image["content"] = "<image>".into();
        file["added_tokens"].as_array_mut().unwrap().push(image);
    };
    let no_template = |file: &mut Value| file["post_processor"] = Value::Null;
    let edits: [&dyn Fn(&mut Value); 3] = [&padding, &pictures, &no_template];
    for edit in edits {
        let tokenizer = read(edit).unwrap();
        assert_eq!(tokenizer.prompt("fold_the box", None, 48).unwrap(), expected);
        // Nothing in a prompt becomes a token of pictures, so the embedding need not have one.
        assert_eq!(tokenizer.ids(), 600);
    }
    let nameless = |file: &mut Value| {
        no_template(file);
        file["added_tokens"][2]["content"] = "<begin>".into();
    };
    assert!(read(&nameless).unwrap_err().contains("names no token that begins"));
    let huge = |file: &mut Value| file["model"]["vocab"]["t"] = 3_000_000_000u32.into();
    assert!(
        read(&huge)
            .unwrap_err()
            .contains("has the id 3000000000, which is too large")
    );
}
