//! Low-rank adapters on disk: openpi's arrays in, merged matrices out, and training with them from start to resumption.

#[path = "checkpoint_support/orbax.rs"]
mod orbax;

#[path = "checkpoint_support/jax.rs"]
mod tree;

mod checkpoint_support;

use std::fs;
use std::path::Path;

use acrlpd::checkpoint::Weights;
use acrlpd::checkpoint::convert::{LowRank, Names, Target, convert};
use acrlpd::config::Config;
use acrlpd::model::dims::{Adapters, Lora, Pi0Dims};
use acrlpd::model::tables;
use assert_cmd::Command;
use checkpoint_support::{EMBEDDING, Plain, golden_weights, numbers, read_plain, tiny, write_plain};
use orbax::Array;
use safetensors::Dtype;
use tempfile::TempDir;
use tree::{Tree, adapted_tree};

fn adapted(pi05: bool) -> Pi0Dims {
    let lora = |rank: usize| {
        Some(Lora {
            rank,
            alpha: rank as f64,
        })
    };
    Pi0Dims {
        lora: Adapters {
            language: lora(2),
            expert: lora(4),
        },
        ..tiny(pi05)
    }
}

/// The golden weights with adapters of small numbers.
fn weights(dims: &Pi0Dims) -> Plain {
    let mut plain = read_plain(golden_weights(dims.pi05));
    for (i, tensor) in tables::pi0(dims).tensors().enumerate() {
        if tensor.name.contains(".lora_") {
            let wave = |v: f32| (v * 0.37).sin() * 0.1;
            let values = numbers(i, tensor.len()).into_iter().map(wave).collect();
            plain.insert(tensor.name.clone(), (tensor.shape.clone(), values));
        }
    }
    plain
}

fn arrays(tree: &Tree) -> Vec<Array> {
    let array = |(path, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| Array {
        path: path.clone(),
        dtype: "<f4",
        shape: shape.clone(),
        chunks: shape.clone(),
        bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    };
    tree.iter().map(array).collect()
}

fn target(path: &Path, lora: LowRank) -> Target<'_> {
    Target {
        path,
        names: Names::Plain,
        dtype: None,
        lora,
        shard: u64::MAX,
        texts: &[],
    }
}

/// An element of an array.
fn at(tree: &Tree, path: &str, index: &[usize]) -> f64 {
    let (shape, values) = &tree[path];
    assert_eq!(shape.len(), index.len(), "{path}");
    f64::from(values[index.iter().zip(shape).fold(0, |at, (i, size)| at * size + i)])
}

