//! Every way a disk can fail, at every single operation of a save: what was there stays, what is new is whole.
//!
//! The disk is simulated on top of the real one: it fills up, fails once, or stops in the middle of an operation; and
//! after it has stopped, what was not synced may be gone: contents, names, or both.

mod checkpoint_support;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once};

use acrlpd::checkpoint::{Background, CheckpointError, RunState, begin, newest, recover, shards, state};
use acrlpd::files::fault::{self, Op, Watch};
use checkpoint_support::numbers;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// From here on nothing new has room; half of this write gets through.
    Full,
    /// This operation fails; the next ones do not.
    Error,
    /// The power goes before this operation.
    Stop,
    /// The power goes in the middle of it.
    Torn,
}

/// What is gone after the power was.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Loss {
    Nothing,
    Contents,
    Names,
    Both,
}

/// A change of a folder that no sync has made durable yet.
#[derive(Debug)]
enum Name {
    Created(PathBuf),
    Renamed(PathBuf, PathBuf),
    /// A copy of what was there.
    Removed(PathBuf, PathBuf),
}

#[derive(Default)]
struct Disk {
    done: usize,
    fault: Option<(usize, Fault)>,
    full: bool,
    off: bool,
    /// Ignores syncs, as cheap drives do.
    lies: bool,
    names: Vec<Name>,
    /// Files whose content is not durable.
    contents: Vec<PathBuf>,
    copies: usize,
}

impl Disk {
    fn before(&mut self, op: &Op<'_>, copies: &Path) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the power is off"));
        }
        let number = self.done;
        self.done += 1;
        let new = matches!(op, Op::Create(_) | Op::Write { .. } | Op::CreateFolder(_));
        let fault = self.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        self.full |= fault == Some(Fault::Full);
        if self.full && new {
            op.half()?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        match fault {
            Some(Fault::Error) => return Err(io::Error::other("input/output error")),
            Some(Fault::Stop) => {
                self.off = true;
                return Err(io::Error::other("the power is off"));
            }
            Some(Fault::Torn) => {
                self.off = true;
                self.note(op, copies);
                op.half()?;
                if let Op::RemoveFolder(path) = op {
                    for entry in fs::read_dir(path)?.step_by(2) {
                        fs::remove_file(entry?.path())?;
                    }
                }
                return Err(io::Error::other("the power is off"));
            }
            _ => {}
        }
        self.note(op, copies);
        Ok(())
    }

    /// Remembers how to undo what is not durable.
    fn note(&mut self, op: &Op<'_>, copies: &Path) {
        match op {
            Op::Create(path) => {
                self.names.push(Name::Created(path.to_path_buf()));
                self.contents.push(path.to_path_buf());
            }
            Op::CreateFolder(path) => self.names.push(Name::Created(path.to_path_buf())),
            Op::Sync(path) if !self.lies => self.contents.retain(|p| p != path),
            Op::SyncFolder(folder) if !self.lies => self.names.retain(|name| {
                let (Name::Created(path) | Name::Renamed(_, path) | Name::Removed(path, _)) = name;
                path.parent() != Some(folder)
            }),
            Op::Rename { from, to } => {
                self.names.push(Name::Renamed(from.to_path_buf(), to.to_path_buf()));
                for path in &mut self.contents {
                    if let Ok(inside) = path.strip_prefix(from) {
                        *path = to.join(inside);
                    }
                }
            }
            Op::RemoveFolder(path) => {
                self.contents.retain(|p| !p.starts_with(path));
                self.copies += 1;
                let copy = copies.join(self.copies.to_string());
                copy_folder(path, &copy);
                self.names.push(Name::Removed(path.to_path_buf(), copy));
            }
            _ => {}
        }
    }

