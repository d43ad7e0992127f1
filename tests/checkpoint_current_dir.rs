//! Runs in folders relative to the current one. A file of its own, because tests of one file share the current folder.

mod checkpoint_support;

use std::path::Path;

use acrlpd::checkpoint::latest;
use checkpoint_support::save;
use tempfile::TempDir;

#[test]
fn relative_run_folders() {
    let dir = TempDir::new().unwrap();
    std::env::set_current_dir(dir.path()).unwrap();
    assert_eq!(
        save(Path::new("checkpoints"), 1, 1).unwrap(),
        Path::new("checkpoints/1")
    );
    assert_eq!(save(Path::new("a/b"), 1, 1).unwrap(), Path::new("a/b/1"));
    assert_eq!(latest(Path::new("a/b")).unwrap().unwrap(), Path::new("a/b/1"));
}
