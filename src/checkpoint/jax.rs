//! From the parameter tree of the JAX model to the tensors of the PyTorch model: names and layouts.
//!
//! JAX stacks the layers of a transformer in one array, keeps matrices as `[in, out]` and gives heads an axis of their
//! own; here every layer has its tensors, and matrices are `[out, in]` with the heads in `out` (of the output
//! projection: in `in`).

use std::ops::Range;

/// How the elements of a part of an array become a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// In the same order, as one vector or with the same axes.
    Same,
    /// All axes in one: biases of heads.
    Flat,
    /// `[1, rows, columns]`: without the first axis.
    Squeezed,
    /// `[in, out…]` to `[out…, in]`, the outs as one axis.
    InOuts,
    /// `[in…, out]` to `[out, in…]`, the ins as one axis.
    InsOut,
    /// `[heads, in, out]` to `[heads · out, in]`.
    Heads,
    /// Of patches: `[height, width, colour, out]` to `[out, colour, height, width]`.
    Patches,
}

impl Layout {
    /// Shape of the tensor that a part of shape `from` becomes; none if the part has not the axes of the layout.
    pub fn shape(self, from: &[usize]) -> Option<Vec<usize>> {
        match (self, from) {
            (Layout::Same, [_] | [_, _]) => Some(from.to_vec()),
            (Layout::Flat, _) => Some(vec![from.iter().product()]),
            (Layout::Squeezed, [1, rows, columns]) => Some(vec![*rows, *columns]),
            (Layout::InOuts, [first, rest @ ..]) if !rest.is_empty() => Some(vec![rest.iter().product(), *first]),
            (Layout::InsOut, [rest @ .., last]) if !rest.is_empty() => Some(vec![*last, rest.iter().product()]),
            (Layout::Heads, [heads, fan_in, out]) => Some(vec![heads * out, *fan_in]),
            (Layout::Patches, [height, width, colours, out]) => Some(vec![*out, *colours, *height, *width]),
            _ => None,
        }
    }

    /// The values of a part of shape `from` in the order of the tensor.
    pub fn arrange(self, values: Vec<f32>, from: &[usize]) -> Vec<f32> {
        match (self, from) {
            (Layout::InOuts, [first, ..]) => transposed(&values, *first, values.len() / first.max(&1)),
            (Layout::InsOut, [.., last]) => transposed(&values, values.len() / last.max(&1), *last),
            (Layout::Heads, [_, fan_in, out]) => {
                let heads = values.chunks_exact((fan_in * out).max(1));
                heads.flat_map(|head| transposed(head, *fan_in, *out)).collect()
            }
            (Layout::Patches, [height, width, colours, out]) => {
                // The pixels of a colour lie `colours` apart: colours first, then the outs.
                let pixels = height * width;
                let by_out = transposed(&values, pixels * colours, *out);
                let patches = by_out.chunks_exact((pixels * colours).max(1));
                patches.flat_map(|patch| transposed(patch, pixels, *colours)).collect()
            }
            _ => values,
        }
    }
}

/// `[rows, columns]` to `[columns, rows]`, in tiles that fit into a cache.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; values.len()];
    for first_row in (0..rows).step_by(TILE) {
        for first_column in (0..columns).step_by(TILE) {
            for row in first_row..rows.min(first_row + TILE) {
                for column in first_column..columns.min(first_column + TILE) {
                    out[column * rows + row] = values[row * columns + column];
                }
            }
        }
    }
    out
}

/// A tensor as it lies in an array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Rows (indices of the first axis) of the array to read.
    pub rows: Range<usize>,
    /// Elements of these rows that belong to the tensor.
    pub elements: Range<usize>,
    /// Shape of these elements.
    pub part: Vec<usize>,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    pub layout: Layout,
}

impl Origin {
    /// An array that is a tensor as it is.
    pub fn whole(shape: &[usize]) -> Origin {
        Origin {
            rows: 0..shape.first().copied().unwrap_or(1),
            elements: 0..shape.iter().product(),
            part: shape.to_vec(),
            shape: shape.to_vec(),
            layout: Layout::Same,
        }
    }
}

