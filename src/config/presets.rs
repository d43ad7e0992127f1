//! The presets: `configs/*.toml`, inside the program so that it stands alone.

/// Name and text of every preset.
pub const PRESETS: [(&str, &str); 6] = [
    ("debug", include_str!("../../configs/debug.toml")),
    ("rl_fold_box", include_str!("../../configs/rl_fold_box.toml")),
    ("rl_aloha_fold", include_str!("../../configs/rl_aloha_fold.toml")),
    ("rl_libero", include_str!("../../configs/rl_libero.toml")),
    ("rl_libero_lora", include_str!("../../configs/rl_libero_lora.toml")),
    ("rl_droid", include_str!("../../configs/rl_droid.toml")),
];

/// The text of a preset.
pub fn text(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|p| p.0 == name).map(|p| p.1)
}
