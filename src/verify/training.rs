//! A training step: every loss with its intermediates, the gradient of each, and the parameters after some updates.

use std::collections::HashMap;

use super::compare::Kind;
use super::inputs::{self, text, whole};
use super::policy::gradient_kind;
use super::{Fixture, Report, Result, VerifyError, trajectory};
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::dims::{CriticDims, Pi0Dims};
use crate::model::params::ParamStore;
use crate::model::prefix::Trainable;
use crate::model::remat::Remat;
use crate::ops::adamw::AdamW;
use crate::ops::ensemble::Aggregate;
use crate::ops::td::TdLoss;
use crate::step::batch::{MicroBatch, Noise, Totals};
use crate::step::config::{Features, GroupConfig, LossWeights, Objective, StepConfig, TemperatureConfig};
use crate::step::learner::Learner;
use crate::step::metrics::{Metrics, Slot, Values};
use crate::step::schedule::{Outcome, micro_batch};

/// Checks a training group: `weights:`, `critic:`, `batches:`, `losses:`, `grads:`, `post:`, `moments:`.
pub(super) fn run(gpu: &Gpu, f: &Fixture, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    let mut case = Case::new(gpu, f, wanted, report)?;
    if case.any(&["losses:", "grads:"]) {
        losses(&mut case)?;
    }
    if case.any(&["post:", "moments:"]) {
        trajectory::run(&mut case, 1)?;
        if case.batch.is_multiple_of(2) {
            trajectory::run(&mut case, 2)?;
        }
    }
    let inputs = ["weights:", "critic:", "batches:"];
    let left = f.names().filter(|n| !inputs.iter().any(|i| n.starts_with(i)) && wanted(after_colon(n)));
    let unknown: Vec<String> = left.filter(|n| !case.seen.contains_key(*n)).map(String::from).collect();
    case.report.unknown.extend(unknown);
    Ok(())
}

fn after_colon(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, rest)| rest)
}

/// The group with its sizes, and where results go.
pub(super) struct Case<'a> {
    pub gpu: &'a Gpu,
    pub f: &'a Fixture,
    pub dims: Pi0Dims,
    pub critic_dims: CriticDims,
    pub batch: usize,
    pub candidates: usize,
    wanted: &'a dyn Fn(&str) -> bool,
    pub report: &'a mut Report,
    seen: HashMap<String, ()>,
}

