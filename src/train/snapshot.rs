//! A learner on disk: initial weights in, checkpoints out and in again.

use std::path::Path;

use super::error::Result;
use super::prompt_rows::PromptRows;
use crate::checkpoint::{Background, CheckpointError, RunState, Saved, Saving, Weights, state};
use crate::config::Config;
use crate::data::NormStats;
use crate::gpu::{Gpu, Tensor};
use crate::model::dims::{Adapters, Pi0Dims};
use crate::model::merge;
use crate::model::params::{ParamStore, ParamTensor, Touched};
use crate::model::tables;
use crate::ops::split::Values;
use crate::step::Learner;
use crate::step::learner::Temperature;

/// Names of the temperature's numbers in `optimizer.safetensors`.
const TEMPERATURE: [&str; 3] = ["log_alpha", "m", "v"];

/// Bytes of a checkpoint that may wait for the disk where the system does not say how much memory it has left.
const IN_MEMORY: usize = 4 << 30;

/// What identifies a checkpoint beside the learner.
pub struct Identity<'a> {
    /// The run's folder.
    pub dir: &'a Path,
    pub config: &'a Config,
    pub stats: &'a NormStats,
}

/// Hands the learner after `step` steps over to a thread that saves it. Waits for the device; `skipped` of the steps
/// changed nothing.
///
/// # Errors
/// A device that failed (nothing is saved then). What the disk says is known from the [`Saving`].
pub fn save(learner: &Learner, identity: &Identity<'_>, step: u64, skipped: u64) -> Result<Saving> {
    learner.gpu.sync()?;
    let Identity { dir, config, stats } = identity;
    let mut state = RunState::now(step, config.seed, &config.name);
    state.skipped = skipped;
    state.prompt_rows = learner.touched().map(Touched::ids);
    let draft = Background::begin(dir, state, room())?;
    let gpu = &learner.gpu;
    let (pi0, critic) = (&learner.pi0, &learner.critic);
    write(gpu, &draft, state::PARAMS, &[("", &pi0.weights)])?;
    if let Some(average) = &pi0.average {
        write_average(gpu, &draft, &pi0.weights, average)?;
    }
    let mut critics = vec![(state::ONLINE, &critic.weights)];
    critics.extend(critic.average.as_ref().map(|targets| (state::TARGET, targets)));
    write(gpu, &draft, state::CRITIC, &critics)?;

    let moments = moments(learner);
    let mut plan: Vec<(String, Vec<usize>)> = moments.iter().flat_map(|(s, store)| names(s, store)).collect();
    let temperature = learner.temperature.as_ref().map(numbers);
    plan.extend(temperature.iter().flatten().map(|(name, _)| (name.clone(), vec![1])));
    draft.tensors(state::OPTIMIZER, plan);
    for (section, store) in &moments {
        write_store(gpu, &draft, section, store)?;
    }
    for (name, tensor) in temperature.iter().flatten() {
        draft.values(name, gpu.read_f32(tensor)?);
    }
    draft.keep();

    draft.text(state::CONFIG, config.to_toml());
    draft.text(state::NORM_STATS, stats.to_json());
    Ok(draft.commit(config.keep_checkpoints))
}

/// Bytes of a checkpoint that may wait for the disk in host memory, half of what is left of it: training goes on when all
/// but these are written.
fn room() -> usize {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()
    });
    available.map_or(IN_MEMORY, |kilobytes| kilobytes / 2 * 1024)
}

