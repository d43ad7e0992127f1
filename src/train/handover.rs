//! A learner on its way to the disk: read from the device in pieces, while threads write, in bounded memory.
//!
//! The state of a step does not change until the next optimizer update: what runs before it, forward and backward, only reads
//! weights. So a [`Handover`] begins after a step, goes on between the micro-batches of the next one as far as there is
//! room ([`Handover::advance`]), and must be over before that step's update ([`Handover::finish`], which waits for the
//! disk if it must). What is written is the state of one step, whatever the room.
//!
//! ```text
//! device -> pieces (16 MiB, several in one read) -> lanes (a thread and a file each) -> disk
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::error::Result;
use crate::checkpoint::background::Lane;
use crate::checkpoint::shards;
use crate::checkpoint::{Background, RunState, Saving, state};
use crate::config::Config;
use crate::data::NormStats;
use crate::gpu::{Gpu, Tensor};
use crate::model::params::{ParamStore, ParamTensor, Touched};
use crate::ops::split::Values;
use crate::step::Learner;
use crate::step::learner::Temperature;

/// Names of the temperature's numbers in `optimizer.safetensors`.
const TEMPERATURE: [&str; 3] = ["log_alpha", "m", "v"];

/// Files that are written at the same time, at most.
const MOST_LANES: usize = 4;
/// Bytes of state that are worth a lane.
const WORTH_A_LANE: u64 = 64 << 20;

/// What identifies a checkpoint beside the learner.
pub struct Identity<'a> {
    /// The run's folder.
    pub dir: &'a Path,
    pub config: &'a Config,
    pub stats: &'a NormStats,
}

/// How a state is cut, and how much of it may be in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Most bytes in host memory.
    pub room: usize,
    /// Most bytes of tensors in a file, or one tensor.
    pub shard: u64,
    /// Most bytes of a piece.
    pub piece: usize,
    /// Most bytes read at once.
    pub batch: usize,
    /// Files that are written at the same time; none: as many as are worth it.
    pub lanes: Option<usize>,
}

impl Cut {
    /// At most `megabytes` (10⁶ bytes) in host memory; 0: half of what is free.
    pub fn new(megabytes: usize) -> Cut {
        let room = match megabytes {
            0 => free(),
            given => given.saturating_mul(1_000_000),
        };
        Cut {
            room,
            shard: 1 << 30,
            piece: 16 << 20,
            batch: (64 << 20).min(room / 4),
            lanes: None,
        }
    }
}

/// Half of the host memory that is free.
fn free() -> usize {
    /// Where the system does not say.
    const UNKNOWN: usize = 4 << 30;
    crate::host_memory::free().map_or(UNKNOWN, |bytes| bytes as usize / 2)
}

/// A tensor of a checkpoint, and where its values are.
struct Source {
    name: String,
    shape: Vec<usize>,
    values: Vec<Part>,
}

/// Some values of a tensor.
#[derive(Clone)]
enum Part {
    /// Where a store has them.
    Stored(Values),
    /// A range of what is kept on the host, because nothing computes with it.
    Kept(Arc<Vec<f32>>, Range<usize>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::Stored(values) => values.len(),
            Part::Kept(_, range) => range.len(),
        }
    }

    fn slice(&self, start: usize, len: usize) -> Part {
        match self {
            Part::Stored(values) => Part::Stored(values.slice(start, len)),
            Part::Kept(all, range) => Part::Kept(all.clone(), range.start + start..range.start + start + len),
        }
    }

    /// The values as a tensor on the device, where they are one or can be made one there.
    fn whole(&self, gpu: &Gpu) -> Option<Tensor> {
        match self {
            Part::Stored(values) => values.whole(gpu),
            Part::Kept(..) => None,
        }
    }

    /// Hands the values over as they come to the host.
    fn hand_over(&self, gpu: &Gpu, to: Lane<'_>, name: &str) -> Result<()> {
        match self {
            Part::Stored(values) => to.values(name, &values.read(gpu)?),
            Part::Kept(all, range) => to.values(name, &all[range.clone()]),
        }
        Ok(())
    }
}

impl Source {
    fn bytes(&self) -> u64 {
        4 * self.shape.iter().product::<usize>() as u64
    }
}

/// A file that is to be written.
struct File {
    name: String,
    plan: Vec<(String, Vec<usize>)>,
    pieces: VecDeque<(String, Part)>,
}

/// A state that is being read from the device and written by threads. Dropped before [`Handover::finish`], it leaves nothing.
pub struct Handover {
    gpu: Gpu,
    draft: Background,
    cut: Cut,
    files: VecDeque<File>,
    /// Of each lane, pieces of the file it is at.
    lanes: Vec<VecDeque<(String, Part)>>,
    keep: usize,
}

