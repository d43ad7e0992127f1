//! `acrlpd plan`: what a step costs.

use acrlpd::gpu::Caps;
use acrlpd::train::plan::{self, Plan};

use super::Outcome;
use super::flags::ConfigFlags;
use super::table::{bytes, number, table};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Tokens of every prompt; padding is never computed.
    #[arg(long, default_value_t = 8, value_name = "N")]
    prompt_tokens: usize,
    /// Memory of the device to compare with, e.g. 80GB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    device_memory: Option<f64>,
    /// Rate of its matrix products in TFLOP/s, to estimate times.
    #[arg(long, value_name = "X", requires = "bandwidth")]
    tflops: Option<f64>,
    /// Bandwidth of its memory, e.g. 3.0TB/s, to estimate times.
    #[arg(long, value_name = "RATE", requires = "tflops", value_parser = rate)]
    bandwidth: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome {
    let config = args.config.load(&[])?;
    let plan = plan::plan(&config, Caps::planning(), args.prompt_tokens)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print(args, &plan);
    }
    let fits = args.device_memory.is_none_or(|room| plan.peak_bytes as f64 <= room);
    Ok(if fits { 0 } else { super::FAILED })
}

fn print(args: &Args, plan: &Plan) {
    let mut header = vec![
        "phase",
        "launches",
        "TFLOP",
        "share",
        "GB moved",
        "FLOP/B",
        "peak memory",
    ];
    let speed = args.tflops.zip(args.bandwidth);
    if speed.is_some() {
        header.push("ms");
    }
    let mut t = table(&header, 1);
    let total: f64 = plan.phases.iter().map(|p| p.tflop).sum();
    let mut all_ms = 0.0;
    for p in &plan.phases {
        let mut row = vec![
            p.name.to_owned(),
            p.launches.to_string(),
            number(p.tflop),
            format!("{:.1} %", 100.0 * p.tflop / total),
            number(p.gigabytes),
            format!("{:.0}", 1e3 * p.tflop / p.gigabytes.max(1e-12)),
            bytes(p.peak_bytes),
        ];
        if let Some((tflops, bandwidth)) = speed {
            let ms = 1e3 * (p.tflop / tflops).max(p.gigabytes * 1e9 / bandwidth);
            all_ms += ms;
            row.push(number(ms));
        }
        t.add_row(row);
    }
    println!("{t}");
    println!(
        "one step: {} samples in {} micro-batches, prompts of {} tokens, {} launches",
        plan.samples, plan.micro_batches, plan.prompt_tokens, plan.launches
    );
    println!(
        "{:.2} M parameters, {} TFLOP per sample",
        plan.parameters as f64 / 1e6,
        number(plan.tflop_per_sample)
    );
    println!(
        "memory {}: weights, gradients and optimizer states {}, activations and workspaces {}",
        bytes(plan.peak_bytes),
        bytes(plan.state_bytes),
        bytes(plan.activation_bytes)
    );
    if speed.is_some() {
        println!(
            "at least {} ms a step at these rates (each phase as its slower of the two)",
            number(all_ms)
        );
    }
    if let Some(room) = args.device_memory {
        let verdict = if plan.peak_bytes as f64 <= room {
            "it fits"
        } else {
            "it does NOT fit"
        };
        println!("device memory {}: {verdict}", bytes(room as u64));
    }
}

/// `80GB` as bytes; units are powers of 1000 (GB) or 1024 (GiB).
fn size(text: &str) -> Result<f64, String> {
    let split = text.find(|c: char| c.is_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return Err(format!("`{unit}` is not a unit of memory; use e.g. 80GB or 24GiB")),
    };
    match number.trim().parse::<f64>() {
        Ok(n) if n > 0.0 && n.is_finite() => Ok(n * scale),
        _ => Err(format!("`{text}` is not a size; use e.g. 80GB or 24GiB")),
    }
}

/// `3.0TB/s` as bytes per second.
fn rate(text: &str) -> Result<f64, String> {
    size(text.trim_end_matches("/s")).map_err(|_| format!("`{text}` is not a bandwidth; use e.g. 3.0TB/s"))
}
