//! `acrlpd doctor`: which devices there are, and whether the chosen one computes what it should.

use std::fs;

use acrlpd::gpu::{DType, Gpu, adapters, cuda_status};
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
    cuda();

    let gpu = Gpu::open(args.device.choice())?;
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

/// What there is of CUDA, and why it is not used.
fn cuda() {
    let status = cuda_status();
    let found = |what: Option<String>| what.unwrap_or("not found".into());
    println!(
        "\nCUDA       driver {}, NVRTC {}, headers {}",
        found(status.driver.map(|v| format!("for CUDA {v}"))),
        found(status.nvrtc.map(|v| v.to_string())),
        found(status.headers.map(|h| h.display().to_string()))
    );
    for (i, device) in status.devices.iter().enumerate() {
        println!(
            "cuda:{i:<5} {}, compute capability {}, {}",
            device.name,
            device.capability,
            bytes(device.memory_bytes)
        );
    }
    let problems = status.devices.iter().filter_map(|d| d.problem.as_ref());
    for problem in status.problem.iter().chain(problems) {
        println!("not used   {problem}");
    }
}
