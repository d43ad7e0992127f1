//! One step on the training fixture's first batch, and comparisons of what it gives.

use std::collections::HashMap;
use std::path::Path;

use acrlpd::gpu::{DeviceChoice, Gpu};
use acrlpd::model::params::ParamStore;
use acrlpd::step::batch::MicroBatch;
use acrlpd::step::config::StepConfig;
use acrlpd::step::learner::Learner;
use acrlpd::step::metrics::{Metrics, Slot, Values};
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::{Outcome, micro_batch};
use acrlpd::verify::{Fixture, TrainingGroup};

/// Tensors by name.
pub type Named = HashMap<String, Vec<f32>>;

/// The fixture on a device.
pub struct Bench {
    pub gpu: Gpu,
    pub group: TrainingGroup,
}

/// What one evaluation gives.
pub struct Evaluation {
    pub learner: Learner,
    pub metrics: Metrics,
    pub values: Values,
    /// Of the last micro-batch.
    pub outcome: Outcome,
    pub pi0: Named,
    pub critic: Named,
}

pub fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

impl Bench {
    pub fn open() -> Bench {
        let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
        let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
        let fixture = Fixture::open(&golden("acrlpd_tiny")).unwrap();
        Bench {
            gpu: Gpu::open(choice).expect("tests need a device"),
            group: TrainingGroup::new(fixture).unwrap(),
        }
    }

    /// The fixture's step: nothing left out, no temperature.
    pub fn config(&self) -> StepConfig {
        StepConfig {
            temperature: None,
            ..self.group.config().unwrap()
        }
    }

    /// Batch `step0` in `pieces` micro-batches.
    pub fn batches(&self, pieces: usize) -> Vec<MicroBatch> {
        let size = self.group.batch / pieces;
        let piece = |i| self.group.micro(0, i * size..(i + 1) * size).unwrap();
        (0..pieces).map(piece).collect()
    }

    /// A learner with the stored weights and targets.
    pub fn learner(&self, config: StepConfig) -> Learner {
        let learner = self.group.learner(&self.gpu, config).unwrap();
        self.group.stored_targets(&learner).unwrap();
        learner
    }

    /// Losses and gradients on the whole batch at once.
    pub fn evaluate(&self, config: StepConfig) -> Evaluation {
        self.evaluate_on(config, &self.batches(1), true)
    }

    pub fn evaluate_on(&self, config: StepConfig, batches: &[MicroBatch], update_pi0: bool) -> Evaluation {
        let learner = self.learner(config);
        let metrics = Metrics::new(&learner, self.group.batch);
        let mut outcome = None;
        for batch in batches {
            outcome = Some(micro_batch(&learner, &metrics, batch, update_pi0));
        }
        Evaluation {
            values: metrics.read(&self.gpu).unwrap(),
            outcome: outcome.expect("there is a batch"),
            pi0: read(&self.gpu, &learner.pi0.grads),
            critic: read(&self.gpu, &learner.critic.grads),
            metrics,
            learner,
        }
    }

    /// Everything an update may change, by group, kind and name.
    pub fn state(&self, learner: &Learner) -> Named {
        let mut all = Named::new();
        for (part, group) in [("pi0", &learner.pi0), ("critic", &learner.critic)] {
            let stores = [
                ("weights", Some(&group.weights)),
                ("m", Some(&group.m)),
                ("v", group.v.as_ref()),
                ("average", group.average.as_ref()),
            ];
            for (kind, store) in stores.into_iter().filter_map(|(k, s)| Some((k, s?))) {
                let named = read(&self.gpu, store).into_iter();
                all.extend(named.map(|(name, values)| (format!("{part} {kind} {name}"), values)));
            }
        }
        if let Some(t) = &learner.temperature {
            for (name, tensor) in [("log α", &t.log_alpha), ("log α m", &t.m), ("log α v", &t.v)] {
                all.insert(name.into(), self.gpu.read_f32(tensor).unwrap());
            }
        }
        all
    }
}

impl Evaluation {
    pub fn loss(&self, slot: Slot) -> f32 {
        self.values.get(slot)
    }

    /// Applies the gradients as update number `step`; the metrics afterwards.
    pub fn update(&self, step: u64) -> Values {
        optimizer::update(&self.learner, &self.metrics, step, RATES);
        self.metrics.read(&self.learner.gpu).unwrap()
    }
}

/// Learning rates of the tests' updates.
pub const RATES: Rates = Rates {
    pi0: 1e-3,
    critic: 3e-3,
    temperature: 1e-2,
};

/// The three losses of a step without temperature.
pub const LOSSES: [Slot; 3] = [Slot::CriticLoss, Slot::ActorLoss, Slot::BcLoss];

pub fn read(gpu: &Gpu, store: &ParamStore) -> Named {
    store.read(gpu).unwrap()
}

pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Every tensor of `got` equals the one of `want`, in relative L2. The vision keys' biases have a gradient of zero in
/// exact arithmetic: theirs must be small beside the values' biases.
#[track_caller]
pub fn assert_near(what: &str, got: &Named, want: &Named, tolerance: f64) {
    assert!(!got.is_empty(), "{what}: nothing to compare");
    let mut worst = (0.0, "");
    for (name, values) in got {
        let want_values = want.get(name).unwrap_or_else(|| panic!("{what}: {name} is not there"));
        assert_eq!(values.len(), want_values.len(), "{what}: {name}");
        let moved: Vec<f32> = values.iter().zip(want_values).map(|(a, b)| a - b).collect();
        let scale = match name.strip_suffix("k_proj.bias") {
            Some(stem) => norm(&want[&format!("{stem}v_proj.bias")]),
            None => norm(want_values),
        };
        let distance = norm(&moved);
        let error = if distance == 0.0 { 0.0 } else { distance / scale };
        assert!(
            error <= tolerance,
            "{what}: {name} is off by {error:.1e} of {tolerance:.0e}"
        );
        if error > worst.0 {
            worst = (error, name);
        }
    }
    println!("{what}: worst {:.1e} of {tolerance:.0e} at {}", worst.0, worst.1);
}

/// Every tensor of `got` has the bits of the one of `want`.
#[track_caller]
pub fn assert_bits(what: &str, got: &Named, want: &Named) {
    assert!(!got.is_empty(), "{what}: nothing to compare");
    for (name, values) in got {
        let same = want.get(name).is_some_and(|w| bits(w) == bits(values));
        assert!(same, "{what}: {name} differs");
    }
}

/// The losses agree to within `tolerance`, relative.
#[track_caller]
pub fn assert_losses(what: &str, got: &Evaluation, want: &Evaluation, tolerance: f32) {
    for slot in LOSSES {
        let (g, w) = (got.loss(slot), want.loss(slot));
        assert!((g - w).abs() <= tolerance * w.abs(), "{what}: {slot:?} is {g}, not {w}");
    }
}
