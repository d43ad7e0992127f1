//! Weights: from the fixture into burn's modules and back, and what goes over all weights of a module.
//!
//! A weight is known by burn's id of it, which copies, gradients and optimizer states share.

use std::collections::HashMap;

use anyhow::ensure;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::nn::{LayerNorm, LayerNormConfig, Linear};
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

use crate::fixture::{Array, Arrays, array};

pub const EPS: f64 = 1e-6;

/// How the fixture has a weight.
#[derive(Clone, Debug)]
struct Stored {
    name: String,
    shape: Vec<usize>,
    turned: Option<Turned>,
}

/// The fixture's products have `[batch, out, in]`, burn's `[batch, in, out]`.
#[derive(Clone, Copy, Debug)]
struct Turned {
    out: usize,
    into: usize,
}

impl Turned {
    fn to_burn(self, x: &[f32]) -> Vec<f32> {
        turn(x, self.out, self.into)
    }

    fn to_fixture(self, x: &[f32]) -> Vec<f32> {
        turn(x, self.into, self.out)
    }
}

/// Transposes matrices of `rows` × `columns`.
fn turn(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let matrices = x.chunks_exact(rows * columns);
    matrices
        .flat_map(|m| (0..columns).flat_map(move |c| (0..rows).map(move |r| m[r * columns + c])))
        .collect()
}

/// Which weight is which.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<ParamId, Stored>);

/// Makes weights of the fixture's tensors.
pub struct Loader<'a, B: Backend> {
    pub tensors: &'a Arrays,
    pub device: &'a B::Device,
    pub names: Names,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(tensors: &'a Arrays, device: &'a B::Device) -> Self {
        let names = Names::default();
        Loader { tensors, device, names }
    }

    fn param<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        turned: Option<Turned>,
    ) -> anyhow::Result<Param<Tensor<B, D>>> {
        let stored = array(self.tensors, name)?;
        let values = turned.map_or_else(|| stored.values.clone(), |turned| turned.to_burn(&stored.values));
        let param = Param::from_data(TensorData::new(values, shape), self.device);
        let (name, shape) = (name.to_owned(), stored.shape.clone());
        self.names.0.insert(param.id, Stored { name, shape, turned });
        Ok(param)
    }

    /// As it is stored.
    pub fn plain<const D: usize>(&mut self, name: &str) -> anyhow::Result<Param<Tensor<B, D>>> {
        let stored = &array(self.tensors, name)?.shape;
        let shape = <[usize; D]>::try_from(&stored[..]);
        ensure!(shape.is_ok(), "{name} has shape {stored:?}, not {D} axes");
        self.param(name, shape.unwrap_or([0; D]), None)
    }

    /// `[out, in, …]` as burn's `[in, out]`.
    pub fn matrix(&mut self, name: &str) -> anyhow::Result<Param<Tensor<B, 2>>> {
        let shape = &array(self.tensors, name)?.shape;
        let (out, into) = (shape[0], shape[1..].iter().product());
        self.param(name, [into, out], Some(Turned { out, into }))
    }

    /// `[n, out, in]` as burn's `[n, in, out]`.
    pub fn matrices(&mut self, name: &str) -> anyhow::Result<Param<Tensor<B, 3>>> {
        let stored = &array(self.tensors, name)?.shape;
        ensure!(stored.len() == 3, "{name} has shape {stored:?}, not 3 axes");
        let [n, out, into] = [stored[0], stored[1], stored[2]];
        self.param(name, [n, into, out], Some(Turned { out, into }))
    }

    pub fn linear(&mut self, name: &str) -> anyhow::Result<Linear<B>> {
        let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
        Ok(Linear {
            weight: self.matrix(&weight)?,
            bias: match self.tensors.contains_key(&bias) {
                true => Some(self.plain(&bias)?),
                false => None,
            },
        })
    }

    pub fn layer_norm(&mut self, name: &str) -> anyhow::Result<LayerNorm<B>> {
        let gamma = self.plain(&format!("{name}.weight"))?;
        let config = LayerNormConfig::new(gamma.dims()[0]).with_epsilon(EPS);
        let mut norm = config.init(self.device);
        norm.gamma = gamma;
        norm.beta = Some(self.plain(&format!("{name}.bias"))?);
        Ok(norm)
    }
}

