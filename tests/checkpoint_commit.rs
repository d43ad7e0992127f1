//! Saving is all or nothing, and the newest complete checkpoint is always found.

mod checkpoint_support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use acrlpd::checkpoint::{RunState, begin, latest, open, plan, resolve, state, steps};
use acrlpd::config::Config;
use checkpoint_support::{critic, fill, numbers, save};
use tempfile::TempDir;

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What is logged while `work` runs.
fn logged<T>(work: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl Write for Log {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(data)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let result = tracing::subscriber::with_default(subscriber, work);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    (result, text)
}

#[test]
fn what_was_saved_comes_back() {
    let dir = TempDir::new().unwrap();
    let run = dir.path().join("debug/exp");
    assert_eq!(latest(&run).unwrap(), None, "a run that has not started");
    let folder = save(&run, 20, 3).unwrap();
    assert_eq!(folder, run.join("20"));
    assert_eq!(
        names(&folder),
        [
            "config.toml",
            "critic.safetensors",
            "manifest.json",
            "norm_stats.json",
            "state.json"
        ]
    );
    assert_eq!(latest(&run).unwrap(), Some(folder.clone()));
    assert_eq!(
        (resolve(&run).unwrap(), resolve(&folder).unwrap()),
        (folder.clone(), folder.clone())
    );

    let saved = open(&folder).unwrap();
    let s = saved.state();
    assert_eq!(
        (s.step, s.seed, s.config.as_str(), s.format),
        (20, 7, "debug", state::FORMAT)
    );
    assert_eq!(s.version, env!("CARGO_PKG_VERSION"));
    assert!(s.saved_unix_s > 1_700_000_000);
    let config = Config::parse(&saved.config().unwrap(), saved.folder().join(state::CONFIG)).unwrap();
    assert_eq!(config, Config::load("debug").unwrap());
    let (weights, table) = (saved.tensors(state::CRITIC).unwrap(), critic());
    for (section, offset) in [(state::ONLINE, 0), (state::TARGET, table.tensors().count())] {
        assert!(weights.check(&table, section).unwrap().is_empty());
        for (i, tensor) in table.tensors().enumerate() {
            let values = weights
                .values(&format!("{section}{}", tensor.name), &tensor.shape)
                .unwrap();
            assert_eq!(values, numbers(20 + offset + i, tensor.len()));
        }
    }
    assert!(saved.has(state::NORM_STATS) && !saved.has(state::EMA));
    let message = saved.tensors(state::EMA).unwrap_err().to_string();
    assert!(message.contains("saved without ema.safetensors"), "{message}");
}

#[test]
fn a_draft_that_is_dropped_leaves_nothing() {
    let dir = TempDir::new().unwrap();
    let run = dir.path();
    let mut draft = begin(run, RunState::now(5, 0, "debug")).unwrap();
    draft.text(state::CONFIG, "x").unwrap();
    assert!(
        draft.folder().join(state::CONFIG).exists() && latest(run).unwrap().is_none() && steps(run).unwrap().is_empty()
    );
    drop(draft);
    assert!(names(run).is_empty());
}

#[test]
fn an_unfinished_file_cannot_be_committed() {
    let dir = TempDir::new().unwrap();
    let table = plan("", &critic());
    let mut draft = begin(dir.path(), RunState::now(5, 0, "debug")).unwrap();
    let mut file = draft.tensors(state::CRITIC, &table).unwrap();
    fill(&mut file, &table[..1], 0).unwrap();
    assert!(
        draft
            .keep(file)
            .unwrap_err()
            .to_string()
            .contains("tensors are missing")
    );
    let message = draft.commit(1).unwrap_err().to_string();
    assert!(
        message.contains("critic.safetensors") && message.contains("not finished"),
        "{message}"
    );
    assert!(names(dir.path()).is_empty());
}

#[test]
fn what_a_killed_run_left_is_removed() {
    let dir = TempDir::new().unwrap();
    let run = dir.path();
    save(run, 1, 9).unwrap();
    // Killed while writing step 2, and once while deleting step 0.
    let draft = begin(run, RunState::now(2, 0, "debug")).unwrap();
    fs::write(draft.folder().join(state::PARAMS), "half").unwrap();
    std::mem::forget(draft);
    fs::create_dir(run.join(".removing-0")).unwrap();
    fs::write(run.join("notes.txt"), "not ours").unwrap();
    assert_eq!(latest(run).unwrap(), Some(run.join("1")));
    let (_, log) = logged(|| save(run, 2, 9).unwrap());
    assert_eq!(names(run), ["1", "2", "notes.txt"]);
    assert!(log.contains(".writing-2") && log.contains(".removing-0"), "{log}");
}

#[test]
fn damage_makes_the_step_before_the_latest() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 5] = [
        ("critic.safetensors has", |f| {
            let file = fs::OpenOptions::new().write(true).open(f.join(state::CRITIC)).unwrap();
            file.set_len(100).unwrap();
        }),
        ("config.toml cannot be found", |f| {
            fs::remove_file(f.join(state::CONFIG)).unwrap()
        }),
        ("no manifest.json", |f| {
            fs::remove_file(f.join("manifest.json")).unwrap()
        }),
        ("manifest.json cannot be read", |f| {
            fs::write(f.join("manifest.json"), "{\"files\": {").unwrap()
        }),
        ("manifest.json has other bytes", |f| {
            let path = f.join("manifest.json");
            let text = fs::read_to_string(&path).unwrap();
            let at = text.find("\"bytes\": ").unwrap() + 9;
            fs::write(&path, format!("{}9{}", &text[..at], &text[at..])).unwrap();
        }),
    ];
    for (words, damage) in damages {
        let dir = TempDir::new().unwrap();
        let run = dir.path();
        (1..=3).for_each(|step| drop(save(run, step, 9).unwrap()));
        damage(&run.join("3"));
        let (found, log) = logged(|| latest(run).unwrap());
        assert_eq!(found, Some(run.join("2")), "{words}");
        assert!(
            log.contains("WARN") && log.contains("passing over step 3") && log.contains(words),
            "{log}"
        );
        let message = open(&run.join("3")).unwrap_err().to_string();
        assert!(
            message.contains("use an earlier step") && message.contains(words),
            "{message}"
        );
        assert_eq!(steps(run).unwrap(), [1, 2, 3]);
        // Reaching the step again replaces it.
        save(run, 3, 9).unwrap();
        assert_eq!(latest(run).unwrap(), Some(run.join("3")));
        open(&run.join("3")).unwrap();
        assert_eq!(names(run), ["1", "2", "3"]);
    }
}

