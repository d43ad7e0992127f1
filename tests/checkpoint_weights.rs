//! Loading weights: the golden files under every name and type they may have, and everything that is wrong with others.

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use acrlpd::checkpoint::Weights;
use acrlpd::model::dims::Pi0Dims;
use acrlpd::model::tables;
use checkpoint_support::{EMBEDDING, Plain, TIED, UNUSED, golden, golden_weights, read_plain, tiny, write_plain};
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::TempDir;

/// Every tensor of the tiny π₀ (or π₀.₅) is in `path`, with the values of `expected`; returns what is left over.
fn assert_loads(path: &Path, pi05: bool, expected: &Plain) -> Vec<String> {
    let table = tables::pi0(&tiny(pi05));
    let weights = Weights::open(path).unwrap_or_else(|e| panic!("{e}"));
    let extra = weights.check(&table, "").unwrap_or_else(|e| panic!("{e}"));
    for tensor in table.tensors() {
        let (shape, values) = &expected[&tensor.name];
        assert_eq!(
            (&tensor.shape, &weights.tensor(tensor).unwrap()),
            (shape, values),
            "{}",
            tensor.name
        );
    }
    assert_eq!(weights.architecture(), Some(if pi05 { "π₀.₅" } else { "π₀" }));
    extra.into_iter().map(String::from).collect()
}

fn error(path: &Path, pi05: bool) -> String {
    let opened = Weights::open(path);
    let message = match &opened {
        Ok(weights) => weights
            .check(&tables::pi0(&tiny(pi05)), "")
            .expect_err("it loads")
            .to_string(),
        Err(error) => error.to_string(),
    };
    assert!(
        message.contains(path.file_stem().unwrap().to_str().unwrap()) && !message.contains('\n'),
        "{message}"
    );
    message
}

/// The golden π₀ after a change, in a file of its own.
fn changed(change: impl FnOnce(&mut Plain)) -> (TempDir, std::path::PathBuf) {
    let mut tensors = read_plain(golden_weights(false));
    change(&mut tensors);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("changed.safetensors");
    write_plain(&path, &tensors, Dtype::F32);
    (dir, path)
}

#[test]
fn golden_weights_have_exactly_the_tables_names_and_shapes() {
    for pi05 in [false, true] {
        let plain = read_plain(golden_weights(pi05));
        assert!(assert_loads(&golden_weights(pi05), pi05, &plain).is_empty());
        let table = tables::pi0(&tiny(pi05));
        let shapes: BTreeMap<_, _> = table.tensors().map(|t| (t.name.clone(), t.shape.clone())).collect();
        let stored: BTreeMap<_, _> = plain.into_iter().map(|(name, (shape, _))| (name, shape)).collect();
        assert_eq!(shapes, stored);
    }
}

#[test]
fn full_size_tables_have_the_published_names_and_shapes() {
    for (pi05, file, parameters) in [
        (false, "pi0_full_shapes.json", Some(3_238_048_528)),
        (true, "pi05_full_shapes.json", None),
    ] {
        let text = fs::read_to_string(golden(file)).unwrap();
        let published: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).unwrap();
        let table = tables::pi0(&Pi0Dims::full(50, pi05));
        let shapes: BTreeMap<_, _> = table.tensors().map(|t| (t.name.clone(), t.shape.clone())).collect();
        assert_eq!(shapes.len(), table.tensors().count(), "a name occurs twice");
        assert_eq!(shapes, published, "{file}");
        assert_eq!(parameters.unwrap_or(table.len()), table.len());
        for horizon in [5, 20] {
            assert_eq!(
                tables::pi0(&Pi0Dims::full(horizon, pi05)),
                table,
                "weights do not depend on the horizon"
            );
        }
    }
}

#[test]
fn a_wrapper_s_prefix_is_no_hindrance() {
    let plain = read_plain(golden_weights(true));
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("wrapped.safetensors");
    let wrapped = plain
        .iter()
        .map(|(name, tensor)| (format!("model.{name}"), tensor.clone()))
        .collect();
    write_plain(&path, &wrapped, Dtype::F32);
    assert!(assert_loads(&path, true, &plain).is_empty());
}

#[test]
fn the_embedding_may_be_the_tied_output_layer() {
    let plain = read_plain(golden_weights(false));
    for prefix in ["", "model."] {
        let (_dir, path) = changed(|t| {
            let embedding = t.remove(EMBEDDING).unwrap();
            t.insert(format!("{prefix}{TIED}"), embedding);
            t.insert(UNUSED.into(), (vec![2, 3], vec![0.0; 6]));
        });
        assert!(assert_loads(&path, false, &plain).is_empty());
    }
    // With both there, the embedding's own name counts.
    let (_dir, path) = changed(|t| {
        t.insert(TIED.into(), (vec![1], vec![0.0]));
    });
    assert!(assert_loads(&path, false, &plain).is_empty());
}

