//! A device that fails in the middle of a run.

use std::path::Path;
use std::time::{Duration, Instant};

use acrlpd::config::Config;
use acrlpd::gpu::{DeviceChoice, Gpu};
use acrlpd::train::row::Row;
use acrlpd::train::signals::Stop;
use acrlpd::train::{self, Observer, Options, Preparation, Start};

/// Takes more memory than there is once a checkpoint is complete.
#[derive(Default)]
struct Greedy {
    gpu: Option<Gpu>,
    saved: bool,
}

impl Observer for Greedy {
    fn stage(&mut self, _: &str) {}
    fn statistics(&mut self, _: usize, _: usize) {}
    fn begin(&mut self, preparation: &Preparation<'_>) {
        self.gpu = Some(preparation.gpu.clone());
    }
    fn step(&mut self, _: u64) {
        if let (Some(gpu), true) = (&self.gpu, self.saved) {
            let _nothing = gpu.f32([1 << 36]);
        }
    }
    fn row(&mut self, _: &Row) {}
    fn saved(&mut self, _: &Path, _: Duration) {
        self.saved = true;
    }
}

#[test]
fn a_device_without_memory_ends_the_run_with_the_newest_checkpoint_in_the_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let overrides = [
        ("checkpoint_dir", folder.path().display().to_string()),
        ("batch_size", "4".into()),
        ("acrlpd.diffusion_steps", "2".into()),
        ("model.dims.depth", "2".into()),
        ("save_interval", "1".into()),
        ("wandb_enabled", "false".into()),
    ];
    let overrides = overrides.map(|(key, value)| (key.to_owned(), value));
    let options = Options {
        config: Config::load_with("debug", &overrides).expect("a preset"),
        exp_name: "x".into(),
        start: Start::Fresh,
        device: DeviceChoice::Auto,
        device_memory: None,
        memory_fraction: 0.9,
        dry_run: false,
        watch: false,
        profile: false,
        started: Instant::now(),
    };
    let error = train::run(&options, &Stop::default(), &mut Greedy::default()).expect_err("the device has failed");
    assert_eq!(error.exit_code(), 4, "{error}");
    let newest = acrlpd::checkpoint::latest(&folder.path().join("debug/x"));
    let newest = newest.expect("a folder").expect("a checkpoint");
    acrlpd::checkpoint::open(&newest).expect("it is whole");
    let text = error.to_string();
    assert!(
        text.contains("no room") && text.contains(&newest.display().to_string()),
        "{text}"
    );
    assert!(!text.contains('\n') && text.contains("--resume"), "{text}");
}
