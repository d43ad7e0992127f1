//! Demonstrations, and a LeRobot v2.1 dataset of them on disk.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use acrlpd::rng::Key;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;
use serde_json::json;

use crate::data_support::synthetic::{bools, images, list, png_of};
use crate::world::{Demonstrator, Kind, Outcome, PIXELS, Point, World};

/// The task text of every frame.
pub const TASK: &str = "reach";

/// What one demonstration recorded: the observation in front of every action.
pub struct Episode {
    pub kind: Kind,
    pub outcome: Outcome,
    states: Vec<Point>,
    actions: Vec<Point>,
    pictures: Vec<Vec<u8>>,
}

/// The first `count` demonstrations of a seed.
pub fn demonstrate(seed: u64, count: usize) -> Vec<Episode> {
    let all = Key::new(seed);
    (0..count).map(|i| demonstration(all.fold(i as u64))).collect()
}

fn demonstration(key: Key) -> Episode {
    let (mut world, mut demonstrator) = (World::new(key.fold(0)), Demonstrator::new(key.fold(1)));
    let (mut states, mut actions, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
    while world.outcome == Outcome::Walking {
        let action = demonstrator.action(&world);
        states.push(world.at);
        actions.push(action);
        pictures.push(world.picture());
        world.step(action);
    }
    Episode {
        kind: demonstrator.kind,
        outcome: world.outcome,
        states,
        actions,
        pictures,
    }
}

/// How often a perfect clone of the successful demonstrations succeeds: one that is careless, careful or lost as often
/// as they were.
pub fn perfect_clone(episodes: &[Episode]) -> f64 {
    let count = |keep: &dyn Fn(&Episode) -> bool| episodes.iter().filter(|e| keep(e)).count() as f64;
    let success = |e: &Episode| e.outcome == Outcome::Reached;
    let of = |kind: Kind| {
        let reached = count(&|e| success(e) && e.kind == kind);
        reached / count(&success) * reached / count(&|e| e.kind == kind)
    };
    of(Kind::Careless) + of(Kind::Careful) + of(Kind::Lost)
}

/// Writes `episodes` into the folder `root`.
pub fn write(root: &Path, episodes: &[Episode]) {
    fs::create_dir_all(root.join("meta")).unwrap();
    fs::create_dir_all(root.join("data/chunk-000")).unwrap();
    let vector = |dtype: &str, width: usize| json!({"dtype": dtype, "shape": [width], "names": null});
    let info = json!({
        "codebase_version": "v2.1", "robot_type": "point", "total_episodes": episodes.len(),
        "total_frames": episodes.iter().map(|e| e.states.len()).sum::<usize>(), "chunks_size": 1000, "fps": 10,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "features": {
            "observation.state": vector("float32", 2),
            "action": vector("float32", 2),
            "next.success": vector("bool", 1),
            "observation.image": {
                "dtype": "image", "shape": [PIXELS, PIXELS, 3], "names": ["height", "width", "channels"],
            },
        }
    });
    fs::write(root.join("meta/info.json"), format!("{info:#}")).unwrap();
    let task = json!({"task_index": 0, "task": TASK});
    fs::write(root.join("meta/tasks.jsonl"), format!("{task}\n")).unwrap();
    let (mut lines, mut start) = (String::new(), 0);
    for (index, episode) in episodes.iter().enumerate() {
        let length = episode.states.len();
        let line = json!({"episode_index": index, "tasks": [TASK], "length": length});
        lines += &format!("{line}\n");
        let path = root.join(format!("data/chunk-000/episode_{index:06}.parquet"));
        write_table(&path, &table(index, start, episode));
        start += length;
    }
    fs::write(root.join("meta/episodes.jsonl"), lines).unwrap();
}

fn table(index: usize, start: usize, episode: &Episode) -> RecordBatch {
    let frames = || 0..episode.states.len();
    let integers = |f: &dyn Fn(usize) -> usize| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(frames().map(|t| f(t) as i64)))
    };
    let vectors = |points: &[Point]| list(points.iter().map(|p| p.map(|v| v as f32).to_vec()));
    let png = |pixels: &Vec<u8>| (Some(png_of(PIXELS, PIXELS, png::ColorType::Rgb, pixels)), None);
    let success = episode.outcome == Outcome::Reached;
    let columns: [(&str, ArrayRef); 8] = [
        ("observation.state", vectors(&episode.states)),
        ("action", vectors(&episode.actions)),
        (
            "next.success",
            bools(frames().map(|t| success && t + 1 == frames().end)),
        ),
        ("observation.image", images(episode.pictures.iter().map(png))),
        ("index", integers(&|t| start + t)),
        ("frame_index", integers(&|t| t)),
        ("episode_index", integers(&|_| index)),
        ("task_index", integers(&|_| 0)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn write_table(path: &Path, table: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), table.schema(), None).unwrap();
    writer.write(table).unwrap();
    writer.close().unwrap();
}
