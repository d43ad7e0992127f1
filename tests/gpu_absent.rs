//! Devices that are not there, and settings that are where they should not be.

use std::path::Path;
use std::process::Command;

use acrlpd::gpu::{Api, DeviceChoice, Gpu, GpuError};

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device")
}

/// Runs test `name` of this file in a process of its own, with another environment or folder.
fn alone(name: &str, change: impl FnOnce(&mut Command)) {
    let mut child = Command::new(std::env::current_exe().expect("a test has a file"));
    child.args([name, "--exact", "--nocapture"]).env("ACRLPD_TRAP", name);
    change(&mut child);
    let out = child.output().expect("a test can be run");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && text.contains("1 passed"), "{text}");
}

fn is_alone(name: &str) -> bool {
    std::env::var("ACRLPD_TRAP").is_ok_and(|n| n == name)
}

#[track_caller]
fn unavailable(choice: DeviceChoice) -> String {
    let error = Gpu::open(choice).expect_err("this device is not there");
    assert!(matches!(error, GpuError::Unavailable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 300, "one sentence: {text}");
    text
}

#[test]
fn an_absent_cuda_says_what_to_install() {
    let name = "an_absent_cuda_says_what_to_install";
    if acrlpd::gpu::adapters().iter().any(|a| a.device.starts_with("cuda")) {
        return;
    }
    let text = unavailable(DeviceChoice::Cuda(0));
    assert!(text.contains("install") || text.contains("CUDA_PATH"), "{name}: {text}");
    assert!(text.contains("--device vulkan") || text.contains("CUDA_PATH"), "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn apis_of_other_systems_are_named_as_such() {
    let metal = unavailable(DeviceChoice::Wgpu(Api::Metal, 0));
    assert!(metal.contains("metal:0") && metal.contains("macOS") && metal.contains("--device vulkan"));
    let dx12 = unavailable(DeviceChoice::Wgpu(Api::Dx12, 0));
    assert!(dx12.contains("dx12:0") && dx12.contains("Windows") && dx12.contains("--device vulkan"));
}

#[test]
#[cfg(target_os = "linux")]
fn an_absent_vulkan_says_what_to_install() {
    let name = "an_absent_vulkan_says_what_to_install";
    if !is_alone(name) {
        // The Vulkan loader looks for drivers here only.
        return alone(name, |c| {
            c.env("VK_DRIVER_FILES", "/nonexistent")
                .env("VK_ICD_FILENAMES", "/nonexistent");
        });
    }
    let text = unavailable(DeviceChoice::Wgpu(Api::Vulkan, 0));
    assert!(text.contains("apt-get install mesa-vulkan-drivers"), "{text}");
}

#[test]
fn an_index_past_the_last_adapter_is_an_error() {
    let Api::Vulkan = device().caps().api else { return };
    let text = unavailable(DeviceChoice::Wgpu(Api::Vulkan, 1000));
    assert!(text.contains("vulkan:1000") && text.contains("acrlpd doctor"), "{text}");
}

#[test]
fn names_of_devices_are_checked() {
    for bad in ["", "gpu", "cuda:", "cuda:x", "vulkan:-1", "cuda:0:1"] {
        let error = bad.parse::<DeviceChoice>().expect_err(bad);
        assert!(error.contains(bad) && !error.contains('\n'), "{error}");
    }
    assert_eq!("CUDA:3".parse(), Ok(DeviceChoice::Cuda(3)));
    assert_eq!("vulkan".parse(), Ok(DeviceChoice::Wgpu(Api::Vulkan, 0)));
}

#[test]
fn settings_lying_around_do_not_reach_the_kernels() {
    use cubecl_common::config::RuntimeConfig;
    use cubecl_runtime::config::CubeClRuntimeConfig;
    let name = "settings_lying_around_do_not_reach_the_kernels";
    if !is_alone(name) {
        let here = tempfile::tempdir().expect("a folder");
        let settings = "[compilation]\ncache = \"local\"\ncheck_mode = \"enforce\"\n";
        std::fs::write(here.path().join("cubecl.toml"), settings).expect("a file");
        return alone(name, |c| {
            c.current_dir(here.path());
        });
    }
    assert!(Path::new("cubecl.toml").is_file());
    let gpu = device();
    assert_eq!(gpu.read_f32(&gpu.upload_f32(&[1.0], [1])), Ok(vec![1.0]));
    let config = CubeClRuntimeConfig::get();
    assert!(
        config.compilation.cache.is_none(),
        "kernels are cached under keys without their source"
    );
}

#[test]
fn cuda_bindings_are_pinned() {
    // Without the pin, a machine without a toolkit builds against the newest API there is, which drivers do not have.
    assert_eq!(option_env!("CUDARC_CUDA_VERSION"), Some("13000"));
}

#[test]
fn slow_dependencies_stay_out() {
    let manifest =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).expect("Cargo.toml");
    let lines = |start: &str| -> Vec<&str> { manifest.lines().filter(|line| line.starts_with(start)).collect() };
    // cubek multiplies build times: only who asks for it as a peer builds it.
    let cubek = lines("cubek-");
    assert!(
        !cubek.is_empty() && cubek.iter().all(|line| line.contains("optional = true")),
        "{cubek:?}"
    );
    assert!(
        matches!(lines("default = ")[..], [line] if !line.contains("cubek")),
        "not by default"
    );
}
