//! Golden fixtures and dumps, for `verify` and `bench`.

use std::fs;
use std::path::Path;

use acrlpd::config::Config;
use acrlpd::train::diagnose::Diagnosis;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize, serialize_to_file};
use serde_json::{Value, json};

use crate::checkpoints::Content;
use crate::room::{Row, check, cut, ours, row};

const VERIFY: &str = "verify golden --json";

/// One small group, and what a run leaves of a step that was not finite.
fn room(dir: &Path) {
    for folder in ["golden", "dumps/3"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for file in ["data_ops.json", "data_ops.safetensors"] {
        fs::copy(ours("tests/golden").join(file), dir.join("golden").join(file)).unwrap();
    }
    let description = json!({"dump": {"step": 3, "cameras": [], "diagnosis": Diagnosis::default()}});
    fs::write(dir.join("dumps/3.json"), description.to_string()).unwrap();
}

fn describe(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("golden/data_ops.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

/// Gives a tensor another type and shape.
fn retype(dir: &Path, tensor: &str, dtype: Dtype, shape: &[usize]) {
    let path = dir.join("golden/data_ops.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let zeros = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    let views = file.iter().map(|(name, view)| match name == tensor {
        true => (name, TensorView::new(dtype, shape.to_vec(), &zeros).unwrap()),
        false => (name, view),
    });
    serialize_to_file(views, None, &path).unwrap();
}

/// Whole weights of step 7 and a description, to which a batch belongs.
fn dump(dir: &Path, batch: &[u8]) {
    Content::good().save(&dir.join("dumps"));
    let cameras = Config::load("debug").unwrap().pi0_dims().cameras;
    let description = json!({"dump": {"step": 7, "cameras": cameras, "diagnosis": Diagnosis::default()}});
    fs::write(dir.join("dumps/7.json"), description.to_string()).unwrap();
    fs::write(dir.join("dumps/7.batch.safetensors"), batch).unwrap();
}

/// Two chunks, and their first picture.
fn batch(shape: &[usize]) -> Vec<u8> {
    let pixels = vec![0; shape.iter().product()];
    let views = [
        ("index", TensorView::new(Dtype::I64, vec![2], &[0; 16]).unwrap()),
        (
            "base_0_rgb/current",
            TensorView::new(Dtype::U8, shape.to_vec(), &pixels).unwrap(),
        ),
    ];
    serialize(views, None).unwrap()
}

const ROWS: &[Row] = &[
    row(
        "no folder",
        |_| (),
        "verify no/such/folder --json",
        3,
        &["no/such/folder", "no fixture groups"],
    ),
    row(
        "a folder of something else",
        |dir| {
            fs::remove_file(dir.join("golden/data_ops.json")).unwrap();
            fs::remove_file(dir.join("golden/data_ops.safetensors")).unwrap();
        },
        VERIFY,
        3,
        &["golden", "no fixture groups"],
    ),
    row(
        "no description",
        |dir| fs::remove_file(dir.join("golden/data_ops.json")).unwrap(),
        VERIFY,
        3,
        &["golden/data_ops.safetensors", "is not beside it"],
    ),
    row(
        "half a description",
        |dir| cut(&dir.join("golden/data_ops.json"), 0.5),
        VERIFY,
        3,
        &["golden/data_ops.json cannot be read", "EOF"],
    ),
    row(
        "a description of nothing",
        |dir| fs::write(dir.join("golden/data_ops.json"), "{}").unwrap(),
        VERIFY,
        3,
        &["data_ops", "none of the keys"],
    ),
    row(
        "no tensors",
        |dir| fs::remove_file(dir.join("golden/data_ops.safetensors")).unwrap(),
        "verify golden/data_ops.json --json",
        3,
        &["data_ops"],
    ),
    row(
        "half the tensors",
        |dir| cut(&dir.join("golden/data_ops.safetensors"), 0.5),
        VERIFY,
        3,
        &["golden/data_ops.safetensors cannot be read"],
    ),
    row(
        "a tensor of another type",
        |dir| retype(dir, "norm/mean", Dtype::F64, &[14]),
        VERIFY,
        3,
        &["golden/data_ops.safetensors cannot be read", "norm/mean", "F64"],
    ),
    row(
        "a tensor of another shape",
        |dir| retype(dir, "norm/mean", Dtype::F32, &[3]),
        VERIFY,
        3,
        &[
            "data_ops",
            "norm/mean of data_ops.safetensors is",
            "[3]",
            "the description says",
        ],
    ),
    row(
        "a tensor that nobody lists",
        |dir| {
            describe(dir, |json| drop(json.as_object_mut().unwrap().remove("files")));
            retype(dir, "norm/mean", Dtype::F32, &[3]);
        },
        VERIFY,
        3,
        &["data_ops", "norm/std is [14]", "d being [3]"],
    ),
    row(
        "of no use to bench",
        |_| (),
        "bench step --config=debug --fixture=golden/nothing",
        3,
        &["golden/nothing.json cannot be read", "No such file"],
    ),
    row(
        "no dataset to bench",
        |_| (),
        "bench step --config=debug --data=no/such/data",
        3,
        &["no dataset at", "no/such/data"],
    ),
    // Dumps.
    row(
        "half a dump's description",
        |dir| cut(&dir.join("dumps/3.json"), 0.5),
        "verify dumps/3 --json",
        5,
        &["dumps/3.json` is not a dump of a step", "EOF"],
    ),
    row(
        "a dump without weights",
        |dir| fs::remove_dir(dir.join("dumps/3")).unwrap(),
        "verify dumps/3 --json",
        5,
        &["`dumps/3` is not a checkpoint"],
    ),
    row(
        "a dump without its batch",
        |dir| {
            dump(dir, b"");
            fs::remove_file(dir.join("dumps/7.batch.safetensors")).unwrap();
        },
        "verify dumps/7 --json",
        5,
        &["dumps/7.batch.safetensors` is not a dump of a step", "No such file"],
    ),
    row(
        "a dump with half a batch",
        |dir| dump(dir, &batch(&[2, 56, 56, 3])[..100]),
        "verify dumps/7 --json",
        5,
        &["dumps/7.batch.safetensors` is not a dump of a step"],
    ),
    row(
        "a dump with small pictures",
        |dir| dump(dir, &batch(&[2, 4, 4, 3])),
        "verify dumps/7 --json",
        5,
        &[
            "dumps/7.batch.safetensors` is not a dump",
            "`base_0_rgb/current` is U8 [2, 4, 4, 3] instead of U8 [2, 56, 56, 3]",
        ],
    ),
    row(
        "a dump without a picture",
        |dir| dump(dir, &batch(&[2, 56, 56, 3])),
        "verify dumps/7 --json",
        5,
        &["dumps/7.batch.safetensors` is not a dump", "base_0_rgb/next"],
    ),
    row(
        "a dump with half its weights",
        |_| (),
        "verify dumps/3 --json",
        5,
        &["`dumps/3` is not complete", "manifest.json"],
    ),
];

#[test]
fn broken_fixtures() {
    check(room, ROWS);
}