#[test]
fn openpis_arrays_load_and_merge_after_its_einsums() {
    for pi05 in [false, true] {
        let dims = adapted(pi05);
        let plain = weights(&dims);
        let tree = adapted_tree(&plain, &dims);
        let dir = TempDir::new().unwrap();
        orbax::write(&dir.path().join("jax/params"), &arrays(&tree));
        let read = Weights::open(dir.path().join("jax")).unwrap_or_else(|e| panic!("{e}"));
        assert!(read.has_adapters());
        assert_eq!(read.dims().unwrap().lora, dims.lora);
        let table = tables::pi0(&dims);
        assert!(read.check(&table, "").unwrap().is_empty());
        for tensor in table.tensors() {
            assert_eq!(read.tensor(tensor).unwrap(), plain[&tensor.name].1, "{}", tensor.name);
        }

        let file = dir.path().join("merged.safetensors");
        convert(&read, &target(&file, LowRank::Merge(dims.lora)), |_, _| ()).unwrap();
        let merged = read_plain(&file);
        assert_eq!(merged.len(), tables::pi0(&tiny(pi05)).tensors().count());
        let (d, h) = (&dims, dims.head_dim);
        for (stack, star, width, r) in [
            (
                "paligemma_with_expert.paligemma.model.language_model.",
                "",
                d.language.width,
                2,
            ),
            ("paligemma_with_expert.gemma_expert.model.", "_1", d.expert.width, 4),
        ] {
            let (layer, row, column) = (d.depth - 1, 3 * h + 5, width - 7);
            let value = |tree: &Plain, name: &str, index: [usize; 2]| {
                let (shape, values) = &tree[&format!("{stack}layers.{layer}.{name}.weight")];
                f64::from(values[index[0] * shape[1] + index[1]])
            };
            let added = |name: &str, index: [usize; 2]| value(&merged, name, index) - value(&plain, name, index);
            let llm = |path: String| format!("PaliGemma/llm/layers/{path}");
            let near = |got: f64, want: f64, what: &str| {
                assert!(
                    (got - want).abs() < 1e-6 && want != 0.0,
                    "{stack}{what}: {got}, not {want}"
                );
            };
            // q: each head by itself.
            let q = |which: &str| llm(format!("attn/q_einsum{star}/lora_{which}"));
            let want: f64 = (0..r)
                .map(|l| at(&tree, &q("a"), &[layer, 3, column, l]) * at(&tree, &q("b"), &[layer, 3, l, 5]))
                .sum();
            near(added("self_attn.q_proj", [row, column]), want, "q");
            let kv = |which: &str| llm(format!("attn/kv_einsum{star}/lora_{which}"));
            let want: f64 = (0..r)
                .map(|l| at(&tree, &kv("a"), &[layer, 1, 0, column, l]) * at(&tree, &kv("b"), &[layer, 1, 0, l, 5]))
                .sum();
            near(added("self_attn.v_proj", [5, column]), want, "v");
            // The last projection: B is summed over all heads.
            let o = |which: &str| llm(format!("attn/attn_vec_einsum{star}/lora_{which}"));
            let want: f64 = (0..r)
                .map(|l| {
                    let b: f64 = (0..d.heads).map(|n| at(&tree, &o("b"), &[layer, n, l, column])).sum();
                    at(&tree, &o("a"), &[layer, 3, 5, l]) * b
                })
                .sum();
            near(added("self_attn.o_proj", [column, row]), want, "o");
            let up = |which: &str| llm(format!("mlp{star}/gating_einsum_lora_{which}"));
            let want: f64 = (0..r)
                .map(|l| at(&tree, &up("a"), &[layer, 1, column, l]) * at(&tree, &up("b"), &[layer, 1, l, 11]))
                .sum();
            near(added("mlp.up_proj", [11, column]), want, "up");
            let down = |which: &str| llm(format!("mlp{star}/linear_lora_{which}"));
            let want: f64 = (0..r)
                .map(|l| at(&tree, &down("a"), &[layer, 11, l]) * at(&tree, &down("b"), &[layer, l, column]))
                .sum();
            near(added("mlp.down_proj", [column, 11]), want, "down");
        }
        // What has no adapter is as it was.
        assert_eq!(merged[EMBEDDING], plain[EMBEDDING]);

        let file = dir.path().join("adapters.safetensors");
        convert(&read, &target(&file, LowRank::Only), |_, _| ()).unwrap();
        let only = read_plain(&file);
        assert!(
            only.iter()
                .all(|(name, tensor)| name.contains(".lora_") && plain[name] == *tensor)
        );
        assert_eq!(only.len(), plain.len() - merged.len());
    }
    let base = Weights::open(golden_weights(false)).unwrap();
    let dir = TempDir::new().unwrap();
    let error = convert(&base, &target(&dir.path().join("none"), LowRank::Only), |_, _| ()).unwrap_err();
    assert!(error.to_string().contains("has no adapters"), "{error}");
}

fn acrlpd(dir: &Path) -> Command {
    let mut command = Command::cargo_bin("acrlpd").unwrap();
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("TMPDIR", dir);
    command
}

fn train(dir: &Path, name: &str, steps: usize, more: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = acrlpd(dir);
    command.args(["train", "--config=debug", "--set=save_interval=1"]);
    command.args([format!("--max-steps={steps}"), format!("--exp-name={name}")]);
    command.arg(format!("--checkpoint-dir={}", dir.display()));
    command.args(more).assert()
}

