//! Every observation of a micro-batch once, and, at the end, what came back to them.

use super::batch::pick_rows;
use super::config::Features;
use super::features;
use super::schedule::Pass;
use crate::gpu::Tensor;
use crate::model::layout::{CachedRun, PrefixLayout};
use crate::model::prefix::{self, Incoming, PassOptions, Prefix};

/// What is known of the observations.
pub(super) struct Seen {
    /// Keys and values, a tensor per layer: lines of s, (for comparison: of s again,) of s'.
    pub(super) cache: Vec<Tensor>,
    /// Lines of the cache that gradients come back to.
    pub(super) learned_lines: usize,
    /// Where the prefixes of s lie, and those of the cloned samples if these have their own.
    pub(super) layout: PrefixLayout,
    pub(super) own: Option<PrefixLayout>,
    /// The prefix of every sample that bootstraps.
    pub(super) next: Vec<CachedRun>,
    /// `[B, F + real]`, and of the samples that bootstrap.
    pub(super) features: Tensor,
    pub(super) next_features: Tensor,
}

/// What the backward of the prefixes of s needs, and nothing else.
pub(super) struct Kept {
    state: Tensor,
    current: Prefix,
    again: Option<Prefix>,
}

/// Prefixes of s (kept for backward) and of s' (only keys, values and features remain).
pub(super) fn run(pass: &Pass<'_>) -> (Seen, Kept) {
    let &Pass {
        learner, batch, b, a, ..
    } = pass;
    let (gpu, config, dims, who, net) = (&learner.gpu, &learner.config, &learner.dims, &pass.who, &pass.net);
    let everyone: Vec<usize> = (0..b).collect();
    let masks = batch.current.masks(&everyone);
    if pass.learns() && learner.reach.embedding {
        learner.touch(&masks);
    }
    let masks = learner.rows_of(masks);
    let layout = PrefixLayout::new(gpu, dims, &masks, 0);
    let own = config
        .separate_prefixes
        .then(|| PrefixLayout::new(gpu, dims, &masks, layout.cache_rows));
    let learned_lines = layout.cache_rows + own.as_ref().map_or(0, |l| l.cache_rows);
    let (alone, shared) = who.boots.split_at(who.alone);
    let current_of = |&i: &usize| batch.next_is[i].expect("a shared prefix has an owner");
    let next_layout = PrefixLayout::new(gpu, dims, &learner.rows_of(batch.next.masks(alone)), learned_lines);
    let kv_width = 2 * dims.attention().kv_width();
    let lines = learned_lines + next_layout.cache_rows;
    let of_layer = |_| gpu.alloc(config.dtype, [lines, kv_width]);
    let cache: Vec<Tensor> = gpu.owned("keys and values", || (0..dims.depth).map(of_layer).collect());

    let images = batch.current.images(gpu, dims.image_size, &everyone);
    let state = gpu.upload_f32(&batch.current.state, [b, a]);
    let options = PassOptions {
        keep: pass.learns().then_some(config.remat),
        depth: config.features.depth(),
        reach: learner.reach,
    };
    let current = prefix::forward(gpu, net, &layout, &images, &state, &cache, options);
    let features = features::forward(learner, &layout, &current, &state);
    let again = own
        .as_ref()
        .map(|own| prefix::forward(gpu, net, own, &images, &state, &cache, options));
    drop(images);

    gpu.phase(&[("next prefix forward", 1.0)]);
    let next_features = gpu.f32([who.boots.len(), learner.critic_dims.observation()]);
    if !alone.is_empty() {
        let next_state = gpu.upload_f32(&pick_rows(&batch.next.state, a, alone), [alone.len(), a]);
        let images = batch.next.images(gpu, dims.image_size, alone);
        let options = PassOptions { keep: None, ..options };
        let next = prefix::forward(gpu, net, &next_layout, &images, &next_state, &cache, options);
        let pooled = features::forward(learner, &next_layout, &next, &next_state);
        gpu.copy(&pooled, &next_features.rows(0..alone.len()));
    }
    for (j, i) in (alone.len()..).zip(shared.iter().map(current_of)) {
        gpu.copy(&features.rows(i..i + 1), &next_features.rows(j..j + 1));
    }
    let of_shared = shared.iter().map(|i| layout.cached[current_of(i)]);
    let next = next_layout.cached.iter().copied().chain(of_shared).collect();
    let seen = Seen {
        cache,
        learned_lines,
        layout,
        own,
        next,
        features,
        next_features,
    };
    let kept = Kept { state, current, again };
    (seen, kept)
}

/// Weight gradients of the prefixes of s from those at their keys and values and at the features of the chosen
/// candidates; the gradient at the embedded tokens `[R, D]`, if it was needed.
pub(super) fn backward(
    pass: &Pass<'_>,
    seen: &Seen,
    kept: Kept,
    dcache: &[Tensor],
    dfeatures: Option<Tensor>,
) -> Option<Tensor> {
    let (learner, net) = (pass.learner, &pass.net);
    let (gpu, grads, reach) = (&learner.gpu, &learner.grads, learner.reach);
    let Seen { cache, layout, own, .. } = seen;
    let Kept { state, current, again } = kept;
    gpu.phase(&[("current prefix backward", 1.0)]);
    let through_features = dfeatures.map(|d| features::backward(learner, layout, &pass.who, pass.chosen(), &d));
    let incoming = match (&through_features, learner.config.features) {
        (None, _) => Incoming::default(),
        (Some(d), Features::Embedding) => Incoming {
            tokens: Some(d),
            out: None,
        },
        (Some(d), Features::Llm) => Incoming {
            tokens: None,
            out: Some(d),
        },
    };
    let dtokens = prefix::backward(gpu, net, grads, layout, current, &state, cache, dcache, incoming, reach).prefix;
    if let (Some(own), Some(again)) = (own, again) {
        let incoming = Incoming::default();
        prefix::backward(gpu, net, grads, own, again, &state, cache, dcache, incoming, reach);
    }
    dtokens
}
