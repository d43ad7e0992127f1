//! The presets that ship with the program: complete, valid, and equal to the published table.

use acrlpd::config::presets::PRESETS;
use acrlpd::config::{
    ActorObjective, Config, CriticLoss, ExpertVariant, Features, PaligemmaVariant, Precision, QAggregation, Remat,
};
use acrlpd::data::{self, Boundary, EpisodeEnd, NormKind, PromptSource, PromptTokenizer, RewardMode};
use acrlpd::model::tables;

fn preset(name: &str) -> Config {
    Config::load(name).unwrap()
}

/// The rows that every preset is specified by.
struct Row {
    name: &'static str,
    /// Batch, steps, steps between log rows, steps between checkpoints.
    run: (usize, u64, u64, u64),
    /// Horizon, real action dim, π₀.₅, prompt tokens.
    model: (usize, usize, bool, usize),
    /// Members, hidden layers, learning rate.
    critics: (usize, &'static [usize], f64),
    /// Learning rate, candidates, BC weight, clip.
    actor: (f64, usize, f64, f64),
    temperature: bool,
    repo: &'static str,
    prompt: PromptSource,
    cameras: [Option<&'static str>; 3],
}

const ALOHA: [Option<&str>; 3] = [
    Some("observation.images.cam_high"),
    Some("observation.images.cam_left_wrist"),
    Some("observation.images.cam_right_wrist"),
];

fn published() -> [Row; 4] {
    [
        Row {
            name: "rl_fold_box",
            run: (32, 20_000, 2, 1000),
            model: (20, 14, false, 48),
            critics: (6, &[512, 512, 512], 3e-5),
            actor: (1e-5, 4, 200.0, 0.1),
            temperature: false,
            repo: "fold_box_unified",
            prompt: PromptSource::Text("fold the box".into()),
            cameras: ALOHA,
        },
        Row {
            name: "rl_aloha_fold",
            run: (256, 50_000, 100, 5000),
            model: (50, 14, false, 48),
            critics: (2, &[256, 256, 256], 3e-4),
            actor: (1e-4, 32, 0.1, 1.0),
            temperature: true,
            repo: "aloha_fold",
            prompt: PromptSource::Text("fold the clothes on the table".into()),
            cameras: ALOHA,
        },
        Row {
            name: "rl_libero",
            run: (256, 100_000, 100, 5000),
            model: (5, 7, false, 48),
            critics: (2, &[256, 256, 256], 1e-3),
            actor: (1e-4, 64, 0.1, 1.0),
            temperature: true,
            repo: "physical-intelligence/libero",
            prompt: PromptSource::Task,
            cameras: [Some("image"), Some("wrist_image"), None],
        },
        Row {
            name: "rl_droid",
            run: (32, 200_000, 100, 5000),
            model: (10, 8, true, 200),
            critics: (2, &[256, 256, 256], 3e-4),
            actor: (1e-4, 16, 0.01, 1.0),
            temperature: true,
            repo: "droid",
            prompt: PromptSource::Task,
            cameras: [Some("exterior_image_1_left"), Some("wrist_image_left"), None],
        },
    ]
}

#[test]
fn presets_have_the_published_values() {
    for row in published() {
        let (c, name) = (preset(row.name), row.name);
        assert_eq!(c.name, name);
        assert_eq!(
            (c.batch_size, c.num_train_steps, c.log_interval, c.save_interval),
            row.run,
            "{name}"
        );
        let (dims, a) = (c.pi0_dims(), &c.acrlpd);
        assert_eq!(
            (
                dims.action_horizon,
                c.qchunking.action_dim,
                dims.pi05,
                dims.max_token_len
            ),
            row.model,
            "{name}"
        );
        assert_eq!(
            (a.num_critics, a.critic_hidden_dims.as_slice(), a.critic_lr),
            row.critics,
            "{name}"
        );
        assert_eq!(
            (a.actor_lr, a.num_action_samples, a.bc_loss_weight, a.max_grad_norm),
            row.actor,
            "{name}"
        );
        assert_eq!(a.use_adaptive_temperature, row.temperature, "{name}");
        assert_eq!(c.data.repo_id.as_deref(), Some(row.repo));
        let spec = c.data_spec();
        assert_eq!(spec.prompt, row.prompt, "{name}");
        let cameras: Vec<_> = spec.cameras.iter().map(|camera| camera.dataset.as_deref()).collect();
        assert_eq!(cameras, row.cameras, "{name}");
        // The same in all of them.
        assert_eq!(a.chunk_length, Some(dims.action_horizon), "{name}");
        assert_eq!(
            (c.accumulation(), c.micro_batch() * 4, a.actor_update_freq),
            (4, c.batch_size, 1),
            "{name}"
        );
        assert_eq!(
            (c.model.dtype, dims.action_dim, dims.image_size),
            (Precision::Bfloat16, 32, 224),
            "{name}"
        );
        assert_eq!(
            tables::pi0(&dims),
            tables::pi0(&acrlpd::model::dims::Pi0Dims::full(50, dims.pi05)),
            "{name}"
        );
        assert!(
            c.data.transforms.is_empty() && c.data.path.is_none() && c.model.weights.is_none(),
            "{name}"
        );
        assert_eq!(
            spec.norm,
            if dims.pi05 {
                NormKind::Quantile
            } else {
                NormKind::ZScore
            },
            "{name}"
        );
    }
}

#[test]
fn the_debug_preset_has_every_mechanism_on_and_fits_the_shipped_assets() {
    let c = preset("debug");
    let (a, dims) = (&c.acrlpd, c.pi0_dims());
    assert_eq!((c.batch_size, c.accumulation(), c.micro_batch()), (8, 2, 4));
    assert_eq!((dims.action_horizon, a.num_action_samples, a.num_critics), (10, 4, 2));
    assert_eq!((dims.image_size, dims.vocab, c.qchunking.action_dim), (56, 600, 14));
    assert!(a.use_ema && a.use_adaptive_temperature && a.enable_batch_ratio_control && a.enable_gradient_accumulation);
    assert!(c.data.use_delta_joint_actions && c.data.augment && c.critic.dropout_rate > 0.0);
    assert_eq!(
        (a.critic_loss, a.actor_objective),
        (CriticLoss::Huber, ActorObjective::BestOfN)
    );

    let dataset = data::open_all(&c.datasets().unwrap()).unwrap();
    let spec = c.data_spec();
    spec.check(&*dataset).unwrap();
    let tokenizer = PromptTokenizer::from_file(c.tokenizer_path().unwrap()).unwrap();
    for frame in 0..dataset.info().total_frames {
        let prompt = tokenizer
            .prompt(spec.prompt.text(&*dataset, frame).unwrap(), None, spec.token_len)
            .unwrap();
        assert!(prompt.untruncated <= spec.token_len, "{} tokens", prompt.untruncated);
        assert!(prompt.tokens.iter().all(|t| (0..dims.vocab as i32).contains(t)));
    }
}

#[test]
fn defaults_are_the_original_s() {
    let c = Config::default();
    assert_eq!((c.batch_size, c.num_train_steps, c.log_interval), (128, 100_000, 100));
    assert_eq!(
        (c.save_interval, c.eval_interval, c.seed, c.keep_checkpoints),
        (5000, 10_000, 42, 5)
    );
    let a = &c.acrlpd;
    assert_eq!(
        (a.discount, a.target_update_rate, a.critic_lr, a.actor_lr),
        (0.99, 0.005, 3e-4, 1e-4)
    );
    assert_eq!(
        (a.critic_hidden_dims.as_slice(), a.num_critics, a.actor_update_freq),
        (&[256, 256, 256][..], 2, 2)
    );
    assert_eq!(
        (a.num_action_samples, a.action_sampling_temperature, a.bc_loss_weight),
        (32, 1.0, 0.1)
    );
    assert_eq!(
        (a.q_aggregation, a.use_ema, a.pi0_ema_decay, a.diffusion_steps),
        (QAggregation::Min, true, 0.999, 10)
    );
    assert_eq!(
        (a.actor_objective, a.use_adaptive_temperature),
        (ActorObjective::BestOfN, true)
    );
    assert_eq!((a.target_entropy_multiplier, a.gradient_accumulation_steps), (0.5, 4));
    assert_eq!(
        (a.max_grad_norm, a.positive_batch_ratio, a.enable_batch_ratio_control),
        (1.0, 0.5, true)
    );
    assert_eq!(
        (a.actor_loss_weight, a.critic_loss_weight, a.huber_delta),
        (1.0, 1.0, 1.0)
    );
    assert_eq!(
        (a.critic_loss, a.features, c.remat()),
        (CriticLoss::Huber, Features::Embedding, Remat::None)
    );
    assert!(!a.feature_grad && !a.separate_prefixes && a.freeze.is_empty());
    let q = &c.qchunking;
    assert_eq!((q.action_dim, q.reward_scale, q.terminal_reward), (14, 1.0, 1.0));
    assert_eq!(
        (q.reward_mode, q.boundary, q.episode_end),
        (RewardMode::Terminal, Boundary::Drop, EpisodeEnd::Terminal)
    );
    let m = &c.model;
    assert_eq!(
        (m.paligemma_variant, m.action_expert_variant),
        (PaligemmaVariant::Gemma2b, ExpertVariant::Gemma300m)
    );
    assert_eq!(
        (m.action_dim, m.action_horizon, m.dtype, m.pi05),
        (32, 50, Precision::Bfloat16, false)
    );
    assert_eq!(c.pi0_dims(), acrlpd::model::dims::Pi0Dims::full(50, false));
    assert_eq!(c.critic.dropout_rate, 0.1);
    for (group, decay) in [(&c.optimizer.actor, 1e-6), (&c.optimizer.critic, 1e-5)] {
        assert_eq!(
            (group.b1, group.b2, group.eps, group.weight_decay),
            (0.9, 0.95, 1e-8, decay)
        );
        assert_eq!(
            (group.warmup_steps, group.decay_steps, group.lr_min_factor),
            (2000, 200_000, 0.1)
        );
    }
}

/// The files are the documentation of the keys: each key once, with a comment above or behind it.
#[test]
fn every_preset_shows_and_explains_every_key() {
    for (name, text) in PRESETS {
        let mut table = String::new();
        let mut shown = Vec::new();
        let mut before = "";
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix('[') {
                table = format!("{}.", heading.trim_end_matches(']'));
            }
            let code = line.strip_prefix('#').unwrap_or(line);
            if let Some((key, rest)) = code.split_once(" = ")
                && !key.contains(' ')
            {
                let explained = before.starts_with("# ") || rest.contains(" # ") || table == "data.cameras.";
                assert!(explained, "{name}: {line}");
                shown.push(format!("{table}{key}"));
            }
            // Settings that are commented out have no space after the mark.
            before = line;
        }
        for key in Config::keys() {
            let count = shown.iter().filter(|s| **s == key).count();
            assert!(count == 1 || key == "data.cameras", "{name} shows {key} {count} times");
        }
    }
}

/// What the comments say is the default is the default: uncommented examples aside, every `Default X.` that is a TOML
/// value parses to the default of that key.
#[test]
fn the_comments_tell_the_true_defaults() {
    let (_, text) = PRESETS[0];
    let defaults = Config::default().to_toml();
    let defaults: toml::Table = defaults.parse().unwrap();
    let mut checked = 0;
    let (mut table, mut comment) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix('[') {
            table = heading.trim_end_matches(']').to_owned();
        } else if let Some(more) = line.strip_prefix("# ") {
            comment = format!("{comment} {more}");
            continue;
        } else if let Some((key, _)) = line.split_once(" = ")
            && let Some((_, said)) = comment.rsplit_once("Default ")
            && let Ok(said) = said.trim_end_matches('.').parse::<toml::Value>()
        {
            let path = table.split('.').filter(|t| !t.is_empty());
            let section = path.fold(&defaults, |t, part| t[part].as_table().unwrap());
            let number = |v: &toml::Value| v.as_float().or(v.as_integer().map(|i| i as f64));
            let real = &section[key];
            assert!(
                number(real) == number(&said) && (number(real).is_some() || *real == said),
                "{table}.{key}: {said}"
            );
            checked += 1;
        }
        comment.clear();
    }
    assert!(checked > 55, "{checked}");
}
