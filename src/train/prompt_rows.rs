//! The prompt table between a checkpoint and a learner, in either of which all of its rows may have states, or only those
//! that have occurred.
//!
//! Weights and averages are whole in a checkpoint. Moments are of the rows that `state.json` lists, in that order, where
//! it lists any, and whole otherwise. The table has gigabytes: of any form of it a piece is in memory at a time.

use super::error::Result;
use super::snapshot::{Put, stream};
use crate::checkpoint::{CheckpointError, Saved, Weights, state};
use crate::gpu::GpuError;
use crate::model::params::ParamTensor;
use crate::model::tables::{self, Pi0Units};
use crate::step::Learner;

/// The prompt table of a checkpoint.
pub(super) struct PromptRows<'a> {
    learner: &'a Learner,
    /// Its name and shape.
    table: ParamTensor,
    /// The rows whose moments were saved; `None`: all.
    saved: Option<&'a [u32]>,
    /// Names of parameters that nothing may have computed with.
    unused: Vec<String>,
}

type Read<T = ()> = Result<T, CheckpointError>;

impl<'a> PromptRows<'a> {
    pub fn new(learner: &'a Learner, saved: &'a Saved) -> PromptRows<'a> {
        let unit = Pi0Units::new(&learner.dims).embedding();
        let all = tables::pi0(&learner.dims);
        let unused = tables::unused(&learner.dims).into_iter();
        let unused = unused.flat_map(|(unit, group)| &all.units[unit].groups[group].tensors);
        PromptRows {
            learner,
            table: all.units[unit].groups[0].tensors[0].clone(),
            unused: unused.map(|tensor| tensor.name.clone()).collect(),
            saved: saved.state().prompt_rows.as_deref(),
        }
    }

    /// Shape of a moment, which the learner's store has as `shape`, in the checkpoint.
    pub fn stored_shape(&self, section: &str, name: &str, shape: Vec<usize>) -> Vec<usize> {
        if name != format!("{section}{}", self.table.name) {
            return shape;
        }
        let mut shape = self.table.shape.clone();
        shape[0] = self.saved.map_or(shape[0], <[u32]>::len);
        shape
    }

    /// Whether moment `name` was not saved because nothing computed with the parameter: it is zero then.
    pub fn is_unused(&self, optimizer: &Weights, section: &str, name: &str) -> bool {
        let of_pi0 = [state::PI0_M, state::PI0_V].contains(&section);
        let unused = |name: &str| self.unused.iter().any(|unused| unused == name);
        of_pi0 && name.strip_prefix(section).is_some_and(unused) && !optimizer.iter().any(|t| t.name == name)
    }

    /// Whether moments were saved, and are not zero, of parameters that the learner keeps on the host.
    ///
    /// # Errors
    /// Tensors that cannot be read.
    pub fn leaves_moments(&self, optimizer: &Weights) -> Result<bool> {
        for tensor in self.learner.pi0.weights.kept() {
            let name = format!("{}{}", state::PI0_M, tensor.name);
            let mut moved = false;
            if optimizer.iter().any(|t| t.name == name) {
                optimizer.pieces(&name, &tensor.shape, |piece| {
                    moved |= piece.iter().any(|v| *v != 0.0);
                    Ok(())
                })?;
            }
            if moved {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The rows that must learn for the learner to be what was saved: those with moments, or an average of their own.
    ///
    /// # Errors
    /// Tensors that cannot be read, and more rows than the learner has room for.
    pub fn to_learn(&self, params: &Weights, ema: Option<&Weights>, optimizer: &Weights) -> Result<Vec<u32>> {
        let Some(touched) = self.learner.touched() else {
            return Ok(Vec::new());
        };
        let rows = match self.saved {
            Some(rows) => rows.to_vec(),
            None => self.moved(params, ema, optimizer)?,
        };
        if rows.len() > touched.capacity() {
            let rows = touched.capacity();
            return Err(GpuError::PromptRows { rows }.into());
        }
        Ok(rows)
    }

    /// Rows of whole tensors that are not as they started.
    fn moved(&self, params: &Weights, ema: Option<&Weights>, optimizer: &Weights) -> Result<Vec<u32>> {
        let ParamTensor { name, shape, .. } = &self.table;
        let width = shape[1];
        let mut moved = vec![false; shape[0]];
        let second = self.learner.pi0.v.as_ref().map(|_| state::PI0_V);
        for section in [Some(state::PI0_M), second].into_iter().flatten() {
            let mut at = 0;
            optimizer.pieces(&format!("{section}{name}"), shape, |piece| {
                mark(&mut moved, width, at, piece.iter().map(|v| *v != 0.0));
                at += piece.len();
                Ok(())
            })?;
        }
        if let Some(ema) = ema {
            let mut at = 0;
            ema.pieces(name, shape, |piece| {
                let weights = params.range(name, shape, at..at + piece.len())?;
                mark(&mut moved, width, at, piece.iter().zip(&weights).map(|(a, b)| a != b));
                at += piece.len();
                Ok(())
            })?;
        }
        Ok((0..)
            .zip(&moved)
            .filter(|(_, moved)| **moved)
            .map(|(id, _)| id)
            .collect())
    }

    /// Puts a tensor of the average, as the learner's store has it.
    pub fn average(&self, ema: &Weights, tensor: &ParamTensor, put: Put<'_>) -> Read {
        match self.learner.touched() {
            Some(touched) if tensor.name == self.table.name => self.pick(ema, &tensor.name, &touched.ids(), put),
            _ => stream(ema, "", tensor, put),
        }
    }

    /// Puts a moment, as the learner's store has it.
    pub fn moment(&self, optimizer: &Weights, section: &str, tensor: &ParamTensor, put: Put<'_>) -> Read {
        let name = format!("{section}{}", tensor.name);
        if self.is_unused(optimizer, section, &name) {
            zeros(optimizer.piece(), tensor.len(), put);
            return Ok(());
        }
        if tensor.name != self.table.name {
            return stream(optimizer, section, tensor, put);
        }
        match (self.saved, self.learner.touched()) {
            (None, Some(touched)) => self.pick(optimizer, &name, &touched.ids(), put),
            (Some(rows), None) => self.spread(optimizer, &name, rows, put),
            // As saved: all rows, or those that the learner now has.
            (None, None) | (Some(_), Some(_)) => stream(optimizer, section, tensor, put),
        }
    }

    /// Puts rows `ids` of a whole table.
    fn pick(&self, from: &Weights, name: &str, ids: &[u32], put: Put<'_>) -> Read {
        let (shape, width) = (&self.table.shape, self.table.shape[1]);
        let mut rows = Vec::new();
        for &id in ids {
            let at = id as usize * width;
            rows.extend(from.range(name, shape, at..at + width)?);
            if rows.len() + width > from.piece() {
                put(&rows);
                rows.clear();
            }
        }
        put(&rows);
        Ok(())
    }

    /// Puts a whole table of which only `rows` were saved, in this order; the others are zero.
    fn spread(&self, from: &Weights, name: &str, rows: &[u32], put: Put<'_>) -> Read {
        let width = self.table.shape[1];
        let shape = [rows.len(), width];
        let mut places: Vec<(usize, usize)> = (0..).zip(rows).map(|(place, &id)| (id as usize, place)).collect();
        places.sort_unstable();
        let mut next = 0;
        for (id, place) in places {
            // A list that is not of this table, or has a row twice.
            if id < next || id >= self.table.shape[0] {
                continue;
            }
            zeros(from.piece(), (id - next) * width, put);
            put(&from.range(name, &shape, place * width..(place + 1) * width)?);
            next = id + 1;
        }
        zeros(from.piece(), (self.table.shape[0] - next) * width, put);
        Ok(())
    }
}

/// Marks the rows of which a value is marked, those from element `at` of the table on.
fn mark(rows: &mut [bool], width: usize, at: usize, marked: impl Iterator<Item = bool>) {
    for (i, marked) in (at..).zip(marked) {
        rows[i / width] |= marked;
    }
}

/// Puts `n` zeros.
fn zeros(piece: usize, n: usize, put: Put<'_>) {
    let block = vec![0.0; piece.min(n)];
    for at in (0..n).step_by(piece) {
        put(&block[..piece.min(n - at)]);
    }
}
