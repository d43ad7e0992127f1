//! CUDA that is there but does not fit: libraries that pretend to be the driver and the compiler give the versions and
//! error codes that real ones would. Each case is one sentence, exit code 4, and takes no longer than it should.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// No case waits for anything.
const LIMIT: Duration = Duration::from_secs(60);

/// A machine with libraries and headers.
struct Machine {
    folder: TempDir,
}

impl Machine {
    /// With everything: the libraries named, and a toolkit's headers.
    fn new(libraries: &[&str]) -> Machine {
        let machine = Machine {
            folder: tempfile::tempdir().expect("a folder"),
        };
        fs::create_dir_all(machine.lib()).expect("a folder");
        for name in libraries {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/cuda_fake/{name}.c"));
            let library = machine.lib().join(format!("{name}.so"));
            let made = Command::new("cc")
                .args(["-shared", "-fPIC", "-w", "-o"])
                .args([&library, &source])
                .status();
            assert!(
                made.expect("a C compiler, which links the tests too").success(),
                "{name}"
            );
        }
        fs::create_dir_all(machine.headers()).expect("a folder");
        for header in ["cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "mma.h"] {
            fs::write(machine.headers().join(header), "").expect("a header");
        }
        machine
    }

    fn whole() -> Machine {
        Machine::new(&["libcuda", "libnvrtc"])
    }

    fn lib(&self) -> PathBuf {
        self.folder.path().join("lib")
    }

