//! Pictures, prompt and state: vision tower and language stream.

use super::list::{List, biased, residual};
use super::{PROMPT, Setting, attention, layout, rotation};
use crate::bench::attention::{AttentionCase, Direction};
use crate::bench::case::Op;
use crate::bench::moves::MoveKind;
use crate::bench::product::{Activation, Product};
use crate::bench::rows::RowKind;
use crate::model::layout::PrefixLayout;

/// Rank of `gemma_2b_lora`.
const LORA_RANK: usize = 16;

pub(super) fn prefix(list: &mut List, s: &Setting) {
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
