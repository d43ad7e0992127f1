//! A policy: one evaluation of the flow loss, one sampling run, and the gradients of both.

use super::compare::Kind;
use super::inputs::{self, packed_positions};
use super::{Fixture, Report, Result, VerifyError};
use crate::gpu::{DType, Gpu, Tensor};
use crate::model::bind::{Norm, Pi0Params};
use crate::model::dims::Pi0Dims;
use crate::model::flow_time::{FlowTimes, TimeKind};
use crate::model::layout::{ObservationMasks, PrefixLayout};
use crate::model::params::{ParamStore, Placement, Scope};
use crate::model::prefix::{self, Depth, Incoming, Net, PassOptions, Prefix, Trainable};
use crate::model::remat::Remat;
use crate::model::suffix::{self, Output, RowTimes, Rows};
use crate::model::suffix_backward::{SuffixBackward, TimeIndex};
use crate::model::tables;
use crate::ops::attention::{KeyPlan, KeyRun};
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::{fill, flow, rope};
use crate::step::batch::{Observations, Pictures};
use std::sync::Arc;

/// Checks a policy group: `weights:`, `forward:`, `grads:`.
pub(super) fn run(gpu: &Gpu, f: &Fixture, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    let dims = inputs::policy_dims(f)?;
    let policy = Policy::load(gpu, f, &dims)?;
    let mut check = Check {
        f,
        wanted,
        report,
        names: Vec::new(),
    };
    let any = |part: &str| f.names().any(|n| wanted(plain(n)) && plain(n).starts_with(part));
    let sampling = any("sample/") || any("grad_sample/");
    let loss = any("grad_loss/") || any("grad_tokens/");
    forward(&policy, &mut check)?;
    if loss {
        loss_gradients(&policy, &mut check)?;
    }
    if sampling {
        sample(&policy, &mut check)?;
    }
    check.close();
    Ok(())
}

/// The name without the file part.
fn plain(name: &str) -> &str {
    name.split_once(':').map_or(name, |(_, rest)| rest)
}

/// Compares and remembers what was compared.
struct Check<'a> {
    f: &'a Fixture,
    wanted: &'a dyn Fn(&str) -> bool,
    report: &'a mut Report,
    names: Vec<String>,
}

impl Check<'_> {
    /// Compares `forward:name` where the group has it and it is wanted.
    fn forward(&mut self, name: &str, got: &[f32], pick: impl Fn(&[f32], &[usize]) -> Option<Vec<f32>>) -> Result<()> {
        self.one("forward", name, Kind::Forward, got, pick)
    }

    fn one(
        &mut self,
        part: &str,
        name: &str,
        kind: Kind,
        got: &[f32],
        pick: impl Fn(&[f32], &[usize]) -> Option<Vec<f32>>,
    ) -> Result<()> {
        let key = format!("{part}:{name}");
        self.names.push(key.clone());
        if self.f.get(&key).is_none() || !(self.wanted)(name) {
            return Ok(());
        }
        let (values, shape) = (self.f.f32(&key)?, self.f.shape(&key)?);
        let want = pick(&values, shape).ok_or_else(|| self.f.broken(format!("{key} has shape {shape:?}")))?;
        self.report.compare(name, kind, got, &want);
        Ok(())
    }

    /// Every parameter's gradient `grads:{part}/{name}`.
    fn gradients(&mut self, part: &str, gpu: &Gpu, grads: &ParamStore) -> Result<()> {
        let got = inputs::read(gpu, grads)?;
        for tensor in grads.placement().table().tensors() {
            let name = format!("{part}/{}", tensor.name);
            let kind = gradient_kind(self.f, &format!("grads:{part}/"), &tensor.name)?;
            self.one("grads", &name, kind, &got[&tensor.name], whole)?;
        }
        Ok(())
    }

    /// Whatever the group holds beside its inputs and what was compared is unknown.
    fn close(self) {
        let inputs = [
            "obs/",
            "actions",
            "noise",
            "time",
            "prefix_mask",
            "sample/noise",
            "sample/cotangent",
        ];
        let input = |name: &str| name.starts_with("weights:") || inputs.iter().any(|i| plain(name).starts_with(i));
        let left = self.f.names().filter(|n| !input(n) && (self.wanted)(plain(n)));
        let unknown = left.filter(|n| !self.names.iter().any(|known| known == n));
        self.report.unknown.extend(unknown.map(String::from));
    }
}

