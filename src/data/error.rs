//! Everything that can go wrong between a dataset on disk and a batch.
//!
//! Each message is one sentence: what is wrong, where (file, row, key), why, and what to do about it.

use std::path::PathBuf;

use thiserror::Error;

use crate::files::FileError;

/// An error of the data side. Rows count from 0 inside the named file, frames from 0 over the whole dataset.
#[derive(Debug, Error)]
pub enum DataError {
    // The folder and its metadata.
    #[error("no dataset at `{root}`: `{missing}` does not exist; give the folder that contains `meta/info.json`")]
    NoDataset { root: PathBuf, missing: PathBuf },
    #[error(
        "no dataset `{name}`: there is no such folder, LeRobot's cache has no `{lerobot}`, the hub's cache has no whole \
         `{cache}`, and {why}; give the folder of a dataset"
    )]
    NotFound {
        name: String,
        lerobot: PathBuf,
        cache: PathBuf,
        why: String,
    },
    #[error(
        "the dataset `{name}` cannot be downloaded from {endpoint}: {reason}; check the name and the network, or put it into \
         `{lerobot}`"
    )]
    Download {
        name: String,
        endpoint: String,
        lerobot: PathBuf,
        reason: String,
    },
    #[error("there is no home folder to keep datasets in; set HF_HOME, or give the folder of a dataset")]
    NoCache,
    #[error("`{first}` and `{second}` cannot be mixed: they {what}; train on one of them, or export them alike")]
    Mix {
        first: PathBuf,
        second: PathBuf,
        what: String,
    },
    #[error("no dataset is given; give at least one")]
    NothingToMix,
    #[error("cannot read `{path}` ({role}): {source}; check the path and its permissions")]
    Read {
        path: PathBuf,
        role: &'static str,
        source: std::io::Error,
    },
    #[error(transparent)]
    File(FileError),
    #[error("`{path}` line {line} is not what it should be: {reason}; correct the line or export the file again")]
    Json { path: PathBuf, line: usize, reason: String },
    #[error(
        "`{path}` says codebase_version `{found}`, but only {supported} can be read; convert the dataset to one of them"
    )]
    UnsupportedVersion {
        path: PathBuf,
        found: String,
        supported: &'static str,
    },
    #[error(
        "`{path}` stores camera `{feature}` as video, but this program was built without FFmpeg; build it with the feature \
         `video` (which is on by default), or export the dataset with dtype `image`"
    )]
    NoVideo { path: PathBuf, feature: String },
    #[error("`{path}` describes feature `{feature}` in a way that cannot be read: {reason}; correct its entry")]
    Feature {
        path: PathBuf,
        feature: String,
        reason: String,
    },
    #[error("`{path}` has `{field}` = `{value}`, which cannot be used: {reason}; correct the field")]
    InfoField {
        path: PathBuf,
        field: &'static str,
        value: String,
        reason: String,
    },
    #[error(
        "`{path}` line {line} describes episode {found} where episode {expected} should be, because episodes are numbered \
         from 0 without gaps; export the dataset again or renumber its episodes"
    )]
    EpisodeGap {
        path: PathBuf,
        line: usize,
        found: usize,
        expected: usize,
    },
    #[error("`{path}` row {row} cannot be used: {reason}; export the dataset again")]
    EpisodeRow { path: PathBuf, row: usize, reason: String },
    #[error(
        "`{path}` announces {announced} {what}, but `{counted_in}` holds {counted}; export the dataset again or correct \
         the total"
    )]
    Totals {
        path: PathBuf,
        what: &'static str,
        announced: usize,
        counted_in: PathBuf,
        counted: usize,
    },
    #[error("the dataset at `{root}` has no frames, so there is nothing to learn from; record or export some episodes")]
    NoFrames { root: PathBuf },

    // The tables.
    #[error("`{path}` cannot be read as parquet: {reason}; copy or export this file again")]
    Parquet { path: PathBuf, reason: String },
    #[error(
        "`{path}` holds {found} rows, but its {episodes} announced with {announced} frames; export the dataset again"
    )]
    TableLength {
        path: PathBuf,
        found: usize,
        /// "episode is" or "3 episodes are".
        episodes: String,
        announced: usize,
    },
    #[error(
        "`{path}` has no column `{column}`, only {available}; export the dataset with it or correct `meta/info.json`"
    )]
    MissingColumn {
        path: PathBuf,
        column: String,
        available: String,
    },
    #[error("`{path}` stores column `{column}` as {found}, but {expected} is needed; export the dataset again")]
    ColumnType {
        path: PathBuf,
        column: String,
        found: String,
        expected: String,
    },
    #[error(
        "`{path}` row {row}: column `{column}` is {found} wide, but `meta/info.json` announces {expected}; correct the \
         shape there or export the episode again"
    )]
    ColumnWidth {
        path: PathBuf,
        column: String,
        row: usize,
        found: usize,
        expected: usize,
    },
    #[error("`{path}` row {row}: column `{column}` is null, but every frame needs a value; export the episode again")]
    Null { path: PathBuf, column: String, row: usize },
    #[error(
        "`{path}` row {row}: column `{column}` says {found}, but {expected} should be there, because frames are numbered \
         without gaps; export the dataset again"
    )]
    IndexGap {
        path: PathBuf,
        column: &'static str,
        row: usize,
        found: i64,
        expected: i64,
    },
    #[error("`{path}` row {row}: task_index {task} is not in `{tasks}`; add the task or export the dataset again")]
    UnknownTask {
        path: PathBuf,
        row: usize,
        task: i64,
        tasks: &'static str,
    },
    #[error(
        "`{path}` row {row}: `{column}`[{element}] is {value}, which no model can learn from; repair or drop the episode"
    )]
    NotFinite {
        path: PathBuf,
        column: String,
        row: usize,
        element: usize,
        value: f32,
    },

    // Asking a dataset for something it does not have.
    #[error(
        "the dataset at `{root}` has no numeric feature `{key}`, only {available}; correct the key in the configuration"
    )]
    UnknownColumn {
        root: PathBuf,
        key: String,
        available: String,
    },
    #[error(
        "the dataset at `{root}` has no camera `{key}`, only {available}; correct the camera map in the configuration"
    )]
    UnknownCamera {
        root: PathBuf,
        key: String,
        available: String,
    },
    #[error(
        "the dataset at `{root}` has no feature `{key}` and none that begins with `{key}.`, only {available}; correct the \
         key"
    )]
    UnknownFeature {
        root: PathBuf,
        key: String,
        available: String,
    },
    #[error("frame {frame} does not exist: the dataset at `{root}` has {frames} frames; ask for a smaller index")]
    FrameOutOfRange { root: PathBuf, frame: usize, frames: usize },
    #[error(
        "the dataset at `{root}` has no reward column (`reward` or `next.reward`), which reward_mode \"dataset\" reads; add \
         one or choose reward_mode \"terminal\""
    )]
    NoReward { root: PathBuf },
    #[error(
        "nothing in the dataset at `{root}` says which episodes succeeded (columns `next.success`, `success`, `reward` or \
         `next.reward`); add one or set `data.default_success`"
    )]
    NoSuccess { root: PathBuf },
    #[error(
        "no frame of the dataset at `{root}` can start a chunk of {horizon} steps: the longest of the {episodes} episodes \
         has {longest} frames; choose a smaller horizon or boundary \"pad\""
    )]
    NoStarts {
        root: PathBuf,
        horizon: usize,
        episodes: usize,
        longest: usize,
    },

    // Images.
    #[error("`{path}` row {row}: the image of `{camera}` cannot be decoded: {reason}; repair or drop the episode")]
    Image {
        path: PathBuf,
        row: usize,
        camera: String,
        reason: String,
    },
    #[error(
        "`{path}` row {row}: the image of `{camera}` is {found} (height x width x channels), but `meta/info.json` announces \
         {expected}; correct the shape there or export the episode again"
    )]
    ImageShape {
        path: PathBuf,
        row: usize,
        camera: String,
        found: String,
        expected: String,
    },

    #[error("`{path}`: the video of `{camera}` {reason}; check its frame rate and length, and copy or export it again")]
    Video {
        path: PathBuf,
        camera: String,
        reason: String,
    },

    // Norm stats, tokenizer, configuration, loader.
    #[error("norm stats `{path}`: `{key}` {reason}; compute them again for this dataset and configuration")]
    StatsFile { path: PathBuf, key: String, reason: String },
    #[error("norm stats `{key}` cannot be used: {reason}; compute them again for this dataset and configuration")]
    Stats { key: &'static str, reason: String },
    #[error(
        "`{path}` is not a usable tokenizer: {reason}; give PaliGemma's `paligemma_tokenizer.model` or its \
         `tokenizer.json`"
    )]
    Tokenizer { path: PathBuf, reason: String },
    #[error(
        "`{path}` has {ids} pieces, but the model embeds fewer (model.dims.vocab = {vocab}); give the tokenizer that the \
         weights were trained with"
    )]
    TooManyPieces { path: PathBuf, ids: usize, vocab: usize },
    #[error("the prompt {prompt:?} cannot be tokenized: {reason}; reword it")]
    Prompt { prompt: String, reason: String },
    #[error("frame {frame} has an empty task text, and nothing else says what to do; set a default prompt")]
    NoPrompt { frame: usize },
    #[error("data setting `{field}` cannot be used: {reason}")]
    Spec { field: &'static str, reason: String },
    #[error("a data loader thread failed at step {step}: {reason}; this is a defect of the program, please report it")]
    Worker { step: u64, reason: String },
}
