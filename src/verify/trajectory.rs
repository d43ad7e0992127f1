//! Successive updates of a training group, in one piece and in micro-batches.

use super::Result;
use super::compare::Kind;
use super::inputs;
use super::training::Case;
use crate::model::params::{ParamStore, Room};
use crate::ops::lr_schedule::warmup_cosine;
use crate::step::config::StepConfig;
use crate::step::metrics::{Metrics, Slot};
use crate::step::optimizer::{self, Rates};
use crate::step::schedule::micro_batch;

/// Updates with batches `step0`, `step1`, …, each in `pieces` micro-batches, as training runs them: samples without
/// weight are left out.
pub(super) fn run(c: &mut Case<'_>, pieces: usize) -> Result<()> {
    let how = if pieces == 1 {
        String::new()
    } else {
        format!(" ({pieces} micro-batches)")
    };
    let config = StepConfig {
        skip_dead_rows: true,
        temperature: None,
        ..c.group.config()?
    };
    let learner = c.group.learner(c.gpu, config)?;
    let metrics = Metrics::new(&learner, c.group.batch);
    let (warmup, decay) = (
        c.group.hyper("warmup_steps")? as u64,
        c.group.hyper("decay_steps")? as u64,
    );
    let rate = |c: &Case<'_>, group: &str, step: u64| -> Result<f64> {
        let (peak, end) = (
            c.group.hyper(&format!("{group}_peak_lr"))?,
            c.group.hyper(&format!("{group}_end_lr"))?,
        );
        Ok(warmup_cosine(step, peak, end, warmup, decay))
    };
    let mut sum = Rates {
        pi0: 0.0,
        critic: 0.0,
        temperature: 0.0,
    };
    let mut step = 0;
    while c.group.f.get(&format!("batches:step{step}/rewards")).is_some() {
        metrics.clear(c.gpu);
        for piece in 0..pieces {
            let size = c.group.batch / pieces;
            let batch = c.group.micro(step, piece * size..(piece + 1) * size)?;
            micro_batch(&learner, &metrics, &batch, true);
        }
        let number = step as u64;
        let rates = Rates {
            pi0: rate(c, "pi0", number)?,
            critic: rate(c, "critic", number)?,
            temperature: 0.0,
        };
        optimizer::update(&learner, &metrics, number, rates);
        let values = metrics.read(c.gpu)?;
        for (name, got) in [
            ("pi0_lr", rates.pi0),
            ("critic_lr", rates.critic),
            ("critic_loss", values.get(Slot::CriticLoss).into()),
            ("actor_loss", values.get(Slot::ActorLoss).into()),
            ("bc_loss", values.get(Slot::BcLoss).into()),
        ] {
            c.check_number(&format!("/training/log/{step}/{name}"), &how, Kind::Forward, got);
        }
        let norms = [
            ("pi0_grad_norm", values.gradient_norm(&Room::PI0) as f32),
            ("critic_grad_norm", values.gradient_norm(&[Room::Critic]) as f32),
        ];
        for (name, got) in norms {
            c.check_number(
                &format!("/training/log/{step}/{name}"),
                &how,
                Kind::Gradient,
                got.into(),
            );
        }
        sum.pi0 += rates.pi0;
        sum.critic += rates.critic;
        step += 1;

        let after = format!("post:after{step}/");
        let (pi0, critic) = (&learner.pi0, &learner.critic);
        parameters(c, &after, "pi0", &how, &pi0.weights, ("weights:", sum.pi0, step))?;
        parameters(
            c,
            &after,
            "critic",
            &how,
            &critic.weights,
            ("critic:online/", sum.critic, step),
        )?;
        if let Some(target) = &critic.average {
            parameters(
                c,
                &after,
                "target",
                &how,
                target,
                ("critic:online/", sum.critic, 2 * step),
            )?;
        }
        if let Some(ema) = &pi0.average {
            parameters(c, &after, "ema", &how, ema, ("weights:", sum.pi0, 2 * step))?;
        }
    }
    const ADAMW: &str = "the reference is AdamW";
    for (name, store) in [
        ("pi0_m", &learner.pi0.m),
        ("pi0_v", learner.pi0.v.as_ref().expect(ADAMW)),
        ("critic_m", &learner.critic.m),
        ("critic_v", learner.critic.v.as_ref().expect(ADAMW)),
    ] {
        let got = inputs::read(c.gpu, store)?;
        for (tensor, values) in got {
            let key = format!("moments:{name}/{tensor}");
            if c.group.f.get(&key).is_some() {
                let kind = super::policy::gradient_kind(&c.group.f, &format!("moments:{name}/"), &tensor)?;
                c.check(&key, &how, kind, &values)?;
            }
        }
    }
    Ok(())
}

/// Compares how far every parameter has moved from `start`, given the sum of the learning rates and how often values
/// were rounded to f32.
fn parameters(
    c: &mut Case<'_>,
    after: &str,
    part: &str,
    how: &str,
    store: &ParamStore,
    (start, rates, roundings): (&str, f64, usize),
) -> Result<()> {
    if !c.group.f.names().any(|n| n.starts_with(&format!("{after}{part}/"))) {
        return Ok(());
    }
    let got = inputs::read(c.gpu, store)?;
    let table = store.placement().table().clone();
    for tensor in table.tensors() {
        let key = format!("{after}{part}/{}", tensor.name);
        let moved = &got[&tensor.name];
        if tensor.name.ends_with("k_proj.bias") {
            // Its gradient is rounding noise, which Adam turns into steps of up to one learning rate.
            c.check(&key, how, Kind::Absolute(rates), moved)?;
        } else {
            c.check_update(
                &key,
                how,
                moved,
                &c.group.f.f32(&format!("{start}{}", tensor.name))?,
                roundings,
            )?;
        }
    }
    Ok(())
}
