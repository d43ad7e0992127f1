//! What a broken configuration is answered: every message names the file, the line, the key and the way out.

use acrlpd::config::presets::PRESETS;
use acrlpd::config::{Config, FOREIGN};
use acrlpd::data::Place;

/// (text of the debug preset, what it becomes, a text in the line that the message must name, the message's words).
/// An empty line to name means the one that was changed.
const BROKEN: &[(&str, &str, &str, &[&str])] = &[
    // Not TOML, or not our keys.
    ("batch_size = 8", "batch_size = = 8", "", &["is not TOML"]),
    ("seed = 42", "seed = 42\nseed = 43", "seed = 43", &["duplicate key"]),
    (
        "batch_size = 8",
        "batch_sise = 8",
        "",
        &["unknown key `batch_sise`", "did you mean `batch_size`?"],
    ),
    (
        "discount = 0.99",
        "discout = 0.99",
        "",
        &["unknown key `acrlpd.discout`", "`acrlpd.discount`"],
    ),
    (
        "[critic]",
        "[critics]",
        "",
        &["unknown key `critics`", "did you mean `critic`?"],
    ),
    (
        "[critic]",
        "frobnicate = 1\n[critic]",
        "frobnicate",
        &["unknown key `qchunking.frobnicate`", "lists every key"],
    ),
    (
        "name = \"debug\"",
        "bogus.x = 1\nname = \"debug\"",
        "bogus.x",
        &["unknown key `bogus`"],
    ),
    (
        "actor_lr = 1e-3",
        "actor_lr = 1e-3\npi0_lr = 1e-4",
        "pi0_lr",
        &["`acrlpd.pi0_lr` sets `acrlpd.actor_lr`", "keep one"],
    ),
    (
        "base_0_rgb =",
        "base_rgb =",
        "[data.cameras]",
        &["no camera `base_rgb`", "did you mean `base_0_rgb`?"],
    ),
    // Known names without a meaning here.
    (
        "[critic]",
        "[critic]\nactivation = \"gelu\"",
        "activation",
        &["critic.activation is not supported", "ReLU"],
    ),
    (
        "discount = 0.99",
        "discount = 0.99\nutd_ratio = 2",
        "utd_ratio",
        &["acrlpd.utd_ratio is not supported: one critic update per step"],
    ),
    (
        "seed = 42",
        "seed = 42\nfsdp_devices = 8",
        "fsdp_devices",
        &["not supported", "one device"],
    ),
    (
        "discount = 0.99",
        "discount = 0.99\nlr_min_factor = 0.2",
        "lr_min_factor",
        &["optimizer.actor.lr_min_factor"],
    ),
    (
        "seed = 42",
        "seed = 42\noverwrite = true",
        "overwrite",
        &["--overwrite"],
    ),
    // Values of another type.
    (
        "batch_size = 8",
        "batch_size = \"eight\"",
        "",
        &["`batch_size`", "expected a whole number of at least 0"],
    ),
    (
        "batch_size = 8",
        "batch_size = -8",
        "",
        &["`batch_size`", "`-8`", "of at least 0"],
    ),
    (
        "batch_size = 8",
        "batch_size = 8.5",
        "",
        &["`batch_size`", "expected a whole number"],
    ),
    (
        "batch_size = 8",
        "batch_size = 99999999999999999999",
        "",
        &["`batch_size`"],
    ),
    (
        "discount = 0.99",
        "discount = \"high\"",
        "",
        &["`acrlpd.discount`", "expected a number"],
    ),
    (
        "augment = true",
        "augment = 1",
        "",
        &["`data.augment`", "expected true or false"],
    ),
    (
        "critic_hidden_dims = [48, 48, 48]",
        "critic_hidden_dims = 48",
        "",
        &["expected a list"],
    ),
    (
        "[critic]\n",
        "critic = 3\n[optimizer]\n",
        "critic = 3",
        &["`qchunking.critic`"],
    ),
    (
        "dtype = \"float32\"",
        "dtype = \"fp8\"",
        "",
        &["unknown variant `fp8`", "`float32`, `bfloat16`, `float16`"],
    ),
    (
        "q_aggregation = \"min\"",
        "q_aggregation = \"max\"",
        "",
        &["`min`, `mean`, `weighted`"],
    ),
    (
        "freeze = []",
        "freeze = [\"\"]",
        "",
        &["unknown variant ``", "`vision`, `language`, `expert`"],
    ),
    ("boundary = \"drop\"", "boundary = \"wrap\"", "", &["`drop`", "`pad`"]),
    (
        "actor_objective = \"best_of_n\"",
        "use_best_of_n = \"yes\"",
        "",
        &["it must be true or false"],
    ),
    // Out of range.
    ("name = \"debug\"", "name = \"../debug\"", "", &["names a folder"]),
    ("batch_size = 8", "batch_size = 0", "", &["at least 1"]),
    ("log_interval = 1", "log_interval = 0", "", &["at least 1"]),
    ("action_horizon = 10", "action_horizon = 0", "", &["at least 1"]),
    ("max_token_len = 32", "max_token_len = 0", "", &["at least 1"]),
    ("actor_update_freq = 1", "actor_update_freq = 0", "", &["at least 1"]),
    ("loader_threads = 2", "loader_threads = 0", "", &["at least 1"]),
    ("queue_depth = 2", "queue_depth = 0", "", &["at least 1"]),
    ("huber_delta = 1.0", "huber_delta = 0", "", &["not a number above 0"]),
    ("bc_loss_weight = 1.0", "bc_loss_weight = -1", "", &["of at least 0"]),
    ("reward_scale = 1.0", "reward_scale = inf", "", &["not a finite number"]),
    (
        "state_key = \"observation.state\"",
        "state_key = \"\"",
        "",
        &["name a feature"],
    ),
    (
        "#weights = \"/path/to/pi0_base\"",
        "weights = \"gs://bucket/pi0_base\"",
        "",
        &["`model.weights`", "download"],
    ),
    (
        "#q_aggregation_weights = [1, 1]",
        "q_aggregation_weights = [1, 1, 1]",
        "",
        &["3 weights", "2 members"],
    ),
    (
        "#q_aggregation_weights = [1, 1]",
        "q_aggregation_weights = [1, -1]",
        "",
        &["-1 is not a number of at least 0"],
    ),
    (
        "#q_aggregation_weights = [1, 1]",
        "q_aggregation_weights = [0, 0]",
        "",
        &["above 0"],
    ),
    (
        "project_name = \"acrlpd\"\n# Write an offline run for `wandb sync` beside metrics.jsonl. Default true.\nwandb_enabled = true",
        "project_name = \"\"\nwandb_enabled = false",
        "",
        &[],
    ),
    (
        "project_name = \"acrlpd\"",
        "project_name = \"\"",
        "",
        &["name the project"],
    ),
    ("num_train_steps = 30", "num_train_steps = 0", "", &["at least 1"]),
    ("save_interval = 10", "save_interval = 0", "", &["num_train_steps"]),
    ("keep_checkpoints = 2", "keep_checkpoints = 0", "", &["at least 1"]),
    ("discount = 0.99", "discount = 1.5", "", &["1.5 is not in (0, 1]"]),
    ("discount = 0.99", "discount = 0", "", &["0 is not in (0, 1]"]),
    ("discount = 0.99", "discount = nan", "", &["NaN is not in (0, 1]"]),
    (
        "target_update_rate = 0.05",
        "target_update_rate = -0.05",
        "",
        &["-0.05 is not in [0, 1]"],
    ),
    ("num_critics = 2", "num_critics = 0", "", &["at least 1"]),
    (
        "critic_hidden_dims = [48, 48, 48]",
        "critic_hidden_dims = [48, 0]",
        "",
        &["each at least 1 wide"],
    ),
    (
        "num_action_samples = 4",
        "num_action_samples = 0",
        "",
        &["at least 1", "no candidates"],
    ),
    ("diffusion_steps = 10", "diffusion_steps = 0", "", &["at least 1"]),
    ("dropout_rate = 0.1", "dropout_rate = 1.0", "", &["1 is not in [0, 1)"]),
    (
        "pi0_ema_decay = 0.9",
        "pi0_ema_decay = 1.0",
        "",
        &["not in [0, 1)", "use_ema = false"],
    ),
    (
        "positive_batch_ratio = 0.5",
        "positive_batch_ratio = 1.5",
        "",
        &["1.5 is not in [0, 1]"],
    ),
    (
        "max_grad_norm = 1.0",
        "max_grad_norm = 0.0",
        "",
        &["0 is not a number above 0"],
    ),
    (
        "actor_lr = 1e-3",
        "actor_lr = inf",
        "",
        &["inf is not a number of at least 0"],
    ),
    (
        "image_size = 56",
        "image_size = 50",
        "",
        &["50 pixels", "patches of 14"],
    ),
    ("#heads = 8", "heads = 0 #", "", &["`model.dims.heads`", "at least 1"]),
    (
        "#head_dim = 256",
        "head_dim = 15 #",
        "",
        &["`model.dims`", "head_dim must be even"],
    ),
    (
        "#vision_heads = 16",
        "vision_heads = 5 #",
        "",
        &["vision.width must be a multiple of vision_heads"],
    ),
    (
        "#cameras = [",
        "cameras = [\"base_0_rgb\", \"base_0_rgb\"] #",
        "",
        &["names a camera twice"],
    ),
    (
        "eval_fraction = 0.2",
        "eval_fraction = 1.0",
        "",
        &["1 is not in [0, 1)"],
    ),
    // Contradictions.
    (
        "chunk_length = 10",
        "chunk_length = 5",
        "",
        &["5 steps differ from model.action_horizon = 10", "make them equal"],
    ),
    (
        "action_horizon = 10",
        "action_horizon = 20",
        "chunk_length = 10",
        &["10 steps differ from model.action_horizon = 20"],
    ),
    (
        "gradient_accumulation_steps = 2",
        "gradient_accumulation_steps = 3",
        "batch_size = 8",
        &[
            "8 samples",
            "3 micro-batches",
            "multiple of acrlpd.gradient_accumulation_steps",
        ],
    ),
    (
        "action_dim = 14",
        "action_dim = 40",
        "",
        &["40 coordinates", "model.action_dim = 32"],
    ),
    (
        "action_expert_variant = \"tiny\"",
        "action_expert_variant = \"gemma_300m\"",
        "",
        &["make both `tiny` or neither"],
    ),
    (
        "decay_steps = 100",
        "decay_steps = 5",
        "",
        &[
            "`optimizer.actor.decay_steps`",
            "warm-up of 5 steps",
            "greater than optimizer.actor.warmup_steps",
        ],
    ),
    (
        "eval_fraction = 0.2",
        "eval_fraction = 0",
        "",
        &["no episode is left", "eval_interval = 0"],
    ),
    (
        "num_action_samples = 4",
        "num_action_samples = 1",
        "use_adaptive_temperature",
        &["num_action_samples = 1", "set it to false"],
    ),
    (
        "freeze = []",
        "freeze = [\"expert\", \"expert\"]",
        "",
        &["names `expert` twice"],
    ),
    (
        "default_prompt = \"fold the box\"",
        "default_prompt = \" \"",
        "",
        &["it is empty"],
    ),
    (
        "feature_grad = false",
        "feature_grad = true # freeze = [\"vision\", \"language\"]",
        "",
        &[],
    ),
];

