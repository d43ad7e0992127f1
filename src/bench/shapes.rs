//! Which cases there are: the shapes of the step, from the model's own dimensions and the layouts the step makes of a
//! batch, and sweeps over sizes.

mod list;
mod prefix;
mod suffix;

use super::attention::{AttentionCase, Direction};
use super::case::{Case, Op};
use super::moves::MoveKind;
use super::product::{Form, Product};
use super::rotation::Rotation;
use super::rows::RowKind;
use super::updates::{UpdateCase, UpdateKind};
use crate::config::{Config, ConfigError};
use crate::gpu::{Caps, Gpu};
use crate::model::dims::{CriticDims, Pi0Dims, StackDims};
use crate::model::layout::{ObservationMasks, PrefixLayout};
use crate::ops::attention::{KeyRun, Plan};
use list::List;
use prefix::prefix;
use suffix::suffix;

/// Tokens of a prompt, as `acrlpd plan` assumes them.
const PROMPT: usize = 8;
/// The preset whose numbers of candidates, critics and Euler steps are measured.
const PRESET: &str = "rl_fold_box";

/// One setting of the step.
struct Setting {
    dims: Pi0Dims,
    critic: CriticDims,
    batch: usize,
    /// N and T.
    candidates: usize,
    euler_steps: usize,
}

/// All cases: every op on every shape of the step at batches of 8 and 32 and horizons of 20 and 50, and sweeps. `quick`
/// scales the model to what a CPU computes in a minute: widths to an eighth, pictures to 16 tokens, two samples, a horizon
/// of 10; the heads keep their width, because that decides which kernels run.
///
/// # Errors
/// A preset that cannot be read.
pub fn cases(quick: bool) -> Result<Vec<Case>, ConfigError> {
    let config = Config::load(PRESET)?;
    let (batches, horizons): (&[usize], &[usize]) = if quick { (&[2], &[10]) } else { (&[8, 32], &[20, 50]) };
    let mut list = List::default();
    for &batch in batches {
        for (i, &horizon) in horizons.iter().enumerate() {
            let mut critic = config.critic_dims();
            let mut dims = Pi0Dims::full(horizon, false);
            if quick {
                scale(&mut dims, &mut critic);
            }
            critic.action_horizon = horizon;
            critic.feature_width = dims.language.width;
            let (candidates, euler_steps) = (config.acrlpd.num_action_samples, config.acrlpd.diffusion_steps);
            let setting = Setting {
                dims,
                critic,
                batch,
                candidates,
                euler_steps,
            };
            // A prefix knows no horizon.
            if i == 0 {
                list.at(format!("b{batch}"), |list| prefix(list, &setting));
            }
            list.at(format!("b{batch}.h{horizon}"), |list| suffix(list, &setting));
        }
    }
    sweeps(&mut list, quick);
    Ok(list.cases)
}

fn scale(dims: &mut Pi0Dims, critic: &mut CriticDims) {
    let eighth = |d: StackDims| StackDims {
        width: d.width / 8,
        mlp: d.mlp / 8,
    };
    (dims.vision, dims.language, dims.expert) = (eighth(dims.vision), eighth(dims.language), eighth(dims.expert));
    (dims.vision_heads, dims.heads, dims.vocab) = (dims.vision_heads / 8, dims.heads / 4, 1024);
    dims.image_size = 4 * dims.patch;
    critic.hidden.iter_mut().for_each(|width| *width /= 4);
}

/// Vision, language and state rows of a batch in which every camera and token is there.
fn layout(s: &Setting) -> PrefixLayout {
    let masks = ObservationMasks {
        cameras: vec![vec![true; s.dims.cameras.len()]; s.batch],
        prompts: vec![(0..PROMPT as u32).collect(); s.batch],
    };
    PrefixLayout::new(&Gpu::null(Caps::planning()), &s.dims, &masks, 0)
}

fn attention(heads: crate::ops::rope::Heads, plan: &Plan, runs: Vec<KeyRun>, cached: bool) -> AttentionCase {
    let plan = plan.sequences().to_vec();
    let longest = plan.iter().map(|s| s.q_rows).max().unwrap_or(0);
    AttentionCase {
        direction: Direction::Forward,
        q_heads: heads.q,
        kv_heads: heads.kv,
        head_dim: heads.dim,
        sequences: plan.iter().filter(|s| s.q_rows == longest).count(),
        queries: longest,
        keys: plan.iter().map(|s| s.k_rows + s.own_rows).max().unwrap_or(0),
        cached,
        plan,
        runs,
    }
}

fn rotation(s: &Setting, rows: usize, positions: usize, backward: bool, cached: bool) -> Op {
    let heads = s.dims.attention();
    Op::Rope(Rotation {
        rows,
        q_heads: heads.q,
        kv_heads: heads.kv,
        head_dim: heads.dim,
        backward,
        cached,
        positions,
    })
}

/// Square products, and memory-bound ops, from small to large.
fn sweeps(list: &mut List, quick: bool) {
    let edges: &[usize] = if quick {
        &[64, 128, 256, 512]
    } else {
        &[256, 512, 1024, 2048, 4096, 8192]
    };
    for &n in edges {
        list.place = n.to_string();
        for (name, form) in [("nt", Form::Nt), ("nn", Form::Nn), ("tn", Form::Tn)] {
            list.product(&format!("square/{name}"), Product::new(form, n, n, n));
        }
    }
    // Rows of a language stream's width.
    let width = if quick { 256 } else { 2048 };
    let sizes: &[usize] = if quick { &[1, 4] } else { &[1, 4, 16, 64, 256, 1024] };
    for &megabytes in sizes {
        let rows = (megabytes << 20) / 4 / width;
        list.place = format!("{megabytes}MB");
        list.moved("copy/sweep", MoveKind::Copy, rows, width, 1);
        list.moved("fill/sweep", MoveKind::Fill, rows, width, 1);
        list.rows("rms_norm/sweep", RowKind::RmsNorm, rows, width);
        list.rows("geglu/sweep", RowKind::Geglu, rows / 2, width);
        list.push(
            "adamw/sweep",
            Op::Update(UpdateCase {
                op: UpdateKind::Adamw,
                elements: rows * width / 4,
            }),
        );
    }
}
