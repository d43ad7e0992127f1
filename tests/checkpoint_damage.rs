//! Damage of any kind ends in one sentence that says where, and the checkpoint before is used.

mod checkpoint_support;

use std::fs;
use std::path::Path;

use acrlpd::checkpoint::{CheckpointError, Weights, newest, open, state};
use checkpoint_support::save;
use tempfile::TempDir;

/// Flips one bit of a file, and asks how that is found; the file is as before afterwards.
fn flipped<T>(path: &Path, at: usize, bit: u32, ask: impl FnOnce() -> T) -> T {
    let sound = fs::read(path).unwrap();
    let mut bytes = sound.clone();
    bytes[at] ^= 1 << bit;
    fs::write(path, bytes).unwrap();
    let answer = ask();
    fs::write(path, sound).unwrap();
    answer
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let dir = TempDir::new().unwrap();
    let folder = save(dir.path(), 1, 1).unwrap();
    let mut files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let (path, name) = entry.map(|e| (e.path(), e.file_name().into_string().unwrap())).unwrap();
        let length = fs::metadata(&path).unwrap().len() as usize;
        // Every byte of what is small, some of what is large, the first and the last always.
        let stride = length.div_ceil(400) | 1;
        for at in (0..length).step_by(stride).chain([length - 1]) {
            let error = flipped(&path, at, (at / stride) as u32 % 8, || open(&folder).unwrap_err());
            let message = error.to_string();
            assert!(
                message.contains(&name) && message.contains("use an earlier step"),
                "{at}: {message}"
            );
            assert!(
                matches!(
                    error,
                    CheckpointError::Damaged { .. } | CheckpointError::Incomplete { .. }
                ),
                "{name} at {at}: {message}"
            );
        }
        files += 1;
    }
    assert_eq!(files, 5);
    open(&folder).unwrap();
}