    /// The power comes back.
    fn restart(&mut self, loss: Loss) {
        if matches!(loss, Loss::Contents | Loss::Both) {
            for path in self.contents.iter().filter(|path| path.is_file()) {
                fs::write(path, "").unwrap();
            }
        }
        if matches!(loss, Loss::Names | Loss::Both) {
            for name in self.names.drain(..).rev() {
                match name {
                    Name::Created(path) if path.is_dir() => fs::remove_dir_all(path).unwrap(),
                    Name::Created(path) if path.is_file() => fs::remove_file(path).unwrap(),
                    Name::Renamed(from, to) if to.exists() => fs::rename(to, from).unwrap(),
                    Name::Removed(path, copy) => {
                        let _ = fs::remove_dir_all(&path);
                        copy_folder(&copy, &path);
                    }
                    _ => {}
                }
            }
        }
        *self = Disk::default();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// One disk for each test, known by the folder it is mounted at.
static DISKS: Mutex<BTreeMap<PathBuf, Disk>> = Mutex::new(BTreeMap::new());

fn disks() -> MutexGuard<'static, BTreeMap<PathBuf, Disk>> {
    DISKS.lock().unwrap_or_else(|e| e.into_inner())
}

struct Router;

impl Watch for Router {
    fn before(&self, op: &Op<'_>) -> io::Result<()> {
        let mut disks = disks();
        let found = disks.iter_mut().find(|(root, _)| op.path().starts_with(root));
        found.map_or(Ok(()), |(root, disk)| disk.before(op, &root.with_extension("copies")))
    }
}

/// A run on a disk that can fail.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| fault::watch(Router));
        // In memory where possible: the durability is the simulation's.
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let run = Run {
            folder: folder.unwrap(),
        };
        fs::create_dir(run.disk()).unwrap();
        disks().insert(run.disk(), Disk::default());
        run
    }

    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    fn dir(&self) -> PathBuf {
        self.disk().join("run")
    }

    fn with<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> T {
        work(disks().get_mut(&self.disk()).unwrap())
    }

    /// Saves `step` with numbers that follow from `content`.
    fn save(&self, step: u64, content: usize, keep: usize) -> Result<PathBuf, CheckpointError> {
        let mut draft = begin(&self.dir(), RunState::now(step, 7, "debug"))?;
        let plan = [("a".to_owned(), vec![3]), ("b".to_owned(), vec![2, 2])];
        let mut file = draft.tensors(state::PARAMS, &plan)?;
        file.write("a", &numbers(content, 3))?;
        file.write("b", &numbers(content + 1, 4))?;
        draft.keep(file)?;
        draft.text(state::CONFIG, "seed = 7")?;
        draft.commit(keep)
    }

    /// The same in shards that are written at the same time.
    fn save_at_once(&self, step: u64, content: usize, keep: usize) -> Result<PathBuf, CheckpointError> {
        // Less room than a tensor takes, so that the lanes take turns.
        let draft = Background::begin(&self.dir(), RunState::now(step, 7, "debug"), 3, 8)?;
        let tensors = [("a", vec![3]), ("b", vec![2, 2])];
        let name = |i| shards::shard_name(state::PARAMS, i, 2);
        let names = [name(0), name(1)];
        for (i, (tensor, shape)) in tensors.iter().enumerate() {
            draft
                .lane(i)
                .tensors(&names[i], vec![(tensor.to_string(), shape.clone())]);
        }
        draft.lane(2).tensors(state::CRITIC, vec![("c".into(), vec![5])]);
        for part in 0..2 {
            for (i, (tensor, shape)) in tensors.iter().enumerate() {
                let values = numbers(content + i, shape.iter().product());
                draft
                    .lane(i)
                    .values(tensor, if part == 0 { &values[..1] } else { &values[1..] });
            }
        }
        draft.lane(2).values("c", &numbers(content, 5));
        (0..3).for_each(|lane| draft.lane(lane).keep());
        let located = tensors
            .iter()
            .zip(&names)
            .map(|((tensor, _), name)| (*tensor, name.as_str()));
        draft.text(&shards::index_of(state::PARAMS), shards::index(located, 28));
        draft.text(state::CONFIG, "seed = 7".into());
        draft.commit(keep).wait().map(|(folder, _)| folder)
    }

    /// Step and content of the newest checkpoint as a resumed run finds it, every bit of it verified.
    fn newest(&self) -> Option<(u64, usize)> {
        recover(&self.dir()).expect("the disk is well");
        let saved = newest(&self.dir()).expect("only whole checkpoints have numbers")?;
        let weights = saved.tensors(state::PARAMS).unwrap();
        let values = weights.values("a", &[3]).unwrap();
        let content = (0..10).find(|c| values == numbers(*c, 3)).expect("one of ours");
        assert_eq!(weights.values("b", &[2, 2]).unwrap(), numbers(content + 1, 4));
        Some((saved.state().step, content))
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        disks().remove(&self.disk());
    }
}

