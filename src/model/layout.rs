//! Packing: which tokens of which samples become which rows, and who sees whom.
//!
//! Padding is dropped: masked cameras and padded prompt tokens have no rows. Positions count the tokens that are left,
//! which is what openpi's cumulative sum of the mask gives, so packing changes no number. Rows of a prefix:
//!
//! ```text
//! sample 0: camera tokens …, prompt tokens … | sample 1: … | …            R rows (language stream)
//! state of sample 0 | state of sample 1 | …                               B rows (expert stream), π₀ only
//! ```
//! Keys and values go to a cache in which each sample's lines are contiguous: its prefix, then its state.

use super::dims::Pi0Dims;
use crate::gpu::{Gpu, Tensor};
use crate::ops::attention::{KeyPlan, KeyRun, Plan, Sequence};
use crate::ops::embedding::Lookup;
use crate::ops::mean_pool::Runs;

use super::siglip::ImageLayout;

/// The masks and prompts of B observations, on the host.
#[derive(Clone, Debug, Default)]
pub struct ObservationMasks {
    /// `[B][C]`: camera present.
    pub cameras: Vec<Vec<bool>>,
    /// `[B]` prompts: the valid token ids, in order.
    pub prompts: Vec<Vec<u32>>,
}

impl ObservationMasks {
    /// Number of samples (B).
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// No samples?
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Pictures that are there, in order: (sample, camera).
    pub fn pictures(&self) -> Vec<(usize, usize)> {
        let present = |(b, cams): (usize, &Vec<bool>)| {
            cams.iter()
                .enumerate()
                .filter(|(_, on)| **on)
                .map(move |(c, _)| (b, c))
                .collect::<Vec<_>>()
        };
        self.cameras.iter().enumerate().flat_map(present).collect()
    }
}

/// Where one sample's keys lie in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedRun {
    pub row0: usize,
    /// Prefix tokens and, for π₀, the state.
    pub rows: usize,
}

/// Rows of a prefix pass over B observations.
pub struct PrefixLayout {
    /// Packed prefix rows (R).
    pub rows: usize,
    /// State rows: B for π₀, 0 for π₀.₅.
    pub states: usize,
    /// First row and length of each sample.
    pub samples: Vec<(usize, usize)>,
    /// Lines of each sample in the cache.
    pub cached: Vec<CachedRun>,
    /// First line of the cache that belongs to this prefix, and their number.
    pub cache_row0: usize,
    pub cache_rows: usize,
    /// Pictures.
    pub images: ImageLayout,
    /// Packed row of every picture token, u32 `[n·t]`.
    pub image_lines: Tensor,
    /// Prompt tokens and their packed rows.
    pub prompt: Lookup,
    /// Positions, u32 `[R + states]`; lines of the cache, u32 `[R + states]`.
    pub positions: Tensor,
    pub lines: Tensor,
    /// Attention of prefix and state rows, and of state rows alone.
    pub plan: Plan,
    pub keys: KeyPlan,
    pub state_plan: Plan,
    pub state_keys: KeyPlan,
    starts: Tensor,
    lens: Tensor,
}

impl PrefixLayout {
    /// Lays out observations whose keys start at line `cache_row0`.
    pub fn new(gpu: &Gpu, d: &Pi0Dims, masks: &ObservationMasks, cache_row0: usize) -> PrefixLayout {
        let (tokens, state) = (d.image_tokens(), d.state_tokens());
        let b = masks.len();
        let (mut samples, mut cached) = (Vec::new(), Vec::new());
        let (mut image_lines, mut occurrences) = (Vec::new(), Vec::new());
        let (mut row, mut line) = (0, cache_row0);
        for (cameras, prompt) in masks.cameras.iter().zip(&masks.prompts) {
            let first = row;
            for _ in cameras.iter().filter(|on| **on) {
                image_lines.extend((row..row + tokens).map(|r| r as u32));
                row += tokens;
            }
            for &token in prompt {
                occurrences.push((token, row as u32));
                row += 1;
            }
            samples.push((first, row - first));
            cached.push(CachedRun {
                row0: line,
                rows: row - first + state,
            });
            line += row - first + state;
        }
        let (rows, states) = (row, b * state);
        let (mut positions, mut lines) = (vec![0u32; rows + states], vec![0u32; rows + states]);
        let (mut sequences, mut runs) = (Vec::new(), Vec::new());
        let (mut state_sequences, mut state_runs) = (Vec::new(), Vec::new());
        for (i, (&(first, len), run)) in samples.iter().zip(&cached).enumerate() {
            for j in 0..len {
                positions[first + j] = j as u32;
                lines[first + j] = (run.row0 + j) as u32;
            }
            let mut seen_by = vec![(first, len)];
            let (k_row0, k_rows) = (run.row0, len);
            sequences.push(Sequence {
                q_row0: first,
                q_rows: len,
                k_row0,
                k_rows,
                ..Default::default()
            });
            if state > 0 {
                let q_row0 = rows + i;
                positions[q_row0] = len as u32;
                lines[q_row0] = (run.row0 + len) as u32;
                seen_by.push((q_row0, 1));
                let s = Sequence {
                    q_row0,
                    q_rows: 1,
                    k_row0,
                    k_rows: len + 1,
                    ..Default::default()
                };
                sequences.push(s);
                state_sequences.push(s);
                let own = KeyRun {
                    k_row0: run.row0 + len,
                    k_rows: 1,
                    queries: vec![(q_row0, 1)],
                };
                runs.push(own.clone());
                state_runs.push(own);
            }
            runs.push(KeyRun {
                k_row0,
                k_rows,
                queries: seen_by,
            });
        }
        let column = |f: fn(&(usize, usize)) -> usize| -> Vec<u32> { samples.iter().map(|s| f(s) as u32).collect() };
        PrefixLayout {
            rows,
            states,
            cache_row0,
            cache_rows: line - cache_row0,
            images: ImageLayout::new(gpu, image_lines.len() / tokens, tokens),
            image_lines: gpu.upload_u32(&image_lines, [image_lines.len()]),
            prompt: Lookup::new(gpu, occurrences),
            positions: gpu.upload_u32(&positions, [rows + states]),
            lines: gpu.upload_u32(&lines, [rows + states]),
            plan: Plan::new(gpu, sequences),
            keys: KeyPlan::new(gpu, runs),
            state_plan: Plan::new(gpu, state_sequences),
            state_keys: KeyPlan::new(gpu, state_runs),
            starts: gpu.upload_u32(&column(|s| s.0), [b]),
            lens: gpu.upload_u32(&column(|s| s.1), [b]),
            samples,
            cached,
        }
    }

    /// Rows of each sample, for pooling.
    pub fn pool(&self) -> Runs<'_> {
        Runs {
            starts: &self.starts,
            lens: &self.lens,
        }
    }
}
