//! Every choice a run makes about its data.

use super::chunks::{Boundary, ChunkRule};
use super::labels::{EpisodeEnd, RewardMode};
use super::repack::{Parts, Vector};
use super::transforms::{Kind, NormKind};
use super::{DataError, Dataset};

/// How a dataset becomes batches. Plain data; [`DataSpec::check`] says whether it fits a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSpec {
    /// The model's cameras in the model's order, and the dataset feature each one shows.
    pub cameras: Vec<CameraSpec>,
    /// Dataset features of the robot state, such as `observation.state`.
    pub state_key: Parts,
    /// Dataset features of the action, such as `action`.
    pub action_key: Parts,
    /// S: images are letterboxed to S x S pixels.
    pub image_size: usize,
    /// A: width of state and actions in the model; narrower ones are zero padded after normalisation.
    pub action_dim: usize,
    /// Width of the dataset's action: how many of the A coordinates mean something.
    pub real_action_dim: usize,
    /// H: steps of an action chunk, the offset of the next observation, and the power of the discount.
    pub horizon: usize,
    /// Discount of one step, in (0, 1].
    pub discount: f64,
    /// What becomes of chunks that reach over the end of an episode.
    pub boundary: Boundary,
    /// How the last frame ends an episode where no done column says so.
    pub episode_end: EpisodeEnd,
    /// Where rewards come from.
    pub reward_mode: RewardMode,
    /// The reward of a success under [`RewardMode::Terminal`], before scaling.
    pub terminal_reward: f32,
    /// Factor on every reward.
    pub reward_scale: f32,
    /// Success of the episodes of a dataset without success and reward columns (demonstrations: `Some(true)`); `None`
    /// refuses such a dataset.
    pub default_success: Option<bool>,
    /// The robot's own transforms of state and action, in order.
    pub transforms: Vec<Kind>,
    /// Coordinates in which actions are relative to the chunk's first state (`use_delta_joint_actions`); `None`: none.
    pub delta_mask: Option<Vec<bool>>,
    /// Which statistics normalise state and actions.
    pub norm: NormKind,
    /// Where prompts come from.
    pub prompt: PromptSource,
    /// Write the state into the prompt (π₀.₅).
    pub state_in_prompt: bool,
    /// L: tokens of a prompt, padding included.
    pub token_len: usize,
}

/// One camera of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraSpec {
    /// The model's name for it, such as `base_0_rgb`.
    pub model: String,
    /// The dataset feature that fills it; `None`: the robot lacks it, so it is black and masked.
    pub dataset: Option<String>,
}

/// Where the text of a prompt comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PromptSource {
    /// The task of the frame (openpi's `PromptFromLeRobotTask`).
    Task,
    /// This text for every frame (openpi's `InjectDefaultPrompt` alone).
    Text(String),
    /// The task of the frame, or this text where it is empty.
    TaskOr(String),
}

impl PromptSource {
    /// The prompt of a frame.
    ///
    /// # Errors
    /// [`DataError::NoPrompt`] where the task is empty and nothing stands in for it.
    pub fn text<'a>(&'a self, dataset: &'a dyn Dataset, frame: usize) -> Result<&'a str, DataError> {
        match self {
            PromptSource::Text(text) => Ok(text),
            PromptSource::Task | PromptSource::TaskOr(_) => match (dataset.task(frame)?, self) {
                (task, _) if !task.trim().is_empty() => Ok(task),
                (_, PromptSource::TaskOr(text)) => Ok(text),
                _ => Err(DataError::NoPrompt { frame }),
            },
        }
    }
}

impl DataSpec {
    /// The part that cuts chunks.
    pub fn chunk_rule(&self) -> ChunkRule {
        ChunkRule {
            horizon: self.horizon,
            discount: self.discount,
            boundary: self.boundary,
        }
    }

    /// Whether the settings make sense together and fit `dataset`; returns how its state and action are read, which
    /// are finite throughout.
    ///
    /// # Errors
    /// [`DataError::Spec`] names the setting; unknown features and cameras list what exists; NaN names file and row.
    pub fn check(&self, dataset: &dyn Dataset) -> Result<(Vector, Vector), DataError> {
        let (state, action) = self.check_vectors(dataset)?;
        for (field, value) in [
            ("image_size", self.image_size),
            ("token_len", self.token_len),
            ("cameras", self.cameras.len()),
        ] {
            require(value > 0, field, || "it must not be 0".to_owned())?;
        }
        for key in self.cameras.iter().filter_map(|c| c.dataset.as_deref()) {
            if !dataset.info().cameras().any(|c| c == key) {
                return Err(DataError::UnknownCamera {
                    root: dataset.info().root.clone(),
                    key: key.to_owned(),
                    available: super::dataset::quoted(dataset.info().cameras()),
                });
            }
        }
        require(self.discount > 0.0 && self.discount <= 1.0, "discount", || {
            format!("{} is not in (0, 1]", self.discount)
        })?;
        for (field, value) in [
            ("reward_scale", self.reward_scale),
            ("terminal_reward", self.terminal_reward),
        ] {
            require(value.is_finite(), field, || {
                format!("{value} is not a number to learn from")
            })?;
        }
        for (field, vector) in [("data.state_key", &state), ("data.action_key", &action)] {
            require(vector.width() <= self.action_dim, field, || {
                format!(
                    "it is {} wide, but the model takes {} (model.action_dim)",
                    vector.width(),
                    self.action_dim
                )
            })?;
        }
        Ok((state, action))
    }

    /// The part of [`DataSpec::check`] that norm stats need: horizon, features and the transforms on them.
    pub fn check_vectors(&self, dataset: &dyn Dataset) -> Result<(Vector, Vector), DataError> {
        require(self.horizon > 0, "horizon", || {
            "a chunk has at least one step".to_owned()
        })?;
        let state = self.state_key.find("data.state_key", dataset)?;
        let action = self.action_key.find("data.action_key", dataset)?;
        require(action.width() == self.real_action_dim, "qchunking.action_dim", || {
            format!(
                "it is {}, but {} is {} wide",
                self.real_action_dim,
                self.action_key,
                action.width()
            )
        })?;
        for transform in &self.transforms {
            for (key, vector) in [(&self.state_key, &state), (&self.action_key, &action)] {
                let (name, width) = (transform.name(), transform.width().unwrap_or(vector.width()));
                require(width == vector.width(), "data.transforms", || {
                    format!("`{name}` is for {width} numbers, but {key} is {} wide", vector.width())
                })?;
            }
        }
        if let Some(mask) = &self.delta_mask {
            let width = state.width().min(action.width());
            require(mask.len() <= width, "data.delta_mask", || {
                format!(
                    "it has {} entries, but state and action share only {width} coordinates",
                    mask.len()
                )
            })?;
        }
        Ok((state, action))
    }
}

fn require(holds: bool, field: &'static str, reason: impl Fn() -> String) -> Result<(), DataError> {
    if holds {
        Ok(())
    } else {
        Err(DataError::Spec {
            field,
            reason: reason(),
        })
    }
}
