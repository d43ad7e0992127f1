//! A training step: every loss with its intermediates, the gradient of each, and the parameters after some updates.

use super::compare::Kind;
use super::group::TrainingGroup;
use super::policy::gradient_kind;
use super::{Fixture, Report, Result, after_colon, inputs, trajectory};
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::params::ParamStore;
use crate::model::stream::Storage;
use crate::ops::ensemble::Aggregate;
use crate::ops::td::TdLoss;
use crate::step::batch::MicroBatch;
use crate::step::config::{LossWeights, StepConfig};
use crate::step::learner::Learner;
use crate::step::metrics::{Metrics, Slot, Values};
use crate::step::schedule::{Outcome, micro_batch};

/// Checks a training group: `weights:`, `critic:`, `batches:`, `losses:`, `grads:`, `post:`, `moments:`.
pub(super) fn run(
    gpu: &Gpu,
    f: Fixture,
    storage: Storage,
    wanted: &dyn Fn(&str) -> bool,
    report: &mut Report,
) -> Result<()> {
    let group = TrainingGroup::new(f)?;
    let mut case = Case {
        gpu,
        group,
        storage,
        wanted,
        report: &mut *report,
    };
    if case.any(&["losses:", "grads:"]) {
        losses(&mut case)?;
    }
    if case.any(&["post:", "moments:"]) {
        trajectory::run(&mut case, 1)?;
        if case.group.batch.is_multiple_of(2) {
            trajectory::run(&mut case, 2)?;
        }
    }
    let inputs = ["weights:", "critic:", "batches:"];
    let Case { group, .. } = case;
    let result = |n: &str| !inputs.iter().any(|i| n.starts_with(i));
    report.untouched(&group.f, |n| result(n) && wanted(after_colon(n)));
    Ok(())
}

/// The group, and where results go.
pub(super) struct Case<'a> {
    pub gpu: &'a Gpu,
    pub group: TrainingGroup,
    /// How the model is stored.
    storage: Storage,
    wanted: &'a dyn Fn(&str) -> bool,
    pub report: &'a mut Report,
}

impl Case<'_> {
    /// Has the group a wanted tensor in one of these files?
    fn any(&self, files: &[&str]) -> bool {
        let of = |n: &str| files.iter().any(|file| n.starts_with(file)) && (self.wanted)(after_colon(n));
        self.group.f.names().any(of)
    }

    /// The step as the group describes it, with the model stored as asked.
    pub fn config(&self) -> Result<StepConfig> {
        Ok(StepConfig {
            dtype: self.storage.dtype,
            f32_residual: self.storage.f32_residual,
            ..self.group.config()?
        })
    }

    /// Compares tensor `key` of the group, if it is there and wanted, under a name that says how it was computed.
    pub fn check(&mut self, key: &str, how: &str, kind: Kind, got: &[f32]) -> Result<()> {
        let name = after_colon(key);
        if self.group.f.get(key).is_some() && (self.wanted)(name) {
            let want = self.group.f.f32(key)?;
            self.report.compare(format!("{name}{how}"), kind, got, &want);
        }
        Ok(())
    }

    /// Is the model stored in half precision?
    pub fn half(&self) -> bool {
        matches!(self.storage.dtype, DType::F16 | DType::Bf16)
    }

    /// Compares how far tensor `key` has moved from `start`, in relative L2, after `roundings` roundings to f32; with
    /// `instead` where these values must come out in place of the group's.
    pub fn check_update(
        &mut self,
        key: &str,
        how: &str,
        got: &[f32],
        start: &[f32],
        instead: Option<&[f64]>,
        roundings: usize,
    ) -> Result<()> {
        let name = after_colon(key);
        if self.group.f.get(key).is_some() && (self.wanted)(name) {
            let reference = self.group.f.f32(key)?;
            let want = instead.map_or(reference, |values| values.iter().map(|&v| v as f32).collect());
            let moved = |to: &[f32]| to.iter().zip(start).map(|(a, b)| a - b).collect::<Vec<f32>>();
            let size = start.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            let rounding = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * size;
            let kind = Kind::Update {
                relative: 3e-3,
                rounding,
            };
            self.report.with_storage(DType::F32, |report| {
                report.compare(format!("{name}{how}"), kind, &moved(got), &moved(&want));
            });
        }
        Ok(())
    }

    /// Compares a number of the description, if it is there and wanted.
    pub fn check_number(&mut self, pointer: &str, how: &str, kind: Kind, got: f64) {
        self.number(self.storage.dtype, pointer, how, kind, got);
    }

    /// The same for a learning rate, which is f32 however the model is stored.
    pub fn check_rate(&mut self, pointer: &str, how: &str, got: f64) {
        self.number(DType::F32, pointer, how, Kind::Forward, got);
    }

    fn number(&mut self, storage: DType, pointer: &str, how: &str, kind: Kind, got: f64) {
        let name = pointer.trim_start_matches('/');
        if let Some(want) = self.group.f.json.pointer(pointer).and_then(serde_json::Value::as_f64)
            && (self.wanted)(name)
        {
            let (got, want) = ([got as f32], [want as f32]);
            self.report.with_storage(storage, |report| {
                report.compare(format!("{name}{how}"), kind, &got, &want);
            });
        }
    }

    fn gradients(&mut self, part: &str, grads: &ParamStore) -> Result<()> {
        let got = inputs::read(self.gpu, grads)?;
        let table = grads.placement().table().clone();
        for tensor in table.tensors() {
            let key = format!("grads:{part}/{}", tensor.name);
            if self.group.f.get(&key).is_some() {
                let kind = gradient_kind(&self.group.f, &format!("grads:{part}/"), &tensor.name)?;
                self.check(&key, "", kind, &got[&tensor.name])?;
            }
        }
        Ok(())
    }
}

