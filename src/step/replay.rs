//! The chosen candidates once more over all Euler steps, with the cloned rows in the same launches: one forward that keeps
//! what backward needs, the chain of dx from the last step to the first, then weights, keys and values of all steps at once.

use super::batch::pick_rows;
use super::choice::Choice;
use super::metrics::Slot;
use super::observe::Seen;
use super::packing::{clone_weights, seen_by};
use super::sampling;
use super::schedule::Pass;
use crate::gpu::Tensor;
use crate::model::flow_time::FlowTimes;
use crate::model::layout::CachedRun;
use crate::model::suffix::{self, Output, RowTimes, Rows};
use crate::model::suffix_backward::{SuffixBackward, TimeIndex};
use crate::ops::attention::KeyPlan;
use crate::ops::flow;

/// What came of it.
pub(super) struct Replayed {
    /// `[cloned, H]` and `[cloned·H, A]`.
    pub(super) bc_error: Tensor,
    pub(super) velocity: Tensor,
    /// Gradient at the noise of the chosen candidates `[K·actors·H, A]`.
    pub(super) dnoise: Option<Tensor>,
    /// Gradients of keys and values, a tensor per layer with the learned lines of the cache; none if π₀ does not learn.
    pub(super) dcache: Option<Vec<Tensor>>,
}

pub(super) fn run(pass: &Pass<'_>, seen: &Seen, times: &FlowTimes, choice: &Choice) -> Replayed {
    let &Pass {
        learner, batch, h, a, ..
    } = pass;
    let (gpu, config, who, net) = (&learner.gpu, &learner.config, &pass.who, &pass.net);
    let (t, actors, cloned) = (config.euler_steps, who.actors.len(), who.cloned.len());
    // Sequences of a step, and of all.
    let block = pass.chosen() * actors;
    let replayed = t * block;
    let shares = [replayed as f64, cloned as f64].map(|x| x / (replayed + cloned).max(1) as f64);
    let phases = [("winner replay + backward", shares[0]), ("BC suffix", shares[1])];
    gpu.phase(&phases);
    let (bc_error, velocity) = (gpu.f32([cloned, h]), gpu.f32([cloned * h, a]));
    if !pass.learns() {
        return Replayed {
            bc_error,
            velocity,
            dnoise: None,
            dcache: None,
        };
    }

    let bc_layout = seen.own.as_ref().unwrap_or(&seen.layout);
    let of_actors = |_| who.actors.iter().map(|&i| seen.layout.cached[i]);
    let runs: Vec<CachedRun> = (0..t * pass.chosen())
        .flat_map(of_actors)
        .chain(who.cloned.iter().map(|&j| bc_layout.cached[j]))
        .collect();
    let rows = Rows::new(gpu, h, &runs);
    let counts: Vec<usize> = std::iter::repeat_n(block * h, t)
        .chain(std::iter::repeat_n(h, cloned))
        .collect();
    let index = TimeIndex::new(gpu, &counts);
    let x = gpu.f32([rows.len, a]);
    let (replay_x, bc_x) = (x.rows(0..replayed * h), x.rows(replayed * h..rows.len));
    if actors > 0 {
        gpu.copy(&choice.states.rows(0..t).view([replayed * h, a]), &replay_x);
    }
    let (bc_noise, bc_actions) = [&batch.noise.bc, &batch.actions]
        .map(|v| gpu.upload_f32(&pick_rows(v, h * a, &who.cloned), [cloned, h * a]))
        .into();
    let bc_time: Vec<f32> = who.cloned.iter().map(|&j| batch.noise.bc_time[j] as f32).collect();
    flow::interpolate(gpu, &bc_noise, &bc_actions, &pass.f32s(&bc_time), &bc_x);
    let each = RowTimes::Each { groups: &index.groups };
    let output = match cloned {
        0 => Output::Nothing,
        _ => Output::Velocity(&velocity),
    };
    let tape = suffix::forward(
        gpu,
        net,
        &rows,
        &x,
        times,
        each,
        &seen.cache,
        Some(config.remat),
        output,
    );
    let tape = tape.expect("a tape was asked for");

    // Losses at the velocities of the cloned rows.
    let back = SuffixBackward::new(gpu, net, &rows, times, &index, &seen.cache, tape);
    let weight = pass.f32s(&clone_weights(batch, who, h));
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
        pass.add_to(Slot::BcLoss, &error, Some(&weight), 1.0);
        flow::joint_errors(gpu, &velocity, &bc_noise, &bc_actions, &weight, &pass.metrics.joints());
    }
    // The chain: dx from the last step to the first. The cloned rows go with the first pull.
    let mut dnoise = None;
    match &choice.daction {
        None => back.pull(0..cloned, None),
        Some(daction) => {
            let mut dx = daction.clone();
            for i in (0..t).rev() {
                let dv = back.dv.rows(i * block * h..(i + 1) * block * h);
                flow::scaled(gpu, &dx, sampling::euler_step(t) as f32, &dv);
                let below = gpu.f32(dx.shape());
                let last = i + 1 == t;
                let end = (i + 1) * block + if last { cloned } else { 0 };
                gpu.phase(if last { &phases } else { &phases[..1] });
                back.pull(i * block..end, Some((&dx, &below)));
                dx = below;
            }
            dnoise = Some(dx);
        }
    }
    // Keys, values and weights of all steps at once.
    gpu.phase(&phases);
    let seen_by = seen_by(
        who,
        &seen.layout,
        seen.own.as_ref(),
        [t * pass.chosen(), actors, cloned],
        h,
    );
    let keys = KeyPlan::new(gpu, seen_by);
    let dcache = back.finish(&keys, seen.learned_lines, Some(&learner.grads), learner.reach);
    Replayed {
        bc_error,
        velocity,
        dnoise,
        dcache: Some(dcache),
    }
}
