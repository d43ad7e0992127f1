//! Checkpoints of ours, for `eval`, `sample`, `checkpoint inspect` and `train --resume`.

use std::fs::{self, File};
use std::path::Path;
use std::sync::OnceLock;

use acrlpd::checkpoint::{RunState, begin, plan, state};
use acrlpd::config::Config;
use acrlpd::model::tables;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::room::{Row, check, copy, cut, dataset, flip, replace, row};

const RUN: &str = "out/debug/x";
const STEP: &str = "out/debug/x/7";
const EVAL: &str = "eval --checkpoint=out/debug/x/7 --data=data";

/// What may differ from a good checkpoint.
pub struct Content {
    format: u32,
    pi05: bool,
    config: String,
    stats: String,
}

impl Content {
    pub fn good() -> Content {
        let stats = json!({"mean": vec![0.0; 14], "std": vec![1.0; 14]});
        Content {
            format: state::FORMAT,
            pi05: false,
            config: Config::load("debug").unwrap().to_toml(),
            stats: json!({"norm_stats": {"state": stats, "actions": stats}}).to_string(),
        }
    }

    /// Saves step 7 of the run in `run` as a run would; what comes after π₀'s parameters is not looked at here, and short.
    pub fn save(self, run: &Path) {
        let mut config = Config::load("debug").unwrap();
        config.model.pi05 = self.pi05;
        let mut found = RunState::now(7, 42, "debug");
        found.format = self.format;
        let mut draft = begin(run, found).unwrap();
        let params = plan("", &tables::pi0(&config.pi0_dims()));
        let short = vec![("x".to_owned(), vec![100])];
        for (name, tensors) in [
            (state::PARAMS, &params),
            (state::CRITIC, &short),
            (state::OPTIMIZER, &short),
        ] {
            let mut file = draft.tensors(name, tensors).unwrap();
            for (tensor, shape) in tensors {
                file.write(tensor, &vec![0.0; shape.iter().product()]).unwrap();
            }
            draft.keep(file).unwrap();
        }
        draft.text(state::CONFIG, &self.config).unwrap();
        draft.text(state::NORM_STATS, &self.stats).unwrap();
        draft.commit(5).unwrap();
    }
}

/// The dataset, and a run with one good checkpoint.
fn room(dir: &Path) {
    static GOOD: OnceLock<TempDir> = OnceLock::new();
    let good = GOOD.get_or_init(|| {
        let good = TempDir::new().unwrap();
        Content::good().save(&good.path().join(RUN));
        good
    });
    dataset(dir);
    copy(good.path(), dir);
}

/// Saves another checkpoint in its place, with hashes that are right.
fn saved(dir: &Path, change: impl FnOnce(&mut Content)) {
    let mut content = Content::good();
    change(&mut content);
    fs::remove_dir_all(dir.join("out")).unwrap();
    content.save(&dir.join(RUN));
}

fn file(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join(STEP).join(name)
}

