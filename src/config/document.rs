//! The text of a file as a list of dotted keys, TOML or JSON.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IntoDeserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::ConfigError;
use super::names::{self, Known, Names};
use super::source::Source;

/// A key as it is written.
pub struct Entry {
    /// Its first byte in the text; in JSON, that of its value.
    pub at: usize,
    pub key: String,
    /// `None`: JSON's null.
    pub value: Option<Value>,
}

/// Everything that is written in `source`, in the order of the file, so that the first mistake is the one reported.
pub fn entries(source: &Source, names: &Names) -> Result<Vec<Entry>, ConfigError> {
    let mut entries = if source.is_json() {
        json(source, names)?
    } else {
        toml(source, names)?
    };
    entries.sort_by_key(|entry| entry.at);
    Ok(entries)
}

fn toml(source: &Source, names: &Names) -> Result<Vec<Entry>, ConfigError> {
    let root = DeTable::parse(&source.text).map_err(|e| ConfigError::Syntax {
        place: source.place(e.span().map_or(0, |s| s.start)),
        format: "TOML",
        reason: e.message().replace('\n', ", "),
    })?;
    let mut written = Vec::new();
    let mut tables = vec![(String::new(), root.into_inner())];
    while let Some((table, entries)) = tables.pop() {
        for (key, value) in entries {
            let at = key.span().start;
            let key = names::join(&table, key.get_ref());
            match (names.find(&key), value.into_inner()) {
                (Known::Section, DeValue::Table(inner)) => tables.push((key, inner)),
                (_, value) => written.push(Entry {
                    at,
                    key,
                    value: Some(plain(value)),
                }),
            }
        }
    }
    Ok(written)
}

/// A parsed value without its spans. A `toml::Value` can hold all but integers beyond 64 bits, which stay text and
/// fail as such.
fn plain(value: DeValue<'_>) -> Value {
    let text = match &value {
        DeValue::Integer(i) => i.to_string(),
        _ => String::new(),
    };
    Value::deserialize(Spanned::new(0..0, value).into_deserializer()).unwrap_or(Value::String(text))
}

fn json(source: &Source, names: &Names) -> Result<Vec<Entry>, ConfigError> {
    let text = &source.text;
    let wrong = |at: usize, reason: String| ConfigError::Syntax {
        place: source.place(at),
        format: "JSON",
        reason,
    };
    let root =
        serde_json::from_str::<Members<'_>>(text).map_err(|e| wrong(start_of_line(text, e.line()), words(&e)))?;
    let mut written: Vec<Entry> = Vec::new();
    let mut objects = vec![(String::new(), root)];
    while let Some((table, Members(members))) = objects.pop() {
        for (i, (name, raw)) in members.iter().enumerate() {
            // The raw text is a part of the whole one, so its place in it is that of the value.
            let at = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            if members[..i].iter().any(|(other, _)| other == name) {
                return Err(wrong(at, format!("duplicate key `{name}`")));
            }
            let key = names::join(&table, name);
            let inner = raw.get().starts_with('{') && matches!(names.find(&key), Known::Section);
            match (inner, serde_json::from_str(raw.get()), serde_json::from_str(raw.get())) {
                (true, Ok(members), _) => objects.push((key, members)),
                (_, _, Ok(value)) => {
                    let value = from_json(value).map_err(|reason| wrong(at, format!("`{key}` holds {reason}")))?;
                    written.push(Entry { at, key, value });
                }
                (_, _, Err(e)) => return Err(wrong(at, words(&e))),
            }
        }
    }
    Ok(written)
}

fn start_of_line(text: &str, line: usize) -> usize {
    text.split_inclusive('\n')
        .take(line.saturating_sub(1))
        .map(str::len)
        .sum()
}

/// serde_json's message without its place, which is said in our own way.
fn words(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rsplit_once(" at line ") {
        Some((words, _)) => words.to_owned(),
        None => message,
    }
}

/// `None` for null. Numbers that TOML cannot hold stay text and fail as such.
fn from_json(value: serde_json::Value) -> Result<Option<Value>, &'static str> {
    use serde_json::Value as Json;
    Ok(Some(match value {
        Json::Null => return Ok(None),
        Json::Bool(b) => Value::Boolean(b),
        Json::Number(n) => match (n.as_i64(), n.as_f64()) {
            (Some(i), _) => Value::Integer(i),
            (None, Some(x)) if !n.is_u64() => Value::Float(x),
            _ => Value::String(n.to_string()),
        },
        Json::String(text) => Value::String(text),
        Json::Array(list) => {
            let list = list.into_iter().map(|v| from_json(v)?.ok_or("a null in a list"));
            Value::Array(list.collect::<Result<_, _>>()?)
        }
        Json::Object(members) => {
            let mut table = Table::new();
            for (key, value) in members {
                if let Some(value) = from_json(value)? {
                    table.insert(key, value);
                }
            }
            Value::Table(table)
        }
    }))
}

/// The members of an object, each value as the text it is.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'a>, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object in { }")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}
