//! Orbax checkpoints: what Orbax and TensorStore wrote, and everything that can be wrong with it.

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use acrlpd::checkpoint::orbax::{Orbax, locate};
use checkpoint_support::golden;
use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::Dtype;
use serde::Deserialize;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Debug, PartialEq, Deserialize)]
struct Expected {
    dtype: Dtype,
    shape: Vec<usize>,
    xxh3: String,
}

fn whole(orbax: &Orbax, path: &str) -> Vec<u8> {
    let info = orbax.arrays().find(|a| a.path == path).expect("it is there");
    let rows = info.shape.first().copied().unwrap_or(1);
    orbax.rows(path, 0..rows).unwrap_or_else(|e| panic!("{e}"))
}

fn described(orbax: &Orbax) -> BTreeMap<String, Expected> {
    let describe = |a: acrlpd::checkpoint::orbax::ArrayInfo| Expected {
        dtype: a.dtype,
        shape: a.shape.to_vec(),
        xxh3: format!("{:016x}", xxh3_64(&whole(orbax, a.path))),
    };
    orbax.arrays().map(|a| (a.path.to_owned(), describe(a))).collect()
}

fn expected() -> BTreeMap<String, Expected> {
    serde_json::from_str(&fs::read_to_string(golden("orbax_tiny/expected.json")).unwrap()).unwrap()
}

#[test]
fn every_array_has_the_bytes_that_orbax_restores() {
    let orbax = Orbax::open(&golden("orbax_tiny/params")).unwrap();
    assert_eq!(described(&orbax), expected());
}

#[test]
fn training_checkpoints_are_found_and_value_is_no_part_of_a_name() {
    let params = golden("orbax_tiny/train_ckpt/7/params");
    for path in [
        "orbax_tiny/train_ckpt",
        "orbax_tiny/train_ckpt/7",
        "orbax_tiny/train_ckpt/7/params",
    ] {
        assert_eq!(locate(&golden(path)).unwrap(), Some(params.clone()));
    }
    assert_eq!(
        locate(&golden("orbax_tiny")).unwrap(),
        Some(golden("orbax_tiny/params"))
    );
    assert_eq!(locate(&golden("tokenizer")).unwrap(), None);
    let all = expected();
    let found = described(&Orbax::open(&params).unwrap());
    assert_eq!(found.len(), 4);
    for (path, array) in found {
        assert_eq!(array, all[&path], "{path}");
    }
}

/// The values of a fixture, see its README.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((7 * i) % 61) as f32).collect()
}

#[test]
fn interior_nodes_numbered_manifests_clipped_and_missing_chunks() {
    let orbax = Orbax::open(&golden("orbax_nodes")).unwrap();
    let centred = |n: usize| numbers(n).into_iter().map(|x| (x - 30.0) / 8.0);
    let f32s = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(whole(&orbax, "a/clipped"), f32s(centred(210).collect()));
    assert_eq!(whole(&orbax, "a/plain"), f32s(centred(45).collect()));
    assert_eq!(
        whole(&orbax, "a/half"),
        centred(24)
            .flat_map(|v| f16::from_f32(v).to_le_bytes())
            .collect::<Vec<u8>>()
    );
    assert_eq!(
        whole(&orbax, "b/bf16"),
        centred(132)
            .flat_map(|v| bf16::from_f32(v).to_le_bytes())
            .collect::<Vec<u8>>()
    );
    assert_eq!(
        whole(&orbax, "b/ints"),
        numbers(11)
            .iter()
            .flat_map(|v| (*v as i32).to_le_bytes())
            .collect::<Vec<u8>>()
    );
    assert_eq!(whole(&orbax, "b/zeros"), [0; 120]);
    let holes = (0..48).map(|i| {
        if (2..4).contains(&(i / 6)) && i % 6 < 3 {
            1.5
        } else {
            0.0
        }
    });
    assert_eq!(whole(&orbax, "b/holes"), f32s(holes.collect()));
    for row in 0..12 {
        let values = (0..5).map(|i| (i + row) as f32).collect();
        assert_eq!(whole(&orbax, &format!("c/row{row}")), f32s(values));
    }
    assert_eq!(orbax.arrays().count(), 19);
}

#[test]
fn rows_in_any_order_are_the_rows_of_the_whole() {
    for (folder, path) in [
        ("orbax_nodes", "a/clipped"),
        ("orbax_nodes", "a/plain"),
        ("orbax_nodes", "b/holes"),
        ("orbax_tiny/params", "extra/big"),
        ("orbax_tiny/params", "PaliGemma/llm/layers/mlp/gating_einsum"),
    ] {
        let orbax = Orbax::open(&golden(folder)).unwrap();
        let (all, info) = (whole(&orbax, path), orbax.arrays().find(|a| a.path == path).unwrap());
        let (rows, row) = (info.shape[0], all.len() / info.shape[0]);
        for (from, to) in [
            (0, 1),
            (1, 2),
            (2, rows),
            (0, rows),
            (rows - 1, rows),
            (1, rows),
            (1, 1),
            (0, 2),
        ] {
            assert_eq!(
                orbax.rows(path, from..to).unwrap(),
                all[from * row..to * row],
                "{path} {from} {to}"
            );
        }
        let message = orbax.rows(path, 0..rows + 1).unwrap_err().to_string();
        assert!(message.contains("it has no rows"), "{message}");
    }
}