type Save = fn(&Run, u64, usize, usize) -> Result<PathBuf, CheckpointError>;

/// What is there before the save of step 2, content 2, and how many checkpoints it keeps.
struct Case {
    before: &'static [(u64, usize)],
    keep: usize,
}

const CASES: [Case; 4] = [
    Case { before: &[], keep: 1 },
    Case {
        before: &[(1, 1)],
        keep: 1,
    },
    // A run that went on from step 1 reaches step 2 again.
    Case {
        before: &[(1, 1), (2, 3)],
        keep: 2,
    },
    Case {
        before: &[(0, 4), (1, 1), (2, 3)],
        keep: 1,
    },
];

impl Case {
    fn prepare(&self) -> Run {
        let run = Run::new();
        for (step, content) in self.before {
            run.save(*step, *content, 9).unwrap();
        }
        run.with(|disk| *disk = Disk::default());
        run
    }

    /// Operations of the save, when nothing fails.
    fn operations(&self, save: Save) -> usize {
        let run = self.prepare();
        save(&run, 2, 2, self.keep).unwrap();
        assert_eq!(run.newest(), Some((2, 2)));
        run.with(|disk| disk.done)
    }

    /// Every fault at operation `at`.
    fn check_all(&self, save: Save, at: usize) {
        self.check(save, at, Fault::Full, Loss::Nothing);
        self.check(save, at, Fault::Error, Loss::Nothing);
        for fault in [Fault::Stop, Fault::Torn] {
            for loss in [Loss::Nothing, Loss::Contents, Loss::Names, Loss::Both] {
                self.check(save, at, fault, loss);
            }
        }
    }

    /// The save with `fault` at operation `at`, and what is there afterwards.
    fn check(&self, save: Save, at: usize, fault: Fault, loss: Loss) {
        let what = format!("{:?}, {fault:?} at {at}, {loss:?} lost", self.before);
        let run = self.prepare();
        run.with(|disk| disk.fault = Some((at, fault)));
        let result = save(&run, 2, 2, self.keep);
        let stopped = run.with(|disk| disk.off);
        assert_eq!(stopped, matches!(fault, Fault::Stop | Fault::Torn), "{what}");
        run.with(|disk| disk.restart(loss));

        let old = self.before.last().copied();
        match run.newest() {
            Some((2, 2)) => {}
            found => {
                assert_eq!(found, old, "{what}");
                assert!(result.is_err(), "{what}: it was said to be saved");
            }
        }
        // The disk is well again, and the run too.
        save(&run, 2, 2, self.keep).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(run.newest(), Some((2, 2)), "{what}");
        save(&run, 3, 3, 1).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(
            (run.newest(), run.names()),
            (Some((3, 3)), vec!["3".to_owned()]),
            "{what}"
        );
    }
}

#[test]
fn a_fault_at_any_operation_leaves_a_whole_checkpoint() {
    let mut operations = Vec::new();
    for case in &CASES {
        let count = case.operations(Run::save);
        operations.push(count);
        for at in 0..count {
            case.check_all(Run::save, at);
        }
    }
    // Creating, writing and syncing four files, and everything around them.
    assert!(operations.iter().all(|n| *n >= 20), "{operations:?}");
}

#[test]
fn so_does_one_while_several_files_are_written_at_once() {
    for case in &CASES[1..3] {
        let count = case.operations(Run::save_at_once);
        assert!(count >= 30, "{count}");
        for at in 0..count {
            case.check_all(Run::save_at_once, at);
        }
    }
}

#[test]
fn what_was_saved_survives_a_power_cut_and_the_simulation_can_tell() {
    for loss in [Loss::Contents, Loss::Names, Loss::Both] {
        for lies in [false, true] {
            let run = Run::new();
            run.with(|disk| disk.lies = lies);
            run.save(1, 1, 1).unwrap();
            run.with(|disk| disk.restart(loss));
            let found = newest(&run.dir()).is_ok_and(|saved| saved.is_some());
            assert_eq!(found, !lies, "{loss:?}");
        }
    }
}
