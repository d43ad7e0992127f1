//! `acrlpd plan`: what a step costs, where its memory lies, and whether it fits.

use std::path::PathBuf;

use acrlpd::config::Config;
use acrlpd::files;
use acrlpd::model::tables::{self, Pi0Units};
use acrlpd::train::TrainError;
use acrlpd::train::plan::map::Group;
use acrlpd::train::plan::{self, Plan, advice, cards, fit, svg};
use acrlpd::train::recipe;

use super::Outcome;
use super::flags::{ConfigFlags, MemoryFlag, size};
use super::table::{bytes, number, table};

/// Rows of the map that are printed; the rest is summed up.
const ROWS: usize = 24;

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFlags,
    /// Tokens of every prompt; padding is never computed. Memory is planned for the longest prompts by default.
    #[arg(long, default_value_t = 8, value_name = "N")]
    prompt_tokens: usize,
    #[command(flatten)]
    memory: MemoryFlag,
    /// Rate of its matrix products in TFLOP/s, to estimate times.
    #[arg(long, value_name = "X", requires = "bandwidth")]
    tflops: Option<f64>,
    /// Bandwidth of its memory, e.g. 3.0TB/s, to estimate times.
    #[arg(long, value_name = "RATE", requires = "tflops", value_parser = rate)]
    bandwidth: Option<f64>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the fastest settings that fit into cards of usual sizes.
    #[arg(long, conflicts_with_all = ["json", "svg", "device_memory", "tflops"])]
    cards: bool,
    /// Draw memory over the phases of the step.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

pub fn run(args: &Args) -> Outcome {
    let config = args.config.load(&[])?;
    let share = args.memory.share()?;
    if args.cards {
        println!("{}", card_table(&cards::cards(&config, share, args.prompt_tokens)?));
        return Ok(0);
    }
    let device = args.memory.device_memory();
    let room = device.map(|bytes| (bytes as f64 * share) as u64);
    let caps = fit::planning(device);
    let plan = plan::plan(&config, caps.clone(), args.prompt_tokens)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&plan)?);
    } else {
        print(args, &plan);
        let dims = config.pi0_dims();
        let table = config.freeze().mark(tables::pi0(&dims));
        let learns = table.units[Pi0Units::new(&dims).embedding()].groups[0].learns;
        if let (true, Err(why)) = (learns, recipe::prompt_rows(&config)) {
            println!("every row of the prompt table has states: {why}");
        }
        print_map(&plan);
    }
    if let Some(path) = &args.svg {
        let title = format!("Memory of one step of {}", config.name);
        let frame = svg::Frame {
            title: &title,
            limit: room,
        };
        files::write(path, svg::svg(&plan, frame).as_bytes()).map_err(TrainError::from)?;
    }
    let Some(room) = room else { return Ok(0) };
    let fits = plan.reserved_bytes <= room;
    if !args.json {
        verdict(args, &config, &plan, room)?;
    }
    Ok(if fits { 0 } else { super::FAILED })
}

/// Says whether it fits, and else what would.
fn verdict(args: &Args, config: &Config, plan: &Plan, room: u64) -> anyhow::Result<()> {
    let device = args.memory.device_memory();
    let of = format!("{} of {} may be used", bytes(room), bytes(device.unwrap_or(room)));
    if plan.reserved_bytes <= room {
        println!("{of}: it fits");
        return Ok(());
    }
    let advice = advice::advice(config, plan, &fit::planning(device), args.prompt_tokens, room)?;
    println!("{of}: it does NOT fit; {advice}");
    Ok(())
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
    if let Some(rows) = plan.prompt_rows {
        println!("prompt table: room for {rows} rows that learn, those that occur");
    }
    if speed.is_some() {
        println!(
            "at least {} ms a step at these rates (each phase as its slower of the two)",
            number(all_ms)
        );
    }
}

/// The map, and what it comes to.
fn print_map(plan: &Plan) {
    println!();
    let header = [
        "memory",
        "arena",
        "from",
        "to",
        "at most",
        "at the peak",
        "bytes",
        "allocations",
    ];
    let mut t = table(&header, 4);
    let mut groups: Vec<&Group> = plan.map.groups.iter().collect();
    groups.sort_by_key(|g| u64::MAX - g.bytes);
    let small = groups.split_off(groups.len().min(ROWS));
    let shown = plan
        .map
        .groups
        .iter()
        .filter(|g| groups.iter().any(|s| s.name == g.name && s.arena == g.arena));
    for group in shown {
        t.add_row([
            group.name.clone(),
            group.arena.into(),
            group.first.unwrap_or("before").into(),
            group.last.unwrap_or("after").into(),
            bytes(group.bytes),
            bytes(group.bytes_at_peak),
            format!("{}..{}", bytes(group.from_byte), bytes(group.to_byte)),
            group.allocations.to_string(),
        ]);
    }
    if !small.is_empty() {
        let sum = |value: fn(&Group) -> u64| small.iter().map(|g| value(g)).sum::<u64>();
        t.add_row([
            format!("{} smaller ones", small.len()),
            String::new(),
            String::new(),
            String::new(),
            bytes(sum(|g| g.bytes)),
            bytes(sum(|g| g.bytes_at_peak)),
            String::new(),
            sum(|g| g.allocations as u64).to_string(),
        ]);
    }
    println!("{t}");
    let pages = |pages: &[u64]| bytes(pages.iter().sum());
    println!(
        "memory {}: weights, gradients and optimizer states {}, activations and workspaces {} ({} in use at most), uploads {}",
        bytes(plan.reserved_bytes),
        pages(&plan.state_pages),
        pages(&plan.activation_pages),
        bytes(plan.activation_bytes),
        bytes(plan.upload_bytes)
    );
}

/// The fastest settings of each card, as Markdown.
fn card_table(cards: &[cards::Card]) -> String {
    let header = ["card", "trained", "settings", "step", "TFLOP per sample", "memory"];
    let mut t = table(&header, 3);
    for card in cards {
        let (memory, way) = (format!("{} GB", card.memory), card.way.to_owned());
        t.add_row(match &card.best {
            Ok(best) => {
                let parts = best.config.accumulation();
                let settings = [&card.of_way[..], &best.settings].concat();
                let settings = match settings.is_empty() {
                    true => "as they are".to_owned(),
                    false => format!("`{}`", fit::flags(&settings)),
                };
                [
                    memory,
                    way,
                    settings,
                    format!("{parts} × {}", best.config.micro_batch()),
                    format!("{:.2}", best.tflop_per_sample),
                    gigabytes(best.reserved_bytes),
                ]
            }
            Err(least) => {
                let least = format!("does not fit: at least {}", gigabytes(*least));
                [memory, way, least, "-".into(), "-".into(), "-".into()]
            }
        });
    }
    t.to_string()
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// `3.0TB/s` as bytes per second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    size(text.trim_end_matches("/s")).map_err(|_| format!("`{text}` is not a bandwidth; use e.g. 3.0TB/s"))
}