/// How near a parameter's gradient must be. The vision keys' biases have none: a constant added to all keys cancels in
/// the softmax. What is left of them must be tiny beside the values' biases.
pub(super) fn gradient_kind(f: &Fixture, prefix: &str, name: &str) -> Result<Kind> {
    match name.strip_suffix("k_proj.bias") {
        Some(stem) => {
            let beside = f.f32(&format!("{prefix}{stem}v_proj.bias"))?;
            Ok(Kind::Zero(
                1e-4 * beside.iter().fold(0.0, |a, &v| f64::max(a, v.abs() as f64)),
            ))
        }
        None => Ok(Kind::Gradient),
    }
}

fn whole(values: &[f32], _: &[usize]) -> Option<Vec<f32>> {
    Some(values.to_vec())
}

/// Rows `(b, position)` of a `[B, L, …]` tensor.
fn rows_of(rows: &[(usize, usize)], values: &[f32], shape: &[usize]) -> Option<Vec<f32>> {
    let [_, length, rest @ ..] = shape else { return None };
    let width: usize = rest.iter().product();
    let row = |&(b, p): &(usize, usize)| values.get((b * length + p) * width..(b * length + p + 1) * width);
    rows.iter()
        .map(row)
        .collect::<Option<Vec<_>>>()
        .map(|rows| rows.concat())
}

/// A policy on the device with its inputs.
struct Policy<'a> {
    gpu: &'a Gpu,
    f: &'a Fixture,
    dims: &'a Pi0Dims,
    params: Pi0Params,
    grads: ParamStore,
    grad_params: Pi0Params,
    rope: rope::Table,
    observations: Observations,
    images: Tensor,
    state: Tensor,
    /// `(sample, position)` of every packed prefix row.
    packed: Vec<(usize, usize)>,
    _weights: ParamStore,
}

impl<'a> Policy<'a> {
    fn load(gpu: &'a Gpu, f: &'a Fixture, dims: &'a Pi0Dims) -> Result<Policy<'a>> {
        let placement = Arc::new(Placement::new(Arc::new(tables::pi0(dims)), gpu.caps(), |_| true));
        let mut values = inputs::parameters(f, "weights:", placement.table().tensors())?;
        let weights = ParamStore::zeros(gpu, placement.clone(), DType::F32, Scope::All);
        weights.write(gpu, |p| values.remove(&p.name));
        let grads = ParamStore::zeros(gpu, placement, DType::F32, Scope::All);
        let observations = inputs::observations(f, "forward:obs/", dims)?;
        let Pictures::Floats(pictures) = &observations.pictures else {
            unreachable!("groups hold float pictures")
        };
        let (size, n) = (dims.image_size, observations.masks.pictures().len());
        Ok(Policy {
            gpu,
            f,
            params: Pi0Params::bind(&weights, dims),
            grad_params: Pi0Params::bind(&grads, dims),
            grads,
            rope: rope::Table::new(gpu, 0, Net::positions(dims), dims.head_dim),
            images: gpu.upload_f32(pictures, [n, size, size, 3]),
            state: gpu.upload_f32(&observations.state, [observations.masks.len(), dims.action_dim]),
            packed: packed_positions(dims, &observations.masks, &f.bool("forward:prefix_mask")?),
            observations,
            dims,
            _weights: weights,
        })
    }

    fn net(&self) -> Net<'_> {
        Net {
            dims: self.dims,
            params: &self.params,
            rope: &self.rope,
            dtype: DType::F32,
        }
    }

    fn masks(&self) -> &ObservationMasks {
        &self.observations.masks
    }

