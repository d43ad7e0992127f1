//! What a run needs before its first step, in the order in which mistakes are cheapest to find: dataset, statistics,
//! tokenizer, batches; then device, memory, weights.

use std::sync::Arc;

use super::collate::Collator;
use super::error::{Result, TrainError};
use super::feed::Feed;
use super::recipe;
use crate::checkpoint::Saved;
use crate::config::Config;
use crate::data::{
    self, BatchBuilder, ChunkBatch, DataError, Dataset, EpisodeSplit, Loader, NormStats, PromptTokenizer, Sampler,
    StartFrames,
};
use crate::gpu::Gpu;
use crate::step::Learner;

/// The dataset of a run, ready to give batches.
pub struct Source {
    pub builder: Arc<BatchBuilder>,
    pub stats: NormStats,
    pub sampler: Sampler,
    /// Draws from the held-out episodes; `None` if there are none.
    pub held_out: Option<Sampler>,
    pub episodes: EpisodeSplit,
}

impl Source {
    /// Opens the dataset of `config`. `stats` are used if given, else those of `data.norm_stats`, else they are
    /// computed, which `progress` (frames done, frames in all) is told about.
    ///
    /// # Errors
    /// A missing or broken dataset, statistics or tokenizer, and settings that do not fit the dataset.
    pub fn open(config: &Config, stats: Option<NormStats>, progress: impl FnMut(usize, usize)) -> Result<Source> {
        let dataset = data::open_all(&config.datasets()?)?;
        let tokenizer = PromptTokenizer::from_file(config.tokenizer_path()?)?;
        fits(&tokenizer, config)?;
        let spec = config.data_spec();
        let stats = match (stats, &config.data.norm_stats) {
            (Some(stats), _) => stats,
            (None, Some(path)) => NormStats::read(path)?,
            (None, None) => NormStats::compute(dataset.as_ref(), &spec, progress)?,
        };
        let builder = BatchBuilder::new(dataset, spec, &stats, tokenizer)?;
        if !builder.rewarded() {
            tracing::warn!(
                "no chunk that can be drawn has a reward, so the critics will learn nothing: look at qchunking.reward_mode, \
                 qchunking.boundary and qchunking.episode_end, and at the dataset's labels"
            );
        }
        let dataset: &dyn Dataset = builder.dataset().as_ref();
        let episodes = EpisodeSplit::new(config.seed, dataset.episodes().len(), config.data.eval_fraction)?;
        let all = builder.starts();
        let of = |episodes: &[usize]| -> Vec<StartFrames> { EpisodeSplit::select(&all, episodes) };
        let (seed, ratio, weights) = (config.seed, config.positive_batch_ratio(), &config.data.mix_weights);
        let sampler = Sampler::mixed(seed, &of(&episodes.train), ratio, weights)?
            .chained(config.acrlpd.chain_batches, config.model.action_horizon);
        let held_out = of(&episodes.eval);
        let drawable = held_out.iter().any(|s| s.count > 0);
        let held_out = drawable
            .then(|| Sampler::mixed(seed, &held_out, None, weights))
            .transpose()?;
        Ok(Source {
            builder: Arc::new(builder),
            stats,
            sampler,
            held_out,
            episodes,
        })
    }

    /// The configuration with room for every prompt token of the dataset to learn, and for those that learn in `saved`.
    ///
    /// # Errors
    /// Prompts that cannot be made.
    pub fn with_room(&self, config: &Config, saved: Option<&Saved>) -> Result<Config> {
        let mut tokens = self.builder.prompt_tokens()?;
        tokens.extend(
            saved
                .iter()
                .flat_map(|saved| saved.state().prompt_rows.iter().flatten()),
        );
        Ok(with_rows(config, tokens.len()))
    }

    /// The batch of step `step` (from 0), as training sees it.
    ///
    /// # Errors
    /// Images that cannot be read.
    pub fn batch(&self, config: &Config, step: u64) -> Result<ChunkBatch> {
        Ok(self.builder.build(&self.sampler.draw(step, config.batch_size))?)
    }

    /// The rations of steps `start..end`.
    ///
    /// # Errors
    /// A system that refuses threads.
    pub fn feed(&self, config: &Config, start: u64, end: u64) -> Result<Feed> {
        let loader = Loader::new(
            self.builder.clone(),
            self.sampler.clone(),
            config.batch_size,
            start,
            end,
            config.data.loader_threads,
            config.data.queue_depth,
        )?;
        Ok(Feed::new(loader, collator(config), start)?)
    }
}

/// Refuses a tokenizer whose ids the prompt embedding has no rows for.
fn fits(tokenizer: &PromptTokenizer, config: &Config) -> Result<()> {
    let (ids, vocab) = (tokenizer.ids(), config.pi0_dims().vocab);
    match ids <= vocab {
        true => Ok(()),
        false => Err(DataError::TooManyPieces {
            path: config.tokenizer_path()?.to_owned(),
            ids,
            vocab,
        }
        .into()),
    }
}

/// The collator that `config` describes.
pub fn collator(config: &Config) -> Collator {
    Collator {
        seed: config.seed,
        dims: config.pi0_dims(),
        critic_dims: config.critic_dims(),
        candidates: config.acrlpd.num_action_samples,
        temperature: config.acrlpd.action_sampling_temperature,
        micro_batch: config.micro_batch(),
        augment: config.data.augment,
        augmentations: config.data.augmentations.clone(),
        dropout: config.critic.dropout_rate,
        share_prefixes: config.acrlpd.chain_batches > 1,
    }
}

/// The configuration with room for `rows` rows of the prompt table to learn, or more.
fn with_rows(config: &Config, rows: usize) -> Config {
    let mut config = config.clone();
    config.memory.prompt_rows = config.memory.prompt_rows.max(rows);
    config
}

/// [`learner`] with room for what `saved` holds.
///
/// # Errors
/// As [`learner`].
pub fn learner_for(gpu: &Gpu, config: &Config, saved: &Saved) -> Result<Learner> {
    let rows = saved.state().prompt_rows.as_ref().map_or(0, Vec::len);
    learner(gpu, &with_rows(config, rows))
}

/// A learner of the configured sizes on `gpu`; its weights are not set yet.
///
/// # Errors
/// Storage types the device lacks, and memory it has not got.
pub fn learner(gpu: &Gpu, config: &Config) -> Result<Learner> {
    if !gpu.caps().stores(config.model.dtype.into()) {
        return Err(TrainError::Mismatch(format!(
            "model.dtype = \"{}\" cannot be used: {} does not store it; set --set model.dtype=float32, or use another \
             --device",
            config.model.dtype,
            gpu.caps().name
        )));
    }
    Ok(Learner::new(
        gpu,
        recipe::step_config(config),
        config.pi0_dims(),
        config.critic_dims(),
    )?)
}
