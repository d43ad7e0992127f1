//! What the program reads from outside, one function a kind of file. Whatever the bytes are, the answer is a value or an
//! error; what was accepted must hold what the assertions here say. The targets of libFuzzer and `tests/fuzz_smoke.rs`
//! call the same functions.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use acrlpd::checkpoint::orbax::Orbax;
use acrlpd::checkpoint::{self, Weights, state};
use acrlpd::config::Config;
use acrlpd::data::transforms::Normalizer;
use acrlpd::data::{DataError, NormKind, NormStats, PromptTokenizer};
use acrlpd::model::tables;
use acrlpd::report::{Run, render};
use acrlpd::train::metrics::Log;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

/// A target: its name, and what it does with some bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 8] = [
    ("config", config),
    ("metrics", metrics),
    ("manifest", manifest),
    ("safetensors", safetensors),
    ("tokenizer", tokenizer),
    ("norm_stats", norm_stats),
    ("dataset", dataset),
    ("orbax", orbax),
];

thread_local! {
    /// Where a target's files lie; made once, because making folders is most of the work.
    static FOLDER: TempDir = tempfile::tempdir().expect("a folder");
}

/// A configuration, as TOML and as JSON. What is valid is written and read back without a difference.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for name in ["fuzz.toml", "fuzz.json"] {
        let Ok(config) = Config::parse(&text, name) else {
            continue;
        };
        for (text, name) in [
            (config.to_toml(), "again.toml"),
            (config.to_json().to_string(), "again.json"),
        ] {
            let again = Config::parse(&text, name).expect("what was written can be read");
            assert_eq!(config.differences(&again), []);
        }
    }
}

/// The rows of a run, and behind a zero byte its `run.json`: what a report shows, and what is left to go on from.
pub fn metrics(data: &[u8]) {
    const STEP: u64 = 20;
    let (rows, run) = divided(data);
    FOLDER.with(|folder| {
        let folder = folder.path();
        fs::write(folder.join(Log::NAME), rows).expect("written");
        fs::write(folder.join("run.json"), run).expect("written");
        if let Ok(run) = Run::read(folder) {
            assert!(render(&[run]).ends_with("</html>\n"));
        }
        drop(Log::open(folder, STEP).expect("whatever is in a log, a run goes on"));
        let kept = fs::read(folder.join(Log::NAME)).expect("it is there");
        for line in kept.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let row: serde_json::Value = serde_json::from_slice(line).expect("only rows are kept");
            assert!(row["step"].as_u64().is_some_and(|step| step <= STEP));
        }
    });
}

/// The manifest of a checkpoint, and behind a zero byte its `state.json`: as they are, and again with the hashes put
/// right, since no mutation would ever guess them.
pub fn manifest(data: &[u8]) {
    let (manifest, state) = divided(data);
    FOLDER.with(|folder| {
        let folder = folder.path();
        fs::write(folder.join(state::STATE), state).expect("written");
        fs::write(folder.join("manifest.json"), manifest).expect("written");
        open(folder);
        if let Some(sealed) = sealed(manifest, state) {
            fs::write(folder.join("manifest.json"), sealed).expect("written");
            open(folder);
        }
    });
}

