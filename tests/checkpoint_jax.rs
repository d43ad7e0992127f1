//! The JAX tree: the golden weights in JAX's names and layouts, written as an Orbax checkpoint, are the golden weights.

#[path = "checkpoint_support/orbax.rs"]
mod orbax;

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs;

use acrlpd::checkpoint::{Weights, jax};
use acrlpd::model::dims::Pi0Dims;
use acrlpd::model::tables;
use checkpoint_support::{Plain, golden_weights, read_plain, tiny};
use half::bf16;
use orbax::Array;
use tempfile::TempDir;

/// An array by its elements: path, shape, and of every index the tensor and the index in it.
struct Jax<'a> {
    weights: &'a Plain,
    dims: Pi0Dims,
    arrays: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";

impl Jax<'_> {
    /// One element of a tensor.
    fn get(&self, name: &str, index: &[usize]) -> f32 {
        let (shape, values) = &self.weights[name];
        assert_eq!(shape.len(), index.len(), "{name}");
        let at = index.iter().zip(shape).fold(0, |at, (i, size)| {
            assert!(i < size, "{name} {shape:?} {index:?}");
            at * size + i
        });
        values[at]
    }

    /// Adds an array of which `element` gives every element.
    fn add(&mut self, path: &str, shape: &[usize], element: impl Fn(&Self, &[usize]) -> f32) {
        let index = |flat: usize| {
            let mut rest = flat;
            let mut index: Vec<usize> = shape.iter().rev().map(|d| (rest % d, rest /= d).0).collect();
            index.reverse();
            index
        };
        let values = (0..shape.iter().product())
            .map(|flat| element(self, &index(flat)))
            .collect();
        self.arrays.insert(path.into(), (shape.to_vec(), values));
    }

    fn vision(&mut self) {
        let d = self.dims.clone();
        let (w, f, n, h) = (d.vision.width, d.vision.mlp, d.vision_heads, d.vision_attention().dim);
        let v = |rest: &str| format!("{VISION}{rest}");
        let layer = |i: usize, rest: &str| format!("{VISION}encoder.layers.{i}.{rest}");
        self.add("PaliGemma/img/embedding/kernel", &[d.patch, d.patch, 3, w], |j, i| {
            j.get(&v("embeddings.patch_embedding.weight"), &[i[3], i[2], i[0], i[1]])
        });
        self.add("PaliGemma/img/embedding/bias", &[w], |j, i| {
            j.get(&v("embeddings.patch_embedding.bias"), i)
        });
        self.add("PaliGemma/img/pos_embedding", &[1, d.image_tokens(), w], |j, i| {
            j.get(&v("embeddings.position_embedding.weight"), &i[1..])
        });
        for (jax, ours) in [("scale", "weight"), ("bias", "bias")] {
            self.add(
                &format!("PaliGemma/img/Transformer/encoder_norm/{jax}"),
                &[w],
                |j, i| j.get(&v(&format!("post_layernorm.{ours}")), i),
            );
            for norm in 0..2 {
                let path = format!("PaliGemma/img/Transformer/encoderblock/LayerNorm_{norm}/{jax}");
                self.add(&path, &[d.vision_depth, w], |j, i| {
                    j.get(&layer(i[0], &format!("layer_norm{}.{ours}", norm + 1)), &i[1..])
                });
            }
        }
        let block = "PaliGemma/img/Transformer/encoderblock/";
        for (dense, (fan_in, out)) in [(w, f), (f, w)].into_iter().enumerate() {
            let name = format!("mlp.fc{}", dense + 1);
            self.add(
                &format!("{block}MlpBlock_0/Dense_{dense}/kernel"),
                &[d.vision_depth, fan_in, out],
                |j, i| j.get(&layer(i[0], &format!("{name}.weight")), &[i[2], i[1]]),
            );
            self.add(
                &format!("{block}MlpBlock_0/Dense_{dense}/bias"),
                &[d.vision_depth, out],
                |j, i| j.get(&layer(i[0], &format!("{name}.bias")), &i[1..]),
            );
        }
        let attention = format!("{block}MultiHeadDotProductAttention_0/");
        for (jax, ours) in [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")] {
            self.add(
                &format!("{attention}{jax}/kernel"),
                &[d.vision_depth, w, n, h],
                |j, i| {
                    j.get(
                        &layer(i[0], &format!("self_attn.{ours}.weight")),
                        &[i[2] * h + i[3], i[1]],
                    )
                },
            );
            self.add(&format!("{attention}{jax}/bias"), &[d.vision_depth, n, h], |j, i| {
                j.get(&layer(i[0], &format!("self_attn.{ours}.bias")), &[i[1] * h + i[2]])
            });
        }
        self.add(&format!("{attention}out/kernel"), &[d.vision_depth, n, h, w], |j, i| {
            j.get(&layer(i[0], "self_attn.out_proj.weight"), &[i[3], i[1] * h + i[2]])
        });
        self.add(&format!("{attention}out/bias"), &[d.vision_depth, w], |j, i| {
            j.get(&layer(i[0], "self_attn.out_proj.bias"), &i[1..])
        });
    }

    fn gemma(&mut self, width: usize, mlp: usize, ours: &str, star: &str, adaptive: bool) {
        let (depth, n, k, h) = (self.dims.depth, self.dims.heads, self.dims.kv_heads, self.dims.head_dim);
        let layers = |rest: String| format!("PaliGemma/llm/layers/{rest}");
        let name = |i: usize, rest: &str| format!("{ours}layers.{i}.{rest}.weight");
        self.add(
            &layers(format!("attn/q_einsum{star}/w")),
            &[depth, n, width, h],
            |j, i| j.get(&name(i[0], "self_attn.q_proj"), &[i[1] * h + i[3], i[2]]),
        );
        self.add(
            &layers(format!("attn/kv_einsum{star}/w")),
            &[depth, 2, k, width, h],
            |j, i| {
                let which = ["self_attn.k_proj", "self_attn.v_proj"][i[1]];
                j.get(&name(i[0], which), &[i[2] * h + i[4], i[3]])
            },
        );
        self.add(
            &layers(format!("attn/attn_vec_einsum{star}/w")),
            &[depth, n, h, width],
            |j, i| j.get(&name(i[0], "self_attn.o_proj"), &[i[3], i[1] * h + i[2]]),
        );
        self.add(
            &layers(format!("mlp{star}/gating_einsum")),
            &[depth, 2, width, mlp],
            |j, i| {
                let which = ["mlp.gate_proj", "mlp.up_proj"][i[1]];
                j.get(&name(i[0], which), &[i[3], i[2]])
            },
        );
        self.add(&layers(format!("mlp{star}/linear")), &[depth, mlp, width], |j, i| {
            j.get(&name(i[0], "mlp.down_proj"), &[i[2], i[1]])
        });
        for (jax, torch) in [
            ("pre_attention_norm", "input_layernorm"),
            ("pre_ffw_norm", "post_attention_layernorm"),
        ] {
            let (at, inner) = (layers(format!("{jax}{star}")), |i: usize, what: &str| {
                format!("{ours}layers.{i}.{torch}.{what}")
            });
            if adaptive {
                self.add(&format!("{at}/Dense_0/kernel"), &[depth, width, 3 * width], |j, i| {
                    j.get(&inner(i[0], "dense.weight"), &[i[2], i[1]])
                });
                self.add(&format!("{at}/Dense_0/bias"), &[depth, 3 * width], |j, i| {
                    j.get(&inner(i[0], "dense.bias"), &i[1..])
                });
            } else {
                self.add(&format!("{at}/scale"), &[depth, width], |j, i| {
                    j.get(&inner(i[0], "weight"), &i[1..])
                });
            }
        }
        let at = format!("PaliGemma/llm/final_norm{star}");
        if adaptive {
            self.add(&format!("{at}/Dense_0/kernel"), &[width, 3 * width], |j, i| {
                j.get(&format!("{ours}norm.dense.weight"), &[i[1], i[0]])
            });
            self.add(&format!("{at}/Dense_0/bias"), &[3 * width], |j, i| {
                j.get(&format!("{ours}norm.dense.bias"), i)
            });
        } else {
            self.add(&format!("{at}/scale"), &[width], |j, i| {
                j.get(&format!("{ours}norm.weight"), i)
            });
        }
    }

    fn linear(&mut self, path: &str, name: &str) {
        let shape = self.weights[&format!("{name}weight")].0.clone();
        self.add(&format!("{path}/kernel"), &[shape[1], shape[0]], |j, i| {
            j.get(&format!("{name}weight"), &[i[1], i[0]])
        });
        self.add(&format!("{path}/bias"), &[shape[0]], |j, i| {
            j.get(&format!("{name}bias"), i)
        });
    }
}