/// Sets a learner to what was saved. Nothing is changed unless everything fits.
///
/// # Errors
/// Tensors that are missing or have other shapes than the learner's.
pub fn restore(learner: &Learner, saved: &Saved) -> Result<()> {
    let gpu = &learner.gpu;
    let table = |store: &ParamStore| store.placement().table().clone();
    let (params, critic) = (saved.tensors(state::PARAMS)?, saved.tensors(state::CRITIC)?);
    let optimizer = saved.tensors(state::OPTIMIZER)?;
    params.check(&table(&learner.pi0.weights), "")?;
    for section in [state::ONLINE, state::TARGET] {
        critic.check(&table(&learner.critic.weights), section)?;
    }
    let moments = moments(learner);
    let prompts = PromptRows::new(learner, saved);
    for (section, store) in &moments {
        for (name, shape) in names(section, store) {
            if !prompts.is_unused(&optimizer, section, &name) {
                optimizer.values(&name, &prompts.stored_shape(section, &name, shape))?;
            }
        }
    }
    let ema = match &learner.pi0.average {
        Some(_) if saved.has(state::EMA) => Some(saved.tensors(state::EMA)?),
        Some(_) => {
            tracing::warn!("the checkpoint was saved without a weight average; it starts from the weights");
            None
        }
        None => None,
    };
    if let Some(ema) = &ema {
        ema.check(&table(&learner.pi0.weights), "")?;
    }
    if prompts.leaves_moments(&optimizer)? {
        tracing::warn!(
            "the checkpoint has moments of parameters that nothing computes with now; they and their average are left out"
        );
    }
    let rows = prompts.to_learn(&params, ema.as_ref(), &optimizer)?;

    learner.touch_only(&rows);
    load(learner, &params, |_, _| ())?;
    if let (Some(average), Some(ema)) = (&learner.pi0.average, &ema) {
        fill(gpu, average, |t| prompts.average(ema, t))?;
    }
    fill(gpu, &learner.critic.weights, |t| in_section(&critic, state::ONLINE, t))?;
    if let Some(targets) = &learner.critic.average {
        fill(gpu, targets, |t| in_section(&critic, state::TARGET, t))?;
    }
    for (section, store) in &moments {
        fill(gpu, store, |t| prompts.moment(&optimizer, section, t))?;
    }
    if let Some(temperature) = &learner.temperature {
        for (name, tensor) in numbers(temperature) {
            match optimizer.values(&name, &[1]) {
                Ok(value) => gpu.write_f32(tensor, &value),
                Err(_) => tracing::warn!("the checkpoint was saved without `{name}`; it starts from zero"),
            }
        }
    }
    Ok(gpu.sync()?)
}

/// Checks that `weights` hold π₀ of these sizes, without a device; what they hold besides is named in a warning. They may
/// be without adapters: the model's then start from the seed.
///
/// # Errors
/// Tensors that are missing or have another shape, and adapters where the model has none.
pub fn check(dims: &Pi0Dims, weights: &Weights) -> Result<()> {
    const LISTED: usize = 10;
    let adapted = weights.has_adapters();
    if adapted && dims.lora == Adapters::default() {
        return Err(CheckpointError::NotPi0 {
            path: weights.path().to_owned(),
            reason: "has low-rank adapters, and the model of the configuration has none; choose variants that end in \
                     _lora, or merge them first with `acrlpd checkpoint import --merge-lora` or `checkpoint export`"
                .into(),
        }
        .into());
    }
    let dims = Pi0Dims {
        lora: if adapted { dims.lora } else { Adapters::default() },
        ..dims.clone()
    };
    let unused = weights.check(&tables::pi0(&dims), "")?;
    if !unused.is_empty() {
        let more = if unused.len() > LISTED { ", …" } else { "" };
        let (n, path) = (unused.len(), weights.path().display());
        let names = unused[..n.min(LISTED)].join("`, `");
        tracing::warn!("{n} tensors of `{path}` are not used: `{names}`{more}");
    }
    Ok(())
}

/// Sets π₀ to `weights`; its average starts there. Adapters that they do not have stay as they are. `progress` is told the parameters done and all of them. Call
/// [`check`] first.
///
/// # Errors
/// As [`check`]; π₀ is half set then.
pub fn load(learner: &Learner, weights: &Weights, mut progress: impl FnMut(usize, usize)) -> Result<()> {
    let (mut failed, mut done) = (None, 0);
    let all = learner.pi0.weights.placement().table().len();
    let order = |tensor: &ParamTensor| weights.position(&tensor.name);
    let adapted = weights.has_adapters();
    learner.load_pi0_by(order, |tensor| {
        let kept = !adapted && merge::is_adapter(&tensor.name);
        let values = match kept {
            true => None,
            false => or_note(weights.tensor(tensor), &mut failed),
        };
        done += tensor.len();
        progress(done, all);
        values
    });
    failed.map_or(Ok(()), |e| Err(e.into()))
}

