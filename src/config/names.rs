//! The names of the keys: which exist, and which is meant.

use serde::Deserialize;
use serde::de::value::Error as NoValue;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;

use super::schema::{Acrlpd, AdamW, Config, Critic, Data, DimsOverride, Model, Optimizers, QChunking};
use super::spellings::{ALIASES, Translate, UNSUPPORTED, same};

/// A table whose keys are the user's: it counts as one value, and a file replaces the one it inherits.
pub const CAMERAS: &str = "data.cameras";

/// Keys that hold the path of something to read.
pub const INPUT_PATHS: [&str; 4] = ["model.weights", "data.path", "data.norm_stats", "data.tokenizer"];

/// What a written key is.
pub enum Known {
    /// The key itself, or what it stands for.
    Key(String, Translate),
    /// A table of keys.
    Section,
    Unsupported(&'static str),
    /// The key that is spelled most like it, if any is.
    Unknown(Option<String>),
}

/// Every key, in the order of the schema.
pub struct Names {
    sections: Vec<&'static str>,
    keys: Vec<String>,
}

impl Names {
    pub fn new() -> Names {
        let tables: [(&str, Fields); 10] = [
            ("", fields::<Config>()),
            ("model", fields::<Model>()),
            ("model.dims", fields::<DimsOverride>()),
            ("acrlpd", fields::<Acrlpd>()),
            ("qchunking", fields::<QChunking>()),
            ("critic", fields::<Critic>()),
            ("optimizer", fields::<Optimizers>()),
            ("optimizer.actor", fields::<AdamW>()),
            ("optimizer.critic", fields::<AdamW>()),
            ("data", fields::<Data>()),
        ];
        let sections: Vec<&str> = tables.iter().map(|t| t.0).collect();
        let keys = tables
            .iter()
            .flat_map(|(table, fields)| fields.iter().map(|f| join(table, f)));
        let keys = keys.filter(|k| !sections.contains(&k.as_str())).collect();
        Names { sections, keys }
    }

    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Looks up a dotted key.
    pub fn find(&self, key: &str) -> Known {
        if let Some((_, key, translate)) = ALIASES.iter().find(|a| a.0 == key) {
            return Known::Key((*key).into(), *translate);
        }
        if let Some((_, why)) = UNSUPPORTED.iter().find(|u| u.0.trim_end_matches('.') == key) {
            return Known::Unsupported(why);
        }
        if self.sections.contains(&key) {
            return Known::Section;
        }
        let a_camera = key.strip_prefix(CAMERAS).is_some_and(|rest| rest.starts_with('.'));
        if a_camera || self.keys.iter().any(|k| k == key) {
            return Known::Key(key.into(), same);
        }
        Known::Unknown(self.nearest(key))
    }

    fn nearest(&self, key: &str) -> Option<String> {
        let known = self.keys.iter().map(String::as_str);
        let known = known
            .chain(self.sections.iter().copied())
            .chain(ALIASES.iter().map(|a| a.0))
            .chain(["base"]);
        let distance = |known: &str| {
            // The right name in the wrong table is a near miss too.
            let last = |k: &str| k.rsplit('.').next().map(str::to_owned).unwrap_or_default();
            edit_distance(key, known).min(1 + edit_distance(&last(key), &last(known)))
        };
        let best = known.filter(|k| !k.is_empty()).map(|k| (distance(k), k)).min()?;
        (best.0 <= 2.max(key.len() / 4)).then(|| best.1.to_owned())
    }
}

/// `table.key`, or `key` at the top.
pub fn join(table: &str, key: &str) -> String {
    if table.is_empty() {
        key.into()
    } else {
        format!("{table}.{key}")
    }
}

/// The member of `known` most like `name`, if one is like it at all.
pub fn nearest_of<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let best = known.map(|k| (edit_distance(name, k), k)).min()?;
    (best.0 <= 2.max(name.len() / 4)).then_some(best.1)
}

/// Levenshtein's distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

type Fields = &'static [&'static str];

/// The field names of a struct, as serde knows them: a deserializer that notes what it is asked for and gives nothing.
fn fields<T: for<'de> Deserialize<'de>>() -> Fields {
    struct Asked<'a>(&'a mut Fields);

    impl<'de> Deserializer<'de> for Asked<'_> {
        type Error = NoValue;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, NoValue> {
            Err(NoValue::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            names: Fields,
            _: V,
        ) -> Result<V::Value, NoValue> {
            *self.0 = names;
            Err(NoValue::custom("names only"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: Fields = &[];
    // The error is the point: nothing is deserialized.
    let _ = T::deserialize(Asked(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alias_leads_to_a_key_and_no_key_is_also_unsupported() {
        let names = Names::new();
        for (alias, key, _) in ALIASES {
            assert!(names.keys.iter().any(|k| k == key), "{alias} -> {key}");
            assert!(!names.keys.iter().any(|k| k == alias), "{alias} is a key");
        }
        for (key, _) in UNSUPPORTED {
            assert!(
                !names.keys.iter().any(|k| k == key) && !ALIASES.iter().any(|a| a.0 == *key),
                "{key}"
            );
        }
        assert!(
            INPUT_PATHS
                .iter()
                .chain([&CAMERAS])
                .all(|k| names.keys.iter().any(|n| n == k))
        );
    }

    #[test]
    fn distances() {
        for (a, b, d) in [
            ("", "", 0),
            ("abc", "", 3),
            ("batch_sise", "batch_size", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!((edit_distance(a, b), edit_distance(b, a)), (d, d));
        }
        let near = |key: &str| Names::new().nearest(key);
        assert_eq!(near("acrlpd.discout").as_deref(), Some("acrlpd.discount"));
        assert_eq!(near("discount").as_deref(), Some("acrlpd.discount"));
        assert_eq!(near("acrlp.num_critics").as_deref(), Some("acrlpd.num_critics"));
        assert_eq!(near("zzzzzzzz"), None);
    }
}