    /// Samples (B).
    fn len(&self) -> usize {
        self.masks().len()
    }

    fn layout(&self) -> PrefixLayout {
        PrefixLayout::new(self.gpu, self.dims, self.masks(), 0)
    }

    fn cache(&self, layout: &PrefixLayout) -> Vec<Tensor> {
        let width = 2 * self.dims.attention().kv_width();
        (0..self.dims.depth)
            .map(|_| self.gpu.f32([layout.cache_rows, width]))
            .collect()
    }

    fn prefix(&self, layout: &PrefixLayout, cache: &[Tensor], depth: Depth) -> Prefix {
        let options = PassOptions {
            keep: Some(Remat::None),
            depth,
            trainable: Trainable::ALL,
        };
        prefix::forward(self.gpu, &self.net(), layout, &self.images, &self.state, cache, options)
    }

    /// An input `[B, H, A]` as rows.
    fn actions(&self, name: &str) -> Result<Tensor> {
        let (h, a) = (self.dims.action_horizon, self.dims.action_dim);
        let values = self.f.f32(name)?;
        if values.len() != self.len() * h * a {
            return Err(self.wrong(name));
        }
        Ok(self.gpu.upload_f32(&values, [self.len() * h, a]))
    }

    fn wrong(&self, name: &str) -> VerifyError {
        self.f.broken(format!("{name} has a wrong number of elements"))
    }

    /// Flow times of the loss, and x_t.
    fn noised(&self) -> Result<(Vec<f64>, Tensor, Tensor, Tensor)> {
        let (noise, actions) = (self.actions("forward:noise")?, self.actions("forward:actions")?);
        let time = self.f.f32("forward:time")?;
        if time.len() != self.len() {
            return Err(self.wrong("forward:time"));
        }
        let x = self.gpu.f32(noise.shape());
        flow::interpolate(
            self.gpu,
            &noise,
            &actions,
            &self.gpu.upload_f32(&time, [time.len()]),
            &x,
        );
        Ok((time.iter().map(|&t| t as f64).collect(), noise, actions, x))
    }

    fn read(&self, t: &Tensor) -> Result<Vec<f32>> {
        Ok(self.gpu.read_f32(t)?)
    }

    /// Columns `from..from + width` of a matrix.
    fn columns(&self, t: &Tensor, from: usize, width: usize) -> Result<Vec<f32>> {
        let values = self.read(t)?;
        Ok(values
            .chunks(t.dim(1))
            .flat_map(|row| row[from..from + width].to_vec())
            .collect())
    }
}