impl Handover {
    /// Begins with the learner after `step` steps, of which `skipped` changed nothing.
    ///
    /// # Errors
    /// A device that failed (nothing is saved then), and a system that gives no thread.
    pub fn begin(learner: &Learner, identity: &Identity<'_>, step: u64, skipped: u64, cut: Cut) -> Result<Handover> {
        learner.gpu.sync()?;
        let Identity { dir, config, stats } = identity;
        let mut state = RunState::now(step, config.seed, &config.name);
        state.skipped = skipped;
        state.prompt_rows = learner.touched().map(Touched::ids);
        let (files, texts) = files(contents(learner), &cut);
        let all: u64 = files
            .iter()
            .flat_map(|f| &f.pieces)
            .map(|(_, v)| 4 * v.len() as u64)
            .sum();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let worth = (all.div_ceil(WORTH_A_LANE) as usize).clamp(1, MOST_LANES.min(processors.max(2)));
        let lanes = cut.lanes.unwrap_or(worth);
        // What is being read is in memory, too.
        let draft = Background::begin(dir, state, lanes, cut.room.saturating_sub(cut.batch))?;
        draft.text(state::CONFIG, config.to_toml());
        draft.text(state::NORM_STATS, stats.to_json());
        for (name, text) in texts {
            draft.text(&name, text);
        }
        Ok(Handover {
            gpu: learner.gpu.clone(),
            draft,
            cut,
            files: files.into(),
            lanes: vec![VecDeque::new(); lanes],
            keep: config.keep_checkpoints,
        })
    }

    /// Reads and hands over what there is room for without waiting for the disk; whether that was all.
    ///
    /// # Errors
    /// A device that failed.
    pub fn advance(&mut self) -> Result<bool> {
        self.go_on(false)
    }

    /// Reads and hands over all that is left, waiting for the disk where there is no room. What the disk says is known from
    /// the [`Saving`].
    ///
    /// # Errors
    /// A device that failed (nothing is saved then).
    pub fn finish(mut self) -> Result<Saving> {
        self.go_on(true)?;
        Ok(self.draft.commit(self.keep))
    }

    fn go_on(&mut self, wait: bool) -> Result<bool> {
        loop {
            // A disk that has failed takes nothing more.
            if self.draft.is_lost() {
                return Ok(true);
            }
            let batch = self.next_batch(wait);
            if batch.is_empty() {
                return Ok(self.files.is_empty() && self.lanes.iter().all(VecDeque::is_empty));
            }
            let lanes: BTreeSet<usize> = batch.iter().map(|(lane, ..)| *lane).collect();
            // What is whole on the device is read at once; moments in blocks and averages on the host are made one by one.
            let whole: Vec<Option<Tensor>> = batch.iter().map(|(.., values)| values.whole(&self.gpu)).collect();
            let read = self
                .gpu
                .read_words(&whole.iter().flatten().cloned().collect::<Vec<_>>())?;
            let mut read = read.into_iter();
            for ((lane, name, values), whole) in batch.into_iter().zip(whole) {
                let to = self.draft.lane(lane);
                match whole.and_then(|_| read.next()) {
                    Some(words) => to.bytes(&name, words),
                    None => values.hand_over(&self.gpu, to, &name)?,
                }
            }
            for lane in lanes.into_iter().filter(|lane| self.lanes[*lane].is_empty()) {
                self.draft.lane(lane).keep();
            }
        }
    }

    /// The pieces to read next, each with its lane: always of the lane with the least to do.
    fn next_batch(&mut self, wait: bool) -> Vec<(usize, String, Part)> {
        let mut load = self.draft.load();
        let room = self.draft.room();
        let mut batch: Vec<(usize, String, Part)> = Vec::new();
        let mut bytes = 0;
        loop {
            for lane in 0..self.lanes.len() {
                // Of a file whose last piece is in this batch the end must come first.
                let ended = batch.iter().any(|(of, ..)| *of == lane);
                if self.lanes[lane].is_empty() && !ended {
                    self.next_file(lane);
                }
            }
            let busy = (0..self.lanes.len()).filter(|lane| !self.lanes[*lane].is_empty());
            let Some(lane) = busy.min_by_key(|lane| load[*lane]) else {
                return batch;
            };
            let Some((_, values)) = self.lanes[lane].front() else {
                return batch;
            };
            let size = 4 * values.len();
            let under_way: usize = load.iter().sum();
            let fits = under_way == 0 || under_way + size <= room;
            let full = !batch.is_empty() && (bytes + size > self.cut.batch || !fits);
            if full || (!wait && !fits) {
                return batch;
            }
            if let Some((name, values)) = self.lanes[lane].pop_front() {
                load[lane] += size;
                bytes += size;
                batch.push((lane, name, values));
            }
        }
    }

    /// Lets a lane whose file is complete begin the next one.
    fn next_file(&mut self, lane: usize) {
        let to = self.draft.lane(lane);
        while let Some(file) = self.files.pop_front() {
            to.tensors(&file.name, file.plan);
            self.lanes[lane] = file.pieces;
            if !self.lanes[lane].is_empty() {
                return;
            }
            to.keep();
        }
    }
}

