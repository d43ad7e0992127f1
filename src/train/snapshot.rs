//! A learner from the disk: initial weights, and what a run goes on from. The other way is [`handover`](super::handover).

use super::error::Result;
use super::handover::{moments, names, numbers};
use super::prompt_rows::PromptRows;
use crate::checkpoint::weights::PIECE;
use crate::checkpoint::{CheckpointError, Saved, Weights, state};
use crate::gpu::Gpu;
use crate::model::dims::{Adapters, Pi0Dims};
use crate::model::merge;
use crate::model::params::{ParamStore, ParamTensor};
use crate::model::tables;
use crate::step::Learner;

/// Sets a learner to what was saved. Nothing is changed unless everything fits.
///
/// # Errors
/// Tensors that are missing or have other shapes than the learner's.
pub fn restore(learner: &Learner, saved: &Saved) -> Result<()> {
    restore_in_pieces(learner, saved, PIECE)
}

/// The same with at most this many values of a tensor in memory at a time.
///
/// # Errors
/// As [`restore`].
pub fn restore_in_pieces(learner: &Learner, saved: &Saved, piece: usize) -> Result<()> {
    let gpu = &learner.gpu;
    let table = |store: &ParamStore| store.placement().table().clone();
    let open = |name: &str| saved.tensors(name).map(|weights| weights.in_pieces(piece));
    let (params, critic) = (open(state::PARAMS)?, open(state::CRITIC)?);
    let optimizer = open(state::OPTIMIZER)?;
    params.check(&table(&learner.pi0.weights), "")?;
    for section in [state::ONLINE, state::TARGET] {
        critic.check(&table(&learner.critic.weights), section)?;
    }
    let moments = moments(learner);
    let prompts = PromptRows::new(learner, saved);
    for (section, store) in &moments {
        for (name, shape) in names(section, store) {
            if !prompts.is_unused(&optimizer, section, &name) {
                optimizer.expect(&name, &prompts.stored_shape(section, &name, shape))?;
            }
        }
    }
    let ema = match &learner.pi0.average {
        Some(_) if saved.has(state::EMA) => Some(open(state::EMA)?),
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
        fill(gpu, average, |t, put| prompts.average(ema, t, put))?;
    }
    fill(gpu, &learner.critic.weights, |t, put| {
        stream(&critic, state::ONLINE, t, put)
    })?;
    if let Some(targets) = &learner.critic.average {
        fill(gpu, targets, |t, put| stream(&critic, state::TARGET, t, put))?;
    }
    for (section, store) in &moments {
        fill(gpu, store, |t, put| prompts.moment(&optimizer, section, t, put))?;
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
    learner.load_pi0_by(order, |tensor, put| {
        if !adapted && merge::is_adapter(&tensor.name) {
            done += tensor.len();
            return progress(done, all);
        }
        let read = weights.pieces(&tensor.name, &tensor.shape, |piece| {
            put(piece);
            done += piece.len();
            progress(done, all);
            Ok(())
        });
        note(read, &mut failed);
    });
    failed.map_or(Ok(()), |e| Err(e.into()))
}

/// Takes the values of a tensor, piece by piece.
pub(super) type Put<'a> = &'a mut dyn FnMut(&[f32]);

/// Overwrites a store tensor by tensor, with what `read` puts.
fn fill(
    gpu: &Gpu,
    store: &ParamStore,
    read: impl Fn(&ParamTensor, Put<'_>) -> Result<(), CheckpointError>,
) -> Result<()> {
    let mut failed = None;
    store.write_pieces(gpu, |_| (), |tensor, put| note(read(tensor, put), &mut failed));
    failed.map_or(Ok(()), |e| Err(e.into()))
}

/// Puts the values of a tensor with `section` in front of its name.
pub(super) fn stream(
    weights: &Weights,
    section: &str,
    tensor: &ParamTensor,
    put: Put<'_>,
) -> Result<(), CheckpointError> {
    weights.pieces(&format!("{section}{}", tensor.name), &tensor.shape, |piece| {
        put(piece);
        Ok(())
    })
}

fn note<E>(result: Result<(), E>, first: &mut Option<E>) {
    if let Err(error) = result {
        first.get_or_insert(error);
    }
}
