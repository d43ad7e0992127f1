//! `acrlpd bench kernels`: every op on the shapes of the step.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Instant;

use acrlpd::bench::results::FORMAT;
use acrlpd::bench::{self, Case, Pace, Results, Row, Status, shapes};
use acrlpd::gpu::{DType, Gpu, Roofline};
use acrlpd::ops::roofline;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::bench_kernels_show::{heading, joined, show};
use super::flags::{DeviceFlag, storage};
use super::plan::rate;
use super::table::{number, table};
use super::{FAILED, Outcome};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    device: DeviceFlag,
    /// How activations and weights are stored: float32, bfloat16 or float16 (f32, bf16, f16). Critics, gradients and sums
    /// are f32 always.
    #[arg(long, default_value = "float32", value_name = "TYPE", value_parser = storage)]
    dtype: DType,
    /// Only cases whose name contains this; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    filter: Vec<String>,
    /// Small shapes and few measurements, as on devices that are CPUs.
    #[arg(long)]
    quick: bool,
    /// Stop after so long: what was not reached is skipped.
    #[arg(long, value_name = "N")]
    minutes: Option<f64>,
    /// Print the cases instead of measuring them; needs no device. With --json, for a peer.
    #[arg(long, conflicts_with_all = ["save", "compare", "peer", "from"])]
    list: bool,
    /// With --list: also the least time of each case on a device whose matrix products run at X TFLOP/s.
    #[arg(long, value_name = "X", requires_all = ["bandwidth", "list"])]
    tflops: Option<f64>,
    /// Bandwidth of that device's memory, e.g. 3.0TB/s.
    #[arg(long, value_name = "RATE", requires_all = ["tflops", "list"], value_parser = rate)]
    bandwidth: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Also write the results to this file.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Show the results in this file instead of measuring.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["save", "quick"])]
    from: Option<PathBuf>,
    /// Earlier results: how much faster each case is now; regressions beyond 5 % are marked.
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// How fast each case is beside the peer's best way. A file that benches/peers/kernels.py wrote, or `cubek`: the
    /// matrix products of burn, measured in turn with ours (programs built with `--features peer-cubek`, wgpu devices).
    #[arg(long, value_name = "FILE|cubek")]
    peer: Option<Peer>,
}

/// Who is beside us.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Peer {
    Cubek,
    File(PathBuf),
}

impl From<&str> for Peer {
    fn from(text: &str) -> Peer {
        match text {
            "cubek" => Peer::Cubek,
            path => Peer::File(path.into()),
        }
    }
}

impl Peer {
    /// Is it this program that measures it?
    fn measured(&self) -> bool {
        *self == Peer::Cubek
    }
}

pub fn run(args: &Args) -> Outcome {
    let cubek = args.peer.as_ref().is_some_and(Peer::measured);
    anyhow::ensure!(
        !cubek || cfg!(feature = "peer-cubek"),
        "this program was built without cubek; build it with `cargo build --release --features peer-cubek`"
    );
    anyhow::ensure!(
        !cubek || args.from.is_none(),
        "cubek is measured in turn with our kernels, so --peer cubek cannot be used with --from"
    );
    // Files first: what is wrong with them can be said without a device.
    let compare = args.compare.as_deref().map(Results::read).transpose()?;
    let mut peer = match &args.peer {
        Some(Peer::File(path)) => Some(Results::read(path)?),
        Some(Peer::Cubek) | None => None,
    };
    let results = match &args.from {
        Some(path) => {
            let mut results = Results::read(path)?;
            let wanted =
                |row: &Row| args.filter.is_empty() || args.filter.iter().any(|p| row.name.contains(p.as_str()));
            results.rows.retain(wanted);
            anyhow::ensure!(
                !results.rows.is_empty(),
                "{}: no row has a name with {}",
                path.display(),
                patterns(args)
            );
            if !args.json {
                heading(
                    &results.device,
                    &results.dtype,
                    results.quick,
                    results.roofline.as_ref(),
                );
            }
            results
        }
        None if args.list => return list(args),
        None => {
            let (ours, theirs) = measure(args, cubek)?;
            peer = peer.or(theirs);
            ours
        }
    };
    if let (Some(other), Some(path)) = (&compare, &args.compare) {
        results.comparable(other, path)?;
    }
    if let (Some(other), Some(Peer::File(path))) = (&peer, &args.peer) {
        results.comparable(other, path)?;
    }
    if let Some(path) = &args.save {
        results.write(path)?;
    }
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&joined(&results, compare.as_ref(), peer.as_ref())?)?
        );
    } else {
        show(&results, compare.as_ref(), peer.as_ref());
    }
    Ok(if results.passed() { 0 } else { FAILED })
}

fn patterns(args: &Args) -> String {
    args.filter
        .iter()
        .map(|p| format!("`{p}`"))
        .collect::<Vec<_>>()
        .join(" or ")
}

fn cases(args: &Args, quick: bool) -> anyhow::Result<Vec<Case>> {
    let cases = bench::filtered(shapes::cases(quick)?, &args.filter);
    anyhow::ensure!(
        !cases.is_empty(),
        "no case has a name with {}; `acrlpd bench kernels --list` prints all of them",
        patterns(args)
    );
    Ok(cases)
}

