//! The optimizer: AdamW, schedule, clipping, target networks.

use super::Case;
use crate::gpu::Tensor;
use crate::ops::clip::clip;
use crate::ops::lr_schedule::warmup_cosine;
use crate::ops::optimizers::{AdamW, Control, Flat, Rule, Update};
use crate::ops::reduce;
use crate::ops::soft_update::soft_update;
use crate::verify::{Kind, Result};

/// Numbers in a description such as "warmup_cosine(peak 1e-2, end 1e-3, warmup 2, decay 6)".
fn numbers(text: &str) -> Vec<f64> {
    text.split([' ', ',', '(', ')'])
        .filter_map(|t| t.parse().ok())
        .collect()
}

pub(super) fn adamw_case(c: &mut Case<'_>) -> Result<()> {
    let adam = AdamW {
        beta1: c.number("b1")? as f32,
        beta2: c.number("b2")? as f32,
        eps: c.number("eps")? as f32,
        weight_decay: c.number("weight_decay")? as f32,
    };
    let text =
        c.f.json
            .pointer("/ops/adamw/lr")
            .and_then(|v| v.as_str())
            .unwrap_or_default();
    let [peak, end, warmup, decay, ..] = numbers(text)[..] else {
        return Err(c.broken("lr is not warmup_cosine(…)"));
    };
    let grads = c.rows("in/grads")?;
    let n = grads.dim(1);
    let state = |from: Vec<f32>| c.gpu.upload_f32(&from, [n]);
    let (p, m, v) = (state(c.host("in/p")?), state(vec![0.0; n]), state(vec![0.0; n]));
    let control = Control::new(c.gpu, &[1], u32::MAX);
    // No clipping: an infinite limit.
    let limits = c.gpu.upload_f32(&[f32::INFINITY], [1]);
    let (mut ps, mut ms, mut vs) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..grads.dim(0) {
        let g = c.gpu.f32([n]);
        c.gpu.copy(&grads.rows(step..step + 1).view([n]), &g);
        let squares = c.gpu.f32([1, 2]);
        reduce::squares(c.gpu, std::slice::from_ref(&g), &squares);
        control.decide(c.gpu, &squares, &limits);
        let lr = warmup_cosine(step as u64, peak, end, warmup as u64, decay as u64) as f32;
        let flat = Flat {
            p: &p,
            low: None,
            g: &g,
            m: &m,
            v: Some(&v),
            average: None,
            compute: None,
        };
        let update = Update {
            lr,
            t: step as u64 + 1,
            rate: 0.0,
        };
        adam.step(c.gpu, update, &control, 0, flat);
        ps.extend(c.gpu.read_f32(&p)?);
        ms.extend(c.gpu.read_f32(&m)?);
        vs.extend(c.gpu.read_f32(&v)?);
    }
    c.check_host("out/p", Kind::Forward, &ps)?;
    c.check_host("out/m", Kind::Forward, &ms)?;
    c.check_host("out/v", Kind::Forward, &vs)
}

pub(super) fn lr_case(c: &mut Case<'_>) -> Result<()> {
    let (peak, end) = (c.number("peak")?, c.number("end")?);
    let (warmup, decay) = (c.number("warmup_steps")? as u64, c.number("decay_steps")? as u64);
    let steps = c.f.i32(&c.name("in/step"))?;
    let lr: Vec<f32> = steps
        .iter()
        .map(|&s| warmup_cosine(s as u64, peak, end, warmup, decay) as f32)
        .collect();
    c.check_host("out/lr", Kind::Forward, &lr)
}

pub(super) fn clip_case(c: &mut Case<'_>) -> Result<()> {
    let limit = c.number("limit")? as f32;
    let (a, b) = (c.tensor("in/a")?, c.tensor("in/b")?);
    let squares = c.gpu.f32([1, 2]);
    let flat = |t: &Tensor| t.view([t.len()]);
    reduce::squares(c.gpu, &[flat(&a), flat(&b)], &squares);
    let control = Control::new(c.gpu, &[1], u32::MAX);
    control.decide(c.gpu, &squares, &c.gpu.upload_f32(&[limit], [1]));
    for (name, t) in [("a", &a), ("b", &b)] {
        clip(c.gpu, t, &control, 0);
        c.output(name, t)?;
    }
    let norm = c.gpu.read_f32(&squares)?[0].sqrt();
    c.check_host("out/norm", Kind::Forward, &[norm])
}

pub(super) fn soft_update_case(c: &mut Case<'_>) -> Result<()> {
    let (target, online) = (c.tensor("in/target")?, c.tensor("in/online")?);
    soft_update(c.gpu, &target, &online, c.number("tau")? as f32);
    c.output("target", &target)
}