const LORA: [&str; 2] = [
    "--set=model.paligemma_variant=tiny_lora",
    "--set=model.action_expert_variant=tiny_lora",
];

#[test]
fn base_weights_train_with_adapters_resume_and_are_exported_merged() {
    let dir = TempDir::new().unwrap();
    let path = dir.path();
    let mut plain = read_plain(golden_weights(false));
    // The shipped tokenizer has more pieces than the golden model.
    let (shape, values) = plain.get_mut(EMBEDDING).unwrap();
    shape[0] = 600;
    values.resize(600 * shape[1], 0.01);
    write_plain(path.join("base"), &plain, Dtype::F32);
    let base = format!("--set=model.weights={}", path.join("base").display());
    let flags = [LORA[0], LORA[1], &base];
    train(path, "straight", 2, &flags).success();
    train(path, "resumed", 1, &flags).success();
    train(path, "resumed", 2, &[&flags[..], &["--resume"]].concat()).success();
    let step = |name: &str, step: usize| path.join(format!("debug/{name}/{step}"));
    for file in ["params.safetensors", "ema.safetensors", "optimizer.safetensors"] {
        let [a, b] = ["straight", "resumed"].map(|name| fs::read(step(name, 2).join(file)).unwrap());
        assert!(a == b, "{file}");
    }

    // The matrices are those of the file to the last bit; adapters, vision and projections have moved.
    let (first, second) = (
        read_plain(step("straight", 1).join("params.safetensors")),
        read_plain(step("straight", 2).join("params.safetensors")),
    );
    let fixed =
        |name: &str| (name.contains(".language_model.") || name.contains(".gemma_expert.")) && !name.contains(".lora_");
    for (name, tensor) in &second {
        if fixed(name) {
            assert_eq!(*tensor, plain[name], "{name}");
        }
    }
    // Of the last language layer only keys and values are used.
    let used =
        |name: &str| !name.contains(".language_model.layers.3.") || name.contains("k_proj") || name.contains("v_proj");
    let adapters: Vec<&String> = second
        .keys()
        .filter(|name| name.contains(".lora_") && used(name))
        .collect();
    assert!(adapters.len() > 100, "{}", adapters.len());
    for name in adapters {
        assert!(first[name] != second[name], "{name}");
    }
    let moments = read_plain(step("straight", 2).join("optimizer.safetensors"));
    assert!(!moments.keys().any(|name| name.starts_with("pi0") && fixed(name)));

    // Another program's model has no adapters: it gets the sum.
    let out = path.join("policy");
    let mut export = acrlpd(path);
    export.args(["checkpoint", "export", "--to=openpi", "--no-ema"]);
    export.arg(step("straight", 2)).arg(format!("--out={}", out.display()));
    export.assert().success();
    let policy = read_plain(out.join("model.safetensors"));
    assert!(!policy.keys().any(|name| name.contains("lora")));
    let name = "paligemma_with_expert.gemma_expert.model.layers.1.mlp.down_proj";
    let get = |part: &str| &second[&format!("{name}.{part}")].1;
    let (a, b, w) = (get("lora_a"), get("lora_b"), get("weight"));
    let (rank, inputs) = (4, 96);
    assert_eq!(a.len(), rank * inputs);
    let exported = &policy[&format!("{name}.weight")].1;
    for (i, (got, w)) in exported.iter().zip(w).enumerate() {
        let (o, c) = (i / inputs, i % inputs);
        let delta: f64 = (0..rank)
            .map(|l| f64::from(b[o * rank + l]) * f64::from(a[l * inputs + c]))
            .sum();
        assert_eq!(*got, (f64::from(*w) + delta) as f32, "{i}");
    }
    let only = path.join("adapters");
    let mut export = acrlpd(path);
    export.args(["checkpoint", "export", "--to=openpi", "--no-ema", "--adapters-only"]);
    export.arg(step("straight", 2)).arg(format!("--out={}", only.display()));
    export.assert().success();
    let only = read_plain(only.join("model.safetensors"));
    assert!(only.iter().all(|(name, tensor)| second[name] == *tensor) && !only.is_empty());

    // A model without adapters does not take weights with them, which would be another model's.
    let weights = format!("--set=model.weights={}", step("straight", 2).display());
    let refused = train(path, "plain", 1, &[&weights]).failure();
    let message = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
    assert!(message.contains("has low-rank adapters"), "{message}");
}