impl Names {
    fn array(&self, id: ParamId, data: TensorData) -> anyhow::Result<Option<(String, Array)>> {
        let Some(stored) = self.0.get(&id) else { return Ok(None) };
        let values = data
            .to_vec::<f32>()
            .map_err(|error| anyhow::anyhow!("{}: {error:?}", stored.name))?;
        let values = stored
            .turned
            .map_or_else(|| values.clone(), |turned| turned.to_fixture(&values));
        let shape = stored.shape.clone();
        Ok(Some((stored.name.clone(), Array { shape, values })))
    }

    /// The weights of a module as the fixture has them.
    pub fn weights<B: Backend, M: Module<B>>(&self, module: &M) -> anyhow::Result<Arrays> {
        let mut all = All(Vec::new());
        module.visit(&mut all);
        self.arrays(all.0)
    }

    /// Gradients of a module's weights as the fixture has them.
    pub fn gradients<B: AutodiffBackend, M: AutodiffModule<B>>(
        &self,
        module: &M,
        gradients: &GradientsParams,
    ) -> anyhow::Result<Arrays> {
        let mut all = Given::<B::InnerBackend>(gradients, Vec::new(), std::marker::PhantomData);
        module.valid().visit(&mut all);
        self.arrays(all.1)
    }

    fn arrays(&self, all: Vec<(ParamId, TensorData)>) -> anyhow::Result<Arrays> {
        let named = all.into_iter().map(|(id, data)| self.array(id, data));
        named.filter_map(Result::transpose).collect()
    }
}

struct All(Vec<(ParamId, TensorData)>);

impl<B: Backend> ModuleVisitor<B> for All {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.push((param.id, param.val().into_data()));
    }
}

struct Given<'a, B: Backend>(
    &'a GradientsParams,
    Vec<(ParamId, TensorData)>,
    std::marker::PhantomData<B>,
);

impl<B: Backend> ModuleVisitor<B> for Given<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.0.get::<B, D>(param.id) {
            self.1.push((param.id, gradient.into_data()));
        }
    }
}

/// Clips the gradients of a module to a global norm, which it gives. Weights the loss does not reach get zeros: AdamW
/// decays them, too.
pub fn clip<B: Backend, M: Module<B>>(module: &M, gradients: &mut GradientsParams, limit: f64) -> Tensor<B, 1> {
    let mut squares = Squares(gradients, Vec::new());
    module.visit(&mut squares);
    let norm = Tensor::cat(squares.1, 0).sum().sqrt();
    let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(limit).clamp_max(1.0);
    module.visit(&mut Scaled(gradients, factor));
    norm
}

struct Squares<'a, B: Backend>(&'a mut GradientsParams, Vec<Tensor<B, 1>>);

impl<B: Backend> ModuleVisitor<B> for Squares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        match self.0.get::<B, D>(param.id) {
            Some(gradient) => self.1.push(gradient.square().sum()),
            None => self.0.register::<B, D>(param.id, param.val().zeros_like()),
        }
    }
}

struct Scaled<'a, B: Backend>(&'a mut GradientsParams, Tensor<B, 1>);

impl<B: Backend> ModuleVisitor<B> for Scaled<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(gradient) = self.0.remove::<B, D>(param.id) {
            let factor = self.1.clone().reshape([1; D]);
            self.0.register::<B, D>(param.id, gradient.mul(factor));
        }
    }
}

/// `average + share · (module − average)`
pub fn towards<B: Backend, M: Module<B>>(average: M, module: &M, share: f64) -> M {
    let mut values = Values(GradientsParams::new());
    module.visit(&mut values);
    average.map(&mut Lerp(values.0, share))
}

/// Weights by their ids.
struct Values(GradientsParams);

impl<B: Backend> ModuleVisitor<B> for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.0.register::<B, D>(param.id, param.val());
    }
}

struct Lerp(GradientsParams, f64);

impl<B: Backend> ModuleMapper<B> for Lerp {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (id, average, mapper) = param.consume();
        let moved = match self.0.remove::<B, D>(id) {
            Some(value) => value.sub(average.clone()).mul_scalar(self.1).add(average),
            None => average,
        };
        Param::from_mapped_value(id, moved, mapper)
    }
}
