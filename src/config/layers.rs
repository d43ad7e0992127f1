//! From files to one list of values: inheritance, other spellings, relative paths.
//!
//! A file is flattened into `dotted.key -> (value, place)`. A file that names a `base` overlays the base's values; the
//! defaults lie under everything. Places survive, so that every later complaint can name file and line.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::document::{self, Entry};
use super::error::{ConfigError, Place};
use super::names::{self, CAMERAS, INPUT_PATHS, Known, MIX, Names};
use super::notes::{Note, What};
use super::source::{Source, absolute, dataset_of, stem};

/// Where each key was written, and what there is to say about it; keys that were not written are defaults. Two
/// configurations that say the same are equal wherever it was written, so all origins compare equal.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    places: BTreeMap<String, Place>,
    pub(super) notes: Vec<Note>,
}

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
        let places = self.places.iter().filter(|(k, _)| inside(k)).map(|(_, place)| place);
        places.min().cloned().unwrap_or(Place::Default)
    }
}

/// The values of one or more files, by dotted key.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    /// `None`: unset, whatever lies below.
    values: BTreeMap<String, (Option<Value>, Place)>,
    notes: Vec<Note>,
}

impl Layers {
    /// The configuration `wanted` (a preset's name, or the path of a file) over everything it inherits.
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
        layers
            .values
            .entry("name".into())
            .or_insert((Some(name), Place::Default));
        Ok(layers)
    }

    /// The values of an existing configuration.
    pub fn of(table: Table, origins: &Origins) -> Layers {
        let mut layers = Layers {
            notes: origins.notes.clone(),
            ..Layers::default()
        };
        let names = Names::new();
        flatten("", table, &names, &mut |key, value| {
            let place = origins.of(&key);
            layers.values.insert(key, (Some(value), place));
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
        layers.notes.extend(own.notes);
        Ok(layers)
    }

    /// The values of one file, and the base it names.
    fn read(source: &Source) -> Result<(Layers, Option<(String, Place)>), ConfigError> {
        let names = Names::new();
        let (folder, mut layers, mut base) = (source.folder(), Layers::default(), None);
        for Entry { at, key, value } in document::entries(source, &names)? {
            let place = source.place(at);
            match (key.as_str(), value) {
                ("base", Some(Value::String(value))) => base = Some((value, place)),
                ("base", _) => {
                    let reason = "it must be the name or the path of a configuration, in quotes".into();
                    return Err(ConfigError::Value { place, key, reason });
                }
                (_, value) => layers.put(&names, key, value, place, folder.as_deref())?,
            }
        }
        Ok((layers, base))
    }

    /// Sets one key under any of its names; `None` unsets it. Relative paths start from `folder`.
    pub fn put(
        &mut self,
        names: &Names,
        key: String,
        value: Option<Value>,
        place: Place,
        folder: Option<&Path>,
    ) -> Result<(), ConfigError> {
        let (means, translate) = match (names.find(&key), &value) {
            (Known::Key(means, translate), _) => (means, translate),
            (Known::Section, None) => return Ok(()),
            (Known::Section, Some(_)) => {
                let reason = format!("it is a table; write [{key}] and its keys below");
                return Err(ConfigError::Value { place, key, reason });
            }
            (Known::Foreign(foreign), _) if foreign.ignores(value.as_ref()) || !foreign.same_as.is_empty() => {
                let what = What::Ignored { foreign, value };
                self.notes.push(Note { place, key, what });
                return Ok(());
            }
            (Known::Foreign(foreign), _) => {
                let why = foreign.why;
                return Err(ConfigError::Unsupported { place, key, why });
            }
            (Known::Unknown(nearest), _) => {
                let nearest = match nearest {
                    Some(nearest) => format!("; did you mean `{nearest}`?"),
                    None => "; the preset `debug` lists every key".into(),
                };
                return Err(ConfigError::UnknownKey { place, key, nearest });
            }
        };
        if value.is_none() && !names.optional(&means) {
            let reason = "it is null; leave it out for the default".into();
            return Err(ConfigError::Value { place, key, reason });
        }
        let value = match value.map(translate) {
            Some(None) => {
                let reason = "it must be true or false".into();
                return Err(ConfigError::Value { place, key, reason });
            }
            value => value.flatten(),
        };
        if key != means && !matches!(place, Place::Flag { .. }) {
            let what = What::Means(means.clone());
            let (key, place) = (key.clone(), place.clone());
            self.notes.push(Note { place, key, what });
        }
        let value = match value {
            Some(Value::String(path)) if INPUT_PATHS.contains(&means.as_str()) => {
                (!path.is_empty()).then(|| Value::String(absolute(folder, path)))
            }
            Some(Value::Array(items)) if means == MIX => {
                let place = |item| match item {
                    Value::String(text) => Value::String(dataset_of(folder, text)),
                    other => other,
                };
                Some(Value::Array(items.into_iter().map(place).collect()))
            }
            value => value,
        };
        self.insert(key, means, value, place)
    }

    fn insert(&mut self, key: String, means: String, value: Option<Value>, place: Place) -> Result<(), ConfigError> {
        if let Some(camera) = means.strip_prefix(CAMERAS).and_then(|rest| rest.strip_prefix('.')) {
            let camera = camera.to_owned();
            let empty = || (Some(Value::Table(Table::new())), place.clone());
            let cameras = self.values.entry(CAMERAS.into()).or_insert_with(empty);
            if let ((Some(Value::Table(cameras)), at), Some(value)) = (cameras, value) {
                cameras.insert(camera, value);
                *at = place;
            }
            return Ok(());
        }
        // Two names of one key in one file may agree, but not differ.
        match self.values.get(&means) {
            Some((other, at)) if same_document(at, &place) && *other != value => {
                let other = Box::new(at.clone());
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

    /// Every value as nested tables over those of `defaults`, and the origins.
    pub fn over(self, defaults: Table) -> (Table, Origins) {
        let mut table = defaults;
        let mut places = BTreeMap::new();
        for (key, (value, place)) in self.values {
            insert(&mut table, &key, value);
            if place != Place::Default {
                places.insert(key, place);
            }
        }
        let notes = self.notes;
        (table, Origins { places, notes })
    }

    /// All (key, value, place) that are set.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value, &Place)> {
        self.values
            .iter()
            .filter_map(|(key, (value, place))| Some((key.as_str(), value.as_ref()?, place)))
    }
}

fn same_document(a: &Place, b: &Place) -> bool {
    match (a, b) {
        (Place::File { path: a, .. }, Place::File { path: b, .. }) => a == b,
        (Place::Preset { name: a, .. }, Place::Preset { name: b, .. }) => a == b,
        _ => false,
    }
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