fn open(folder: &Path) {
    if let Ok(summary) = checkpoint::inspect(folder) {
        assert!(!summary.to_string().is_empty());
    }
    if let Ok(saved) = checkpoint::open(folder) {
        assert!(saved.state().format <= state::FORMAT);
        let _ = saved.config();
        for name in [state::PARAMS, state::CRITIC, state::OPTIMIZER] {
            let _ = saved.tensors(name);
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, Entry>,
    xxh3: String,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    xxh3: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tensors: BTreeMap<String, String>,
}

fn sealed(manifest: &[u8], state: &[u8]) -> Option<String> {
    let hex = |data: &[u8]| format!("{:016x}", xxh3_64(data));
    let mut manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    if let Some(entry) = manifest.files.get_mut(state::STATE) {
        (entry.bytes, entry.xxh3) = (state.len() as u64, hex(state));
    }
    manifest.xxh3 = hex(&serde_json::to_vec(&manifest.files).ok()?);
    serde_json::to_string_pretty(&manifest).ok()
}

/// Weights: a safetensors file, or (if it begins like one) an index of shards beside which that file lies.
pub fn safetensors(data: &[u8]) {
    const SHARD: &[u8] = include_bytes!("../seeds/safetensors/two_tensors");
    FOLDER.with(|folder| {
        let folder = folder.path().join("weights");
        fs::create_dir_all(&folder).expect("a folder");
        let index = data.starts_with(b"{");
        let path = folder.join(if index {
            "model.safetensors.index.json"
        } else {
            "fuzz.safetensors"
        });
        fs::write(folder.join("shard.safetensors"), SHARD).expect("written");
        fs::write(&path, data).expect("written");
        let Ok(weights) = Weights::open(if index { &folder } else { &path }) else {
            return;
        };
        let debug = Config::load("debug").expect("a preset");
        let _ = weights.check(&tables::pi0(&debug.pi0_dims()), "");
        let _ = weights.check(&tables::critic(&debug.critic_dims()), state::ONLINE);
        for tensor in weights.iter() {
            if let Ok(values) = weights.values(tensor.name, tensor.shape) {
                assert_eq!(values.len(), tensor.shape.iter().product::<usize>());
            }
        }
    });
}

/// `meta/info.json` of a LeRobot v3.0 dataset, and behind a zero byte its list of episodes, beside good tables. What is
/// accepted covers all frames without gaps.
pub fn dataset(data: &[u8]) {
    const TASKS: &[u8] = include_bytes!("../../tests/data/aloha_v30_h264/meta/tasks.parquet");
    const TABLES: [&[u8]; 3] = [
        include_bytes!("../../tests/data/aloha_v30_h264/data/chunk-000/file-000.parquet"),
        include_bytes!("../../tests/data/aloha_v30_h264/data/chunk-000/file-001.parquet"),
        include_bytes!("../../tests/data/aloha_v30_h264/data/chunk-000/file-002.parquet"),
    ];
    let (info, episodes) = divided(data);
    FOLDER.with(|folder| {
        let root = folder.path().join("dataset");
        if !root.exists() {
            fs::create_dir_all(root.join("meta/episodes/chunk-000")).expect("a folder");
            fs::create_dir_all(root.join("data/chunk-000")).expect("a folder");
            fs::write(root.join("meta/tasks.parquet"), TASKS).expect("written");
            for (i, table) in TABLES.iter().enumerate() {
                fs::write(root.join(format!("data/chunk-000/file-{i:03}.parquet")), table).expect("written");
            }
        }
        fs::write(root.join("meta/info.json"), info).expect("written");
        fs::write(root.join("meta/episodes/chunk-000/file-000.parquet"), episodes).expect("written");
        let Ok(dataset) = acrlpd::data::open(&root) else {
            return;
        };
        let frames = dataset.info().total_frames;
        let mut end = 0;
        for episode in dataset.episodes() {
            assert_eq!(episode.start, end);
            end += episode.length;
        }
        assert_eq!(end, frames);
        for column in dataset.columns() {
            assert_eq!(column.values.len(), frames * column.width);
        }
        assert!(dataset.locate(frames - 1).0.starts_with(&root));
    });
}

/// A tokenizer, SentencePiece or JSON: prompts in both forms.
pub fn tokenizer(data: &[u8]) {
    const LEN: usize = 48;
    FOLDER.with(|folder| {
        let path = folder.path().join("tokenizer");
        fs::write(&path, data).expect("written");
        let Some(tokenizer) = accepted(PromptTokenizer::from_file(&path)) else {
            return;
        };
        for (text, state) in [
            ("fold the  box", None),
            ("\u{e9}\u{2581}<bos>\n 7", Some(&[-0.5, 2.0][..])),
            ("", None),
        ] {
            let Some(prompt) = accepted(tokenizer.prompt(text, state, LEN)) else {
                continue;
            };
            assert_eq!((prompt.tokens.len(), prompt.mask.len()), (LEN, LEN));
            let embedded = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < tokenizer.ids());
            assert!(prompt.tokens.iter().all(embedded), "{:?}", prompt.tokens);
        }
    });
}

/// Norm stats: what is accepted makes normalisers with finite numbers, and survives its file.
pub fn norm_stats(data: &[u8]) {
    FOLDER.with(|folder| {
        let path = folder.path().join("norm_stats.json");
        fs::write(&path, data).expect("written");
        let Some(stats) = accepted(NormStats::read(&path)) else {
            return;
        };
        for stats in [&stats.state, &stats.actions] {
            let width = stats.mean.len();
            for kind in [NormKind::ZScore, NormKind::Quantile] {
                let Some(normalizer) = accepted(Normalizer::new(stats, kind, "state", width)) else {
                    continue;
                };
                let mut x = vec![1.0; width];
                normalizer.normalize(&mut x);
                normalizer.unnormalize(&mut x);
                assert!(x.iter().all(|x| x.is_finite()), "{x:?}");
            }
        }
        stats.write(&path).expect("written");
        assert_eq!(NormStats::read(&path).expect("what was written can be read"), stats);
    });
}

/// The value, or nothing and an error of one line.
fn accepted<T>(answer: Result<T, DataError>) -> Option<T> {
    let error = match answer {
        Ok(value) => return Some(value),
        Err(error) => error.to_string(),
    };
    assert!(!error.contains('\n'), "{error}");
    None
}

/// An Orbax checkpoint: the lengths (u32, little-endian) of `_METADATA`, manifest and nodes, these three, and the data
/// file. As it is, and again with lengths and checksums put right, since no mutation would ever guess them.
pub fn orbax(data: &[u8]) {
    const LARGE: usize = 1 << 16;
    let (lengths, mut rest) = data.split_at(data.len().min(12));
    let mut parts = lengths.as_chunks::<4>().0.iter().map(|length| {
        let (part, left) = rest.split_at((u32::from_le_bytes(*length) as usize).min(rest.len()));
        rest = left;
        part
    });
    let [metadata, manifest, nodes] = [(); 3].map(|()| parts.next().unwrap_or_default());
    drop(parts);
    FOLDER.with(|folder| {
        let folder = folder.path().join("orbax");
        fs::create_dir_all(folder.join("d")).expect("a folder");
        put(&folder.join("_METADATA"), metadata);
        put(&folder.join("d/data"), rest);
        for seal in [<[u8]>::to_vec as fn(&[u8]) -> Vec<u8>, framed] {
            put(&folder.join("manifest.ocdbt"), &seal(manifest));
            put(&folder.join("d/nodes"), &seal(nodes));
            let Ok(orbax) = Orbax::open(&folder) else {
                continue;
            };
            for array in orbax.arrays() {
                let rows = array.shape.first().copied().unwrap_or(1);
                let row = array.shape.iter().skip(1).product::<usize>() * array.dtype.bitsize() / 8;
                for row_range in [0..rows.min(1), 0..rows.min(LARGE / row.max(1))] {
                    let length = row_range.len() * row;
                    if length <= LARGE
                        && let Ok(bytes) = orbax.rows(array.path, row_range)
                    {
                        assert_eq!(bytes.len(), length);
                    }
                }
            }
            drop(Weights::open(&folder));
        }
    });
}

/// A file with this content. It is a new one, because some file systems write what is overwritten to the disk at once.
fn put(path: &Path, data: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, data).expect("written");
}

/// A manifest or node whose length and checksum are right.
fn framed(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    let length = out.len() as u64;
    if let Some((sealed, crc)) = out.split_last_chunk_mut::<4>() {
        if let Some(field) = sealed.get_mut(4..12) {
            field.copy_from_slice(&length.to_le_bytes());
        }
        *crc = crc32c::crc32c(sealed).to_le_bytes();
    }
    out
}

/// Before and after the first zero byte.
fn divided(data: &[u8]) -> (&[u8], &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    (&data[..at], data.get(at + 1..).unwrap_or_default())
}