/// Changes the manifest, and its hash with it.
fn manifest(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = file(dir, "manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json["files"]);
    let sorted: std::collections::BTreeMap<String, Value> = serde_json::from_value(json["files"].clone()).unwrap();
    json["files"] = serde_json::to_value(&sorted).unwrap();
    let hash = xxhash_rust::xxh3::xxh3_64(json["files"].to_string().as_bytes());
    json["xxh3"] = format!("{hash:016x}").into();
    fs::write(path, serde_json::to_string_pretty(&json).unwrap()).unwrap();
}

const ROWS: &[Row] = &[
    // Not one.
    row(
        "no folder",
        |_| (),
        "eval --checkpoint=no/such/run",
        5,
        &["`no/such/run` is not a checkpoint", "CONFIG/EXPERIMENT/STEP"],
    ),
    row(
        "an empty folder",
        |dir| fs::create_dir(dir.join("empty")).unwrap(),
        "sample --checkpoint=empty",
        5,
        &["`empty` is not a checkpoint", "manifest.json"],
    ),
    row(
        "an empty folder, to look at",
        |dir| fs::create_dir(dir.join("empty")).unwrap(),
        "checkpoint inspect empty",
        5,
        &["`empty` holds no weights"],
    ),
    row(
        "a file",
        |_| (),
        "eval --checkpoint=tok.model",
        5,
        &["`tok.model` is not a checkpoint"],
    ),
    // Not whole.
    row(
        "no manifest",
        |dir| fs::remove_file(file(dir, "manifest.json")).unwrap(),
        EVAL,
        5,
        &["out/debug/x/7` is not complete", "no manifest.json"],
    ),
    row(
        "half a manifest",
        |dir| cut(&file(dir, "manifest.json"), 0.5),
        EVAL,
        5,
        &["out/debug/x/7` is not complete", "manifest.json cannot be read", "EOF"],
    ),
    row(
        "another manifest",
        |dir| replace(&file(dir, "manifest.json"), "\"bytes\"", " \"bytes\""),
        EVAL,
        5,
        &["out/debug/x/7` is damaged", "manifest.json has other bytes"],
    ),
    row(
        "a manifest that leads out",
        |dir| {
            manifest(dir, |files| {
                files["../../../../tok.model"] = files["state.json"].clone()
            })
        },
        EVAL,
        5,
        &[
            "out/debug/x/7` is damaged",
            "manifest.json names `../../../../tok.model`",
        ],
    ),
    row(
        "a missing file",
        |dir| fs::remove_file(file(dir, state::OPTIMIZER)).unwrap(),
        "sample --checkpoint=out/debug/x/7",
        5,
        &[
            "out/debug/x/7` is not complete",
            "optimizer.safetensors cannot be found",
        ],
    ),
    row(
        "half a file",
        |dir| cut(&file(dir, state::PARAMS), 0.5),
        EVAL,
        5,
        &[
            "out/debug/x/7` is not complete",
            "params.safetensors has",
            "bytes instead of",
        ],
    ),
    row(
        "a bit of state.json",
        |dir| flip(&file(dir, state::STATE)),
        EVAL,
        5,
        &["out/debug/x/7` is damaged", "state.json has other bytes"],
    ),
    row(
        "a bit of config.toml",
        |dir| flip(&file(dir, state::CONFIG)),
        EVAL,
        5,
        &["out/debug/x/7` is damaged", "config.toml has other bytes"],
    ),
    row(
        "a bit of norm_stats.json",
        |dir| flip(&file(dir, state::NORM_STATS)),
        EVAL,
        5,
        &["out/debug/x/7` is damaged", "norm_stats.json has other bytes"],
    ),
    row(
        "a bit of params.safetensors",
        |dir| flip(&file(dir, state::PARAMS)),
        "sample --checkpoint=out/debug/x/7",
        5,
        &["out/debug/x/7` is damaged", "` in params.safetensors has other bytes"],
    ),
    row(
        "a bit of critic.safetensors",
        |dir| flip(&file(dir, state::CRITIC)),
        EVAL,
        5,
        &["out/debug/x/7` is damaged", "`x` in critic.safetensors has other bytes"],
    ),
    row(
        "a bit of optimizer.safetensors",
        |dir| flip(&file(dir, state::OPTIMIZER)),
        "TRAIN --resume",
        5,
        &[
            "no checkpoint in `out/debug/x`",
            "`x` in optimizer.safetensors has other bytes",
            "--overwrite",
        ],
    ),
    row(
        "half of what is started from",
        |dir| {
            cut(&file(dir, state::PARAMS), 0.5);
            fs::rename(dir.join("out"), dir.join("old")).unwrap();
        },
        "TRAIN --set=model.weights=old/debug/x/7",
        5,
        &["old/debug/x/7/params.safetensors` is not a whole safetensors file"],
    ),
    // Whole, and of no use.
    row(
        "of a later version",
        |dir| saved(dir, |content| content.format = 99),
        EVAL,
        5,
        &["out/debug/x/7` has format 99", "newer version"],
    ),
    row(
        "of a later version, to go on from",
        |dir| saved(dir, |content| content.format = 99),
        "TRAIN --resume",
        5,
        &["out/debug/x/7` has format 99", "newer version"],
    ),
    row(
        "a configuration that is no TOML",
        |dir| saved(dir, |content| content.config = "batch_size = = 8".into()),
        EVAL,
        2,
        &["out/debug/x/7/config.toml` line 1", "not TOML"],
    ),
    row(
        "a configuration with other keys",
        |dir| saved(dir, |content| content.config.insert_str(0, "batch_sise = 8\n")),
        EVAL,
        2,
        &["out/debug/x/7/config.toml` line 1", "batch_sise"],
    ),
    row(
        "statistics of nothing",
        |dir| saved(dir, |content| content.stats = "{}".into()),
        "TRAIN --resume",
        3,
        &["out/debug/x/7/norm_stats.json`", "`norm_stats.state` is missing"],
    ),
    row(
        "π₀.₅ to go on from",
        |dir| saved(dir, |content| content.pi05 = true),
        "TRAIN --resume",
        5,
        &["params.safetensors` holds π₀.₅, but", "model.pi05 = true"],
    ),
    row(
        "other sizes to go on from",
        |_| (),
        "TRAIN --resume --set=model.dims.expert_mlp=80",
        5,
        &["params.safetensors` does not fit", "of another shape", "[model]"],
    ),
    row(
        "saved without an average",
        |_| (),
        "eval --checkpoint=out/debug/x/7 --data=data --ema",
        5,
        &["out/debug/x/7` is not complete", "it was saved without ema.safetensors"],
    ),
    row(
        "in front of no dataset",
        |_| (),
        "eval --checkpoint=out/debug/x/7 --data=no/such/data",
        3,
        &["no dataset at", "no/such/data"],
    ),
    // In the way of another run.
    row(
        "checkpoints that are there already",
        |_| (),
        "TRAIN",
        2,
        &[
            "`out/debug/x` already holds checkpoints up to step 7",
            "--resume",
            "--overwrite",
        ],
    ),
    row(
        "another program trains here",
        |dir| {
            let lock = File::create(dir.join(RUN).join(".lock")).unwrap();
            lock.try_lock().unwrap();
            // Held until this program ends.
            std::mem::forget(lock);
        },
        "TRAIN --resume",
        2,
        &["`out/debug/x` is being trained by", "--exp-name"],
    ),
];

#[test]
fn broken_checkpoints() {
    check(room, ROWS);
}
