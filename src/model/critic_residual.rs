//! The residual critic: a layer adds to what it reads, `h ← h + f(h)`, wherever it is as wide as the layer below.
//!
//! f is the MLP's layer, `linear → LayerNorm → ReLU (→ dropout)`. Backward: the gradient reaches h through f and as it is.

use super::critic_networks::CriticNetwork;
use crate::gpu::{Gpu, Tensor};
use crate::ops::blocks::{self, Rect};

/// Each layer adds to what it reads.
pub struct Residual;

impl CriticNetwork for Residual {
    const LAYERS: &'static str = "blocks";

    fn join(gpu: &Gpu, below: &Tensor, hidden: &Tensor) {
        if below.shape() == hidden.shape() {
            copy(gpu, below, hidden, true);
        }
    }

    fn split(gpu: &Gpu, dhidden: &Tensor, dbelow: &Tensor) -> bool {
        let equal = dhidden.shape() == dbelow.shape();
        if equal {
            copy(gpu, dhidden, dbelow, false);
        }
        equal
    }
}

/// `to = from`, or `+=` with `add`, `[E, R, h]` both.
fn copy(gpu: &Gpu, from: &Tensor, to: &Tensor, add: bool) {
    let (rows, width) = (to.dim(0) * to.dim(1), to.dim(2));
    blocks::copy(gpu, Rect::rows(from, width), Rect::rows(to, width), rows, width, add);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use crate::gpu::DType;
    use crate::model::bind::CriticParams;
    use crate::model::critic::{self, Rows, Wanted};
    use crate::model::critic_networks::Network;
    use crate::model::dims::CriticDims;
    use crate::model::params::{ParamStore, Placement, Scope};
    use crate::model::tables;
    use crate::ops::layer_norm;
    use crate::ops::testing::{check, close, f64s, gpu, normals};

    type Params = HashMap<String, Vec<f64>>;

    /// `Q [E, R]` in float64, row r of sample r.
    fn reference(d: &CriticDims, p: &Params, features: &[f64], actions: &[f64]) -> Vec<f64> {
        let (f, a) = (d.observation(), d.actions());
        let mut q = Vec::new();
        for e in 0..d.critics {
            for r in 0..actions.len() / a {
                let mut below = [&features[r * f..(r + 1) * f], &actions[r * a..(r + 1) * a]].concat();
                for (i, &h) in d.hidden.iter().enumerate() {
                    let part =
                        |what: &str, len: usize| &p[&format!("critic.blocks.{i}.{what}")][e * len..(e + 1) * len];
                    let (w, b) = (part("linear.weight", h * below.len()), part("linear.bias", h));
                    let pre: Vec<f64> = (0..h)
                        .map(|o| {
                            b[o] + std::iter::zip(&w[o * below.len()..], &below)
                                .map(|(w, x)| w * x)
                                .sum::<f64>()
                        })
                        .collect();
                    let mean = pre.iter().sum::<f64>() / h as f64;
                    let var = pre.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / h as f64;
                    let (scale, shift) = (part("norm.weight", h), part("norm.bias", h));
                    let f = (0..h).map(|o| {
                        (scale[o] * (pre[o] - mean) / (var + f64::from(layer_norm::EPS)).sqrt() + shift[o]).max(0.0)
                    });
                    // The first layer has nothing below it but its input.
                    let skips = i > 0 && below.len() == h;
                    below = f
                        .enumerate()
                        .map(|(o, f)| if skips { f + below[o] } else { f })
                        .collect();
                }
                let (w, h) = (&p["critic.out.weight"], below.len());
                q.push(p["critic.out.bias"][e] + (0..h).map(|o| w[e * h + o] * below[o]).sum::<f64>());
            }
        }
        q
    }

    #[test]
    fn values_and_gradients_meet_finite_differences_in_float64() {
        let gpu = gpu();
        // Layers as wide as the one below, and not.
        let d = CriticDims {
            critics: 2,
            hidden: vec![6, 6, 4, 4],
            network: Network::Residual,
            feature_width: 3,
            real_action_dim: 2,
            action_horizon: 2,
        };
        let rows = 5;
        let placement = Placement::new(Arc::new(tables::critic(&d)), gpu.caps());
        let placement = Arc::new(placement);
        let store = || ParamStore::zeros(&gpu, placement.clone(), DType::F32, Scope::All);
        let (weights, grads) = (store(), store());
        let mut seed = 0;
        weights.write(&gpu, |t| {
            seed += 1;
            Some(normals(seed, t.len()))
        });
        let (features, actions) = (normals(100, rows * d.observation()), normals(101, rows * d.actions()));
        let dq = normals(102, d.critics * rows);

        let (p, g) = (CriticParams::bind(&weights, &d), CriticParams::bind(&grads, &d));
        let upload = |values: &[f32], width: usize| gpu.upload_f32(values, [values.len() / width, width]);
        let (on_features, on_actions) = (upload(&features, d.observation()), upload(&actions, d.actions()));
        let half = gpu.f32([d.critics, rows, d.hidden[0]]);
        critic::observe(&gpu, &p, &d, &on_features, &half);
        let sample: Vec<u32> = (0..rows as u32).collect();
        let given = Rows {
            half: &half,
            sample: &gpu.upload_u32(&sample, [rows]),
            actions: &on_actions,
        };
        let q = gpu.f32([d.critics, rows]);
        let tape = critic::forward(&gpu, &p, &d, given, None, &q);
        let (dfeatures, dactions) = (gpu.f32(on_features.shape()), gpu.f32(on_actions.shape()));
        let wanted = Wanted {
            params: Some((&g, &on_features)),
            actions: Some(&dactions),
            features: Some(&dfeatures),
        };
        critic::backward(&gpu, &p, &d, given, None, &tape, &upload(&dq, rows), wanted);

        let wide = |named: HashMap<String, Vec<f32>>| -> Params {
            named.into_iter().map(|(name, values)| (name, f64s(&values))).collect()
        };
        let (params, features, actions) = (wide(weights.read(&gpu).unwrap()), f64s(&features), f64s(&actions));
        check(&gpu, "q", &q, &reference(&d, &params, &features, &actions), 1e-5);

        // d (Σ dq · Q) by one number after another.
        let total = |p: &Params, f: &[f64], a: &[f64]| -> f64 {
            let q = reference(&d, p, f, a);
            q.iter().zip(&dq).map(|(q, dq)| q * f64::from(*dq)).sum()
        };
        let eps = 1e-6;
        let slope = |values: &[f64], at: &dyn Fn(Vec<f64>) -> f64| -> Vec<f64> {
            let moved = |i: usize, by: f64| {
                let mut values = values.to_vec();
                values[i] += by;
                at(values)
            };
            let each = 0..values.len();
            each.map(|i| (moved(i, eps) - moved(i, -eps)) / (2.0 * eps)).collect()
        };
        check(
            &gpu,
            "features",
            &dfeatures,
            &slope(&features, &|f| total(&params, &f, &actions)),
            1e-4,
        );
        check(
            &gpu,
            "actions",
            &dactions,
            &slope(&actions, &|a| total(&params, &features, &a)),
            1e-4,
        );
        for (name, gradient) in grads.read(&gpu).unwrap() {
            let want = slope(&params[&name], &|values| {
                let mut params = params.clone();
                params.insert(name.clone(), values);
                total(&params, &features, &actions)
            });
            // A bias in front of a norm over few elements has a small gradient: what is rounded is the others' size.
            close(&name, &gradient, &want, 2e-4);
        }
    }
}
