//! Which cases there are: the shapes of the step, from the model's own dimensions and the layouts the step makes of a
//! batch, and sweeps over sizes.

use super::attention::{AttentionCase, Direction};
use super::case::{Case, Op};
use super::losses::{Loss, LossKind};
use super::moves::{Move, MoveKind};
use super::product::{Activation, Form, Product};
use super::rotation::Rotation;
use super::rows::{RowKind, RowOp};
use super::updates::{UpdateCase, UpdateKind};
use crate::config::{Config, ConfigError};
use crate::gpu::{Caps, Gpu};
use crate::model::dims::{CriticDims, Pi0Dims, StackDims};
use crate::model::layout::{CachedRun, ObservationMasks, PrefixLayout};
use crate::model::suffix::Rows;
use crate::ops::attention::{KeyRun, Plan};
use crate::ops::blockwise;

/// Tokens of a prompt, as `acrlpd plan` assumes them.
const PROMPT: usize = 8;
/// Rank of `gemma_2b_lora`.
const LORA_RANK: usize = 16;
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

#[derive(Default)]
struct List {
    cases: Vec<Case>,
    /// The last part of the names.
    place: String,
}

impl List {
    fn at(&mut self, place: String, cases: impl FnOnce(&mut List)) {
        self.place = place;
        cases(self);
    }

    fn push(&mut self, name: &str, op: Op) {
        let name = format!("{name}/{}", self.place);
        self.cases.push(Case { name, op });
    }

    fn product(&mut self, name: &str, product: Product) {
        self.push(&format!("product/{name}"), Op::Product(product));
    }

    /// `y = x Wᵀ`, and its gradients, for `rows` rows.
    fn linear(&mut self, name: &str, rows: usize, inputs: usize, outputs: usize, change: impl Fn(Product) -> Product) {
        self.product(
            &format!("{name}/forward"),
            change(Product::new(Form::Nt, rows, outputs, inputs)),
        );
        self.product(&format!("{name}/dx"), Product::new(Form::Nn, rows, inputs, outputs));
        self.product(&format!("{name}/dw"), Product::new(Form::Tn, outputs, inputs, rows));
    }

    fn rows(&mut self, name: &str, op: RowKind, rows: usize, width: usize) {
        self.push(name, Op::Rows(RowOp { op, rows, width }));
    }

    fn moved(&mut self, name: &str, op: MoveKind, rows: usize, width: usize, parts: usize) {
        let op = Op::Move(Move { op, rows, width, parts });
        self.push(name, op);
    }

    fn updates(&mut self, name: &str, elements: usize) {
        for (op, kind) in [
            ("adamw", UpdateKind::Adamw),
            ("lion", UpdateKind::Lion),
            ("soft_update", UpdateKind::SoftUpdate),
            ("norm", UpdateKind::Norm),
            ("clip", UpdateKind::Clip),
        ] {
            self.push(&format!("{op}/{name}"), Op::Update(UpdateCase { op: kind, elements }));
        }
        // Whole blocks, as stores have them.
        let elements = elements.next_multiple_of(blockwise::BLOCK);
        let op = UpdateKind::Blockwise;
        self.push(&format!("blockwise/{name}"), Op::Update(UpdateCase { op, elements }));
    }
}

fn biased(p: Product) -> Product {
    Product { bias: true, ..p }
}

fn residual(p: Product) -> Product {
    Product { residual: true, ..p }
}

/// Vision, language and state rows of a batch in which every camera and token is there.
fn layout(s: &Setting) -> PrefixLayout {
    let masks = ObservationMasks {
        cameras: vec![vec![true; s.dims.cameras.len()]; s.batch],
        prompts: vec![(0..PROMPT as u32).collect(); s.batch],
    };
    PrefixLayout::new(&Gpu::null(Caps::planning()), &s.dims, &masks, 0)
}

