//! Pretrained weights.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use acrlpd::config::Config;
use acrlpd::model::tables;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};

use crate::room::{Row, check, cut, dataset, row};

const INSPECT: &str = "checkpoint inspect w.safetensors";
const TRAIN: &str = "TRAIN --set=model.weights=w.safetensors";
const FOLDER: &str = "TRAIN --set=model.weights=shards";
const PI05: &str = "TRAIN --set=model.weights=w.safetensors --set=model.pi05=true";
const BIAS: &str = "action_in_proj.bias";

/// Zeros for π₀ of the configuration's sizes, beside the dataset.
fn room(dir: &Path) {
    dataset(dir);
    weights(dir, false);
    fs::create_dir(dir.join("shards")).unwrap();
}

fn weights(dir: &Path, pi05: bool) {
    let mut config = Config::load("debug").unwrap();
    config.model.pi05 = pi05;
    let table = tables::pi0(&config.pi0_dims());
    let largest = table.tensors().map(|t| t.len()).max().unwrap();
    let zeros = vec![0; 4 * largest];
    let view = |shape: &[usize], n: usize| TensorView::new(Dtype::F32, shape.to_vec(), &zeros[..4 * n]).unwrap();
    let views: Vec<_> = table
        .tensors()
        .map(|t| (t.name.clone(), view(&t.shape, t.len())))
        .collect();
    serialize_to_file(views, None, &dir.join("w.safetensors")).unwrap();
}

/// Type, shape and bytes of tensors by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn edit(dir: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = dir.join("w.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |t: TensorView<'_>| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
    let mut tensors: Tensors = file.iter().map(|(name, t)| (name.to_owned(), stored(t))).collect();
    change(&mut tensors);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    serialize_to_file(views, None, &path).unwrap();
}

fn header(dir: &Path, length: u64, rest: &str) {
    let bytes = [&length.to_le_bytes()[..], rest.as_bytes()].concat();
    fs::write(dir.join("w.safetensors"), bytes).unwrap();
}

/// An index that says in which shard a tensor is, beside one shard with all of them.
fn index(dir: &Path, tensor: &str, shard: &str) {
    fs::rename(dir.join("w.safetensors"), dir.join("shards/a.safetensors")).unwrap();
    let json = serde_json::json!({"weight_map": {BIAS: "a.safetensors", tensor: shard}});
    fs::write(dir.join("shards/model.safetensors.index.json"), json.to_string()).unwrap();
}

const ROWS: &[Row] = &[
    row(
        "missing",
        |dir| fs::remove_file(dir.join("w.safetensors")).unwrap(),
        TRAIN,
        5,
        &["cannot read `", "w.safetensors`", "No such file"],
    ),
    row(
        "missing, to look at",
        |dir| fs::remove_file(dir.join("w.safetensors")).unwrap(),
        INSPECT,
        5,
        &["cannot read `w.safetensors`", "No such file"],
    ),
    row(
        "empty",
        |dir| fs::write(dir.join("w.safetensors"), "").unwrap(),
        TRAIN,
        5,
        &["w.safetensors` is not a whole"],
    ),
    row(
        "of another library",
        |dir| fs::write(dir.join("w.safetensors"), b"PK\x03\x04 archive/data.pkl").unwrap(),
        INSPECT,
        5,
        &["`w.safetensors` is not a whole safetensors file"],
    ),
    row(
        "half of it",
        |dir| cut(&dir.join("w.safetensors"), 0.5),
        TRAIN,
        5,
        &["w.safetensors` is not a whole"],
    ),
    row(
        "a header longer than any file",
        |dir| header(dir, u64::MAX, "{}"),
        INSPECT,
        5,
        &["`w.safetensors` is not a whole safetensors file"],
    ),
    row(
        "a header that is no JSON",
        |dir| header(dir, 8, "{\"a\": [[[["),
        INSPECT,
        5,
        &["`w.safetensors` is not a whole safetensors file"],
    ),
    row(
        "a tensor is missing",
        |dir| edit(dir, |tensors| drop(tensors.remove(BIAS))),
        TRAIN,
        5,
        &["w.safetensors` does not fit the model: 1 tensor is missing (`action_in_proj.bias` [32])"],
    ),
    row(
        "a tensor of another shape",
        |dir| {
            edit(dir, |tensors| {
                tensors.insert(BIAS.into(), (Dtype::F32, vec![31], vec![0; 4 * 31]));
            });
        },
        TRAIN,
        5,
        &[
            "1 tensor is of another shape (`action_in_proj.bias` is [31], not [32])",
            "[model]",
        ],
    ),
    row(
        "whole numbers",
        |dir| {
            edit(dir, |tensors| {
                tensors.get_mut(BIAS).unwrap().0 = Dtype::I32;
            });
        },
        TRAIN,
        5,
        &["F16 and BF16 (`action_in_proj.bias` is I32)"],
    ),
    row(
        "π₀ for π₀.₅",
        |_| (),
        PI05,
        5,
        &["w.safetensors` holds π₀, but", "π₀.₅", "model.pi05 = false"],
    ),
    row(
        "π₀.₅ for π₀",
        |dir| weights(dir, true),
        TRAIN,
        5,
        &["w.safetensors` holds π₀.₅, but", "model.pi05 = true"],
    ),
    // Folders.
    row(
        "an empty folder",
        |_| (),
        FOLDER,
        5,
        &["/shards` holds no weights", "model.safetensors.index.json"],
    ),
    row(
        "of JAX, without its arrays",
        |dir| {
            fs::create_dir(dir.join("shards/params")).unwrap();
            fs::write(dir.join("shards/params/_METADATA"), "{\"tree_metadata\": {}}").unwrap();
        },
        FOLDER,
        5,
        &["/shards/params/manifest.ocdbt`"],
    ),
    row(
        "an index that is no JSON",
        |dir| fs::write(dir.join("shards/model.safetensors.index.json"), "{\"weight_map\": 1}").unwrap(),
        "checkpoint inspect shards",
        5,
        &["shards/model.safetensors.index.json`", "not an index of shards"],
    ),
    row(
        "a missing shard",
        |dir| index(dir, "b", "b.safetensors"),
        FOLDER,
        5,
        &[
            "model.safetensors.index.json` says that `b` is in `b.safetensors`",
            "does not exist",
        ],
    ),
    row(
        "a shard elsewhere",
        |dir| index(dir, "b", "../w.safetensors"),
        "checkpoint inspect shards",
        5,
        &[
            "model.safetensors.index.json` says that `b` is in `../w.safetensors`",
            "not the name of a file",
        ],
    ),
    row(
        "a shard without the tensor",
        |dir| index(dir, "b", "a.safetensors"),
        FOLDER,
        5,
        &[
            "model.safetensors.index.json` says that `b` is in `a.safetensors`",
            "does not hold it",
        ],
    ),
    row(
        "half a shard",
        |dir| {
            index(dir, "b", "a.safetensors");
            cut(&dir.join("shards/a.safetensors"), 0.9);
        },
        FOLDER,
        5,
        &["shards/a.safetensors` is not a whole safetensors file"],
    ),
];

#[test]
fn broken_weights() {
    check(room, ROWS);
}