impl<'a> Case<'a> {
    fn new(gpu: &'a Gpu, f: &'a Fixture, wanted: &'a dyn Fn(&str) -> bool, report: &'a mut Report) -> Result<Case<'a>> {
        Ok(Case {
            gpu,
            dims: inputs::policy_dims(f)?,
            critic_dims: inputs::critic_dims(f)?,
            batch: whole(f, "/batch")?,
            candidates: whole(f, "/candidates")?,
            f,
            wanted,
            report,
            seen: HashMap::new(),
        })
    }

    /// Has the group a wanted tensor in one of these files?
    fn any(&self, files: &[&str]) -> bool {
        let of = |n: &&str| files.iter().any(|file| n.starts_with(file)) && (self.wanted)(after_colon(n));
        self.f.names().any(|n| of(&n))
    }

    /// A number of `hyper`.
    pub fn hyper(&self, key: &str) -> Result<f64> {
        self.f.number(&format!("/hyper/{key}"))
    }

    fn rule(&self, key: &str) -> Result<Aggregate> {
        match text(self.f, &format!("/hyper/{key}"))? {
            "min" => Ok(Aggregate::Min),
            "mean" => Ok(Aggregate::Mean),
            other => Err(self.f.broken(format!("hyper.{key} is {other:?}; min and mean are known"))),
        }
    }

    fn td_loss(&self, name: &str) -> Result<TdLoss> {
        match name {
            "mse" => Ok(TdLoss::Square),
            "huber" => Ok(TdLoss::Huber(self.hyper("huber_delta")? as f32)),
            other => Err(self.f.broken(format!("critic loss {other:?}; mse and huber are known"))),
        }
    }

    /// The step as `hyper` describes it; nothing is left out of it.
    pub fn config(&self) -> Result<StepConfig> {
        let h = |key: &str| self.hyper(key).map(|v| v as f32);
        let group = |decay: &str| -> Result<GroupConfig> {
            let adam = AdamW { beta1: h("beta1")?, beta2: h("beta2")?, eps: h("eps")?, weight_decay: h(decay)? };
            Ok(GroupConfig { adam, clip: h("clip_norm")? })
        };
        let pi0 = group("pi0_weight_decay")?;
        let target_entropy = -h("target_entropy_multiplier")? * self.dims.action_dim as f32;
        Ok(StepConfig {
            euler_steps: whole(self.f, "/hyper/euler_steps")?,
            candidates: self.candidates,
            objective: Objective::BestOfN,
            critic_loss: self.td_loss(text(self.f, "/hyper/critic_loss")?)?,
            target_rule: self.rule("target_q_agg")?,
            actor_rule: self.rule("actor_q_agg")?,
            rule_weights: vec![1.0 / self.critic_dims.critics as f32; self.critic_dims.critics],
            weights: LossWeights { critic: h("critic_weight")?, actor: h("actor_weight")?, bc: h("bc_weight")? },
            features: Features::Embedding,
            feature_grad: false,
            trainable: Trainable::ALL,
            remat: Remat::None,
            separate_prefixes: false,
            skip_dead_rows: false,
            dropout: 0.0,
            temperature: Some(TemperatureConfig { target_entropy, group: pi0 }),
            pi0,
            critic: group("critic_weight_decay")?,
            target_rate: h("target_tau")?,
            ema_decay: Some(h("ema_decay")?),
            actor_update_freq: 1,
            dtype: DType::F32,
        })
    }

    /// A learner with the group's weights; targets and averages equal the online weights.
    pub fn learner(&self, config: StepConfig) -> Result<Learner> {
        let learner = Learner::new(self.gpu, config, self.dims.clone(), self.critic_dims.clone())?;
        let table = |store: &ParamStore| store.placement().table().clone();
        let mut pi0 = inputs::parameters(self.f, "weights:", table(&learner.pi0.weights).tensors())?;
        let mut online = inputs::parameters(self.f, "critic:online/", table(&learner.critic.weights).tensors())?;
        learner.load_pi0(|p| pi0.remove(&p.name));
        learner.load_critics(|p| online.remove(&p.name));
        Ok(learner)
    }

    /// Samples `range` of batch `step{n}`.
    pub fn micro(&self, n: usize, range: std::ops::Range<usize>) -> Result<MicroBatch> {
        let f = self.f;
        let key = |name: &str| format!("batches:step{n}/{name}");
        let chunk = self.dims.action_horizon * self.dims.action_dim;
        let part = |name: &str, width: usize| -> Result<Vec<f32>> {
            let values = f.f32(&key(name))?;
            if values.len() != self.batch * width {
                return Err(f.broken(format!("{} should have {} elements", key(name), self.batch * width)));
            }
            Ok(values[range.start * width..range.end * width].to_vec())
        };
        let h = self.dims.action_horizon;
        let valid = part("valid", h)?;
        let chunk_valid: Vec<f32> = valid.chunks(h).map(|v| v[h - 1]).collect();
        let power = self.hyper("discount")?.powi(h as i32) as f32;
        let positive = f.bool(&key("positive"))?;
        let candidates = f.f32(&key("cand_noise"))?;
        if candidates.len() != self.candidates * self.batch * chunk || positive.len() != self.batch {
            return Err(f.broken(format!("{} or positive does not fit batch and candidates", key("cand_noise"))));
        }
        let of_candidate = |n: usize| {
            let first = n * self.batch;
            candidates[(first + range.start) * chunk..(first + range.end) * chunk].to_vec()
        };
        let picked = |prefix: &str| -> Result<_> {
            Ok(pick(inputs::observations(f, &key(prefix), &self.dims)?, &self.dims, range.clone()))
        };
        Ok(MicroBatch {
            current: picked("obs/")?,
            next: picked("next_obs/")?,
            actions: part("actions", chunk)?,
            action_valid: valid,
            reward: part("rewards", 1)?,
            discount: part("masks", 1)?.into_iter().map(|m| m * power).collect(),
            chunk_valid,
            positive: positive[range.clone()].to_vec(),
            noise: Noise {
                candidates: (0..self.candidates).flat_map(of_candidate).collect(),
                next: part("next_noise", chunk)?,
                bc: part("bc_noise", chunk)?,
                bc_time: part("bc_time", 1)?.into_iter().map(|t| t as f64).collect(),
            },
            dropout: Vec::new(),
            totals: self.totals(n)?,
        })
    }

    fn totals(&self, n: usize) -> Result<Totals> {
        let positive = self.f.bool(&format!("batches:step{n}/positive"))?;
        let positives = positive.iter().filter(|p| **p).count();
        // The reference draws candidates for every sample, whatever its weight.
        Ok(Totals { samples: self.batch, positives, actors: self.batch })
    }

    /// Compares tensor `key` of the group, if it is there and wanted, under a name that says how it was computed.
    pub fn check(&mut self, key: &str, how: &str, kind: Kind, got: &[f32]) -> Result<()> {
        self.seen.insert(key.to_string(), ());
        let name = after_colon(key);
        if self.f.get(key).is_some() && (self.wanted)(name) {
            let want = self.f.f32(key)?;
            self.report.compare(format!("{name}{how}"), kind, got, &want);
        }
        Ok(())
    }

    /// Compares how far tensor `key` has moved from `start`, in relative L2, after `roundings` roundings to f32.
    pub fn check_update(&mut self, key: &str, how: &str, got: &[f32], start: &[f32], roundings: usize) -> Result<()> {
        self.seen.insert(key.to_string(), ());
        let name = after_colon(key);
        if self.f.get(key).is_some() && (self.wanted)(name) {
            let want = self.f.f32(key)?;
            let moved = |to: &[f32]| to.iter().zip(start).map(|(a, b)| a - b).collect::<Vec<f32>>();
            let size = start.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
            let rounding = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * size;
            let kind = Kind::Update { relative: 3e-3, rounding };
            self.report.compare(format!("{name}{how}"), kind, &moved(got), &moved(&want));
        }
        Ok(())
    }

    /// Compares a number of the description, if it is there and wanted.
    pub fn check_number(&mut self, pointer: &str, how: &str, kind: Kind, got: f64) {
        let name = pointer.trim_start_matches('/');
        if let Some(want) = self.f.json.pointer(pointer).and_then(serde_json::Value::as_f64)
            && (self.wanted)(name)
        {
            self.report.compare(format!("{name}{how}"), kind, &[got as f32], &[want as f32]);
        }
    }

    fn gradients(&mut self, part: &str, grads: &ParamStore) -> Result<()> {
        let got = inputs::read(self.gpu, grads)?;
        let table = grads.placement().table().clone();
        for tensor in table.tensors() {
            let key = format!("grads:{part}/{}", tensor.name);
            if self.f.get(&key).is_some() {
                let kind = gradient_kind(self.f, &format!("grads:{part}/"), &tensor.name)?;
                self.check(&key, "", kind, &got[&tensor.name])?;
            }
        }
        Ok(())
    }
}