    fn headers(&self) -> PathBuf {
        self.folder.path().join("toolkit/include")
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Runs the program, with `change` to what it finds.
    fn run(&self, args: &[&str], change: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_acrlpd"));
        command
            .args(args)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("LD_LIBRARY_PATH", self.lib())
            .env("CUDA_PATH", self.folder.path().join("toolkit"))
            .env("ACRLPD_CACHE_DIR", self.cache())
            .env_remove("RUST_BACKTRACE")
            .envs(change.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (mut child, start) = (command.spawn().expect("the program"), Instant::now());
        while child.try_wait().expect("a child").is_none() {
            if start.elapsed() > LIMIT {
                child.kill().expect("it hangs");
                panic!("{args:?} with {change:?} hangs: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.wait_with_output().expect("its output")
    }

    /// The sentence of a run on CUDA, and the warnings before it.
    #[track_caller]
    fn refused(&self, change: &[(&str, &str)]) -> (String, String) {
        let args = ["verify", "tests/golden/ops", "--only", "huber", "--device", "cuda"];
        let out = self.run(&args, change);
        let told = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(4), "{change:?}: {told}");
        let (warnings, sentence) = told.trim_end().rsplit_once('\n').unwrap_or(("", told.trim_end()));
        assert!(
            sentence.starts_with("error: ") && sentence.len() < 600,
            "{change:?}: {told}"
        );
        assert!(!told.contains("panicked"), "{change:?}: {told}");
        (sentence.to_owned(), warnings.to_owned())
    }
}

#[test]
fn every_misfit_is_one_sentence() {
    let machine = Machine::whole();
    for (change, why, fix) in [
        (&[("FAKE_INIT", "100")][..], "finds no device", "CUDA_VISIBLE_DEVICES"),
        (&[("FAKE_INIT", "803")], "different driver versions", "reboot"),
        (&[("FAKE_INIT", "804")], "cuda-compat", "LD_LIBRARY_PATH"),
        (&[("FAKE_INIT", "802")], "not ready", "nvidia-fabricmanager"),
        (&[("FAKE_INIT", "34")], "stub", "LD_LIBRARY_PATH"),
        (&[("FAKE_INIT", "999")], "CUDA_ERROR_UNKNOWN", "nvidia_uvm"),
        // A code that no version has had so far.
        (&[("FAKE_INIT", "4711")], "error 4711", "nvidia-smi"),
        (&[("FAKE_DEVICES", "0")], "finds no device", "nvidia-smi"),
        (
            &[("FAKE_DRIVER", "12080")],
            "CUDA 12.8, which is older than NVRTC 13.0",
            "update the NVIDIA driver",
        ),
        (
            &[("FAKE_DRIVER", "11040"), ("FAKE_NVRTC", "118")],
            "NVRTC 11.8 was found, but kernels need 12.8",
            "newer CUDA toolkit",
        ),
        (
            &[("FAKE_CAPABILITY", "75")],
            "Fake 0 has compute capability 7.5, but 8.0 is needed",
            "Ampere",
        ),
        (
            &[("FAKE_CAPABILITY", "120")],
            "NVRTC 13.0 does not know sm_120a",
            "newer CUDA toolkit",
        ),
        (&[("CUDA_PATH", "/nonexistent")], "headers were not found", "CUDA_PATH"),
        (&[("FAKE_CONTEXT", "2")], "no memory left", "nvidia-smi"),
        (&[("FAKE_CONTEXT", "46")], "another process", "nvidia-smi -c DEFAULT"),
        (
            &[("FAKE_COMPILE", "7")],
            "failed to open libnvrtc-builtins.so.13.0",
            "libnvrtc-builtins of one version",
        ),
        (
            &[("FAKE_LOAD", "222")],
            "older than the NVRTC",
            "update the NVIDIA driver",
        ),
        (
            &[("FAKE_LOAD", "221")],
            "libnvidia-ptxjitcompiler",
            "whole NVIDIA driver",
        ),
        (&[("FAKE_LOAD", "218")], "does not take", "driver"),
        // Nothing is wrong that could be seen before cubecl calls what is not there.
        (&[], "lacks a function", "update the NVIDIA driver"),
    ] {
        let (sentence, _) = machine.refused(change);
        assert!(
            sentence.contains(why) && sentence.contains(fix),
            "{change:?}: {sentence}"
        );
        assert!(sentence.contains("cuda"), "it says where: {sentence}");
    }
}

#[test]
fn a_missing_library_or_header_is_one_sentence() {
    let (sentence, _) = Machine::new(&["libcuda"]).refused(&[]);
    assert!(
        sentence.contains("libnvrtc") && sentence.contains("nvidia-cuda-nvrtc"),
        "{sentence}"
    );
    let (sentence, _) = Machine::new(&["libnvrtc"]).refused(&[]);
    assert!(
        sentence.contains("libcuda") && sentence.contains("install the NVIDIA driver"),
        "{sentence}"
    );
    let machine = Machine::whole();
    fs::remove_file(machine.headers().join("mma.h")).expect("a header");
    let (sentence, _) = machine.refused(&[]);
    assert!(
        sentence.contains("has no mma.h") && sentence.contains("CUDA_PATH"),
        "{sentence}"
    );
}

#[test]
fn doctor_shows_what_there_is_and_why_it_is_not_used() {
    let machine = Machine::whole();
    let out = machine.run(
        &["doctor", "--device", "cuda"],
        &[("FAKE_DRIVER", "12080"), ("FAKE_DEVICES", "2")],
    );
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(4), "{text}");
    for part in [
        "driver for CUDA 12.8, NVRTC 13.0, headers ",
        "cuda:1     Fake 1, compute capability 9.0, 86 GB",
        "not used   device cuda is not available: the driver supports CUDA 12.8",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn auto_says_why_it_takes_another_device() {
    let machine = Machine::whole();
    let args = ["verify", "tests/golden/ops", "--only", "huber", "--brief"];
    let out = machine.run(&args, &[("FAKE_CAPABILITY", "61")]);
    let told = String::from_utf8_lossy(&out.stderr);
    assert!(
        told.contains("compute capability 6.1") && told.contains("looking for another device"),
        "{told}"
    );
    assert_eq!(told.matches("another device").count(), 1, "{told}");
    assert!(matches!(out.status.code(), Some(0 | 4)), "{told}");
}

#[test]
fn a_cache_that_cannot_be_had_is_one_warning() {
    let machine = Machine::whole();
    let (_, warnings) = machine.refused(&[("ACRLPD_CACHE_DIR", "/proc/nowhere")]);
    assert_eq!(warnings.lines().count(), 1, "{warnings}");
    assert!(
        warnings.contains("/proc/nowhere") && warnings.contains("ACRLPD_CACHE_DIR"),
        "{warnings}"
    );
    let (_, warnings) = machine.refused(&[("ACRLPD_DISK_FAULT", "full@0..99@zeros")]);
    assert_eq!(warnings.lines().count(), 1, "{warnings}");
    assert!(warnings.contains("free space of the disk"), "{warnings}");
    let left: Vec<_> = walk(&machine.cache())
        .into_iter()
        .filter(|p| p.contains("run-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let (_, warnings) = machine.refused(&[]);
    assert_eq!(warnings, "");
    assert!(walk(&machine.cache()).iter().any(|p| p.ends_with("chunk0.cbor")));
}

#[test]
fn the_cache_can_be_switched_off() {
    let machine = Machine::whole();
    let args = ["verify", "tests/golden/ops", "--only", "huber", "--device", "cuda"];
    machine.run(&args, &[("ACRLPD_NO_KERNEL_CACHE", "1")]);
    machine.run(&[&args[..], &["--no-kernel-cache"]].concat(), &[]);
    assert!(!machine.cache().exists());
    machine.run(&args, &[]);
    assert!(machine.cache().exists());
}

/// Every file below a folder.
fn walk(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    entries
        .flat_map(|path| {
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path.display().to_string()]
            }
        })
        .collect()
}