fn debug() -> &'static str {
    PRESETS[0].1
}

#[test]
fn every_mistake_is_named_with_its_line_and_the_way_out() {
    let mut rejected = 0;
    for (old, new, named, words) in BROKEN {
        assert!(debug().contains(old), "{old}");
        let text = debug().replacen(old, new, 1);
        let result = Config::parse(&text, "bad.toml");
        if words.is_empty() {
            // A control: the same edit without the mistake is fine.
            result.unwrap_or_else(|e| panic!("{new}: {e}"));
            continue;
        }
        let message = result.expect_err(new).to_string();
        let named = if named.is_empty() {
            new.lines().next().unwrap()
        } else {
            named
        };
        let line = 1 + text.lines().position(|l| l.starts_with(named)).unwrap();
        assert!(
            message.contains(&format!("`bad.toml` line {line}")),
            "{new}: {message} (line {line})"
        );
        for word in *words {
            assert!(message.contains(word), "{new}: {message}");
        }
        assert!(!message.contains("usize") && !message.contains('\n'), "{message}");
        rejected += 1;
    }
    assert!(rejected >= 50, "{rejected}");
}

#[test]
fn the_first_of_several_mistakes_is_the_one_reported() {
    // In the order of the file, which is not that of the alphabet.
    for (text, line) in [
        ("zz = 1\n[model]\naa = 2\n[acrlpd]\nbb = 3\n", 1),
        ("[acrlpd]\nzz = 1\n[model]\naa = 2\n", 2),
    ] {
        let message = Config::parse(text, "bad.toml").unwrap_err().to_string();
        assert!(
            message.contains(&format!("line {line}: unknown key")) && message.contains("zz`"),
            "{message}"
        );
    }
}