/// One evaluation on `step0` with the stored targets.
struct Evaluation {
    learner: Learner,
    outcome: Outcome,
    values: Values,
}

fn evaluate(c: &Case<'_>, batch: &MicroBatch, config: StepConfig) -> Result<Evaluation> {
    let learner = c.group.learner(c.gpu, config)?;
    c.group.stored_targets(&learner)?;
    let metrics = Metrics::new(&learner, c.group.batch);
    let outcome = micro_batch(&learner, &metrics, batch, true);
    let values = metrics.read(c.gpu)?;
    Ok(Evaluation {
        learner,
        outcome,
        values,
    })
}

fn losses(c: &mut Case<'_>) -> Result<()> {
    let batch = c.group.micro(0, 0..c.group.batch)?;
    let config = c.config()?;

    // The whole objective, with its intermediates.
    let e = evaluate(c, &batch, config.clone())?;
    intermediates(c, &e)?;
    let weights = config.weights;
    let get = |slot| e.values.get(slot);
    let total = f64::from(weights.critic * get(Slot::CriticLoss) + weights.actor * get(Slot::ActorLoss))
        + f64::from(weights.bc * get(Slot::BcLoss))
        + c.group.hyper("alpha_weight")? * f64::from(get(Slot::TemperatureLoss));
    for (name, value) in [
        ("critic_loss", get(Slot::CriticLoss)),
        ("actor_loss", get(Slot::ActorLoss)),
        ("bc_loss", get(Slot::BcLoss)),
        ("entropy", get(Slot::Entropy)),
        ("alpha_loss", get(Slot::TemperatureLoss)),
        ("total_loss", total as f32),
    ] {
        c.check(&format!("losses:{name}"), "", Kind::Forward, &[value])?;
    }

    // Each loss by itself: gradients unweighted and unclipped.
    let only = |actor: f32, bc: f32| StepConfig {
        weights: LossWeights {
            critic: 1.0,
            actor,
            bc,
            ..config.weights
        },
        ..config.clone()
    };
    let e = evaluate(c, &batch, only(1.0, 0.0))?;
    c.gradients("grad_actor", &e.learner.pi0.grads)?;
    c.gradients("grad_critic", &e.learner.critic.grads)?;
    at_candidates(c, &e, "grad_actor_wrt_candidates", e.outcome.daction.as_ref())?;
    at_candidates(c, &e, "grad_actor_wrt_cand_noise", e.outcome.dnoise.as_ref())?;
    let e = evaluate(c, &batch, only(0.0, 1.0))?;
    c.gradients("grad_bc", &e.learner.pi0.grads)?;

    // The other critic loss, and the ensemble rules.
    let other = match config.critic_loss {
        TdLoss::Square => "huber",
        TdLoss::Huber(_) => "mse",
    };
    for (td, rule, how) in [
        ("mse", "min", Aggregate::Min),
        ("mse", "mean", Aggregate::Mean),
        ("huber", "min", Aggregate::Min),
        ("huber", "mean", Aggregate::Mean),
    ] {
        let variant = StepConfig {
            critic_loss: c.group.td_loss(td)?,
            target_rule: how,
            ..only(1.0, 0.0)
        };
        let e = evaluate(c, &batch, variant)?;
        let pointer = format!("/critic_loss_variants/{}~1{rule}", td);
        c.check_number(&pointer, "", Kind::Forward, f64::from(e.values.get(Slot::CriticLoss)));
        if td == other && how == config.target_rule {
            for part in ["grad_critic_huber", "grad_critic_mse"] {
                c.gradients(part, &e.learner.critic.grads)?;
            }
        }
    }

    // The actor loss through the critics' features too.
    let e = evaluate(
        c,
        &batch,
        StepConfig {
            feature_grad: true,
            ..only(1.0, 0.0)
        },
    )?;
    let squares: f64 = inputs::read(c.gpu, &e.learner.pi0.grads)?
        .values()
        .flatten()
        .map(|&g| f64::from(g).powi(2))
        .sum();
    let pointer = "/gradient_routing/actor_grad_norm_if_features_not_stopped";
    c.check_number(pointer, "", Kind::Gradient, squares.sqrt());
    Ok(())
}

