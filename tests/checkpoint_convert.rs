//! Weights into other programs' files and back, by the library and by the program.

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use acrlpd::checkpoint::convert::{LowRank, Names, Target, convert};
use acrlpd::checkpoint::{RunState, Weights, begin, plan, state};
use acrlpd::config::Config;
use acrlpd::model::tables;
use assert_cmd::Command;
use checkpoint_support::{EMBEDDING, Plain, TIED, UNUSED, golden, golden_weights, read_plain, tiny, write_plain};
use half::bf16;
use safetensors::Dtype;
use safetensors::tensor::SafeTensors;
use tempfile::TempDir;

fn target<'a>(path: &'a Path, names: Names, dtype: Option<Dtype>, shard: u64) -> Target<'a> {
    Target {
        path,
        names,
        dtype,
        lora: LowRank::Keep,
        shard,
        texts: &[],
    }
}

/// Every tensor of the tiny model, as it is read from `path`.
fn values(path: &Path, pi05: bool) -> BTreeMap<String, Vec<f32>> {
    let table = tables::pi0(&tiny(pi05));
    let weights = Weights::open(path).unwrap_or_else(|e| panic!("{e}"));
    assert!(weights.check(&table, "").unwrap_or_else(|e| panic!("{e}")).is_empty());
    table
        .tensors()
        .map(|t| (t.name.clone(), weights.tensor(t).unwrap()))
        .collect()
}

fn bits(values: &BTreeMap<String, Vec<f32>>) -> BTreeMap<&str, Vec<u32>> {
    values
        .iter()
        .map(|(name, v)| (name.as_str(), v.iter().map(|x| x.to_bits()).collect()))
        .collect()
}

#[test]
fn what_is_written_in_f32_is_read_with_the_same_bits() {
    for pi05 in [false, true] {
        let source = golden_weights(pi05);
        let original = values(&source, pi05);
        let weights = Weights::open(&source).unwrap();
        for names in [Names::Plain, Names::Openpi, Names::Lerobot] {
            for shard in [u64::MAX, 300_000] {
                let dir = TempDir::new().unwrap();
                let out = dir.path().join("out");
                let (mut last, mut calls) = (0, 0);
                let written = convert(&weights, &target(&out, names, Some(Dtype::F32), shard), |done, all| {
                    assert!(last < done && done <= all);
                    (last, calls) = (done, calls + 1);
                });
                let written = written.unwrap_or_else(|e| panic!("{e}"));
                assert_eq!((calls, last), (written.tensors, written.parameters));
                assert_eq!(bits(&values(&out, pi05)), bits(&original));
                assert_eq!(written.files.len() > 1, shard < u64::MAX);
                assert_eq!(out.join("model.safetensors.index.json").is_file(), shard < u64::MAX);
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
            }
        }
    }
}

