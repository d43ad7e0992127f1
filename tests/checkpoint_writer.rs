//! The streaming writer: files that others can read, and refusal of anything that was not announced.

mod checkpoint_support;

use std::path::Path;

use acrlpd::checkpoint::{TensorWriter, Weights};
use checkpoint_support::{golden_weights, read_plain};
use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;
use xxhash_rust::xxh3::xxh3_64;

fn plan(tensors: &[(&str, &[usize])]) -> Vec<(String, Vec<usize>)> {
    tensors
        .iter()
        .map(|(name, shape)| (name.to_string(), shape.to_vec()))
        .collect()
}

#[test]
fn the_golden_weights_survive_a_copy() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("copy.safetensors");
    let plain = read_plain(golden_weights(false));
    let plan: Vec<_> = plain
        .iter()
        .map(|(name, (shape, _))| (name.clone(), shape.clone()))
        .collect();
    let mut writer = TensorWriter::create(&path, &plan).unwrap();
    for (name, (_, values)) in &plain {
        writer.write(name, values).unwrap();
    }
    assert_eq!(writer.path(), path);
    let written = writer.finish().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(
        (written.file.bytes, written.file.xxh3),
        (bytes.len() as u64, xxh3_64(&bytes))
    );
    for ((name, hash), (stored, (_, values))) in std::iter::zip(&written.tensors, &plain) {
        assert_eq!((name, *hash), (stored, xxh3_64(bytemuck::cast_slice(values))));
    }
    assert_eq!(written.tensors.len(), plain.len());
    assert_eq!(read_plain(&path), plain);
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(header.is_multiple_of(8), "the data is aligned");
    assert!(
        bytes
            .windows(15)
            .any(|w| w == b"\"format\":\"pt\"}," || w == b"{\"format\":\"pt\"}")
    );
}

#[test]
fn what_was_not_announced_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    let two = plan(&[("a", &[2, 2]), ("b", &[3])]);
    let start = || TensorWriter::create(&path, &two).unwrap();
    let refused = |result: Result<(), acrlpd::checkpoint::CheckpointError>, words: &str| {
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains(words) && message.contains("x.safetensors"),
            "{message}"
        );
    };
    refused(
        start().write("b", &[0.0; 3]),
        "`b` comes where `a` should, of which 0 of 4 are written",
    );
    refused(
        start().write("a", &[0.0; 5]),
        "`a` gets 5 values, but was announced with 4",
    );
    refused(start().write("c", &[]), "`c` comes where `a` should");
    refused(
        start().finish().map(drop),
        "2 tensors are missing, the first one `a` after 0 of 4 values",
    );
    let mut writer = start();
    writer.write("a", &[0.0; 3]).unwrap();
    refused(writer.write("b", &[0.0; 3]), "of which 3 of 4 are written");
    refused(writer.write("a", &[0.0; 2]), "5 values");
    writer.write("a", &[0.0]).unwrap();
    writer.write("b", &[0.0; 3]).unwrap();
    refused(writer.write("b", &[0.0]), "follows the last tensor");
    writer.finish().unwrap();

    let twice = plan(&[("a", &[1]), ("a", &[1])]);
    refused(TensorWriter::create(&path, &twice).map(drop), "`a` occurs twice");
    let huge = plan(&[("a", &[usize::MAX, 2])]);
    refused(TensorWriter::create(&path, &huge).map(drop), "too many elements");
    let nowhere = TensorWriter::create(Path::new("/nonexistent/x.safetensors"), &two).map(drop);
    assert!(
        nowhere
            .unwrap_err()
            .to_string()
            .contains("cannot write `/nonexistent/x.safetensors`")
    );
}

#[test]
fn scalars_and_empty_tensors() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut writer = TensorWriter::create(&path, &plan(&[("none", &[0, 3]), ("scalar", &[]), ("nil", &[0])])).unwrap();
    writer.write("scalar", &[0.25]).unwrap();
    writer.finish().unwrap();
    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.values("scalar", &[]).unwrap(), [0.25]);
    assert!(weights.values("none", &[0, 3]).unwrap().is_empty());
    let empty = TensorWriter::create(&path, &[]).unwrap();
    empty.finish().unwrap();
    assert_eq!(Weights::open(&path).unwrap().iter().count(), 0);
}

/// Tensors of up to three axes with any bits, and how the values are cut into calls.
fn tensors() -> impl Strategy<Value = Vec<(Vec<usize>, Vec<f32>, usize)>> {
    let tensor = vec(0..8usize, 0..4).prop_flat_map(|shape| {
        let count: usize = shape.iter().product();
        let values = vec(any::<u32>().prop_map(f32::from_bits), count);
        (Just(shape), values, 1..50usize)
    });
    vec(tensor, 0..8)
}

proptest! {
    #[test]
    fn every_bit_comes_back(tensors in tensors(), names in vec("\\PC{1,12}", 8)) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x.safetensors");
        let name = |i: usize| format!("{i}/{}", names[i]);
        let plan: Vec<_> = tensors.iter().enumerate().map(|(i, t)| (name(i), t.0.clone())).collect();
        let mut writer = TensorWriter::create(&path, &plan).unwrap();
        for (i, (_, values, part)) in tensors.iter().enumerate() {
            for part in values.chunks(*part) {
                writer.write(&name(i), part).unwrap();
            }
        }
        writer.finish().unwrap();
        let weights = Weights::open(&path).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for (i, (shape, values, _)) in tensors.iter().enumerate() {
            prop_assert_eq!(bits(&weights.values(&name(i), shape).unwrap()), bits(values));
        }
        prop_assert_eq!(weights.iter().count(), tensors.len());
    }
}