#[test]
fn variants_mean_what_openpi_means() {
    let load = |paligemma: &str, expert: &str, more: &[(&str, &str)]| {
        let keys = [
            ("model.paligemma_variant", paligemma),
            ("model.action_expert_variant", expert),
        ];
        let all: Vec<(String, String)> = keys
            .iter()
            .chain(more)
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        Config::load_with("rl_fold_box", &all)
    };
    let lora = |rank, alpha| Some(Lora { rank, alpha });
    let config = load("gemma_2b_lora", "gemma_300m_lora", &[]).unwrap();
    let dims = config.pi0_dims();
    assert_eq!((dims.lora.language, dims.lora.expert), (lora(16, 16.0), lora(32, 32.0)));
    let (language, expert) = (
        "paligemma_with_expert.paligemma.model.language_model.",
        "paligemma_with_expert.gemma_expert.model.",
    );
    let learning = |config: &Config| {
        let freeze = config.freeze();
        let table = tables::pi0(&config.pi0_dims());
        let units = table.units.into_iter();
        let names = units.flat_map(|unit| {
            let tensors = unit.groups.into_iter().flat_map(|g| g.tensors);
            tensors.map(move |t| (unit.room, t.name)).collect::<Vec<_>>()
        });
        let learns: Vec<String> = names
            .filter(|(room, name)| freeze.learns(*room, name))
            .map(|(_, n)| n)
            .collect();
        learns
    };
    let both = learning(&config);
    assert!(
        both.iter()
            .all(|n| n.contains(".lora_") || !(n.starts_with(language) || n.starts_with(expert)))
    );
    for name in ["action_in_proj.weight", "state_proj.bias"] {
        assert!(both.iter().any(|n| n == name), "{name}");
    }
    assert!(
        both.iter().any(|n| n.contains("vision_tower")) && both.iter().any(|n| n.contains("multi_modal_projector"))
    );
    assert!(!both.contains(&EMBEDDING.to_owned()));
    // Adapters of one stack leave the other as it is.
    let one = learning(&load("gemma_2b_lora", "gemma_300m", &[]).unwrap());
    assert!(
        one.contains(&format!("{expert}layers.3.mlp.up_proj.weight")) && one.contains(&format!("{expert}norm.weight"))
    );
    assert!(!one.contains(&format!("{language}norm.weight")));
    let one = learning(&load("gemma_2b", "gemma_300m_lora", &[]).unwrap());
    assert!(one.contains(&EMBEDDING.to_owned()) && !one.contains(&format!("{expert}norm.weight")));

    let more = [("model.lora.language_rank", "8"), ("model.lora.expert_alpha", "64")];
    let dims = load("gemma_2b_lora", "gemma_300m_lora", &more).unwrap().pi0_dims();
    assert_eq!((dims.lora.language, dims.lora.expert), (lora(8, 8.0), lora(32, 64.0)));
    assert_eq!(dims.lora.expert.map(Lora::scale), Some(2.0));
    for (more, words) in [
        (("model.lora.language_rank", "8"), "there are no adapters"),
        (
            ("acrlpd.freeze_filter", "[\"*nothing*\"]"),
            "no parameter has a name like `*nothing*`",
        ),
        (("acrlpd.freeze_filter", "[\"*.k_proj.weight\"]"), "are one matrix here"),
    ] {
        let error = load("gemma_2b", "gemma_300m", &[more]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
