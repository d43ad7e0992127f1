//! What the current folder changes. A file of its own, because tests of one file share the current folder.

use std::fs;

use acrlpd::config::Config;
use tempfile::TempDir;

#[test]
fn names_mean_files_here_first_and_presets_of_the_program_else() {
    let dir = TempDir::new().unwrap();
    let here = dir.path().canonicalize().unwrap();
    std::env::set_current_dir(&here).unwrap();

    // Nothing here: the preset, with paths from here.
    let preset = Config::load("debug").unwrap();
    assert_eq!(preset.data.path, Some(here.join("assets/datasets/aloha_v21_image")));
    let broken = [("batch_size".to_owned(), "0".to_owned())];
    assert!(
        Config::load_with("debug", &broken)
            .unwrap_err()
            .to_string()
            .contains("`batch_size=0`")
    );

    // A file of that name wins, and may extend the preset that it hides.
    fs::create_dir("configs").unwrap();
    fs::write("configs/debug.toml", "base = \"debug\"\nbatch_size = 4\n").unwrap();
    fs::write("configs/new.toml", "base = \"debug\"\n").unwrap();
    let local = Config::load("debug").unwrap();
    assert_eq!((local.batch_size, local.name.as_str()), (4, "debug"));
    assert_eq!(local.data.path, preset.data.path);
    let new = Config::load("new").unwrap();
    assert_eq!((new.batch_size, new.name.as_str()), (4, "new"));

    // JSON is found by its name, too.
    fs::write("configs/other.json", "{\"base\": \"new\"}").unwrap();
    assert_eq!(Config::load("other").unwrap().batch_size, 4);

    // From inside the folder, relative paths still start above it.
    fs::write("configs/paths.toml", "base = \"debug\"\n[data]\npath = \"set\"\n").unwrap();
    std::env::set_current_dir(here.join("configs")).unwrap();
    assert_eq!(Config::load("./paths.toml").unwrap().data.path, Some(here.join("set")));
}
