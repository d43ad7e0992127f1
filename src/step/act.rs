//! The policy as it is used: N chunks for every observation, and the one the critics rate highest.

use super::batch::Observations;
use super::features;
use super::learner::Learner;
use super::sampling;
use crate::gpu::{DType, Tensor};
use crate::model::critic::{self, Rows as CriticRows};
use crate::model::flow_time::FlowTimes;
use crate::model::layout::{CachedRun, PrefixLayout};
use crate::model::prefix::{self, PassOptions};
use crate::model::suffix::{self, Output, RowTimes, Rows};
use crate::ops::ensemble::{self, Rule};
use crate::ops::flow;

/// Sampled chunks and what the online critics say of them.
pub struct Choice {
    /// `[N, B, H, A]`, in the model's (normalised, padded) units.
    pub candidates: Tensor,
    /// `[E, N·B]`, and made into one value `[N·B]`.
    pub candidate_q: Tensor,
    pub value: Tensor,
    /// Index of the best candidate, u32 `[B]`, and its value `[B]`.
    pub winner: Tensor,
    pub best: Tensor,
    /// What was made of the recorded chunks, if they were given.
    pub recorded: Option<Rated>,
}

/// Chunks that someone else chose, to be rated.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    /// `[B, H, A]`
    pub actions: &'a [f32],
    /// Noise `[B, H, A]` and time `[B]` of the velocity error.
    pub noise: &'a [f32],
    pub time: &'a [f32],
}

/// What critics and policy say of recorded chunks.
pub struct Rated {
    /// `[E, B]`, and made into one value `[B]` by the rule of the candidates.
    pub q: Tensor,
    pub value: Tensor,
    /// Mean squared error of the velocity at each action, as in the BC loss, `[B, H]`.
    pub flow_error: Tensor,
}

/// Samples from `noise [N, B, H, A]`; `recorded` are chunks to be rated too. Nothing learns.
pub fn act(learner: &Learner, observations: &Observations, noise: &[f32], recorded: Option<Recorded<'_>>) -> Choice {
    let Learner {
        gpu,
        config,
        dims,
        critic_dims,
        ..
    } = learner;
    let (b, h, a, t) = (
        observations.masks.len(),
        dims.action_horizon,
        dims.action_dim,
        config.euler_steps,
    );
    let n = noise.len() / (b * h * a);
    let net = learner.net();
    let everyone: Vec<usize> = (0..b).collect();
    let layout = PrefixLayout::new(gpu, dims, &learner.rows_of(observations.masks(&everyone)), 0);
    let kv_width = 2 * dims.attention().kv_width();
    let cache: Vec<Tensor> = (0..dims.depth)
        .map(|_| gpu.alloc(config.dtype, [layout.cache_rows, kv_width]))
        .collect();
    let images = observations.images(gpu, dims.image_size, &everyone);
    let state = gpu.upload_f32(&observations.state, [b, a]);
    let options = PassOptions {
        keep: None,
        depth: config.features.depth(),
        reach: learner.reach,
    };
    let prefix = prefix::forward(gpu, &net, &layout, &images, &state, &cache, options);
    let features = features::forward(learner, &layout, &prefix, &state);

    let runs: Vec<CachedRun> = (0..n).flat_map(|_| layout.cached.iter().copied()).collect();
    let rows = Rows::new(gpu, h, &runs);
    let mut times = sampling::euler_times(t);
    times.extend(recorded.iter().flat_map(|r| r.time).map(|time| f64::from(*time)));
    let times = FlowTimes::new(gpu, &net, &times);
    let states = gpu.f32([t + 1, n * b * h * a]);
    gpu.copy(&gpu.upload_f32(noise, [1, n * b * h * a]), &states.rows(0..1));
    sampling::euler(gpu, &net, &rows, &times, &cache, &states);
    let candidates = states.rows(t..t + 1).view([n, b, h, a]);

    let half = gpu.f32([critic_dims.critics, b, critic_dims.hidden[0]]);
    critic::observe(gpu, &learner.critics, critic_dims, &features, &half);
    let rate = |actions: &Tensor, copies: usize| {
        let flat = gpu.f32([copies * b, critic_dims.actions()]);
        critic::flatten(gpu, critic_dims, &actions.view([copies * b * h, a]), a, &flat);
        let sample: Vec<u32> = (0..copies).flat_map(|_| 0..b as u32).collect();
        let rows = CriticRows {
            half: &half,
            sample: &gpu.upload_u32(&sample, [copies * b]),
            actions: &flat,
        };
        let q = gpu.f32([critic_dims.critics, copies * b]);
        critic::forward(gpu, &learner.critics, critic_dims, rows, None, &q);
        q
    };
    let candidate_q = rate(&candidates, n);
    let rule = Rule {
        how: config.actor_rule,
        weights: &learner.rule_weights,
    };
    let (value, best) = (gpu.f32([n * b]), gpu.f32([b]));
    let winner = gpu.alloc(DType::U32, [b]);
    ensemble::forward(gpu, &candidate_q, rule, &value);
    ensemble::best_of_n(gpu, &value, &best, &winner);
    let recorded = recorded.map(|recorded| {
        let [actions, noise] = [recorded.actions, recorded.noise].map(|v| gpu.upload_f32(v, [b * h, a]));
        let q = rate(&actions, 1);
        let (value, flow_error) = (gpu.f32([b]), gpu.f32([b, h]));
        ensemble::forward(gpu, &q, rule, &value);
        let (x, velocity) = (gpu.f32([b * h, a]), gpu.f32([b * h, a]));
        flow::interpolate(gpu, &noise, &actions, &gpu.upload_f32(recorded.time, [b]), &x);
        let own_time: Vec<u32> = (0..b * h).map(|row| (t + row / h) as u32).collect();
        let each = RowTimes::Each {
            groups: &gpu.upload_u32(&own_time, [b * h]),
        };
        let rows = Rows::new(gpu, h, &layout.cached);
        let output = Output::Velocity(&velocity);
        suffix::forward(gpu, &net, &rows, &x, &times, each, &cache, None, output);
        let (error, weight) = (flow_error.view([b * h]), gpu.upload_f32(&vec![1.0; b * h], [b * h]));
        flow::velocity_loss(gpu, &velocity, &noise, &actions, &weight, 1.0, &error, None);
        Rated { q, value, flow_error }
    });
    Choice {
        candidates,
        candidate_q,
        value,
        winner,
        best,
        recorded,
    }
}