#[test]
fn a_changed_byte_is_found_when_it_is_opened() {
    let dir = TempDir::new().unwrap();
    let folder = save(dir.path(), 1, 1).unwrap();
    let path = folder.join(state::CRITIC);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let message = open(&folder).unwrap_err().to_string();
    assert!(
        message.contains("damaged: `target/critic.out.bias` in critic.safetensors has other bytes than were saved"),
        "{message}"
    );
}

#[test]
fn old_steps_go_after_the_new_one_is_there() {
    let dir = TempDir::new().unwrap();
    let run = dir.path();
    for step in [10, 20, 100] {
        save(run, step, 2).unwrap();
    }
    assert_eq!(names(run), ["100", "20"], "by number, not by name");
    save(run, 200, 1).unwrap();
    assert_eq!(names(run), ["200"]);
    save(run, 300, 0).unwrap();
    assert_eq!(names(run), ["300"], "the newest one always stays");
    // Broken ones do not count and are not ours to remove; what was just saved stays even if later steps exist.
    save(run, 400, 2).unwrap();
    fs::remove_file(run.join("400/state.json")).unwrap();
    save(run, 150, 1).unwrap();
    assert_eq!(names(run), ["150", "300", "400"]);
    save(run, 160, 0).unwrap();
    assert_eq!(
        names(run),
        ["160", "300", "400"],
        "the newest one stays even if none shall be kept"
    );
    assert_eq!(latest(run).unwrap(), Some(run.join("300")));
}

#[test]
fn a_step_that_fails_to_be_written_keeps_the_old_ones() {
    let dir = TempDir::new().unwrap();
    let run = dir.path();
    save(run, 1, 1).unwrap();
    let draft = begin(run, RunState::now(2, 0, "debug")).unwrap();
    // The folder vanishes under the run, as on a file system that goes away.
    fs::remove_dir_all(draft.folder()).unwrap();
    let message = draft.commit(1).unwrap_err().to_string();
    assert!(
        message.contains("cannot write") && message.contains("free space"),
        "{message}"
    );
    assert_eq!(latest(run).unwrap(), Some(run.join("1")));
    open(&run.join("1")).unwrap();
}

#[test]
fn paths_that_are_no_checkpoints() {
    let dir = TempDir::new().unwrap();
    let message = open(&dir.path().join("7")).unwrap_err().to_string();
    assert!(
        message.contains("there is no such folder") && message.contains("CONFIG/EXPERIMENT/STEP"),
        "{message}"
    );
    let message = resolve(dir.path()).unwrap_err().to_string();
    assert!(
        message.contains("neither manifest.json nor folders of complete steps"),
        "{message}"
    );
    for name in ["007", "x", "-1", "12.5"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    assert!(steps(dir.path()).unwrap().is_empty());
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(
        begin(&file, RunState::now(1, 0, "debug"))
            .map(drop)
            .unwrap_err()
            .to_string()
            .contains("cannot write")
    );
}

#[test]
fn later_formats_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let later = RunState {
        format: state::FORMAT + 1,
        ..RunState::now(1, 0, "debug")
    };
    let folder = begin(dir.path(), later).unwrap().commit(1).unwrap();
    let message = open(&folder).unwrap_err().to_string();
    assert!(
        message.contains("has format 4, but this version reads up to 3"),
        "{message}"
    );
}
