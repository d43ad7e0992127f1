//! The typed configuration of a run.
//!
//! | file | what it does |
//! |---|---|
//! | `schema` | the sections and fields of [`Config`] |
//! | `defaults` | their defaults |
//! | `names` | which keys exist, and which one is meant |
//! | `spellings` | other names of keys, and keys of the original that mean nothing here |
//! | `source` | files and presets |
//! | `layers` | inheritance (`base = "..."`), relative paths, line numbers |
//! | `check` | what is out of range or contradictory |
//! | `convert` | sizes of the networks, data spec, schedules |
//! | [`schedule`] | the learning rate of a step |
//! | [`presets`] | `configs/*.toml` inside the program |
//!
//! The rules, which users meet in `configs/debug.toml`:
//! - A name means `configs/NAME.toml` in the current folder if there is one, else the preset of that name; what has a
//!   `/` or ends in `.toml` is a path. `base` in a file means the same, with paths relative to the file.
//! - A file overlays its base key by key, and the bottom layer is the defaults. `data.cameras` is replaced as a whole.
//! - Relative input paths (`data.path`, `data.norm_stats`, `data.tokenizer`, `model.weights`) start in the folder of
//!   the file, or above it if it is called `configs`; those of presets and flags in the current folder. They become
//!   absolute, so that a stored configuration keeps its meaning; an empty one unsets the key. `checkpoint_dir` is an
//!   output and always starts in the current folder.

mod check;
mod convert;
mod defaults;
mod error;
mod layers;
mod names;
pub mod presets;
pub mod schedule;
mod schema;
mod source;
mod spellings;

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

pub use error::{ConfigError, Place};
use layers::Layers;
use names::Names;
pub use schedule::Schedule;
pub use schema::*;
pub use spellings::UNSUPPORTED;

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
        let mut config = Config::typed(Layers::load(name_or_path)?)?;
        for (key, value) in overrides {
            config.set(key, value)?;
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
        let text = Value::String(value.to_owned());
        let candidates = match value.parse::<Value>() {
            Ok(value) if !value.is_str() => vec![value, text],
            Ok(value) => vec![value],
            Err(_) => vec![text],
        };
        let place = Place::Set {
            key: key.into(),
            value: value.into(),
        };
        let mut first_error = None;
        for candidate in candidates {
            let mut layers = Layers::of(self.table(), &self.origins);
            let put = layers.put(&Names::new(), key.to_owned(), candidate, place.clone(), None);
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

    /// Every key there is, dotted, in the order of the schema.
    pub fn keys() -> Vec<String> {
        Names::new().keys().to_vec()
    }

    /// Keys whose values differ: (key, value here, value there), as TOML; an unset one is `unset`.
    pub fn differences(&self, other: &Config) -> Vec<(String, String, String)> {
        let (here, there) = (self.table(), other.table());
        let value = |table: &Table, key: &str| {
            let mut parts = key.split('.');
            let first = parts.next().and_then(|part| table.get(part));
            let found = parts.fold(first, |value, part| value.and_then(|v| v.get(part)));
            found.map_or("unset".to_owned(), Value::to_string)
        };
        let both = |key: String| (value(&here, &key), value(&there, &key), key);
        let all = Config::keys().into_iter().map(both);
        all.filter(|(a, b, _)| a != b).map(|(a, b, key)| (key, a, b)).collect()
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

/// serde's message without Rust's type names.
fn in_words(message: &str) -> String {
    let mut message = message.trim_end().to_owned();
    for (rust, words) in [
        ("expected usize", "expected a whole number of at least 0"),
        ("expected u64", "expected a whole number of at least 0"),
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