#[test]
fn the_tensor_in_which_a_bit_has_flipped_is_named() {
    let dir = TempDir::new().unwrap();
    let folder = save(dir.path(), 1, 1).unwrap();
    let path = folder.join(state::CRITIC);
    let bytes = fs::read(&path).unwrap();
    let (length, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    for (name, info) in header.tensors() {
        for at in [info.data_offsets.0, info.data_offsets.1 - 1] {
            let message = flipped(&path, 8 + length + at, 3, || open(&folder).unwrap_err().to_string());
            assert!(
                message.contains(&format!("`{name}` in critic.safetensors")),
                "{message}"
            );
        }
    }
    let message = flipped(&path, 8 + length - 1, 1, || open(&folder).unwrap_err().to_string());
    assert!(message.contains("the header in critic.safetensors"), "{message}");
}

#[test]
fn a_damaged_newest_checkpoint_gives_way_to_the_one_before() {
    let dir = TempDir::new().unwrap();
    for step in [1, 2, 3] {
        save(dir.path(), step, 9).unwrap();
    }
    let critic = |step: u64| dir.path().join(step.to_string()).join(state::CRITIC);
    let found = || {
        let newest = newest(dir.path());
        newest.map(|s| s.unwrap().state().step).map_err(|e| e.to_string())
    };
    assert_eq!(found(), Ok(3));
    flipped(&critic(3), 5000, 0, || {
        assert_eq!(found(), Ok(2));
        flipped(&critic(2), 5000, 0, || {
            assert_eq!(found(), Ok(1));
            flipped(&critic(1), 5000, 0, || {
                let message = found().unwrap_err();
                assert!(
                    message.contains("no checkpoint") && message.contains("/3`") && message.contains("--overwrite"),
                    "{message}"
                );
            });
        });
    });
    assert_eq!(newest(&dir.path().join("nothing")).unwrap().map(drop), None);
}

/// A safetensors file with this header.
fn crafted(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn hostile_files_are_refused_in_one_sentence() {
    let tensor = |name: &str, dtype: &str, shape: &str, offsets: &str| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let f32s = |name: &str, offsets: &str| tensor(name, "F32", "[1]", offsets);
    let of = |parts: &[String]| format!("{{{}}}", parts.join(","));
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("half a length", vec![1; 5]),
        ("only a length", 8u64.to_le_bytes().into()),
        ("the longest header", [u64::MAX.to_le_bytes(), *b"{}      "].concat()),
        (
            "a header of a gigabyte",
            [(1u64 << 30).to_le_bytes(), *b"{}      "].concat(),
        ),
        (
            "a header longer than the file",
            [17u64.to_le_bytes(), *b"{}      "].concat(),
        ),
        ("no UTF-8", [&4u64.to_le_bytes()[..], b"{\"\xff\"".as_slice()].concat()),
        ("no JSON", crafted("x", 0)),
        ("a list", crafted("[]", 0)),
        ("deeply nested", crafted(&"[".repeat(100_000), 0)),
        ("no offsets", crafted(r#"{"a":{"dtype":"F32","shape":[1]}}"#, 4)),
        ("negative offsets", crafted(&of(&[f32s("a", "[-4,0]")]), 4)),
        ("offsets that turn round", crafted(&of(&[f32s("a", "[4,0]")]), 4)),
        (
            "offsets past the end",
            crafted(&of(&[f32s("a", "[0,4]"), f32s("b", "[4,8]")]), 4),
        ),
        (
            "offsets near the end of all numbers",
            crafted(&of(&[f32s("a", "[18446744073709551608,18446744073709551612]")]), 4),
        ),
        (
            "overlapping tensors",
            crafted(&of(&[f32s("a", "[0,4]"), f32s("b", "[2,6]")]), 6),
        ),
        (
            "the same bytes twice",
            crafted(&of(&[f32s("a", "[0,4]"), f32s("b", "[0,4]")]), 4),
        ),
        ("a hole", crafted(&of(&[f32s("a", "[0,4]"), f32s("b", "[8,12]")]), 12)),
        ("bytes behind the last tensor", crafted(&of(&[f32s("a", "[0,4]")]), 8)),
        (
            "a name twice",
            crafted(&of(&[f32s("a", "[0,4]"), f32s("a", "[0,4]")]), 4),
        ),
        (
            "a name twice, elsewhere",
            crafted(&of(&[f32s("a", "[0,4]"), f32s("a", "[4,8]")]), 8),
        ),
        (
            "a shape that is too large",
            crafted(&of(&[tensor("a", "F32", "[2]", "[0,4]")]), 4),
        ),
        (
            "more elements than numbers",
            crafted(&of(&[tensor("a", "F32", "[4294967296,4294967296,4]", "[0,4]")]), 4),
        ),
        (
            "a type that is not",
            crafted(&of(&[tensor("a", "F99", "[1]", "[0,4]")]), 4),
        ),
        ("a wider type", crafted(&of(&[tensor("a", "F64", "[1]", "[0,4]")]), 4)),
    ];
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    for (what, bytes) in files {
        fs::write(&path, bytes).unwrap();
        let message = match Weights::open(&path) {
            Ok(_) => panic!("{what} was taken"),
            Err(error) => error.to_string(),
        };
        assert!(
            message.contains("x.safetensors") && !message.contains('\n'),
            "{what}: {message}"
        );
        assert!(message.len() < 400, "{what}: {message}");
    }
    fs::write(&path, crafted(&of(&[f32s("a", "[0,4]")]), 4)).unwrap();
    assert_eq!(Weights::open(&path).unwrap().values("a", &[1]).unwrap(), [0.0]);
    fs::write(&path, crafted(&of(&[tensor("a", "I32", "[1]", "[0,4]")]), 4)).unwrap();
    let message = Weights::open(&path).unwrap().values("a", &[1]).unwrap_err().to_string();
    assert!(message.contains("I32"), "{message}");
}