fn intermediates(c: &mut Case<'_>, e: &Evaluation) -> Result<()> {
    let (b, n, members) = (c.group.batch, c.group.candidates, c.group.critic_dims.critics);
    let o = &e.outcome;
    let chunk = c.group.dims.action_horizon * c.group.dims.action_dim;
    let read = |t: &Tensor| -> Result<Vec<f32>> { Ok(c.gpu.read_f32(t)?) };
    let last = o.states.dim(0) - 1;
    let end = read(&o.states.rows(last..last + 1))?;
    let (candidates, next) = end.split_at(n * b * chunk);
    let q = read(&o.candidate_q)?;
    // [E, N, B] here, [N, E, B] there.
    let by_candidate: Vec<f32> = (0..n * members * b)
        .map(|i| q[(i / b % members) * n * b + i / (members * b) * b + i % b])
        .collect();
    for (name, values) in [
        ("features", read(&o.features)?),
        ("next_features", read(&o.next_features)?),
        ("next_actions", next.to_vec()),
        ("next_q", read(&o.next_q)?),
        ("target", read(&o.target)?),
        ("q", read(&o.q)?),
        ("candidates", candidates.to_vec()),
        ("candidate_q_all", by_candidate),
        ("candidate_q", read(&o.candidate_value)?),
        ("bc_per_step", read(&o.bc_error)?),
        ("v_t", read(&o.velocity)?),
    ] {
        c.check(&format!("losses:{name}"), "", Kind::Forward, &values)?;
    }
    Ok(())
}

/// A gradient at the chosen candidates as one at all of them: the others have none.
fn at_candidates(c: &mut Case<'_>, e: &Evaluation, name: &str, chosen: Option<&Tensor>) -> Result<()> {
    let Some(chosen) = chosen else { return Ok(()) };
    let chunk = c.group.dims.action_horizon * c.group.dims.action_dim;
    let (values, winners) = (c.gpu.read_f32(chosen)?, c.gpu.read_u32(&e.outcome.winner)?);
    let mut all = vec![0.0; c.group.candidates * c.group.batch * chunk];
    for (b, (&winner, gradient)) in winners.iter().zip(values.chunks(chunk)).enumerate() {
        let at = (winner as usize * c.group.batch + b) * chunk;
        all[at..at + chunk].copy_from_slice(gradient);
    }
    c.check(&format!("grads:{name}"), "", Kind::Gradient, &all)
}
