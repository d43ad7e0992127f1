//! Inheritance, other spellings, relative paths, and values set by flags.

use std::fs;
use std::path::{Path, PathBuf};

use acrlpd::config::{ActorObjective, Config, Features, MemoryPreset, Moments, Part, QAggregation, Remat};
use acrlpd::data::{Boundary, CameraSpec, RewardMode};
use tempfile::TempDir;

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

fn load(path: PathBuf) -> Result<Config, acrlpd::config::ConfigError> {
    Config::load(path.to_str().unwrap())
}

fn parse(text: &str) -> Config {
    Config::parse(text, "x.toml").unwrap()
}

#[test]
fn a_file_overlays_its_base_key_by_key() {
    let dir = folder(&[
        (
            "mine.toml",
            "base = \"rl_fold_box\"\nbatch_size = 8\n[acrlpd]\nnum_critics = 3\n",
        ),
        (
            "ours.toml",
            "base = \"mine.toml\"\nname = \"another\"\n[acrlpd]\nnum_critics = 4\n[optimizer.critic]\nb1 = 0.8\n",
        ),
        ("sub/deep.toml", "base = \"../ours.toml\"\n"),
    ]);
    let base = Config::load("rl_fold_box").unwrap();
    let mine = load(dir.path().join("mine.toml")).unwrap();
    assert_eq!(
        (mine.name.as_str(), mine.batch_size, mine.acrlpd.num_critics),
        ("mine", 8, 3)
    );
    let expected = {
        let mut c = base.clone();
        (c.name, c.batch_size, c.acrlpd.num_critics) = ("mine".into(), 8, 3);
        c
    };
    assert_eq!(mine, expected);
    let ours = load(dir.path().join("ours.toml")).unwrap();
    assert_eq!(
        (ours.name.as_str(), ours.batch_size, ours.acrlpd.num_critics),
        ("another", 8, 4)
    );
    // One key of a table leaves the others to the layers below: the critics keep their weight decay.
    assert_eq!(
        (ours.optimizer.critic.b1, ours.optimizer.critic.weight_decay),
        (0.8, 1e-5)
    );
    assert_eq!(load(dir.path().join("sub/deep.toml")).unwrap().name, "deep");
}

#[test]
fn a_mistake_in_a_base_is_reported_where_it_is() {
    let dir = folder(&[
        (
            "low.toml",
            "[data]\nprompt_from_task = true\n\n[acrlpd]\ndiscount = 7\n",
        ),
        ("high.toml", "base = \"low.toml\"\nseed = 1\n"),
        ("a.toml", "\nbase = \"b.toml\"\n"),
        ("b.toml", "base = \"a.toml\"\n"),
        ("lost.toml", "base = \"gone.toml\"\n"),
        ("wrong.toml", "base = 3\n"),
        ("cured.toml", "base = \"low.toml\"\n[acrlpd]\ndiscount = 0.7\n"),
    ]);
    let message = |name: &str| load(dir.path().join(name)).unwrap_err().to_string();
    assert!(
        message("high.toml").contains("low.toml` line 5: `acrlpd.discount`"),
        "{}",
        message("high.toml")
    );
    assert!(
        message("a.toml").contains("b.toml` line 1: `base` leads back to"),
        "{}",
        message("a.toml")
    );
    assert!(message("lost.toml").contains("gone.toml") && message("lost.toml").contains("lost.toml` line 1 names"));
    assert!(
        message("wrong.toml").contains("line 1: `base`"),
        "{}",
        message("wrong.toml")
    );
    assert_eq!(load(dir.path().join("cured.toml")).unwrap().acrlpd.discount, 0.7);
}

#[test]
fn cameras_are_replaced_as_a_whole() {
    let text = "base = \"rl_fold_box\"\n[data.cameras]\nbase_0_rgb = \"top\"\n";
    let config = parse(text);
    let cameras = config.data_spec().cameras;
    let one = |model: &str, dataset: Option<&str>| CameraSpec {
        model: model.into(),
        dataset: dataset.map(String::from),
    };
    assert_eq!(
        cameras,
        [
            one("base_0_rgb", Some("top")),
            one("left_wrist_0_rgb", None),
            one("right_wrist_0_rgb", None)
        ]
    );
    // A flag sets one of them.
    let mut config = Config::load("rl_fold_box").unwrap();
    config.set("data.cameras.base_0_rgb", "top").unwrap();
    assert_eq!(config.data.cameras.len(), 3);
    assert_eq!(config.data.cameras["base_0_rgb"], "top");
}