#[test]
fn shards_are_as_large_as_they_may_be_and_the_index_lists_them() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("out");
    let weights = Weights::open(golden_weights(false)).unwrap();
    let written = convert(&weights, &target(&out, Names::Openpi, None, 300_000), |_, _| ()).unwrap();
    let index: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(out.join("model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], written.bytes);
    let n = written.files.len();
    let mut all = 0;
    for (i, file) in written.files.iter().enumerate() {
        let name = format!("model-{:05}-of-{n:05}.safetensors", i + 1);
        assert_eq!(file, &out.join(&name));
        let tensors = read_plain(file);
        let bytes: usize = tensors.values().map(|(_, values)| 4 * values.len()).sum();
        assert!(bytes <= 300_000 || tensors.len() == 1, "{name} has {bytes} bytes");
        assert!(
            tensors
                .keys()
                .all(|tensor| index["weight_map"][tensor] == name.as_str())
        );
        all += tensors.len();
    }
    assert_eq!(
        (all, index["weight_map"].as_object().unwrap().len()),
        (written.tensors, written.tensors)
    );
}

#[test]
fn names_and_types_are_those_of_the_program_that_reads_them() {
    let plain = read_plain(golden_weights(true));
    let weights = Weights::open(golden_weights(true)).unwrap();
    let dir = TempDir::new().unwrap();
    for (file, names, front) in [("openpi", Names::Openpi, ""), ("lerobot", Names::Lerobot, "model.")] {
        let path = dir.path().join(format!("{file}.safetensors"));
        convert(&weights, &target(&path, names, Some(Dtype::BF16), 1), |_, _| ()).unwrap();
        let bytes = fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut expected: Vec<String> = plain.keys().filter(|name| *name != EMBEDDING).cloned().collect();
        expected.extend([TIED.to_owned(), UNUSED.to_owned()]);
        expected.iter_mut().for_each(|name| name.insert_str(0, front));
        expected.sort();
        let mut found = read.names();
        found.sort();
        assert_eq!(found, expected);
        let dims = tiny(true);
        let unused = read.tensor(&format!("{front}{UNUSED}")).unwrap();
        assert_eq!(unused.shape(), [dims.vocab, dims.expert.width]);
        assert!(unused.data().iter().all(|byte| *byte == 0));
        let rounded: Vec<u8> = plain[EMBEDDING]
            .1
            .iter()
            .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
            .collect();
        let embedding = read.tensor(&format!("{front}{TIED}")).unwrap();
        assert_eq!((embedding.dtype(), embedding.data()), (Dtype::BF16, &rounded[..]));
    }
}

#[test]
fn what_fails_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let nothing = |dir: &TempDir| fs::read_dir(dir.path()).unwrap().count() == 0;
    let out = dir.path().join("out");
    let source = TempDir::new().unwrap();
    let path = source.path().join("w.safetensors");
    let mut plain = read_plain(golden_weights(false));
    plain.get_mut("state_proj.bias").unwrap().1[3] = 70_000.0;
    write_plain(&path, &plain, Dtype::F32);
    let weights = Weights::open(&path).unwrap();
    let message = convert(
        &weights,
        &target(&out, Names::Plain, Some(Dtype::F16), u64::MAX),
        |_, _| (),
    )
    .unwrap_err();
    assert!(
        message
            .to_string()
            .contains("`state_proj.bias` has the value 70000, which float16 cannot hold"),
        "{message}"
    );
    assert!(nothing(&dir));

    plain.remove("state_proj.bias");
    write_plain(&path, &plain, Dtype::F32);
    let weights = Weights::open(&path).unwrap();
    let message = convert(&weights, &target(&out, Names::Plain, None, 1), |_, _| ())
        .unwrap_err()
        .to_string();
    assert!(message.contains("1 tensor is missing (`state_proj.bias`"), "{message}");
    let critic = source.path().join("critic.safetensors");
    write_plain(
        &critic,
        &Plain::from([("online/critic.out.bias".into(), (vec![1], vec![0.0]))]),
        Dtype::F32,
    );
    let weights = Weights::open(&critic).unwrap();
    let message = convert(&weights, &target(&out, Names::Plain, None, 1), |_, _| ())
        .unwrap_err()
        .to_string();
    assert!(message.contains("holds neither π₀ nor π₀.₅"), "{message}");
    assert!(nothing(&dir));

    fs::create_dir(&out).unwrap();
    let weights = Weights::open(golden_weights(false)).unwrap();
    let message = convert(&weights, &target(&out, Names::Plain, None, 1), |_, _| ())
        .unwrap_err()
        .to_string();
    assert!(message.contains("is there already"), "{message}");
}

/// A run with a checkpoint: golden weights, an average that is half of them.
fn run(dir: &Path, step: u64) -> PathBuf {
    let table = tables::pi0(&tiny(false));
    let plain = read_plain(golden_weights(false));
    let mut config = Config::load("debug").unwrap();
    config.model.dims.vocab = Some(512);
    config.set("seed", &step.to_string()).unwrap();
    let mut draft = begin(dir, RunState::now(step, step, "debug")).unwrap();
    for (name, scale) in [(state::PARAMS, 1.0), (state::EMA, 0.5)] {
        let mut file = draft.tensors(name, &plan("", &table)).unwrap();
        for tensor in table.tensors() {
            let scaled: Vec<f32> = plain[&tensor.name].1.iter().map(|v| v * scale * step as f32).collect();
            file.write(&tensor.name, &scaled).unwrap();
        }
        draft.keep(file).unwrap();
    }
    draft.text(state::CONFIG, &config.to_toml()).unwrap();
    draft.text(state::NORM_STATS, "{\"norm_stats\": {}}").unwrap();
    draft.commit(5).unwrap()
}

