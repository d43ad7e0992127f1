//! What policy groups and training groups have in common: sizes, weights, observations.

use serde_json::Value;

use super::{Fixture, Result};
use crate::model::critic_networks::Network;
use crate::model::dims::{Adapters, CriticDims, Lora, Pi0Dims, StackDims};
use crate::model::layout::ObservationMasks;
use crate::model::params::{ParamStore, ParamTensor};
use crate::step::batch::{Observations, Pictures};

/// A whole number of the description.
pub(super) fn whole(f: &Fixture, pointer: &str) -> Result<usize> {
    let value = f.json.pointer(pointer).and_then(Value::as_u64);
    value
        .map(|v| v as usize)
        .ok_or_else(|| f.broken(format!("the description has no whole number at {pointer}")))
}

/// A whole number of the description that must not be zero.
pub(super) fn size(f: &Fixture, pointer: &str) -> Result<usize> {
    match whole(f, pointer)? {
        0 => Err(f.broken(format!("the number at {pointer} should be at least 1"))),
        n => Ok(n),
    }
}

/// A string of the description.
pub(super) fn text<'a>(f: &'a Fixture, pointer: &str) -> Result<&'a str> {
    let value = f.json.pointer(pointer).and_then(Value::as_str);
    value.ok_or_else(|| f.broken(format!("the description has no string at {pointer}")))
}

/// The policy's sizes, from `dims`.
pub(super) fn policy_dims(f: &Fixture) -> Result<Pi0Dims> {
    let n = |key: &str| size(f, &format!("/dims/{key}"));
    let cameras = f.json.pointer("/dims/cameras").and_then(Value::as_array);
    let cameras: Option<Vec<String>> =
        cameras.and_then(|names| names.iter().map(|c| c.as_str().map(String::from)).collect());
    let pi05 = f.json.pointer("/dims/pi05").and_then(Value::as_bool);
    let dims = Pi0Dims {
        image_size: n("image_size")?,
        patch: n("patch")?,
        vision: StackDims {
            width: n("vit_width")?,
            mlp: n("vit_mlp")?,
        },
        vision_depth: n("vit_depth")?,
        vision_heads: n("vit_heads")?,
        language: StackDims {
            width: n("vlm_width")?,
            mlp: n("vlm_mlp")?,
        },
        expert: StackDims {
            width: n("expert_width")?,
            mlp: n("expert_mlp")?,
        },
        depth: n("depth")?,
        heads: n("heads")?,
        kv_heads: n("kv_heads")?,
        head_dim: n("head_dim")?,
        vocab: n("vocab")?,
        max_token_len: n("max_token_len")?,
        cameras: cameras.ok_or_else(|| f.broken("dims.cameras should be a list of names".into()))?,
        action_dim: n("action_dim")?,
        action_horizon: n("action_horizon")?,
        pi05: pi05.ok_or_else(|| f.broken("dims.pi05 should be true or false".into()))?,
        lora: adapters(f)?,
    };
    match dims.problem() {
        Some(why) => Err(f.broken(format!("dims: {why}"))),
        None => Ok(dims),
    }
}

/// Low-rank adapters, from `dims.lora`, where there are any.
fn adapters(f: &Fixture) -> Result<Adapters> {
    let of = |stack: &str| -> Result<Option<Lora>> {
        let key = format!("/dims/lora/{stack}");
        match f.json.pointer(&key) {
            None => Ok(None),
            Some(_) => Ok(Some(Lora {
                rank: size(f, &format!("{key}/rank"))?,
                alpha: f.number(&format!("{key}/alpha"))?,
            })),
        }
    };
    Ok(Adapters {
        language: of("language")?,
        expert: of("expert")?,
    })
}

/// The critics' sizes, from `dims`.
pub(super) fn critic_dims(f: &Fixture) -> Result<CriticDims> {
    let hidden = f.json.pointer("/dims/critic_hidden").and_then(Value::as_array);
    let hidden: Option<Vec<usize>> =
        hidden.and_then(|widths| widths.iter().map(|w| w.as_u64().map(|w| w as usize)).collect());
    let hidden = hidden.filter(|widths| !widths.is_empty() && !widths.contains(&0));
    let dims = CriticDims {
        critics: size(f, "/dims/num_critics")?,
        hidden: hidden.ok_or_else(|| f.broken("dims.critic_hidden should be a list of widths".into()))?,
        network: Network::Mlp,
        feature_width: size(f, "/dims/vlm_width")?,
        real_action_dim: size(f, "/dims/real_action_dim")?,
        action_horizon: size(f, "/dims/action_horizon")?,
    };
    if dims.real_action_dim > size(f, "/dims/action_dim")? {
        return Err(f.broken("dims.real_action_dim should not be larger than dims.action_dim".into()));
    }
    Ok(dims)
}

