//! openpi's repack step for numbers: which features of a dataset, or parts of them, make up the state and the action.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize, de};

use super::{Column, DataError, Dataset};

/// A feature of a dataset, or some of its coordinates as Python would slice them: `action`, `action[0:7]`, `action[7:]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub feature: String,
    /// The first coordinate.
    pub from: usize,
    /// The coordinate after the last; `None`: all there are.
    pub to: Option<usize>,
}

/// Parts one after the other: a vector. In a configuration it is a text, or a list of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts(pub Vec<Part>);

/// [`Parts`] of a dataset that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    /// Position of a column, and which of its coordinates.
    parts: Vec<(usize, Range<usize>)>,
    width: usize,
}

impl Parts {
    /// A whole feature.
    pub fn feature(key: &str) -> Parts {
        Parts(vec![Part {
            feature: key.into(),
            from: 0,
            to: None,
        }])
    }

    /// Where they are in `dataset`, where every value is finite; `setting` names the configuration's key in messages.
    ///
    /// # Errors
    /// Features that do not exist, coordinates that one does not have, NaN and infinities with file and row.
    pub fn find(&self, setting: &'static str, dataset: &dyn Dataset) -> Result<Vector, DataError> {
        if self.0.is_empty() {
            let reason = "it names no feature".to_owned();
            return Err(DataError::Spec { field: setting, reason });
        }
        let mut parts = Vec::new();
        for part in &self.0 {
            let position = Column::find(dataset, &part.feature)?;
            let width = dataset.columns()[position].width;
            let coordinates = part.from..part.to.unwrap_or(width);
            if coordinates.is_empty() || coordinates.end > width {
                let reason = format!("`{part}` asks for what `{}` with its width {width} lacks", part.feature);
                return Err(DataError::Spec { field: setting, reason });
            }
            Column::check_finite(dataset, position, coordinates.clone())?;
            parts.push((position, coordinates));
        }
        let width = parts.iter().map(|(_, coordinates)| coordinates.len()).sum();
        Ok(Vector { parts, width })
    }
}

impl Vector {
    /// How many numbers it has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Its numbers at one frame, `[width]`, from the columns of the dataset that it was found in.
    pub fn row(&self, columns: &[Column], frame: usize) -> impl Iterator<Item = f64> {
        let part = move |(position, coordinates): &(usize, Range<usize>)| {
            columns[*position].row(frame)[coordinates.clone()].iter()
        };
        self.parts.iter().flat_map(part).map(|v| f64::from(*v))
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Part, String> {
        let whole = || Part {
            feature: text.into(),
            from: 0,
            to: None,
        };
        let Some((feature, slice)) = text.strip_suffix(']').and_then(|t| t.rsplit_once('[')) else {
            return Ok(whole());
        };
        let wrong =
            || format!("`{text}` is no slice of a feature; write `{feature}[0:7]`, `{feature}[:7]` or `{feature}[7:]`");
        let bound = |text: &str| match text.trim() {
            "" => Ok(None),
            number => number.parse().map(Some).map_err(|_| wrong()),
        };
        let (from, to) = slice.split_once(':').ok_or_else(wrong)?;
        let (from, to) = (bound(from)?.unwrap_or(0), bound(to)?);
        if to.is_some_and(|to| to <= from) {
            return Err(format!(
                "`{text}` is empty; the second number of a slice is above the first"
            ));
        }
        Ok(Part {
            feature: feature.into(),
            from,
            to,
        })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.from, self.to) {
            (0, None) => write!(f, "{}", self.feature),
            (from, None) => write!(f, "{}[{from}:]", self.feature),
            (from, Some(to)) => write!(f, "{}[{from}:{to}]", self.feature),
        }
    }
}

/// For messages: `a`, or `a` + `b[0:7]`.
impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.0.iter().map(|part| format!("`{part}`")).collect();
        write!(f, "{}", parts.join(" + "))
    }
}

impl Serialize for Parts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [part] => serializer.collect_str(part),
            parts => serializer.collect_seq(parts.iter().map(Part::to_string)),
        }
    }
}

impl<'de> Deserialize<'de> for Parts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Parts, D::Error> {
        struct OneOrMore;

        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Parts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a text in quotes, or a list of them in [ ]")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Parts, E> {
                Ok(Parts(vec![text.parse().map_err(E::custom)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Parts, A::Error> {
                let mut parts = Vec::new();
                while let Some(text) = list.next_element::<String>()? {
                    parts.push(text.parse().map_err(de::Error::custom)?);
                }
                Ok(Parts(parts))
            }
        }

        deserializer.deserialize_any(OneOrMore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_read_and_written() {
        for (text, feature, from, to) in [
            ("observation.state", "observation.state", 0, None),
            ("a[0:7]", "a", 0, Some(7)),
            ("a[7:]", "a", 7, None),
            ("a[ 7 : 8 ]", "a", 7, Some(8)),
        ] {
            let part: Part = text.parse().unwrap();
            assert_eq!(
                (part.feature.as_str(), part.from, part.to),
                (feature, from, to),
                "{text}"
            );
            assert_eq!(part.to_string(), text.replace(' ', ""));
        }
        let whole = |text: &str| text.parse::<Part>().unwrap().to_string();
        assert_eq!((whole("a[:7]"), whole("a[:]")), ("a[0:7]".into(), "a".into()));
        for text in [
            "a[7]",
            "a[x:7]",
            "a[-1:]",
            "a[7:7]",
            "a[8:7]",
            "a[0:99999999999999999999]",
        ] {
            assert!(text.parse::<Part>().unwrap_err().contains(text), "{text}");
        }
    }

    #[test]
    fn one_part_is_a_text_and_more_are_a_list() {
        for json in [r#""a[0:7]""#, r#"["a","b[0:2]"]"#, "[]"] {
            let parts: Parts = serde_json::from_str(json).unwrap();
            assert_eq!(serde_json::to_string(&parts).unwrap(), json);
        }
        assert!(
            serde_json::from_str::<Parts>("3")
                .unwrap_err()
                .to_string()
                .contains("a list of them")
        );
    }
}
