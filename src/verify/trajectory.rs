//! Successive updates of a training group, in one piece and in micro-batches.

use std::collections::HashMap;

use super::Result;
use super::compare::Kind;
use super::inputs;
use super::replay::Replay;
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
        ..c.config()?
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
    // What the optimizer makes of gradients of half precision is not the reference's.
    let mut replay = None;
    if c.half() {
        let (tau, decay) = (c.group.hyper("target_tau")?, c.group.hyper("ema_decay")?);
        replay = Some((
            Replay::new(
                &c.group,
                &learner.pi0.weights,
                "weights:",
                "pi0_weight_decay",
                1.0 - decay,
            )?,
            Replay::new(
                &c.group,
                &learner.critic.weights,
                "critic:online/",
                "critic_weight_decay",
                tau,
            )?,
        ));
    }
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
        for (name, got) in [("pi0_lr", rates.pi0), ("critic_lr", rates.critic)] {
            c.check_rate(&format!("/training/log/{step}/{name}"), &how, got);
        }
        for (name, got) in [
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

        if let Some((pi0, critic)) = &mut replay {
            pi0.step(c.gpu, &learner.pi0, rates.pi0)?;
            critic.step(c.gpu, &learner.critic, rates.critic)?;
        }
        let (replayed_pi0, replayed_critic) = replay.as_ref().map(|(p, c)| (p, c)).unzip();
        let after = format!("post:after{step}/");
        let (pi0, critic) = (&learner.pi0, &learner.critic);
        let part = |name| format!("{after}{name}/");
        let weights = replayed_pi0.map(|r| &r.weights);
        let moved = Moved::new(&pi0.weights, "weights:", weights, sum.pi0, step);
        parameters(c, &part("pi0"), &how, moved)?;
        let weights = replayed_critic.map(|r| &r.weights);
        let moved = Moved::new(&critic.weights, "critic:online/", weights, sum.critic, step);
        parameters(c, &part("critic"), &how, moved)?;
        if let Some(target) = &critic.average {
            let average = replayed_critic.map(|r| &r.average);
            let moved = Moved::new(target, "critic:online/", average, sum.critic, 2 * step);
            parameters(c, &part("target"), &how, moved)?;
        }
        if let Some(ema) = &pi0.average {
            let average = replayed_pi0.map(|r| &r.average);
            let moved = Moved::new(ema, "weights:", average, sum.pi0, 2 * step);
            parameters(c, &part("ema"), &how, moved)?;
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

/// Parameters after some updates.
struct Moved<'a> {
    store: &'a ParamStore,
    /// What the names of their first values begin with.
    start: &'a str,
    /// What they must be, in place of the group's values.
    instead: Option<&'a HashMap<String, Vec<f64>>>,
    /// The sum of the learning rates, and how often values were rounded to f32.
    rates: f64,
    roundings: usize,
}

impl<'a> Moved<'a> {
    fn new(
        store: &'a ParamStore,
        start: &'a str,
        instead: Option<&'a HashMap<String, Vec<f64>>>,
        rates: f64,
        roundings: usize,
    ) -> Self {
        Moved {
            store,
            start,
            instead,
            rates,
            roundings,
        }
    }
}

/// Compares how far every parameter has moved with tensors `prefix` + name.
fn parameters(c: &mut Case<'_>, prefix: &str, how: &str, moved: Moved<'_>) -> Result<()> {
    if !c.group.f.names().any(|n| n.starts_with(prefix)) {
        return Ok(());
    }
    let got = inputs::read(c.gpu, moved.store)?;
    let table = moved.store.placement().table().clone();
    for tensor in table.tensors() {
        let key = format!("{prefix}{}", tensor.name);
        let to = &got[&tensor.name];
        if tensor.name.ends_with("k_proj.bias") {
            // Its gradient is rounding noise, which Adam turns into steps of up to one learning rate.
            c.check(&key, how, Kind::Absolute(moved.rates), to)?;
        } else {
            let start = c.group.f.f32(&format!("{}{}", moved.start, tensor.name))?;
            let instead = moved.instead.map(|values| values[&tensor.name].as_slice());
            c.check_update(&key, how, to, &start, instead, moved.roundings)?;
        }
    }
    Ok(())
}