fn prefix(list: &mut List, s: &Setting) {
    let (d, layout) = (&s.dims, layout(s));
    let (v, l, heads) = (d.vision, d.language, d.attention());
    let (pixels, tokens) = (3 * d.patch * d.patch, layout.images.rows());
    let pictures = tokens / d.image_tokens();
    list.linear("vision.patch", tokens, pixels, v.width, biased);
    list.linear("vision.qkv", tokens, v.width, 3 * v.width, biased);
    list.linear("vision.out", tokens, v.width, v.width, |p| residual(biased(p)));
    list.linear("vision.fc1", tokens, v.width, v.mlp, |p| Product {
        activation: Activation::Gelu,
        keep: true,
        ..biased(p)
    });
    list.linear("vision.fc2", tokens, v.mlp, v.width, |p| residual(biased(p)));
    list.linear("vision.projector", tokens, v.width, l.width, biased);
    list.linear("language.qkv", layout.rows, l.width, heads.fused(), |p| p);
    list.linear("language.kv", layout.rows, l.width, 2 * heads.kv_width(), |p| p);
    list.linear("language.out", layout.rows, heads.q_width(), l.width, residual);
    list.linear("language.gate_up", layout.rows, l.width, 2 * l.mlp, |p| p);
    list.linear("language.down", layout.rows, l.mlp, l.width, residual);

    for (name, attention) in [
        ("attention/vision", vision_attention(s, &layout)),
        ("attention/prefix", prefix_attention(s, &layout)),
    ] {
        for (direction, word) in [(Direction::Forward, "forward"), (Direction::Backward, "backward")] {
            let case = AttentionCase {
                direction,
                ..attention.clone()
            };
            list.push(&format!("{name}/{word}"), Op::Attention(case));
        }
    }
    for (name, kind) in [
        ("rms_norm/language/forward", RowKind::RmsNorm),
        ("rms_norm/language/backward", RowKind::RmsNormBackward),
        ("rms_norm/language/scale", RowKind::RmsNormScale),
    ] {
        list.rows(name, kind, layout.rows, l.width);
    }
    for (name, kind) in [
        ("layer_norm/vision/forward", RowKind::LayerNorm),
        ("layer_norm/vision/backward", RowKind::LayerNormBackward),
        ("layer_norm/vision/params", RowKind::LayerNormParams),
        ("column_sum/vision.width", RowKind::ColumnSum),
    ] {
        list.rows(name, kind, tokens, v.width);
    }
    list.rows("geglu/language/forward", RowKind::Geglu, layout.rows, l.mlp);
    list.rows("geglu/language/backward", RowKind::GegluBackward, layout.rows, l.mlp);
    list.rows("gelu/vision/backward", RowKind::GeluBackward, tokens, v.mlp);
    list.rows("column_sum/vision.mlp", RowKind::ColumnSum, tokens, v.mlp);
    // What attention over written-out scores would make of one sample.
    let (scores, keys) = (heads.q * layout.samples[0].1, layout.samples[0].1);
    list.rows("softmax/prefix/forward", RowKind::Softmax, scores, keys);
    list.rows("softmax/prefix/backward", RowKind::SoftmaxBackward, scores, keys);
    for (name, backward) in [("rope/language/forward", false), ("rope/language/backward", true)] {
        list.push(
            name,
            rotation(s, layout.rows + layout.states, layout.samples[0].1 + 1, backward, true),
        );
    }
    let prompt = s.batch * PROMPT;
    list.moved("embedding/forward", MoveKind::Embedding, prompt, l.width, d.vocab);
    list.moved(
        "embedding/backward",
        MoveKind::EmbeddingBackward,
        prompt,
        l.width,
        d.vocab,
    );
    list.moved("patch_cut", MoveKind::PatchCut, pictures, d.image_size, d.patch);
    list.moved("image", MoveKind::Image, pictures, d.image_size, 1);
    // The output projection's adapter has a B a head.
    for (name, op) in [("forward", MoveKind::HeadSum), ("backward", MoveKind::HeadSumBackward)] {
        list.moved(&format!("head_sum/{name}"), op, l.width, LORA_RANK, heads.q);
    }
    list.moved("gather", MoveKind::Gather, tokens, l.width, 1);
    list.moved("scatter", MoveKind::Scatter, tokens, l.width, 1);
    list.moved("mean_pool/forward", MoveKind::MeanPool, layout.rows, l.width, s.batch);
    list.moved(
        "mean_pool/backward",
        MoveKind::MeanPoolBackward,
        layout.rows,
        l.width,
        s.batch,
    );
    // One layer of the language stream.
    list.updates("language", l.width * (heads.fused() + heads.q_width() + 3 * l.mlp + 2));
}

fn vision_attention(s: &Setting, layout: &PrefixLayout) -> AttentionCase {
    let (plan, keys) = layout.images.plans();
    attention(s.dims.vision_attention(), plan, keys.runs().to_vec(), false)
}

fn prefix_attention(s: &Setting, layout: &PrefixLayout) -> AttentionCase {
    attention(s.dims.attention(), &layout.plan, layout.keys.runs().to_vec(), true)
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

fn suffix(list: &mut List, s: &Setting) {
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
