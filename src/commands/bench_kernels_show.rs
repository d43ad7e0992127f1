//! What `acrlpd bench kernels` shows: a table for people, JSON for programs.

use std::collections::BTreeMap;

use acrlpd::bench::results::REGRESSION;
use acrlpd::bench::{Results, Row, Status};
use acrlpd::gpu::Roofline;

use super::table::{number, table};

pub(super) fn heading(device: &str, dtype: &str, quick: bool, best: Option<&Roofline>) {
    let reached = best.map_or(String::new(), |best| {
        let (product, copy) = (best.flops_per_s * 1e-12, best.bytes_per_s * 1e-9);
        format!("; best product {} TFLOP/s, copy {} GB/s", number(product), number(copy))
    });
    println!("{device}, {dtype}{reached}");
    if quick {
        println!("quick: shapes scaled down (widths to an eighth, two samples)");
    }
    println!();
}

/// The results with their ratios, for programs.
pub(super) fn joined(
    results: &Results,
    old: Option<&Results>,
    peer: Option<&Results>,
) -> anyhow::Result<serde_json::Value> {
    let mut all = serde_json::to_value(results)?;
    let rows = all["rows"].as_array_mut().into_iter().flatten();
    for (json, row) in rows.zip(&results.rows) {
        for (key, other) in [("of_old", old), ("of_peer", peer)] {
            if let Some(ratio) = other.and_then(|other| other.ratio(row)) {
                json[key] = ratio.into();
            }
        }
        json["tflops"] = row.tflops().into();
        json["gigabytes_per_s"] = row.gigabytes_per_s().into();
    }
    Ok(all)
}

pub(super) fn show(results: &Results, old: Option<&Results>, peer: Option<&Results>) {
    let mut header = vec![
        "case",
        "kernel",
        "median ms",
        "p10",
        "p90",
        "TFLOP/s",
        "GB/s",
        "roofline",
        "check",
    ];
    header.extend(old.map(|_| "of old"));
    header.extend(peer.map(|_| "of peer"));
    let mut t = table(&header, 2);
    for row in &results.rows {
        let s = &row.spread;
        let timed = |text: String| if row.timed() { text } else { "-".into() };
        let mut cells = vec![
            row.name.clone(),
            row.kernel.clone(),
            timed(number(s.median_ms)),
            timed(number(s.p10_ms)),
            timed(number(s.p90_ms)),
            if row.flops > 0.0 {
                timed(number(row.tflops()))
            } else {
                String::new()
            },
            timed(number(row.gigabytes_per_s())),
            timed(format!("{:.1} %", 100.0 * row.of_roofline)),
            verdict(row),
        ];
        if let Some(old) = old {
            let marked = |r: f64| format!("{r:.2}{}", if r < REGRESSION { " SLOWER" } else { "" });
            cells.push(old.ratio(row).map_or("-".into(), marked));
        }
        if let Some(peer) = peer {
            let best = peer.ratio(row).zip(peer.best(&row.name));
            cells.push(best.map_or("-".into(), |(r, p)| format!("{r:.2} {}", p.kernel)));
        }
        t.add_row(cells);
    }
    println!("{t}");
    summary(results, old, peer);
}

fn verdict(row: &Row) -> String {
    match row.status {
        Status::Ok => format!("ok {:.2}", row.check.worst),
        Status::Wrong => "WRONG".into(),
        Status::Failed => "FAILED".into(),
        Status::Skipped => "skipped".into(),
    }
}

fn summary(results: &Results, old: Option<&Results>, peer: Option<&Results>) {
    let count = |status| results.rows.iter().filter(|row| row.status == status).count();
    println!(
        "{} cases right, {} wrong, {} failed, {} skipped",
        count(Status::Ok),
        count(Status::Wrong),
        count(Status::Failed),
        count(Status::Skipped)
    );
    if let Some(old) = old {
        if old.device != results.device {
            println!("note: the earlier results are of {}", old.device);
        }
        let slower = results
            .rows
            .iter()
            .filter(|row| old.ratio(row).is_some_and(|r| r < REGRESSION))
            .count();
        println!("{slower} cases slower than before by more than 5 %");
    }
    if let Some(peer) = peer {
        println!(
            "beside {} on {}, geometric means of all cases that both have:",
            peer.program, peer.device
        );
        let mut ops: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for row in &results.rows {
            let op = row.name.split('/').next().unwrap_or_default();
            ops.entry(op).or_default().extend(peer.ratio(row).map(f64::ln));
        }
        for (op, logs) in ops.iter().filter(|(_, logs)| !logs.is_empty()) {
            println!(
                "  {op}: {:.2} ({} cases)",
                (logs.iter().sum::<f64>() / logs.len() as f64).exp(),
                logs.len()
            );
        }
    }
    // Files of peers tell of cases that were not theirs to do, too.
    let troubled = |row: &&Row| matches!(row.status, Status::Wrong | Status::Failed);
    for row in peer.iter().flat_map(|peer| &peer.rows).filter(troubled) {
        println!(
            "{} of {}: {}",
            row.name,
            row.kernel,
            row.why.as_deref().unwrap_or("wrong")
        );
    }
    for row in results.rows.iter().filter(|row| row.why.is_some()) {
        println!("{}: {}", row.name, row.why.as_deref().unwrap_or_default());
    }
}