#[test]
fn contradictions_of_several_lines() {
    let broken = [
        (
            "feature_grad = true\nfreeze = [\"vision\", \"language\"]",
            "feature_grad",
            "acrlpd.freeze holds both fixed",
        ),
        (
            "use_ema = true\ngradient_accumulation_steps = 0",
            "gradient_accumulation_steps",
            "at least 1",
        ),
        (
            "chunk_length = 5\nuse_ema = true",
            "chunk_length",
            "model.action_horizon = 50",
        ),
    ];
    for (lines, key, words) in broken {
        let text = format!("[data]\nprompt_from_task = true\n[acrlpd]\n{lines}\n");
        let line = 1 + text.lines().position(|l| l.starts_with(key)).unwrap();
        let message = Config::parse(&text, "bad.toml").unwrap_err().to_string();
        assert!(
            message.contains(words) && message.contains(&format!("line {line}: `acrlpd.{key}`")),
            "{message}"
        );
    }
    let text = "[data]\nprompt_from_task = true\nadapt_to_pi = true\n[qchunking]\naction_dim = 7\n";
    let message = Config::parse(text, "bad.toml").unwrap_err().to_string();
    assert!(
        message.contains("line 3: `data.transforms`") && message.contains("action_dim is 7"),
        "{message}"
    );
    let message = Config::parse("", "bad.toml").unwrap_err().to_string();
    assert!(
        message.starts_with("the default: `data.default_prompt`") && message.contains("prompt_from_task"),
        "{message}"
    );
    let text = "[data]\nprompt_from_task = true\n[data.cameras]\n";
    let message = Config::parse(text, "bad.toml").unwrap_err().to_string();
    assert!(
        message.contains("line 3: `data.cameras`") && message.contains("see nothing"),
        "{message}"
    );
}

