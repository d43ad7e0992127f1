//! Saving on threads writes what saving in place does, in bounded memory, and says in the end what went wrong.

mod checkpoint_support;

use std::fs;
use std::path::Path;

use acrlpd::checkpoint::{Background, RunState, begin, open, plan, state};
use checkpoint_support::{critic, fill, numbers};
use tempfile::TempDir;

fn now() -> RunState {
    RunState::now(5, 7, "debug")
}

/// Hands a checkpoint over in two files by as many lanes; at most `room` bytes are under way.
fn hand_over(dir: &Path, lanes: usize, room: usize) -> Background {
    let draft = Background::begin(dir, now(), lanes, room).unwrap();
    let table = plan("", &critic());
    let last = draft.lane(lanes - 1);
    draft.text(state::CONFIG, "seed = 7".into());
    draft.lane(0).tensors(state::CRITIC, table.clone());
    for (i, (name, shape)) in table.iter().enumerate() {
        // In parts, as pages of device memory come.
        for part in numbers(i, shape.iter().product()).chunks(1000) {
            draft.lane(0).values(name, part);
        }
        if lanes > 1 && i == 1 {
            last.tensors(state::PARAMS, vec![("a".into(), vec![3])]);
            last.values("a", &[1.0, 2.0]);
        }
    }
    draft.lane(0).keep();
    if lanes == 1 {
        last.tensors(state::PARAMS, vec![("a".into(), vec![3])]);
        last.values("a", &[1.0, 2.0]);
    }
    last.bytes("a", 3f32.to_le_bytes());
    last.keep();
    draft
}

#[test]
fn the_bytes_are_those_of_saving_in_place() {
    let dir = TempDir::new().unwrap();
    let table = plan("", &critic());
    let mut draft = begin(&dir.path().join("in-place"), now()).unwrap();
    let mut file = draft.tensors(state::CRITIC, &table).unwrap();
    fill(&mut file, &table, 0).unwrap();
    draft.keep(file).unwrap();
    let mut file = draft.tensors(state::PARAMS, &[("a".into(), vec![3])]).unwrap();
    file.write("a", &[1.0, 2.0, 3.0]).unwrap();
    draft.keep(file).unwrap();
    draft.text(state::CONFIG, "seed = 7").unwrap();
    let in_place = draft.commit(1).unwrap();
    // Room for everything, for about one part, and for less than one.
    for (lanes, room) in [(1, 1 << 30), (1, 5000), (1, 1), (2, 1 << 30), (2, 5000), (3, 1)] {
        let saving = hand_over(&dir.path().join(format!("{lanes}-{room}")), lanes, room).commit(1);
        assert_eq!(saving.step(), 5);
        let (folder, _) = saving.wait().unwrap();
        open(&folder).unwrap();
        for name in [state::CRITIC, state::PARAMS, state::CONFIG] {
            let bytes = |folder: &Path| fs::read(folder.join(name)).unwrap();
            assert!(bytes(&folder) == bytes(&in_place), "{name}");
        }
    }
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    for lanes in [1, 3] {
        drop(hand_over(dir.path(), lanes, 1 << 30));
        // The threads end by themselves, soon.
        let ended = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            fs::read_dir(dir.path()).unwrap().count() == 0
        });
        assert!(ended, "a draft is left");
    }
}

#[test]
fn trouble_is_told_in_the_end_and_blocks_nobody() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for lanes in [1, 3] {
        let message = hand_over(&file, lanes, 1).commit(1).wait().unwrap_err().to_string();
        assert!(
            message.contains("cannot write") && message.contains("free space"),
            "{message}"
        );
    }

    for lane in [0, 2] {
        let draft = hand_over(dir.path(), 3, 1);
        draft.lane(lane).tensors(state::OPTIMIZER, vec![("a".into(), vec![2])]);
        draft.lane(lane).values("b", &[0.0; 2]);
        let message = draft.commit(1).wait().unwrap_err().to_string();
        assert!(message.contains("`b` comes where `a` should"), "{message}");
    }

    // A file that was begun and not finished, and half of a number.
    let draft = hand_over(dir.path(), 2, 1);
    draft.lane(1).tensors(state::OPTIMIZER, vec![("a".into(), vec![2])]);
    let message = draft.commit(1).wait().unwrap_err().to_string();
    assert!(message.contains("begun and not finished"), "{message}");
    let draft = hand_over(dir.path(), 2, 1);
    draft.lane(1).tensors(state::OPTIMIZER, vec![("a".into(), vec![2])]);
    draft.lane(1).bytes("a", [0u8; 6]);
    let message = draft.commit(1).wait().unwrap_err().to_string();
    assert!(message.contains("not whole values"), "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "only `file` is left");
}
