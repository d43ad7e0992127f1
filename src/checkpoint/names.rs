//! Names of tensors: what other programs call the tensors of π₀, in openpi's PyTorch names.
//!
//! openpi and lerobot keep the same modules, but the names of what is inside PaliGemma have moved with the versions of
//! transformers, lerobot puts `model.` in front, and the prompt embedding may go by the name of the output layer that
//! shares its numbers.

use std::borrow::Cow;

use crate::model::params::Room;

const PALIGEMMA: &str = "paligemma_with_expert.paligemma.";
/// What a module inside another one, a parallel wrapper and a compiled module put in front.
const WRAPPERS: [&str; 3] = ["model.", "module.", "_orig_mod."];
/// The prompt embedding.
pub const EMBEDDING: &str = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";
/// PaliGemma's output layer, which shares the embedding's numbers; some files store them under this name only.
pub const TIED: &str = "paligemma_with_expert.paligemma.lm_head.weight";
/// The expert's output layer, `[vocab, width]`, which nothing uses, but which openpi's and lerobot's modules have.
pub const UNUSED: &str = "paligemma_with_expert.gemma_expert.lm_head.weight";

/// Where a name inside PaliGemma began, and where it begins now.
const MOVED: [(&str, &str); 7] = [
    ("vision_tower.", "model.vision_tower."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    (
        "model.vision_tower.embeddings.",
        "model.vision_tower.vision_model.embeddings.",
    ),
    (
        "model.vision_tower.encoder.",
        "model.vision_tower.vision_model.encoder.",
    ),
    (
        "model.vision_tower.post_layernorm.",
        "model.vision_tower.vision_model.post_layernorm.",
    ),
];

/// The name that openpi's PyTorch model has for `name`.
pub fn openpi(name: &str) -> Cow<'_, str> {
    let mut plain = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| plain.strip_prefix(wrapper)) {
        plain = rest;
    }
    let Some(inner) = plain.strip_prefix(PALIGEMMA) else {
        return plain.into();
    };
    let mut inner: Cow<str> = inner.into();
    for (from, to) in MOVED {
        if let Some(rest) = inner.strip_prefix(from) {
            inner = format!("{to}{rest}").into();
        }
    }
    format!("{PALIGEMMA}{inner}").into()
}

/// Whether a tensor of this name may be left over without a word.
pub fn is_known_extra(name: &str) -> bool {
    matches!(&*openpi(name), TIED | UNUSED)
}

/// The room that a tensor belongs to, of π₀ or of a critic; none for what is neither.
pub fn room(name: &str) -> Option<Room> {
    const HEADS: [&str; 4] = [
        "action_",
        "state_proj.",
        "time_mlp_",
        "paligemma_with_expert.gemma_expert.",
    ];
    let name = openpi(name);
    if name.contains("critic.") {
        return Some(Room::Critic);
    }
    if let Some(inner) = name.strip_prefix(PALIGEMMA) {
        let vision = ["model.vision_tower.", "model.multi_modal_projector."];
        return Some(match vision.iter().any(|room| inner.starts_with(room)) {
            true => Room::Vision,
            false => Room::Language,
        });
    }
    HEADS.iter().any(|head| name.starts_with(head)).then_some(Room::Expert)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_ages() {
        let vision = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
        for (old, new) in [
            ("state_proj.bias", "state_proj.bias".into()),
            ("model.state_proj.bias", "state_proj.bias".into()),
            ("_orig_mod.module.model.state_proj.bias", "state_proj.bias".into()),
            (EMBEDDING, EMBEDDING.into()),
            ("model.paligemma_with_expert.paligemma.lm_head.weight", TIED.into()),
            (
                "paligemma_with_expert.paligemma.language_model.lm_head.weight",
                TIED.into(),
            ),
            (
                "paligemma_with_expert.paligemma.language_model.model.embed_tokens.weight",
                EMBEDDING.into(),
            ),
            (
                "paligemma_with_expert.paligemma.vision_tower.vision_model.post_layernorm.bias",
                format!("{vision}post_layernorm.bias"),
            ),
            (
                "paligemma_with_expert.paligemma.model.vision_tower.post_layernorm.bias",
                format!("{vision}post_layernorm.bias"),
            ),
            (
                "paligemma_with_expert.paligemma.vision_tower.encoder.layers.0.mlp.fc1.bias",
                format!("{vision}encoder.layers.0.mlp.fc1.bias"),
            ),
            (
                "paligemma_with_expert.paligemma.multi_modal_projector.linear.bias",
                "paligemma_with_expert.paligemma.model.multi_modal_projector.linear.bias".into(),
            ),
        ] {
            assert_eq!(openpi(old), new, "{old}");
            assert_eq!(openpi(&new), new);
        }
        assert_eq!(
            room("model.paligemma_with_expert.paligemma.multi_modal_projector.linear.bias"),
            Some(Room::Vision)
        );
        assert_eq!(room(TIED), Some(Room::Language));
        assert_eq!(room(UNUSED), Some(Room::Expert));
        assert_eq!(room("target/critic.out.bias"), Some(Room::Critic));
        assert_eq!(room("temperature/log_alpha"), None);
    }
}
