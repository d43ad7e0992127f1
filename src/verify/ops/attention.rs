//! Attention and what belongs to it: rotations, masks, softmax.

use super::Case;
use crate::gpu::DType;
use crate::ops::attention::{Attention, Columns, KeyPlan, KeyRun, Keys, Plan, Saved, Sequence, methods};
use crate::ops::rope::{self, Heads};
use crate::ops::softmax;
use crate::verify::{Kind, Result};

/// Positions of a rotation table.
const FARTHEST: usize = 1 << 16;

pub(super) fn rope_case(c: &mut Case<'_>) -> Result<()> {
    let [b, l, n, k] = c.axes("in/x")?;
    if !k.is_multiple_of(2) {
        return Err(c.broken("heads have an odd width, which cannot be turned in pairs"));
    }
    let heads = Heads { q: n, kv: n, dim: k };
    let positions = c.f.i32(&c.name("in/positions"))?;
    let positions: Vec<i64> = positions.into_iter().map(i64::from).collect();
    let low = positions.iter().min().copied().unwrap_or(0);
    let span = positions.iter().max().map_or(1, |high| high - low + 1) as usize;
    if span > FARTHEST {
        return Err(c.broken(format!(
            "positions are up to {span} apart; at most {FARTHEST} fit into a table"
        )));
    }
    let table = rope::Table::new(c.gpu, low, span, k);
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
        let rows = c.put(&fused(&host), [b * l, heads.fused()]);
        let f = if backward { rope::backward } else { rope::forward };
        f(c.gpu, heads, &table, &lines, &rows, None);
        let got = c.gpu.read_f32(&rows)?;
        c.check_host(output, kind, &pick(&got, 0))?;
        c.check_host(output, kind, &pick(&got, 1))?;
        let as_stored = c.gpu.read_f32(&c.put(&host, [host.len()]))?;
        c.report
            .compare(c.name("v stays"), Kind::Exact, &pick(&got, 2), &as_stored);
        // Through a cache, whose lines are in reverse order.
        let rows = c.put(&fused(&host), [b * l, heads.fused()]);
        let order: Vec<u32> = (0..(b * l) as u32).rev().collect();
        let reversed: Vec<f32> = host.chunks(n * k).rev().flat_map(|row| [row, row].concat()).collect();
        // Gradients of the cache are f32.
        let kv_dtype = if backward { DType::F32 } else { c.dtype };
        let kv = c.gpu.upload_as(&reversed, kv_dtype, [b * l, 2 * n * k]);
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
pub(super) fn attn_mask_case(c: &mut Case<'_>) -> Result<()> {
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
pub(super) fn attention_case(c: &mut Case<'_>) -> Result<()> {
    let ([b, t, n, k], [_, s, kv, _]) = (c.axes("in/q")?, c.axes("in/k")?);
    if !n.is_multiple_of(kv) {
        return Err(c.broken(format!("{n} query heads cannot share {kv} key heads")));
    }
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
    let g_q = c.put(&packed_q, [queries.len(), qw]);
    let g_do = c.put(&pack(&dy, qw, &queries, t), [queries.len(), qw]);
    let g_kv = c.put(&cache, [lines.len(), 2 * kw]);
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

    for method in methods(heads) {
        let attention = Attention {
            heads,
            method: Some(method),
        };
        let (o, lse, delta) = (
            c.like(&g_q),
            c.gpu.f32([queries.len(), n]),
            c.gpu.f32([queries.len(), n]),
        );
        // Gradients of the cache are f32.
        let (dq, dkv) = (c.like(&g_q), c.gpu.f32(g_kv.shape()));
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
pub(super) fn softmax_case(c: &mut Case<'_>) -> Result<()> {
    let (z, dy) = (c.host("in/z")?, c.host("cot/dy")?);
    let mask = c.f.bool(&c.name("in/mask"))?;
    let w = c.width("in/z")?;
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
