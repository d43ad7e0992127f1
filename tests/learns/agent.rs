//! What a trained policy does in the world, and what its critics think of recorded episodes.

use std::path::Path;

use acrlpd::checkpoint;
use acrlpd::config::Config;
use acrlpd::data::transforms::{Normalizer, pad_into};
use acrlpd::data::{CameraBatch, ChunkBatch, PromptTokenizer, TokenizedPrompt};
use acrlpd::gpu::Gpu;
use acrlpd::rng::Key;
use acrlpd::step::Learner;
use acrlpd::train::collate::Collator;
use acrlpd::train::setup::{self, Source};
use acrlpd::train::{eval, snapshot};

use crate::demonstrations::TASK;
use crate::world::{Outcome, World};

/// Chunks that are rated in one pass.
const RATED: usize = 256;

/// A policy and its critics, set to a checkpoint.
pub struct Agent {
    config: Config,
    source: Source,
    learner: Learner,
    state: Normalizer,
    prompt: TokenizedPrompt,
}

/// A held-out episode in the eyes of the critics.
#[derive(Clone, Copy, Debug)]
pub struct Rated {
    pub success: bool,
    /// Mean of the critics' values of its chunks.
    pub q: f64,
    /// What it really came to: γ^steps of a success, 0 of a failure.
    pub value: f64,
}

impl Agent {
    /// An agent for the checkpoints of runs of `config`.
    pub fn new(config: &Config) -> Agent {
        let gpu = Gpu::open(crate::device()).expect("tests need a device");
        let source = Source::open(config, None, |_, _| ()).expect("a dataset");
        let tokenizer = PromptTokenizer::from_file(config.tokenizer_path().expect("a path")).expect("a tokenizer");
        let len = config.pi0_dims().max_token_len;
        Agent {
            learner: setup::learner(&gpu, config).expect("a learner"),
            state: Normalizer::new(&source.stats.state, config.data_spec().norm, "state", 2).expect("statistics"),
            prompt: tokenizer.prompt(TASK, None, len).expect("a prompt"),
            source,
            config: config.clone(),
        }
    }

    pub fn load(&self, folder: &Path) {
        let saved = checkpoint::open(folder).expect("a checkpoint");
        snapshot::restore(&self.learner, &saved).expect("a checkpoint of this configuration");
    }

    /// Walks through the first `count` worlds of `key` to their ends: again and again the critics choose one of
    /// `candidates` chunks, which is executed whole. With one candidate nothing is chosen.
    pub fn walk(&self, key: Key, count: usize, candidates: usize) -> Vec<World> {
        let mut worlds: Vec<World> = (0..count).map(|i| World::new(key.fold(i as u64))).collect();
        let collator = self.collator(candidates);
        let (chunk, width) = (self.config.model.action_horizon, self.config.model.action_dim);
        loop {
            let on: Vec<usize> = (0..count).filter(|&i| worlds[i].outcome == Outcome::Walking).collect();
            if on.is_empty() {
                return worlds;
            }
            let choice = eval::choose(&self.learner, &collator, &self.observe(&worlds, &on));
            let actions = self.learner.gpu.read_f32(&choice.candidates).expect("actions");
            let winner = self.learner.gpu.read_u32(&choice.winner).expect("a choice");
            for (row, &i) in on.iter().enumerate() {
                let first = (winner[row] as usize * on.len() + row) * chunk * width;
                let steps = actions[first..first + chunk * width].chunks(width);
                let mut steps: Vec<f64> = steps.flat_map(|a| [f64::from(a[0]), f64::from(a[1])]).collect();
                self.source.builder.actions_to_robot(&mut steps, 0);
                for step in steps.chunks(2) {
                    if worlds[i].outcome == Outcome::Walking {
                        worlds[i].step([step[0], step[1]]);
                    }
                }
            }
        }
    }

    /// What the policy is shown of the worlds `on`.
    fn observe(&self, worlds: &[World], on: &[usize]) -> ChunkBatch {
        let (chunk, width) = (self.config.model.action_horizon, self.config.model.action_dim);
        let mut state = vec![0.0; on.len() * width];
        for (&i, out) in on.iter().zip(state.chunks_mut(width)) {
            let mut at = worlds[i].at;
            self.state.normalize(&mut at);
            pad_into(&at, out);
        }
        let camera = CameraBatch {
            name: "base_0_rgb".into(),
            current: on.iter().flat_map(|&i| worlds[i].picture()).collect(),
            current_mask: vec![true; on.len()],
            ..CameraBatch::default()
        };
        ChunkBatch {
            images: vec![camera],
            state,
            tokens: self.prompt.tokens.repeat(on.len()),
            token_mask: self.prompt.mask.repeat(on.len()),
            actions: vec![0.0; on.len() * chunk * width],
            // Names the noise: another for every world and moment.
            index: on.iter().map(|&i| (1000 * i + worlds[i].steps) as i64).collect(),
            ..ChunkBatch::default()
        }
    }

    /// The episodes that were held out from training.
    pub fn rate_held_out(&self) -> Vec<Rated> {
        let starts = self.source.builder.starts();
        let held_out = self.source.episodes.eval.iter().map(|&e| starts[e]);
        let frames: Vec<usize> = held_out.clone().flat_map(|s| s.first..s.first + s.count).collect();
        let q: Vec<f64> = frames.chunks(RATED).flat_map(|part| self.rate(part)).collect();
        let (mut first, discount) = (0, self.config.acrlpd.discount);
        let rated = held_out.map(|s| {
            let chunks = &q[first..first + s.count];
            first += s.count;
            Rated {
                success: s.positive,
                q: chunks.iter().sum::<f64>() / s.count as f64,
                value: if s.positive { discount.powi(s.count as i32) } else { 0.0 },
            }
        });
        rated.collect()
    }

    /// Mean value over the critics of the recorded chunks that begin at `frames`.
    fn rate(&self, frames: &[usize]) -> Vec<f64> {
        let batch = self.source.builder.build(frames).expect("recorded chunks");
        let choice = eval::choose(&self.learner, &self.collator(1), &batch);
        let q = self.learner.gpu.read_f32(&choice.recorded.expect("they were given").q);
        let q = q.expect("values");
        let members = q.len() / frames.len();
        let mean = |i: usize| (0..members).map(|m| f64::from(q[m * frames.len() + i])).sum::<f64>() / members as f64;
        (0..frames.len()).map(mean).collect()
    }

    fn collator(&self, candidates: usize) -> Collator {
        Collator {
            candidates,
            ..setup::collator(&self.config)
        }
    }
}
