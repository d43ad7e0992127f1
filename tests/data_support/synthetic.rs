//! Small LeRobot v2.1 datasets written on the spot, whole or broken in one chosen way.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, FixedSizeListArray, Float32Array, Int64Array, ListArray, RecordBatch,
    StringArray, StructArray,
};
use arrow_schema::{DataType, Field};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

pub const HEIGHT: usize = 6;
pub const WIDTH: usize = 8;
/// State width, action width.
pub const STATE: usize = 3;
pub const ACTION: usize = 2;

pub type Table = Vec<(String, ArrayRef)>;
type EditTable = dyn Fn(usize, &mut Table);
type EditInfo = dyn Fn(&mut Value);

/// How to write a dataset.
pub struct Recipe {
    /// Length of each episode.
    pub lengths: Vec<usize>,
    /// Rows of a parquet row group.
    pub row_group: usize,
    /// Bytes of a column's dictionary from which on values are written plainly.
    pub dictionary: usize,
    /// Changes an episode's table before it is written.
    pub edit_table: Box<EditTable>,
    /// Changes info.json before it is written.
    pub edit_info: Box<EditInfo>,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            lengths: vec![5, 7, 4],
            row_group: 1000,
            dictionary: 1 << 20,
            edit_table: Box::new(|_, _| ()),
            edit_info: Box::new(|_| ()),
        }
    }
}

impl Recipe {
    pub fn table(edit: impl Fn(usize, &mut Table) + 'static) -> Self {
        Recipe {
            edit_table: Box::new(edit),
            ..Default::default()
        }
    }

    pub fn info(edit: impl Fn(&mut Value) + 'static) -> Self {
        Recipe {
            edit_info: Box::new(edit),
            ..Default::default()
        }
    }

    /// Writes the dataset into the folder `root`.
    pub fn write(&self, root: &Path) {
        fs::create_dir_all(root.join("meta")).unwrap();
        fs::create_dir_all(root.join("data/chunk-000")).unwrap();
        fs::create_dir_all(root.join("images")).unwrap();
        let total: usize = self.lengths.iter().sum();
        let mut info = json!({
            "codebase_version": "v2.1", "robot_type": "toy", "total_episodes": self.lengths.len(),
            "total_frames": total, "chunks_size": 1000, "fps": 10,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "features": {
                "state": {"dtype": "float32", "shape": [STATE], "names": null},
                "action": {"dtype": "float32", "shape": [ACTION], "names": null},
                "reward": {"dtype": "float32", "shape": [1], "names": null},
                "cam_a": {"dtype": "image", "shape": [3, HEIGHT, WIDTH], "names": ["channels", "height", "width"]},
                "cam_b": {"dtype": "image", "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channel"]},
                "note": {"dtype": "string", "shape": [1], "names": null},
                "index": {"dtype": "int64", "shape": [1], "names": null}
            }
        });
        (self.edit_info)(&mut info);
        fs::write(root.join("meta/info.json"), format!("{info:#}")).unwrap();
        fs::write(
            root.join("meta/tasks.jsonl"),
            "{\"task_index\": 0, \"task\": \"stack\"}\n",
        )
        .unwrap();
        let mut episodes = String::new();
        let mut start = 0;
        for (episode, length) in self.lengths.iter().copied().enumerate() {
            episodes += &format!(
                "{}\n",
                json!({"episode_index": episode, "tasks": ["stack"], "length": length})
            );
            let mut table = table(episode, start, length);
            (self.edit_table)(episode, &mut table);
            self.write_table(
                &root.join(format!("data/chunk-000/episode_{episode:06}.parquet")),
                table,
            );
            start += length;
        }
        fs::write(root.join("meta/episodes.jsonl"), episodes).unwrap();
    }

    fn write_table(&self, path: &Path, table: Table) {
        let batch = RecordBatch::try_from_iter_with_nullable(table.into_iter().map(|(k, a)| (k, a, true))).unwrap();
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(self.row_group))
            .set_data_page_row_count_limit(2)
            .set_write_batch_size(1)
            .set_dictionary_page_size_limit(self.dictionary)
            .build();
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
}

fn table(episode: usize, start: usize, length: usize) -> Table {
    let frames = || start..start + length;
    let integers = |f: &dyn Fn(usize) -> i64| Arc::new(Int64Array::from_iter_values(frames().map(f))) as ArrayRef;
    let reward = Float32Array::from_iter_values(frames().map(|f| if f + 1 == start + length { 1.0 } else { 0.0 }));
    let pictures = |camera: usize| images(frames().map(|f| (Some(png(&pixels(camera, f))), None)));
    let named: Vec<(&str, ArrayRef)> = vec![
        ("state", list(frames().map(|f| vector(STATE, f)))),
        ("action", fixed(ACTION, frames().map(|f| vector(ACTION, f)))),
        ("reward", Arc::new(reward)),
        ("cam_a", pictures(0)),
        ("cam_b", pictures(1)),
        (
            "note",
            Arc::new(StringArray::from_iter_values(frames().map(|f| format!("frame {f}")))),
        ),
        ("index", integers(&|f| f as i64)),
        ("frame_index", integers(&|f| (f - start) as i64)),
        ("episode_index", integers(&|_| episode as i64)),
        ("task_index", integers(&|_| 0)),
    ];
    named.into_iter().map(|(k, a)| (k.to_owned(), a)).collect()
}

/// What a state or action of a frame holds.
pub fn vector(width: usize, frame: usize) -> Vec<f32> {
    (0..width).map(|i| (10 * frame + i) as f32).collect()
}

/// What a camera shows at a frame.
pub fn pixels(camera: usize, frame: usize) -> Vec<u8> {
    (0..HEIGHT * WIDTH * 3)
        .map(|i| (i * 5 + frame * 3 + camera * 101) as u8)
        .collect()
}

pub fn png(pixels: &[u8]) -> Vec<u8> {
    png_of(WIDTH, HEIGHT, png::ColorType::Rgb, pixels)
}

pub fn png_of(width: usize, height: usize, color: png::ColorType, pixels: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(color);
    encoder.write_header().unwrap().write_image_data(pixels).unwrap();
    out
}

/// `List<f32>`.
pub fn list(rows: impl Iterator<Item = Vec<f32>>) -> ArrayRef {
    Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(
        rows.map(|r| Some(r.into_iter().map(Some))),
    ))
}

/// `FixedSizeList<f32>`.
pub fn fixed(width: usize, rows: impl Iterator<Item = Vec<f32>>) -> ArrayRef {
    let rows = rows.map(|r| Some(r.into_iter().map(Some)));
    Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(
        rows,
        width as i32,
    ))
}

/// `Struct{bytes, path}`.
pub fn images(cells: impl Iterator<Item = (Option<Vec<u8>>, Option<String>)>) -> ArrayRef {
    let (bytes, paths): (Vec<_>, Vec<_>) = cells.unzip();
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter(bytes));
    let paths: ArrayRef = Arc::new(StringArray::from_iter(paths));
    Arc::new(StructArray::from(vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), bytes),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ]))
}

pub fn floats(values: impl Iterator<Item = f32>) -> ArrayRef {
    Arc::new(Float32Array::from_iter_values(values))
}

pub fn bools(values: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(BooleanArray::from_iter(values.map(Some)))
}

/// Replaces (or adds) a column.
pub fn set(table: &mut Table, key: &str, array: ArrayRef) {
    match table.iter_mut().find(|(k, _)| k == key) {
        Some(entry) => entry.1 = array,
        None => table.push((key.to_owned(), array)),
    }
}
