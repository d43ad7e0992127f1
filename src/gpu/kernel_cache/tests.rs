//! The cache with cubecl's own type in it, which holds keys and values as cubecl's CUDA server does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

use cubecl_common::cache::CacheOption;
use cubecl_common::hash::{StableHash, StableHasher};
use cubecl_core::compilation_cache::CompilationCache;
use tempfile::TempDir;

use super::{CHUNK, Identity, KEEP, KernelCache, entries_of, store};

/// What the CUDA server keeps of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Kernel {
    entrypoint_name: String,
    shared_mem_bytes: usize,
    ptx: Vec<i8>,
}

type Cubecl = CompilationCache<StableHash, Kernel>;

/// The cache as the server opens it.
fn cubecl(cache: &KernelCache) -> Cubecl {
    let root = cache.root().to_owned();
    CompilationCache::new("ptx", CacheOption::default().name("cuda").root(root))
}

fn hash(n: u64) -> StableHash {
    StableHasher::hash_one(&n)
}

fn kernel(n: u64) -> Kernel {
    let ptx = format!(".version 9.0\n.target sm_90a\n// {n}\n").repeat(300);
    Kernel {
        entrypoint_name: format!("kernel_{n}"),
        shared_mem_bytes: 100_000 + n as usize,
        ptx: ptx.bytes().map(|b| b as i8).chain([0, -1, -128]).collect(),
    }
}

fn identity() -> Identity {
    Identity::default().with("program", "1").with("device", "H100")
}

fn open(root: &Path) -> KernelCache {
    KernelCache::open(root, &identity()).expect("a cache")
}

/// A process that compiles `kernels` and keeps them.
fn compile(root: &Path, kernels: std::ops::Range<u64>) {
    let cache = open(root);
    let mut server = cubecl(&cache);
    for n in kernels {
        if server.get(&hash(n)).is_none() {
            server.insert(hash(n), kernel(n)).expect("it is inserted");
        }
    }
    cache.publish().expect("it is kept");
}