/// What PaliGemma's modules were called before transformers 4.52, and are from 5 on.
#[test]
fn paligemma_s_modules_have_moved() {
    let plain = read_plain(golden_weights(true));
    let inner = "paligemma_with_expert.paligemma.";
    let old = |name: &str| {
        name.replace(
            &format!("{inner}model.language_model."),
            &format!("{inner}language_model.model."),
        )
        .replace(&format!("{inner}model."), inner)
    };
    let new = |name: &str| name.replace("vision_tower.vision_model.", "vision_tower.");
    let dir = TempDir::new().unwrap();
    for (file, rename) in [("old", &old as &dyn Fn(&str) -> String), ("new", &new)] {
        let path = dir.path().join(file);
        let moved: Plain = plain
            .iter()
            .map(|(name, tensor)| (rename(name), tensor.clone()))
            .collect();
        assert!(!moved.keys().eq(plain.keys()));
        write_plain(&path, &moved, Dtype::F32);
        assert!(assert_loads(&path, true, &plain).is_empty());
    }
}

#[test]
fn everything_that_is_wrong_is_listed_at_once() {
    let (_dir, path) = changed(|t| {
        for layer in 0..2 {
            for part in ["mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2", "self_attn.out_proj"] {
                for what in ["weight", "bias"] {
                    let name = format!(
                        "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.{layer}.{part}.{what}"
                    );
                    t.remove(&name).expect(&name);
                }
            }
        }
        t.get_mut("state_proj.bias").unwrap().0 = vec![1, 32];
        t.get_mut("action_in_proj.bias").unwrap().0 = vec![1, 32];
        t.insert("normalize_inputs.mean".into(), (vec![1], vec![0.0]));
    });
    let message = error(&path, false);
    assert!(
        message.contains("does not fit the model: 20 tensors are missing (`paligemma_with_expert"),
        "{message}"
    );
    assert_eq!(message.matches("vision_model.encoder").count(), 10, "{message}");
    assert!(
        message.contains(", …); 2 tensors are of another shape (`action_in_proj.bias` is [1, 32], not [32]"),
        "{message}"
    );
    assert!(
        message.contains("; 1 tensor is left over (`normalize_inputs.mean`); give"),
        "{message}"
    );
}

#[test]
fn half_precision_widens_exactly() {
    let plain = read_plain(golden_weights(false));
    let dir = TempDir::new().unwrap();
    let rounded = |round: fn(f32) -> f32| -> Plain {
        let tensors = plain.iter();
        tensors
            .map(|(name, (shape, v))| (name.clone(), (shape.clone(), v.iter().map(|x| round(*x)).collect())))
            .collect()
    };
    for (dtype, expected) in [
        (Dtype::BF16, rounded(|x| bf16::from_f32(x).to_f32())),
        (Dtype::F16, rounded(|x| f16::from_f32(x).to_f32())),
    ] {
        let path = dir.path().join(format!("{dtype:?}.safetensors"));
        write_plain(&path, &plain, dtype);
        assert!(assert_loads(&path, false, &expected).is_empty());
    }
}

#[test]
fn folders_hold_one_file_or_shards() {
    let plain = read_plain(golden_weights(false));
    let dir = TempDir::new().unwrap();
    let message = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("neither model.safetensors nor model.safetensors.index.json"),
        "{message}"
    );
    fs::write(dir.path().join("_METADATA"), "{}").unwrap();
    assert!(
        Weights::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("part of an Orbax checkpoint")
    );

    // Shards of every third tensor, the last one with another type.
    let mut index = BTreeMap::new();
    for shard in 0..3 {
        let name = format!("model-{shard}-of-3.safetensors");
        let part: Plain = plain.clone().into_iter().skip(shard).step_by(3).collect();
        index.extend(part.keys().map(|tensor| (tensor.clone(), name.clone())));
        write_plain(dir.path().join(&name), &part, Dtype::F32);
    }
    let index_path = dir.path().join("model.safetensors.index.json");
    let write_index = |map: &BTreeMap<String, String>| {
        fs::write(
            &index_path,
            serde_json::json!({ "metadata": {}, "weight_map": map }).to_string(),
        )
        .unwrap();
    };
    write_index(&index);
    assert!(assert_loads(dir.path(), false, &plain).is_empty());

    let broken = |shard: &str| {
        let mut map = index.clone();
        map.insert("action_in_proj.bias".into(), shard.into());
        write_index(&map);
        let message = Weights::open(dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("`action_in_proj.bias`") && message.contains(&format!("`{shard}`")),
            "{message}"
        );
        message
    };
    assert!(broken("model-9-of-3.safetensors").contains("does not exist"));
    assert!(broken("../model-0-of-3.safetensors").contains("not the name of a file beside it"));
    let (here, other) = (index["action_in_proj.bias"].clone(), "model-0-of-3.safetensors");
    let elsewhere = if here == other {
        "model-1-of-3.safetensors"
    } else {
        other
    };
    assert!(broken(elsewhere).contains("does not hold it"));
    fs::write(&index_path, "[]").unwrap();
    assert!(
        Weights::open(dir.path())
            .unwrap_err()
            .to_string()
            .contains("not an index of shards")
    );

    // A single file beside them wins.
    fs::copy(golden_weights(false), dir.path().join("model.safetensors")).unwrap();
    assert!(assert_loads(dir.path(), false, &plain).is_empty());
}

