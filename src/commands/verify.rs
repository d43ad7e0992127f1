//! `acrlpd verify`: golden fixtures on a device.

use std::path::PathBuf;

use acrlpd::gpu::{DType, Gpu};
use acrlpd::model::stream::Storage;
use acrlpd::train::dump;
use acrlpd::verify::{self, Kind, Report};

use super::flags::{DeviceFlag, storage};
use super::table::table;
use super::{FAILED, Outcome};

#[derive(clap::Args)]
pub struct Args {
    /// A folder with fixture groups, or one group: its JSON, or its name without extension. A run's folder `dumps` holds
    /// steps that were not finite, which are done again.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    device: DeviceFlag,
    /// How the model's activations and computing weights are stored: float32, bfloat16 or float16 (f32, bf16, f16).
    #[arg(long, default_value = "float32", value_name = "TYPE", value_parser = storage)]
    dtype: DType,
    /// How its residual streams are stored: like the rest, or in float32.
    #[arg(long, default_value = "model", value_name = "TYPE", value_parser = ["model", "float32"])]
    residual_dtype: String,
    /// Check only tensors whose name contains this.
    #[arg(long, value_name = "PATTERN")]
    only: Option<String>,
    /// List only the worst tensor of each group and those that fail.
    #[arg(long)]
    brief: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let mut groups = Vec::new();
    let mut skipped = Vec::new();
    for path in &args.paths {
        // A dump's path is also that of its checkpoint's folder.
        if dump::is_dump(path) {
            groups.push(path.clone());
            continue;
        }
        let found = verify::find(path)?;
        groups.extend(found.groups);
        skipped.extend(found.skipped);
    }
    let gpu = Gpu::open(args.device.choice())?;
    let stored = Storage {
        dtype: args.dtype,
        f32_residual: args.residual_dtype == "float32",
    };
    if !args.json {
        let residual = match stored.f32_residual {
            true => ", residual streams float32",
            false => "",
        };
        println!("device {}, {}{residual}", gpu.caps().name, args.dtype.name());
    }
    let wanted = |name: &str| args.only.as_ref().is_none_or(|pattern| name.contains(pattern.as_str()));
    let mut reports = Vec::new();
    let (mut replayed, mut finite) = (0, true);
    for group in &groups {
        if dump::is_dump(group) {
            replayed += 1;
            finite &= replay(&gpu, group, args.json)?;
            continue;
        }
        let report = verify::run_as(&gpu, group, stored, &wanted)?;
        let empty = report.rows.is_empty() && report.unknown.is_empty() && args.only.is_some();
        if empty {
            continue;
        }
        if !args.json {
            print(&report, args.brief);
        }
        reports.push(report);
    }
    if reports.is_empty() && replayed > 0 {
        return Ok(if finite { 0 } else { FAILED });
    }
    if reports.is_empty() {
        let pattern = args.only.as_deref().unwrap_or_default();
        anyhow::bail!("--only {pattern} matches no tensor of these fixtures; leave it out to see their names");
    }
    let passed = reports.iter().all(Report::passed);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        let (rows, failed) = count(&reports);
        if !skipped.is_empty() {
            let names: Vec<String> = skipped.iter().map(|p| p.display().to_string()).collect();
            println!("not fixtures: {}", names.join(", "));
        }
        let verdict = if passed {
            "all within tolerance".into()
        } else {
            format!("{failed} FAILED")
        };
        println!("{rows} tensors in {} groups: {verdict}", reports.len());
    }
    Ok(if passed && finite { 0 } else { FAILED })
}

/// Does the step of a dump again; whether it was finite.
fn replay(gpu: &Gpu, group: &std::path::Path, json: bool) -> anyhow::Result<bool> {
    let (content, diagnosis) = dump::replay(gpu, group)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&diagnosis)?);
        return Ok(!diagnosis.found());
    }
    println!("\nstep {} of {}", content.step + 1, group.display());
    println!("when it failed: {}", content.diagnosis);
    println!("here:           {diagnosis}");
    Ok(!diagnosis.found())
}

/// Tensors compared, and how many of them failed or could not be judged.
fn count(reports: &[Report]) -> (usize, usize) {
    let rows = reports.iter().flat_map(|r| &r.rows);
    let unknown: usize = reports.iter().map(|r| r.unknown.len()).sum();
    (
        rows.clone().count() + unknown,
        rows.filter(|r| !r.passed).count() + unknown,
    )
}

/// The table of a group.
pub fn print(report: &Report, brief: bool) {
    let half = report.rows.iter().any(|r| r.cosine.is_some());
    let mut columns = vec!["tensor", "kind", "elements", "error", "tolerance"];
    if half {
        columns.extend(["cosine", "least"]);
    }
    columns.push("");
    let mut t = table(&columns, 2);
    let worst = report.worst().map(|r| r.tensor.clone());
    for row in &report.rows {
        if !brief || !row.passed || worst.as_ref() == Some(&row.tensor) {
            let mut cells = vec![
                row.tensor.clone(),
                kind(row.kind).to_owned(),
                row.elements.to_string(),
                format!("{:.1e}", row.error),
                format!("{:.1e}", row.tolerance),
            ];
            if half {
                cells.extend(match row.cosine {
                    Some(c) => [format!("{:.6}", c.value), c.least.to_string()],
                    None => [String::new(), String::new()],
                });
            }
            cells.push(if row.passed { "ok" } else { "FAILED" }.into());
            t.add_row(cells);
        }
    }
    for name in &report.unknown {
        let mut cells = vec![String::new(); columns.len()];
        cells[0].clone_from(name);
        cells[1] = "unknown".into();
        cells[columns.len() - 1] = "FAILED".into();
        t.add_row(cells);
    }
    let passed = report.rows.iter().filter(|r| r.passed).count();
    println!(
        "\n{}: {passed} of {} tensors within tolerance",
        report.group,
        report.rows.len() + report.unknown.len()
    );
    println!("{t}");
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Forward => "forward",
        Kind::Gradient => "gradient",
        Kind::Zero { .. } => "zero",
        Kind::Update { .. } => "update",
        Kind::Absolute(_) => "absolute",
        Kind::Exact => "exact",
        Kind::Rounded => "rounded",
    }
}
