//! Products, activations, and what is made of them: MLPs, patches, a vision block.

use super::Case;
use crate::gpu::Tensor;
use crate::model::remat::Remat;
use crate::model::siglip::{self, VisionBlock};
use crate::ops::activation::{self, Activation};
use crate::ops::gemm::{self, Act};
use crate::ops::rope::Heads;
use crate::ops::{column_sum, geglu, patch_embed};
use crate::verify::policy::largest;
use crate::verify::{Kind, Result};

pub(super) fn linear_case(c: &mut Case<'_>) -> Result<()> {
    let (x, w, b, dy) = (
        c.stored_rows("in/x")?,
        c.stored("in/w")?,
        c.stored("in/b")?,
        c.stored_rows("cot/dy")?,
    );
    let (y, dx, dw, db) = (c.like(&dy), c.like(&x), c.zeros(&w), c.zeros(&b));
    gemm::nt(&x, &w).bias(&b).to(c.gpu, &y);
    gemm::nn(&dy, &w).to(c.gpu, &dx);
    gemm::tn(&dy, &x).add_to(c.gpu, &dw);
    column_sum::accumulate(c.gpu, column_sum::Term::Plain { dy: &dy }, &db);
    c.output("y", &y)?;
    c.gradient("x", &dx)?;
    c.gradient("w", &dw)?;
    c.gradient("b", &db)
}

pub(super) fn activation_case(c: &mut Case<'_>, f: Activation) -> Result<()> {
    let (x, dy) = (c.stored("in/x")?, c.stored("cot/dy")?);
    let (y, dx, again) = (c.like(&x), c.like(&x), c.like(&x));
    activation::forward(c.gpu, f, &x, &y);
    activation::backward(c.gpu, f, &x, &dy, &dx, Some(&again));
    c.output("y", &y)?;
    c.output("y", &again)?;
    c.gradient("x", &dx)
}

pub(super) fn geglu_case(c: &mut Case<'_>) -> Result<()> {
    let (x, down, dy) = (c.stored_rows("in/x")?, c.stored("in/down")?, c.stored_rows("cot/dy")?);
    let (gate, up) = (c.host("in/gate")?, c.host("in/up")?);
    let [d, f] = c.axes("in/down")?;
    let m = x.dim(0);
    let w = c.put(&[gate, up].concat(), [2 * f, d]);
    let (gate_up, act, y) = (c.activation([m, 2 * f]), c.activation([m, f]), c.like(&dy));
    gemm::nt(&x, &w).to(c.gpu, &gate_up);
    geglu::forward(c.gpu, &gate_up, &act);
    gemm::nt(&act, &down).to(c.gpu, &y);

    let (dact, dgate_up, again) = (c.like(&act), c.like(&gate_up), c.like(&act));
    let (dx, dw, ddown) = (c.like(&x), c.zeros(&w), c.zeros(&down));
    gemm::nn(&dy, &down).to(c.gpu, &dact);
    geglu::backward(c.gpu, &gate_up, &dact, &dgate_up, Some(&again));
    gemm::tn(&dy, &again).add_to(c.gpu, &ddown);
    gemm::nn(&dgate_up, &w).to(c.gpu, &dx);
    gemm::tn(&dgate_up, &x).add_to(c.gpu, &dw);
    c.output("y", &y)?;
    c.gradient("x", &dx)?;
    c.gradient("gate", &dw.rows(0..f))?;
    c.gradient("up", &dw.rows(f..2 * f))?;
    c.gradient("down", &ddown)
}

pub(super) fn gelu_mlp_case(c: &mut Case<'_>) -> Result<()> {
    let (x, fc1, b1) = (c.stored_rows("in/x")?, c.stored("in/fc1")?, c.stored("in/b1")?);
    let (fc2, b2, dy) = (c.stored("in/fc2")?, c.stored("in/b2")?, c.stored_rows("cot/dy")?);
    let (m, f) = (x.dim(0), fc1.dim(0));
    let (pre, act, y) = (c.activation([m, f]), c.activation([m, f]), c.like(&dy));
    gemm::nt(&x, &fc1)
        .bias(&b1)
        .act(Act::Gelu)
        .save_pre(&pre)
        .to(c.gpu, &act);
    gemm::nt(&act, &fc2).bias(&b2).to(c.gpu, &y);

    let (dact, again) = (c.like(&act), c.like(&act));
    let (dx, dfc1, dfc2, db1, db2) = (c.like(&x), c.zeros(&fc1), c.zeros(&fc2), c.zeros(&b1), c.zeros(&b2));
    gemm::nn(&dy, &fc2).to(c.gpu, &dact);
    activation::backward(c.gpu, Activation::Gelu, &pre, &dact, &dact, Some(&again));
    gemm::tn(&dy, &again).add_to(c.gpu, &dfc2);
    column_sum::accumulate(c.gpu, column_sum::Term::Plain { dy: &dy }, &db2);
    gemm::nn(&dact, &fc1).to(c.gpu, &dx);
    gemm::tn(&dact, &x).add_to(c.gpu, &dfc1);
    column_sum::accumulate(c.gpu, column_sum::Term::Plain { dy: &dact }, &db1);
    c.output("y", &y)?;
    c.gradient("x", &dx)?;
    c.gradient("fc1", &dfc1)?;
    c.gradient("b1", &db1)?;
    c.gradient("fc2", &dfc2)?;
    c.gradient("b2", &db2)
}

