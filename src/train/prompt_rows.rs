//! The prompt table between a checkpoint and a learner, in either of which all of its rows may have states, or only those
//! that have occurred.
//!
//! Weights and averages are whole in a checkpoint. Moments are of the rows that `state.json` lists, in that order, where
//! it lists any, and whole otherwise.

use super::error::Result;
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

type Read = Result<Vec<f32>, CheckpointError>;

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

    /// Whether a tensor is in the checkpoint as it is in the learner's stores of averages and moments.
    pub fn is_plain(&self, tensor: &ParamTensor) -> bool {
        tensor.name != self.table.name || (self.saved.is_none() && self.learner.touched().is_none())
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
            if optimizer.iter().any(|t| t.name == name)
                && optimizer.values(&name, &tensor.shape)?.iter().any(|v| *v != 0.0)
            {
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
        let (rows, width) = (self.table.shape[0], self.table.shape[1]);
        let mut moved = vec![false; rows];
        let mut mark = |values: &[f32], differs: &dyn Fn(usize, f32) -> bool| {
            for (i, &v) in values.iter().enumerate() {
                moved[i / width] |= differs(i, v);
            }
        };
        let second = self.learner.pi0.v.as_ref().map(|_| state::PI0_V);
        for section in [Some(state::PI0_M), second].into_iter().flatten() {
            let name = format!("{section}{}", self.table.name);
            mark(&optimizer.values(&name, &self.table.shape)?, &|_, v| v != 0.0);
        }
        if let Some(ema) = ema {
            let weights = params.tensor(&self.table)?;
            mark(&ema.tensor(&self.table)?, &|i, v| v != weights[i]);
        }
        Ok((0..rows as u32).filter(|&id| moved[id as usize]).collect())
    }

    /// A tensor of the average, as the learner's store has it.
    pub fn average(&self, ema: &Weights, tensor: &ParamTensor) -> Read {
        if tensor.name != self.table.name {
            return ema.tensor(tensor);
        }
        Ok(self.pick(ema.tensor(&self.table)?))
    }

    /// A moment, as the learner's store has it.
    pub fn moment(&self, optimizer: &Weights, section: &str, tensor: &ParamTensor) -> Read {
        let name = format!("{section}{}", tensor.name);
        if self.is_unused(optimizer, section, &name) {
            return Ok(vec![0.0; tensor.len()]);
        }
        let values = optimizer.values(&name, &self.stored_shape(section, &name, tensor.shape.clone()))?;
        if tensor.name != self.table.name {
            return Ok(values);
        }
        let width = self.table.shape[1];
        Ok(match (self.saved, self.learner.touched()) {
            // The learner's rows are those that were saved.
            (Some(_), Some(_)) => values,
            (None, _) => self.pick(values),
            (Some(rows), None) => {
                let mut all = vec![0.0; self.table.len()];
                for (row, values) in rows.iter().zip(values.chunks(width)) {
                    let at = *row as usize * width;
                    if let Some(to) = all.get_mut(at..at + width) {
                        to.copy_from_slice(values);
                    }
                }
                all
            }
        })
    }

    /// The rows that learn, of a whole table.
    fn pick(&self, whole: Vec<f32>) -> Vec<f32> {
        let Some(touched) = self.learner.touched() else {
            return whole;
        };
        let width = self.table.shape[1];
        let row = |id: u32| &whole[id as usize * width..(id as usize + 1) * width];
        touched
            .ids()
            .into_iter()
            .flat_map(|id| row(id).iter().copied())
            .collect()
    }
}
