//! `acrlpd doctor`: which devices there are, and whether the chosen one computes what it should.

use std::fs;

use acrlpd::gpu::{DType, Gpu, adapters};
use acrlpd::verify;

use super::flags::DeviceFlag;
use super::table::{bytes, table};
use super::{FAILED, Outcome};

/// The fixtures of single operations, inside the program.
const OPS: [(&str, &[u8]); 2] = [
    ("ops.json", include_bytes!("../../tests/golden/ops.json")),
    ("ops.safetensors", include_bytes!("../../tests/golden/ops.safetensors")),
];

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceFlag,
}

pub fn run(args: &Args) -> Outcome {
    let mut t = table(&["device", "name", "driver", "kind"], 4);
    for a in adapters() {
        let kind = if a.software { "software" } else { "hardware" };
        t.add_row([a.device, a.name, a.driver, kind.into()]);
    }
    println!("{t}");

    let gpu = Gpu::open(args.device.device)?;
    let caps = gpu.caps();
    let types = [DType::F32, DType::F16, DType::Bf16];
    let stored: Vec<&str> = types.iter().filter(|d| caps.stores(**d)).map(|d| d.name()).collect();
    println!("\nchosen     {} ({})", caps.name, caps.api);
    println!("memory     {}", caps.memory_bytes.map_or("not reported".into(), bytes));
    println!(
        "limits     {} per operand, {} per allocation, {} units and {} shared memory per workgroup",
        bytes(caps.max_binding_bytes),
        bytes(caps.max_page_bytes),
        caps.max_units,
        bytes(u64::from(caps.max_shared_bytes))
    );
    let plane = caps.plane.map_or("of varying size".into(), |n| format!("of {n} units"));
    println!("subgroups  {plane}");
    println!("stores     {}", stored.join(", "));

    let folder = tempfile::tempdir()?;
    for (name, data) in OPS {
        fs::write(folder.path().join(name), data)?;
    }
    let report = verify::run(&gpu, &folder.path().join("ops"), &|_| true)?;
    super::verify::print(&report, true);
    Ok(if report.passed() { 0 } else { FAILED })
}
