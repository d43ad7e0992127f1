//! The memory of a plan against that of a run: the same allocations at the same addresses, the same pages, and no more taken
//! from the backend than was planned.

use std::path::Path;
use std::time::{Duration, Instant};

use acrlpd::config::Config;
use acrlpd::gpu::{Caps, DeviceChoice, Gpu, GpuError};
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule;
use acrlpd::train::metrics::Row;
use acrlpd::train::plan::{self, Plan, svg};
use acrlpd::train::signals::Stop;
use acrlpd::train::{self, Observer, Options, Preparation, Start, TrainError, setup};

fn config(preset: &str, changes: &[(&str, &str)]) -> Config {
    let changes: Vec<(String, String)> = changes
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Config::load_with(preset, &changes).expect("a preset")
}

fn tiny(changes: &[(&str, &str)]) -> Config {
    let small = [
        ("batch_size", "4"),
        ("acrlpd.diffusion_steps", "3"),
        ("model.dims.depth", "2"),
        ("wandb_enabled", "false"),
    ];
    config("debug", &[&small[..], changes].concat())
}

/// π₀ at a sixteenth of its width and a third of its depth, at full resolution with all cameras.
fn sixteenth(changes: &[(&str, &str)]) -> Config {
    let small = [
        ("model.dtype", "float32"),
        ("batch_size", "2"),
        ("acrlpd.gradient_accumulation_steps", "2"),
        ("acrlpd.diffusion_steps", "2"),
        ("acrlpd.num_critics", "2"),
        ("model.dims.vision_width", "72"),
        ("model.dims.vision_mlp", "272"),
        ("model.dims.vision_heads", "1"),
        ("model.dims.vision_depth", "9"),
        ("model.dims.language_width", "128"),
        ("model.dims.language_mlp", "1024"),
        ("model.dims.expert_width", "64"),
        ("model.dims.expert_mlp", "256"),
        ("model.dims.depth", "6"),
        ("model.dims.heads", "8"),
        ("model.dims.head_dim", "16"),
        ("model.dims.vocab", "16072"),
    ];
    config("rl_fold_box", &[&small[..], changes].concat())
}

/// What a run has of the device.
struct Used {
    states: Vec<u64>,
    activations: Vec<u64>,
    page_bytes: u64,
    reserved: u64,
}

/// Does `steps` full steps on `gpu`, in the pages of the plan.
fn steps(gpu: &Gpu, config: &Config, plan: &Plan, steps: usize) -> Used {
    gpu.states().reserve(&plan.state_pages).expect("there is room");
    gpu.scratch().reserve(&plan.activation_pages).expect("there is room");
    let learner = setup::learner(gpu, config).expect("it fits");
    learner.init(1);
    // As from a file, which is what plans have room for.
    learner.load_pi0(|t| Some(vec![0.01; t.len()]));
    let metrics = Metrics::new(&learner, config.batch_size);
    for step in 0..steps {
        metrics.clear(gpu);
        for _ in 0..config.accumulation() {
            let part = plan::fullest(config, learner.dims.max_token_len, 1);
            schedule::micro_batch(&learner, &metrics, &part, true);
        }
        optimizer::update(&learner, &metrics, step as u64, Rates::default());
        metrics.read(gpu).expect("the device works");
    }
    let memory = gpu.memory().expect("the device works");
    Used {
        page_bytes: memory.states.reserved + memory.scratch.reserved,
        states: memory.states.pages,
        activations: memory.scratch.pages,
        reserved: memory.reserved,
    }
}

/// Holds what a device has used to the plan: the arenas to the byte, what the backend took to 3 %.
fn holds(name: &str, config: &Config) {
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    let plan = plan::plan(config, gpu.caps().clone(), usize::MAX).expect("a plan");
    let used = steps(&gpu, config, &plan, 2);
    let planned: u64 = plan.state_pages.iter().chain(&plan.activation_pages).sum();
    println!(
        "{name}: planned {} bytes ({planned} of pages, {} of uploads), the backend took {}",
        plan.reserved_bytes, plan.upload_bytes, used.reserved
    );
    assert_eq!(used.states, plan.state_pages, "{name}");
    assert!(
        std::iter::zip(&used.activations, &plan.activation_pages).all(|(used, page)| used <= page),
        "{name}: {:?} of {:?}",
        used.activations,
        plan.activation_pages
    );
    assert_eq!(
        used.page_bytes, planned,
        "{name}: pages were made that were not planned"
    );
    let off = used.reserved as f64 / plan.reserved_bytes as f64 - 1.0;
    assert!(off.abs() <= 0.03, "{name}: {:+.1} %", 100.0 * off);
}

#[test]
fn a_tiny_step_takes_what_was_planned() {
    holds("tiny", &tiny(&[]));
    holds(
        "tiny, remat",
        &tiny(&[("memory.remat", "full"), ("acrlpd.freeze", "[\"vision\"]")]),
    );
}

#[test]
fn a_sixteenth_of_the_model_takes_what_was_planned() {
    holds("1/16", &sixteenth(&[]));
}