#[test]
fn the_original_s_other_names_mean_the_same() {
    let flat = "
        max_steps = 7
        max_checkpoints_to_keep = 3
        pi0_lr = 2e-5
        critic_lr = 3e-3
        action_horizon = 20
        action_dim = 12
        num_critics = 5
        critic_hidden_dims = [64]
        best_of_n = 6
        bc_weight = 0.3
        [data]
        prompt_from_task = true
    ";
    let c = parse(flat);
    assert_eq!(
        (c.num_train_steps, c.keep_checkpoints, c.model.action_horizon),
        (7, 3, 20)
    );
    assert_eq!(
        (c.acrlpd.actor_lr, c.acrlpd.critic_lr, c.qchunking.action_dim),
        (2e-5, 3e-3, 12)
    );
    assert_eq!(
        (c.acrlpd.num_critics, c.acrlpd.critic_hidden_dims.as_slice()),
        (5, &[64][..])
    );
    assert_eq!((c.acrlpd.num_action_samples, c.acrlpd.bc_loss_weight), (6, 0.3));

    let grouped = "
        [data]
        prompt_from_task = true
        [acrlpd]
        target_update_tau = 0.5
        use_best_of_n = false
        [qchunking]
        horizon_length = 50
        discount = 0.9
        use_sparse_rewards = false
    ";
    let c = parse(grouped);
    assert_eq!(
        (c.acrlpd.target_update_rate, c.acrlpd.discount, c.acrlpd.chunk_length),
        (0.5, 0.9, Some(50))
    );
    assert_eq!(
        (c.acrlpd.actor_objective, c.qchunking.reward_mode),
        (ActorObjective::MeanN, RewardMode::Dataset)
    );

    let short = "[data]\nprompt_from_task = true\n[acrlpd]\npi0_lr = 2e-5\nbest_of_n = 6\nbc_weight = 0.3\nbatch_size = 12\n\
                 eval_frequency = 9\n[critic]\nq_aggregation = \"mean\"\nhidden_dims = [8]\nfeatures = \"llm\"\n";
    let c = parse(short);
    let a = &c.acrlpd;
    assert_eq!((a.actor_lr, a.num_action_samples, a.bc_loss_weight), (2e-5, 6, 0.3));
    assert_eq!((c.batch_size, c.eval_interval), (12, 9));
    assert_eq!((a.q_aggregation, a.features), (QAggregation::Mean, Features::Llm));
    assert_eq!(a.critic_hidden_dims, [8]);

    let flat = "pi0_checkpoint_path = \"/w\"\ndiscount = 0.9\ntarget_update_tau = 0.5\nnum_workers = 3\n\
                checkpoint_base_dir = \"out\"\n[data]\nbase_config.prompt_from_task = true\n\
                [actor_optimizer]\nb1 = 0.5\n[qchunking]\npad_episodes = false\n";
    let c = parse(flat);
    assert_eq!(
        (c.model.weights.as_deref(), c.data.loader_threads),
        (Some(Path::new("/w")), 3)
    );
    assert_eq!((c.acrlpd.discount, c.acrlpd.target_update_rate), (0.9, 0.5));
    assert_eq!(
        (c.checkpoint_dir.as_path(), c.data.prompt_from_task),
        (Path::new("out"), true)
    );
    assert_eq!((c.optimizer.actor.b1, c.qchunking.boundary), (0.5, Boundary::Drop));
    assert_eq!(c.notes().len(), 8, "{:?}", c.notes());

    // The same thing twice, in agreement.
    let twice = "[data]\nprompt_from_task = true\n[acrlpd]\ndiscount = 0.9\n[qchunking]\ndiscount = 0.9\n";
    assert_eq!(parse(twice).acrlpd.discount, 0.9);
}

#[test]
fn flags_take_values_and_bare_words() {
    let mut c = Config::load("debug").unwrap();
    for (key, value) in [
        ("batch_size", "12"),
        ("pi0_lr", "1e-5"),
        ("acrlpd.bc_loss_weight", "3"),
        ("acrlpd.q_aggregation", "mean"),
        ("acrlpd.freeze", "[\"vision\"]"),
        ("data.default_prompt", "open the box"),
        ("data.repo_id", "42"),
        ("data.prompt_from_task", "false"),
        ("model.dims.depth", "6"),
        ("data.norm", "quantile"),
    ] {
        c.set(key, value).unwrap_or_else(|e| panic!("{e}"));
    }
    c.validate().unwrap();
    assert_eq!(
        (c.batch_size, c.acrlpd.actor_lr, c.acrlpd.bc_loss_weight),
        (12, 1e-5, 3.0)
    );
    assert_eq!(
        (c.acrlpd.q_aggregation, c.actor_q_aggregation()),
        (QAggregation::Mean, QAggregation::Mean)
    );
    assert_eq!(
        (c.acrlpd.freeze.as_slice(), c.pi0_dims().depth),
        (&[Part::Vision][..], 6)
    );
    assert_eq!(c.data.default_prompt.as_deref(), Some("open the box"));
    assert_eq!(
        c.data.repo_id.as_deref(),
        Some("42"),
        "a number is a text where a text is wanted"
    );
}

