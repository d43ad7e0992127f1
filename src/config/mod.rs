//! The typed configuration of a run.
//!
//! | file | what it does |
//! |---|---|
//! | `schema`, `choices` | the sections and fields of [`Config`], and the enums in them |
//! | `defaults` | their defaults |
//! | `names` | which keys exist, and which one is meant |
//! | `shape` | what kind of value a type is written as |
//! | `spellings`, `foreign` | other names of keys; keys of the original that mean nothing here |
//! | `notes` | what to tell about such names |
//! | `source`, `document` | files and presets; TOML and JSON |
//! | `layers` | inheritance (`base = "..."`), relative paths, line numbers |
//! | `check`, `range` | what is out of range or contradictory |
//! | `show`, `json_schema` | the configuration for readers, its schema for editors |
//! | `convert` | sizes of the networks, data spec, schedules |
//! | [`schedule`] | the learning rate of a step |
//! | [`presets`] | `configs/*.toml` inside the program |
//!
//! The rules, which users meet in `configs/debug.toml`:
//! - A name means `configs/NAME.toml` or `.json` in the current folder if there is one, else the preset of that name;
//!   what has a `/` or ends in `.toml` or `.json` is a path. `base` in a file means the same, with paths relative to the
//!   file. TOML and JSON say the same things; JSON's null unsets a key that may be unset.
//! - A file overlays its base key by key, and the bottom layer is the defaults. `data.cameras` is replaced as a whole.
//! - Relative input paths (`data.path`, `data.norm_stats`, `data.tokenizer`, `model.weights`) start in the folder of
//!   the file, or above it if it is called `configs`; those of presets and flags in the current folder. They become
//!   absolute, so that a stored configuration keeps its meaning; an empty one unsets the key. `checkpoint_dir` is an
//!   output and always starts in the current folder.

mod check;
mod choices;
mod convert;
mod defaults;
mod document;
mod error;
mod foreign;
mod json_schema;
mod layers;
mod names;
mod notes;
pub mod presets;
mod range;
pub mod schedule;
mod schema;
mod shape;
mod show;
mod source;
mod spellings;

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

pub use choices::*;
use error::SET;
pub use error::{ConfigError, Place};
pub use foreign::{FOREIGN, Foreign};
use layers::Layers;
use names::Names;
pub use notes::{Note, What};
pub use schedule::Schedule;
pub use schema::*;

/// A value that a flag gives to a key.
#[derive(Clone, Debug)]
pub struct Override {
    /// The flag, for messages and [`Config::show`]; `--set` is spoken of by key and value.
    pub flag: &'static str,
    /// Under any of its names.
    pub key: String,
    /// As [`Config::set`] reads it.
    pub value: String,
}

impl Config {
    /// The preset or file `name_or_path`, complete and valid.
    ///
    /// # Errors
    /// Every way a configuration can be wrong; the message names file, line and key.
    pub fn load(name_or_path: &str) -> Result<Config, ConfigError> {
        Config::load_with(name_or_path, &[])
    }

    /// As [`Config::load`], with `(key, value)` overrides on top; only the result needs to be valid.
    ///
    /// # Errors
    /// As [`Config::load`] and [`Config::set`].
    pub fn load_with(name_or_path: &str, overrides: &[(String, String)]) -> Result<Config, ConfigError> {
        let by_key = |(key, value): &(String, String)| Override {
            flag: SET,
            key: key.clone(),
            value: value.clone(),
        };
        Config::load_over(name_or_path, &overrides.iter().map(by_key).collect::<Vec<_>>())
    }