#[test]
fn weights_of_the_other_model_are_recognised() {
    let (pi0, pi05) = (golden_weights(false), golden_weights(true));
    let message = error(&pi05, false);
    assert!(
        message.contains("holds π₀.₅, but the config describes π₀ (") && message.contains("model.pi05 = true"),
        "{message}"
    );
    let message = error(&pi0, true);
    assert!(
        message.contains("holds π₀, but the config describes π₀.₅ (") && message.contains("model.pi05 = false"),
        "{message}"
    );
}

#[test]
fn missing_and_misshapen_tensors_are_named_with_their_shapes() {
    let (_dir, path) = changed(|t| drop(t.remove("action_out_proj.weight")));
    let message = error(&path, false);
    assert!(
        message.contains("1 tensor is missing (`action_out_proj.weight` [32, 32]);"),
        "{message}"
    );
    let (_dir, path) = changed(|t| drop(t.remove(EMBEDDING)));
    assert!(error(&path, false).contains("embed_tokens"));
    let (_dir, path) = changed(|t| t.get_mut("action_out_proj.weight").unwrap().0 = vec![16, 64]);
    let message = error(&path, false);
    assert!(
        message.contains("1 tensor is of another shape (`action_out_proj.weight` is [16, 64], not [32, 32]);"),
        "{message}"
    );

    let dir = TempDir::new().unwrap();
    let path = dir.path().join("integers.safetensors");
    write_plain(&path, &read_plain(golden_weights(false)), Dtype::I32);
    let message = error(&path, false);
    assert!(
        message.contains("124 tensors are of a type other than F32, F16 and BF16 (`"),
        "{message}"
    );
    assert_eq!(message.matches(" is I32").count(), 10, "{message}");
    let tensor = tables::pi0(&tiny(false)).tensors().next().unwrap().clone();
    assert!(
        Weights::open(&path)
            .unwrap()
            .tensor(&tensor)
            .unwrap_err()
            .to_string()
            .contains("I32")
    );
}

#[test]
fn files_that_are_not_safetensors() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("bad.safetensors");
    assert!(error(&path, false).contains("cannot read"));
    for (content, words) in [
        (&b""[..], "header too small"),
        (b"torch", "header too small"),
        (&[255; 64], "header too large"),
        (b"\x02\0\0\0\0\0\0\0{}junk", "not fully covered"),
        (b"\x02\0\0\0\0\0\0\0[]", "invalid JSON"),
    ] {
        fs::write(&path, content).unwrap();
        let message = error(&path, false);
        assert!(
            message.contains(words) && message.contains("copy or download it again"),
            "{message}"
        );
    }
    let whole = fs::read(golden_weights(false)).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert!(error(&path, false).contains("not a whole safetensors file"));
}

proptest! {
    /// Whatever happens to the first kilobytes of a file, reading it is an error or gives numbers.
    #[test]
    fn damaged_headers_never_panic(
        flips in prop::collection::vec((0..16_000usize, any::<u8>()), 1..4), cut in 0..20_000usize,
    ) {
        let mut bytes = fs::read(golden_weights(false)).unwrap();
        flips.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        if cut < 10_000 {
            bytes.truncate(cut);
        }
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x.safetensors");
        fs::write(&path, bytes).unwrap();
        if let Ok(weights) = Weights::open(&path) {
            for tensor in tables::pi0(&tiny(false)).tensors() {
                if let Ok(values) = weights.tensor(tensor) {
                    prop_assert_eq!(values.len(), tensor.len());
                }
            }
        }
    }
}