/// Observations of samples `range` only.
fn pick(
    all: crate::step::batch::Observations,
    d: &Pi0Dims,
    range: std::ops::Range<usize>,
) -> crate::step::batch::Observations {
    use crate::step::batch::{Observations, Pictures};
    let Pictures::Floats(values) = &all.pictures else { unreachable!("groups hold float pictures") };
    let area = d.image_size * d.image_size * 3;
    let mine = all.masks.pictures().into_iter().zip(values.chunks(area)).filter(|((b, _), _)| range.contains(b));
    Observations {
        pictures: Pictures::Floats(mine.flat_map(|(_, picture)| picture.to_vec()).collect()),
        masks: crate::model::layout::ObservationMasks {
            cameras: all.masks.cameras[range.clone()].to_vec(),
            prompts: all.masks.prompts[range.clone()].to_vec(),
        },
        state: all.state[range.start * d.action_dim..range.end * d.action_dim].to_vec(),
    }
}

/// One evaluation on `step0` with the stored targets.
struct Evaluation {
    learner: Learner,
    outcome: Outcome,
    values: Values,
}

fn evaluate(c: &Case<'_>, batch: &MicroBatch, config: StepConfig) -> Result<Evaluation> {
    let learner = c.learner(config)?;
    let targets = learner.critic.average.as_ref().expect("critics have targets");
    let tensors = targets.placement().table().clone();
    let mut values = inputs::parameters(c.f, "critic:target/", tensors.tensors())?;
    targets.write(c.gpu, |p| values.remove(&p.name));
    if let Some(t) = &learner.temperature {
        c.gpu.write_f32(&t.log_alpha, &[c.f.number("/log_alpha")? as f32]);
    }
    let metrics = Metrics::new(c.gpu);
    let outcome = micro_batch(&learner, &metrics, batch, true);
    let values = metrics.read(c.gpu)?;
    Ok(Evaluation { learner, outcome, values })
}