/// A tensor of the group, held to the shape a parameter must have.
pub(super) fn parameter(f: &Fixture, prefix: &str, p: &ParamTensor) -> Result<Vec<f32>> {
    let key = format!("{prefix}{}", p.name);
    let shape = f.shape(&key)?;
    if shape != p.shape {
        return Err(f.broken(format!("{key} is {shape:?}, its dims ask for {:?}", p.shape)));
    }
    f.f32(&key)
}

/// All parameters of `store` from tensors `prefix` + name; nothing is written if one is missing.
pub(super) fn parameters<'a>(
    f: &Fixture,
    prefix: &str,
    tensors: impl Iterator<Item = &'a ParamTensor>,
) -> Result<std::collections::HashMap<String, Vec<f32>>> {
    tensors
        .map(|p| Ok((p.name.clone(), parameter(f, prefix, p)?)))
        .collect()
}

/// Reads a store back as name → values.
pub(super) fn read(gpu: &crate::gpu::Gpu, store: &ParamStore) -> Result<std::collections::HashMap<String, Vec<f32>>> {
    Ok(store.read(gpu)?)
}

/// B observations, from `{prefix}images/CAMERA`, `image_masks/CAMERA`, `state`, `tokens`, `token_mask`.
pub(super) fn observations(f: &Fixture, prefix: &str, d: &Pi0Dims) -> Result<Observations> {
    let key = |name: &str| format!("{prefix}{name}");
    let state = f.f32(&key("state"))?;
    let b = state.len() / d.action_dim;
    let (tokens, valid) = (f.i32(&key("tokens"))?, f.bool(&key("token_mask"))?);
    let length = tokens.len() / b.max(1);
    let fits = state.len() == b * d.action_dim && b > 0 && tokens.len() == b * length && valid.len() == tokens.len();
    if !fits || length > d.max_token_len {
        let sizes = (state.len(), tokens.len(), valid.len());
        return Err(f.broken(format!(
            "{prefix}state, tokens and token_mask have {sizes:?} elements, which do not fit together"
        )));
    }
    let area = d.image_size * d.image_size * 3;
    let mut cameras = vec![Vec::new(); b];
    let mut pictures: Vec<Vec<f32>> = Vec::new();
    for camera in &d.cameras {
        let present = f.bool(&key(&format!("image_masks/{camera}")))?;
        let name = key(&format!("images/{camera}"));
        let values = f.f32(&name)?;
        if values.len() != b * area || present.len() != b {
            return Err(f.broken(format!(
                "{name} or its mask does not hold {b} pictures of {0} x {0}",
                d.image_size
            )));
        }
        present.iter().zip(&mut cameras).for_each(|(&on, all)| all.push(on));
        pictures.push(values);
    }
    let prompts = (0..b).map(|i| {
        let line = i * length..(i + 1) * length;
        let kept = tokens[line.clone()].iter().zip(&valid[line]).filter(|(_, on)| **on);
        kept.map(|(&token, _)| u32::try_from(token).ok().filter(|&t| (t as usize) < d.vocab))
            .collect::<Option<Vec<u32>>>()
    });
    let prompts: Option<Vec<Vec<u32>>> = prompts.collect();
    let prompts = prompts.ok_or_else(|| f.broken(format!("{prefix}tokens has ids outside the vocabulary")))?;
    let masks = ObservationMasks { cameras, prompts };
    let picture = |(i, c): (usize, usize)| pictures[c][i * area..(i + 1) * area].to_vec();
    let present = masks.pictures().into_iter().flat_map(picture).collect();
    Ok(Observations {
        masks,
        pictures: Pictures::Floats(present),
        state,
    })
}

/// Rows of `[B, L, …]` prefix tensors that stand for packed rows, in their order: `(sample, position)`.
pub(super) fn packed_positions(d: &Pi0Dims, masks: &ObservationMasks, valid: &[bool]) -> Vec<(usize, usize)> {
    let length = valid.len() / masks.len().max(1);
    let t = d.image_tokens();
    let mut rows = Vec::new();
    for (b, cameras) in masks.cameras.iter().enumerate() {
        for (c, _) in cameras.iter().enumerate().filter(|(_, on)| **on) {
            rows.extend((c * t..(c + 1) * t).map(|p| (b, p)));
        }
        let prompt = d.cameras.len() * t..length;
        rows.extend(prompt.filter(|p| valid[b * length + p]).map(|p| (b, p)));
    }
    rows
}
