//! What `acrlpd bench step` shows: tables for people, JSON for programs.

use acrlpd::bench::Status;
use acrlpd::bench::step::StepResults;

use super::table::{bytes, number, table};

/// Host time that may be needed for a step, as a share of it.
const HOST_SHARE: f64 = 0.1;

/// The results with the peers' ratios, for programs.
pub(super) fn joined(results: &StepResults, peers: &[StepResults]) -> anyhow::Result<serde_json::Value> {
    let mut all = serde_json::to_value(results)?;
    let rows = all["rows"].as_array_mut().into_iter().flatten();
    for (json, row) in rows.zip(&results.rows) {
        let beside = peers
            .iter()
            .flat_map(|peer| peer.beside(row).map(move |found| (peer, found)));
        json["peers"] = beside
            .map(|(peer, (theirs, ratio))| {
                serde_json::json!({
                    "program": peer.program, "device": peer.device, "way": theirs.way, "status": theirs.status,
                    "why": theirs.why, "median_ms": theirs.step.median_ms, "samples_per_s": theirs.samples_per_s,
                    "first_step_ms": theirs.first_step_ms, "peak_bytes": theirs.peak_bytes, "of_peer": ratio,
                })
            })
            .collect();
        json["of_host"] = row.of_host().into();
    }
    all["growth"] = results
        .growth()
        .iter()
        .map(|(base, row, growth)| serde_json::json!({ "from": base.name, "to": row.name, "time": growth }))
        .collect();
    Ok(all)
}

pub(super) fn show(results: &StepResults, peers: &[StepResults]) {
    let peak = results.roofline.map_or(0.0, |best| 1e-12 * best.flops_per_s);
    println!(
        "{}, {}; best product {} TFLOP/s\n",
        results.device,
        results.dtype,
        number(peak)
    );
    println!("{}", speeds(results));
    println!("\n{}", account(results));
    for row in results.rows.iter().filter(|row| row.why.is_some()) {
        println!("{}: {}", row.name, row.why.as_deref().unwrap_or_default());
    }
    for (base, row, growth) in results.growth() {
        let work = row.algorithm_tflop / base.algorithm_tflop.max(1e-12);
        println!(
            "{} instead of {} candidates ({}): {:.2} of the time, {work:.2} of the work",
            row.candidates, base.candidates, row.name, growth
        );
    }
    if !peers.is_empty() {
        println!("\n{}", beside(results, peers));
    }
    // Of one case all of it; phases of several stand in the JSON.
    if let [row] = &results.rows[..]
        && let Some(profile) = &row.profile
    {
        println!("\none step with a wait after every launch:\n{}", profile.table());
    }
}

fn speeds(results: &StepResults) -> comfy_table::Table {
    let header = [
        "step",
        "samples",
        "N",
        "samples/s",
        "ms",
        "p10",
        "p90",
        "first ms",
        "TFLOP",
        "algorithm",
        "of peak",
    ];
    let mut t = table(&header, 1);
    for row in &results.rows {
        let timed = row.status == Status::Ok;
        let cell = |text: String| if timed { text } else { "-".into() };
        t.add_row([
            row.name.clone(),
            row.samples.to_string(),
            row.candidates.to_string(),
            cell(number(row.samples_per_s)),
            cell(number(row.step.median_ms)),
            cell(number(row.step.p10_ms)),
            cell(number(row.step.p90_ms)),
            cell(number(row.first_step_ms)),
            cell(number(row.tflop)),
            cell(number(row.algorithm_tflop)),
            cell(format!("{:.1} %", 100.0 * row.of_peak)),
        ]);
    }
    t
}

fn account(results: &StepResults) -> comfy_table::Table {
    let header = [
        "step",
        "launches",
        "kernels ms",
        "host ms",
        "of step",
        "code ms",
        "waits",
        "memory",
        "plan",
        "of plan",
        "reserved",
    ];
    let mut t = table(&header, 1);
    for row in results.rows.iter().filter(|row| row.status == Status::Ok) {
        let memory = row.memory.unwrap_or_default();
        let slow = |share: f64| {
            format!(
                "{:.1} %{}",
                100.0 * share,
                if share > HOST_SHARE { " SLOW" } else { "" }
            )
        };
        t.add_row([
            row.name.clone(),
            row.launches.to_string(),
            number(row.kernels_ms),
            row.host_ms.map_or("-".into(), number),
            row.of_host().map_or("-".into(), slow),
            number(row.code_ms),
            row.waits.to_string(),
            bytes(memory.used),
            memory.planned.map_or("-".into(), bytes),
            memory
                .of_plan()
                .map_or("-".into(), |share| format!("{:.1} %", 100.0 * share)),
            bytes(memory.reserved),
        ]);
    }
    t
}

fn beside(results: &StepResults, peers: &[StepResults]) -> comfy_table::Table {
    let header = [
        "step",
        "peer",
        "samples/s",
        "ms",
        "first ms",
        "memory",
        "ours is faster by",
    ];
    let mut t = table(&header, 2);
    for row in &results.rows {
        for peer in peers {
            for (theirs, ratio) in peer.beside(row) {
                let timed = theirs.status == Status::Ok;
                let cell = |x: f64| if timed { number(x) } else { "-".into() };
                t.add_row([
                    row.name.clone(),
                    format!("{} on {}: {}", peer.program, peer.device, theirs.way),
                    cell(theirs.samples_per_s),
                    cell(theirs.step.median_ms),
                    cell(theirs.first_step_ms),
                    theirs.peak_bytes.map_or("-".into(), bytes),
                    match (ratio, &theirs.why) {
                        (Some(ratio), _) => format!("{ratio:.2}"),
                        (None, Some(why)) => why.clone(),
                        (None, None) => "another batch".into(),
                    },
                ]);
            }
        }
    }
    t
}