    /// As [`Config::load_with`], with values that know the flag they come from.
    ///
    /// # Errors
    /// As [`Config::load_with`].
    pub fn load_over(name_or_path: &str, overrides: &[Override]) -> Result<Config, ConfigError> {
        let mut config = Config::typed(Layers::load(name_or_path)?)?;
        for given in overrides {
            config.put(given)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// The configuration in `text`, valid; messages and relative paths go by the file name `path`. This reads what
    /// [`Config::to_toml`] wrote.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, path: impl AsRef<Path>) -> Result<Config, ConfigError> {
        let config = Config::typed(Layers::parse(text, path.as_ref())?)?;
        config.validate()?;
        Ok(config)
    }

    /// Sets one key, under any of its names, from the text of a flag: a TOML value, or a string without its quotes.
    /// Several keys may have to change together, so call [`Config::validate`] after the last.
    ///
    /// # Errors
    /// Unknown keys and values of another type; `self` is unchanged then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        self.put(&Override {
            flag: SET,
            key: key.into(),
            value: value.into(),
        })
    }

    fn put(&mut self, given: &Override) -> Result<(), ConfigError> {
        let Override { flag, key, value } = given.clone();
        let text = Value::String(value.clone());
        let candidates = match value.parse::<Value>() {
            Ok(value) if !value.is_str() => vec![value, text],
            Ok(value) => vec![value],
            Err(_) => vec![text],
        };
        let place = Place::Flag {
            flag,
            key: key.clone(),
            value,
        };
        let mut first_error = None;
        for candidate in candidates {
            let mut layers = Layers::of(self.table(), &self.origins);
            let put = layers.put(&Names::new(), key.clone(), Some(candidate), place.clone(), None);
            match put.and_then(|()| Config::typed(layers)) {
                Ok(config) => {
                    *self = config;
                    return Ok(());
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// The effective configuration as TOML; [`Config::parse`] gives an equal one back.
    pub fn to_toml(&self) -> String {
        // The schema has nothing that TOML cannot say: no nulls in lists, no keys that are not strings.
        toml::to_string(self).unwrap_or_default()
    }

    /// The effective configuration as JSON; [`Config::parse`] with a path that ends in `.json` gives an equal one back.
    pub fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        drop_nulls(&mut json);
        json
    }

    /// What there is to know about names in the files: which mean another key, which are ignored.
    pub fn notes(&self) -> &[Note] {
        &self.origins.notes
    }

    /// Every key there is, dotted, in the order of the schema.
    pub fn keys() -> Vec<String> {
        Names::new().keys().to_vec()
    }

    /// Keys whose values differ: (key, value here, value there), as TOML; an unset one is `unset`.
    pub fn differences(&self, other: &Config) -> Vec<(String, String, String)> {
        let text = |value: Option<Value>| value.map_or("unset".to_owned(), |v| v.to_string());
        let both = |key: String| (text(self.value(&key)), text(other.value(&key)), key);
        let all = Config::keys().into_iter().map(both);
        all.filter(|(a, b, _)| a != b).map(|(a, b, key)| (key, a, b)).collect()
    }

    /// The value of a dotted key; `None`: it is unset.
    fn value(&self, key: &str) -> Option<Value> {
        let mut value = Value::Table(self.table());
        for part in key.split('.') {
            value = value.as_table_mut()?.remove(part)?;
        }
        Some(value)
    }

    fn table(&self) -> Table {
        Table::try_from(self).unwrap_or_default()
    }

    fn typed(layers: Layers) -> Result<Config, ConfigError> {
        let wrong = |place: &Place, key: &str, error: toml::de::Error| ConfigError::Value {
            place: place.clone(),
            key: key.into(),
            reason: in_words(error.message()),
        };
        // Each value by itself first: serde does not say which key of a whole it stumbled over.
        for (key, value, place) in layers.iter() {
            let alone = key.rsplit('.').fold(value.clone(), |inner, key| {
                Value::Table(Table::from_iter([(key.to_owned(), inner)]))
            });
            Config::deserialize(alone).map_err(|e| wrong(place, key, e))?;
        }
        let (table, origins) = layers.over(Config::default().table());
        let config = Config::deserialize(table).map_err(|e| wrong(&Place::Default, "", e))?;
        Ok(Config { origins, ..config })
    }
}

/// Unset keys are left out.
fn drop_nulls(json: &mut serde_json::Value) {
    if let Some(members) = json.as_object_mut() {
        members.retain(|_, value| !value.is_null());
        members.values_mut().for_each(drop_nulls);
    }
}

/// serde's message without Rust's type names.
fn in_words(message: &str) -> String {
    let mut message = message.trim_end().to_owned();
    for (rust, words) in [
        ("expected usize", "expected a whole number of at least 0"),
        ("expected u64", "expected a whole number of at least 0"),
        ("expected i64", "expected a whole number"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list in [ ]"),
        ("expected a map", "expected a table"),
        ("expected path string", "expected a path in quotes"),
        ("expected a string", "expected a text in quotes"),
    ] {
        message = message.replace(rust, words);
    }
    message
}
