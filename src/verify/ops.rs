//! Single operations: `OP/in/NAME`, `OP/out/y`, `OP/cot/dy`, `OP/grad/NAME` (the gradient of `Σ y·dy`).

use super::{Fixture, Kind, Report, Result, VerifyError};
use crate::gpu::{Gpu, Tensor};
use crate::model::remat::Remat;
use crate::model::siglip::{self, VisionBlock};
use crate::ops::activation::{self, Activation};
use crate::ops::adamw::{self, AdamW, Control, Flat, Update};
use crate::ops::attention::{Attention, Columns, KeyPlan, KeyRun, Keys, Plan, Saved, Sequence};
use crate::ops::embedding::{self, Lookup};
use crate::ops::ensemble::{self, Aggregate, Rule};
use crate::ops::gemm::{self, Act};
use crate::ops::layer_norm::{self, LayerNorm};
use crate::ops::lr_schedule::warmup_cosine;
use crate::ops::mean_pool::{self, Runs};
use crate::ops::rms_norm::{self, Modulation};
use crate::ops::rope::{self, Heads};
use crate::ops::td::{self, TdLoss};
use crate::ops::{column_sum, entropy, fill, flow, geglu, patch_embed, reduce, softmax, time_embedding};

/// Runs every operation of the group.
pub(super) fn run(gpu: &Gpu, f: &Fixture, wanted: &dyn Fn(&str) -> bool, report: &mut Report) -> Result<()> {
    let mut ops: Vec<&str> = f.names().filter_map(|n| n.split_once('/')).map(|(op, _)| op).collect();
    ops.dedup();
    for op in ops {
        let any = f
            .names()
            .any(|n| n.split_once('/').is_some_and(|(o, _)| o == op) && wanted(n));
        if !any {
            continue;
        }
        let mut case = Case {
            gpu,
            f,
            op,
            report: &mut *report,
        };
        match runner(op) {
            Some(runner) => runner(&mut case)?,
            None => report.unknown.push(op.to_string()),
        }
    }
    report.rows.retain(|r| wanted(&r.tensor));
    Ok(())
}

type Runner = fn(&mut Case<'_>) -> Result<()>;

fn runner(op: &str) -> Option<Runner> {
    Some(match op {
        "rms_norm" => rms_norm_case,
        "ada_rms_norm" => ada_rms_norm_case,
        "layer_norm" => layer_norm_case,
        "linear" => linear_case,
        "rope" => rope_case,
        "attn_mask" => attn_mask_case,
        "gqa_prefix_lm" | "gqa_cached" => attention_case,
        "softmax_masked" => softmax_case,
        "gelu_tanh" => |c| activation_case(c, Activation::Gelu),
        "swish" => |c| activation_case(c, Activation::Swish),
        "relu" => |c| activation_case(c, Activation::Relu),
        "geglu" => geglu_case,
        "gelu_mlp" => gelu_mlp_case,
        "patch_embed" => patch_embed_case,
        "vit_block" => vit_block_case,
        "embed_lookup" => embedding_case,
        "sincos" => time_embedding_case,
        "masked_mean" => mean_pool_case,
        "mse_velocity" => velocity_case,
        "ensemble_min" => ensemble_case,
        "best_of_n" => best_of_n_case,
        "critic" => super::critic::op_case,
        "entropy_estimate" => entropy_case,
        "adamw" => adamw_case,
        "lr_schedule" => lr_case,
        "soft_update" => soft_update_case,
        _ if op.starts_with("huber") => huber_case,
        _ if op.starts_with("clip_") => clip_case,
        _ => return None,
    })
}

/// One operation of the group, and where results go.
pub(super) struct Case<'a> {
    pub gpu: &'a Gpu,
    pub f: &'a Fixture,
    pub op: &'a str,
    pub report: &'a mut Report,
}