fn jax_tree(weights: &Plain, pi05: bool) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let dims = tiny(pi05);
    let mut j = Jax {
        weights,
        dims: dims.clone(),
        arrays: BTreeMap::new(),
    };
    j.vision();
    j.linear(
        "PaliGemma/img/head",
        "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.",
    );
    let language = "paligemma_with_expert.paligemma.model.language_model.";
    j.add(
        "PaliGemma/llm/embedder/input_embedding",
        &[dims.vocab, dims.language.width],
        |j, i| j.get(&format!("{language}embed_tokens.weight"), i),
    );
    j.gemma(dims.language.width, dims.language.mlp, language, "", false);
    j.gemma(
        dims.expert.width,
        dims.expert.mlp,
        "paligemma_with_expert.gemma_expert.model.",
        "_1",
        pi05,
    );
    let heads: &[&str] = match pi05 {
        true => &["action_in_proj", "time_mlp_in", "time_mlp_out", "action_out_proj"],
        false => &[
            "action_in_proj",
            "state_proj",
            "action_time_mlp_in",
            "action_time_mlp_out",
            "action_out_proj",
        ],
    };
    heads.iter().for_each(|head| j.linear(head, &format!("{head}.")));
    j.arrays
}

/// Chunks of various sizes: whole, and divided as shards of several devices are.
fn arrays(tree: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, half: bool) -> Vec<Array> {
    let array = |(i, (path, (shape, values))): (usize, (&String, &(Vec<usize>, Vec<f32>)))| {
        let mut chunks = shape.clone();
        let axis = i % (shape.len() + 1);
        if axis < shape.len() {
            chunks[axis] = chunks[axis].div_ceil(3);
        }
        let bytes = match half {
            true => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            false => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let dtype = if half { "bfloat16" } else { "<f4" };
        Array {
            path: path.clone(),
            dtype,
            shape: shape.clone(),
            chunks,
            bytes,
        }
    };
    tree.iter().enumerate().map(array).collect()
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