#[test]
fn a_step_has_the_addresses_of_its_plan() {
    let config = tiny(&[]);
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    let plan = plan::plan(&config, gpu.caps().clone(), usize::MAX).expect("a plan");
    let places = |gpu: &Gpu| -> Vec<_> {
        gpu.states().reserve(&plan.state_pages).expect("there is room");
        gpu.scratch().reserve(&plan.activation_pages).expect("there is room");
        gpu.keep_ledger();
        plan::step(gpu, &config, usize::MAX).expect("it runs");
        let spans = gpu.take_ledger().spans.into_iter();
        let of_arenas = spans.filter(|s| s.arena != "uploads");
        of_arenas
            .map(|s| (s.arena, s.page, s.start, s.bytes, s.owner, s.to.is_some()))
            .collect()
    };
    let real = places(&gpu);
    let null = places(&Gpu::null(gpu.caps().clone()));
    assert!(real.len() > 100);
    assert!(real == null, "the run asks for other memory than its plan");
}

/// Keeps the device of a run and its plan.
#[derive(Default)]
struct Kept(Option<(Gpu, Plan)>);

impl Observer for Kept {
    fn stage(&mut self, _: &str) {}
    fn statistics(&mut self, _: usize, _: usize) {}
    fn begin(&mut self, preparation: &Preparation<'_>) {
        self.0 = Some((preparation.gpu.clone(), preparation.plan.clone()));
    }
    fn step(&mut self, _: u64) {}
    fn row(&mut self, _: &Row) {}
    fn saved(&mut self, _: &Path, _: Duration) {}
}

fn options(mut config: Config, folder: &Path) -> Options {
    config.checkpoint_dir = folder.to_owned();
    Options {
        config,
        exp_name: "x".into(),
        start: Start::Fresh,
        device: DeviceChoice::Auto,
        device_memory: None,
        memory_fraction: 0.9,
        dry_run: false,
        watch: false,
        profile: false,
        started: Instant::now(),
    }
}

#[test]
fn a_run_makes_no_pages_beyond_its_plan() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = [
        ("num_train_steps", "3"),
        ("eval_interval", "2"),
        ("save_interval", "2"),
        ("log_interval", "1"),
    ];
    let options = options(tiny(&run), folder.path());
    let mut kept = Kept::default();
    train::run(&options, &Stop::default(), &mut kept).expect("it trains");
    let (gpu, plan) = kept.0.expect("it began");
    let memory = gpu.memory().expect("the device works");
    let planned: u64 = plan.state_pages.iter().chain(&plan.activation_pages).sum();
    assert_eq!(memory.states.reserved + memory.scratch.reserved, planned);
    let off = memory.reserved as f64 / plan.reserved_bytes as f64 - 1.0;
    println!("planned {}, taken {}", plan.reserved_bytes, memory.reserved);
    assert!(off.abs() <= 0.03, "{:+.1} %", 100.0 * off);
}

#[test]
fn what_cannot_fit_is_refused_with_what_would() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tiny(&[("acrlpd.gradient_accumulation_steps", "1")]);
    let whole = plan::plan(
        &config,
        Gpu::open(DeviceChoice::Auto).expect("a device").caps().clone(),
        usize::MAX,
    );
    let whole = whole.expect("a plan").reserved_bytes;
    let refused = |device_memory: u64| {
        let mut options = options(config.clone(), folder.path());
        (options.device_memory, options.memory_fraction) = (Some(device_memory), 1.0);
        let mut kept = Kept::default();
        let error = train::run(&options, &Stop::default(), &mut kept).expect_err("it is too large");
        assert!(kept.0.is_none(), "it began");
        assert_eq!(error.exit_code(), 4);
        assert!(
            matches!(&error, TrainError::Device(GpuError::TooLarge { .. })),
            "{error}"
        );
        error.to_string()
    };
    let text = refused(whole - 1);
    assert!(
        text.contains("--set") && text.contains("makes it fit") && !text.contains('\n'),
        "{text}"
    );
    let text = refused(1 << 20);
    assert!(text.contains("no setting makes it fit"), "{text}");
}

#[test]
fn full_size_is_planned_in_little_time() {
    let began = Instant::now();
    let config = config("rl_fold_box", &[]);
    let plan = plan::plan(&config, Caps::planning(), 8).expect("a plan");
    println!("planned in {:.0} ms", 1e3 * began.elapsed().as_secs_f64());
    let in_use: u64 = plan
        .map
        .groups
        .iter()
        .filter(|g| g.arena != "uploads")
        .map(|g| g.bytes_at_peak)
        .sum();
    assert_eq!(in_use, plan.peak_bytes, "the map is complete");
    let frame = svg::Frame {
        title: "a <step>",
        limit: Some(72_000_000_000),
    };
    let drawing = svg::svg(&plan, frame);
    assert!(drawing.starts_with("<svg") && drawing.ends_with("</svg>\n"));
    for part in [
        "a &lt;step&gt;",
        "72.0 GB may be used",
        "π₀ gradients",
        "SigLIP",
        "current prefix backward",
    ] {
        assert!(drawing.contains(part), "{part}");
    }
    assert!(drawing.matches("<rect").count() > 200, "allocations are drawn");
    // Gaps between allocations are small.
    let pages: u64 = plan.state_pages.iter().chain(&plan.activation_pages).sum();
    assert!(
        pages as f64 <= 1.03 * plan.peak_bytes as f64,
        "{pages} of {}",
        plan.peak_bytes
    );
}