impl Case<'_> {
    pub fn name(&self, part: &str) -> String {
        format!("{}/{part}", self.op)
    }

    pub fn shape(&self, part: &str) -> Result<Vec<usize>> {
        Ok(self.f.shape(&self.name(part))?.to_vec())
    }

    pub fn host(&self, part: &str) -> Result<Vec<f32>> {
        self.f.f32(&self.name(part))
    }

    /// An input on the device, in its own shape.
    pub fn tensor(&self, part: &str) -> Result<Tensor> {
        let shape = self.shape(part)?;
        let flat = if shape.is_empty() { vec![1] } else { shape };
        Ok(self.gpu.upload_f32(&self.host(part)?, &flat[..]))
    }

    /// An input as `[rows, width]`, the width being its last axis.
    pub fn rows(&self, part: &str) -> Result<Tensor> {
        let t = self.tensor(part)?;
        let width = t.dim(t.shape().len() - 1);
        Ok(t.view([t.len() / width, width]))
    }

    pub fn zeros(&self, like: &Tensor) -> Tensor {
        let t = self.gpu.f32(like.shape());
        fill::zero(self.gpu, &t);
        t
    }

    pub fn like(&self, t: &Tensor) -> Tensor {
        self.gpu.f32(t.shape())
    }

    pub fn check(&mut self, part: &str, kind: Kind, got: &Tensor) -> Result<()> {
        let got = self.gpu.read_f32(got)?;
        self.check_host(part, kind, &got)
    }

    pub fn check_host(&mut self, part: &str, kind: Kind, got: &[f32]) -> Result<()> {
        let want = self.host(part)?;
        self.report.compare(self.name(part), kind, got, &want);
        Ok(())
    }

    pub fn output(&mut self, part: &str, got: &Tensor) -> Result<()> {
        self.check(&format!("out/{part}"), Kind::Forward, got)
    }

    pub fn gradient(&mut self, part: &str, got: &Tensor) -> Result<()> {
        self.check(&format!("grad/{part}"), Kind::Gradient, got)
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        self.f.number(&format!("/ops/{}/{key}", self.op))
    }

    pub fn broken(&self, what: impl Into<String>) -> VerifyError {
        self.f.broken(format!("{}: {}", self.op, what.into()))
    }
}

fn rms_norm_case(c: &mut Case<'_>) -> Result<()> {
    let (x, scale, dy) = (c.rows("in/x")?, c.tensor("in/scale")?, c.rows("cot/dy")?);
    let (y, dx, again) = (c.like(&x), c.like(&x), c.like(&x));
    let (dscale, rstd) = (c.zeros(&scale), rms_norm::rstd(c.gpu, x.dim(0)));
    let modulation = Modulation::Plain(&scale);
    rms_norm::forward(c.gpu, &x, modulation, &y);
    let backward = rms_norm::Backward {
        x: &x,
        modulation,
        dy: &dy,
        around: None,
        dx: &dx,
        y: Some(&again),
        rstd: Some(&rstd),
    };
    rms_norm::backward(c.gpu, backward);
    rms_norm::backward_scale(c.gpu, &x, &rstd, &dy, &dscale);
    c.output("y", &y)?;
    c.output("y", &again)?;
    c.gradient("x", &dx)?;
    c.gradient("scale", &dscale)
}