fn losses(c: &mut Case<'_>) -> Result<()> {
    let batch = c.micro(0, 0..c.batch)?;
    let config = c.config()?;

    // The whole objective, with its intermediates.
    let e = evaluate(c, &batch, config.clone())?;
    intermediates(c, &e)?;
    let weights = config.weights;
    let get = |slot| e.values.get(slot);
    let total = f64::from(weights.critic * get(Slot::CriticLoss) + weights.actor * get(Slot::ActorLoss))
        + f64::from(weights.bc * get(Slot::BcLoss))
        + c.hyper("alpha_weight")? * f64::from(get(Slot::TemperatureLoss));
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
    let only = |actor: f32, bc: f32| StepConfig { weights: LossWeights { critic: 1.0, actor, bc }, ..config.clone() };
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
        let variant = StepConfig { critic_loss: c.td_loss(td)?, target_rule: how, ..only(1.0, 0.0) };
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
    let e = evaluate(c, &batch, StepConfig { feature_grad: true, ..only(1.0, 0.0) })?;
    let squares: f64 = inputs::read(c.gpu, &e.learner.pi0.grads)?.values().flatten().map(|&g| f64::from(g).powi(2)).sum();
    let pointer = "/gradient_routing/actor_grad_norm_if_features_not_stopped";
    c.check_number(pointer, "", Kind::Gradient, squares.sqrt());
    Ok(())
}

fn intermediates(c: &mut Case<'_>, e: &Evaluation) -> Result<()> {
    let (b, n, members) = (c.batch, c.candidates, c.critic_dims.critics);
    let o = &e.outcome;
    let chunk = c.dims.action_horizon * c.dims.action_dim;
    let read = |t: &Tensor| -> Result<Vec<f32>, VerifyError> { Ok(c.gpu.read_f32(t)?) };
    let last = o.states.dim(0) - 1;
    let end = read(&o.states.rows(last..last + 1))?;
    let (candidates, next) = end.split_at(n * b * chunk);
    let q = read(&o.candidate_q)?;
    // [E, N, B] here, [N, E, B] there.
    let by_candidate: Vec<f32> =
        (0..n * members * b).map(|i| q[(i / b % members) * n * b + i / (members * b) * b + i % b]).collect();
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
    let chunk = c.dims.action_horizon * c.dims.action_dim;
    let (values, winners) = (c.gpu.read_f32(chosen)?, c.gpu.read_u32(&e.outcome.winner)?);
    let mut all = vec![0.0; c.candidates * c.batch * chunk];
    for (b, (&winner, gradient)) in winners.iter().zip(values.chunks(chunk)).enumerate() {
        let at = (winner as usize * c.batch + b) * chunk;
        all[at..at + chunk].copy_from_slice(gradient);
    }
    c.check(&format!("grads:{name}"), "", Kind::Gradient, &all)
}
