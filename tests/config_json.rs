//! JSON files: what TOML files are, with lines in every message.

use std::fs;

use acrlpd::config::Config;
use acrlpd::config::presets::PRESETS;
use tempfile::TempDir;

fn refused(text: &str) -> String {
    Config::parse(text, "bad.json").expect_err(text).to_string()
}

#[test]
fn presets_come_back_from_json() {
    for (name, _) in PRESETS {
        let config = Config::load(name).unwrap();
        let text = serde_json::to_string_pretty(&config.to_json()).unwrap();
        assert_eq!(Config::parse(&text, "anywhere/config.json").unwrap(), config, "{name}");
    }
}

#[test]
fn files_of_both_kinds_extend_each_other() {
    let dir = TempDir::new().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write(
        "low.json",
        "{\"base\": \"debug\", \"best_of_n\": 6, \"model\": {\"weights\": \"w\"}}",
    );
    write("middle.toml", "base = \"low.json\"\nbatch_size = 4\n");
    write(
        "high.json",
        "{\"base\": \"middle.toml\", \"acrlpd\": {\"critic_hidden_dims\": [8], \"discount\": 1}, \"model\": {\"weights\": null, \"dims\": null}}",
    );
    let load = |name: &str| Config::load(dir.path().join(name).to_str().unwrap()).unwrap();
    let high = load("high.json");
    assert_eq!(
        (high.name.as_str(), high.batch_size, high.acrlpd.num_action_samples),
        ("high", 4, 6)
    );
    assert_eq!(
        (high.acrlpd.critic_hidden_dims.as_slice(), high.acrlpd.discount),
        (&[8][..], 1.0)
    );
    assert_eq!(
        load("middle.toml").model.weights,
        Some(dir.path().join("w")),
        "relative to the file"
    );
    assert_eq!(high.model.weights, None, "null unsets");
}

#[test]
fn mistakes_have_their_line() {
    for (text, line, words) in [
        (
            "{\n \"seed\": 1,\n \"batch_sise\": 8\n}",
            3,
            "unknown key `batch_sise`; did you mean `batch_size`?",
        ),
        ("{\"acrlpd\": {\n\n  \"discout\": 1}}", 3, "`acrlpd.discount`"),
        ("{\n\"seed\": 1,\n\"seed\": 2}", 3, "duplicate key `seed`"),
        ("{\n\"seed\": 1,,\n}", 2, "is not JSON"),
        ("{\n\"seed\": 1\n", 3, "is not JSON: EOF"),
        ("[1]", 1, "an object in { }"),
        ("{\n\n\"batch_size\": \"eight\"}", 3, "`batch_size` cannot be used"),
        ("{\n\"batch_size\": 99999999999999999999}", 2, "`batch_size`"),
        ("{\n\"batch_size\": null}", 2, "it is null; leave it out"),
        (
            "{\"acrlpd\":\n{\"critic_hidden_dims\": [8, null]}}",
            2,
            "a null in a list",
        ),
        ("{\"acrlpd\":\n{\"utd_ratio\": 4}}", 2, "one critic update per step"),
        ("{\n\"base\": 3}", 2, "`base`"),
        (
            "{\"data\":{\"prompt_from_task\":true},\"acrlpd\":{\n\"discount\": 7}}",
            2,
            "7 is not in (0, 1]",
        ),
        (
            "{\n\"pi0_lr\": 1,\n\"acrlpd\": {\"actor_lr\": 2}}",
            3,
            "keep one of the two",
        ),
    ] {
        let message = refused(text);
        assert!(
            message.starts_with(&format!("`bad.json` line {line}")),
            "{text}: {message}"
        );
        assert!(message.contains(words) && !message.contains('\n'), "{text}: {message}");
    }
}
