//! Whether weights are those of a model: everything that is missing, left over or of another shape, in one message.

use std::collections::HashSet;

use super::error::{CheckpointError, Result};
use super::names;
use super::weights::{Weights, is_float};
use crate::model::params::{ParamTable, ParamTensor};

/// Names that a message lists of each kind.
const LISTED: usize = 10;
const PI0: &str = "π₀";
const PI05: &str = "π₀.₅";

impl Weights {
    /// Whether every tensor of `table` is there in its shape, under `section` in front of its name; returns the names
    /// in the file (below `section`) that the table does not use, except for those that every such file may have. Call
    /// this before touching a device.
    ///
    /// # Errors
    /// Tensors that are missing, have another shape or are not F32, F16 or BF16, up to ten of each by name.
    pub fn check(&self, table: &ParamTable, section: &str) -> Result<Vec<&str>> {
        let (mut used, mut missing, mut misshapen, mut mistyped) = (HashSet::new(), vec![], vec![], vec![]);
        for tensor in table.tensors() {
            let name = format!("{section}{}", tensor.name);
            let Some((stored_name, stored)) = self.lookup(&name) else {
                missing.push((format!("`{name}` {:?}", tensor.shape), tensor));
                continue;
            };
            used.insert(stored_name);
            if stored.shape != tensor.shape {
                misshapen.push(format!("`{name}` is {:?}, not {:?}", stored.shape, tensor.shape));
            } else if !is_float(stored.dtype) {
                mistyped.push(format!("`{name}` is {:?}", stored.dtype));
            }
        }
        let names = self.tensors.keys().map(String::as_str);
        let unused = |name: &&str| name.starts_with(section) && !used.contains(name) && !names::is_known_extra(name);
        let extra: Vec<&str> = names.filter(unused).collect();
        if missing.is_empty() && misshapen.is_empty() && mistyped.is_empty() {
            return Ok(extra);
        }
        if let Some(other) = missing.iter().find_map(|(_, tensor)| self.other_model(tensor)) {
            return Err(other);
        }
        let left: Vec<String> = extra.iter().map(|name| format!("`{name}`")).collect();
        let missing: Vec<String> = missing.into_iter().map(|(text, _)| text).collect();
        let kinds = [
            (missing, "missing"),
            (misshapen, "of another shape"),
            (mistyped, "of a type other than F32, F16 and BF16"),
            (left, "left over"),
        ];
        let kinds = kinds.iter().filter(|(all, _)| !all.is_empty());
        let problems: Vec<String> = kinds.map(|(all, what)| listed(all, what)).collect();
        Err(CheckpointError::Unfit {
            path: self.path().to_owned(),
            problems: problems.join("; "),
        })
    }

    /// π₀ or π₀.₅, by the layers that only one of them has.
    pub fn architecture(&self) -> Option<&'static str> {
        let has = |name: &str| self.lookup(name).is_some();
        match (has("action_time_mlp_in.weight"), has("time_mlp_in.weight")) {
            (true, false) => Some(PI0),
            (false, true) => Some(PI05),
            _ => None,
        }
    }

    /// The error of weights of the model that the missing `tensor` is not from.
    fn other_model(&self, tensor: &ParamTensor) -> Option<CheckpointError> {
        let name = &tensor.name;
        let wanted = if name.starts_with("state_proj.") || name.starts_with("action_time_mlp_") {
            PI0
        } else if name.starts_with("time_mlp_") || name.contains("norm.dense.") {
            PI05
        } else {
            // A plain norm of the expert is π₀'s, where π₀.₅ has an adaptive one.
            (name.contains("gemma_expert.") && name.ends_with("norm.weight")).then_some(PI0)?
        };
        let found = self.architecture().filter(|found| *found != wanted)?;
        Some(CheckpointError::Architecture {
            path: self.path().to_owned(),
            found,
            wanted,
            tensor: name.clone(),
            fix: found == PI05,
        })
    }
}

/// `12 tensors are missing (`a` [2], `b` [3], … )`.
pub(crate) fn listed(all: &[String], what: &str) -> String {
    let more = if all.len() > LISTED { ", …" } else { "" };
    let (tensors, are) = if all.len() == 1 {
        ("tensor", "is")
    } else {
        ("tensors", "are")
    };
    let names = all[..all.len().min(LISTED)].join(", ");
    format!("{} {tensors} {are} {what} ({names}{more})", all.len())
}
