//! The parameters of π₀, π₀.₅ and the critics, under the names of an openpi PyTorch checkpoint.

use super::dims::{CriticDims, Lora, Pi0Dims, StackDims};
use super::params::{Init, ParamTable, Room, Unit};

const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
const PROJECTOR: &str = "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.";
const LANGUAGE: &str = "paligemma_with_expert.paligemma.model.language_model.";
const EXPERT: &str = "paligemma_with_expert.gemma_expert.model.";

/// Which unit of [`pi0`] is what.
#[derive(Clone, Copy, Debug)]
pub struct Pi0Units {
    vision_depth: usize,
    depth: usize,
}

impl Pi0Units {
    /// Units of these sizes.
    pub fn new(d: &Pi0Dims) -> Pi0Units {
        Pi0Units {
            vision_depth: d.vision_depth,
            depth: d.depth,
        }
    }

    /// Patch and position embedding.
    pub fn patches(self) -> usize {
        0
    }

    /// SigLIP block `i`.
    pub fn vision(self, i: usize) -> usize {
        1 + i
    }

    /// Last norm of SigLIP and the projection to the language stream.
    pub fn projector(self) -> usize {
        1 + self.vision_depth
    }

    /// Prompt embedding table.
    pub fn embedding(self) -> usize {
        2 + self.vision_depth
    }

    /// Language block `i`.
    pub fn language(self, i: usize) -> usize {
        3 + self.vision_depth + i
    }

    /// Final norm of the language stream.
    pub fn language_norm(self) -> usize {
        3 + self.vision_depth + self.depth
    }

    /// Expert block `i`.
    pub fn expert(self, i: usize) -> usize {
        4 + self.vision_depth + self.depth + i
    }

    /// Final norm of the expert.
    pub fn expert_norm(self) -> usize {
        4 + self.vision_depth + 2 * self.depth
    }

    /// Projections of state, actions and time.
    pub fn heads(self) -> usize {
        5 + self.vision_depth + 2 * self.depth
    }
}

/// Normal with variance 1 / fan_in.
fn normal(fan_in: usize) -> Init {
    Init::Normal(1.0 / (fan_in as f64).sqrt())
}

/// The parameters of π₀ or π₀.₅.
pub fn pi0(d: &Pi0Dims) -> ParamTable {
    let mut units = Vec::new();
    let w = d.vision.width;
    let patch_in = 3 * d.patch * d.patch;
    units.push(
        Unit::new("vision.patches", Room::Vision)
            .one(
                format!("{VISION}embeddings.patch_embedding.weight"),
                &[w, 3, d.patch, d.patch],
                normal(patch_in),
            )
            .one(format!("{VISION}embeddings.patch_embedding.bias"), &[w], Init::Zeros)
            .one(
                format!("{VISION}embeddings.position_embedding.weight"),
                &[d.image_tokens(), w],
                Init::Normal(0.02),
            ),
    );
    for i in 0..d.vision_depth {
        units.push(vision_block(d, i));
    }
    units.push(
        Unit::new("vision.projector", Room::Vision)
            .one(format!("{VISION}post_layernorm.weight"), &[w], Init::Ones)
            .one(format!("{VISION}post_layernorm.bias"), &[w], Init::Zeros)
            .one(format!("{PROJECTOR}weight"), &[d.language.width, w], normal(w))
            .one(format!("{PROJECTOR}bias"), &[d.language.width], Init::Zeros),
    );
    let embed = Init::Normal(1.0 / (d.language.width as f64).sqrt());
    units.push(Unit::new("language.embedding", Room::Language).one(
        format!("{LANGUAGE}embed_tokens.weight"),
        &[d.vocab, d.language.width],
        embed,
    ));
    for i in 0..d.depth {
        units.push(gemma_block(
            d,
            d.language,
            false,
            format!("language.{i}"),
            Room::Language,
            &format!("{LANGUAGE}layers.{i}."),
            d.lora.language,
        ));
    }
    let unit = Unit::new("language.norm", Room::Language);
    units.push(norm(unit, &format!("{LANGUAGE}norm"), d.language.width, false));
    for i in 0..d.depth {
        units.push(gemma_block(
            d,
            d.expert,
            d.pi05,
            format!("expert.{i}"),
            Room::Expert,
            &format!("{EXPERT}layers.{i}."),
            d.lora.expert,
        ));
    }
    let unit = Unit::new("expert.norm", Room::Expert);
    units.push(norm(unit, &format!("{EXPERT}norm"), d.expert.width, d.pi05));
    units.push(action_heads(d));
    ParamTable { units }
}

