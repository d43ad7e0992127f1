//! Actions: the expert's Euler steps and their replay, critics, losses.

use super::list::{List, biased};
use super::{Setting, attention, layout, rotation};
use crate::bench::attention::{AttentionCase, Direction};
use crate::bench::case::Op;
use crate::bench::losses::{Loss, LossKind};
use crate::bench::moves::MoveKind;
use crate::bench::product::{Form, Product};
use crate::bench::rows::RowKind;
use crate::gpu::{Caps, Gpu};
use crate::model::layout::CachedRun;
use crate::model::suffix::Rows;
use crate::ops::attention::KeyRun;

pub(super) fn suffix(list: &mut List, s: &Setting) {
    let (d, c) = (&s.dims, &s.critic);
    let (e, heads, h) = (d.expert, d.attention(), d.action_horizon);
    let gpu = Gpu::null(Caps::planning());
    let cached = layout(s).cached;
    // Sequences of the Euler steps (candidates and target), of the replay (all steps of the winner, and cloning), and of
    // one pull of the chain.
    let rows = |repeats: usize| {
        let runs: Vec<CachedRun> = (0..repeats).flat_map(|_| cached.iter().copied()).collect();
        Rows::new(&gpu, h, &runs)
    };
    let (euler, replay, pull) = (rows(s.candidates + 1), rows(s.euler_steps + 1), rows(1));
    for (name, inputs, outputs, added) in [
        ("expert.qkv", e.width, heads.fused(), false),
        ("expert.out", heads.q_width(), e.width, true),
        ("expert.gate_up", e.width, 2 * e.mlp, false),
        ("expert.down", e.mlp, e.width, true),
        ("expert.time", e.width, e.width, false),
    ] {
        for (what, rows) in [("euler", euler.len), ("replay", replay.len)] {
            let product = Product::new(Form::Nt, rows, outputs, inputs);
            list.product(
                &format!("{name}/{what}"),
                Product {
                    residual: added,
                    ..product
                },
            );
        }
        list.product(&format!("{name}/dx"), Product::new(Form::Nn, pull.len, inputs, outputs));
        list.product(
            &format!("{name}/dw"),
            Product::new(Form::Tn, outputs, inputs, replay.len),
        );
    }
    list.product(
        "action.in/euler",
        biased(Product::new(Form::Nt, euler.len, e.width, d.action_dim)),
    );
    list.product(
        "action.out/euler",
        biased(Product::new(Form::Nt, euler.len, d.action_dim, e.width)),
    );
    let rated = s.batch * s.candidates;
    let mut below = c.actions();
    for (i, &width) in c.hidden.iter().enumerate() {
        let member = |form, m, n, k| Product {
            batch: c.critics,
            f32: true,
            ..Product::new(form, m, n, k)
        };
        let name = format!("critic.layer{i}");
        list.product(
            &format!("{name}/forward"),
            biased(member(Form::Nt, rated, width, below)),
        );
        list.product(&format!("{name}/dx"), member(Form::Nn, s.batch, below, width));
        list.product(&format!("{name}/dw"), member(Form::Tn, width, below, s.batch));
        below = width;
    }
    list.rows(
        "layer_norm/critic/forward",
        RowKind::LayerNormRelu,
        c.critics * rated,
        below,
    );

    let base = attention(heads, &euler.plan, Vec::new(), true);
    list.push("attention/suffix.euler/forward", Op::Attention(base));
    let base = attention(heads, &replay.plan, Vec::new(), true);
    list.push("attention/suffix.replay/forward", Op::Attention(base.clone()));
    let own = |i: usize| KeyRun {
        k_row0: i * h,
        k_rows: h,
        queries: vec![(i * h, h)],
    };
    let one = AttentionCase {
        direction: Direction::Backward,
        ..attention(heads, &pull.plan, (0..s.batch).map(own).collect(), true)
    };
    list.push("attention/suffix.pull/backward", Op::Attention(one));
    let seen = |(i, run): (usize, &CachedRun)| KeyRun {
        k_row0: run.row0,
        k_rows: run.rows,
        queries: (0..=s.euler_steps).map(|t| ((t * s.batch + i) * h, h)).collect(),
    };
    let all = AttentionCase {
        direction: Direction::BackwardKeys,
        plan: Vec::new(),
        runs: cached.iter().enumerate().map(seen).collect(),
        ..base
    };
    list.push("attention/suffix.cache/backward_keys", Op::Attention(all));

    for (name, kind, rows) in [
        ("rms_norm/expert/euler", RowKind::RmsNorm, euler.len),
        ("rms_norm/expert/backward", RowKind::RmsNormBackward, pull.len),
        ("rms_norm/expert/scale", RowKind::RmsNormScale, replay.len),
        ("rms_norm/expert/adaptive", RowKind::RmsNormAdaptive, euler.len),
        ("gated_residual/forward", RowKind::GatedResidual, euler.len),
        ("gated_residual/backward", RowKind::GatedResidualBackward, pull.len),
        ("swish/forward", RowKind::Swish, replay.len),
        ("swish/backward", RowKind::SwishBackward, pull.len),
    ] {
        list.rows(name, kind, rows, e.width);
    }
    list.rows("geglu/expert/euler", RowKind::Geglu, euler.len, e.mlp);
    list.rows("geglu/expert/backward", RowKind::GegluBackward, pull.len, e.mlp);
    let positions = cached[0].rows + h;
    list.push("rope/expert/euler", rotation(s, euler.len, positions, false, false));
    list.push("rope/expert/backward", rotation(s, pull.len, positions, true, false));
    list.moved(
        "copy_columns/actions",
        MoveKind::CopyColumns,
        rated * h,
        d.action_dim,
        c.real_action_dim,
    );
    for (name, op) in [
        ("flow_interpolate", LossKind::FlowInterpolate),
        ("flow_loss", LossKind::FlowLoss),
        ("flow_scaled", LossKind::FlowScaled),
        ("flow_joint_errors", LossKind::FlowJointErrors),
        ("ensemble/forward", LossKind::Ensemble),
        ("ensemble/backward", LossKind::EnsembleBackward),
        ("best_of_n", LossKind::BestOfN),
        ("gather_trajectories", LossKind::GatherTrajectories),
        ("td_loss", LossKind::TdLoss),
        ("entropy", LossKind::Entropy),
        ("smoothness", LossKind::Smoothness),
        ("weighted_sum", LossKind::WeightedSum),
    ] {
        let loss = Loss {
            op,
            batch: s.batch,
            candidates: s.candidates,
            critics: c.critics,
            horizon: h,
            action_dim: d.action_dim,
            euler_steps: s.euler_steps,
        };
        list.push(name, Op::Loss(loss));
    }
}
