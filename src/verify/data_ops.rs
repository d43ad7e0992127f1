//! Data-side numerics: normalisation, robot-space maps, letterboxing, the model's pixel range, chunk rewards.
//!
//! All of it runs on the host, in f64, except letterboxed bytes (fixed point) and the pixel range (f32, here and on the
//! device).

use super::{Fixture, Kind, Report, Result, VerifyError, axes};
use crate::data::aloha::{ALOHA_DELTAS, ALOHA_DIM};
use crate::data::chunks::Running;
use crate::data::resize::{resize_with_pad, resize_with_pad_f32};
use crate::data::transforms::{self, Aloha, DataTransforms, Normalizer, Transform, mask, pixel_to_model};
use crate::data::{NormKind, RgbImage, Stats};
use crate::gpu::Gpu;
use crate::ops::image;

/// Runs every part of the group that has a wanted tensor.
pub(super) fn run(gpu: &Gpu, f: &Fixture, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    for name in f.prefixes(wanted) {
        let mut part = Part {
            gpu,
            f,
            name: &name,
            report,
        };
        match name.as_str() {
            "norm" => part.norm()?,
            "aloha" => part.aloha()?,
            "u8_to_model" => part.pixels()?,
            "chunk" => part.chunk()?,
            _ if name.starts_with("resize") => part.resize()?,
            _ => {
                report.unknown.push(name);
                continue;
            }
        }
        let mine = format!("{name}/");
        report.untouched(f, |n| n.starts_with(&mine) && wanted(n));
    }
    report.rows.retain(|r| wanted(&r.tensor));
    Ok(())
}

/// One part of the group, and where results go.
struct Part<'a> {
    gpu: &'a Gpu,
    f: &'a Fixture,
    name: &'a str,
    report: &'a mut Report,
}