/// Every tensor of a learner's state, by file.
fn contents(learner: &Learner) -> Vec<(&'static str, Vec<Source>)> {
    let (pi0, critic) = (&learner.pi0, &learner.critic);
    let mut all = vec![(state::PARAMS, stored("", &pi0.weights))];
    if let Some(average) = &pi0.average {
        // The whole model with averaged weights: what does not learn has no average and is its own.
        let averaged = pi0.weights.named_with(average);
        all.push((state::EMA, sources("", averaged, &pi0.weights)));
    }
    let mut critics = stored(state::ONLINE, &critic.weights);
    critics.extend(critic.average.iter().flat_map(|targets| stored(state::TARGET, targets)));
    all.push((state::CRITIC, critics));
    let moments = moments(learner).into_iter();
    let mut optimizer: Vec<Source> = moments.flat_map(|(section, store)| stored(section, store)).collect();
    let temperature = learner.temperature.iter().flat_map(numbers);
    optimizer.extend(temperature.map(|(name, tensor)| Source {
        name,
        shape: vec![1],
        values: vec![Part::Stored(Values::from(tensor))],
    }));
    all.push((state::OPTIMIZER, optimizer));
    all
}

/// Cuts files into shards and tensors into pieces. Also gives the indices of what is in shards, with their names.
fn files(contents: Vec<(&'static str, Vec<Source>)>, cut: &Cut) -> (Vec<File>, Vec<(String, String)>) {
    let (mut all, mut texts) = (Vec::new(), Vec::new());
    for (file, sources) in contents {
        let ranges = shards::divide(sources.iter().map(Source::bytes), cut.shard);
        let n = ranges.len();
        let names: Vec<String> = (0..n).map(|i| shards::shard_name(file, i, n)).collect();
        if n > 1 {
            let located = ranges.iter().zip(&names).flat_map(|(range, shard)| {
                let of_shard = &sources[range.clone()];
                of_shard.iter().map(move |s| (s.name.as_str(), shard.as_str()))
            });
            let total = sources.iter().map(Source::bytes).sum();
            texts.push((shards::index_of(file), shards::index(located, total)));
        }
        let mut sources = sources.into_iter();
        for (range, name) in ranges.into_iter().zip(names) {
            let (mut plan, mut pieces) = (Vec::new(), VecDeque::new());
            for source in sources.by_ref().take(range.len()) {
                let most = (cut.piece / 4).max(1);
                for values in &source.values {
                    for start in (0..values.len()).step_by(most) {
                        let piece = values.slice(start, most.min(values.len() - start));
                        pieces.push_back((source.name.clone(), piece));
                    }
                }
                plan.push((source.name, source.shape));
            }
            all.push(File { name, plan, pieces });
        }
    }
    (all, texts)
}

/// The tensors a store holds, with `section` in front of their names.
fn stored(section: &str, store: &ParamStore) -> Vec<Source> {
    sources(section, store.named(), store)
}

/// These tensors, and those that `store` keeps on the host.
fn sources(section: &str, named: Vec<(ParamTensor, Vec<Values>)>, store: &ParamStore) -> Vec<Source> {
    let source = |tensor: ParamTensor, values| Source {
        name: format!("{section}{}", tensor.name),
        shape: tensor.shape,
        values,
    };
    let named = named.into_iter();
    let mut all: Vec<Source> = named
        .map(|(tensor, values)| source(tensor, values.into_iter().map(Part::Stored).collect()))
        .collect();
    all.extend(store.kept().into_iter().map(|tensor| {
        let values = Arc::new(store.kept_values(&tensor));
        let range = 0..values.len();
        source(tensor, vec![Part::Kept(values, range)])
    }));
    all
}

/// Moments of both groups with their sections: those that their optimizers keep.
pub(super) fn moments(learner: &Learner) -> Vec<(&'static str, &ParamStore)> {
    let (pi0, critic) = (&learner.pi0, &learner.critic);
    let all = [
        (state::PI0_M, Some(&pi0.m)),
        (state::PI0_V, pi0.v.as_ref()),
        (state::CRITIC_M, Some(&critic.m)),
        (state::CRITIC_V, critic.v.as_ref()),
    ];
    let kept = all.into_iter();
    kept.filter_map(|(section, store)| Some((section, store?))).collect()
}

pub(super) fn numbers(t: &Temperature) -> Vec<(String, &Tensor)> {
    let named = |(name, tensor)| (format!("{}{name}", state::TEMPERATURE), tensor);
    TEMPERATURE
        .into_iter()
        .zip([&t.log_alpha, &t.m, &t.v])
        .map(named)
        .collect()
}

/// Names and shapes of the tensors a store holds.
pub(super) fn names(section: &str, store: &ParamStore) -> Vec<(String, Vec<usize>)> {
    let tensors = store.named().into_iter().map(|(tensor, _)| tensor).chain(store.kept());
    tensors.map(|t| (format!("{section}{}", t.name), t.shape)).collect()
}