/// What nothing uses where of the last language layer only keys and values are, as (unit, group): all of it but its norm
/// and q | k | v, and the norm behind it.
pub fn unused(d: &Pi0Dims) -> Vec<(usize, usize)> {
    let units = Pi0Units::new(d);
    let last = units.language(d.depth - 1);
    (2..6)
        .map(|group| (last, group))
        .chain([(units.language_norm(), 0)])
        .collect()
}

fn vision_block(d: &Pi0Dims, i: usize) -> Unit {
    let (w, f) = (d.vision.width, d.vision.mlp);
    let p = format!("{VISION}encoder.layers.{i}.");
    let qkv = |what: &str| ["q_proj", "k_proj", "v_proj"].map(|n| format!("{p}self_attn.{n}.{what}"));
    let [qw, kw, vw] = qkv("weight");
    let [qb, kb, vb] = qkv("bias");
    Unit::new(format!("vision.{i}"), Room::Vision)
        .one(format!("{p}layer_norm1.weight"), &[w], Init::Ones)
        .one(format!("{p}layer_norm1.bias"), &[w], Init::Zeros)
        .stacked(&[(qw, &[w, w]), (kw, &[w, w]), (vw, &[w, w])], normal(w))
        .stacked(&[(qb, &[w]), (kb, &[w]), (vb, &[w])], Init::Zeros)
        .one(format!("{p}self_attn.out_proj.weight"), &[w, w], normal(w))
        .one(format!("{p}self_attn.out_proj.bias"), &[w], Init::Zeros)
        .one(format!("{p}layer_norm2.weight"), &[w], Init::Ones)
        .one(format!("{p}layer_norm2.bias"), &[w], Init::Zeros)
        .one(format!("{p}mlp.fc1.weight"), &[f, w], normal(w))
        .one(format!("{p}mlp.fc1.bias"), &[f], Init::Zeros)
        .one(format!("{p}mlp.fc2.weight"), &[w, f], normal(f))
        .one(format!("{p}mlp.fc2.bias"), &[w], Init::Zeros)
}

/// Groups: norm, q|k|v, o, norm, gate|up, down; an adaptive norm is two groups (weight, bias). Then A and B of the
/// adapters of the four matrices, if there are any.
#[allow(clippy::too_many_arguments)]
fn gemma_block(
    d: &Pi0Dims,
    dims: StackDims,
    adaptive: bool,
    name: String,
    room: Room,
    p: &str,
    lora: Option<Lora>,
) -> Unit {
    let (w, f, heads) = (dims.width, dims.mlp, d.attention());
    let (q, kv) = (heads.q_width(), heads.kv_width());
    let named = |n: &str| format!("{p}{n}.weight");
    let unit = norm(Unit::new(name, room), &format!("{p}input_layernorm"), w, adaptive)
        .stacked(
            &[
                (named("self_attn.q_proj"), &[q, w]),
                (named("self_attn.k_proj"), &[kv, w]),
                (named("self_attn.v_proj"), &[kv, w]),
            ],
            normal(w),
        )
        .one(named("self_attn.o_proj"), &[w, q], normal(q));
    let unit = norm(unit, &format!("{p}post_attention_layernorm"), w, adaptive)
        .stacked(
            &[(named("mlp.gate_proj"), &[f, w]), (named("mlp.up_proj"), &[f, w])],
            normal(w),
        )
        .one(named("mlp.down_proj"), &[w, f], normal(f));
    match lora {
        Some(lora) => adapters(unit, d, dims, p, lora.rank),
        None => unit,
    }
}

