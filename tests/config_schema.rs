//! The JSON Schema: valid, true for every preset, and as strict as the program about keys, kinds and ranges.

use acrlpd::config::Config;
use acrlpd::config::presets::PRESETS;
use serde_json::{Value, json};

fn validator() -> jsonschema::Validator {
    let schema = Config::schema();
    jsonschema::draft202012::meta::validate(&schema).expect("the schema is a schema");
    jsonschema::draft202012::new(&schema).expect("the schema compiles")
}

#[test]
fn every_preset_is_valid_as_written_and_in_full() {
    let validator = validator();
    for (name, text) in PRESETS {
        let written: toml::Table = text.parse().unwrap();
        for config in [json!(written), Config::load(name).unwrap().to_json()] {
            let errors: Vec<String> = validator.iter_errors(&config).map(|e| e.to_string()).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
        }
    }
}

/// What the program refuses, the schema refuses; what it takes, the schema takes.
#[test]
fn it_agrees_with_the_program() {
    let validator = validator();
    let prompt = json!({ "prompt_from_task": true });
    for (good, config) in [
        (true, json!({ "base": "debug" })),
        (
            true,
            json!({ "max_steps": 7, "acrlpd": { "best_of_n": 4, "use_best_of_n": false } }),
        ),
        (true, json!({ "model": { "weights": null, "max_token_len": 12 } })),
        (
            true,
            json!({ "weight_loader": { "params_path": "w" }, "actor_optimizer": { "b1": 0.5 } }),
        ),
        (true, json!({ "acrlpd": { "freeze": ["vision"], "discount": 1 } })),
        (false, json!({ "batch_sise": 8 })),
        (false, json!({ "acrlpd": { "discout": 0.9 } })),
        (false, json!({ "model": { "dims": { "deep": 3 } } })),
        (false, json!({ "batch_size": "eight" })),
        (false, json!({ "batch_size": 8.5 })),
        (false, json!({ "batch_size": 0 })),
        (false, json!({ "batch_size": null })),
        (false, json!({ "acrlpd": { "discount": 0 } })),
        (false, json!({ "acrlpd": { "discount": 1.5 } })),
        (false, json!({ "acrlpd": { "num_action_samples": 0 } })),
        (false, json!({ "acrlpd": { "critic_hidden_dims": [8, 0] } })),
        (false, json!({ "acrlpd": { "freeze": ["hands"] } })),
        (false, json!({ "acrlpd": { "use_best_of_n": "best_of_n" } })),
        (false, json!({ "acrlpd": { "pi0_ema_decay": 1.0 } })),
        (false, json!({ "model": { "dtype": "fp8" } })),
        (false, json!({ "model": { "image_size": 50 } })),
        (false, json!({ "optimizer": { "actor": { "eps": 0 } } })),
        (
            false,
            json!({ "data": { "cameras": { "base_0_rgb": 3 }, "prompt_from_task": true } }),
        ),
    ] {
        assert_eq!(validator.is_valid(&config), good, "schema: {config}");
        let mut config = config;
        if config.get("data").is_none() {
            config["data"] = prompt.clone();
        }
        let parsed = Config::parse(&config.to_string(), "x.json");
        assert_eq!(parsed.is_ok(), good, "program: {config}: {:?}", parsed.err());
    }
}

#[test]
fn every_key_is_there_and_explained() {
    let schema = Config::schema();
    for key in Config::keys() {
        let path = format!("/properties/{}", key.replace('.', "/properties/"));
        let property = schema.pointer(&path).unwrap_or_else(|| panic!("{key}"));
        let text = property.get("description").and_then(Value::as_str).unwrap_or_default();
        assert!(text.len() > 8, "{key} is not explained: {property}");
        assert!(
            property.get("type").is_some() || property.get("enum").is_some(),
            "{key}: {property}"
        );
    }
    assert_eq!(
        schema.pointer("/properties/acrlpd/properties/num_action_samples/default"),
        Some(&json!(32))
    );
}