impl Part<'_> {
    fn key(&self, tensor: &str) -> String {
        format!("{}/{tensor}", self.name)
    }

    fn has(&self, tensor: &str) -> bool {
        self.f.get(&self.key(tensor)).is_some()
    }

    fn expect(&self, shapes: &str) -> Result<()> {
        axes::expect(self.f, &self.key(""), shapes)
    }

    fn f32(&self, tensor: &str) -> Result<Vec<f32>> {
        self.f.f32(&self.key(tensor))
    }

    fn f64(&self, tensor: &str) -> Result<Vec<f64>> {
        Ok(self.f32(tensor)?.into_iter().map(f64::from).collect())
    }

    fn u8(&self, tensor: &str) -> Result<Vec<u8>> {
        self.f.u8(&self.key(tensor))
    }

    /// The lengths of a tensor's N axes, which [`Part::expect`] has checked.
    fn axes<const N: usize>(&self, tensor: &str) -> Result<[usize; N]> {
        let shape = self.f.shape(&self.key(tensor))?;
        let axes = shape.try_into();
        axes.map_err(|_| self.broken(format!("{tensor} is {shape:?}, but should have {N} axes")))
    }

    fn broken(&self, what: impl std::fmt::Display) -> VerifyError {
        self.f.broken(format!("{}: {what}", self.name))
    }

    fn check(&mut self, tensor: &str, how: &str, kind: Kind, got: &[f32]) -> Result<()> {
        let want = self.f32(tensor)?;
        let name = self.key(tensor);
        self.report.compare(format!("{name}{how}"), kind, got, &want);
        Ok(())
    }

    /// A result computed in f64.
    fn rounded(&mut self, tensor: &str, got: &[f64]) -> Result<()> {
        let got: Vec<f32> = got.iter().map(|&v| v as f32).collect();
        self.check(tensor, "", Kind::Rounded, &got)
    }

    /// `x [*, d]` to `zscore` and `quantile`; `xW [*, W]`, as wide as the model, back to `un_zscoreW` and
    /// `un_quantileW`.
    fn norm(&mut self) -> Result<()> {
        self.expect("mean d; std d; q01 d; q99 d; x *n d; zscore *n d; quantile *n d")?;
        let stats = Stats {
            mean: self.f64("mean")?,
            std: self.f64("std")?,
            q01: Some(self.f64("q01")?),
            q99: Some(self.f64("q99")?),
        };
        let width = stats.mean.len();
        let mine = self.key("x");
        let wide: Vec<&str> = self.f.names().filter_map(|n| n.strip_prefix(&mine)).collect();
        let wide: Vec<&str> = wide.into_iter().filter(|w| w.parse::<usize>().is_ok()).collect();
        for (kind, name) in [(NormKind::ZScore, "zscore"), (NormKind::Quantile, "quantile")] {
            let normalizer = Normalizer::new(&stats, kind, "state", width).map_err(|e| self.broken(e))?;
            let mut x = self.f64("x")?;
            x.chunks_mut(width).for_each(|row| normalizer.normalize(row));
            self.rounded(name, &x)?;
            for wide in &wide {
                let (from, to) = (format!("x{wide}"), format!("un_{name}{wide}"));
                self.expect(&format!("{from} *m w; {to} *m w"))?;
                let model = self.f.shape(&self.key(&from))?.last().copied().unwrap_or(1);
                let mut x = self.f64(&from)?;
                x.chunks_mut(model).for_each(|row| normalizer.unnormalize(row));
                self.rounded(&to, &x)?;
            }
        }
        Ok(())
    }

    /// ALOHA's joints to π₀'s and back, with actions relative to the state.
    fn aloha(&mut self) -> Result<()> {
        let d = ALOHA_DIM;
        self.expect(&format!(
            "state b {d}; actions b h {d}; state_pi b {d}; actions_pi b h {d}; actions_pi_delta b h {d}; \
             delta_dims {d}; model_actions b h w; model_actions_absolute b h w; model_actions_robot b h {d}"
        ))?;
        let ([_, h, _], [_, _, wide]) = (self.axes("actions")?, self.axes("model_actions")?);
        if wide < d {
            return Err(self.broken(format!("model_actions has {wide} coordinates, but the robot has {d}")));
        }
        let deltas = mask(&ALOHA_DELTAS, d);
        let dims: Vec<f32> = deltas.iter().map(|&m| m as u8 as f32).collect();
        self.check("delta_dims", "", Kind::Exact, &dims)?;
        let (mut state, mut actions) = (self.f64("state")?, self.f64("actions")?);
        state.chunks_mut(d).for_each(Aloha::state);
        actions.chunks_mut(d).for_each(Aloha::action);
        self.rounded("state_pi", &state)?;
        self.rounded("actions_pi", &actions)?;

        let transforms = |robot: &[transforms::Kind]| DataTransforms {
            robot: robot.to_vec(),
            delta_mask: Some(deltas.clone()),
        };
        let mut actions = self.f64("actions")?;
        for (state, chunk) in state.chunks(d).zip(actions.chunks_mut(h * d)) {
            transforms(&[transforms::Kind::Aloha]).actions(chunk, d, state);
        }
        self.rounded("actions_pi_delta", &actions)?;

        // What leaves the model is as wide as the model; the robot takes the front of it.
        let (state, mut absolute) = (self.f64("state_pi")?, self.f64("model_actions")?);
        let mut robot: Vec<f64> = absolute.chunks(wide).flat_map(|a| a[..d].to_vec()).collect();
        for (state, chunk) in state.chunks(d).zip(absolute.chunks_mut(h * wide)) {
            transforms(&[]).actions_to_robot(chunk, wide, state);
        }
        for (state, chunk) in state.chunks(d).zip(robot.chunks_mut(h * d)) {
            transforms(&[transforms::Kind::Aloha]).actions_to_robot(chunk, d, state);
        }
        self.rounded("model_actions_absolute", &absolute)?;
        self.rounded("model_actions_robot", &robot)
    }

    /// A letterboxed picture of bytes, of floats in [-1, 1], or both.
    fn resize(&mut self) -> Result<()> {
        if !self.has("u8_in") && !self.has("f32_in") {
            return Err(self.broken("there is neither u8_in nor f32_in"));
        }
        if self.has("u8_in") {
            self.expect("u8_in h w 3; u8_out H W 3")?;
            let ([height, width, _], [to_h, to_w, _]) = (self.axes("u8_in")?, self.axes("u8_out")?);
            let pixels = self.u8("u8_in")?;
            let image = RgbImage { height, width, pixels };
            let got: Vec<f32> = resize_with_pad(&image, to_h, to_w).into_iter().map(f32::from).collect();
            self.check("u8_out", "", Kind::Exact, &got)?;
        }
        if self.has("f32_in") {
            self.expect("f32_in h w 3; f32_out H W 3")?;
            let ([h, w, _], [to_h, to_w, _]) = (self.axes("f32_in")?, self.axes("f32_out")?);
            let got = resize_with_pad_f32(&self.f32("f32_in")?, h, w, to_h, to_w);
            self.check("f32_out", "", Kind::Rounded, &got)?;
        }
        Ok(())
    }

    /// Bytes to the model's range, on the host and, as a picture of one column of grey, on the device.
    fn pixels(&mut self) -> Result<()> {
        self.expect("in *n; out *n")?;
        let bytes = self.u8("in")?;
        let host: Vec<f32> = bytes.iter().map(|&b| pixel_to_model(b)).collect();
        self.check("out", "", Kind::Exact, &host)?;
        let grey: Vec<u8> = bytes.iter().flat_map(|&b| [b; 3]).collect();
        let shape = [1, bytes.len(), 1, 3];
        let out = self.gpu.f32(shape);
        image::forward(self.gpu, &self.gpu.upload_u8(&grey, shape), None, &out);
        let device: Vec<f32> = self.gpu.read_f32(&out)?.into_iter().step_by(3).collect();
        self.check("out", " (device)", Kind::Forward, &device)
    }

    /// Running sums over chunks `[B, H]`. The group gives terminals (which end a chunk's weights) and masks (which end
    /// bootstrapping) independently; for us a terminal is both.
    fn chunk(&mut self) -> Result<()> {
        self.expect("rewards b h; masks b h; terminals b h; cum_reward b h; mask b h; valid b h")?;
        let discount = self.f.number(&format!("/groups/{}/discount", self.name))?;
        let [_, h] = self.axes("rewards")?;
        let rewards = self.f32("rewards")?;
        let (terminals, masks) = (self.f32("terminals")?, self.f32("masks")?);
        let (mut sums, mut valid, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for ((rewards, terminals), masks) in rewards.chunks(h).zip(terminals.chunks(h)).zip(masks.chunks(h)) {
            let flags = |values: &[f32], on: f32| values.iter().map(|&v| v == on).collect::<Vec<bool>>();
            let running = Running::of(rewards, &flags(terminals, 1.0), discount);
            sums.extend(running.reward);
            valid.extend(running.valid.iter().map(|&v| v as u8 as f32));
            mask.extend(Running::of(rewards, &flags(masks, 0.0), discount).mask);
        }
        self.rounded("cum_reward", &sums)?;
        self.check("valid", "", Kind::Exact, &valid)?;
        self.check("mask", "", Kind::Exact, &mask)
    }
}