pub(super) fn patch_embed_case(c: &mut Case<'_>) -> Result<()> {
    let (image, weight, bias, dy) = (
        c.tensor("in/image")?,
        c.stored("in/weight")?,
        c.stored("in/bias")?,
        c.stored_rows("cot/dy")?,
    );
    let ([_, height, width, _], [_, _, patch, _]) = (c.axes("in/image")?, c.axes("in/weight")?);
    let [_, tokens, _] = c.axes("cot/dy")?;
    let fits = height.is_multiple_of(patch) && width.is_multiple_of(patch);
    if !fits || tokens != height / patch * (width / patch) {
        return Err(c.broken(format!(
            "{tokens} patches of {patch} do not tile {height} x {width} pixels"
        )));
    }
    let patches = c.activation([dy.dim(0), 3 * patch * patch]);
    let (y, dimage, dweight, dbias) = (c.like(&dy), c.like(&image), c.zeros(&weight), c.zeros(&bias));
    patch_embed::cut(c.gpu, &image, patch, &patches);
    patch_embed::forward(c.gpu, &patches, &weight, &bias, None, &y);
    patch_embed::backward(c.gpu, &patches, &dy, &dweight, &dbias, None);
    patch_embed::backward_image(c.gpu, &dy, &weight, patch, &dimage);
    c.output("y", &y)?;
    c.gradient("image", &dimage)?;
    c.gradient("weight", &dweight)?;
    c.gradient("bias", &dbias)
}

pub(super) fn vit_block_case(c: &mut Case<'_>) -> Result<()> {
    let [images, tokens, w] = c.axes("in/x")?;
    let (x, dy) = (c.stream_rows("in/x")?, c.stream_grad("cot/dy")?);
    let stack = |c: &Case<'_>, names: [&str; 3], what: &str| -> Result<Tensor> {
        let parts: Vec<Vec<f32>> = names
            .iter()
            .map(|n| c.host(&format!("in/self_attn.{n}.{what}")))
            .collect::<Result<_>>()?;
        let flat = parts.concat();
        Ok(if what == "weight" {
            c.put(&flat, [3 * w, w])
        } else {
            c.put(&flat, [3 * w])
        })
    };
    let qkv = ["q_proj", "k_proj", "v_proj"];
    let params = VisionBlock {
        norm1: (c.stored("in/layer_norm1.weight")?, c.stored("in/layer_norm1.bias")?),
        qkv: (stack(c, qkv, "weight")?, stack(c, qkv, "bias")?),
        out: (
            c.stored("in/self_attn.out_proj.weight")?,
            c.stored("in/self_attn.out_proj.bias")?,
        ),
        norm2: (c.stored("in/layer_norm2.weight")?, c.stored("in/layer_norm2.bias")?),
        fc1: (c.stored("in/mlp.fc1.weight")?, c.stored("in/mlp.fc1.bias")?),
        fc2: (c.stored("in/mlp.fc2.weight")?, c.stored("in/mlp.fc2.bias")?),
    };
    let layout = siglip::ImageLayout::new(c.gpu, images, tokens);
    // The number of heads is not part of the fixture: it is the one that reproduces y.
    let want = c.host("out/y")?;
    let mut best: Option<(f64, Heads)> = None;
    for n in (1..=w).filter(|n| w % n == 0) {
        let heads = Heads {
            q: n,
            kv: n,
            dim: w / n,
        };
        let y = c.like(&x);
        siglip::block_forward(c.gpu, &params, heads, &layout, &x, &y, None);
        let distance = c
            .gpu
            .read_f32(&y)?
            .iter()
            .zip(&want)
            .map(|(g, w)| (g - w).abs() as f64)
            .sum::<f64>();
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, heads));
        }
    }
    let heads = best.ok_or_else(|| c.broken("x has no width"))?.1;
    for remat in [Remat::None, Remat::Mlp, Remat::Full] {
        let grads = params.map(|t| c.zeros(t));
        let (y, dx) = (c.like(&x), c.stream_like(&x));
        let saved = siglip::block_forward(c.gpu, &params, heads, &layout, &x, &y, Some(remat));
        let saved = saved.ok_or_else(|| c.broken("nothing was kept"))?;
        siglip::block_backward(c.gpu, &params, &grads, heads, &layout, &x, saved, &dy, Some(&dx));
        c.output("y", &y)?;
        c.stream_gradient("x", &dx)?;
        for (name, (weight, bias)) in [
            ("layer_norm1", &grads.norm1),
            ("layer_norm2", &grads.norm2),
            ("self_attn.out_proj", &grads.out),
            ("mlp.fc1", &grads.fc1),
            ("mlp.fc2", &grads.fc2),
        ] {
            c.gradient(&format!("{name}.weight"), weight)?;
            c.gradient(&format!("{name}.bias"), bias)?;
        }
        for (i, name) in qkv.iter().enumerate() {
            c.gradient(
                &format!("self_attn.{name}.weight"),
                &grads.qkv.0.rows(i * w..(i + 1) * w),
            )?;
            let bias = &grads.qkv.1.rows(i * w..(i + 1) * w);
            if *name == "k_proj" {
                // Softmax does not change when all keys move together: only rounding noise is here.
                let beside = largest(&c.host("grad/self_attn.v_proj.bias")?);
                let kind = Kind::Zero {
                    tolerance: 1e-5,
                    beside,
                };
                c.check("grad/self_attn.k_proj.bias", kind, bias)?;
            } else {
                c.gradient(&format!("self_attn.{name}.bias"), bias)?;
            }
        }
    }
    Ok(())
}
