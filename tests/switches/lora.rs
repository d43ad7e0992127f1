//! Low-rank adapters: against the reference, against the matrices that they amount to, and what stays as it is.

use std::path::Path;

use acrlpd::gpu::{DType, Gpu};
use acrlpd::model::dims::{Adapters, Lora, Pi0Dims};
use acrlpd::model::freeze::Freeze;
use acrlpd::model::merge::merge;
use acrlpd::model::params::{ParamTensor, Room};
use acrlpd::model::remat::Remat;
use acrlpd::model::tables;
use acrlpd::step::config::{Features, StepConfig};
use acrlpd::step::learner::Learner;
use acrlpd::step::metrics::{Metrics, Slot};
use acrlpd::step::schedule::micro_batch;
use safetensors::SafeTensors;
use serde_json::Value;

use crate::bench::{Bench, Evaluation, Named, assert_bits, assert_losses, assert_near, bits, golden, read};
use crate::objective::{FORWARD, assert_fingerprints};

/// The adapters of `tests/golden/lora.py`: whole multiples of 2^-14.
fn adapter(name: &str, n: usize) -> Vec<f32> {
    let start = name.bytes().fold(0x811C_9DC5u32, |h, byte| {
        (h ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let value = |i: u32| {
        let mut x = start.wrapping_add(i.wrapping_mul(2_654_435_761));
        x ^= x >> 15;
        x = x.wrapping_mul(0x2C1B_3C6D);
        x ^= x >> 12;
        x = x.wrapping_mul(0x297A_2D39);
        ((x >> 19) as f32 - 4096.0) / 16384.0
    };
    (0..n as u32).map(value).collect()
}

fn stored(file: &Path) -> Named {
    let bytes = std::fs::read(file).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, values(view.data())))
        .collect()
}

const BOTH: Adapters = Adapters {
    language: Some(Lora { rank: 2, alpha: 3.0 }),
    expert: Some(Lora { rank: 4, alpha: 2.0 }),
};

/// The training fixture's critics and batches with π₀ of either kind.
struct Adapted {
    bench: Bench,
    dims: Pi0Dims,
    weights: Named,
}

impl Adapted {
    fn new(bench: Bench, pi05: bool, lora: Adapters) -> Adapted {
        let dims = Pi0Dims {
            pi05,
            lora,
            ..bench.group.dims.clone()
        };
        let group = if pi05 { "pi05_tiny" } else { "acrlpd_tiny" };
        let mut weights = stored(&golden(&format!("{group}.weights.safetensors")));
        for tensor in tables::pi0(&dims).tensors().filter(|t| t.name.contains(".lora_")) {
            weights.insert(tensor.name.clone(), adapter(&tensor.name, tensor.len()));
        }
        Adapted { bench, dims, weights }
    }

    /// The same model without adapters: what they add is in the matrices.
    fn merged(self) -> Adapted {
        let lora = self.dims.lora;
        let dims = Pi0Dims {
            lora: Adapters::default(),
            ..self.dims
        };
        let (table, adapted) = (tables::pi0(&dims), tables::pi0(&Pi0Dims { lora, ..dims.clone() }));
        let read = |tensor: &ParamTensor| -> Result<Vec<f32>, ()> { Ok(self.weights[&tensor.name].clone()) };
        let weights = table.tensors().map(|tensor| {
            let values = merge(tensor, &adapted, lora, read).unwrap();
            (tensor.name.clone(), values)
        });
        let weights = weights.collect();
        Adapted {
            dims,
            weights,
            bench: self.bench,
        }
    }

    fn learner(&self, gpu: &Gpu, config: StepConfig) -> Learner {
        let group = &self.bench.group;
        let learner = Learner::new(gpu, config, self.dims.clone(), group.critic_dims.clone()).unwrap();
        learner.load_pi0(|tensor| Some(self.weights[&tensor.name].clone()));
        let online = stored(&golden("acrlpd_tiny.critic.safetensors"));
        learner.load_critics(|tensor| Some(online[&format!("online/{}", tensor.name)].clone()));
        group.stored_targets(&learner).unwrap();
        learner
    }

    fn evaluate(&self, config: StepConfig) -> Evaluation {
        self.evaluate_on(&self.bench.gpu, config)
    }

    fn evaluate_on(&self, gpu: &Gpu, config: StepConfig) -> Evaluation {
        let learner = self.learner(gpu, config);
        let metrics = Metrics::new(&learner, self.bench.group.batch);
        let batch = self.bench.batches(1).remove(0);
        let outcome = micro_batch(&learner, &metrics, &batch, true);
        Evaluation {
            values: metrics.read(gpu).unwrap(),
            outcome,
            pi0: read(gpu, &learner.pi0.grads),
            critic: read(gpu, &learner.critic.grads),
            metrics,
            learner,
        }
    }
}

fn adapters(lora: &Value) -> Adapters {
    let of = |stack: &str| {
        let lora = lora.get(stack)?;
        Some(Lora {
            rank: lora["rank"].as_u64()? as usize,
            alpha: lora["alpha"].as_f64()?,
        })
    };
    Adapters {
        language: of("language"),
        expert: of("expert"),
    }
}

#[test]
fn adapters_have_the_losses_and_gradients_of_the_reference() {
    let text = std::fs::read_to_string(golden("lora.json")).unwrap();
    let reference: Value = serde_json::from_str(&text).unwrap();
    let cases = reference["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let (pi05, lora) = (case["pi05"].as_bool().unwrap(), adapters(&case["lora"]));
        let adapted = Adapted::new(Bench::open(), pi05, lora);
        let config = adapted.bench.config();
        let what = format!("π₀.₅ {pi05}, {}", case["lora"]);
        // Everything learns, the matrices under the adapters too: each gradient is the reference's.
        let full = adapted.evaluate(config.clone());
        for (name, slot) in [
            ("critic_loss", Slot::CriticLoss),
            ("actor_loss", Slot::ActorLoss),
            ("bc_loss", Slot::BcLoss),
        ] {
            let (got, want) = (f64::from(full.loss(slot)), case[name].as_f64().unwrap());
            let off = (got - want).abs();
            assert!(off <= FORWARD * want.abs(), "{what}: {name} is {got}, not {want}");
        }
        assert_eq!(full.pi0.len(), case["gradients"].as_object().unwrap().len(), "{what}");
        assert_fingerprints(&what, &full.pi0, &case["gradients"]);

        // However much is computed again, and with the matrices fixed as they are in training.
        let freeze = Freeze::under(lora);
        for remat in [Remat::None, Remat::Mlp, Remat::Full] {
            let e = adapted.evaluate(StepConfig {
                freeze: freeze.clone(),
                remat,
                ..config.clone()
            });
            let what = format!("{what}, {remat:?}");
            assert_losses(&what, &e, &full, 1e-6);
            assert_near(&what, &e.pi0, &full.pi0, 1e-5);
        }
    }
}

#[test]
fn what_adapters_are_for_stays_as_it_is_and_they_learn() {
    let adapted = Adapted::new(Bench::open(), false, BOTH);
    let config = StepConfig {
        freeze: Freeze::under(BOTH),
        ..adapted.bench.config()
    };
    let e = adapted.evaluate(config);
    let in_llm = |name: &str| name.contains(".language_model.") || name.contains(".gemma_expert.");
    for tensor in tables::pi0(&adapted.dims).tensors() {
        let name = &tensor.name;
        let learns = !in_llm(name) || name.contains(".lora_");
        assert_eq!(e.pi0.contains_key(name), learns, "memory of {name}");
    }
    let gpu = &adapted.bench.gpu;
    let before = read(gpu, &e.learner.pi0.weights);
    for step in 0..3 {
        assert_eq!(e.update(step).get(Slot::Skipped), 0.0);
        e.metrics.clear(gpu);
        micro_batch(&e.learner, &e.metrics, &adapted.bench.batches(1)[0], true);
    }
    let after = read(gpu, &e.learner.pi0.weights);
    for (name, values) in &before {
        let same = bits(values) == bits(&after[name]);
        // The last language layer gives keys and values alone: its other adapters have no gradient, but decay.
        assert_eq!(same, !e.pi0.contains_key(name), "{name}");
    }
}

#[test]
fn merged_matrices_give_the_same_outputs() {
    for pi05 in [false, true] {
        let adapted = Adapted::new(Bench::open(), pi05, BOTH);
        for features in [Features::Embedding, Features::Llm] {
            let config = StepConfig {
                features,
                ..adapted.bench.config()
            };
            let with = adapted.evaluate(config.clone());
            let merged = Adapted::new(Bench::open(), pi05, BOTH).merged().evaluate(config);
            let what = format!("π₀.₅ {pi05}, {features:?}");
            assert_losses(&what, &merged, &with, 2e-5);
            // Also gradients: those of everything but the adapters, which the chain rule passes by.
            let others = with
                .pi0
                .into_iter()
                .filter(|(name, _)| !name.contains(".lora_"))
                .collect();
            assert_near(&what, &merged.pi0, &others, 1e-4);
        }
    }
}

/// A single step of everything: the loss along a gradient changes as much as the gradient says.
#[test]
fn gradients_of_adapters_are_slopes() {
    let adapted = Adapted::new(Bench::open(), true, BOTH);
    let config = StepConfig {
        freeze: Freeze::under(BOTH),
        ..adapted.bench.config()
    };
    let weights = config.weights;
    let total = |e: &Evaluation| {
        f64::from(e.loss(Slot::ActorLoss)) * f64::from(weights.actor)
            + f64::from(e.loss(Slot::BcLoss)) * f64::from(weights.bc)
    };
    let start = adapted.evaluate(config.clone());
    for half in [".lora_a", ".lora_b"] {
        let slope: f64 = start
            .pi0
            .iter()
            .filter(|(name, _)| name.ends_with(half))
            .flat_map(|(_, g)| g.iter().map(|&g| f64::from(g).powi(2)))
            .sum();
        let along = |step: f32| {
            let mut moved = Adapted::new(Bench::open(), true, BOTH);
            for (name, gradient) in start.pi0.iter().filter(|(name, _)| name.ends_with(half)) {
                let values = moved.weights.get_mut(name).unwrap();
                values.iter_mut().zip(gradient).for_each(|(w, g)| *w += step * g);
            }
            total(&moved.evaluate(config.clone()))
        };
        let h = (2e-3 / slope.sqrt()) as f32;
        let got = (along(h) - along(-h)) / (2.0 * f64::from(h));
        assert!((got - slope).abs() <= 2e-2 * slope, "{half}: {got}, not {slope}");
    }
}

#[test]
fn fixed_matrices_in_bf16_need_half_the_memory_and_give_the_same_step() {
    let gpu = Gpu::emulated_cuda(90).expect("a C++ compiler");
    let adapted = Adapted::new(Bench::open(), false, BOTH);
    let config = |freeze: Freeze| StepConfig {
        freeze,
        dtype: DType::Bf16,
        ..adapted.bench.config()
    };
    let full = adapted.evaluate_on(&gpu, config(Freeze::NOTHING));
    let e = adapted.evaluate_on(&gpu, config(Freeze::under(BOTH)));
    // The step computes with the same high halves: gradients of what learns have the same bits.
    assert_bits("bf16", &e.pi0, &full.pi0);
    // And it is the f32 step up to rounding.
    let exact = adapted.evaluate(adapted.bench.config());
    for (name, gradient) in e.pi0.iter().filter(|(name, _)| name.contains(".lora_")) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
        let want = &exact.pi0[name];
        let scale = (dot(gradient, gradient) * dot(want, want)).sqrt();
        assert!(scale == 0.0 || dot(gradient, want) / scale > 0.98, "{name}");
    }

    let weights = &e.learner.pi0.weights;
    let before = read(&gpu, weights);
    for range in weights.room(&gpu, Room::Language) {
        let adapters = range.low.is_some();
        assert!(adapters || range.high.dtype() == DType::Bf16);
    }
    e.update(0);
    let after = read(&gpu, weights);
    for (name, values) in &before {
        let same = bits(values) == bits(&after[name]);
        assert_eq!(same, !e.pi0.contains_key(name), "{name}");
    }
}