/// A value that nobody means: each foreign key refuses it with its own reason, or ignores every value and says so.
#[test]
fn no_foreign_key_is_taken_in_silence() {
    let mut refused = 0;
    for foreign in FOREIGN {
        let (key, why) = (foreign.key, foreign.why);
        let text = format!("data.prompt_from_task = true\n{key} = \"frobnicate\"\n");
        match Config::parse(&text, "old.toml") {
            Err(e) => {
                let expected = format!("`old.toml` line 2: {key} is not supported: {why}");
                assert_eq!(e.to_string(), expected);
                refused += 1;
            }
            Ok(config) => {
                let notes: Vec<String> = config.notes().iter().map(|note| note.to_string()).collect();
                assert_eq!(notes, [format!("`old.toml` line 2: `{key}` is ignored: {why}")]);
            }
        }
    }
    assert!(refused > 40 && refused < FOREIGN.len(), "{refused}");
}

#[test]
fn files_and_names_that_do_not_exist() {
    let message = Config::load("rl_fold_bax").unwrap_err().to_string();
    assert!(
        message.contains("`rl_libero`") && message.contains("did you mean `rl_fold_box`?"),
        "{message}"
    );
    let message = Config::load("no/such.toml").unwrap_err().to_string();
    assert!(
        message.contains("`no/such.toml`") && message.contains("check the path"),
        "{message}"
    );
}

#[test]
fn what_a_run_needs_is_asked_for() {
    let mut config = Config::load("rl_libero").unwrap();
    let name = "physical-intelligence/libero".to_owned();
    assert_eq!(config.datasets().unwrap(), [Place::Name(name)]);
    assert!(
        config
            .tokenizer_path()
            .unwrap_err()
            .to_string()
            .contains("paligemma_tokenizer.model")
    );
    config.data.repo_id = None;
    let message = config.datasets().unwrap_err().to_string();
    assert!(
        message.contains("`rl_libero` has no data.path") && message.contains("with --data"),
        "{message}"
    );
}