fn acrlpd(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let out = Command::cargo_bin("acrlpd")
        .unwrap()
        .current_dir(dir)
        .args(args)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[test]
fn the_program_exports_and_imports() {
    let dir = TempDir::new().unwrap();
    run(&dir.path().join("run"), 1);
    let plain = read_plain(golden_weights(false));
    let scaled = |scale: f32| -> BTreeMap<String, Vec<f32>> {
        plain
            .iter()
            .map(|(name, (_, v))| (name.clone(), v.iter().map(|x| x * scale).collect()))
            .collect()
    };
    let export = |extra: &[&str]| acrlpd(dir.path(), &[&["checkpoint", "export", "run"][..], extra].concat());
    let (code, out, err) = export(&["--to", "openpi", "--out", "a"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("averaged weights of step 1 (ema.safetensors)") && out.contains("a/model.safetensors"),
        "{out}"
    );
    assert_eq!(values(&dir.path().join("a"), false), scaled(0.5));
    let config = Config::load("debug").unwrap();
    let dataset = config.data.path.as_ref().unwrap().file_name().unwrap().to_owned();
    assert!(
        dir.path()
            .join("a/assets")
            .join(dataset)
            .join("norm_stats.json")
            .is_file()
    );
    let (code, out, err) = export(&[
        "--to=lerobot",
        "--out=b",
        "--no-ema",
        "--asset-id=org/set",
        "--max-shard-size=1MB",
    ]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.starts_with("weights of step 1 (params.safetensors)") && out.contains("model-00002-of-"),
        "{out}"
    );
    assert_eq!(values(&dir.path().join("b"), false), scaled(1.0));
    let stats = fs::read_to_string(dir.path().join("b/assets/org/set/norm_stats.json")).unwrap();
    assert_eq!(stats, "{\"norm_stats\": {}}");
    for (wrong, code, words) in [
        (&["--to=openpi", "--out=a"][..], 5, "is there already"),
        (&["--to=openpi", "--out=c", "--asset-id=../x"], 2, "--asset-id"),
        (&["--to=torch", "--out=c"], 2, "openpi, lerobot"),
        (&["--to=openpi", "--out=c", "--max-shard-size=few"], 2, "5GB"),
    ] {
        let (found, _, err) = export(wrong);
        assert!(found == Some(code) && err.contains(words), "{found:?} {err}");
    }
    assert!(!dir.path().join("c").exists());

    // Back, and from Orbax.
    let (code, _, err) = acrlpd(dir.path(), &["checkpoint", "import", "b", "--out", "back.safetensors"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(values(&dir.path().join("back.safetensors"), false), scaled(1.0));
    let tiny_arrays = golden("orbax_tiny/params").display().to_string();
    let (code, _, err) = acrlpd(dir.path(), &["checkpoint", "import", &tiny_arrays, "--out", "d"]);
    assert!(
        code == Some(5) && err.contains("31 tensors are missing (") && err.contains("`extra/zeros`)"),
        "{err}"
    );
}

#[test]
fn the_program_shows_norms_and_differences() {
    let dir = TempDir::new().unwrap();
    run(&dir.path().join("run"), 1);
    run(&dir.path().join("run"), 3);
    let inspect = |args: &[&str]| {
        let (code, out, err) = acrlpd(dir.path(), &[&["checkpoint", "inspect", "--json"][..], args].concat());
        assert_eq!(code, Some(0), "{err}");
        serde_json::from_str::<serde_json::Value>(&out).unwrap()
    };
    let shown = inspect(&["run/3", "--diff", "run/1"]);
    let plain = read_plain(golden_weights(false));
    let squares = |part: &str| -> f64 {
        let of = plain.iter().filter(|(name, _)| name.contains(part));
        of.flat_map(|(_, (_, v))| v)
            .map(|v| (3.0 * f64::from(*v)).powi(2))
            .sum()
    };
    let rooms = shown["rooms"].as_array().unwrap();
    let names: Vec<_> = rooms.iter().map(|room| room["room"].as_str().unwrap()).collect();
    assert_eq!(names, ["vision", "language", "expert"]);
    let expected = (squares("vision_tower") + squares("multi_modal_projector")).sqrt();
    let found = rooms[0]["l2"].as_f64().unwrap();
    assert!((found / expected - 1.0).abs() < 1e-6, "{found} {expected}");
    let parameters: u64 = rooms.iter().map(|room| room["parameters"].as_u64().unwrap()).sum();
    assert_eq!(parameters as usize, plain.values().map(|(_, v)| v.len()).sum::<usize>());
    assert_eq!(shown["diff"]["config"], serde_json::json!([["seed", "3", "1"]]));
    for room in shown["diff"]["rooms"].as_array().unwrap() {
        assert!((room["relative_l2"].as_f64().unwrap() - 2.0).abs() < 1e-6, "{room}");
        assert_eq!(room["unmatched"], 0);
    }
    assert_eq!(inspect(&["run/3", "--quick"])["rooms"], serde_json::Value::Null);
    let other = golden_weights(true).display().to_string();
    let shown = inspect(&["run/1", "--diff", &other]);
    assert_eq!(shown["diff"]["config"], serde_json::Value::Null);
    assert!(shown["diff"]["rooms"][2]["unmatched"].as_u64().unwrap() > 0);
}

#[test]
fn a_disk_that_fills_up_leaves_nothing() {
    let source = golden_weights(false).display().to_string();
    let (mut at, mut failures) = (0, 0);
    loop {
        let dir = TempDir::new().unwrap();
        let out = Command::cargo_bin("acrlpd")
            .unwrap()
            .current_dir(dir.path())
            .env("ACRLPD_DISK_FAULT", format!("full@{at}..{}@out", at + 1))
            .args(["checkpoint", "import", &source, "--out", "out"])
            .output()
            .unwrap();
        if out.status.success() {
            assert_eq!(values(&dir.path().join("out"), false).len(), 124);
            break;
        }
        let message = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(5), "{message}");
        assert!(message.contains("cannot write"), "{message}");
        assert!(!dir.path().join("out").exists(), "operation {at}");
        (at, failures) = (at + 13, failures + 1);
    }
    assert!(failures > 5);
}
