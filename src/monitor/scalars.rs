//! A row as named numbers. Whatever has the form of numbers in its JSON is one, so a new field of a row needs nothing here.

use serde::Serialize;
use serde_json::Value;

/// Group of the fields at the top of a row; TensorBoard and wandb show what is before the first `/` as a section.
const GROUP: &str = "train";
/// The x axis, which is no scalar.
const STEP: &str = "step";

/// The finite numbers of a row, named by their path: fields of objects by name, elements of lists by index. Fields at
/// the top are in the group `train`. Text and null (not a number) are left out; booleans are 0 or 1.
pub fn flatten(row: &impl Serialize) -> Vec<(String, f64)> {
    // A row has string keys only, and nothing else can fail.
    let row = serde_json::to_value(row).unwrap_or_default();
    let mut scalars = Vec::new();
    for (name, value) in row.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) | Value::Array(_) => walk(name.clone(), value, &mut scalars),
            _ if name == STEP => {}
            _ => walk(format!("{GROUP}/{name}"), value, &mut scalars),
        }
    }
    scalars
}

fn walk(name: String, value: &Value, scalars: &mut Vec<(String, f64)>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                walk(format!("{name}/{key}"), value, scalars);
            }
        }
        Value::Array(elements) => {
            for (i, value) in elements.iter().enumerate() {
                walk(format!("{name}/{i}"), value, scalars);
            }
        }
        Value::Number(number) => scalars.extend(number.as_f64().map(|x| (name, x))),
        Value::Bool(on) => scalars.push((name, f64::from(u8::from(*on)))),
        Value::Null | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_and_only_finite_numbers_stay() {
        let row = serde_json::json!({
            "step": 7, "critic_loss": 0.5, "actor_loss": null, "device": "a GPU", "resumed": true,
            "eval": {"q": 2, "per_joint": [0.25, null, {"x": -1.0}]},
            "norms": [3.0],
        });
        let expected = [
            ("train/critic_loss", 0.5),
            ("train/resumed", 1.0),
            ("eval/q", 2.0),
            ("eval/per_joint/0", 0.25),
            ("eval/per_joint/2/x", -1.0),
            ("norms/0", 3.0),
        ];
        assert_eq!(flatten(&row), expected.map(|(name, x)| (name.to_owned(), x)));
    }

    #[test]
    fn every_number_of_a_row_is_a_scalar() {
        let row = crate::train::metrics::Row {
            entropy: Some(-1.0),
            actor_loss: f64::NAN,
            eval: Some(Default::default()),
            ..Default::default()
        };
        let names: Vec<String> = flatten(&row).into_iter().map(|(name, _)| name).collect();
        for name in [
            "train/critic_loss",
            "train/entropy",
            "train/steps_per_s",
            "eval/action_error",
        ] {
            assert!(names.iter().any(|n| n == name), "{name} of {names:?}");
        }
        assert!(
            !names.iter().any(|n| n.ends_with("actor_loss") || n.ends_with("/step")),
            "{names:?}"
        );
    }
}
