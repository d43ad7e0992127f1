//! The names of the keys: which exist, and which is meant.

use super::foreign::{FOREIGN, Foreign};
use super::schema::Config;
use super::shape::Shape;
use super::spellings::{ALIASES, Translate, same};

/// A table whose keys are the user's: it counts as one value, and a file replaces the one it inherits.
pub const CAMERAS: &str = "data.cameras";

/// Lists datasets, of which some may be folders.
pub const MIX: &str = "data.mix";

/// Keys that hold the path of something to read.
pub const INPUT_PATHS: [&str; 4] = ["model.weights", "data.path", "data.norm_stats", "data.tokenizer"];

/// What a written key is.
pub enum Known {
    /// The key itself, or what it stands for.
    Key(String, Translate),
    /// A table of keys.
    Section,
    /// A key of the original without a meaning here.
    Foreign(&'static Foreign),
    /// The key that is spelled most like it, if any is.
    Unknown(Option<String>),
}

/// Every key, in the order of the schema: those of a table before its tables.
pub struct Names {
    sections: Vec<String>,
    keys: Vec<String>,
    shapes: Vec<Shape>,
}

impl Names {
    pub fn new() -> Names {
        let mut names = Names {
            sections: Vec::new(),
            keys: Vec::new(),
            shapes: Vec::new(),
        };
        names.add("", Shape::of::<Config>());
        names
    }

    fn add(&mut self, key: &str, shape: Shape) {
        let Shape::Table(fields) = shape else {
            self.keys.push(key.into());
            self.shapes.push(shape);
            return;
        };
        self.sections.push(key.into());
        let (tables, values): (Vec<_>, Vec<_>) = fields.into_iter().partition(|f| matches!(f.1, Shape::Table(_)));
        for (name, shape) in values.into_iter().chain(tables) {
            self.add(&join(key, name), shape);
        }
    }

    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// Every key with the shape of its value.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &Shape)> {
        self.keys.iter().map(String::as_str).zip(&self.shapes)
    }

    /// Whether a key may be left unset.
    pub fn optional(&self, key: &str) -> bool {
        self.shapes()
            .any(|(k, shape)| k == key && matches!(shape, Shape::Optional(_)))
    }

    /// Looks up a dotted key.
    pub fn find(&self, key: &str) -> Known {
        if let Some((_, key, translate)) = ALIASES.iter().find(|a| a.0 == key) {
            return Known::Key((*key).into(), *translate);
        }
        if let Some(foreign) = FOREIGN.iter().find(|f| f.key == key) {
            return Known::Foreign(foreign);
        }
        let holds = |other: &str| other.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        let of_the_original = ALIASES.iter().map(|a| a.0).chain(FOREIGN.iter().map(|f| f.key));
        if self.sections.iter().any(|s| s == key) || of_the_original.into_iter().any(holds) {
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
            .chain(self.sections.iter().map(String::as_str))
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
        for foreign in FOREIGN {
            let key = foreign.key;
            let taken = names.keys.iter().any(|k| k == key) || ALIASES.iter().any(|a| a.0 == key);
            assert!(!taken, "{key}");
            assert!(
                foreign.same_as.iter().all(|k| names.keys.iter().any(|n| n == k)),
                "{key}"
            );
            assert_eq!(foreign.values().len(), foreign.harmless.len(), "{key}");
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
        assert_eq!(near("num_action_sample").as_deref(), Some("acrlpd.num_action_samples"));
        assert_eq!(near("acrlp.num_critics").as_deref(), Some("acrlpd.num_critics"));
        assert_eq!(near("zzzzzzzz"), None);
    }
}
