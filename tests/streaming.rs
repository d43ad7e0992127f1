//! Gigabytes of weights through little memory: imported, exported, loaded, saved and gone on from piece by piece. Files from elsewhere are
//! sparse, so that only what is written takes up the disk.

mod checkpoint_support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use acrlpd::checkpoint::convert::{LowRank, Names, Target, convert};
use acrlpd::checkpoint::{self, Weights, state};
use acrlpd::config::Config;
use acrlpd::data::{NormStats, Stats};
use acrlpd::gpu::{DType, Gpu};
use acrlpd::model::dims::{Pi0Dims, StackDims};
use acrlpd::model::freeze::Freeze;
use acrlpd::model::params::Room;
use acrlpd::model::tables;
use acrlpd::step::config::StepConfig;
use acrlpd::step::learner::Learner;
use acrlpd::train::handover::{Cut, Handover, Identity};
use acrlpd::train::{recipe, snapshot};
use checkpoint_support::EMBEDDING;
use safetensors::tensor::SafeTensors;

const GIGA: f64 = 1e9;
/// What this process may have in memory at most, with tensors of up to 2.1 GB.
const LITTLE: usize = 800 << 20;

/// Memory is measured of the whole process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Anonymous memory of this process in bytes.
fn anonymous() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("a line");
    let kilobytes: usize = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    1024 * kilobytes
}

/// What `work` gives, and how much anonymous memory the process had at most meanwhile.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let (most, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let value = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        });
        let value = work();
        done.store(true, Ordering::Relaxed);
        value
    });
    (value, most.into_inner())
}

/// The published widths and vocabulary, in few layers.
fn dims() -> Pi0Dims {
    Pi0Dims {
        depth: 2,
        vision_depth: 1,
        ..Pi0Dims::full(20, false)
    }
}

/// A number for a place in a tensor.
fn mark(tensor: usize, place: usize) -> f32 {
    1.0 + (tensor % 8) as f32 + place as f32 / 8.0
}

/// Where tensors have numbers: at their ends, and where pieces meet.
fn places(len: usize) -> Vec<usize> {
    let mut all = vec![0, (4 << 20) - 1, 4 << 20, len / 2, len - 1];
    all.retain(|place| *place < len);
    all
}

/// A file of F32 in which everything but [`places`] is zero.
fn sparse(path: &Path) -> u64 {
    let table = tables::pi0(&dims());
    let (mut offset, mut header) = (0, serde_json::Map::new());
    let mut starts = Vec::new();
    for tensor in table.tensors() {
        let end = offset + 4 * tensor.len() as u64;
        header.insert(
            tensor.name.clone(),
            serde_json::json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        starts.push((offset, tensor.len()));
        offset = end;
    }
    let mut header = serde_json::to_vec(&header).expect("JSON");
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(path).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room");
    file.write_all(&header).expect("room");
    let data = 8 + header.len() as u64;
    file.set_len(data + offset).expect("room");
    for (i, (start, len)) in starts.into_iter().enumerate() {
        for (j, place) in places(len).into_iter().enumerate() {
            let at = data + start + 4 * place as u64;
            file.write_all_at(&mark(i, j).to_le_bytes(), at).expect("room");
        }
    }
    offset
}

/// The numbers are where they were.
fn check(path: &Path, name: impl Fn(&str) -> String) {
    let map = acrlpd::files::map(path).expect("a file");
    let (_, metadata) = SafeTensors::read_metadata(&map).expect("a header");
    let data = 8 + u64::from_le_bytes(map[..8].try_into().expect("8 bytes")) as usize;
    for (i, tensor) in tables::pi0(&dims()).tensors().enumerate() {
        let info = metadata.info(&name(&tensor.name)).expect("the tensor");
        for (j, place) in places(tensor.len()).into_iter().enumerate() {
            let at = data + info.data_offsets.0 + 4 * place;
            let value = f32::from_le_bytes(map[at..at + 4].try_into().expect("4 bytes"));
            // Later marks may lie on the same place in short tensors.
            let last = places(tensor.len())
                .iter()
                .rposition(|p| *p == place)
                .expect("it is one of them");
            assert_eq!(value, mark(i, last.max(j)), "{} at {place}", tensor.name);
        }
    }
}

#[test]
fn three_gigabytes_are_imported_exported_and_loaded_in_pieces() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("source.safetensors");
    let bytes = sparse(&source);
    assert!(bytes > 3_000_000_000, "{bytes}");
    let weights = Weights::open(&source).expect("weights");

    let out = dir.path().join("openpi");
    let target = Target {
        path: &out,
        names: Names::Openpi,
        dtype: None,
        lora: LowRank::Keep,
        shard: 1 << 40,
        texts: &[],
    };
    let since = Instant::now();
    let (converted, used) = measured(|| convert(&weights, &target, |_, _| ()).expect("a disk"));
    println!(
        "exported {:.1} GB in {:.1} s, at most {:.0} MB in memory",
        bytes as f64 / GIGA,
        since.elapsed().as_secs_f64(),
        used as f64 / 1e6
    );
    assert!(used < LITTLE, "{used} bytes were in memory");
    check(&converted.files[0], |name| match name {
        EMBEDDING => checkpoint_support::TIED.into(),
        name => name.into(),
    });
    fs::remove_dir_all(&out).expect("it is there");

    // Onto a device that takes everything and keeps nothing, in halves.
    let gpu = Gpu::dry_cuda(90).expect("always there");
    let config = Config::load_with("rl_fold_box", &[("model.dtype".into(), "bfloat16".into())]).expect("a preset");
    let learner = Learner::new(&gpu, recipe::step_config(&config), dims(), config.critic_dims()).expect("a learner");
    let (loaded, used) = measured(|| snapshot::load(&learner, &weights, |_, _| ()));
    loaded.expect("a device");
    gpu.sync().expect("a device");
    println!("loaded, at most {:.0} MB in memory", used as f64 / 1e6);
    assert!(used < LITTLE, "{used} bytes were in memory");
}

