//! The shape of a type as serde knows it: which keys a table has, what kind each value is, which words a choice takes.
//!
//! A deserializer that notes what it is asked for and answers with the plainest value there is. What a file may say
//! and what it is then read into cannot differ: both come from the same `Deserialize`.

use serde::Deserialize;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// What kind of value a type is written as.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    Bool,
    /// A whole number of at least 0.
    Whole,
    /// A whole number.
    Integer,
    Number,
    Text,
    /// A text, or a list of texts.
    Texts,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// May be left unset.
    Optional(Box<Shape>),
    List(Box<Shape>),
    /// A table whose keys are the user's.
    Map(Box<Shape>),
    /// A table with these keys.
    Table(Vec<(&'static str, Shape)>),
}

impl Shape {
    /// The shape of `T`.
    pub fn of<T: for<'de> Deserialize<'de>>() -> Shape {
        let mut shape = Shape::Table(Vec::new());
        // The value is a by-product: what matters is what was asked for.
        let _ = T::deserialize(Probe(&mut shape));
        shape
    }
}

/// Notes what is asked for in the shape it points to.
struct Probe<'a>(&'a mut Shape);

impl Probe<'_> {
    fn noted<T>(self, shape: Shape, answer: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        *self.0 = shape;
        answer()
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        // What is not of one kind in a configuration is a text or several.
        self.noted(Shape::Texts, || visitor.visit_str(""))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.noted(Shape::Bool, || visitor.visit_bool(false))
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.noted(Shape::Whole, || visitor.visit_u64(0))
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.noted(Shape::Integer, || visitor.visit_i64(0))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.noted(Shape::Number, || visitor.visit_f64(0.0))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.noted(Shape::Text, || visitor.visit_str(""))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let first: StrDeserializer<'_, Error> = words.first().copied().unwrap_or_default().into_deserializer();
        self.noted(Shape::Choice(words), || visitor.visit_enum(first))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = Shape::Bool;
        let value = visitor.visit_some(Probe(&mut inner));
        self.noted(Shape::Optional(Box::new(inner)), || value)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = Shape::Bool;
        let value = visitor.visit_seq(One(Some(&mut inner)));
        self.noted(Shape::List(Box::new(inner)), || value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut inner = [("", Shape::Bool)];
        let value = visitor.visit_map(Fields {
            left: inner.iter_mut(),
            current: None,
        });
        let [(_, inner)] = inner;
        self.noted(Shape::Map(Box::new(inner)), || value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let mut fields: Vec<_> = names.iter().map(|name| (*name, Shape::Bool)).collect();
        let value = visitor.visit_map(Fields {
            left: fields.iter_mut(),
            current: None,
        });
        self.noted(Shape::Table(fields), || value)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u128 f32 char str bytes byte_buf unit unit_struct newtype_struct tuple
        tuple_struct identifier ignored_any
    }
}

/// A list of one element.
struct One<'a>(Option<&'a mut Shape>);

impl<'de> SeqAccess<'de> for One<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.take().map(|shape| seed.deserialize(Probe(shape))).transpose()
    }
}

/// A table of all its fields.
struct Fields<'a> {
    left: std::slice::IterMut<'a, (&'static str, Shape)>,
    current: Option<&'a mut Shape>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, shape)) = self.left.next() else {
            return Ok(None);
        };
        self.current = Some(shape);
        let name: StrDeserializer<'_, Error> = (*name).into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.current.take() {
            Some(shape) => seed.deserialize(Probe(shape)),
            None => Err(Error::custom("a value without its key")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[allow(dead_code)]
    #[derive(Default)]
    struct Outer {
        on: bool,
        count: usize,
        rate: Option<f64>,
        paths: Vec<PathBuf>,
        inner: Inner,
        map: BTreeMap<String, String>,
    }

    #[derive(Deserialize, Default)]
    enum Inner {
        #[default]
        #[serde(rename = "a")]
        A,
        #[serde(rename = "b")]
        B,
    }

    #[test]
    fn everything_a_configuration_is_made_of() {
        let boxed = Box::new;
        let expected = vec![
            ("on", Shape::Bool),
            ("count", Shape::Whole),
            ("rate", Shape::Optional(boxed(Shape::Number))),
            ("paths", Shape::List(boxed(Shape::Text))),
            ("inner", Shape::Choice(&["a", "b"])),
            ("map", Shape::Map(boxed(Shape::Text))),
        ];
        assert_eq!(Shape::of::<Outer>(), Shape::Table(expected));
        assert_eq!(Shape::of::<Inner>(), Shape::Choice(&["a", "b"]));
    }
}
