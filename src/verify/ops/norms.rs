//! Norms.

use super::Case;
use crate::ops::blocks::{self, Rect};
use crate::ops::layer_norm::{self, LayerNorm};
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::{column_sum, gemm};
use crate::verify::Result;

pub(super) fn rms_norm_case(c: &mut Case<'_>) -> Result<()> {
    let (x, scale, dy) = (c.stream_rows("in/x")?, c.stored("in/scale")?, c.stored_rows("cot/dy")?);
    let (y, dx, again) = (c.like(&dy), c.stream_like(&x), c.like(&dy));
    let (dscale, rstd) = (c.zeros(&scale), rms_norm::rstd(c.gpu, x.dim(0)));
    let modulation = Modulation::Plain(&scale);
    rms_norm::forward(c.gpu, &x, modulation, &y);
    let backward = rms_norm::Backward {
        x: &x,
        modulation,
        dy: &dy,
        around: None,
        dx: &dx.sum,
        rounded: dx.rounded(),
        y: Some(&again),
        rstd: Some(&rstd),
    };
    rms_norm::backward(c.gpu, backward);
    rms_norm::backward_scale(c.gpu, &x, &rstd, &dy, &dscale);
    c.output("y", &y)?;
    c.output("y", &again)?;
    c.stream_gradient("x", &dx)?;
    c.gradient("scale", &dscale)
}

pub(super) fn ada_rms_norm_case(c: &mut Case<'_>) -> Result<()> {
    // One modulation per sample: rows of sample b use line b.
    let [b, l, d] = c.axes("in/x")?;
    // What depends on the time alone is f32.
    let (x, cond, w, bias) = (
        c.stream_rows("in/x")?,
        c.rows("in/cond")?,
        c.stored("in/w")?,
        c.stored("in/b")?,
    );
    let (dy, dgate) = (c.stored_rows("cot/dy0")?, c.rows("cot/dy1")?);
    let groups: Vec<u32> = (0..b * l).map(|r| (r / l) as u32).collect();
    let starts: Vec<u32> = (0..=b).map(|i| (i * l) as u32).collect();
    let (groups, starts) = (c.gpu.upload_u32(&groups, [b * l]), c.gpu.upload_u32(&starts, [b + 1]));

    let table = c.gpu.f32([b, 3 * d]);
    gemm::nt(&cond, &w).bias(&bias).to(c.gpu, &table);
    let modulation = Modulation::Adaptive {
        table: &table,
        groups: &groups,
    };
    let y = c.like(&dy);
    rms_norm::forward(c.gpu, &x, modulation, &y);
    let gate = c.gpu.f32([b, d]);
    blocks::copy(
        c.gpu,
        Rect::from(&table, 3 * d, 2 * d),
        Rect::rows(&gate, d),
        b,
        d,
        false,
    );
    let (dx, again, rstd) = (c.stream_like(&x), c.like(&dy), rms_norm::rstd(c.gpu, b * l));
    let backward = rms_norm::Backward {
        x: &x,
        modulation,
        dy: &dy,
        around: None,
        dx: &dx.sum,
        rounded: dx.rounded(),
        y: Some(&again),
        rstd: Some(&rstd),
    };
    rms_norm::backward(c.gpu, backward);
    let dtable = c.gpu.f32([b, 3 * d]);
    rms_norm::backward_modulation(c.gpu, &x, &rstd, &dy, &starts, &dtable);
    blocks::copy(
        c.gpu,
        Rect::rows(&dgate, d),
        Rect::from(&dtable, 3 * d, 2 * d),
        b,
        d,
        false,
    );
    let (dcond, dw, db) = (c.like(&cond), c.zeros(&w), c.zeros(&bias));
    gemm::nn(&dtable, &w).to(c.gpu, &dcond);
    gemm::tn(&dtable, &cond).add_to(c.gpu, &dw);
    column_sum::accumulate(c.gpu, column_sum::Term::Plain { dy: &dtable }, &db);
    c.output("y0", &y)?;
    c.output("y0", &again)?;
    c.output("y1", &gate)?;
    c.stream_gradient("x", &dx)?;
    c.gradient("cond", &dcond)?;
    c.gradient("w", &dw)?;
    c.gradient("b", &db)
}

pub(super) fn layer_norm_case(c: &mut Case<'_>) -> Result<()> {
    let (x, w, b, dy) = (
        c.stream_rows("in/x")?,
        c.stored("in/weight")?,
        c.stored("in/bias")?,
        c.stored_rows("cot/dy")?,
    );
    let norm = LayerNorm::new(&w, &b);
    let (y, dx, again) = (c.like(&dy), c.stream_like(&x), c.like(&dy));
    let (dw, db, stats) = (c.zeros(&w), c.zeros(&b), layer_norm::stats(c.gpu, x.dim(0)));
    norm.forward(c.gpu, &x, &y);
    let backward = layer_norm::Backward {
        x: &x,
        dy: &dy,
        around: None,
        dx: &dx.sum,
        rounded: dx.rounded(),
        y: Some(&again),
        stats: Some(&stats),
    };
    norm.backward(c.gpu, backward);
    LayerNorm::backward_params(c.gpu, &x, &stats, &dy, &dw, &db);
    c.output("y", &y)?;
    c.output("y", &again)?;
    c.stream_gradient("x", &dx)?;
    c.gradient("weight", &dw)?;
    c.gradient("bias", &db)
}
