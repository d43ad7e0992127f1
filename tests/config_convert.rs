//! What the rest of the program gets from a configuration, and the way to TOML and back.

use acrlpd::config::*;
use acrlpd::data::{Boundary, EpisodeEnd, NormKind, RewardMode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use safetensors::SafeTensors;

#[test]
fn the_schedule_is_the_reference_s() {
    let bytes = std::fs::read("tests/golden/ops.safetensors").unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let data = |name: &str| golden.tensor(name).unwrap().data().as_chunks::<4>().0;
    let steps: Vec<u64> = data("lr_schedule/in/step")
        .iter()
        .map(|b| i32::from_le_bytes(*b) as u64)
        .collect();
    let rates: Vec<f32> = data("lr_schedule/out/lr")
        .iter()
        .map(|b| f32::from_le_bytes(*b))
        .collect();
    let info: serde_json::Value = serde_json::from_slice(&std::fs::read("tests/golden/ops.json").unwrap()).unwrap();
    let info = &info["ops"]["lr_schedule"];
    let schedule = Schedule {
        peak: info["peak"].as_f64().unwrap(),
        end: info["end"].as_f64().unwrap(),
        warmup: info["warmup_steps"].as_u64().unwrap(),
        decay: info["decay_steps"].as_u64().unwrap(),
    };
    assert!(steps.len() == 12 && steps.iter().any(|s| *s > schedule.decay));
    for (step, rate) in steps.into_iter().zip(rates) {
        assert_eq!(schedule.lr(step) as f32, rate, "step {step}");
    }
}

#[test]
fn schedules_take_their_peak_from_the_algorithm() {
    let mut c = Config::load("debug").unwrap();
    c.optimizer.critic.lr_min_factor = 0.5;
    let (actor, critic) = (c.actor_schedule(), c.critic_schedule());
    assert_eq!((actor.peak, actor.warmup, actor.decay), (1e-3, 5, 100));
    assert!((actor.end - 1e-4).abs() < 1e-18);
    assert_eq!((critic.peak, critic.end), (3e-3, 1.5e-3));
}

#[test]
fn sizes_follow_the_variant_and_what_overrides_it() {
    let mut c = Config::load("debug").unwrap();
    let dims = c.pi0_dims();
    assert_eq!(
        (dims.language.width, dims.expert.width, dims.depth, dims.head_dim),
        (64, 32, 4, 16)
    );
    let critic = c.critic_dims();
    assert_eq!(
        (critic.critics, critic.feature_width, critic.real_action_dim),
        (2, 64, 14)
    );
    assert_eq!((critic.observation(), critic.actions()), (78, 140));
    for (key, value) in [
        ("model.dims.vision_width", "48"),
        ("model.dims.vision_heads", "3"),
        ("model.dims.language_mlp", "100"),
        ("model.dims.vocab", "512"),
        ("model.dims.cameras", "[\"base_0_rgb\"]"),
        ("data.cameras", "{ base_0_rgb = \"top\" }"),
        ("model.max_token_len", "9"),
    ] {
        c.set(key, value).unwrap();
    }
    c.validate().unwrap();
    let dims = c.pi0_dims();
    assert_eq!((dims.vision.width, dims.vision.mlp, dims.vision_heads), (48, 96, 3));
    assert_eq!((dims.language.mlp, dims.vocab, dims.prefix_len()), (100, 512, 16 + 9));
    assert_eq!(c.data_spec().cameras.len(), 1);
}

#[test]
fn defaults_that_depend_on_the_model() {
    let mut c = Config::default();
    assert_eq!((c.pi0_dims().max_token_len, c.data_spec().norm), (48, NormKind::ZScore));
    c.model.pi05 = true;
    assert_eq!(
        (c.pi0_dims().max_token_len, c.data_spec().norm),
        (200, NormKind::Quantile)
    );
    assert!(c.data_spec().state_in_prompt);
    (c.model.max_token_len, c.data.norm) = (Some(64), Some(NormKind::ZScore));
    assert_eq!((c.pi0_dims().max_token_len, c.data_spec().norm), (64, NormKind::ZScore));
    c.acrlpd.enable_gradient_accumulation = false;
    assert_eq!((c.accumulation(), c.micro_batch()), (1, 128));
    c.acrlpd.enable_batch_ratio_control = false;
    assert_eq!(c.positive_batch_ratio(), None);
}

#[test]
fn deltas_leave_the_grippers_absolute() {
    let mut c = Config::default();
    let absolute = |c: &Config| {
        let mask = c.data_spec().delta_mask.unwrap();
        (0..c.qchunking.action_dim)
            .filter(|i| !mask.get(*i).copied().unwrap_or(false))
            .collect::<Vec<_>>()
    };
    assert_eq!(absolute(&c), [6, 13]);
    c.qchunking.action_dim = 8;
    assert_eq!(absolute(&c), [7]);
    c.data.use_delta_joint_actions = false;
    assert_eq!(c.data_spec().delta_mask, None);
}

fn top() -> impl Strategy<Value = (String, usize, u64, u64, usize)> {
    (
        "[a-z][a-z0-9_.-]{0,12}",
        1..100usize,
        1..1_000_000u64,
        0..=i64::MAX as u64,
        1..9usize,
    )
}

fn model() -> impl Strategy<Value = Model> {
    let precisions = select(vec![Precision::Float32, Precision::Bfloat16, Precision::Float16]);
    (
        precisions,
        any::<bool>(),
        1..20usize,
        option::of(1..300usize),
        option::of("[a-zA-Z0-9 /_é\"'\\\\.]{1,20}"),
        option::of(1..9usize),
    )
        .prop_map(|(dtype, pi05, patches, max_token_len, weights, depth)| Model {
            dtype,
            pi05,
            image_size: 14 * patches,
            max_token_len,
            weights: weights.map(|w| format!("/{w}").into()),
            dims: DimsOverride {
                depth,
                ..DimsOverride::default()
            },
            ..Model::default()
        })
}

fn acrlpd() -> impl Strategy<Value = Acrlpd> {
    let aggregations = || select(vec![QAggregation::Min, QAggregation::Mean, QAggregation::Weighted]);
    let numbers = (1e-12..1.0f64, 0.0..=1.0f64, 0.0..1e3f64, 0.0..1.0f64, 1e-9..1e9f64);
    let parts = prop::sample::subsequence(vec![Part::Vision, Part::Language, Part::Expert], 0..=3);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        numbers,
        vec(1..600usize, 1..4),
        aggregations(),
        option::of(aggregations()),
        parts,
        flags,
    )
        .prop_map(
            |((discount, rate, weight, decay, norm), hidden, q_aggregation, actor_q_aggregation, freeze, flags)| {
                Acrlpd {
                    discount,
                    target_update_rate: rate,
                    bc_loss_weight: weight,
                    pi0_ema_decay: decay,
                    max_grad_norm: norm,
                    critic_hidden_dims: hidden,
                    q_aggregation,
                    actor_q_aggregation,
                    freeze,
                    use_ema: flags.0,
                    separate_prefixes: flags.1,
                    use_adaptive_temperature: flags.2,
                    gradient_accumulation_steps: 1,
                    ..Acrlpd::default()
                }
            },
        )
}

