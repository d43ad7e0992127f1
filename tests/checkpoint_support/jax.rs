//! PyTorch's tensors as the arrays of the JAX model, element by element, after the einsums of that model.

use std::collections::BTreeMap;

use acrlpd::model::dims::Pi0Dims;

use super::checkpoint_support::{Plain, tiny};

/// Shape and values of every array.
pub type Tree = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The arrays so far.
struct Jax<'a> {
    weights: &'a Plain,
    dims: Pi0Dims,
    arrays: Tree,
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

    /// Adapters of rank `r`.
    fn lora(&mut self, width: usize, mlp: usize, ours: &str, star: &str, r: usize) {
        let (depth, n, k, h) = (self.dims.depth, self.dims.heads, self.dims.kv_heads, self.dims.head_dim);
        let layers = |rest: String| format!("PaliGemma/llm/layers/{rest}");
        let name = |i: usize, rest: &str| format!("{ours}layers.{i}.{rest}");
        self.add(
            &layers(format!("attn/q_einsum{star}/lora_a")),
            &[depth, n, width, r],
            |j, i| j.get(&name(i[0], "self_attn.q_proj.lora_a"), &[i[1] * r + i[3], i[2]]),
        );
        self.add(
            &layers(format!("attn/q_einsum{star}/lora_b")),
            &[depth, n, r, h],
            |j, i| j.get(&name(i[0], "self_attn.q_proj.lora_b"), &[i[1] * h + i[3], i[2]]),
        );
        let kv = |i: usize| ["self_attn.k_proj", "self_attn.v_proj"][i];
        self.add(
            &layers(format!("attn/kv_einsum{star}/lora_a")),
            &[depth, 2, k, width, r],
            |j, i| j.get(&name(i[0], &format!("{}.lora_a", kv(i[1]))), &[i[2] * r + i[4], i[3]]),
        );
        self.add(
            &layers(format!("attn/kv_einsum{star}/lora_b")),
            &[depth, 2, k, r, h],
            |j, i| j.get(&name(i[0], &format!("{}.lora_b", kv(i[1]))), &[i[2] * h + i[4], i[3]]),
        );
        self.add(
            &layers(format!("attn/attn_vec_einsum{star}/lora_a")),
            &[depth, n, h, r],
            |j, i| j.get(&name(i[0], "self_attn.o_proj.lora_a"), &[i[3], i[1] * h + i[2]]),
        );
        self.add(
            &layers(format!("attn/attn_vec_einsum{star}/lora_b")),
            &[depth, n, r, width],
            |j, i| j.get(&name(i[0], "self_attn.o_proj.lora_b"), &[i[3], i[1] * r + i[2]]),
        );
        let gating = |i: usize| ["mlp.gate_proj", "mlp.up_proj"][i];
        self.add(
            &layers(format!("mlp{star}/gating_einsum_lora_a")),
            &[depth, 2, width, r],
            |j, i| j.get(&name(i[0], &format!("{}.lora_a", gating(i[1]))), &[i[3], i[2]]),
        );
        self.add(
            &layers(format!("mlp{star}/gating_einsum_lora_b")),
            &[depth, 2, r, mlp],
            |j, i| j.get(&name(i[0], &format!("{}.lora_b", gating(i[1]))), &[i[3], i[2]]),
        );
        self.add(&layers(format!("mlp{star}/linear_lora_a")), &[depth, mlp, r], |j, i| {
            j.get(&name(i[0], "mlp.down_proj.lora_a"), &[i[2], i[1]])
        });
        self.add(
            &layers(format!("mlp{star}/linear_lora_b")),
            &[depth, r, width],
            |j, i| j.get(&name(i[0], "mlp.down_proj.lora_b"), &[i[2], i[1]]),
        );
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

/// The arrays of the JAX model that holds `weights`.
#[allow(dead_code)] // Each test file uses its own part.
pub fn jax_tree(weights: &Plain, pi05: bool) -> Tree {
    adapted_tree(weights, &tiny(pi05))
}

/// The same of a model that may have adapters.
pub fn adapted_tree(weights: &Plain, dims: &Pi0Dims) -> Tree {
    let (dims, pi05) = (dims.clone(), dims.pi05);
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
    let embedding = weights[&format!("{language}embed_tokens.weight")].0.clone();
    j.add("PaliGemma/llm/embedder/input_embedding", &embedding, |j, i| {
        j.get(&format!("{language}embed_tokens.weight"), i)
    });
    j.gemma(dims.language.width, dims.language.mlp, language, "", false);
    j.gemma(
        dims.expert.width,
        dims.expert.mlp,
        "paligemma_with_expert.gemma_expert.model.",
        "_1",
        pi05,
    );
    if let Some(lora) = dims.lora.language {
        j.lora(dims.language.width, dims.language.mlp, language, "", lora.rank);
    }
    if let Some(lora) = dims.lora.expert {
        let expert = "paligemma_with_expert.gemma_expert.model.";
        j.lora(dims.expert.width, dims.expert.mlp, expert, "_1", lora.rank);
    }
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
