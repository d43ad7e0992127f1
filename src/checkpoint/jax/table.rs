//! The arrays of π₀ and π₀.₅, and which tensors they are.

use super::layout::Layout;
use super::layout::Layout::{Flat, Heads, InOuts, InsOut, Patches, Same, Squeezed};
use Stack::{Layers, Pairs, Single};

/// How an array is divided.
#[derive(Clone, Copy)]
pub(super) enum Stack {
    /// It is one tensor.
    Single,
    /// A tensor for every index of the first axis, the layer.
    Layers,
    /// The same, and the second axis divides each layer: keys and values, gate and up.
    Pairs([&'static str; 2]),
}

/// Path of an array, name of its tensors (`#` is the layer, `@` the member of a pair), and how one becomes the other.
pub(super) type Row = (&'static str, &'static str, Stack, Layout);

/// Rows with what stands in front of their paths and names, and what `*` in a path means.
pub(super) struct Group {
    pub path: &'static str,
    pub name: &'static str,
    pub star: &'static str,
    pub rows: &'static [Row],
}

pub(super) const GROUPS: [Group; 7] = [
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