#[test]
fn bad_flags_change_nothing_and_say_what_they_were() {
    let mut c = Config::load("debug").unwrap();
    let before = c.clone();
    for (key, value, words) in [
        (
            "batch_size",
            "many",
            "setting `batch_size=many`: `batch_size` cannot be used",
        ),
        ("batch_size", "-1", "of at least 0"),
        ("batch_sise", "8", "did you mean `batch_size`?"),
        ("acrlpd", "8", "it is a table"),
        ("acrlpd.utd_ratio", "2", "one critic update per step"),
        ("use_ema", "maybe", "acrlpd.use_ema"),
        ("acrlpd.use_ema", "maybe", "expected true or false"),
        ("acrlpd.discount", "1\nseed = 3", "expected a number"),
    ] {
        let message = c.set(key, value).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
        assert_eq!(c, before);
    }
    c.set("acrlpd.discount", "2").unwrap();
    let message = c.validate().unwrap_err().to_string();
    assert!(
        message.contains("setting `acrlpd.discount=2`: `acrlpd.discount` cannot be used: 2 is not in"),
        "{message}"
    );
    // Overrides are judged together, and may cure a file.
    let overrides = [("batch_size", "9"), ("acrlpd.gradient_accumulation_steps", "3")];
    let overrides = overrides.map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(Config::load_with("debug", &overrides).unwrap().micro_batch(), 3);
    assert!(Config::load_with("debug", &overrides[..1]).is_err());
}

#[test]
fn relative_paths_start_beside_the_file() {
    let text =
        "[data]\nprompt_from_task = true\npath = \"sets/a\"\ntokenizer = \"/abs/t.model\"\n[model]\nweights = \"w\"\n";
    let child = "base = \"../plain/x.toml\"\n[data]\nnorm_stats = \"n.json\"\n[model]\nweights = \"\"\n";
    let dir = folder(&[
        ("configs/x.toml", text),
        ("plain/x.toml", text),
        ("other/y.toml", child),
    ]);
    let root = dir.path();
    let c = load(root.join("configs/x.toml")).unwrap();
    assert_eq!(c.data.path, Some(root.join("sets/a")), "beside the folder `configs`");
    assert_eq!(c.data.tokenizer.as_deref(), Some(Path::new("/abs/t.model")));
    assert_eq!(
        c.checkpoint_dir,
        Path::new("checkpoints"),
        "outputs start in the current folder"
    );
    let c = load(root.join("plain/x.toml")).unwrap();
    assert_eq!(
        (c.data.path, c.model.weights),
        (Some(root.join("plain/sets/a")), Some(root.join("plain/w")))
    );
    let c = load(root.join("other/y.toml")).unwrap();
    assert_eq!(
        c.data.path.unwrap(),
        root.join("other/../plain/sets/a"),
        "a base's paths are the base's"
    );
    assert_eq!(c.data.norm_stats, Some(root.join("other/n.json")));
    assert_eq!(c.model.weights, None, "an empty path unsets it");
    let mut c = Config::load("debug").unwrap();
    c.set("data.path", "here").unwrap();
    assert_eq!(c.data.path, Some(std::env::current_dir().unwrap().join("here")));
}

/// A key of `[memory]` holds whatever the preset is, from whichever layer it comes; an old spelling is noted.
#[test]
fn the_memory_preset_fills_what_is_not_given() {
    let prompt = "data.prompt_from_task = true\n";
    let exact = parse(prompt);
    assert_eq!((exact.remat(), exact.moments()), (Remat::None, Moments::Float32));
    let tight = parse(&format!("{prompt}memory.preset = \"tight\"\n"));
    assert_eq!((tight.memory.preset, tight.remat()), (MemoryPreset::Tight, Remat::Mlp));
    assert_eq!(tight.moments(), Moments::Blockwise8);
    let dir = folder(&[
        ("tight.toml", "base = \"debug\"\nmemory.preset = \"tight\"\n"),
        ("old.toml", "base = \"tight.toml\"\n[acrlpd]\nremat = \"full\"\n"),
        ("unset.json", "{\"base\": \"old.toml\", \"memory\": {\"remat\": null}}"),
    ]);
    assert_eq!(load(dir.path().join("tight.toml")).unwrap().remat(), Remat::Mlp);
    let old = load(dir.path().join("old.toml")).unwrap();
    assert_eq!((old.memory.remat, old.remat()), (Some(Remat::Full), Remat::Full));
    let notes: Vec<String> = old.notes().iter().map(ToString::to_string).collect();
    assert!(
        notes
            .iter()
            .any(|n| n.contains("`acrlpd.remat`") && n.contains("memory.remat")),
        "{notes:?}"
    );
    assert_eq!(load(dir.path().join("unset.json")).unwrap().remat(), Remat::Mlp);
    let again = Config::parse(&old.to_toml(), "again.toml").unwrap();
    assert_eq!((again.remat(), again.memory), (Remat::Full, old.memory));
}

#[test]
fn run_folders() {
    let c = Config::load("debug").unwrap();
    assert_eq!(c.run_dir("first"), Path::new("checkpoints/debug/first"));
}