/// How an array is divided.
#[derive(Clone, Copy)]
enum Stack {
    /// It is one tensor.
    Single,
    /// A tensor for every index of the first axis, the layer.
    Layers,
    /// The same, and the second axis divides each layer: keys and values, gate and up.
    Pairs([&'static str; 2]),
}

/// Path of an array, name of its tensors (`#` is the layer, `@` the member of a pair), and how one becomes the other.
type Row = (&'static str, &'static str, Stack, Layout);

/// Rows with what stands in front of their paths and names, and what `*` in a path means.
struct Group {
    path: &'static str,
    name: &'static str,
    star: &'static str,
    rows: &'static [Row],
}

use Layout::{Flat, Heads, InOuts, InsOut, Patches, Same, Squeezed};
use Stack::{Layers, Pairs, Single};

const GROUPS: [Group; 7] = [
    Group {
        path: "PaliGemma/img/",
        name: "paligemma_with_expert.paligemma.model.vision_tower.vision_model.",
        star: "",
        rows: &[
            ("embedding/kernel", "embeddings.patch_embedding.weight", Single, Patches),
            ("embedding/bias", "embeddings.patch_embedding.bias", Single, Same),
            (
                "pos_embedding",
                "embeddings.position_embedding.weight",
                Single,
                Squeezed,
            ),
            ("Transformer/encoder_norm/scale", "post_layernorm.weight", Single, Same),
            ("Transformer/encoder_norm/bias", "post_layernorm.bias", Single, Same),
        ],
    },
    Group {
        path: "PaliGemma/img/Transformer/encoderblock/",
        name: "paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.#.",
        star: "MultiHeadDotProductAttention_0",
        rows: &[
            ("LayerNorm_0/scale", "layer_norm1.weight", Layers, Same),
            ("LayerNorm_0/bias", "layer_norm1.bias", Layers, Same),
            ("LayerNorm_1/scale", "layer_norm2.weight", Layers, Same),
            ("LayerNorm_1/bias", "layer_norm2.bias", Layers, Same),
            ("MlpBlock_0/Dense_0/kernel", "mlp.fc1.weight", Layers, InOuts),
            ("MlpBlock_0/Dense_0/bias", "mlp.fc1.bias", Layers, Same),
            ("MlpBlock_0/Dense_1/kernel", "mlp.fc2.weight", Layers, InOuts),
            ("MlpBlock_0/Dense_1/bias", "mlp.fc2.bias", Layers, Same),
            ("*/query/kernel", "self_attn.q_proj.weight", Layers, InOuts),
            ("*/query/bias", "self_attn.q_proj.bias", Layers, Flat),
            ("*/key/kernel", "self_attn.k_proj.weight", Layers, InOuts),
            ("*/key/bias", "self_attn.k_proj.bias", Layers, Flat),
            ("*/value/kernel", "self_attn.v_proj.weight", Layers, InOuts),
            ("*/value/bias", "self_attn.v_proj.bias", Layers, Flat),
            ("*/out/kernel", "self_attn.out_proj.weight", Layers, InsOut),
            ("*/out/bias", "self_attn.out_proj.bias", Layers, Same),
        ],
    },
    Group {
        path: "PaliGemma/img/head/",
        name: "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.",
        star: "",
        rows: LINEAR,
    },
    Group {
        path: "PaliGemma/llm/embedder/",
        name: "paligemma_with_expert.paligemma.model.language_model.",
        star: "",
        rows: &[("input_embedding", "embed_tokens.weight", Single, Same)],
    },
    Group {
        path: "PaliGemma/llm/",
        name: "paligemma_with_expert.paligemma.model.language_model.",
        star: "",
        rows: GEMMA,
    },
    Group {
        path: "PaliGemma/llm/",
        name: "paligemma_with_expert.gemma_expert.model.",
        star: "_1",
        rows: GEMMA,
    },
    Group {
        path: "",
        name: "",
        star: "",
        rows: ACTION_HEADS,
    },
];

/// No model has more; an array that claims to is none of π₀.
const MOST_LAYERS: usize = 1000;

const LINEAR: &[Row] = &[("kernel", "weight", Single, InOuts), ("bias", "bias", Single, Same)];

const GEMMA: &[Row] = &[
    (
        "layers/attn/q_einsum*/w",
        "layers.#.self_attn.q_proj.weight",
        Layers,
        Heads,
    ),
    (
        "layers/attn/kv_einsum*/w",
        "layers.#.self_attn.@_proj.weight",
        Pairs(["k", "v"]),
        Heads,
    ),
    (
        "layers/attn/attn_vec_einsum*/w",
        "layers.#.self_attn.o_proj.weight",
        Layers,
        InsOut,
    ),
    (
        "layers/mlp*/gating_einsum",
        "layers.#.mlp.@_proj.weight",
        Pairs(["gate", "up"]),
        InOuts,
    ),
    ("layers/mlp*/linear", "layers.#.mlp.down_proj.weight", Layers, InOuts),
    (
        "layers/attn/q_einsum*/lora_a",
        "layers.#.self_attn.q_proj.lora_a",
        Layers,
        Heads,
    ),
    (
        "layers/attn/q_einsum*/lora_b",
        "layers.#.self_attn.q_proj.lora_b",
        Layers,
        Heads,
    ),
    (
        "layers/attn/kv_einsum*/lora_a",
        "layers.#.self_attn.@_proj.lora_a",
        Pairs(["k", "v"]),
        Heads,
    ),
    (
        "layers/attn/kv_einsum*/lora_b",
        "layers.#.self_attn.@_proj.lora_b",
        Pairs(["k", "v"]),
        Heads,
    ),
    (
        "layers/attn/attn_vec_einsum*/lora_a",
        "layers.#.self_attn.o_proj.lora_a",
        Layers,
        InsOut,
    ),
    (
        "layers/attn/attn_vec_einsum*/lora_b",
        "layers.#.self_attn.o_proj.lora_b",
        Layers,
        InsOut,
    ),
    (
        "layers/mlp*/gating_einsum_lora_a",
        "layers.#.mlp.@_proj.lora_a",
        Pairs(["gate", "up"]),
        InOuts,
    ),
    (
        "layers/mlp*/gating_einsum_lora_b",
        "layers.#.mlp.@_proj.lora_b",
        Pairs(["gate", "up"]),
        InOuts,
    ),
    (
        "layers/mlp*/linear_lora_a",
        "layers.#.mlp.down_proj.lora_a",
        Layers,
        InOuts,
    ),
    (
        "layers/mlp*/linear_lora_b",
        "layers.#.mlp.down_proj.lora_b",
        Layers,
        InOuts,
    ),
    (
        "layers/pre_attention_norm*/scale",
        "layers.#.input_layernorm.weight",
        Layers,
        Same,
    ),
    (
        "layers/pre_attention_norm*/Dense_0/kernel",
        "layers.#.input_layernorm.dense.weight",
        Layers,
        InOuts,
    ),
    (
        "layers/pre_attention_norm*/Dense_0/bias",
        "layers.#.input_layernorm.dense.bias",
        Layers,
        Same,
    ),
    (
        "layers/pre_ffw_norm*/scale",
        "layers.#.post_attention_layernorm.weight",
        Layers,
        Same,
    ),
    (
        "layers/pre_ffw_norm*/Dense_0/kernel",
        "layers.#.post_attention_layernorm.dense.weight",
        Layers,
        InOuts,
    ),
    (
        "layers/pre_ffw_norm*/Dense_0/bias",
        "layers.#.post_attention_layernorm.dense.bias",
        Layers,
        Same,
    ),
    ("final_norm*/scale", "norm.weight", Single, Same),
    ("final_norm*/Dense_0/kernel", "norm.dense.weight", Single, InOuts),
    ("final_norm*/Dense_0/bias", "norm.dense.bias", Single, Same),
];

const ACTION_HEADS: &[Row] = &[
    ("action_in_proj/kernel", "action_in_proj.weight", Single, InOuts),
    ("action_in_proj/bias", "action_in_proj.bias", Single, Same),
    ("action_out_proj/kernel", "action_out_proj.weight", Single, InOuts),
    ("action_out_proj/bias", "action_out_proj.bias", Single, Same),
    ("state_proj/kernel", "state_proj.weight", Single, InOuts),
    ("state_proj/bias", "state_proj.bias", Single, Same),
    ("action_time_mlp_in/kernel", "action_time_mlp_in.weight", Single, InOuts),
    ("action_time_mlp_in/bias", "action_time_mlp_in.bias", Single, Same),
    (
        "action_time_mlp_out/kernel",
        "action_time_mlp_out.weight",
        Single,
        InOuts,
    ),
    ("action_time_mlp_out/bias", "action_time_mlp_out.bias", Single, Same),
    ("time_mlp_in/kernel", "time_mlp_in.weight", Single, InOuts),
    ("time_mlp_in/bias", "time_mlp_in.bias", Single, Same),
    ("time_mlp_out/kernel", "time_mlp_out.weight", Single, InOuts),
    ("time_mlp_out/bias", "time_mlp_out.bias", Single, Same),
];

/// The tensors that the array at `path` holds, with their names; none if π₀ has no such array, or not of this rank.
pub fn tensors(path: &str, shape: &[usize]) -> Option<Vec<(String, Origin)>> {
    let (group, row) = GROUPS.iter().find_map(|group| {
        let rest = path.strip_prefix(group.path)?;
        let row = group.rows.iter().find(|row| row.0.replace('*', group.star) == rest)?;
        Some((group, row))
    })?;
    let (_, name, stack, layout) = *row;
    let name = format!("{}{name}", group.name);
    let mut found = Vec::new();
    let mut add = |name: String, rows: Range<usize>, elements: Range<usize>, part: &[usize]| {
        let shape = layout.shape(part)?;
        let origin = Origin {
            rows,
            elements,
            part: part.to_vec(),
            shape,
            layout,
        };
        found.push((name, origin));
        Some(())
    };
    match (stack, shape) {
        (Layers | Pairs(_), [layers, ..]) if *layers > MOST_LAYERS => return None,
        (Single, [rows, ..]) => add(name, 0..*rows, 0..shape.iter().product(), shape)?,
        (Layers, [layers, part @ ..]) => {
            for layer in 0..*layers {
                let name = name.replace('#', &layer.to_string());
                add(name, layer..layer + 1, 0..part.iter().product(), part)?;
            }
        }
        (Pairs(members), [layers, 2, part @ ..]) => {
            let n: usize = part.iter().product();
            for (layer, half) in (0..*layers).flat_map(|layer| [(layer, 0), (layer, 1)]) {
                let name = name.replace('#', &layer.to_string()).replace('@', members[half]);
                add(name, layer..layer + 1, half * n..(half + 1) * n, part)?;
            }
        }
        _ => return None,
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts() {
        let count = |n: usize| (0..n).map(|i| i as f32).collect::<Vec<_>>();
        let check = |layout: Layout, from: &[usize], to: &[usize], order: &[f32]| {
            assert_eq!(layout.shape(from).as_deref(), Some(to), "{layout:?}");
            assert_eq!(layout.arrange(count(from.iter().product()), from), order, "{layout:?}");
        };
        check(Same, &[3], &[3], &[0.0, 1.0, 2.0]);
        check(Flat, &[2, 2], &[4], &[0.0, 1.0, 2.0, 3.0]);
        check(Squeezed, &[1, 2, 1], &[2, 1], &[0.0, 1.0]);
        // [in 2, heads 1, out 3].
        check(InOuts, &[2, 1, 3], &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        // [heads 2, in 1, out 2]: out by (head, in).
        check(InsOut, &[2, 1, 2], &[2, 2], &[0.0, 2.0, 1.0, 3.0]);
        // [heads 2, in 2, out 1].
        check(Heads, &[2, 2, 1], &[2, 2], &[0.0, 1.0, 2.0, 3.0]);
        check(Heads, &[1, 2, 2], &[2, 2], &[0.0, 2.0, 1.0, 3.0]);
        // Height 1, width 2, colours 2, out 2: element (x, c, o) is 4 x + 2 c + o.
        check(
            Patches,
            &[1, 2, 2, 2],
            &[2, 2, 1, 2],
            &[0.0, 4.0, 2.0, 6.0, 1.0, 5.0, 3.0, 7.0],
        );
        assert_eq!(Patches.shape(&[1, 2]), None);
        assert_eq!(transposed(&transposed(&count(35 * 70), 35, 70), 70, 35), count(35 * 70));
    }

    #[test]
    fn names_that_the_model_does_not_have() {
        assert_eq!(
            tensors("PaliGemma/llm/layers/attn/q_einsum/lora_c", &[1, 2, 3, 4]),
            None
        );
        assert_eq!(tensors("PaliGemma/llm/layers/attn/q_einsum/lora_a", &[1, 2, 3]), None);
        assert_eq!(tensors("PaliGemma/llm/layers/attn/kv_einsum/w", &[1, 3, 1, 4, 4]), None);
        assert_eq!(tensors("state_proj/kernel", &[]), None);
    }
}