/// A copy of a fixture that may be damaged.
fn copy(name: &str) -> TempDir {
    fn deep(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            let target = to.join(entry.file_name());
            match entry.path().is_dir() {
                true => deep(&entry.path(), &target),
                false => fs::write(&target, fs::read(entry.path()).unwrap()).unwrap(),
            }
        }
    }
    let dir = TempDir::new().unwrap();
    deep(&golden(name), dir.path());
    dir
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        match entry.path().is_dir() {
            true => all.extend(files(&entry.path())),
            false => all.push(entry.path()),
        }
    }
    all.sort();
    all
}

/// Opens and reads everything.
fn error(folder: &Path) -> String {
    let opened = Orbax::open(folder);
    let failed = match &opened {
        Err(e) => e.to_string(),
        Ok(orbax) => {
            let rows = |shape: &[usize]| shape.first().copied().unwrap_or(1);
            let read = |a: acrlpd::checkpoint::orbax::ArrayInfo| orbax.rows(a.path, 0..rows(a.shape)).err();
            orbax.arrays().find_map(read).expect("nothing is wrong").to_string()
        }
    };
    assert!(
        failed.contains(&folder.display().to_string()) && !failed.contains('\n'),
        "{failed}"
    );
    failed
}

#[test]
fn missing_files_are_named() {
    for name in ["manifest.ocdbt", "_METADATA"] {
        let dir = copy("orbax_nodes");
        fs::remove_file(dir.path().join(name)).unwrap();
        assert!(error(dir.path()).contains(name));
    }
    let dir = copy("orbax_nodes");
    for file in files(dir.path()) {
        if file
            .file_name()
            .is_some_and(|n| n.to_string_lossy().starts_with("manifest.0"))
        {
            fs::remove_file(file).unwrap();
        }
    }
    assert!(error(dir.path()).contains("numbered manifests, but there are none"));
    let dir = copy("orbax_nodes");
    fs::remove_dir_all(dir.path().join("d")).unwrap();
    assert!(error(dir.path()).contains("cannot read"));
}

#[test]
fn arrays_that_cannot_be_read_are_named() {
    let with = |from: &str, to: &str| {
        let dir = copy("orbax_nodes");
        let path = dir.path().join("_METADATA");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from));
        fs::write(path, text.replace(from, to)).unwrap();
        error(dir.path())
    };
    assert!(with("\"key\": \"clipped\"", "\"key\": \"gone\"").contains("`params.a.gone`: it is not in the store"));
    assert!(with("\"key\": \"clipped\"", "\"key\": \"plain\"").contains("`a/plain` occurs twice"));
    assert!(with("\"use_zarr3\": false", "\"use_zarr3\": true").contains("zarr 3"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every bit of manifests and nodes is under a checksum, so that what is read is an error or what was written; the
    /// chunks have none of their own, but never are read as more or less than they should be.
    #[test]
    fn damage_is_an_error_or_numbers(which in 0..64usize, at in any::<prop::sample::Index>(), bit in 0..8u32, cut: bool) {
        let dir = copy("orbax_nodes");
        let files: Vec<_> = files(dir.path()).into_iter().filter(|f| !f.ends_with("README.md")).collect();
        let path = &files[which % files.len()];
        let mut bytes = fs::read(path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        fs::write(path, bytes).unwrap();
        let Ok(orbax) = Orbax::open(dir.path()) else { return Ok(()) };
        for array in orbax.arrays() {
            let rows = array.shape.first().copied().unwrap_or(1);
            if let Ok(bytes) = orbax.rows(array.path, 0..rows) {
                let elements: usize = array.shape.iter().product();
                prop_assert_eq!(bytes.len(), elements * array.dtype.bitsize() / 8);
            }
        }
    }
}

#[test]
fn every_bit_of_manifests_and_nodes_counts() {
    let original = expected();
    let source = golden("orbax_tiny/params");
    for name in ["manifest.ocdbt", "d/03fd5c544cdaa0eed54c1cd799a4f8f5"] {
        let bytes = fs::read(source.join(name)).unwrap();
        for at in (0..bytes.len()).step_by(bytes.len() / 60 + 1) {
            let dir = copy("orbax_tiny/params");
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(dir.path().join(name), damaged).unwrap();
            if let Ok(orbax) = Orbax::open(dir.path()) {
                // A data file may hold more than this version's nodes.
                assert_eq!(described(&orbax), original, "{name} at {at}");
            }
        }
    }
}