fn data() -> impl Strategy<Value = Data> {
    let texts = ("\\PC{1,30}", option::of("\\PC{0,30}"), "[a-z.]{1,10}");
    (
        texts,
        option::of(any::<bool>()),
        0.001..0.999f64,
        option::of(select(vec![NormKind::ZScore, NormKind::Quantile])),
    )
        .prop_map(
            |((prompt, repo_id, camera), default_success, eval_fraction, norm)| Data {
                default_prompt: Some(format!("do {prompt}")),
                repo_id,
                default_success,
                eval_fraction,
                norm,
                cameras: [("base_0_rgb".to_owned(), camera)].into(),
                ..Data::default()
            },
        )
}

fn qchunking() -> impl Strategy<Value = QChunking> {
    let modes = select(vec![RewardMode::Terminal, RewardMode::Dataset, RewardMode::Constant]);
    let ends = select(vec![EpisodeEnd::Terminal, EpisodeEnd::Truncated]);
    (
        1..=32usize,
        -1e30..1e30f64,
        modes,
        ends,
        select(vec![Boundary::Drop, Boundary::Pad]),
    )
        .prop_map(
            |(action_dim, terminal_reward, reward_mode, episode_end, boundary)| QChunking {
                action_dim,
                terminal_reward,
                reward_mode,
                episode_end,
                boundary,
                ..QChunking::default()
            },
        )
}

proptest! {
    #[test]
    fn toml_and_back_is_the_same(
        top in top(), model in model(), acrlpd in acrlpd(), qchunking in qchunking(), data in data(),
    ) {
        let mut config = Config::default();
        (config.name, config.batch_size, config.num_train_steps, config.seed, config.keep_checkpoints) = top;
        (config.model, config.acrlpd, config.qchunking, config.data) = (model, acrlpd, qchunking, data);
        let text = config.to_toml();
        let again = Config::parse(&text, "stored.toml").map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&again, &config, "{}", text);
        prop_assert_eq!(again.to_toml(), text);
    }

    /// Whatever is in a file, the answer is a configuration or an error.
    #[test]
    fn no_text_panics(text in "(\\[?[a-z.]{0,12}\\]?( = |\n)[0-9a-z\"\\[\\]{}.-]{0,8}\n){0,6}") {
        let _ = Config::parse(&text, "x.toml");
    }
}

#[test]
fn presets_come_back_from_toml_and_into_a_copy_of_themselves() {
    for (name, _) in presets::PRESETS {
        let config = Config::load(name).unwrap();
        let text = config.to_toml();
        assert_eq!(Config::parse(&text, "anywhere/config.toml").unwrap(), config, "{name}");
    }
}