type Read = Result<Vec<f32>, CheckpointError>;

fn in_section(weights: &Weights, section: &str, tensor: &ParamTensor) -> Read {
    weights.values(&format!("{section}{}", tensor.name), &tensor.shape)
}

/// Overwrites a store tensor by tensor.
fn fill(gpu: &Gpu, store: &ParamStore, read: impl Fn(&ParamTensor) -> Read) -> Result<()> {
    let mut failed = None;
    store.write(gpu, |t| or_note(read(t), &mut failed));
    failed.map_or(Ok(()), |e| Err(e.into()))
}

fn or_note<E>(values: Result<Vec<f32>, E>, failed: &mut Option<E>) -> Option<Vec<f32>> {
    values.map_err(|e| failed.get_or_insert(e)).ok()
}

/// Moments of both groups with their sections: those that their optimizers keep.
fn moments(learner: &Learner) -> Vec<(&'static str, &ParamStore)> {
    let (pi0, critic) = (&learner.pi0, &learner.critic);
    let all = [
        (state::PI0_M, Some(&pi0.m)),
        (state::PI0_V, pi0.v.as_ref()),
        (state::CRITIC_M, Some(&critic.m)),
        (state::CRITIC_V, critic.v.as_ref()),
    ];
    let kept = all.into_iter();
    kept.filter_map(|(section, store)| Some((section, store?))).collect()
}

fn numbers(t: &Temperature) -> Vec<(String, &Tensor)> {
    let named = |(name, tensor)| (format!("{}{name}", state::TEMPERATURE), tensor);
    TEMPERATURE
        .into_iter()
        .zip([&t.log_alpha, &t.m, &t.v])
        .map(named)
        .collect()
}

/// Names and shapes of the tensors a store holds.
fn names(section: &str, store: &ParamStore) -> Vec<(String, Vec<usize>)> {
    let tensors = store.named().into_iter().map(|(tensor, _)| tensor).chain(store.kept());
    tensors.map(|t| (format!("{section}{}", t.name), t.shape)).collect()
}

fn write(gpu: &Gpu, draft: &Background, file: &'static str, stores: &[(&str, &ParamStore)]) -> Result<()> {
    let plan = stores.iter().flat_map(|(section, store)| names(section, store));
    draft.tensors(file, plan.collect());
    for (section, store) in stores {
        write_store(gpu, draft, section, store)?;
    }
    draft.keep();
    Ok(())
}

fn write_store(gpu: &Gpu, draft: &Background, section: &str, store: &ParamStore) -> Result<()> {
    for (tensor, ranges) in store.named() {
        write_tensor(gpu, draft, &format!("{section}{}", tensor.name), &ranges)?;
    }
    write_kept(draft, section, store);
    Ok(())
}

fn write_kept(draft: &Background, section: &str, store: &ParamStore) {
    for tensor in store.kept() {
        draft.values(&format!("{section}{}", tensor.name), store.kept_values(&tensor));
    }
}

fn write_tensor(gpu: &Gpu, draft: &Background, name: &str, ranges: &[Values]) -> Result<()> {
    for range in ranges {
        draft.values(name, range.read(gpu)?);
    }
    Ok(())
}

/// The whole model with averaged weights: what does not learn has no average and is its own.
fn write_average(gpu: &Gpu, draft: &Background, weights: &ParamStore, average: &ParamStore) -> Result<()> {
    draft.tensors(state::EMA, names("", weights));
    for (tensor, ranges) in weights.named_with(average) {
        write_tensor(gpu, draft, &tensor.name, &ranges)?;
    }
    write_kept(draft, "", weights);
    draft.keep();
    Ok(())
}
