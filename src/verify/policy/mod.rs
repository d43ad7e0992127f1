//! A policy: one evaluation of the flow loss, one sampling run, and the gradients of both.

mod forward;
mod gradients;
mod model;

use super::compare::Kind;
use super::{Fixture, Report, Result, after_colon, inputs};
use crate::gpu::{DType, Gpu};
use crate::model::params::ParamStore;
use crate::model::stream::Storage;
use model::Policy;

/// Checks a policy group: `weights:`, `forward:`, `grads:`.
pub(super) fn run(
    gpu: &Gpu,
    f: &Fixture,
    storage: Storage,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let dims = inputs::policy_dims(f)?;
    let policy = Policy::load(gpu, f, &dims, storage)?;
    let mut check = Check { f, wanted, report };
    let any = |part: &str| f.names().map(after_colon).any(|n| wanted(n) && n.starts_with(part));
    let sampling = any("sample/") || any("grad_sample/");
    let loss = any("grad_loss/") || any("grad_tokens/");
    forward::check(&policy, &mut check)?;
    if loss {
        gradients::loss(&policy, &mut check)?;
    }
    if sampling {
        gradients::sample(&policy, &mut check)?;
    }
    // Inputs may be left alone.
    let result = |n: &str| {
        let file_and_name = n.split_once(':').unwrap_or(("", n));
        match file_and_name {
            ("weights", _) => false,
            ("forward", name) => !INPUTS.iter().any(|i| name.starts_with(i)),
            _ => true,
        }
    };
    report.untouched(f, |n| result(n) && wanted(after_colon(n)));
    Ok(())
}

/// What `forward:` names of inputs begin with.
const INPUTS: [&str; 7] = [
    "obs/",
    "actions",
    "noise",
    "time",
    "prefix_mask",
    "sample/noise",
    "sample/cotangent",
];

/// The group, and where results go.
struct Check<'a> {
    f: &'a Fixture,
    wanted: &'a dyn Fn(&str) -> bool,
    report: &'a mut Report,
}

impl Check<'_> {
    /// Compares `forward:name` where the group has it and it is wanted.
    fn forward(&mut self, name: &str, got: &[f32], pick: impl Fn(&[f32], &[usize]) -> Option<Vec<f32>>) -> Result<()> {
        self.one("forward", name, Kind::Forward, got, pick)
    }

    /// The same for a name that the model has no part in: it is f32, however the model is stored.
    fn data(&mut self, name: &str, got: &[f32]) -> Result<()> {
        let Check { f, wanted, .. } = *self;
        self.report.with_storage(DType::F32, |report| {
            Check { f, wanted, report }.forward(name, got, whole)
        })
    }

    fn one(
        &mut self,
        part: &str,
        name: &str,
        kind: Kind,
        got: &[f32],
        pick: impl Fn(&[f32], &[usize]) -> Option<Vec<f32>>,
    ) -> Result<()> {
        let key = format!("{part}:{name}");
        if self.f.get(&key).is_none() || !(self.wanted)(name) {
            return Ok(());
        }
        let (values, shape) = (self.f.f32(&key)?, self.f.shape(&key)?);
        let want = pick(&values, shape).ok_or_else(|| self.f.broken(format!("{key} has shape {shape:?}")))?;
        self.report.compare(name, kind, got, &want);
        Ok(())
    }

    /// Every parameter's gradient `grads:{part}/{name}`.
    fn gradients(&mut self, part: &str, gpu: &Gpu, grads: &ParamStore) -> Result<()> {
        let got = inputs::read(gpu, grads)?;
        for tensor in grads.placement().table().tensors() {
            let name = format!("{part}/{}", tensor.name);
            let kind = gradient_kind(self.f, &format!("grads:{part}/"), &tensor.name)?;
            self.one("grads", &name, kind, &got[&tensor.name], whole)?;
        }
        Ok(())
    }
}

/// How near a parameter's gradient must be. The vision keys' biases have none: a constant added to all keys cancels in
/// the softmax. What is left of them must be tiny beside the values' biases.
pub(super) fn gradient_kind(f: &Fixture, prefix: &str, name: &str) -> Result<Kind> {
    match name.strip_suffix("k_proj.bias") {
        Some(stem) => {
            let beside = f.f32(&format!("{prefix}{stem}v_proj.bias"))?;
            let beside = largest(&beside);
            let tolerance = 1e-4 * beside;
            Ok(Kind::Zero { tolerance, beside })
        }
        None => Ok(Kind::Gradient),
    }
}

/// The largest element, whatever its sign.
pub(super) fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |a, &v| f64::max(a, f64::from(v.abs())))
}

fn whole(values: &[f32], _: &[usize]) -> Option<Vec<f32>> {
    Some(values.to_vec())
}

/// Rows `(b, position)` of a `[B, L, …]` tensor.
fn rows_of(rows: &[(usize, usize)], values: &[f32], shape: &[usize]) -> Option<Vec<f32>> {
    let [_, length, rest @ ..] = shape else { return None };
    let width: usize = rest.iter().product();
    let row = |&(b, p): &(usize, usize)| values.get((b * length + p) * width..(b * length + p + 1) * width);
    rows.iter()
        .map(row)
        .collect::<Option<Vec<_>>>()
        .map(|rows| rows.concat())
}