fn ada_rms_norm_case(c: &mut Case<'_>) -> Result<()> {
    // One modulation per sample: rows of sample b use line b.
    let shape = c.shape("in/x")?;
    let (b, l, d) = (shape[0], shape[1], shape[2]);
    let (x, cond, w, bias) = (
        c.rows("in/x")?,
        c.rows("in/cond")?,
        c.tensor("in/w")?,
        c.tensor("in/b")?,
    );
    let (dy, dgate) = (c.rows("cot/dy0")?, c.rows("cot/dy1")?);
    let groups: Vec<u32> = (0..b * l).map(|r| (r / l) as u32).collect();
    let starts: Vec<u32> = (0..=b).map(|i| (i * l) as u32).collect();
    let (groups, starts) = (c.gpu.upload_u32(&groups, [b * l]), c.gpu.upload_u32(&starts, [b + 1]));

    let table = c.gpu.f32([b, 3 * d]);
    gemm::nt(&cond, &w).bias(&bias).to(c.gpu, &table);
    let modulation = Modulation::Adaptive {
        table: &table,
        groups: &groups,
    };
    let y = c.like(&x);
    rms_norm::forward(c.gpu, &x, modulation, &y);
    let gate = c.gpu.f32([b, d]);
    crate::ops::blocks::copy(
        c.gpu,
        crate::ops::blocks::Rect::from(&table, 3 * d, 2 * d),
        crate::ops::blocks::Rect::rows(&gate, d),
        b,
        d,
        false,
    );
    let (dx, again, rstd) = (c.like(&x), c.like(&x), rms_norm::rstd(c.gpu, b * l));
    let backward = rms_norm::Backward {
        x: &x,
        modulation,
        dy: &dy,
        around: None,
        dx: &dx,
        y: Some(&again),
        rstd: Some(&rstd),
    };
    rms_norm::backward(c.gpu, backward);
    let dtable = c.gpu.f32([b, 3 * d]);
    rms_norm::backward_modulation(c.gpu, &x, &rstd, &dy, &starts, &dtable);
    crate::ops::blocks::copy(
        c.gpu,
        crate::ops::blocks::Rect::rows(&dgate, d),
        crate::ops::blocks::Rect::from(&dtable, 3 * d, 2 * d),
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
    c.gradient("x", &dx)?;
    c.gradient("cond", &dcond)?;
    c.gradient("w", &dw)?;
    c.gradient("b", &db)
}

fn layer_norm_case(c: &mut Case<'_>) -> Result<()> {
    let (x, w, b, dy) = (
        c.rows("in/x")?,
        c.tensor("in/weight")?,
        c.tensor("in/bias")?,
        c.rows("cot/dy")?,
    );
    let norm = LayerNorm::new(&w, &b);
    let (y, dx, again) = (c.like(&x), c.like(&x), c.like(&x));
    let (dw, db, stats) = (c.zeros(&w), c.zeros(&b), layer_norm::stats(c.gpu, x.dim(0)));
    norm.forward(c.gpu, &x, &y);
    norm.backward(c.gpu, &x, &dy, None, &dx, Some(&again), Some(&stats));
    LayerNorm::backward_params(c.gpu, &x, &stats, &dy, &dw, &db);
    c.output("y", &y)?;
    c.output("y", &again)?;
    c.gradient("x", &dx)?;
    c.gradient("weight", &dw)?;
    c.gradient("bias", &db)
}

fn linear_case(c: &mut Case<'_>) -> Result<()> {
    let (x, w, b, dy) = (c.rows("in/x")?, c.tensor("in/w")?, c.tensor("in/b")?, c.rows("cot/dy")?);
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

fn rope_case(c: &mut Case<'_>) -> Result<()> {
    let shape = c.shape("in/x")?;
    let (b, l, n, k) = (shape[0], shape[1], shape[2], shape[3]);
    let heads = Heads { q: n, kv: n, dim: k };
    let positions = c.f.i32(&c.name("in/positions"))?;
    let (low, high) = (
        positions.iter().min().copied().unwrap_or(0),
        positions.iter().max().copied().unwrap_or(0),
    );
    let table = rope::Table::new(c.gpu, low as i64, (high - low + 1) as usize, k);
    let lines: Vec<u32> = positions.iter().map(|p| (p - low) as u32).collect();
    let lines = c.gpu.upload_u32(&lines, [b * l]);
    // q, k and v all carry x: q and k must be turned, v must not.
    let fused = |host: &[f32]| -> Vec<f32> { host.chunks(n * k).flat_map(|row| [row, row, row].concat()).collect() };
    let pick = |host: &[f32], part: usize| -> Vec<f32> {
        host.chunks(3 * n * k)
            .flat_map(|row| row[part * n * k..(part + 1) * n * k].to_vec())
            .collect()
    };
    for (input, output, backward) in [("in/x", "out/y", false), ("cot/dy", "grad/x", true)] {
        let kind = if backward { Kind::Gradient } else { Kind::Forward };
        let host = c.host(input)?;
        let rows = c.gpu.upload_f32(&fused(&host), [b * l, heads.fused()]);
        let f = if backward { rope::backward } else { rope::forward };
        f(c.gpu, heads, &table, &lines, &rows, None);
        let got = c.gpu.read_f32(&rows)?;
        c.check_host(output, kind, &pick(&got, 0))?;
        c.check_host(output, kind, &pick(&got, 1))?;
        c.report.compare(c.name("v stays"), Kind::Exact, &pick(&got, 2), &host);
        // Through a cache, whose lines are in reverse order.
        let rows = c.gpu.upload_f32(&fused(&host), [b * l, heads.fused()]);
        let order: Vec<u32> = (0..(b * l) as u32).rev().collect();
        let reversed: Vec<f32> = host.chunks(n * k).rev().flat_map(|row| [row, row].concat()).collect();
        let kv = c.gpu.upload_f32(&reversed, [b * l, 2 * n * k]);
        let cache = rope::Cache {
            kv: &kv,
            lines: &c.gpu.upload_u32(&order, [b * l]),
        };
        f(c.gpu, heads, &table, &lines, &rows, Some(cache));
        let got = if backward {
            pick(&c.gpu.read_f32(&rows)?, 1)
        } else {
            let kv = c.gpu.read_f32(&kv)?;
            kv.chunks(2 * n * k)
                .rev()
                .flat_map(|row| row[..n * k].to_vec())
                .collect()
        };
        c.check_host(output, kind, &got)?;
    }
    Ok(())
}

/// The mask as our sequences state it: which rows see which keys, with positions that count valid tokens.
fn attn_mask_case(c: &mut Case<'_>) -> Result<()> {
    let (valid, starts) = (c.f.bool(&c.name("in/valid"))?, c.f.bool(&c.name("in/block_start"))?);
    let l = starts.len();
    let block: Vec<usize> = starts
        .iter()
        .scan(0, |at, &s| {
            *at += s as usize;
            Some(*at)
        })
        .collect();
    let mut mask = Vec::new();
    let mut positions = Vec::new();
    for row in valid.chunks(l) {
        let mut seen = 0i32;
        for i in 0..l {
            seen += row[i] as i32;
            positions.push((seen - 1) as f32);
            mask.extend((0..l).map(|j| (row[i] && row[j] && block[j] <= block[i]) as u8 as f32));
        }
    }
    c.check_host("out/mask", Kind::Exact, &mask)?;
    c.check_host("out/positions", Kind::Exact, &positions)
}

/// Rows with the same mask form a packed sequence over the keys they see. A row that sees nothing attends to all keys
/// alike, as a zero query does, and its query gets no gradient.
fn attention_case(c: &mut Case<'_>) -> Result<()> {
    let (qs, ks) = (c.shape("in/q")?, c.shape("in/k")?);
    let (b, t, n, k) = (qs[0], qs[1], qs[2], qs[3]);
    let (s, kv) = (ks[1], ks[2]);
    let heads = Heads { q: n, kv, dim: k };
    let (q, key, value, dy) = (c.host("in/q")?, c.host("in/k")?, c.host("in/v")?, c.host("cot/dy")?);
    let mask = c.f.bool(&c.name("in/mask"))?;
    let (qw, kw) = (n * k, kv * k);

    // Packed rows: (sample, row) of each query; (sample, key) of each cache line.
    let (mut queries, mut lines, mut sequences, mut blind) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for sample in 0..b {
        let row_mask = |r: usize| &mask[(sample * t + r) * s..][..s];
        let mut done = vec![false; t];
        for r in 0..t {
            if done[r] {
                continue;
            }
            let same: Vec<usize> = (r..t).filter(|&o| row_mask(o) == row_mask(r)).collect();
            let none = !row_mask(r).iter().any(|&m| m);
            let seen: Vec<usize> = (0..s).filter(|&j| none || row_mask(r)[j]).collect();
            sequences.push(Sequence {
                q_row0: queries.len(),
                q_rows: same.len(),
                k_row0: lines.len(),
                k_rows: seen.len(),
                ..Sequence::default()
            });
            for &o in &same {
                done[o] = true;
                queries.push((sample, o));
                blind.push(none);
            }
            lines.extend(seen.into_iter().map(|j| (sample, j)));
        }
    }
    let pack = |from: &[f32], width: usize, at: &[(usize, usize)], per: usize| -> Vec<f32> {
        at.iter()
            .flat_map(|&(sample, r)| from[(sample * per + r) * width..][..width].to_vec())
            .collect()
    };
    let mut packed_q = pack(&q, qw, &queries, t);
    for (row, &none) in packed_q.chunks_mut(qw).zip(&blind) {
        if none {
            row.fill(0.0);
        }
    }
    let cache: Vec<f32> = lines
        .iter()
        .flat_map(|&(sample, j)| {
            [
                &key[(sample * s + j) * kw..][..kw],
                &value[(sample * s + j) * kw..][..kw],
            ]
            .concat()
        })
        .collect();
    let g_q = c.gpu.upload_f32(&packed_q, [queries.len(), qw]);
    let g_do = c.gpu.upload_f32(&pack(&dy, qw, &queries, t), [queries.len(), qw]);
    let g_kv = c.gpu.upload_f32(&cache, [lines.len(), 2 * kw]);
    let runs = sequences
        .iter()
        .map(|q| KeyRun {
            k_row0: q.k_row0,
            k_rows: q.k_rows,
            queries: vec![(q.q_row0, q.q_rows)],
        })
        .collect();
    let (plan, key_plan) = (Plan::new(c.gpu, sequences), KeyPlan::new(c.gpu, runs));
    let keys = Keys::cache(&g_kv, heads);

    for method in crate::ops::attention::methods(heads) {
        let attention = Attention {
            heads,
            method: Some(method),
        };
        let (o, lse, delta) = (
            c.like(&g_q),
            c.gpu.f32([queries.len(), n]),
            c.gpu.f32([queries.len(), n]),
        );
        let (dq, dkv) = (c.like(&g_q), c.like(&g_kv));
        attention.forward(c.gpu, &plan, Columns::all(&g_q), keys, None, &o, Some(&lse));
        let saved = Saved { o: &o, lse: &lse };
        let columns = Columns::all(&g_q);
        attention.backward_queries(
            c.gpu,
            &plan,
            columns,
            keys,
            None,
            saved,
            &g_do,
            Columns::all(&dq),
            &delta,
        );
        let dkeys = Keys::cache(&dkv, heads);
        attention.backward_keys(c.gpu, &key_plan, columns, keys, saved, &g_do, &delta, dkeys, false);

        let (o, dq, dkv) = (c.gpu.read_f32(&o)?, c.gpu.read_f32(&dq)?, c.gpu.read_f32(&dkv)?);
        let (mut y, mut grad_q) = (vec![0.0; b * t * qw], vec![0.0; b * t * qw]);
        for (i, &(sample, r)) in queries.iter().enumerate() {
            let to = (sample * t + r) * qw;
            y[to..to + qw].copy_from_slice(&o[i * qw..][..qw]);
            if !blind[i] {
                grad_q[to..to + qw].copy_from_slice(&dq[i * qw..][..qw]);
            }
        }
        let (mut grad_k, mut grad_v) = (vec![0.0; b * s * kw], vec![0.0; b * s * kw]);
        for (i, &(sample, j)) in lines.iter().enumerate() {
            for x in 0..kw {
                grad_k[(sample * s + j) * kw + x] += dkv[i * 2 * kw + x];
                grad_v[(sample * s + j) * kw + x] += dkv[i * 2 * kw + kw + x];
            }
        }
        c.check_host("out/y", Kind::Forward, &y)?;
        c.check_host("grad/q", Kind::Gradient, &grad_q)?;
        c.check_host("grad/k", Kind::Gradient, &grad_k)?;
        c.check_host("grad/v", Kind::Gradient, &grad_v)?;
    }
    Ok(())
}

/// What a row sees is moved to its front; a row that sees nothing is uniform over everything, without a gradient.
fn softmax_case(c: &mut Case<'_>) -> Result<()> {
    let (z, dy) = (c.host("in/z")?, c.host("cot/dy")?);
    let mask = c.f.bool(&c.name("in/mask"))?;
    let w = *c.shape("in/z")?.last().ok_or_else(|| c.broken("z has no axes"))?;
    let rows = z.len() / w;
    let order: Vec<Vec<usize>> = (0..rows)
        .map(|r| {
            let seen: Vec<usize> = (0..w).filter(|i| mask[r * w + i]).collect();
            if seen.is_empty() { (0..w).collect() } else { seen }
        })
        .collect();
    let blind: Vec<bool> = (0..rows)
        .map(|r| !mask[r * w..(r + 1) * w].iter().any(|&m| m))
        .collect();
    let front = |x: &[f32], zero_blind: bool| -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        for r in 0..rows {
            for (i, &from) in order[r].iter().enumerate() {
                out[r * w + i] = if zero_blind && blind[r] { 0.0 } else { x[r * w + from] };
            }
        }
        out
    };
    let lens: Vec<u32> = order.iter().map(|o| o.len() as u32).collect();
    let (g_z, g_dy) = (
        c.gpu.upload_f32(&front(&z, true), [rows, w]),
        c.gpu.upload_f32(&front(&dy, false), [rows, w]),
    );
    let lens = c.gpu.upload_u32(&lens, [rows]);
    let (p, dz) = (c.like(&g_z), c.like(&g_z));
    softmax::forward(c.gpu, &g_z, &lens, 1.0, &p, None);
    softmax::backward(c.gpu, &p, &lens, &g_dy, 1.0, &dz);
    let (p, dz) = (c.gpu.read_f32(&p)?, c.gpu.read_f32(&dz)?);
    let back = |x: &[f32], blind_zero: bool| -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        for r in 0..rows {
            for (i, &to) in order[r].iter().enumerate() {
                out[r * w + to] = if blind_zero && blind[r] { 0.0 } else { x[r * w + i] };
            }
        }
        out
    };
    c.check_host("out/y", Kind::Forward, &back(&p, false))?;
    c.check_host("grad/z", Kind::Gradient, &back(&dz, true))
}

