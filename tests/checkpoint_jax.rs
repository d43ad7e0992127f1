//! The JAX tree: the golden weights in JAX's names and layouts, written as an Orbax checkpoint, are the golden weights.

#[path = "checkpoint_support/orbax.rs"]
mod orbax;

#[path = "checkpoint_support/jax.rs"]
mod tree;

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs;

use acrlpd::checkpoint::{Weights, jax};
use acrlpd::model::tables;
use assert_cmd::Command;
use checkpoint_support::{EMBEDDING, golden_weights, read_plain, tiny, write_plain};
use half::bf16;
use orbax::Array;
use safetensors::Dtype;
use tempfile::TempDir;
use tree::{Tree, jax_tree};

/// Chunks of various sizes: whole, and divided as shards of several devices are.
fn arrays(tree: &Tree, half: bool) -> Vec<Array> {
    let mut arrays = Vec::new();
    for (i, (path, (shape, values))) in tree.iter().enumerate() {
        let mut chunks = shape.clone();
        let axis = i % (shape.len() + 1);
        if axis < shape.len() {
            chunks[axis] = chunks[axis].div_ceil(3);
        }
        let bytes = match half {
            true => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            false => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        arrays.push(Array {
            path: path.clone(),
            dtype: if half { "bfloat16" } else { "<f4" },
            shape: shape.clone(),
            chunks,
            bytes,
        });
    }
    arrays
}

#[test]
fn golden_weights_as_a_jax_checkpoint_load_to_the_same_bits() {
    for pi05 in [false, true] {
        let plain = read_plain(golden_weights(pi05));
        let tree = jax_tree(&plain, pi05);
        let table = tables::pi0(&tiny(pi05));
        for half in [false, true] {
            let dir = TempDir::new().unwrap();
            orbax::write(&dir.path().join("30000/params"), &arrays(&tree, half));
            let weights = Weights::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(weights.check(&table, "").unwrap_or_else(|e| panic!("{e}")), [""; 0]);
            assert_eq!(weights.architecture(), Some(if pi05 { "π₀.₅" } else { "π₀" }));
            for tensor in table.tensors() {
                let expected = plain[&tensor.name].1.iter();
                let expected: Vec<f32> = expected
                    .map(|v| if half { bf16::from_f32(*v).to_f32() } else { *v })
                    .collect();
                assert_eq!(weights.tensor(tensor).unwrap(), expected, "{}", tensor.name);
            }
        }
    }
}

/// A step from the JAX checkpoint is a step from the same weights in a file.
#[test]
fn training_starts_from_a_jax_checkpoint() {
    let mut plain = read_plain(golden_weights(false));
    // The shipped tokenizer has more pieces than the golden model.
    let (shape, values) = plain.get_mut(EMBEDDING).unwrap();
    shape[0] = 600;
    values.resize(600 * shape[1], 0.01);
    let dir = TempDir::new().unwrap();
    write_plain(dir.path().join("file"), &plain, Dtype::F32);
    orbax::write(&dir.path().join("jax/params"), &arrays(&jax_tree(&plain, false), false));
    let train = |weights: &str| {
        let mut command = Command::cargo_bin("acrlpd").unwrap();
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        command.args(["train", "--config=debug", "--max-steps=1", "--set=model.dims.vocab=600"]);
        command.arg(format!("--set=model.weights={}", dir.path().join(weights).display()));
        command.arg(format!("--checkpoint-dir={}", dir.path().display()));
        command.arg(format!("--exp-name={weights}-run")).assert().success();
        fs::read(dir.path().join(format!("debug/{weights}-run/1/params.safetensors"))).unwrap()
    };
    assert!(train("file") == train("jax"));
}

#[test]
fn what_the_model_does_not_have_is_left_over_and_what_it_lacks_is_missing() {
    let plain = read_plain(golden_weights(false));
    let mut tree = jax_tree(&plain, false);
    let lora = "PaliGemma/llm/layers/attn/q_einsum/lora_a";
    tree.insert(lora.into(), (vec![2, 2], vec![0.0; 4]));
    let dir = TempDir::new().unwrap();
    orbax::write(dir.path(), &arrays(&tree, false));
    let table = tables::pi0(&tiny(false));
    assert_eq!(Weights::open(dir.path()).unwrap().check(&table, "").unwrap(), [lora]);

    tree.remove("PaliGemma/llm/layers/mlp/linear");
    let dir = TempDir::new().unwrap();
    orbax::write(dir.path(), &arrays(&tree, false));
    let message = Weights::open(dir.path())
        .unwrap()
        .check(&table, "")
        .unwrap_err()
        .to_string();
    let depth = tiny(false).depth;
    assert!(
        message.contains(&format!("{depth} tensors are missing (`")),
        "{message}"
    );
    assert!(
        message.contains("layers.0.mlp.down_proj.weight` [") && message.contains("1 tensor is left over (`PaliGemma"),
        "{message}"
    );
}

/// The shapes of the released models' arrays, from the sizes of SigLIP So400m/14 and the two Gemmas.
#[test]
fn full_size_arrays_have_the_published_names_and_shapes() {
    for (pi05, file) in [(false, "pi0_full_shapes.json"), (true, "pi05_full_shapes.json")] {
        let text = fs::read_to_string(checkpoint_support::golden(file)).unwrap();
        let published: BTreeMap<String, Vec<usize>> = serde_json::from_str(&text).unwrap();
        let mut found = BTreeMap::new();
        for (path, shape) in full(pi05) {
            for (name, origin) in jax::tensors(&path, &shape).unwrap_or_else(|| panic!("{path}")) {
                assert!(found.insert(name, origin.shape).is_none(), "{path}");
            }
        }
        assert_eq!(found, published);
    }
}

fn full(pi05: bool) -> Vec<(String, Vec<usize>)> {
    let mut all: Vec<(String, Vec<usize>)> = Vec::new();
    let mut add = |path: &str, shape: &[usize]| all.push((path.into(), shape.to_vec()));
    add("PaliGemma/img/embedding/kernel", &[14, 14, 3, 1152]);
    add("PaliGemma/img/embedding/bias", &[1152]);
    add("PaliGemma/img/pos_embedding", &[1, 256, 1152]);
    add("PaliGemma/img/head/kernel", &[1152, 2048]);
    add("PaliGemma/img/head/bias", &[2048]);
    let block = "PaliGemma/img/Transformer/encoderblock/";
    for what in ["scale", "bias"] {
        add(&format!("PaliGemma/img/Transformer/encoder_norm/{what}"), &[1152]);
        add(&format!("{block}LayerNorm_0/{what}"), &[27, 1152]);
        add(&format!("{block}LayerNorm_1/{what}"), &[27, 1152]);
    }
    add(&format!("{block}MlpBlock_0/Dense_0/kernel"), &[27, 1152, 4304]);
    add(&format!("{block}MlpBlock_0/Dense_0/bias"), &[27, 4304]);
    add(&format!("{block}MlpBlock_0/Dense_1/kernel"), &[27, 4304, 1152]);
    add(&format!("{block}MlpBlock_0/Dense_1/bias"), &[27, 1152]);
    for what in ["query", "key", "value"] {
        add(
            &format!("{block}MultiHeadDotProductAttention_0/{what}/kernel"),
            &[27, 1152, 16, 72],
        );
        add(
            &format!("{block}MultiHeadDotProductAttention_0/{what}/bias"),
            &[27, 16, 72],
        );
    }
    add(
        &format!("{block}MultiHeadDotProductAttention_0/out/kernel"),
        &[27, 16, 72, 1152],
    );
    add(&format!("{block}MultiHeadDotProductAttention_0/out/bias"), &[27, 1152]);
    add("PaliGemma/llm/embedder/input_embedding", &[257_152, 2048]);
    for (star, width, mlp, adaptive) in [("", 2048, 16384, false), ("_1", 1024, 4096, pi05)] {
        let layers = "PaliGemma/llm/layers/";
        add(&format!("{layers}attn/q_einsum{star}/w"), &[18, 8, width, 256]);
        add(&format!("{layers}attn/kv_einsum{star}/w"), &[18, 2, 1, width, 256]);
        add(&format!("{layers}attn/attn_vec_einsum{star}/w"), &[18, 8, 256, width]);
        add(&format!("{layers}mlp{star}/gating_einsum"), &[18, 2, width, mlp]);
        add(&format!("{layers}mlp{star}/linear"), &[18, mlp, width]);
        for norm in ["layers/pre_attention_norm", "layers/pre_ffw_norm", "final_norm"] {
            let stacked: &[usize] = if norm == "final_norm" { &[] } else { &[18] };
            let at = format!("PaliGemma/llm/{norm}{star}");
            match adaptive {
                true => {
                    add(
                        &format!("{at}/Dense_0/kernel"),
                        &[stacked, &[width, 3 * width]].concat(),
                    );
                    add(&format!("{at}/Dense_0/bias"), &[stacked, &[3 * width]].concat());
                }
                false => add(&format!("{at}/scale"), &[stacked, &[width]].concat()),
            }
        }
    }
    let heads: &[(&str, usize, usize)] = match pi05 {
        true => &[
            ("action_in_proj", 32, 1024),
            ("time_mlp_in", 1024, 1024),
            ("time_mlp_out", 1024, 1024),
            ("action_out_proj", 1024, 32),
        ],
        false => &[
            ("action_in_proj", 32, 1024),
            ("state_proj", 32, 1024),
            ("action_time_mlp_in", 2048, 1024),
            ("action_time_mlp_out", 1024, 1024),
            ("action_out_proj", 1024, 32),
        ],
    };
    for (name, fan_in, out) in heads {
        add(&format!("{name}/kernel"), &[*fan_in, *out]);
        add(&format!("{name}/bias"), &[*out]);
    }
    all
}
