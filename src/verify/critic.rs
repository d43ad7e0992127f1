//! The critic ensemble as a single operation.

use super::ops::Case;
use super::{Kind, Result};
use crate::gpu::Tensor;
use crate::model::bind::{CriticLayer, CriticParams};
use crate::model::critic::{self, Rows, Wanted};
use crate::model::dims::CriticDims;

/// `feats [B, F]`, `actions [B, H, A]`, ensemble parameters; `y [E, B]`. The weight's width says how many action
/// coordinates are read.
pub(super) fn op_case(c: &mut Case<'_>) -> Result<()> {
    let (features, actions) = (c.tensor("in/feats")?, c.tensor("in/actions")?);
    let [b, h, a] = *actions.shape() else {
        return Err(c.broken("actions are not [B, H, A]"));
    };
    let mut layers = Vec::new();
    let mut hidden = Vec::new();
    while c
        .f
        .get(&c.name(&format!("in/critic.layers.{}.linear.weight", layers.len())))
        .is_some()
    {
        let part = |what: &str| c.tensor(&format!("in/critic.layers.{}.{what}", layers.len()));
        let layer = CriticLayer {
            linear: (part("linear.weight")?, part("linear.bias")?),
            norm: (part("norm.weight")?, part("norm.bias")?),
        };
        hidden.push(layer.norm.0.dim(1));
        layers.push(layer);
    }
    let first = layers.first().ok_or_else(|| c.broken("there is no hidden layer"))?;
    let [e, _, input] = *first.linear.0.shape() else {
        return Err(c.broken("weights are not [E, out, in]"));
    };
    let real = (input - features.dim(1)) / h;
    // The features given here include the state, so the dimension that splits them does not matter.
    let d = CriticDims {
        critics: e,
        hidden,
        feature_width: features.dim(1) - real,
        real_action_dim: real,
        action_horizon: h,
    };
    let p = CriticParams {
        layers,
        out: (c.tensor("in/critic.out.weight")?, c.tensor("in/critic.out.bias")?),
    };
    let zeros = |t: &Tensor| c.zeros(t);
    let grads = CriticParams {
        layers: p
            .layers
            .iter()
            .map(|l| CriticLayer {
                linear: (zeros(&l.linear.0), zeros(&l.linear.1)),
                norm: (zeros(&l.norm.0), zeros(&l.norm.1)),
            })
            .collect(),
        out: (zeros(&p.out.0), zeros(&p.out.1)),
    };

    let gpu = c.gpu;
    let half = gpu.f32([e, b, d.hidden[0]]);
    let (flat, q) = (gpu.f32([b, d.actions()]), gpu.f32([e, b]));
    let sample = gpu.upload_u32(&(0..b as u32).collect::<Vec<_>>(), [b]);
    critic::observe(gpu, &p, &d, &features, &half);
    critic::flatten(gpu, &d, &actions, a, &flat);
    let rows = Rows {
        half: &half,
        sample: &sample,
        actions: &flat,
    };
    let tape = critic::forward(gpu, &p, &d, rows, None, &q);
    let (dflat, dfeatures, dactions) = (c.like(&flat), c.like(&features), c.like(&actions));
    let wanted = Wanted {
        params: Some((&grads, &features)),
        actions: Some(&dflat),
        features: Some(&dfeatures),
    };
    critic::backward(gpu, &p, &d, rows, None, &tape, &c.tensor("cot/dy")?, wanted);
    critic::unflatten(gpu, &d, &dflat, a, &dactions);

    c.output("y", &q)?;
    c.gradient("feats", &dfeatures)?;
    c.check("grad/actions", Kind::Gradient, &dactions)?;
    for (i, layer) in grads.layers.iter().enumerate() {
        let name = |what: &str| format!("critic.layers.{i}.{what}");
        c.gradient(&name("linear.weight"), &layer.linear.0)?;
        c.gradient(&name("linear.bias"), &layer.linear.1)?;
        c.gradient(&name("norm.weight"), &layer.norm.0)?;
        c.gradient(&name("norm.bias"), &layer.norm.1)?;
    }
    c.gradient("critic.out.weight", &grads.out.0)?;
    c.gradient("critic.out.bias", &grads.out.1)
}
