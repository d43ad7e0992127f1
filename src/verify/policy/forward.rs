//! One evaluation of the flow loss.

use super::model::Policy;
use super::{Check, rows_of, whole};
use crate::gpu::Tensor;
use crate::model::bind::Norm;
use crate::model::flow_time::{FlowTimes, TimeKind};
use crate::model::layout::PrefixLayout;
use crate::model::prefix::Depth;
use crate::model::remat::Remat;
use crate::model::suffix::{self, Output, RowTimes, Rows};
use crate::model::suffix_backward::TimeIndex;
use crate::ops::flow;
use crate::ops::rms_norm::{self, Modulation};
use crate::verify::{Kind, Result};

/// Every intermediate of one evaluation of the loss, with the whole last layer.
pub(super) fn check(p: &Policy<'_>, c: &mut Check<'_>) -> Result<()> {
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
    }
    keys_and_values(p, c, &layout, &cache, &tape, &action_rows)?;
    // The final norm of the expert, on state and actions.
    let normed = |x: &Tensor, modulation: Modulation<'_>| {
        let y = gpu.alloc(net.dtype, x.shape());
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
    let length = p.prefix_len()?;
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
    c.data("x_t", &p.read(&x)?)?;
    c.forward("v_t", &p.read(&v)?, whole)?;
    let velocity: Vec<f32> = p
        .read(&noise)?
        .iter()
        .zip(p.read(&actions)?)
        .map(|(n, a)| n - a)
        .collect();
    c.data("u_t", &velocity)?;
    let (error, ones) = (gpu.f32([b * h]), gpu.upload_f32(&vec![1.0; b * h], [b * h]));
    flow::velocity_loss(gpu, &v, &noise, &actions, &ones, 1.0, &error, None);
    let error = p.read(&error)?;
    c.forward("loss_per_step", &error, whole)?;
    let loss = error.iter().map(|&e| e as f64).sum::<f64>() / error.len() as f64;
    c.forward("loss", &[loss as f32], whole)
}

/// Keys and values of every layer: lines of the cache are prefix, state of each sample; the actions' are in the tape.
fn keys_and_values(
    p: &Policy<'_>,
    c: &mut Check<'_>,
    layout: &PrefixLayout,
    cache: &[Tensor],
    tape: &suffix::Tape,
    action_rows: &[(usize, usize)],
) -> Result<()> {
    let (heads, s, length) = (p.dims.attention(), p.dims.state_tokens(), p.prefix_len()?);
    let kv = heads.kv_width();
    // Places in the group's tensors: of the prefix alone, and of everything in our order.
    let mut all: Vec<(usize, usize)> = Vec::new();
    for sample in 0..p.len() {
        all.extend(p.packed.iter().filter(|r| r.0 == sample));
        all.extend((0..s).map(|_| (sample, length)));
    }
    all.extend(action_rows.iter().map(|&(b, j)| (b, length + j)));
    for (l, (lines, actions)) in cache.iter().zip(&tape.layers).enumerate() {
        for (part, what) in ["k", "v"].into_iter().enumerate() {
            let mut got = p.columns(lines, part * kv, kv)?;
            let (mut of_prefix, mut line) = (Vec::new(), 0);
            for run in &layout.cached {
                of_prefix.extend_from_slice(&got[line * kv..(line + run.rows - s) * kv]);
                line += run.rows;
            }
            got.extend(p.columns(&actions.qkv, heads.q_width() + part * kv, kv)?);
            c.forward(&format!("kv/layer{l}/{what}"), &got, |v, shape| rows_of(&all, v, shape))?;
            c.forward(&format!("sample/kv/layer{l}/{what}"), &of_prefix, |v, shape| {
                rows_of(&p.packed, v, shape)
            })?;
        }
    }
    Ok(())
}