/// Which of the kernels 0..20 a new process finds; what it finds must be right.
#[track_caller]
fn found(root: &Path) -> Vec<u64> {
    let cache = open(root);
    let server = cubecl(&cache);
    let there = |n: &u64| {
        let found = server.get(&hash(*n));
        assert!(found.is_none_or(|k| *k == kernel(*n)), "kernel {n} is another");
        found.is_some()
    };
    (0..20).filter(there).collect()
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn entries(root: &Path) -> PathBuf {
    entries_of(&root.join("kernels").join(identity().key()))
}

#[test]
fn a_second_start_compiles_nothing() {
    let root = folder();
    assert!(found(root.path()).is_empty() && !open(root.path()).was_filled());
    compile(root.path(), 0..3);
    assert_eq!(found(root.path()), [0, 1, 2]);
    let cache = open(root.path());
    assert!(cache.was_filled());
    let before = fs::read(entries(root.path())).expect("a file");
    let mut server = cubecl(&cache);
    assert_eq!(cache.publish().expect("nothing to do"), 0);
    assert_eq!(
        fs::read(entries(root.path())).expect("a file"),
        before,
        "it is not written again"
    );
    server.insert(hash(7), kernel(7)).expect("it is inserted");
    assert_eq!(cache.publish().expect("one more"), 1);
    assert_eq!(found(root.path()), [0, 1, 2, 7]);
}

#[test]
fn a_process_that_is_killed_leaves_what_it_has_published() {
    let root = folder();
    let cache = open(root.path());
    let mut server = cubecl(&cache);
    server.insert(hash(1), kernel(1)).expect("it is inserted");
    cache.publish().expect("it is kept");
    // In the middle of a write.
    let chunk = cache.root().join(CHUNK);
    let whole = fs::read(&chunk).expect("a file");
    fs::write(&chunk, [&whole[..], &whole[..whole.len() / 2]].concat()).expect("a file");
    assert_eq!(cache.publish().expect("the whole ones"), 0);
    assert_eq!(found(root.path()), [1]);
}

#[test]
fn what_was_given_up_can_still_be_written_to() {
    let root = folder();
    let cache = open(root.path());
    let mut server = cubecl(&cache);
    server.insert(hash(1), kernel(1)).expect("it is inserted");
    cache.publish().expect("it is kept");
    cache.shrink().expect("the copy goes");
    assert_eq!(fs::metadata(cache.root().join(CHUNK)).expect("a file").len(), 0);
    server.insert(hash(2), kernel(2)).expect("it is inserted");
    assert_eq!(cache.publish().expect("the new one"), 1);
    assert_eq!(found(root.path()), [1, 2]);
}

#[test]
fn any_change_of_the_identity_is_another_cache() {
    let root = folder();
    compile(root.path(), 0..1);
    let base = || Identity::default().with("program", "1");
    let others = [
        base().with("device", "H200"),
        base().with("driver", "H100"),
        base(),
        identity().with("nvrtc", "13.0"),
        Identity::default().with("program", "1device").with("", "H100"),
        Identity::default().with("device", "H100").with("program", "1"),
    ];
    for other in others {
        assert_ne!(other.key(), identity().key(), "{other:?}");
        let cache = KernelCache::open(root.path(), &other).expect("a cache");
        assert!(cubecl(&cache).get(&hash(0)).is_none(), "{other:?}");
    }
    let file = root.path().join("program");
    fs::write(&file, "one").expect("a file");
    let key = |path: &Path| Identity::default().with_content("program", path).expect("a file").key();
    let one = key(&file);
    fs::write(&file, "two").expect("a file");
    assert_ne!(key(&file), one);
    assert!(
        Identity::default()
            .with_content("program", &root.path().join("none"))
            .is_err()
    );
    let program = Identity::of_program().expect("the test itself").key();
    assert_eq!(program, Identity::of_program().expect("the test itself").key());
}

#[test]
fn a_cache_under_a_wrong_name_is_not_used() {
    let root = folder();
    compile(root.path(), 0..1);
    let other = identity().with("nvrtc", "13.0");
    let all = root.path().join("kernels");
    fs::rename(all.join(identity().key()), all.join(other.key())).expect("another name");
    let cache = KernelCache::open(root.path(), &other).expect("a cache");
    assert!(cubecl(&cache).get(&hash(0)).is_none());
}

#[test]
fn no_damage_reaches_cubecl() {
    let root = folder();
    compile(root.path(), 0..3);
    let file = entries(root.path());
    let whole = fs::read(&file).expect("a file");
    let changed = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let line = whole.iter().position(|&b| b == b'\n').expect("a line");
    let mut damages = vec![
        Vec::new(),
        b"\n".to_vec(),
        vec![0; 5000],
        whole[..line].to_vec(),
        whole[1..].to_vec(),
    ];
    damages.extend([0, line - 1, line, line + 1, line + 40, whole.len() / 2, whole.len() - 1].map(changed));
    damages.extend([line + 1, line + 2, whole.len() / 2, whole.len() - 1].map(|n| whole[..n].to_vec()));
    damages.push([&whole[..], &whole[line + 1..]].concat());
    for (i, damage) in damages.iter().enumerate() {
        fs::write(&file, damage).expect("a file");
        assert!(found(root.path()).is_empty(), "damage {i}");
        // It is made good by what is compiled next.
        compile(root.path(), 4..5);
        assert_eq!(found(root.path()), [4], "damage {i}");
    }
    fs::write(&file, &whole).expect("a file");
    assert_eq!(found(root.path()), [0, 1, 2]);
    fs::remove_file(&file).expect("a file");
    fs::create_dir(&file).expect("a folder in its place");
    assert!(found(root.path()).is_empty());
}

#[test]
fn processes_that_start_at_once_lose_nothing() {
    let root = folder();
    let start = Barrier::new(6);
    std::thread::scope(|scope| {
        for i in 0..6u64 {
            let (root, start) = (root.path(), &start);
            scope.spawn(move || {
                start.wait();
                // All compile the first two, and each two of its own.
                let cache = open(root);
                let mut server = cubecl(&cache);
                for n in [0, 1, 2 + 2 * i, 3 + 2 * i] {
                    if server.get(&hash(n)).is_none() {
                        server.insert(hash(n), kernel(n)).expect("it is inserted");
                    }
                    cache.publish().expect("it is kept");
                }
            });
        }
    });
    assert_eq!(found(root.path()), (0..14).collect::<Vec<_>>());
    let kept = store::read(&entries(root.path()), &identity().key()).expect("it is whole");
    assert_eq!(store::each(&kept).count(), 14, "each once");
}

#[test]
fn folders_of_the_gone_and_kernels_of_old_programs_are_removed() {
    let root = folder();
    let all = root.path().join("kernels");
    let version = |n: usize| Identity::default().with("program", n);
    let living = KernelCache::open(root.path(), &version(0)).expect("a cache");
    for n in 1..10 {
        let cache = KernelCache::open(root.path(), &version(n)).expect("a cache");
        let mut server = cubecl(&cache);
        server.insert(hash(1), kernel(1)).expect("it is inserted");
        cache.publish().expect("it is kept");
        let run = cache.root().to_owned();
        drop((cache, server));
        assert!(run.is_dir(), "as a process that was killed leaves it");
        // Times in names of folders must differ.
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let there = |n: usize| all.join(version(n).key()).is_dir();
    assert!(there(0) && living.root().is_dir(), "it is in use");
    let kept: Vec<usize> = (1..10).filter(|n| there(*n)).collect();
    assert_eq!(kept, (10 - KEEP..10).collect::<Vec<_>>(), "the last ones");
    // Opening one again makes it the newest, and removes what the dead left in the others.
    let _again = KernelCache::open(root.path(), &version(10 - KEEP)).expect("a cache");
    for n in 10 - KEEP..10 {
        let runs = fs::read_dir(all.join(version(n).key())).expect("a folder");
        let runs = runs.filter(|e| e.as_ref().expect("an entry").path().is_dir()).count();
        assert_eq!(runs, usize::from(n == 10 - KEEP), "{n}");
    }
}

#[test]
fn what_cannot_be_written_is_an_error_with_the_path_in_it() {
    let root = folder();
    let blocked = root.path().join("blocked");
    fs::write(&blocked, "a file").expect("a file");
    let error = KernelCache::open(&blocked, &identity())
        .expect_err("no folder")
        .to_string();
    assert!(error.contains("blocked") && !error.contains('\n'), "{error}");
}

#[test]
fn what_is_not_cubecls_is_no_entry() {
    let count = |bytes: &[u8]| store::each(bytes).count();
    let entry = [0xa1, 0x61, b'k', 0x82, 0x18, 0xff, 0x20]; // {"k": [255, -1]}
    assert_eq!(count(&entry.repeat(3)), 3);
    assert_eq!(count(&[&entry[..], &entry[..6]].concat()), 1, "cut off");
    assert_eq!(count(&[&entry[..], &[0x82, 1, 2]].concat()), 1, "no map");
    assert_eq!(count(&[0xbf, 0xff]), 0, "of no stated length");
    assert_eq!(
        count(&[0xa1, 0x01, 0x7b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        0,
        "longer than memory"
    );
    assert_eq!(
        count(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]),
        0,
        "more than memory"
    );
    let deep = [[0xa1, 0x01].repeat(100), vec![0x01]].concat();
    assert_eq!(count(&deep), 0, "nested too deep");
}
