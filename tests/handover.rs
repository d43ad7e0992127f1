//! A checkpoint is of one step, however little of it fits into memory at a time, and whatever runs while it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use acrlpd::checkpoint::{open, state};
use acrlpd::config::Config;
use acrlpd::data::NormStats;
use acrlpd::files::fault::{self, Op, Watch};
use acrlpd::gpu::{DeviceChoice, Gpu};
use acrlpd::step::learner::{Group, Learner};
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::train::handover::{Cut, Handover, Identity};
use acrlpd::train::snapshot;
use acrlpd::verify::{Fixture, TrainingGroup};

const RATES: Rates = Rates {
    pi0: 1e-3,
    critic: 1e-3,
    temperature: 1e-3,
};

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device")
}

fn group() -> TrainingGroup {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/acrlpd_tiny");
    TrainingGroup::new(Fixture::open(&golden).expect("a fixture")).expect("a group")
}

type State = BTreeMap<String, Vec<u32>>;

/// Every number of a learner that a checkpoint is to have, read from the device.
fn state_of(learner: &Learner) -> State {
    let mut all = State::new();
    let mut add = |name: &str, group: &Group| {
        let moments = [
            ("m", Some(&group.m)),
            ("v", group.v.as_ref()),
            ("average", group.average.as_ref()),
        ];
        for (part, store) in [("weights", Some(&group.weights))].into_iter().chain(moments) {
            for (tensor, values) in store
                .iter()
                .flat_map(|s| s.read(&learner.gpu).expect("the device works"))
            {
                let bits = values.iter().map(|v| v.to_bits()).collect();
                all.insert(format!("{name}/{part}/{tensor}"), bits);
            }
        }
    };
    add("pi0", &learner.pi0);
    add("critic", &learner.critic);
    let t = learner.temperature.as_ref().expect("a temperature");
    for (name, tensor) in [("log_alpha", &t.log_alpha), ("m", &t.m), ("v", &t.v)] {
        let value = learner.gpu.read_f32(tensor).expect("the device works");
        all.insert(format!("temperature/{name}"), vec![value[0].to_bits()]);
    }
    all
}

struct Run {
    learner: Learner,
    metrics: Metrics,
    group: TrainingGroup,
    config: Config,
    stats: NormStats,
    dir: tempfile::TempDir,
}

impl Run {
    /// A learner whose moments and averages are not what they were at the start.
    fn new() -> Run {
        let (group, gpu) = (group(), device());
        let learner = group
            .learner(&gpu, group.config().expect("a config"))
            .expect("a learner");
        let width = acrlpd::data::Stats {
            mean: vec![0.0; 2],
            std: vec![1.0; 2],
            q01: None,
            q99: None,
        };
        let run = Run {
            metrics: Metrics::new(&learner, group.batch),
            learner,
            group,
            config: Config::load("debug").expect("a preset"),
            stats: NormStats {
                state: width.clone(),
                actions: width,
            },
            dir: tempfile::tempdir().expect("a folder"),
        };
        run.forward_and_backward();
        run.update(0);
        run
    }

    fn forward_and_backward(&self) {
        self.metrics.clear(&self.learner.gpu);
        let batch = self.group.micro(0, 0..self.group.batch).expect("a batch");
        micro_batch(&self.learner, &self.metrics, &batch, true);
    }

    fn update(&self, step: u64) {
        optimizer::update(&self.learner, &self.metrics, step, RATES);
    }

    fn begin(&self, name: &str, cut: Cut) -> Handover {
        let identity = Identity {
            dir: &self.dir.path().join(name),
            config: &self.config,
            stats: &self.stats,
        };
        Handover::begin(&self.learner, &identity, 1, 0, cut).expect("the device works")
    }

    /// The checkpoint as another learner restores it.
    fn restored(&self, folder: &Path) -> State {
        let saved = open(folder).expect("a whole checkpoint");
        let learner = self
            .group
            .learner(&self.learner.gpu, self.group.config().expect("a config"))
            .expect("a learner");
        snapshot::restore(&learner, &saved).expect("it fits");
        state_of(&learner)
    }
}

/// A disk that takes nothing of the folders in it, by name, while they are here.
static STUCK: Mutex<BTreeSet<&str>> = Mutex::new(BTreeSet::new());

struct Gate;