/// Both A and B start as openpi's do.
fn adapters(unit: Unit, d: &Pi0Dims, dims: StackDims, p: &str, r: usize) -> Unit {
    let (w, f, heads) = (dims.width, dims.mlp, d.attention());
    let (q, kv) = (heads.q_width(), heads.kv_width());
    let start = Init::Normal(0.01);
    let (a, b) = (|n: &str| format!("{p}{n}.lora_a"), |n: &str| format!("{p}{n}.lora_b"));
    let [q_proj, k_proj, v_proj] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];
    let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"];
    // Every head has its own.
    unit.stacked(
        &[
            (a(q_proj), &[heads.q * r, w]),
            (a(k_proj), &[heads.kv * r, w]),
            (a(v_proj), &[heads.kv * r, w]),
        ],
        start,
    )
    .stacked(
        &[(b(q_proj), &[q, r]), (b(k_proj), &[kv, r]), (b(v_proj), &[kv, r])],
        start,
    )
    .one(a("self_attn.o_proj"), &[r, q], start)
    .one(b("self_attn.o_proj"), &[w, heads.q * r], start)
    .stacked(&[(a(gate), &[r, w]), (a(up), &[r, w])], start)
    .stacked(&[(b(gate), &[f, r]), (b(up), &[f, r])], start)
    .one(a("mlp.down_proj"), &[r, f], start)
    .one(b("mlp.down_proj"), &[w, r], start)
}

fn norm(unit: Unit, name: &str, width: usize, adaptive: bool) -> Unit {
    if adaptive {
        // Zero modulation: the block starts as the plain one with closed gates, as openpi initialises it.
        unit.one(format!("{name}.dense.weight"), &[3 * width, width], Init::Zeros)
            .one(format!("{name}.dense.bias"), &[3 * width], Init::Zeros)
    } else {
        unit.one(format!("{name}.weight"), &[width], Init::Zeros)
    }
}

/// Groups: action_in (weight, bias), [state (weight, bias)], time MLP in, time MLP out, action_out.
fn action_heads(d: &Pi0Dims) -> Unit {
    let (e, a) = (d.expert.width, d.action_dim);
    let linear = |unit: Unit, name: &str, fan_in: usize, fan_out: usize| {
        unit.one(format!("{name}.weight"), &[fan_out, fan_in], normal(fan_in))
            .one(format!("{name}.bias"), &[fan_out], Init::Zeros)
    };
    let mut unit = linear(Unit::new("expert.heads", Room::Expert), "action_in_proj", a, e);
    if d.pi05 {
        unit = linear(unit, "time_mlp_in", e, e);
        unit = linear(unit, "time_mlp_out", e, e);
    } else {
        unit = linear(unit, "state_proj", a, e);
        unit = linear(unit, "action_time_mlp_in", 2 * e, e);
        unit = linear(unit, "action_time_mlp_out", e, e);
    }
    linear(unit, "action_out_proj", e, a)
}

/// The parameters of a critic ensemble; every tensor carries the ensemble (E) as its first axis. One unit a layer.
pub fn critic(d: &CriticDims) -> ParamTable {
    let e = d.critics;
    let mut fan_in = d.input();
    let mut units = Vec::new();
    for (i, &h) in d.hidden.iter().enumerate() {
        let p = format!("critic.{}.{i}.", d.network.layers());
        units.push(
            Unit::new(format!("critic.{i}"), Room::Critic)
                .one(
                    format!("{p}linear.weight"),
                    &[e, h, fan_in],
                    Init::LecunUniform { fan_in },
                )
                .one(format!("{p}linear.bias"), &[e, h], Init::Zeros)
                .one(format!("{p}norm.weight"), &[e, h], Init::Ones)
                .one(format!("{p}norm.bias"), &[e, h], Init::Zeros),
        );
        fan_in = h;
    }
    units.push(
        Unit::new("critic.out", Room::Critic)
            .one("critic.out.weight", &[e, 1, fan_in], Init::LecunUniform { fan_in })
            .one("critic.out.bias", &[e, 1], Init::Zeros),
    );
    ParamTable { units }
}