fn list(args: &Args) -> Outcome {
    let dtype = args.dtype;
    let mut listed: Vec<_> = cases(args, args.quick)?.iter().map(|case| case.listed(dtype)).collect();
    let speed = args.tflops.zip(args.bandwidth).map(|(tflops, bytes_per_s)| Roofline {
        flops_per_s: tflops * 1e12,
        bytes_per_s,
    });
    for one in &mut listed {
        one.floor_us = speed.map(|speed| 1e3 * speed.least_ms(one.flops, one.bytes));
    }
    if args.json {
        let all = serde_json::json!({ "format": FORMAT, "dtype": dtype.name(), "quick": args.quick, "cases": listed });
        super::print(&format!("{}\n", serde_json::to_string_pretty(&all)?))?;
        return Ok(0);
    }
    let mut header = vec!["case", "GFLOP", "MB"];
    header.extend(speed.map(|_| "floor µs"));
    let mut t = table(&header, 1);
    for one in &listed {
        let mut row = vec![
            one.case.name.clone(),
            number(one.flops * 1e-9),
            number(one.bytes * 1e-6),
        ];
        row.extend(one.floor_us.map(number));
        t.add_row(row);
    }
    super::print(&format!("{t}\n{} cases, {}\n", listed.len(), dtype.name()))?;
    Ok(0)
}

/// Measures every case, and cubek on those that are products if it is asked for.
fn measure(args: &Args, cubek: bool) -> anyhow::Result<(Results, Option<Results>)> {
    let dtype = args.dtype;
    let began = Instant::now();
    let mut gpu = Gpu::open(args.device.choice())?;
    let caps = gpu.caps().clone();
    anyhow::ensure!(
        caps.stores(dtype),
        "{} does not store {}; choose another --dtype (`acrlpd doctor` lists what it stores)",
        caps.name,
        dtype.name()
    );
    if let Some(why) = cubek.then(|| unusable(&gpu)).flatten() {
        anyhow::bail!("{why}; choose another --device");
    }
    let quick = args.quick || caps.software;
    let cases = cases(args, quick)?;
    let pace = Pace::of(&caps);
    let best = roofline::measure(&gpu, dtype)?;
    if !args.json {
        heading(&caps.name, dtype.name(), quick, Some(&best));
    }
    let bar = progress(cases.len());
    let (mut rows, mut theirs) = (Vec::new(), Vec::new());
    for case in &cases {
        bar.set_message(case.name.clone());
        if args
            .minutes
            .is_some_and(|minutes| began.elapsed().as_secs_f64() > 60.0 * minutes)
        {
            rows.push(bench::row(case, dtype, Status::Skipped, "the time was up"));
            continue;
        }
        // Errors of a device stick: go on with a fresh one, or not at all.
        let mut one = |gpu: &mut Gpu, cubek: bool| -> anyhow::Result<Option<String>> {
            match beside(gpu, case, dtype, &best, &pace, cubek) {
                Ok((ours, others)) => {
                    rows.push(ours);
                    theirs.extend(others);
                    Ok(None)
                }
                Err(error) => {
                    *gpu = Gpu::open(args.device.choice())?;
                    Ok(Some(error.to_string()))
                }
            }
        };
        let mut failed = one(&mut gpu, cubek)?;
        if let (true, Some(why)) = (cubek, &failed) {
            // Whose failure it was shows without the peer.
            let why = format!("beside cubek: {why}");
            failed = one(&mut gpu, false)?;
            theirs.push(bench::row(case, dtype, Status::Failed, &why));
        }
        if let Some(why) = failed {
            rows.push(bench::row(case, dtype, Status::Failed, &why));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let results = |program: String, rows: Vec<Row>| Results {
        format: FORMAT,
        program,
        device: caps.name.clone(),
        api: caps.api.to_string(),
        dtype: dtype.name().into(),
        quick,
        roofline: Some(best),
        rows,
    };
    let ours = results(format!("acrlpd {}", env!("CARGO_PKG_VERSION")), rows);
    Ok((ours, cubek.then(|| results(PEER.into(), theirs))))
}

#[cfg(feature = "peer-cubek")]
use acrlpd::bench::cubek::{PROGRAM as PEER, unusable};

#[cfg(not(feature = "peer-cubek"))]
const PEER: &str = "";

#[cfg(not(feature = "peer-cubek"))]
fn unusable(_gpu: &Gpu) -> Option<String> {
    None
}

/// The row of a case, and those of cubek if it is there and wanted.
fn beside(
    gpu: &Gpu,
    case: &Case,
    dtype: DType,
    best: &Roofline,
    pace: &Pace,
    cubek: bool,
) -> acrlpd::gpu::Result<(Row, Vec<Row>)> {
    #[cfg(feature = "peer-cubek")]
    if cubek {
        return bench::cubek::measure(gpu, case, dtype, best, pace);
    }
    let _ = cubek;
    Ok((bench::measure(gpu, case, dtype, best, pace)?, Vec::new()))
}

fn progress(cases: usize) -> ProgressBar {
    let bar = ProgressBar::new(cases as u64);
    if std::io::stderr().is_terminal() {
        let style = "{wide_bar} {pos}/{len} · {msg} · {eta} left";
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}