impl Watch for Gate {
    fn before(&self, op: &Op<'_>) -> std::io::Result<()> {
        let stuck = || {
            let path = op.path().to_string_lossy();
            let all = STUCK.lock().unwrap_or_else(|e| e.into_inner());
            matches!(op, Op::Write { .. }) && all.iter().any(|name| path.contains(*name))
        };
        while stuck() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Stops the disk for a folder, or lets it go on.
fn stuck(name: &'static str, yes: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| fault::watch(Gate));
    let mut all = STUCK.lock().unwrap_or_else(|e| e.into_inner());
    if yes {
        all.insert(name);
    } else {
        all.remove(name);
    }
}

/// Little of everything: hundreds of pieces, dozens of files, three at a time.
const SMALL: Cut = Cut {
    room: 40_000,
    shard: 100_000,
    piece: 4000,
    batch: 10_000,
    lanes: Some(3),
};

fn finished(handover: Handover) -> PathBuf {
    handover.finish().expect("the device works").wait().expect("a disk").0
}

#[test]
fn what_is_saved_is_the_state_of_the_step_whatever_runs_meanwhile() {
    let run = Run::new();
    let state = state_of(&run.learner);
    let at_once = finished(run.begin("at-once", Cut::new(0)));
    assert!(at_once.join(state::PARAMS).is_file() && run.restored(&at_once) == state);

    stuck("in-pieces", true);
    let mut handover = run.begin("in-pieces", SMALL);
    // Between micro-batches as far as there is room; the disk is waited for in the end.
    for _ in 0..2 {
        assert!(
            !handover.advance().expect("the device works"),
            "all of it fits into the room"
        );
        run.forward_and_backward();
    }
    stuck("in-pieces", false);
    let folder = finished(handover);
    run.update(1);
    assert!(run.restored(&folder) == state);
    assert!(
        state_of(&run.learner) != state,
        "the update changes nothing: this test cannot fail"
    );

    // The files are shards, and their tensors those of the whole files.
    let saved = open(&folder).expect("a whole checkpoint");
    let whole = open(&at_once).expect("a whole checkpoint");
    for name in [state::PARAMS, state::EMA, state::CRITIC, state::OPTIMIZER] {
        assert!(
            saved.has(name) && !folder.join(name).exists(),
            "{name} is not in shards"
        );
        let (a, b) = (saved.tensors(name).expect(name), whole.tensors(name).expect(name));
        let all = |w: &acrlpd::checkpoint::Weights| -> Vec<(String, Vec<f32>)> {
            let read = |t: acrlpd::checkpoint::weights::TensorInfo| {
                (t.name.to_owned(), w.values(t.name, t.shape).expect(t.name))
            };
            w.iter().map(read).collect()
        };
        assert!(all(&a) == all(&b), "{name}");
    }
    let params = acrlpd::checkpoint::Weights::open(&folder).expect("found by its index");
    assert_eq!(
        params.iter().count(),
        whole.tensors(state::PARAMS).expect("there").iter().count()
    );
    let ema = acrlpd::checkpoint::Weights::open(folder.join(state::EMA)).expect("found under its name");
    assert_eq!(ema.iter().count(), params.iter().count());
}

#[test]
fn an_update_that_does_not_wait_would_be_seen() {
    let run = Run::new();
    let state = state_of(&run.learner);
    stuck("torn", true);
    let mut handover = run.begin("torn", SMALL);
    assert!(!handover.advance().expect("the device works"));
    run.forward_and_backward();
    run.update(1);
    stuck("torn", false);
    let folder = finished(handover);
    assert!(
        run.restored(&folder) != state,
        "nothing was left to read when the state changed"
    );
}

#[test]
fn a_handover_that_is_given_up_leaves_nothing() {
    let run = Run::new();
    let mut handover = run.begin("given-up", SMALL);
    handover.advance().expect("the device works");
    drop(handover);
    let dir = run.dir.path().join("given-up");
    let ended = (0..500).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        dir.is_dir() && std::fs::read_dir(&dir).expect("a folder").count() == 0
    });
    assert!(ended, "a draft is left");
}

#[test]
fn the_bound_is_the_configured_one() {
    let cut = Cut::new(100);
    assert_eq!(cut.room, 100_000_000);
    assert!(cut.batch * 4 <= cut.room && cut.piece <= 16 << 20);
    // Without one it is a share of what is free.
    assert!(Cut::new(0).room > 0);
}