fn activation_case(c: &mut Case<'_>, f: Activation) -> Result<()> {
    let (x, dy) = (c.tensor("in/x")?, c.tensor("cot/dy")?);
    let (y, dx, again) = (c.like(&x), c.like(&x), c.like(&x));
    activation::forward(c.gpu, f, &x, &y);
    activation::backward(c.gpu, f, &x, &dy, &dx, Some(&again));
    c.output("y", &y)?;
    c.output("y", &again)?;
    c.gradient("x", &dx)
}

fn geglu_case(c: &mut Case<'_>) -> Result<()> {
    let (x, down, dy) = (c.rows("in/x")?, c.tensor("in/down")?, c.rows("cot/dy")?);
    let (gate, up) = (c.host("in/gate")?, c.host("in/up")?);
    let [d, f] = *down.shape() else {
        return Err(c.broken("down is not a matrix"));
    };
    let m = x.dim(0);
    let w = c.gpu.upload_f32(&[gate, up].concat(), [2 * f, d]);
    let (gate_up, act, y) = (c.gpu.f32([m, 2 * f]), c.gpu.f32([m, f]), c.like(&dy));
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

fn gelu_mlp_case(c: &mut Case<'_>) -> Result<()> {
    let (x, fc1, b1) = (c.rows("in/x")?, c.tensor("in/fc1")?, c.tensor("in/b1")?);
    let (fc2, b2, dy) = (c.tensor("in/fc2")?, c.tensor("in/b2")?, c.rows("cot/dy")?);
    let (m, f) = (x.dim(0), fc1.dim(0));
    let (pre, act, y) = (c.gpu.f32([m, f]), c.gpu.f32([m, f]), c.like(&dy));
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

fn patch_embed_case(c: &mut Case<'_>) -> Result<()> {
    let (image, weight, bias, dy) = (
        c.tensor("in/image")?,
        c.tensor("in/weight")?,
        c.tensor("in/bias")?,
        c.rows("cot/dy")?,
    );
    let patch = weight.dim(3);
    let patches = c.gpu.f32([dy.dim(0), 3 * patch * patch]);
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

fn vit_block_case(c: &mut Case<'_>) -> Result<()> {
    let shape = c.shape("in/x")?;
    let (images, tokens, w) = (shape[0], shape[1], shape[2]);
    let (x, dy) = (c.rows("in/x")?, c.rows("cot/dy")?);
    let stack = |c: &Case<'_>, names: [&str; 3], what: &str| -> Result<Tensor> {
        let parts: Vec<Vec<f32>> = names
            .iter()
            .map(|n| c.host(&format!("in/self_attn.{n}.{what}")))
            .collect::<Result<_>>()?;
        let flat = parts.concat();
        Ok(if what == "weight" {
            c.gpu.upload_f32(&flat, [3 * w, w])
        } else {
            c.gpu.upload_f32(&flat, [3 * w])
        })
    };
    let qkv = ["q_proj", "k_proj", "v_proj"];
    let params = VisionBlock {
        norm1: (c.tensor("in/layer_norm1.weight")?, c.tensor("in/layer_norm1.bias")?),
        qkv: (stack(c, qkv, "weight")?, stack(c, qkv, "bias")?),
        out: (
            c.tensor("in/self_attn.out_proj.weight")?,
            c.tensor("in/self_attn.out_proj.bias")?,
        ),
        norm2: (c.tensor("in/layer_norm2.weight")?, c.tensor("in/layer_norm2.bias")?),
        fc1: (c.tensor("in/mlp.fc1.weight")?, c.tensor("in/mlp.fc1.bias")?),
        fc2: (c.tensor("in/mlp.fc2.weight")?, c.tensor("in/mlp.fc2.bias")?),
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
        let (y, dx) = (c.like(&x), c.like(&x));
        let saved = siglip::block_forward(c.gpu, &params, heads, &layout, &x, &y, Some(remat));
        let saved = saved.ok_or_else(|| c.broken("nothing was kept"))?;
        siglip::block_backward(c.gpu, &params, &grads, heads, &layout, &x, saved, &dy, &dx);
        c.output("y", &y)?;
        c.gradient("x", &dx)?;
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
                c.check("grad/self_attn.k_proj.bias", Kind::Zero(1e-5), bias)?;
            } else {
                c.gradient(&format!("self_attn.{name}.bias"), bias)?;
            }
        }
    }
    Ok(())
}