/// Saves a learner through `room` megabytes; the folder, and how long it took.
fn save(learner: &Learner, config: &Config, dir: &Path, room: usize) -> (PathBuf, Duration) {
    let width = Stats {
        mean: vec![0.0; 2],
        std: vec![1.0; 2],
        q01: None,
        q99: None,
    };
    let stats = NormStats {
        state: width.clone(),
        actions: width,
    };
    let stats = &stats;
    let handover = Handover::begin(learner, &Identity { dir, config, stats }, 1, 0, Cut::new(room));
    let saving = handover.expect("a device").finish().expect("a device");
    saving.wait().expect("a disk")
}

#[test]
fn gigabytes_of_state_are_saved_through_a_bounded_room() {
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let gpu = Gpu::dry_cuda(90).expect("always there");
    let config = Config::load_with("rl_fold_box", &[("model.dtype".into(), "float32".into())]).expect("a preset");
    // Weights and their average of the whole model, moments of the expert.
    let dims = Pi0Dims {
        vocab: 32_768,
        ..dims()
    };
    let step = StepConfig {
        freeze: Freeze::default().room(Room::Vision).room(Room::Language),
        dtype: DType::F32,
        ..recipe::step_config(&config)
    };
    let learner = Learner::new(&gpu, step, dims, config.critic_dims()).expect("a learner");
    let dir = tempfile::tempdir().expect("a folder");
    let room = 256;
    let ((folder, took), used) = measured(|| save(&learner, &config, dir.path(), room));
    let files: Vec<_> = fs::read_dir(&folder)
        .expect("a folder")
        .map(|e| e.expect("a file"))
        .collect();
    let bytes: u64 = files.iter().map(|f| f.metadata().expect("a file").len()).sum();
    let shards = files
        .iter()
        .filter(|f| f.file_name().to_string_lossy().contains("-of-"))
        .count();
    assert!(bytes > 2_500_000_000 && shards >= 2, "{bytes} bytes, {shards} shards");
    assert!(used < room * 1_000_000 + (300 << 20), "{used} bytes were in memory");
    checkpoint::open(&folder)
        .expect("a whole checkpoint")
        .tensors(state::PARAMS)
        .expect("parameters");
    drop(files);
    fs::remove_dir_all(&folder).expect("it is there");

    // The same bytes, written plainly: a yardstick for this disk at this moment.
    let plain = Instant::now();
    let block = vec![0u8; 1 << 20];
    let mut file = File::create(dir.path().join("plain")).expect("a file");
    for _ in 0..bytes >> 20 {
        file.write_all(&block).expect("room");
    }
    file.sync_all().expect("a disk");
    let plain = plain.elapsed();
    println!(
        "saved {:.1} GB in {:.1} s ({:.2} GB/s), at most {:.0} MB in memory; plainly written in {:.1} s",
        bytes as f64 / GIGA,
        took.as_secs_f64(),
        bytes as f64 / GIGA / took.as_secs_f64(),
        used as f64 / 1e6,
        plain.as_secs_f64()
    );
}

/// Weights, average and moments of a large prompt table, of which all rows or few learn, before and after.
#[test]
fn a_run_goes_on_without_its_prompt_table_in_memory() {
    const LESS: usize = 200 << 20;
    let _alone = ALONE.lock().unwrap_or_else(|e| e.into_inner());
    let gpu = Gpu::dry_cuda(90).expect("always there");
    let config = Config::load_with("rl_fold_box", &[("model.dtype".into(), "float32".into())]).expect("a preset");
    let dims = Pi0Dims {
        vocab: 1 << 16,
        language: StackDims { width: 2048, mlp: 2048 },
        ..dims()
    };
    let table = 4 * dims.vocab * dims.language.width;
    assert!(table > 2 * LESS);
    let learners = [Some(1000), None].map(|prompt_rows| {
        let step = StepConfig {
            // The table alone learns.
            freeze: Freeze::default().names("*").names("!*embed_tokens*"),
            dtype: DType::F32,
            prompt_rows,
            unused_on_host: false,
            ..recipe::step_config(&config)
        };
        Learner::new(&gpu, step, dims.clone(), config.critic_dims()).expect("a learner")
    });
    let rows: Vec<u32> = (0..900).map(|i| (i * 7919) % (1 << 16)).collect();
    for (from, learner) in ["few", "all"].into_iter().zip(&learners) {
        assert!(learner.touch_only(&rows));
        let dir = tempfile::tempdir().expect("a folder");
        let (folder, _) = save(learner, &config, dir.path(), 256);
        let saved = checkpoint::open(&folder).expect("a whole checkpoint");
        for (to, learner) in ["few", "all"].into_iter().zip(&learners) {
            let (restored, used) = measured(|| snapshot::restore(learner, &saved));
            restored.expect("a device");
            println!(
                "{from} rows saved, {to} learn: at most {:.0} MB in memory",
                used as f64 / 1e6
            );
            assert!(used < LESS, "{from} to {to}: {used} bytes were in memory");
            let learning = learner.touched().map(|touched| touched.len());
            // Nothing has moved where all rows were saved.
            let wanted = if from == "few" { rows.len() } else { 0 };
            assert!(learning.is_none_or(|n| n == wanted), "{learning:?}");
        }
    }
}