/// Every intermediate of one evaluation of the loss, with the whole last layer.
fn forward(p: &Policy<'_>, c: &mut Check<'_>) -> Result<()> {
    let (gpu, d, net) = (p.gpu, p.dims, p.net());
    let (b, h) = (p.len(), d.action_horizon);
    let layout = p.layout();
    let cache = p.cache(&layout);
    let prefix = p.prefix(&layout, &cache, Depth::Whole);
    let (time, noise, actions, x) = p.noised()?;
    let times = FlowTimes::new(gpu, &net, &time);
    let index = TimeIndex::new(gpu, &vec![h; b]);
    let rows = Rows::new(gpu, h, &layout.cached);
    let v = gpu.f32([b * h, d.action_dim]);
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
    let tape = tape.expect("a tape was asked for");

    let kept = |values: &[f32], shape: &[usize]| rows_of(&p.packed, values, shape);
    // Of suffix tensors [B, state + H, …]: state rows, action rows.
    let s = d.state_tokens();
    let state_rows: Vec<(usize, usize)> = (0..b * s).map(|i| (i, 0)).collect();
    let action_rows: Vec<(usize, usize)> = (0..b).flat_map(|i| (0..h).map(move |j| (i, s + j))).collect();
    let suffix_rows: Vec<(usize, usize)> = state_rows.iter().chain(&action_rows).copied().collect();
    let in_suffix = |values: &[f32], shape: &[usize]| rows_of(&suffix_rows, values, shape);
    let joined = |state: Option<&Tensor>, actions: &Tensor| -> Result<Vec<f32>> {
        let mut all = state.map_or(Ok(Vec::new()), |t| p.read(t))?;
        all.extend(p.read(actions)?);
        Ok(all)
    };

    let tokens = p.read(&prefix.tokens)?;
    c.forward("prefix_tokens", &tokens, kept)?;
    for (camera, name) in d.cameras.iter().enumerate() {
        // Pictures of absent cameras are not looked at.
        let t = d.image_tokens();
        let mine = |&&(_, at): &&(usize, usize)| at / t == camera && at < d.cameras.len() * t;
        let of_camera: Vec<(usize, usize)> = p
            .packed
            .iter()
            .filter(mine)
            .map(|&(b, at)| (b, at - camera * t))
            .collect();
        let width = d.language.width;
        let got: Vec<f32> = p
            .packed
            .iter()
            .zip(tokens.chunks(width))
            .filter(|(r, _)| mine(r))
            .flat_map(|(_, row)| row.to_vec())
            .collect();
        c.forward(&format!("vision_tokens/{name}"), &got, |v, shape| {
            rows_of(&of_camera, v, shape)
        })?;
    }
    if let Some(out) = &prefix.out {
        c.forward("prefix_out", &p.read(out)?, kept)?;
        c.forward("sample/prefix_out", &p.read(out)?, kept)?;
    }
    let prefix_tape = prefix.tape.as_ref().expect("a tape was asked for");
    for l in 0..d.depth {
        let (x, state) = prefix_tape.hidden(l).expect("the whole last layer was asked for");
        c.forward(&format!("hidden/layer{l}/prefix"), &p.read(x)?, kept)?;
        let actions = tape.layers.get(l + 1).map_or(&tape.last, |next| &next.x);
        c.forward(&format!("hidden/layer{l}/suffix"), &joined(state, actions)?, in_suffix)?;

        // Keys and values: lines of the cache are prefix, state of each sample.
        let heads = d.attention();
        let kv = heads.kv_width();
        let mut cached: Vec<(usize, usize)> = Vec::new();
        for (sample, run) in layout.cached.iter().enumerate() {
            cached.extend(p.packed.iter().filter(|r| r.0 == sample));
            let length = d.cameras.len() * d.image_tokens() + prompt_len(p)?;
            cached.extend((0..s).map(|_| (sample, length)));
            debug_assert!(cached.len() == run.row0 + run.rows);
        }
        let of_prefix = |part: usize| -> Result<Vec<f32>> {
            let lines = p.columns(&cache[l], part * kv, kv)?;
            let (mut out, mut line) = (Vec::new(), 0);
            for run in &layout.cached {
                out.extend_from_slice(&lines[line * kv..(line + run.rows - s) * kv]);
                line += run.rows;
            }
            Ok(out)
        };
        for (part, what) in ["k", "v"].into_iter().enumerate() {
            let mut got = p.columns(&cache[l], part * kv, kv)?;
            got.extend(p.columns(&tape.layers[l].qkv, heads.q_width() + part * kv, kv)?);
            let length = d.cameras.len() * d.image_tokens() + prompt_len(p)?;
            let all: Vec<_> = cached
                .iter()
                .copied()
                .chain(action_rows.iter().map(|&(b, j)| (b, length + j)))
                .collect();
            c.forward(&format!("kv/layer{l}/{what}"), &got, |v, shape| rows_of(&all, v, shape))?;
            c.forward(&format!("sample/kv/layer{l}/{what}"), &of_prefix(part)?, kept)?;
        }
    }
    // The final norm of the expert, on state and actions.
    let normed = |x: &Tensor, modulation: Modulation<'_>| {
        let y = gpu.f32(x.shape());
        rms_norm::forward(gpu, x, modulation, &y);
        y
    };
    let action_out = match (&net.params.expert_norm, times.last()) {
        (Norm::Adaptive(_), Some(table)) => normed(
            &tape.last,
            Modulation::Adaptive {
                table,
                groups: &index.groups,
            },
        ),
        (Norm::Plain(scale), _) => normed(&tape.last, Modulation::Plain(scale)),
        (Norm::Adaptive(_), None) => unreachable!("an adaptive norm comes with its table"),
    };
    let state_out = prefix_tape
        .hidden(d.depth - 1)
        .and_then(|(_, s)| s)
        .map(|s| match &net.params.expert_norm {
            Norm::Plain(scale) => normed(s, Modulation::Plain(scale)),
            Norm::Adaptive(_) => unreachable!("π₀.₅ has no state token"),
        });
    c.forward("suffix_out", &joined(state_out.as_ref(), &action_out)?, in_suffix)?;
    if let TimeKind::Modulation(m) = &times.kind {
        c.forward("adarms_cond", &p.read(m.condition())?, whole)?;
    }
    c.forward(
        "suffix_tokens",
        &joined(prefix_tape.state(), &tape.layers[0].x)?,
        in_suffix,
    )?;

    // Positions count what is valid: the layout's, and behind them the chunk's.
    let mut positions: Vec<f32> = gpu.read_u32(&layout.positions)?.into_iter().map(|x| x as f32).collect();
    positions.extend(gpu.read_u32(&rows.positions)?.into_iter().map(|x| x as f32));
    let length = d.cameras.len() * d.image_tokens() + prompt_len(p)?;
    let all: Vec<_> = p
        .packed
        .iter()
        .copied()
        .chain(suffix_rows.iter().map(|&(b, j)| (b, length + j)))
        .collect();
    c.one("forward", "positions", Kind::Exact, &positions, |v, shape| {
        rows_of(&all, v, shape)
    })?;

    // Loss.
    c.forward("x_t", &p.read(&x)?, whole)?;
    c.forward("v_t", &p.read(&v)?, whole)?;
    let velocity: Vec<f32> = p
        .read(&noise)?
        .iter()
        .zip(p.read(&actions)?)
        .map(|(n, a)| n - a)
        .collect();
    c.forward("u_t", &velocity, whole)?;
    let (error, ones) = (gpu.f32([b * h]), gpu.upload_f32(&vec![1.0; b * h], [b * h]));
    flow::velocity_loss(gpu, &v, &noise, &actions, &ones, 1.0, &error, None);
    let error = p.read(&error)?;
    c.forward("loss_per_step", &error, whole)?;
    let loss = error.iter().map(|&e| e as f64).sum::<f64>() / error.len() as f64;
    c.forward("loss", &[loss as f32], whole)
}

