//! The JSON Schema of configurations (draft 2020-12), for editors and other programs.
//!
//! Nothing in it is written twice: kinds come from the types, ranges from the checks, explanations from the comments of
//! the preset `debug`, defaults from the defaults.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use toml::Value as Toml;

use super::names::{self, Names};
use super::presets::PRESETS;
use super::schema::Config;
use super::shape::Shape;
use super::spellings::ALIASES;

impl Config {
    /// The schema of configuration files, as JSON. It knows keys, kinds and ranges; what only makes sense together is
    /// for [`Config::validate`].
    pub fn schema() -> Value {
        let (defaults, about) = (Config::default(), explanations());
        let mut properties: BTreeMap<String, Value> = BTreeMap::new();
        for (key, shape) in Names::new().shapes() {
            let mut property = kind(shape);
            if let Some(text) = about.get(key) {
                property["description"] = json!(text);
            }
            if let Some(value) = defaults.value(key) {
                property["default"] = json!(value);
            }
            properties.insert(key.to_owned(), property);
        }
        for (key, range) in Config::ranges() {
            let Some(property) = properties.get_mut(&key) else {
                continue;
            };
            // The range of a list is that of its elements.
            let number = match property.get("items") {
                Some(_) => &mut property["items"],
                None => property,
            };
            if let (Value::Object(number), Value::Object(keywords)) = (number, range.keywords()) {
                number.extend(keywords);
            }
        }
        let mut root = table("A configuration of acrlpd, in TOML or JSON.");
        root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        root["title"] = json!("acrlpd");
        root["properties"]["base"] = json!({
            "type": "string",
            "description": "Name or path of the configuration that this one extends.",
        });
        for key in Config::keys() {
            if let Some(property) = properties.get(&key) {
                place(&mut root, &key, property.clone(), &about);
            }
        }
        for (alias, key, translate) in ALIASES {
            let Some(mut property) = properties.get(*key).cloned() else {
                continue;
            };
            if translate(Toml::Boolean(true)) != Some(Toml::Boolean(true)) {
                property = json!({ "type": "boolean" });
            }
            property["description"] = json!(format!("Another name of {key}."));
            place(&mut root, alias, property, &about);
        }
        root
    }
}

/// A table of the properties that will be put there.
fn table(description: &str) -> Value {
    json!({ "description": description, "type": "object", "additionalProperties": false, "properties": {} })
}

/// Puts a property at its dotted key.
fn place(root: &mut Value, key: &str, property: Value, about: &BTreeMap<String, String>) {
    let mut at = root;
    let mut path = String::new();
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        path = names::join(&path, part);
        let Some(Value::Object(properties)) = at.get_mut("properties") else {
            return;
        };
        if parts.peek().is_none() {
            properties.insert(part.into(), property);
            return;
        }
        let text = about.get(&path).map_or("A table of the original's.", String::as_str);
        at = properties.entry(part).or_insert_with(|| table(text));
    }
}

fn kind(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::Whole => json!({ "type": "integer", "minimum": 0 }),
        Shape::Integer => json!({ "type": "integer" }),
        Shape::Number => json!({ "type": "number" }),
        Shape::Text => json!({ "type": "string" }),
        Shape::Texts => json!({ "type": ["string", "array"], "items": { "type": "string" } }),
        Shape::Choice(words) => json!({ "enum": words }),
        Shape::List(inner) => json!({ "type": "array", "items": kind(inner) }),
        Shape::Map(inner) => json!({ "type": "object", "additionalProperties": kind(inner) }),
        Shape::Optional(inner) => nullable(kind(inner)),
        Shape::Table(_) => Value::Object(Map::new()),
    }
}

/// The same, or null.
fn nullable(mut kind: Value) -> Value {
    if let Some(words) = kind.get_mut("enum").and_then(Value::as_array_mut) {
        words.push(Value::Null);
    } else {
        kind["type"] = json!([kind["type"], "null"]);
    }
    kind
}

/// What the preset `debug` says above (or behind) every key and table.
fn explanations() -> BTreeMap<String, String> {
    let (mut about, mut section, mut comment) = (BTreeMap::new(), String::new(), String::new());
    for line in PRESETS[0].1.lines() {
        if let Some(more) = line.strip_prefix("# ") {
            comment = format!("{comment} {more}").trim().into();
            continue;
        }
        let above = std::mem::take(&mut comment);
        if let Some(heading) = line.strip_prefix('[') {
            heading.trim_end_matches(']').clone_into(&mut section);
            about.insert(section.clone(), above);
        } else if let Some((key, value)) = line.trim_start_matches('#').split_once(" = ") {
            let behind = value.split_once(" # ").map_or("", |(_, text)| text.trim());
            let text = if above.is_empty() { behind.into() } else { above };
            about.insert(names::join(&section, key), text);
        }
    }
    about
}
