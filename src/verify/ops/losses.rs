//! Losses, ensemble rules and the entropy estimate.

use super::Case;
use crate::gpu::DType;
use crate::ops::ensemble::{self, Aggregate, Rule};
use crate::ops::td::{self, TdLoss};
use crate::ops::{entropy, fill, flow, reduce};
use crate::verify::{Kind, Result};

pub(super) fn huber_case(c: &mut Case<'_>) -> Result<()> {
    let delta: f32 = match c.op.strip_prefix("huber_delta") {
        Some(text) => text
            .parse()
            .map_err(|_| c.broken("the delta in its name is not a number"))?,
        None => 1.0,
    };
    let (e, dy) = (c.tensor("in/e")?, c.tensor("cot/dy")?);
    let (y, de) = (c.like(&e), c.like(&e));
    td::forward(c.gpu, TdLoss::Huber(delta), &e, &y);
    td::backward(c.gpu, TdLoss::Huber(delta), &e, &dy, &de);
    c.output("y", &y)?;
    c.gradient("e", &de)
}

/// With u = noise - actions, a zero action makes u the noise; the gradient of u is minus that of v.
pub(super) fn velocity_case(c: &mut Case<'_>) -> Result<()> {
    let (v, u, dy) = (c.rows("in/v")?, c.rows("in/u")?, c.tensor("cot/dy")?);
    let zero = c.zeros(&u);
    let (error, dv) = (c.gpu.f32([dy.len()]), c.like(&v));
    flow::velocity_loss(c.gpu, &v, &u, &zero, &dy.view([dy.len()]), 1.0, &error, Some(&dv));
    c.output("y", &error)?;
    c.gradient("v", &dv)?;
    let du: Vec<f32> = c.gpu.read_f32(&dv)?.iter().map(|x| -x).collect();
    c.check_host("grad/u", Kind::Gradient, &du)
}

pub(super) fn ensemble_case(c: &mut Case<'_>) -> Result<()> {
    let (q, dy) = (c.tensor("in/q")?, c.tensor("cot/dy")?);
    let rule = Rule {
        how: Aggregate::Min,
        weights: &q,
    };
    let (y, dq) = (c.like(&dy), c.like(&q));
    ensemble::forward(c.gpu, &q, rule, &y);
    ensemble::backward(c.gpu, &q, rule, &dy, &dq);
    c.output("y", &y)?;
    c.gradient("q", &dq)
}

/// `q [N, E, B]` of the fixture is `[E, N·B]` here.
pub(super) fn best_of_n_case(c: &mut Case<'_>) -> Result<()> {
    let [n, e, b] = c.axes("in/q")?;
    let swap = |x: &[f32], outer: usize, inner: usize| -> Vec<f32> {
        (0..inner * outer * b)
            .map(|i| (i % b, i / b % outer, i / (b * outer)))
            .map(|(s, o, i)| x[(o * inner + i) * b + s])
            .collect()
    };
    let q = c.gpu.upload_f32(&swap(&c.host("in/q")?, n, e), [e, n * b]);
    let dy = c.tensor("cot/dy")?;
    let rule = Rule {
        how: Aggregate::Min,
        weights: &q,
    };
    let (value, best, winner) = (c.gpu.f32([n * b]), c.gpu.f32([b]), c.gpu.alloc(DType::U32, [b]));
    ensemble::forward(c.gpu, &q, rule, &value);
    ensemble::best_of_n(c.gpu, &value, &best, &winner);
    let (dvalue, dq) = (c.like(&value), c.like(&q));
    ensemble::best_of_n_backward(c.gpu, &dy, &winner, &dvalue);
    ensemble::backward(c.gpu, &q, rule, &dvalue, &dq);
    c.output("y", &best)?;
    let got = swap(&c.gpu.read_f32(&dq)?, e, n);
    c.check_host("grad/q", Kind::Gradient, &got)
}

pub(super) fn entropy_case(c: &mut Case<'_>) -> Result<()> {
    let [n, b, h, a] = c.axes("in/samples")?;
    let p = h * a;
    let s = c.tensor("in/samples")?.view([n, b, p]);
    let dy = c.host("cot/dy")?[0];
    let (log_var, var, y) = (c.gpu.f32([b]), c.gpu.f32([b]), c.gpu.f32([1]));
    entropy::forward(c.gpu, &s, &log_var, &var);
    reduce::weighted_sum(c.gpu, &log_var, None, 1.0 / b as f32, &y, false);
    let (dlog, ds) = (c.gpu.f32([b]), c.like(&s));
    fill::set(c.gpu, &dlog, dy / b as f32);
    entropy::backward(c.gpu, &s, &var, &dlog, &ds);
    c.output("y", &y)?;
    c.gradient("samples", &ds)
}
