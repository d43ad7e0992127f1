//! From files to one list of values: inheritance, other spellings, relative paths.
//!
//! A file is flattened into `dotted.key -> (value, place)`. A file that names a `base` overlays the base's values; the
//! defaults lie under everything. Places survive, so that every later complaint can name file and line.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::error::{ConfigError, Place};
use super::names::{self, CAMERAS, INPUT_PATHS, Known, Names};
use super::source::{Source, absolute, stem};

/// Where each key was written; keys that were not are defaults. Two configurations that say the same are equal wherever
/// it was written, so all origins compare equal.
#[derive(Clone, Debug, Default)]
pub struct Origins(BTreeMap<String, Place>);

impl PartialEq for Origins {
    fn eq(&self, _: &Origins) -> bool {
        true
    }
}

impl Origins {
    /// Where `key` was written; of a table, where its first key was.
    pub fn of(&self, key: &str) -> Place {
        let inside = |k: &str| {
            k.strip_prefix(key)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let places = self.0.iter().filter(|(k, _)| inside(k)).map(|(_, place)| place);
        places.min().cloned().unwrap_or(Place::Default)
    }
}

/// The values of one or more files, by dotted key.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    values: BTreeMap<String, (Value, Place)>,
}

impl Layers {
    /// The configuration `wanted` (a preset's name, or the path of a `.toml` file) over everything it inherits.
    pub fn load(wanted: &str) -> Result<Layers, ConfigError> {
        Layers::named(Source::find(wanted, None, &[])?)
    }

