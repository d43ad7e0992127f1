//! Gradients of the flow loss, and of a sampling run.

use super::model::Policy;
use super::{Check, rows_of, whole};
use crate::gpu::Tensor;
use crate::model::flow_time::FlowTimes;
use crate::model::freeze::Reach;
use crate::model::layout::{CachedRun, PrefixLayout};
use crate::model::prefix::{self, Depth, Incoming, Prefix};
use crate::model::remat::Remat;
use crate::model::suffix::{self, Output, RowTimes, Rows};
use crate::model::suffix_backward::{SuffixBackward, TimeIndex};
use crate::ops::attention::{KeyPlan, KeyRun};
use crate::ops::{fill, flow};
use crate::verify::{Kind, Result, inputs};

/// Gradients of the mean loss, by the path that training takes: keys and values only in the last layer.
pub(super) fn loss(p: &Policy<'_>, c: &mut Check<'_>) -> Result<()> {
    let (gpu, d, net) = (p.gpu, p.dims, p.net());
    let (b, h) = (p.len(), d.action_horizon);
    let layout = p.layout();
    let cache = p.cache(&layout);
    let prefix = p.prefix(&layout, &cache, Depth::KeysOnly);
    let (time, noise, actions, x) = p.noised()?;
    let times = FlowTimes::new(gpu, &net, &time);
    let index = TimeIndex::new(gpu, &vec![h; b]);
    let rows = Rows::new(gpu, h, &layout.cached);
    let (v, error) = (gpu.f32([b * h, d.action_dim]), gpu.f32([b * h]));
    let each = RowTimes::Each { groups: &index.groups };
    let tape = suffix::forward(
        gpu,
        &net,
        &rows,
        &x,
        &times,
        each,
        &cache,
        Some(Remat::None),
        Output::Velocity(&v),
    );
    let back = SuffixBackward::new(
        gpu,
        &net,
        &rows,
        &times,
        &index,
        &cache,
        tape.expect("a tape was asked for"),
    );
    let weight = gpu.upload_f32(&vec![1.0 / (b * h) as f32; b * h], [b * h]);
    flow::velocity_loss(gpu, &v, &noise, &actions, &weight, 1.0, &error, Some(&back.dv));
    back.pull(0..b, None);
    let dactions = p.read(&back.dtokens.sum)?;

    p.grads.clear(gpu);
    let tokens = finish(p, &layout, prefix, &cache, back, 1)?;
    let kept = |values: &[f32], shape: &[usize]| rows_of(&p.packed, values, shape);
    let s = d.state_tokens();
    let mut suffix: Vec<(usize, usize)> = (0..b * s).map(|i| (i, 0)).collect();
    suffix.extend((0..b).flat_map(|i| (0..h).map(move |j| (i, s + j))));
    let dprefix = tokens.prefix.as_ref().map_or(Ok(Vec::new()), |t| p.read(t))?;
    let mut dsuffix = tokens.state.as_ref().map_or(Ok(Vec::new()), |t| p.read(t))?;
    dsuffix.extend(dactions);
    c.one("grads", "grad_tokens/prefix", Kind::Gradient, &dprefix, kept)?;
    c.one("grads", "grad_tokens/suffix", Kind::Gradient, &dsuffix, |v, shape| {
        rows_of(&suffix, v, shape)
    })?;
    c.gradients("grad_loss", gpu, &p.grads)
}

/// Keys, values and weights of all steps, then the prefix: `repeats` rows of sequences per sample.
fn finish(
    p: &Policy<'_>,
    layout: &PrefixLayout,
    prefix: Prefix,
    cache: &[Tensor],
    back: SuffixBackward<'_>,
    repeats: usize,
) -> Result<prefix::TokenGrads> {
    let (gpu, b, h) = (p.gpu, p.len(), p.dims.action_horizon);
    let run = |(i, cached): (usize, &CachedRun)| KeyRun {
        k_row0: cached.row0,
        k_rows: cached.rows,
        queries: (0..repeats).map(|r| ((r * b + i) * h, h)).collect(),
    };
    let keys = KeyPlan::new(gpu, layout.cached.iter().enumerate().map(run).collect());
    let dcache = back.finish(&keys, layout.cache_rows, Some(&p.grad_params), Reach::ALL);
    let (incoming, all) = (Incoming::default(), Reach::ALL);
    let net = p.net();
    Ok(prefix::backward(
        gpu,
        &net,
        &p.grad_params,
        layout,
        prefix,
        &p.state,
        cache,
        &dcache,
        incoming,
        all,
    ))
}

/// The sampling run: T Euler steps, then all of them again with gradients.
pub(super) fn sample(p: &Policy<'_>, c: &mut Check<'_>) -> Result<()> {
    let (gpu, d, net) = (p.gpu, p.dims, p.net());
    let (b, h, a) = (p.len(), d.action_horizon, d.action_dim);
    let t = inputs::size(p.f, "/euler_steps")?;
    let step = -1.0 / t as f64;
    let layout = p.layout();
    let cache = p.cache(&layout);
    let prefix = p.prefix(&layout, &cache, Depth::KeysOnly);
    let euler: Vec<f64> = (0..t).map(|i| 1.0 + i as f64 * step).collect();
    let times = FlowTimes::new(gpu, &net, &euler);
    let one = Rows::new(gpu, h, &layout.cached);
    let zeros = gpu.upload_u32(&vec![0; one.len], [one.len]);
    let states = gpu.f32([t + 1, b * h * a]);
    let at = |i: usize| states.rows(i..i + 1).view([b * h, a]);
    gpu.copy(&p.actions("forward:sample/noise")?, &at(0));
    for index in 0..t {
        let next = at(index + 1);
        let output = Output::Step {
            next: &next,
            step: step as f32,
        };
        let all = RowTimes::All { index, zeros: &zeros };
        suffix::forward(gpu, &net, &one, &at(index), &times, all, &cache, None, output);
    }
    c.forward("sample/x", &p.read(&states)?, whole)?;
    c.forward("sample/actions", &p.read(&at(t))?, whole)?;

    let runs: Vec<_> = (0..t).flat_map(|_| layout.cached.iter().copied()).collect();
    let rows = Rows::new(gpu, h, &runs);
    let index = TimeIndex::new(gpu, &vec![b * h; t]);
    let each = RowTimes::Each { groups: &index.groups };
    let v = gpu.f32([t * b * h, a]);
    let x = states.rows(0..t).view([t * b * h, a]);
    let tape = suffix::forward(
        gpu,
        &net,
        &rows,
        &x,
        &times,
        each,
        &cache,
        Some(Remat::None),
        Output::Velocity(&v),
    );
    c.forward("sample/v", &p.read(&v)?, whole)?;
    if p.f.get("forward:sample/cotangent").is_none() {
        return Ok(());
    }
    let back = SuffixBackward::new(
        gpu,
        &net,
        &rows,
        &times,
        &index,
        &cache,
        tape.expect("a tape was asked for"),
    );
    fill::zero(gpu, &back.dv);
    let mut dx = p.actions("forward:sample/cotangent")?;
    for i in (0..t).rev() {
        flow::scaled(gpu, &dx, step as f32, &back.dv.rows(i * b * h..(i + 1) * b * h));
        let below = gpu.f32(dx.shape());
        back.pull(i * b..(i + 1) * b, Some((&dx, &below)));
        dx = below;
    }
    c.one("forward", "sample/grad_noise", Kind::Gradient, &p.read(&dx)?, whole)?;
    p.grads.clear(gpu);
    finish(p, &layout, prefix, &cache, back, t)?;
    c.gradients("grad_sample", gpu, &p.grads)
}
