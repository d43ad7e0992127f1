//! Saving on a thread writes what saving in place does, in bounded memory, and says in the end what went wrong.

mod checkpoint_support;

use std::fs;
use std::path::Path;

use acrlpd::checkpoint::{Background, RunState, begin, open, plan, state};
use checkpoint_support::{critic, fill, numbers};
use tempfile::TempDir;

fn now() -> RunState {
    RunState::now(5, 7, "debug")
}

/// Hands a checkpoint over; at most `room` bytes wait.
fn hand_over(dir: &Path, room: usize) -> Background {
    let draft = Background::begin(dir, now(), room).unwrap();
    let table = plan("", &critic());
    draft.tensors(state::CRITIC, table.clone());
    for (i, (name, shape)) in table.iter().enumerate() {
        // In parts, as pages of device memory come.
        for part in numbers(i, shape.iter().product()).chunks(1000) {
            draft.values(name, part.to_vec());
        }
    }
    draft.keep();
    draft.text(state::CONFIG, "seed = 7".into());
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
    draft.text(state::CONFIG, "seed = 7").unwrap();
    let in_place = draft.commit(1).unwrap();
    // Room for everything, for about one part, and for less than one.
    for room in [1 << 30, 5000, 1] {
        let saving = hand_over(&dir.path().join(room.to_string()), room).commit(1);
        assert_eq!(saving.step(), 5);
        let (folder, _) = saving.wait().unwrap();
        open(&folder).unwrap();
        for name in [state::CRITIC, state::CONFIG] {
            let bytes = |folder: &Path| fs::read(folder.join(name)).unwrap();
            assert!(bytes(&folder) == bytes(&in_place), "{name}");
        }
    }
}

#[test]
fn what_is_given_up_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    drop(hand_over(dir.path(), 1 << 30));
    // The thread ends by itself, soon.
    for _ in 0..500 {
        if fs::read_dir(dir.path()).unwrap().count() == 0 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("a draft is left");
}

#[test]
fn trouble_is_told_in_the_end_and_blocks_nobody() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let message = hand_over(&file, 1).commit(1).wait().unwrap_err().to_string();
    assert!(
        message.contains("cannot write") && message.contains("free space"),
        "{message}"
    );

    let draft = hand_over(dir.path(), 1);
    draft.tensors(state::OPTIMIZER, vec![("a".into(), vec![2])]);
    draft.values("b", vec![0.0; 2]);
    let message = draft.commit(1).wait().unwrap_err().to_string();
    assert!(message.contains("`b` comes where `a` should"), "{message}");
}
