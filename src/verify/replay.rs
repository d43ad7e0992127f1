//! What AdamW must make of a model's own moments.
//!
//! AdamW divides a gradient by its size: an element whose gradient is nearly zero moves by a whole learning rate, in the
//! direction that rounding gives it. So with storage of half precision, which rounds gradients coarsely, the distance of
//! parameters to the reference says little. The moments say it, and they are held to the reference; and of these the
//! optimizer, which is f32 whatever the model is stored as, must make the parameters that are computed here, in f64.

use std::collections::HashMap;

use super::group::TrainingGroup;
use super::{Result, inputs};
use crate::gpu::Gpu;
use crate::model::params::ParamStore;
use crate::step::learner::Group;

type Values = HashMap<String, Vec<f64>>;

/// The parameters of one network, and their average, step by step.
pub(super) struct Replay {
    pub weights: Values,
    pub average: Values,
    beta1: f64,
    beta2: f64,
    eps: f64,
    decay: f64,
    /// Rate of the average.
    rate: f64,
    steps: i32,
}

impl Replay {
    /// From tensors `start` + name, which the average starts from too; `decay` names the weight decay of the group.
    pub fn new(group: &TrainingGroup, store: &ParamStore, start: &str, decay: &str, rate: f64) -> Result<Replay> {
        let table = store.placement().table().clone();
        let values = inputs::parameters(&group.f, start, table.tensors())?;
        let wide = |v: Vec<f32>| v.into_iter().map(f64::from).collect::<Vec<f64>>();
        let weights: Values = values.into_iter().map(|(name, v)| (name, wide(v))).collect();
        Ok(Replay {
            average: weights.clone(),
            weights,
            beta1: group.hyper("beta1")?,
            beta2: group.hyper("beta2")?,
            eps: group.hyper("eps")?,
            decay: group.hyper(decay)?,
            rate,
            steps: 0,
        })
    }

    /// The update that has left the group's moments as they are.
    pub fn step(&mut self, gpu: &Gpu, group: &Group, lr: f64) -> Result<()> {
        self.steps += 1;
        let unbias = |beta: f64| 1.0 / (1.0 - beta.powi(self.steps));
        let (unbias1, unbias2) = (unbias(self.beta1), unbias(self.beta2));
        let first = inputs::read(gpu, &group.m)?;
        let second = inputs::read(gpu, group.v.as_ref().expect("AdamW has a second moment"))?;
        for (name, weights) in &mut self.weights {
            let average = self.average.get_mut(name).into_iter().flatten();
            let moments = first[name].iter().zip(&second[name]);
            for ((w, a), (&m, &v)) in weights.iter_mut().zip(average).zip(moments) {
                let direction = f64::from(m) * unbias1 / ((f64::from(v) * unbias2).sqrt() + self.eps);
                *w -= lr * (direction + self.decay * *w);
                *a += self.rate * (*w - *a);
            }
        }
        Ok(())
    }
}