/// Prompt positions (L) of the group's tensors.
fn prompt_len(p: &Policy<'_>) -> Result<usize> {
    Ok(p.f.array("forward:obs/tokens")?.len() / p.len())
}

/// Gradients of the mean loss, by the path that training takes: keys and values only in the last layer.
fn loss_gradients(p: &Policy<'_>, c: &mut Check<'_>) -> Result<()> {
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
    let dactions = p.read(&back.dtokens)?;

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
    let dcache = p.cache(layout);
    let run = |(i, cached): (usize, &crate::model::layout::CachedRun)| KeyRun {
        k_row0: cached.row0,
        k_rows: cached.rows,
        queries: (0..repeats).map(|r| ((r * b + i) * h, h)).collect(),
    };
    let keys = KeyPlan::new(gpu, layout.cached.iter().enumerate().map(run).collect());
    back.finish(&keys, &dcache, Some(&p.grad_params));
    let (incoming, all) = (Incoming::default(), Trainable::ALL);
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
fn sample(p: &Policy<'_>, c: &mut Check<'_>) -> Result<()> {
    let (gpu, d, net) = (p.gpu, p.dims, p.net());
    let (b, h, a) = (p.len(), d.action_horizon, d.action_dim);
    let t = inputs::whole(p.f, "/euler_steps")?.max(1);
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
