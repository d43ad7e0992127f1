//! The program as users call it: flags, messages, exit codes.

use std::path::Path;
use std::process::Output;

use assert_cmd::Command;

/// Runs `acrlpd` in the project's folder.
fn acrlpd(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("acrlpd").expect("the program is built with the tests");
    command.current_dir(env!("CARGO_MANIFEST_DIR")).args(args);
    command.output().expect("it starts")
}

/// Runs and expects `code`; returns stdout and stderr.
fn expect(code: i32, args: &[&str]) -> (String, String) {
    let out = acrlpd(args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// Runs, expects `code` and one sentence on stderr that says all of `parts`.
fn complains(code: i32, args: &[&str], parts: &[&str]) {
    let (_, stderr) = expect(code, args);
    let line = stderr
        .lines()
        .find(|l| l.starts_with("error: "))
        .unwrap_or_else(|| panic!("{args:?}: {stderr}"));
    for part in parts {
        assert!(line.contains(part), "{args:?}: {line:?} lacks {part:?}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn plan(flags: &[&str]) -> serde_json::Value {
    let base = [
        "plan",
        "--json",
        "--config",
        "rl_fold_box",
        "--batch_size=8",
        "--grad-accum=1",
    ];
    let args: Vec<&str> = base.iter().chain(flags).copied().collect();
    serde_json::from_str(&expect(0, &args).0).expect("JSON")
}

const LORA: [&str; 2] = [
    "--set=model.paligemma_variant=gemma_2b_lora",
    "--set=model.action_expert_variant=gemma_300m_lora",
];

/// TFLOP per sample as counted by hand for these shapes, from the sizes of all products.
#[test]
fn plan_counts_the_steps_of_the_full_model() {
    let critics = "--set=num_critics=2";
    for (flags, tflop) in [
        (&[critics][..], 15.91),
        (&[critics, "--set=best_of_n=32"], 20.08),
        (
            &[critics, "--set=action_horizon=50", "--set=acrlpd.chunk_length=50"],
            17.80,
        ),
        (&[critics, "--set=acrlpd.freeze=[\"vision\"]"], 14.58),
        (&[critics, "--set=acrlpd.features=llm"], 16.61),
        (&[critics, "--set=acrlpd.chain_batches=4"], 13.17),
        (&[critics, "--set=acrlpd.freeze=[\"vision\", \"language\"]"], 8.55),
        // Less the weight gradients of both transformers (2.91 + 0.14), plus the adapters' own products (0.17 + 0.07).
        (&[&[critics][..], &LORA].concat(), 13.11),
    ] {
        let plan = plan(flags);
        let got = plan["tflop_per_sample"].as_f64().expect("a number");
        assert!((got / tflop - 1.0).abs() < 0.01, "{flags:?}: {got}, not {tflop}");
        let peak = plan["peak_bytes"].as_u64().expect("bytes");
        let phases = plan["phases"].as_array().expect("phases");
        let highest = phases.iter().map(|p| p["peak_bytes"].as_u64().expect("bytes")).max();
        assert_eq!(highest, Some(peak), "{flags:?}");
        let names: Vec<&str> = phases.iter().map(|p| p["name"].as_str().expect("a name")).collect();
        assert!(
            names.contains(&"current prefix forward") && names.contains(&"optimizer"),
            "{names:?}"
        );
    }
}

#[test]
fn plan_knows_what_costs_memory() {
    let peak = |flags: &[&str]| plan(flags)["peak_bytes"].as_u64().expect("bytes");
    let full = peak(&[]);
    assert!(peak(&["--set=memory.remat=mlp"]) < full);
    assert!(peak(&["--set=memory.remat=full"]) < peak(&["--set=memory.remat=mlp"]));
    assert!(peak(&["--set=acrlpd.use_ema=false"]) < full);
    // Streams in f32 take two bytes more for every element that is kept of them, and backward a gradient of each kind.
    let wide = peak(&["--set=model.residual_dtype=float32"]) - full;
    assert!((1 << 30..3 << 30).contains(&wide), "{wide} bytes");
    assert!(peak(&["--set=acrlpd.freeze=[\"vision\"]"]) < full);
    // Lion has no second moment: four bytes less for every parameter that learns.
    let all = plan(&[])["parameters"].as_u64().expect("a number");
    let rows = plan(&[])["prompt_rows"].as_u64().expect("a number");
    let (never, width) = (257_152 - rows, 2048);
    // Of the last language layer, output projection, norm and MLP, and the norm behind it, are on the host.
    let unused = width * (width + 3 * 16_384 + 2);
    let learning = all - never * width - unused;
    let saved = full - peak(&["--set=optimizer.actor.kind=lion", "--set=optimizer.critic.kind=lion"]);
    assert!(
        (saved as f64 / (4 * learning) as f64 - 1.0).abs() < 1e-3,
        "{saved} bytes of {learning} parameters that learn"
    );
    // Of the rows that never occur, gradient, two moments and average; of those that do, weights twice.
    let dense = peak(&["--set=memory.prompt_states=dense"]) - full;
    let table = width * (16 * never - 4 * rows);
    assert!(
        (dense as f64 / table as f64 - 1.0).abs() < 1e-3,
        "{dense} bytes for {table}"
    );
    // Two moments of 8 bytes become two codes and two scales for every 256 values.
    let saved = full - peak(&["--set=memory.moments=blockwise8"]);
    let pi0 = learning as f64 * (8.0 - 2.0 * 260.0 / 256.0);
    assert!(
        saved as f64 > 0.9 * pi0 && saved as f64 <= pi0,
        "{saved} bytes of {pi0}"
    );
    let (table, _) = expect(1, &["plan", "--config=rl_fold_box", "--device-memory=24GB"]);
    assert!(table.contains("does NOT fit") && table.contains("--set"), "{table}");
    let folder = tempfile::tempdir().expect("a folder");
    let drawing = folder.path().join("memory.svg");
    let flag = format!("--svg={}", drawing.display());
    let (table, _) = expect(0, &["plan", "--config=debug", "--device-memory=8GB", &flag]);
    assert!(
        table.contains("it fits") && table.contains("π₀ gradients") && table.contains("current prefix backward"),
        "{table}"
    );
    assert!(std::fs::read_to_string(&drawing).is_ok_and(|text| text.contains("7.20 GB may be used")));
    complains(2, &["plan", "--config=debug", "--device-memory=8XB"], &["8XB"]);
}

#[test]
fn adapters_on_both_transformers_fit_a_card_of_24_gb() {
    // Micro-batches of 8, as `plan` has them here; and the preset for it.
    let more = ["--set=acrlpd.use_ema=false", "--set=memory.preset=tight"];
    let adapted = plan(&[&LORA[..], &more].concat());
    let peak = adapted["peak_bytes"].as_u64().expect("bytes");
    assert!(peak as f64 <= 22.5e9, "{peak}");
    let (table, _) = expect(0, &["plan", "--config=rl_libero_lora", "--device-memory=22.5GB"]);
    assert!(table.contains("fits"), "{table}");
}

#[test]
fn wrong_input_gets_one_sentence_and_its_exit_code() {
    let train =
        |flags: &[&'static str]| [&["train", "--config=debug", "--exp_name=unused", "--dry-run"], flags].concat();
    complains(
        3,
        &train(&["--data=/does/not/exist"]),
        &["/does/not/exist", "meta/info.json"],
    );
    complains(3, &train(&["--set=data.tokenizer=/no.model"]), &["/no.model"]);
    complains(3, &train(&["--set=data.norm_stats=/no.json"]), &["/no.json"]);
    // The critics' actions against the dataset's.
    complains(
        3,
        &train(&["--set=qchunking.action_dim=7"]),
        &["qchunking.action_dim", "it is 7", "14 wide"],
    );
    complains(2, &train(&["--batch-size=zero"]), &["batch_size", "zero"]);
    complains(2, &train(&["--batch-size=0"]), &["batch_size", "at least 1"]);
    complains(
        2,
        &train(&["--set=acrlpd.discout=1"]),
        &["discout", "did you mean", "discount"],
    );
    complains(2, &train(&["--set=acrlpd.discount"]), &["--set acrlpd.discount", "="]);
    complains(2, &train(&["--memory-fraction=0"]), &["--memory-fraction"]);
    complains(
        2,
        &train(&["--set=model.dtype=bfloat16", "--device=vulkan"]),
        &["bfloat16", "float32"],
    );
    complains(4, &train(&["--device=cuda:7"]), &["cuda"]);
    complains(
        5,
        &train(&["--set=model.weights=/no.safetensors"]),
        &["/no.safetensors"],
    );
    complains(
        2,
        &["train", "--config=debgu", "--exp-name=x"],
        &["debgu", "did you mean `debug`"],
    );
    complains(
        2,
        &["train", "--config=debug", "--exp-name=../x"],
        &["--exp-name", "../x"],
    );
    complains(
        2,
        &[
            "train",
            "--config=debug",
            "--exp-name=x",
            "--set=acrlpd.q_aggregation_weights=[1]",
        ],
        &["2 members"],
    );
    complains(3, &["verify", "/does/not/exist"], &["/does/not/exist"]);
    complains(3, &["data", "inspect", "/does/not/exist"], &["/does/not/exist"]);
    complains(5, &["checkpoint", "inspect", "/does/not/exist"], &["/does/not/exist"]);
    complains(5, &["sample", "--checkpoint=/does/not/exist"], &["/does/not/exist"]);
    // clap's own messages.
    expect(2, &["train", "--config=debug", "--exp-name=x", "--unknown"]);
    expect(2, &["train", "--config=debug", "--exp-name=x", "--device=gpu"]);
    expect(
        2,
        &["train", "--config=debug", "--exp-name=x", "--resume", "--overwrite"],
    );
    expect(2, &["frobnicate"]);
    assert!(
        !Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("checkpoints/debug/unused")
            .exists()
    );
}

#[test]
fn data_without_rewards_is_warned_about() {
    let flags = [
        "train",
        "--config=debug",
        "--exp-name=unused",
        "--dry-run",
        "--batch-size=2",
    ];
    let (_, stderr) = expect(0, &[&flags[..], &["--set=qchunking.terminal_reward=0"]].concat());
    assert!(stderr.contains("no chunk that can be drawn has a reward"), "{stderr}");
    let (_, stderr) = expect(0, &flags);
    assert!(!stderr.contains("reward"), "{stderr}");
}

#[test]
fn no_adapter_names_the_package_to_install() {
    let mut command = Command::cargo_bin("acrlpd").expect("the program is built with the tests");
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // The Vulkan loader finds no driver.
    command
        .env("VK_DRIVER_FILES", "/none.json")
        .env("VK_ICD_FILENAMES", "/none.json");
    command.args(["train", "--config=debug", "--exp-name=x", "--dry-run"]);
    let out = command.output().expect("it starts");
    let stderr = String::from_utf8_lossy(&out.stderr);
    // A machine with CUDA needs no Vulkan.
    if out.status.code() != Some(0) {
        assert_eq!(out.status.code(), Some(4), "{stderr}");
        assert!(stderr.contains("install"), "{stderr}");
    }
}

#[test]
fn small_commands_answer() {
    let (out, _) = expect(0, &["config", "show", "--config=debug", "--pi0_lr=0.5"]);
    assert!(out.contains("actor_lr = 0.5"), "{out}");
    assert!(expect(0, &["config", "keys"]).0.contains("acrlpd.num_action_samples"));
    assert_eq!(expect(0, &["config", "presets"]).0.lines().count(), 6);
    let (out, _) = expect(0, &["data", "inspect", "assets/datasets/aloha_v21_image", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(json["episodes"], 6);
    let (out, _) = expect(0, &["doctor"]);
    assert!(out.contains("169 of 169 tensors within tolerance"), "{out}");
    let (out, _) = expect(0, &["verify", "tests/golden/ops", "--json", "--only", "rms_norm"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert!(json[0]["rows"].as_array().is_some_and(|rows| !rows.is_empty()));
    complains(
        2,
        &["verify", "tests/golden/ops", "--residual-dtype", "bfloat16"],
        &["bfloat16", "float32"],
    );
    complains(
        2,
        &["verify", "tests/golden/ops", "--dtype", "int8"],
        &["int8", "bfloat16"],
    );
    complains(
        2,
        &["verify", "tests/golden/ops", "--only", "no such tensor"],
        &["no such tensor"],
    );
}

#[test]
fn half_precision_is_verified_where_the_device_has_it() {
    let caps = acrlpd::gpu::Gpu::open(Default::default())
        .expect("a device")
        .caps()
        .clone();
    for (dtype, name, there) in [("f16", "float16", caps.f16), ("bf16", "bfloat16", caps.bf16)] {
        let args = ["verify", "tests/golden/ops", "--only", "geglu", "--dtype", dtype];
        if !there {
            complains(4, &args, &[name, "float32"]);
            continue;
        }
        let (out, _) = expect(0, &args);
        assert!(
            out.contains(name) && out.contains("cosine") && out.contains("0.999"),
            "{out}"
        );
        let (out, _) = expect(0, &[&args[..], &["--json"]].concat());
        let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(json[0]["dtype"], name);
        assert_eq!(json[0]["residual_dtype"], name);
        let (out, _) = expect(0, &[&args[..], &["--residual-dtype", "float32", "--json"]].concat());
        let wide: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(wide[0]["dtype"], name);
        assert_eq!(wide[0]["residual_dtype"], "float32");
        assert!(
            json[0]["rows"][0]["cosine"]["value"]
                .as_f64()
                .is_some_and(|c| c > 0.999),
            "{out}"
        );
    }
}

#[test]
fn norm_stats_are_written_as_openpi_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("norm_stats.json");
    expect(
        0,
        &[
            "data",
            "norm-stats",
            "--config=debug",
            "--out",
            &file.display().to_string(),
        ],
    );
    let text = std::fs::read_to_string(&file).expect("it is there");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["norm_stats"]["actions"]["mean"].as_array().map(Vec::len), Some(14));
    let given = format!("--set=data.norm_stats={}", file.display());
    expect(
        0,
        &[
            "train",
            "--config=debug",
            "--exp-name=unused",
            "--dry-run",
            "--batch-size=2",
            &given,
        ],
    );
}
