//! The sizes of a model, from the shapes of its tensors: what is converted needs no configuration.

use super::error::{CheckpointError, Result};
use super::names::EMBEDDING;
use super::weights::Weights;
use crate::model::dims::{Adapters, CAMERAS, Lora, PATCH, Pi0Dims, StackDims};

const VISION: &str = "paligemma_with_expert.paligemma.model.vision_tower.vision_model.";
const LANGUAGE: &str = "paligemma_with_expert.paligemma.model.language_model.";
const EXPERT: &str = "paligemma_with_expert.gemma_expert.model.";

impl Weights {
    /// Sizes of the π₀ that these weights are. What no weight depends on (cameras, prompt length, horizon, how the
    /// attention's width is divided into heads) is a guess.
    ///
    /// # Errors
    /// Weights of another model. Whether none is missing says [`Weights::check`].
    pub fn dims(&self) -> Result<Pi0Dims> {
        let pi05 = self.architecture().map(|name| name != "π₀");
        let dims = pi05
            .and_then(|pi05| self.sizes(pi05))
            .filter(|dims| dims.problem().is_none());
        dims.ok_or_else(|| CheckpointError::NotPi0 {
            path: self.path().to_owned(),
            reason: "holds neither π₀ nor π₀.₅; give weights of one of them".into(),
        })
    }

    fn sizes(&self, pi05: bool) -> Option<Pi0Dims> {
        let shape = |name: String| self.lookup(&name).map(|(_, stored)| &stored.shape[..]);
        let matrix = |name: String| match shape(name)? {
            [rows, columns] => Some((*rows, *columns)),
            _ => None,
        };
        let depth = |of: &dyn Fn(usize) -> String| (0..).take_while(|i| shape(of(*i)).is_some()).count();
        let (tokens, width) = matrix(format!("{VISION}embeddings.position_embedding.weight"))?;
        let patch = match shape(format!("{VISION}embeddings.patch_embedding.weight"))? {
            [_, _, height, _] => *height,
            _ => PATCH,
        };
        let vision = |i: usize| format!("{VISION}encoder.layers.{i}.mlp.fc1.weight");
        let mlp = |stack: &str, i: usize| format!("{stack}layers.{i}.mlp.up_proj.weight");
        let stack = |name: &str| {
            let (mlp, width) = matrix(mlp(name, 0))?;
            Some(StackDims { width, mlp })
        };
        let (q, _) = matrix(format!("{LANGUAGE}layers.0.self_attn.q_proj.weight"))?;
        let (kv, _) = matrix(format!("{LANGUAGE}layers.0.self_attn.k_proj.weight"))?;
        Some(Pi0Dims {
            image_size: tokens.isqrt() * patch,
            patch,
            vision: StackDims {
                width,
                mlp: matrix(vision(0))?.0,
            },
            vision_depth: depth(&vision),
            vision_heads: 1,
            language: stack(LANGUAGE)?,
            expert: stack(EXPERT)?,
            depth: depth(&|i| mlp(LANGUAGE, i)),
            heads: q.checked_div(kv)?,
            kv_heads: 1,
            head_dim: kv,
            vocab: matrix(EMBEDDING.into())?.0,
            max_token_len: 1,
            cameras: CAMERAS.map(String::from).to_vec(),
            action_dim: matrix("action_in_proj.weight".into())?.1,
            action_horizon: 1,
            pi05,
            lora: self.adapters(),
        })
    }

    /// The adapters that are there. No weight says what α is; openpi's models have α = r.
    fn adapters(&self) -> Adapters {
        let of = |stack: &str| {
            let (_, stored) = self.lookup(&format!("{stack}layers.0.mlp.down_proj.lora_a"))?;
            let rank = *stored.shape.first()?;
            Some(Lora {
                rank,
                alpha: rank as f64,
            })
        };
        Adapters {
            language: of(LANGUAGE),
            expert: of(EXPERT),
        }
    }
}
