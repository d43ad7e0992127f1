//! One micro-batch, from observations to gradients, in the order in which it happens.
//!
//! ```text
//! prefix of s ─┬─ features ── critics ── target, TD loss ── critic gradients
//! prefix of s' ┘      │          │
//!      │   │          │          └── best candidate ── dQ/da
//!      │   └ candidates and targets: T Euler steps, one launch per op for all rows
//!      │                                    │
//!      └ winner replayed over all T steps, with the cloned rows in the same launches
//!                                           │
//!        chain of T pulls of dx ── weights, keys and values of all steps at once ── prefix backward
//! ```
//! Every pass over observations happens once; every gradient is exact. docs/ARCHITECTURE.md derives the order.

use super::batch::{MicroBatch, Who, pick_rows};
use super::config::{Features, Objective};
use super::learner::Learner;
use super::metrics::{Metrics, Slot};
use super::packing::{clone_weights, initial_noise, pick_times, seen_by};
use super::{action_losses, features, sampling, temperature};
use crate::gpu::{DType, Tensor};
use crate::model::critic::{self, Dropout, Rows as CriticRows, Wanted};
use crate::model::flow_time::FlowTimes;
use crate::model::layout::{CachedRun, PrefixLayout};
use crate::model::prefix::{self, Incoming, PassOptions};
use crate::model::suffix::{self, Output, RowTimes, Rows};
use crate::model::suffix_backward::{SuffixBackward, TimeIndex};
use crate::ops::attention::KeyPlan;
use crate::ops::ensemble::{self, Rule};
use crate::ops::td::{self, TERMINAL, Transition};
use crate::ops::{flow, reduce};

/// Intermediate values of a micro-batch, for checks and reports. Small; dropped unread in training.
pub struct Outcome {
    pub who: Who,
    /// `[B, F + real]`, and of the samples that bootstrap.
    pub features: Tensor,
    pub next_features: Tensor,
    /// `[E, B']` of the targets, `[B]`, `[E, B]`
    pub next_q: Tensor,
    pub target: Tensor,
    pub q: Tensor,
    /// States of all sequences `[T + 1, M, A]`: N candidates of every actor, then the bootstrapped actions.
    pub states: Tensor,
    /// `[E, N·B]`, `[N·B]`, `[B]` (u32) over the actors.
    pub candidate_q: Tensor,
    pub candidate_value: Tensor,
    pub winner: Tensor,
    /// `[n, H]` and `[n·H, A]` of the cloned samples.
    pub bc_error: Tensor,
    pub velocity: Tensor,
    /// Gradient at the chosen candidates' actions and at their noise, `[K·B·H, A]`.
    pub daction: Option<Tensor>,
    pub dnoise: Option<Tensor>,
    /// Gradient at the embedded prefix tokens `[R, D]`, and where they are.
    pub dtokens: Option<Tensor>,
    pub layout: PrefixLayout,
}