fn embedding_case(c: &mut Case<'_>) -> Result<()> {
    let (table, dy) = (c.tensor("in/table")?, c.rows("cot/dy")?);
    let tokens = c.f.i32(&c.name("in/tokens"))?;
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

fn time_embedding_case(c: &mut Case<'_>) -> Result<()> {
    let times: Vec<f64> = c.host("in/t")?.iter().map(|&t| t as f64).collect();
    let width = c.shape("out/y")?[1];
    c.check_host("out/y", Kind::Forward, &time_embedding::forward(&times, width))?;
    let dt = time_embedding::backward(&times, width, &c.host("cot/dy")?);
    let dt: Vec<f32> = dt.iter().map(|&v| v as f32).collect();
    c.check_host("grad/t", Kind::Gradient, &dt)
}

/// Valid tokens of a sample are packed next to each other.
fn mean_pool_case(c: &mut Case<'_>) -> Result<()> {
    let shape = c.shape("in/tokens")?;
    let (b, l, d) = (shape[0], shape[1], shape[2]);
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

fn huber_case(c: &mut Case<'_>) -> Result<()> {
    let delta = match c.op.strip_prefix("huber_delta") {
        Some(text) => text
            .parse()
            .map_err(|_| c.broken("the delta in its name is not a number"))?,
        None => 1.0,
    };
    let (e, dy) = (c.tensor("in/e")?, c.tensor("cot/dy")?);
    let (y, de) = (c.like(&e), c.like(&e));
    td::forward(c.gpu, TdLoss::Huber(delta), &e, &y);
    td::backward(c.gpu, TdLoss::Huber(delta), &e, &dy, &de);
    c.output("y", &y)?;
    c.gradient("e", &de)
}

/// With u = noise - actions, a zero action makes u the noise; the gradient of u is minus that of v.
fn velocity_case(c: &mut Case<'_>) -> Result<()> {
    let (v, u, dy) = (c.rows("in/v")?, c.rows("in/u")?, c.tensor("cot/dy")?);
    let zero = c.zeros(&u);
    let (error, dv) = (c.gpu.f32([dy.len()]), c.like(&v));
    flow::velocity_loss(c.gpu, &v, &u, &zero, &dy.view([dy.len()]), 1.0, &error, Some(&dv));
    c.output("y", &error)?;
    c.gradient("v", &dv)?;
    let du: Vec<f32> = c.gpu.read_f32(&dv)?.iter().map(|x| -x).collect();
    c.check_host("grad/u", Kind::Gradient, &du)
}

fn ensemble_case(c: &mut Case<'_>) -> Result<()> {
    let (q, dy) = (c.tensor("in/q")?, c.tensor("cot/dy")?);
    let rule = Rule {
        how: Aggregate::Min,
        weights: &q,
    };
    let (y, dq) = (c.like(&dy), c.like(&q));
    ensemble::forward(c.gpu, &q, rule, &y);
    ensemble::backward(c.gpu, &q, rule, &dy, &dq);
    c.output("y", &y)?;
    c.gradient("q", &dq)
}

/// `q [N, E, B]` of the fixture is `[E, N·B]` here.
fn best_of_n_case(c: &mut Case<'_>) -> Result<()> {
    let shape = c.shape("in/q")?;
    let (n, e, b) = (shape[0], shape[1], shape[2]);
    let swap = |x: &[f32], outer: usize, inner: usize| -> Vec<f32> {
        (0..inner * outer * b)
            .map(|i| (i % b, i / b % outer, i / (b * outer)))
            .map(|(s, o, i)| x[(o * inner + i) * b + s])
            .collect()
    };
    let q = c.gpu.upload_f32(&swap(&c.host("in/q")?, n, e), [e, n * b]);
    let dy = c.tensor("cot/dy")?;
    let rule = Rule {
        how: Aggregate::Min,
        weights: &q,
    };
    let (value, best, winner) = (
        c.gpu.f32([n * b]),
        c.gpu.f32([b]),
        c.gpu.alloc(crate::gpu::DType::U32, [b]),
    );
    ensemble::forward(c.gpu, &q, rule, &value);
    ensemble::best_of_n(c.gpu, &value, &best, &winner);
    let (dvalue, dq) = (c.like(&value), c.like(&q));
    ensemble::best_of_n_backward(c.gpu, &dy, &winner, &dvalue);
    ensemble::backward(c.gpu, &q, rule, &dvalue, &dq);
    c.output("y", &best)?;
    let got = swap(&c.gpu.read_f32(&dq)?, e, n);
    c.check_host("grad/q", Kind::Gradient, &got)
}

fn entropy_case(c: &mut Case<'_>) -> Result<()> {
    let shape = c.shape("in/samples")?;
    let (n, b, p) = (shape[0], shape[1], shape[2] * shape[3]);
    let s = c.tensor("in/samples")?.view([n, b, p]);
    let dy = c.host("cot/dy")?[0];
    let (log_var, var, y) = (c.gpu.f32([b]), c.gpu.f32([b]), c.gpu.f32([1]));
    entropy::forward(c.gpu, &s, &log_var, &var);
    reduce::weighted_sum(c.gpu, &log_var, None, 1.0 / b as f32, &y, false);
    let (dlog, ds) = (c.gpu.f32([b]), c.like(&s));
    fill::set(c.gpu, &dlog, dy / b as f32);
    entropy::backward(c.gpu, &s, &var, &dlog, &ds);
    c.output("y", &y)?;
    c.gradient("samples", &ds)
}

/// Numbers in a description such as "warmup_cosine(peak 1e-2, end 1e-3, warmup 2, decay 6)".
fn numbers(text: &str) -> Vec<f64> {
    text.split(|ch: char| ch == ' ' || ch == ',' || ch == '(' || ch == ')')
        .filter_map(|t| t.parse().ok())
        .collect()
}

fn adamw_case(c: &mut Case<'_>) -> Result<()> {
    let adam = AdamW {
        beta1: c.number("b1")? as f32,
        beta2: c.number("b2")? as f32,
        eps: c.number("eps")? as f32,
        weight_decay: c.number("weight_decay")? as f32,
    };
    let text =
        c.f.json
            .pointer("/ops/adamw/lr")
            .and_then(|v| v.as_str())
            .unwrap_or_default();
    let [peak, end, warmup, decay] = numbers(text)[..4] else {
        return Err(c.broken("lr is not warmup_cosine(…)"));
    };
    let grads = c.rows("in/grads")?;
    let n = grads.dim(1);
    let state = |from: Vec<f32>| c.gpu.upload_f32(&from, [n]);
    let (p, m, v) = (state(c.host("in/p")?), state(vec![0.0; n]), state(vec![0.0; n]));
    let control = Control::new(c.gpu, 1);
    // No clipping: an infinite limit.
    let limits = c.gpu.upload_f32(&[f32::INFINITY], [1]);
    let (mut ps, mut ms, mut vs) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..grads.dim(0) {
        let g = c.gpu.f32([n]);
        c.gpu.copy(&grads.rows(step..step + 1).view([n]), &g);
        let squares = c.gpu.f32([1, 2]);
        reduce::squares(c.gpu, &[g.clone()], &squares);
        control.decide(c.gpu, &squares, &limits);
        let lr = warmup_cosine(step as u64, peak, end, warmup as u64, decay as u64) as f32;
        let flat = Flat {
            p: &p,
            g: &g,
            m: &m,
            v: &v,
            average: None,
            compute: None,
        };
        adamw::step(
            c.gpu,
            adam,
            Update {
                lr,
                t: step as u64 + 1,
                rate: 0.0,
            },
            &control,
            0,
            flat,
        );
        ps.extend(c.gpu.read_f32(&p)?);
        ms.extend(c.gpu.read_f32(&m)?);
        vs.extend(c.gpu.read_f32(&v)?);
    }
    c.check_host("out/p", Kind::Forward, &ps)?;
    c.check_host("out/m", Kind::Forward, &ms)?;
    c.check_host("out/v", Kind::Forward, &vs)
}

fn lr_case(c: &mut Case<'_>) -> Result<()> {
    let (peak, end) = (c.number("peak")?, c.number("end")?);
    let (warmup, decay) = (c.number("warmup_steps")? as u64, c.number("decay_steps")? as u64);
    let steps = c.f.i32(&c.name("in/step"))?;
    let lr: Vec<f32> = steps
        .iter()
        .map(|&s| warmup_cosine(s as u64, peak, end, warmup, decay) as f32)
        .collect();
    c.check_host("out/lr", Kind::Forward, &lr)
}

fn clip_case(c: &mut Case<'_>) -> Result<()> {
    let limit = c.number("limit")? as f32;
    let (a, b) = (c.tensor("in/a")?, c.tensor("in/b")?);
    let squares = c.gpu.f32([1, 2]);
    let flat = |t: &Tensor| t.view([t.len()]);
    reduce::squares(c.gpu, &[flat(&a), flat(&b)], &squares);
    let control = Control::new(c.gpu, 1);
    control.decide(c.gpu, &squares, &c.gpu.upload_f32(&[limit], [1]));
    for (name, t) in [("a", &a), ("b", &b)] {
        adamw::clip(c.gpu, t, &control, 0);
        c.output(name, t)?;
    }
    let norm = c.gpu.read_f32(&squares)?[0].sqrt();
    c.check_host("out/norm", Kind::Forward, &[norm])
}

fn soft_update_case(c: &mut Case<'_>) -> Result<()> {
    let (target, online) = (c.tensor("in/target")?, c.tensor("in/online")?);
    adamw::soft_update(c.gpu, &target, &online, c.number("tau")? as f32);
    c.output("target", &target)
}
