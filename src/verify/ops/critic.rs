//! The critic ensemble as a single operation.

use super::Case;
use crate::gpu::Tensor;
use crate::model::bind::{CriticLayer, CriticParams};
use crate::model::critic::{self, Rows, Wanted};
use crate::model::critic_networks::Network;
use crate::model::dims::CriticDims;
use crate::verify::{Kind, Result};

/// `feats [B, F]`, `actions [B, H, A]`, ensemble parameters; `y [E, B]`. The weight's width says how many action
/// coordinates are read.
pub(super) fn critic_case(c: &mut Case<'_>) -> Result<()> {
    let depth = (0..)
        .take_while(|i| c.has(&format!("in/critic.layers.{i}.linear.weight")))
        .count();
    if depth == 0 {
        return Err(c.broken("there is no hidden layer"));
    }
    // Layer i reads x{i} and writes x{i+1}.
    let mut shapes = format!("in/critic.out.weight e 1 x{depth}; in/critic.out.bias e 1; cot/dy e b; in/feats b F;");
    for i in 0..depth {
        let (layer, to) = (format!("in/critic.layers.{i}"), i + 1);
        shapes += &format!("{layer}.linear.weight e x{to} x{i}; {layer}.linear.bias e x{to};");
        shapes += &format!("{layer}.norm.weight e x{to}; {layer}.norm.bias e x{to};");
    }
    c.expect(&shapes)?;
    let (features, actions) = (c.tensor("in/feats")?, c.tensor("in/actions")?);
    let ([b, h, a], [e, _, input]) = (c.axes("in/actions")?, c.axes("in/critic.layers.0.linear.weight")?);
    let coordinates = input.saturating_sub(features.dim(1));
    let real = coordinates / h;
    if real == 0 || real * h != coordinates || real > a || real > features.dim(1) {
        return Err(c.broken(format!(
            "weights of width {input} do not fit {} features and {h} actions of {a} coordinates",
            features.dim(1)
        )));
    }
    let (mut layers, mut hidden) = (Vec::new(), Vec::new());
    for i in 0..depth {
        let part = |what: &str| c.tensor(&format!("in/critic.layers.{i}.{what}"));
        let layer = CriticLayer {
            linear: (part("linear.weight")?, part("linear.bias")?),
            norm: (part("norm.weight")?, part("norm.bias")?),
        };
        hidden.push(layer.norm.0.dim(1));
        layers.push(layer);
    }
    // The features given here include the state, so the dimension that splits them does not matter.
    let d = CriticDims {
        critics: e,
        hidden,
        network: Network::Mlp,
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