/// Adds the gradients of one micro-batch; `update_pi0` false leaves out all that only π₀ learns from.
pub fn micro_batch(learner: &Learner, metrics: &Metrics, batch: &MicroBatch, update_pi0: bool) -> Outcome {
    let Learner {
        gpu,
        config,
        dims,
        critic_dims,
        ..
    } = learner;
    gpu.phase(&[("current prefix forward", 1.0)]);
    let net = learner.net();
    let (b, h, a, n) = (batch.len(), dims.action_horizon, dims.action_dim, config.candidates);
    let who = Who::new(batch, config.skip_dead_rows, update_pi0);
    let (actors, boots, cloned) = (who.actors.len(), who.boots.len(), who.cloned.len());
    let everyone: Vec<usize> = (0..b).collect();
    let totals = batch.totals;
    let f32s = |values: &[f32]| gpu.upload_f32(values, [values.len()]);
    let u32s = |values: &[usize]| gpu.upload_u32(&values.iter().map(|&v| v as u32).collect::<Vec<_>>(), [values.len()]);

    let add_to = |slot: Slot, values: &Tensor, weights: Option<&Tensor>, factor: f32| {
        reduce::weighted_sum(gpu, values, weights, factor, &metrics.slot(slot), true);
    };

    // ---- Observations: who is where. Keys of s, (for comparison: of s again,) of s' lie in one cache per layer.
    let learns = actors + cloned > 0;
    let masks = batch.current.masks(&everyone);
    if learns && learner.reach.embedding {
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

    // ---- Prefix of s (kept for backward) and of s' (only keys, values and features remain).
    let images = batch.current.images(gpu, dims.image_size, &everyone);
    let state = gpu.upload_f32(&batch.current.state, [b, a]);
    let options = PassOptions {
        keep: learns.then_some(config.remat),
        depth: config.features.depth(),
        reach: learner.reach,
    };
    let current = prefix::forward(gpu, &net, &layout, &images, &state, &cache, options);
    let features = features::forward(learner, &layout, &current, &state);
    let again = own
        .as_ref()
        .map(|own| prefix::forward(gpu, &net, own, &images, &state, &cache, options));
    drop(images);

    gpu.phase(&[("next prefix forward", 1.0)]);
    let next_features = gpu.f32([boots, critic_dims.observation()]);
    if !alone.is_empty() {
        let next_state = gpu.upload_f32(&pick_rows(&batch.next.state, a, alone), [alone.len(), a]);
        let images = batch.next.images(gpu, dims.image_size, alone);
        let pass = PassOptions { keep: None, ..options };
        let next = prefix::forward(gpu, &net, &next_layout, &images, &next_state, &cache, pass);
        let pooled = features::forward(learner, &next_layout, &next, &next_state);
        gpu.copy(&pooled, &next_features.rows(0..alone.len()));
    }
    for (j, i) in (alone.len()..).zip(shared.iter().map(current_of)) {
        gpu.copy(&features.rows(i..i + 1), &next_features.rows(j..j + 1));
    }

    // ---- Candidates of s and targets of s': T Euler steps, all rows in the same launches.
    let sequences = n * actors + boots;
    let share = (n * actors) as f64 / (sequences.max(1)) as f64;
    gpu.phase(&[("candidates forward", share), ("target suffix", 1.0 - share)]);
    let t = config.euler_steps;
    let times = FlowTimes::new(
        gpu,
        &net,
        &[sampling::euler_times(t), pick_times(&batch.noise.bc_time, &who.cloned)].concat(),
    );
    let of_actor = |i: &usize| layout.cached[*i];
    let runs: Vec<CachedRun> = (0..n)
        .flat_map(|_| who.actors.iter().map(of_actor))
        .chain(next_layout.cached.iter().copied())
        .chain(shared.iter().map(|i| layout.cached[current_of(i)]))
        .collect();
    let rows = Rows::new(gpu, h, &runs);
    let states = gpu.f32([t + 1, sequences * h * a]);
    let state_at = |i: usize| states.rows(i..i + 1).view([sequences * h, a]);
    if sequences > 0 {
        let noise = initial_noise(batch, &who, n, b, h * a);
        gpu.copy(&gpu.upload_f32(&noise, [sequences * h, a]), &state_at(0));
        sampling::euler(gpu, &net, &rows, &times, &cache, &states);
    }
    let result = state_at(t);
    let (candidates, next_actions) = (
        result.rows(0..n * actors * h),
        result.rows(n * actors * h..sequences * h),
    );

    // ---- Critics: target, TD loss, gradients.
    gpu.phase(&[("critics", 1.0)]);
    let e = critic_dims.critics;
    let first = critic_dims.hidden[0];
    let flat = |actions: &Tensor| {
        let flat = gpu.f32([actions.dim(0) / h, critic_dims.actions()]);
        critic::flatten(gpu, critic_dims, actions, a, &flat);
        flat
    };
    let target_rule = Rule {
        how: config.target_rule,
        weights: &learner.rule_weights,
    };
    let actor_rule = Rule {
        how: config.actor_rule,
        weights: &learner.rule_weights,
    };
    let next_q = gpu.f32([e, boots]);
    if boots > 0 {
        let half = gpu.f32([e, boots, first]);
        critic::observe(gpu, &learner.targets, critic_dims, &next_features, &half);
        let sample = u32s(&(0..boots).collect::<Vec<_>>());
        let rows = CriticRows {
            half: &half,
            sample: &sample,
            actions: &flat(&next_actions),
        };
        critic::forward(gpu, &learner.targets, critic_dims, rows, None, &next_q);
    }
    let half = gpu.f32([e, b, first]);
    critic::observe(gpu, &learner.critics, critic_dims, &features, &half);
    let keep: Vec<Tensor> = batch
        .dropout
        .iter()
        .map(|bits| gpu.upload_u32(bits, [bits.len()]))
        .collect();
    let dropout = (!keep.is_empty()).then_some(Dropout {
        keep: &keep,
        rate: config.dropout,
    });
    let data_actions = flat(&gpu.upload_f32(&batch.actions, [b * h, a]));
    let sample = u32s(&everyone);
    let data = CriticRows {
        half: &half,
        sample: &sample,
        actions: &data_actions,
    };
    let q = gpu.f32([e, b]);
    let tape = critic::forward(gpu, &learner.critics, critic_dims, data, dropout, &q);
    let (target, td_loss, dq) = (gpu.f32([b]), gpu.f32([b]), gpu.f32([e, b]));
    let next_column: Vec<u32> = (0..b)
        .map(|i| {
            who.boots
                .iter()
                .position(|&j| j == i)
                .map_or(TERMINAL, |column| column as u32)
        })
        .collect();
    let transition = Transition {
        reward: &f32s(&batch.reward),
        discount: &f32s(&batch.discount),
        next: &gpu.upload_u32(&next_column, [b]),
        weight: &f32s(&batch.chunk_valid),
    };
    let factor = config.weights.critic / totals.samples as f32;
    td::run(
        gpu,
        &q,
        &next_q,
        target_rule,
        transition,
        config.critic_loss,
        factor,
        &target,
        &td_loss,
        Some(&dq),
    );
    let wanted = Wanted {
        params: Some((&learner.critic_grads, &features)),
        ..Wanted::default()
    };
    critic::backward(gpu, &learner.critics, critic_dims, data, dropout, &tape, &dq, wanted);
    drop(tape);
    let mean = 1.0 / totals.samples as f32;
    add_to(Slot::CriticLoss, &td_loss, None, mean);
    metrics.keep(gpu, &q, &target);

    // ---- Actor: rate the candidates, choose, and find dQ/da of the chosen ones.
    let (candidate_q, value) = (gpu.f32([e, n * actors]), gpu.f32([n * actors]));
    let winner = gpu.alloc(DType::U32, [actors]);
    // Chosen candidates per sample.
    let k = if config.objective == Objective::BestOfN { 1 } else { n };
    let chosen_states = gpu.f32([t + 1, k * actors * h * a]);
    let chosen_at = |i: usize| chosen_states.rows(i..i + 1).view([k * actors * h, a]);
    let mut daction = None;
    let mut dfeatures = None;
    if actors > 0 {
        let sample = u32s(&(0..n).flat_map(|_| who.actors.iter().copied()).collect::<Vec<_>>());
        let rated = CriticRows {
            half: &half,
            sample: &sample,
            actions: &flat(&candidates),
        };
        critic::forward(gpu, &learner.critics, critic_dims, rated, None, &candidate_q);
        ensemble::forward(gpu, &candidate_q, actor_rule, &value);
        let best = gpu.f32([actors]);
        ensemble::best_of_n(gpu, &value, &best, &winner);
        let weight = f32s(&pick_rows(&batch.chunk_valid, 1, &who.actors));
        let per_actor = 1.0 / totals.actors.max(1) as f32;
        add_to(Slot::BestQ, &best, None, per_actor);
        add_to(Slot::CandidateQ, &value, None, per_actor / n as f32);
        temperature::losses(learner, metrics, &candidates, per_actor);

        let by_winner = (k == 1).then_some(&winner);
        ensemble::gather_trajectories(gpu, &states, by_winner, h * a, &chosen_states);
        let sample = u32s(&(0..k).flat_map(|_| who.actors.iter().copied()).collect::<Vec<_>>());
        let chosen = CriticRows {
            half: &half,
            sample: &sample,
            actions: &flat(&chosen_at(t)),
        };
        let (q, dvalue, dq) = (
            gpu.f32([e, k * actors]),
            gpu.f32([k * actors]),
            gpu.f32([e, k * actors]),
        );
        let tape = critic::forward(gpu, &learner.critics, critic_dims, chosen, None, &q);
        let loss_value = gpu.f32([k * actors]);
        ensemble::forward(gpu, &q, actor_rule, &loss_value);
        // loss = -1/B Σ_b weight_b mean_k agg Q
        let factor = -1.0 / (totals.samples * k) as f32;
        for i in 0..k {
            let of = |t: &Tensor| t.slice(i * actors, [actors]);
            add_to(Slot::ActorLoss, &of(&loss_value), Some(&weight), factor);
            flow::scaled(gpu, &weight, factor * config.weights.actor, &of(&dvalue));
        }
        ensemble::backward(gpu, &q, actor_rule, &dvalue, &dq);
        let dflat = gpu.f32([k * actors, critic_dims.actions()]);
        let at_features = config
            .feature_grad
            .then(|| gpu.f32([k * actors, critic_dims.observation()]));
        let wanted = Wanted {
            actions: Some(&dflat),
            features: at_features.as_ref(),
            ..Wanted::default()
        };
        critic::backward(gpu, &learner.critics, critic_dims, chosen, None, &tape, &dq, wanted);
        let at_actions = gpu.f32([k * actors * h, a]);
        critic::unflatten(gpu, critic_dims, &dflat, a, &at_actions);
        action_losses::add(learner, metrics, &chosen_at(t), &weight, -factor, &at_actions);
        daction = Some(at_actions);
        dfeatures = at_features;
    }
    drop(half);

    // ---- Winner replay over all steps, cloned rows behind it: one forward that keeps what backward needs.
    let replayed = t * k * actors;
    let shares = [replayed as f64, cloned as f64].map(|x| x / (replayed + cloned).max(1) as f64);
    let phases = [("winner replay + backward", shares[0]), ("BC suffix", shares[1])];
    gpu.phase(&phases);
    let bc_layout = own.as_ref().unwrap_or(&layout);
    let runs: Vec<CachedRun> = (0..t * k)
        .flat_map(|_| who.actors.iter().map(of_actor))
        .chain(who.cloned.iter().map(|&j| bc_layout.cached[j]))
        .collect();
    let rows = Rows::new(gpu, h, &runs);
    let counts: Vec<usize> = std::iter::repeat_n(k * actors * h, t)
        .chain(std::iter::repeat_n(h, cloned))
        .collect();
    let index = TimeIndex::new(gpu, &counts);
    let (bc_error, velocity) = (gpu.f32([cloned, h]), gpu.f32([cloned * h, a]));
    let mut dnoise = None;
    let mut dtokens = None;
    if learns {
        let x = gpu.f32([rows.len, a]);
        let (replay_x, bc_x) = (x.rows(0..replayed * h), x.rows(replayed * h..rows.len));
        if actors > 0 {
            gpu.copy(&chosen_states.rows(0..t).view([replayed * h, a]), &replay_x);
        }
        let (bc_noise, bc_actions) = [&batch.noise.bc, &batch.actions]
            .map(|v| gpu.upload_f32(&pick_rows(v, h * a, &who.cloned), [cloned, h * a]))
            .into();
        let bc_time: Vec<f32> = who.cloned.iter().map(|&j| batch.noise.bc_time[j] as f32).collect();
        flow::interpolate(gpu, &bc_noise, &bc_actions, &f32s(&bc_time), &bc_x);
        let each = RowTimes::Each { groups: &index.groups };
        let output = if cloned > 0 {
            Output::Velocity(&velocity)
        } else {
            Output::Nothing
        };
        let tape = suffix::forward(gpu, &net, &rows, &x, &times, each, &cache, Some(config.remat), output);
        let tape = tape.expect("a tape was asked for");

        // ---- Losses at the velocities, then the chain: dx from the last step to the first.
        let back = SuffixBackward::new(gpu, &net, &rows, &times, &index, &cache, tape);
        let weight = f32s(&clone_weights(batch, &who, h));
        if cloned > 0 {
            let dv = back.dv.rows(replayed * h..rows.len);
            let error = bc_error.view([cloned * h]);
            flow::velocity_loss(
                gpu,
                &velocity,
                &bc_noise,
                &bc_actions,
                &weight,
                config.weights.bc,
                &error,
                Some(&dv),
            );
            add_to(Slot::BcLoss, &error, Some(&weight), 1.0);
            flow::joint_errors(gpu, &velocity, &bc_noise, &bc_actions, &weight, &metrics.joints());
        }
        let block = k * actors;
        match &daction {
            None => back.pull(0..cloned, None),
            Some(daction) => {
                let mut dx = daction.clone();
                for i in (0..t).rev() {
                    let dv = back.dv.rows(i * block * h..(i + 1) * block * h);
                    flow::scaled(gpu, &dx, sampling::euler_step(t) as f32, &dv);
                    let below = gpu.f32(dx.shape());
                    // The cloned rows go with the first pull.
                    let end = if i + 1 == t {
                        t * block + cloned
                    } else {
                        (i + 1) * block
                    };
                    gpu.phase(if i + 1 == t { &phases } else { &phases[..1] });
                    back.pull(i * block..end, Some((&dx, &below)));
                    dx = below;
                }
                dnoise = Some(dx);
            }
        }

        // ---- Keys, values and weights of all steps at once.
        gpu.phase(&phases);
        let seen_by = seen_by(&who, &layout, own.as_ref(), [t * k, actors, cloned], h);
        let dcache = back.finish(
            &KeyPlan::new(gpu, seen_by),
            learned_lines,
            Some(&learner.grads),
            learner.reach,
        );

        // ---- One prefix backward with all that reached the keys and values.
        gpu.phase(&[("current prefix backward", 1.0)]);
        let through_features = dfeatures.map(|d| features::backward(learner, &layout, &who, k, &d));
        let incoming = match (&through_features, config.features) {
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
        let grads = &learner.grads;
        let reach = learner.reach;
        dtokens = prefix::backward(
            gpu, &net, grads, &layout, current, &state, &cache, &dcache, incoming, reach,
        )
        .prefix;
        if let (Some(own), Some(again)) = (&own, again) {
            let incoming = Incoming::default();
            prefix::backward(gpu, &net, grads, own, again, &state, &cache, &dcache, incoming, reach);
        }
    }
    Outcome {
        who,
        features,
        next_features,
        next_q,
        target,
        q,
        states: states.view([t + 1, sequences * h, a]),
        candidate_q,
        candidate_value: value,
        winner,
        bc_error,
        velocity,
        daction,
        dnoise,
        dtokens,
        layout,
    }
}
