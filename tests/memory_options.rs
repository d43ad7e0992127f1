//! The options of `[memory]` against the f32 states that lie on the device.

mod run_support;

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use acrlpd::config::Config;
use acrlpd::gpu::{Caps, DeviceChoice, Gpu};
use acrlpd::model::params::ParamStore;
use acrlpd::ops::blockwise::Format;
use acrlpd::step::config::StepConfig;
use acrlpd::step::learner::Learner;
use acrlpd::step::metrics::{Metrics, Slot};
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::train::plan::{self, Plan};
use acrlpd::verify::{Fixture, TrainingGroup};
use run_support::Runs;

const RATES: Rates = Rates {
    pi0: 1e-3,
    critic: 1e-3,
    temperature: 1e-3,
};

fn plan_of(keys: &[(&str, &str)]) -> Plan {
    let keys: Vec<_> = keys.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let config = Config::load_with("rl_fold_box", &keys).expect("a configuration");
    plan::plan(&config, Caps::planning(), 8).expect("a plan")
}

fn peak(plan: &Plan, phase: &str) -> f64 {
    let phase = plan.phases.iter().find(|p| p.name == phase).expect("a phase");
    phase.peak_bytes as f64
}

/// Whole runs: every file of their last checkpoints, the configuration aside.
#[test]
fn an_average_on_the_host_has_the_bits_of_the_device_s() {
    let runs = Runs::new();
    let all = [
        "--save-interval=2",
        "--max-steps=4",
        "--grad-accum=2",
        "--set=acrlpd.pi0_ema_decay=0.7",
    ];
    for (name, more) in [("plain", ""), ("frozen", "--set=acrlpd.freeze=[\"vision\"]")] {
        let files = |host: bool| -> HashMap<String, Vec<u8>> {
            let exp = format!("{name}-{host}");
            let host = format!("--set=memory.ema_on_host={host}");
            let more = (!more.is_empty()).then_some(more);
            runs.tiny(
                0,
                &exp,
                &all.iter().copied().chain(more).chain([&host[..]]).collect::<Vec<_>>(),
            );
            let of = |file: &str| {
                let path = runs.dir(&exp).join("4").join(file);
                (file.to_owned(), fs::read(&path).expect("a file of a checkpoint"))
            };
            ["params", "ema", "critic", "optimizer"]
                .map(|f| of(&format!("{f}.safetensors")))
                .into()
        };
        let (device, host) = (files(false), files(true));
        assert!(device["ema.safetensors"] != device["params.safetensors"], "{name}");
        for (file, bytes) in &device {
            assert!(*bytes == host[file], "{name}: {file}");
        }
    }
}

fn values(gpu: &Gpu, store: &ParamStore) -> HashMap<String, Vec<f32>> {
    store.read(gpu).expect("the device works")
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// Some steps of the golden group's model on its own batches. docs/KERNELS.md has the numbers.
#[test]
fn moments_in_8_bits_train_as_whole_ones_do() {
    const STEPS: u64 = 30;
    let gpu = Gpu::open(DeviceChoice::Auto).expect("a device");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    let group = TrainingGroup::new(Fixture::open(&path).expect("a group")).expect("a training group");
    let train = |moments: Format, lr: f64| -> (Learner, Vec<f64>) {
        let config = StepConfig {
            moments,
            ..group.config().expect("a step")
        };
        let learner = group.learner(&gpu, config).expect("a learner");
        let batch = group.micro(0, 0..group.batch).expect("a batch");
        let metrics = Metrics::new(&learner, group.batch);
        let mut losses = Vec::new();
        for step in 0..STEPS {
            metrics.clear(&gpu);
            micro_batch(&learner, &metrics, &batch, true);
            let rates = Rates {
                pi0: lr * RATES.pi0,
                ..RATES
            };
            optimizer::update(&learner, &metrics, step, rates);
            losses.push(f64::from(
                metrics.read(&gpu).expect("the device works").get(Slot::BcLoss),
            ));
        }
        (learner, losses)
    };
    let start = group.learner(&gpu, group.config().expect("a step")).expect("a learner");
    let start = values(&gpu, &start.pi0.weights);
    let ((whole, loss), (blocks, loss8)) = (train(Format::Float32, 1.0), train(Format::Blockwise8, 1.0));
    // What another learning rate makes of the same steps.
    let (other, other_loss) = train(Format::Float32, 0.9);
    let [whole, blocks, other] = [whole, blocks, other].map(|learner| values(&gpu, &learner.pi0.weights));
    let apart = |a: &HashMap<String, Vec<f32>>, b: &HashMap<String, Vec<f32>>| {
        let pairs = a.iter().flat_map(|(name, values)| values.iter().zip(&b[name]));
        norm(pairs.map(|(x, y)| f64::from(x - y)))
    };
    let way = apart(&whole, &start);
    let [share, control] = [&blocks, &other].map(|weights| apart(&whole, weights) / way);
    let [last, last8, last_other] = [&loss, &loss8, &other_loss].map(|l| l[STEPS as usize - 1]);
    println!("{share:.3} of the way, {control:.3} with a lower rate");
    println!("BC loss {:.4}, then {last:.4}, {last8:.4}, {last_other:.4}", loss[0]);
    assert!(last < 0.9 * loss[0], "it learns: {loss:?}");
    assert_eq!(loss[0], loss8[0], "the first step has no moments yet");
    assert!((last8 / last - 1.0).abs() < 0.05, "{last8} and {last}");
    assert!(share > 0.0 && share < 0.5, "{share}");
}

/// Of s' only keys, values and features stay: the phase needs what the one before left, and the work of one layer.
#[test]
fn activations_of_the_next_state_are_not_kept() {
    for remat in ["none", "mlp", "full"] {
        let plan = plan_of(&[("memory.remat", remat)]);
        let (current, next) = (
            peak(&plan, "current prefix forward"),
            peak(&plan, "next prefix forward"),
        );
        // What s keeps for backward, most of what it needs.
        let kept = current - plan.state_bytes as f64;
        println!(
            "{remat}: kept {:.2} GB, next {:+.2} GB",
            kept / 1e9,
            (next - current) / 1e9
        );
        assert!(kept > 1e9 && next - current < 0.35 * kept, "{remat}: {kept:e} {next:e}");
    }
    // Without remat that would be far more than ten times the work of a layer.
    let plan = plan_of(&[("memory.remat", "none")]);
    let (current, next) = (
        peak(&plan, "current prefix forward"),
        peak(&plan, "next prefix forward"),
    );
    assert!(next - current < 0.1 * (current - plan.state_bytes as f64));
}

#[test]
fn every_option_saves_what_it_says() {
    let bytes = |key: &str, value: &str| plan_of(&[(key, value)]).state_bytes as f64;
    let exact = plan_of(&[]);
    let state = exact.state_bytes as f64;
    let average = state - bytes("memory.ema_on_host", "true");
    let moments = state - bytes("memory.moments", "blockwise8");
    // Four bytes for everything that learns, and of twice four all but a code and the share of a scale.
    assert!(average > 4.0 * 2.4e9 && average < 4.0 * 3.3e9, "{average:e}");
    let wanted = average / 4.0 * (8.0 - 2.0 * 260.0 / 256.0);
    assert!((moments / wanted - 1.0).abs() < 1e-3, "{moments:e}, not {wanted:e}");
    let tight = plan_of(&[("memory.preset", "tight")]);
    assert!(tight.peak_bytes as f64 <= 0.6 * exact.peak_bytes as f64);
}
