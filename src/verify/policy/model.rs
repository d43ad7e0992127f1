//! A policy on the device, with the inputs of its group.

use std::sync::Arc;

use crate::gpu::{DType, Gpu, Tensor};
use crate::model::bind::Pi0Params;
use crate::model::dims::Pi0Dims;
use crate::model::freeze::Reach;
use crate::model::layout::{ObservationMasks, PrefixLayout};
use crate::model::params::{ParamStore, Placement, Scope};
use crate::model::prefix::{self, Depth, Net, PassOptions, Prefix};
use crate::model::remat::Remat;
use crate::model::stream::Storage;
use crate::model::tables;
use crate::ops::{flow, rope};
use crate::step::batch::{Observations, Pictures};
use crate::verify::inputs::{self, packed_positions};
use crate::verify::{Fixture, Result, VerifyError};

/// A policy on the device with its inputs.
pub(super) struct Policy<'a> {
    pub gpu: &'a Gpu,
    pub f: &'a Fixture,
    pub dims: &'a Pi0Dims,
    /// How activations, and the weights that compute, are stored.
    pub storage: Storage,
    pub params: Pi0Params,
    pub grads: ParamStore,
    pub grad_params: Pi0Params,
    pub rope: rope::Table,
    pub observations: Observations,
    pub images: Tensor,
    pub state: Tensor,
    /// `(sample, position)` of every packed prefix row.
    pub packed: Vec<(usize, usize)>,
    _weights: ParamStore,
}

impl<'a> Policy<'a> {
    pub fn load(gpu: &'a Gpu, f: &'a Fixture, dims: &'a Pi0Dims, storage: Storage) -> Result<Policy<'a>> {
        let placement = Arc::new(Placement::new(Arc::new(tables::pi0(dims)), gpu.caps()));
        let mut values = inputs::parameters(f, "weights:", placement.table().tensors())?;
        let weights = ParamStore::zeros(gpu, placement.clone(), DType::F32, Scope::All);
        weights.write(gpu, |p| values.remove(&p.name));
        let weights = if storage.dtype == DType::F32 {
            weights
        } else {
            let compute = ParamStore::new(gpu, placement.clone(), storage.dtype, Scope::All);
            compute.convert_from(gpu, &weights);
            compute
        };
        let grads = ParamStore::zeros(gpu, placement, DType::F32, Scope::All);
        let observations = inputs::observations(f, "forward:obs/", dims)?;
        let Pictures::Floats(pictures) = &observations.pictures else {
            unreachable!("groups hold float pictures")
        };
        let (size, n) = (dims.image_size, observations.masks.pictures().len());
        let packed = packed_positions(dims, &observations.masks, &f.bool("forward:prefix_mask")?);
        let rows = PrefixLayout::new(gpu, dims, &observations.masks, 0).rows;
        if packed.len() != rows {
            return Err(f.broken(format!(
                "forward:prefix_mask has {} valid positions, but its cameras and prompts have {rows}",
                packed.len()
            )));
        }
        let params = Pi0Params::bind(&weights, dims).with_sums(gpu);
        params.refresh(gpu);
        Ok(Policy {
            gpu,
            f,
            params,
            grad_params: Pi0Params::bind(&grads, dims),
            grads,
            rope: rope::Table::new(gpu, 0, Net::positions(dims), dims.head_dim),
            images: gpu.upload_f32(pictures, [n, size, size, 3]),
            state: gpu.upload_f32(&observations.state, [observations.masks.len(), dims.action_dim]),
            packed,
            observations,
            dims,
            storage,
            _weights: weights,
        })
    }

    pub fn net(&self) -> Net<'_> {
        Net {
            dims: self.dims,
            params: &self.params,
            rope: &self.rope,
            dtype: self.storage.dtype,
            residual: self.storage.residual(),
        }
    }

    pub fn masks(&self) -> &ObservationMasks {
        &self.observations.masks
    }

    /// Samples (B).
    pub fn len(&self) -> usize {
        self.masks().len()
    }

    pub fn layout(&self) -> PrefixLayout {
        PrefixLayout::new(self.gpu, self.dims, self.masks(), 0)
    }

    pub fn cache(&self, layout: &PrefixLayout) -> Vec<Tensor> {
        let width = 2 * self.dims.attention().kv_width();
        (0..self.dims.depth)
            .map(|_| self.gpu.alloc(self.storage.dtype, [layout.cache_rows, width]))
            .collect()
    }

    pub fn prefix(&self, layout: &PrefixLayout, cache: &[Tensor], depth: Depth) -> Prefix {
        let options = PassOptions {
            keep: Some(Remat::None),
            depth,
            reach: Reach::ALL,
        };
        prefix::forward(self.gpu, &self.net(), layout, &self.images, &self.state, cache, options)
    }

    /// An input `[B, H, A]` as rows.
    pub fn actions(&self, name: &str) -> Result<Tensor> {
        let (h, a) = (self.dims.action_horizon, self.dims.action_dim);
        let values = self.f.f32(name)?;
        if values.len() != self.len() * h * a {
            return Err(self.wrong(name));
        }
        Ok(self.gpu.upload_f32(&values, [self.len() * h, a]))
    }

    fn wrong(&self, name: &str) -> VerifyError {
        self.f.broken(format!("{name} has a wrong number of elements"))
    }

    /// Flow times of the loss, and x_t.
    pub fn noised(&self) -> Result<(Vec<f64>, Tensor, Tensor, Tensor)> {
        let (noise, actions) = (self.actions("forward:noise")?, self.actions("forward:actions")?);
        let time = self.f.f32("forward:time")?;
        if time.len() != self.len() {
            return Err(self.wrong("forward:time"));
        }
        let x = self.gpu.f32(noise.shape());
        flow::interpolate(
            self.gpu,
            &noise,
            &actions,
            &self.gpu.upload_f32(&time, [time.len()]),
            &x,
        );
        Ok((time.iter().map(|&t| t as f64).collect(), noise, actions, x))
    }

    pub fn read(&self, t: &Tensor) -> Result<Vec<f32>> {
        Ok(self.gpu.read_f32(t)?)
    }

    /// Columns `from..from + width` of a matrix.
    pub fn columns(&self, t: &Tensor, from: usize, width: usize) -> Result<Vec<f32>> {
        let values = self.read(t)?;
        Ok(values
            .chunks(t.dim(1))
            .flat_map(|row| row[from..from + width].to_vec())
            .collect())
    }

    /// Positions of the prefix tensors in the group, valid or not.
    pub fn prefix_len(&self) -> Result<usize> {
        let prompt = self.f.array("forward:obs/tokens")?.len() / self.len();
        Ok(self.dims.cameras.len() * self.dims.image_tokens() + prompt)
    }
}
