//! From a LeRobot dataset to training batches.
//!
//! A frame travels through the files of this folder in this order:
//!
//! | file | what it does |
//! |---|---|
//! | [`dataset`] | the [`Dataset`] trait: episodes, numeric columns, task texts, images on demand; [`open`] |
//! | [`place`], [`hub`] | where datasets are: a folder, or a public name and its caches |
//! | [`mixed`] | several datasets as one |
//! | `lerobot/` | LeRobot v2.0, v2.1 and v3.0, the formats behind the trait today |
//! | `video/` | frames of video files by their time, through FFmpeg |
//! | [`spec`] | [`DataSpec`]: every choice a run makes about its data, one plain struct |
//! | [`labels`] | where an episode ends, whether it succeeded, what each frame is worth |
//! | [`chunks`] | an action chunk: eligible starts, discounted reward, bootstrap discount, masks and weights |
//! | [`repack`] | which features, or parts of them, make up state and action |
//! | [`transforms`] | the robot's own transforms, delta actions, normalisation, padding, pixel range; and back |
//! | [`aloha`] | ALOHA's joints and grippers in π₀'s space, one of the robot's own |
//! | [`norm_stats`] | `norm_stats.json`: read, write, compute |
//! | [`running_stats`] | mean, standard deviation and quantiles of a stream of vectors |
//! | [`tokenizer`] | the prompt as token ids, π₀ and π₀.₅ forms |
//! | [`resize`] | letterboxed bilinear resize, bit-exact with Pillow |
//! | [`batch`] | [`BatchBuilder`] puts the above together into a [`ChunkBatch`] |
//! | [`split`] | the episodes held out for evaluation |
//! | [`sampler`] | which frames start the chunks of a step |
//! | [`loader`] | builds batches in background threads and delivers them in step order |
//! | [`check`] | what is wrong with a dataset that can be opened |
//! | [`inspect`], [`sheet`], [`histograms`] | a summary of a dataset for people, pictures of an episode, spread of values |
//! | [`export`] | raw windows of a dataset as safetensors |
//! | [`error`] | [`DataError`] |
//!
//! Every batch is a pure function of (dataset, [`DataSpec`], norm stats, tokenizer, seed, step): the number of loader
//! threads and the step a run resumes from change nothing.

pub mod aloha;
pub mod batch;
pub mod check;
pub mod chunks;
pub mod dataset;
pub mod error;
pub mod export;
pub mod histograms;
pub mod hub;
pub mod inspect;
mod json;
pub mod labels;
mod lerobot;
pub mod loader;
pub mod mixed;
pub mod norm_stats;
mod panics;
pub mod place;
mod pool;
pub mod repack;
pub mod resize;
pub mod running_stats;
pub mod sampler;
pub mod sheet;
pub mod spec;
pub mod split;
pub mod tokenizer;
pub mod transforms;
mod video;

pub use batch::{BatchBuilder, CameraBatch, ChunkBatch};
pub use chunks::Boundary;
pub use dataset::{Column, Dataset, DatasetInfo, Episode, Feature, FeatureKind, Footage, RgbImage, YuvImage, open};
pub use error::DataError;
pub use labels::{EpisodeEnd, RewardMode};
pub use loader::Loader;
pub use norm_stats::{NormStats, Stats};
pub use place::{Place, open_all};
pub use repack::Parts;
pub use sampler::{Sampler, StartFrames};
pub use spec::{CameraSpec, DataSpec, PromptSource};
pub use split::EpisodeSplit;
pub use tokenizer::{PromptTokenizer, TokenizedPrompt};
pub use transforms::NormKind;
