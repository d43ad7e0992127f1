//! Full-size parameter tables: a description that maps names to shapes, held against ours without allocating.

use serde_json::Value;

use super::{Fixture, Kind, Report, Result};
use crate::model::dims::Pi0Dims;
use crate::model::tables;

/// Does the description map names to shapes, and nothing else?
pub(super) fn is_table(json: &Value) -> bool {
    let shape = |v: &Value| v.as_array().is_some_and(|axes| axes.iter().all(Value::is_u64));
    let table = json.as_object();
    table.is_some_and(|t| !t.is_empty() && t.values().all(shape))
}

/// Compares all wanted names and shapes with those of π₀, or of π₀.₅ if the table embeds the time by itself.
pub(super) fn run(f: &Fixture, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    let published = f.json.as_object();
    let published = published.ok_or_else(|| f.broken("the description is not a table of shapes".into()))?;
    let pi05 = published.keys().any(|name| name.starts_with("time_mlp_"));
    // Shapes do not depend on the horizon.
    let table = tables::pi0(&Pi0Dims::full(1, pi05));
    // Lengths of axes are exact in f32 up to 2^24.
    let lengths = |shape: &[usize]| shape.iter().map(|&n| n as f32).collect::<Vec<f32>>();
    let mut ours = std::collections::HashSet::new();
    for tensor in table.tensors() {
        ours.insert(tensor.name.as_str());
        let shape = published.get(&tensor.name).and_then(Value::as_array);
        let want: Option<Vec<f32>> =
            shape.map(|axes| axes.iter().filter_map(Value::as_u64).map(|n| n as f32).collect());
        if wanted(&tensor.name) {
            // A tensor that is not published compares with no axes, and fails.
            let want = want.unwrap_or_default();
            report.compare(&tensor.name, Kind::Exact, &lengths(&tensor.shape), &want);
        }
    }
    let more = published.keys().filter(|n| !ours.contains(n.as_str()) && wanted(n));
    report.unknown.extend(more.cloned());
    Ok(())
}