    /// The configuration in `text`, as if it had been read from `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Layers, ConfigError> {
        Layers::named(Source {
            text: text.into(),
            path: Some(path.to_owned()),
            name: stem(path),
        })
    }

    /// With everything the source inherits, and a name.
    fn named(source: Source) -> Result<Layers, ConfigError> {
        let name = Value::String(source.name.clone());
        let mut layers = Layers::inherit(source, &mut Vec::new())?;
        layers.values.entry("name".into()).or_insert((name, Place::Default));
        Ok(layers)
    }

    /// The values of an existing configuration.
    pub fn of(table: Table, origins: &Origins) -> Layers {
        let mut layers = Layers::default();
        let names = Names::new();
        flatten("", table, &names, &mut |key, value| {
            let place = origins.of(&key);
            layers.values.insert(key, (value, place));
        });
        layers
    }

    fn inherit(source: Source, above: &mut Vec<String>) -> Result<Layers, ConfigError> {
        let (own, base) = Layers::read(&source)?;
        let Some((base, place)) = base else { return Ok(own) };
        above.push(source.id());
        let below = Source::find(&base, Some((&source, &place)), above)?;
        if above.contains(&below.id()) {
            let to = below.id();
            return Err(ConfigError::Cycle { place, to });
        }
        let mut layers = Layers::inherit(below, above)?;
        // A configuration that inherits everything else still is another configuration.
        layers.values.remove("name");
        layers.values.extend(own.values);
        Ok(layers)
    }

    /// The values of one file, and the base it names.
    fn read(source: &Source) -> Result<(Layers, Option<(String, Place)>), ConfigError> {
        let root = DeTable::parse(&source.text).map_err(|e| ConfigError::Syntax {
            place: source.place(e.span().map_or(0, |s| s.start)),
            reason: e.message().replace('\n', ", "),
        })?;
        let names = Names::new();
        let mut written = Vec::new();
        let mut tables = vec![(String::new(), root.into_inner())];
        while let Some((table, entries)) = tables.pop() {
            for (key, value) in entries {
                let at = key.span().start;
                let key = names::join(&table, key.get_ref());
                match (names.find(&key), value.into_inner()) {
                    (Known::Section, DeValue::Table(inner)) => tables.push((key, inner)),
                    (_, value) => written.push((at, key, plain(value))),
                }
            }
        }
        // In the order of the file, so that the first mistake is the one reported.
        written.sort_by_key(|(at, ..)| *at);
        let (folder, mut layers, mut base) = (source.folder(), Layers::default(), None);
        for (at, key, value) in written {
            let place = source.place(at);
            match (key.as_str(), value) {
                ("base", Value::String(value)) => base = Some((value, place)),
                ("base", _) => {
                    let reason = "it must be the name or the path of a configuration, in quotes".into();
                    return Err(ConfigError::Value { place, key, reason });
                }
                (_, value) => layers.put(&names, key, value, place, folder.as_deref())?,
            }
        }
        Ok((layers, base))
    }

    /// Sets one key under any of its names. Relative paths start from `folder`.
    pub fn put(
        &mut self,
        names: &Names,
        key: String,
        value: Value,
        place: Place,
        folder: Option<&Path>,
    ) -> Result<(), ConfigError> {
        let (means, value) = match names.find(&key) {
            Known::Key(means, translate) => match translate(value) {
                Some(value) => (means, value),
                None => {
                    let reason = "it must be true or false".into();
                    return Err(ConfigError::Value { place, key, reason });
                }
            },
            Known::Section => {
                let reason = format!("it is a table; write [{key}] and its keys below");
                return Err(ConfigError::Value { place, key, reason });
            }
            Known::Unsupported(why) => return Err(ConfigError::Unsupported { place, key, why }),
            Known::Unknown(nearest) => {
                let nearest = match nearest {
                    Some(nearest) => format!("; did you mean `{nearest}`?"),
                    None => "; the preset `debug` lists every key".into(),
                };
                return Err(ConfigError::UnknownKey { place, key, nearest });
            }
        };
        let value = match value {
            Value::String(path) if INPUT_PATHS.contains(&means.as_str()) && !path.is_empty() => {
                Value::String(absolute(folder, path))
            }
            value => value,
        };
        if let Some(camera) = means.strip_prefix(CAMERAS).and_then(|rest| rest.strip_prefix('.')) {
            let camera = camera.to_owned();
            let empty = || (Value::Table(Table::new()), place.clone());
            if let (Value::Table(cameras), at) = self.values.entry(CAMERAS.into()).or_insert_with(empty) {
                cameras.insert(camera, value);
                *at = place;
            }
            return Ok(());
        }
        // Two names of one key in one file may agree, but not differ.
        match self.values.get(&means) {
            Some((other, at)) if same_document(at, &place) && *other != value => {
                let other = at.to_string();
                Err(ConfigError::Twice {
                    place,
                    key,
                    means,
                    other,
                })
            }
            _ => {
                self.values.insert(means, (value, place));
                Ok(())
            }
        }
    }

    /// Every value as nested tables over those of `defaults`, and the origins. An empty path unsets the key.
    pub fn over(self, defaults: Table) -> (Table, Origins) {
        let mut table = defaults;
        let mut origins = BTreeMap::new();
        for (key, (value, place)) in self.values {
            let unset = INPUT_PATHS.contains(&key.as_str()) && value.as_str() == Some("");
            insert(&mut table, &key, (!unset).then_some(value));
            if place != Place::Default {
                origins.insert(key, place);
            }
        }
        (table, Origins(origins))
    }

    /// All (key, value, place).
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value, &Place)> {
        self.values
            .iter()
            .map(|(key, (value, place))| (key.as_str(), value, place))
    }
}

fn same_document(a: &Place, b: &Place) -> bool {
    match (a, b) {
        (Place::File { path: a, .. }, Place::File { path: b, .. }) => a == b,
        (Place::Preset { name: a, .. }, Place::Preset { name: b, .. }) => a == b,
        _ => false,
    }
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

fn flatten(table: &str, values: Table, names: &Names, put: &mut impl FnMut(String, Value)) {
    for (key, value) in values {
        let key = names::join(table, &key);
        match (names.find(&key), value) {
            (Known::Section, Value::Table(inner)) => flatten(&key, inner, names, put),
            (_, value) => put(key, value),
        }
    }
}

/// Sets or removes a dotted key.
fn insert(table: &mut Table, key: &str, value: Option<Value>) {
    match key.split_once('.') {
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
        None => match value {
            Some(value) => {
                table.insert(key.into(), value);
            }
            None => {
                table.remove(key);
            }
        },
    }
}
