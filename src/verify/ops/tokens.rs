//! What makes tokens, and means over them.

use super::Case;
use crate::gpu::Tensor;
use crate::ops::embedding::{self, Lookup};
use crate::ops::mean_pool::{self, Runs};
use crate::ops::time_embedding;
use crate::verify::{Kind, Result};

pub(super) fn embedding_case(c: &mut Case<'_>) -> Result<()> {
    let (table, dy) = (c.stored("in/table")?, c.stored_rows("cot/dy")?);
    let tokens = c.f.i32(&c.name("in/tokens"))?;
    if let Some(token) = tokens
        .iter()
        .find(|&&t| !usize::try_from(t).is_ok_and(|t| t < table.dim(0)))
    {
        return Err(c.broken(format!("token {token} is not in the table of {}", table.dim(0))));
    }
    let scale = (table.dim(1) as f32).sqrt();
    let lookup = Lookup::new(
        c.gpu,
        tokens.iter().enumerate().map(|(i, &t)| (t as u32, i as u32)).collect(),
    );
    let (y, dtable) = (c.like(&dy), c.zeros(&table));
    // In two parts, as a table beyond the binding limit comes.
    let cut = table.dim(0) / 2;
    let parts = |t: &Tensor| vec![(0, t.rows(0..cut)), (cut, t.rows(cut..t.dim(0)))];
    embedding::forward(c.gpu, &parts(&table), &lookup, scale, &y);
    embedding::backward(c.gpu, &parts(&dtable), &lookup, scale, &dy);
    c.output("y", &y)?;
    c.gradient("table", &dtable)
}

pub(super) fn time_embedding_case(c: &mut Case<'_>) -> Result<()> {
    let times: Vec<f64> = c.host("in/t")?.iter().map(|&t| t as f64).collect();
    let width = c.width("out/y")?;
    if !width.is_multiple_of(2) {
        return Err(c.broken("an odd width cannot hold sines and cosines"));
    }
    c.check_host("out/y", Kind::Forward, &time_embedding::forward(&times, width))?;
    let dt = time_embedding::backward(&times, width, &c.host("cot/dy")?);
    let dt: Vec<f32> = dt.iter().map(|&v| v as f32).collect();
    c.check_host("grad/t", Kind::Gradient, &dt)
}

/// Valid tokens of a sample are packed next to each other.
pub(super) fn mean_pool_case(c: &mut Case<'_>) -> Result<()> {
    let [b, l, d] = c.axes("in/tokens")?;
    let (tokens, valid, dy) = (c.host("in/tokens")?, c.f.bool(&c.name("in/valid"))?, c.rows("cot/dy")?);
    let kept: Vec<usize> = (0..b * l).filter(|&r| valid[r]).collect();
    let packed: Vec<f32> = kept.iter().flat_map(|&r| tokens[r * d..(r + 1) * d].to_vec()).collect();
    let lens: Vec<u32> = valid
        .chunks(l)
        .map(|v| v.iter().filter(|&&x| x).count() as u32)
        .collect();
    let starts: Vec<u32> = lens
        .iter()
        .scan(0, |at, &n| {
            let s = *at;
            *at += n;
            Some(s)
        })
        .collect();
    let (starts, lens) = (c.gpu.upload_u32(&starts, [b]), c.gpu.upload_u32(&lens, [b]));
    let runs = Runs {
        starts: &starts,
        lens: &lens,
    };
    let x = c.gpu.upload_f32(&packed, [kept.len(), d]);
    let (pool, dx) = (c.gpu.f32([b, d]), c.zeros(&x));
    mean_pool::forward(c.gpu, &x, runs, &pool);
    mean_pool::backward(c.gpu, &dy, runs, &dx);
    c.output("y", &pool)?;
    let got = c.gpu.read_f32(&dx)?;
    let mut full = vec![0.0; b * l * d];
    for (i, &r) in kept.iter().enumerate() {
        full[r * d..(r + 1) * d].copy_from_slice(&got[i * d..(i + 1) * d]);
    }
    c.check_host("grad/tokens", Kind::Gradient, &full)
}
