//! Which device to use, and opening it without a panic.

use std::str::FromStr;
use std::sync::Arc;

use cubecl::prelude::{ComputeClient, Runtime};
use cubecl_common::config::RuntimeConfig;
use cubecl_common::future::block_on;
use cubecl_runtime::config::CubeClRuntimeConfig;
use cubecl_runtime::memory_management::MemoryAllocationMode;
use cubecl_runtime::server::Handle;
use cubecl_wgpu::{RuntimeOptions, WgpuRuntime, WgpuSetup, init_device};
use wgpu::DeviceType;

use super::client::Client;
use super::device_cuda::{cuda_devices, open_cuda};
use super::fault::Fault;
use super::{Api, Backend, Caps, Cooperative, Dialect, Gpu, GpuError, MOST_BINDING_BYTES, Result};

/// What `--device` may say: `auto`, an API with an optional index (`cuda:1`, `vulkan:0`), or a CUDA device emulated on the
/// CPU with its compute capability (`emulated:90`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// CUDA if it is usable, else the best wgpu adapter, else software Vulkan.
    #[default]
    Auto,
    /// A CUDA device by ordinal.
    Cuda(usize),
    /// The `n`-th adapter of a wgpu API, best first.
    Wgpu(Api, usize),
    /// CUDA's kernels of this compute capability, on the CPU.
    Emulated(u32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = text.split_once(':').unwrap_or((text, "0"));
        let index = index
            .parse::<usize>()
            .map_err(|_| format!("`{index}` in `{text}` is not a device number"))?;
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(DeviceChoice::Auto),
            "cuda" => Ok(DeviceChoice::Cuda(index)),
            "vulkan" => Ok(DeviceChoice::Wgpu(Api::Vulkan, index)),
            "metal" => Ok(DeviceChoice::Wgpu(Api::Metal, index)),
            "dx12" => Ok(DeviceChoice::Wgpu(Api::Dx12, index)),
            "emulated" if text.contains(':') => Ok(DeviceChoice::Emulated(index as u32)),
            "emulated" => Ok(DeviceChoice::Emulated(90)),
            _ => Err(format!(
                "`{text}` is not a device; use auto, cuda, vulkan, metal, dx12 or emulated, e.g. vulkan:0"
            )),
        }
    }
}

/// One adapter of this machine, for `acrlpd doctor`.
#[derive(Clone, Debug)]
pub struct AdapterInfo {
    /// What to pass to `--device`.
    pub device: String,
    pub name: String,
    pub driver: String,
    pub software: bool,
}

/// Every adapter that could be opened, in the order `auto` would try them.
pub fn adapters() -> Vec<AdapterInfo> {
    let mut list = Vec::new();
    if let Ok(status) = cuda_devices() {
        let driver = status.driver.map_or("CUDA".into(), |v| format!("CUDA {v}"));
        let usable = status
            .devices
            .into_iter()
            .enumerate()
            .filter(|(_, d)| d.problem.is_none());
        list.extend(usable.map(|(i, device)| AdapterInfo {
            device: format!("cuda:{i}"),
            name: device.name,
            driver: driver.clone(),
            software: false,
        }));
    }
    for api in [Api::Vulkan, Api::Metal, Api::Dx12] {
        for (i, adapter) in wgpu_adapters(api).into_iter().enumerate() {
            let info = adapter.get_info();
            list.push(AdapterInfo {
                device: format!("{}:{i}", api.to_string().to_lowercase()),
                name: info.name,
                driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
                software: info.device_type == DeviceType::Cpu,
            });
        }
    }
    list
}

impl Gpu {
    /// Opens a device. `auto` never fails where any adapter exists; software rendering is announced in the log.
    pub fn open(choice: DeviceChoice) -> Result<Gpu> {
        own_config();
        match choice {
            DeviceChoice::Cuda(index) => open_cuda(index),
            DeviceChoice::Wgpu(api, index) => open_wgpu(api, index),
            DeviceChoice::Emulated(arch) => Gpu::emulated_cuda(arch),
            DeviceChoice::Auto => {
                match cuda_devices() {
                    Ok(status) => match status.devices.iter().position(|d| d.problem.is_none()) {
                        Some(index) => return open_cuda(index),
                        None => status
                            .devices
                            .iter()
                            .filter_map(|d| d.problem.as_ref())
                            .for_each(unused),
                    },
                    Err(problem) => unused(&problem),
                }
                let best = [Api::Metal, Api::Dx12, Api::Vulkan]
                    .into_iter()
                    .filter_map(|api| wgpu_adapters(api).first().map(|a| (rank(a), api)))
                    .min_by_key(|&(rank, _)| rank);
                match best {
                    Some((_, api)) => open_wgpu(api, 0),
                    None => Err(no_adapter("auto", Api::Vulkan)),
                }
            }
        }
    }
}

/// Tells that a machine with the NVIDIA driver is about to use something else.
fn unused(problem: &GpuError) {
    // SAFETY: this only tries to load the library.
    if unsafe { cudarc::driver::sys::is_culib_present() } {
        tracing::warn!("{problem}; looking for another device");
    }
}

/// Keeps cubecl from reading `cubecl.toml` or `burn.toml` of the working directory and its parents: what it finds there
/// may switch on caches of compiled kernels, whose keys do not depend on the kernels' sources. A configuration that the
/// program has set before is left alone. Our own cache is behind one whose keys do (`kernel_cache`).
pub(super) fn own_config() {
    let mut config = CubeClRuntimeConfig::storage().lock();
    if config.is_none() {
        *config = Some(Arc::new(CubeClRuntimeConfig::default().override_from_env()));
    }
}

fn no_adapter(device: &str, api: Api) -> GpuError {
    let fix = match api {
        Api::Metal if !cfg!(target_os = "macos") => "Metal is part of macOS: use --device vulkan or auto",
        Api::Dx12 if !cfg!(target_os = "windows") => "DX12 is part of Windows: use --device vulkan or auto",
        Api::Vulkan if cfg!(target_os = "linux") => {
            "install the driver of your GPU, or software Vulkan with `apt-get install mesa-vulkan-drivers`"
        }
        _ => "install the driver of your GPU",
    };
    GpuError::Unavailable {
        device: device.into(),
        why: "no adapter was found".into(),
        fix: fix.into(),
    }
}

/// Lower is better: real GPUs first, software last.
fn rank(adapter: &wgpu::Adapter) -> u32 {
    match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

fn wgpu_adapters(api: Api) -> Vec<wgpu::Adapter> {
    let backends = match api {
        Api::Vulkan => wgpu::Backends::VULKAN,
        Api::Metal => wgpu::Backends::METAL,
        Api::Dx12 => wgpu::Backends::DX12,
        _ => return Vec::new(),
    };
    let mut adapters = block_on(instance(backends).enumerate_adapters(backends));
    adapters.sort_by_key(rank);
    adapters
}

fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends,
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
}

fn open_wgpu(api: Api, index: usize) -> Result<Gpu> {
    let device_name = format!("{}:{index}", api.to_string().to_lowercase());
    let unavailable = |why: String| GpuError::Unavailable {
        device: device_name.clone(),
        why,
        fix: "see `acrlpd doctor` for the adapters of this machine".into(),
    };
    let mut adapters = wgpu_adapters(api);
    if adapters.is_empty() {
        return Err(no_adapter(&device_name, api));
    }
    if index >= adapters.len() {
        return Err(unavailable(format!(
            "there are {} adapters of this kind",
            adapters.len()
        )));
    }
    let adapter = adapters.swap_remove(index);
    let info = adapter.get_info();
    let software = info.device_type == DeviceType::Cpu;
    if software {
        tracing::warn!(
            "running on {}: software rendering, fit for tests and debugging",
            info.name
        );
    }
    let matrices = adapter.cooperative_matrix_properties();
    let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor {
        label: Some("acrlpd"),
        required_features: adapter.features().difference(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        trace: wgpu::Trace::Off,
        // SAFETY: experimental features are only switched on here, by the kernels that need them.
        experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
    }))
    .map_err(|e| unavailable(e.to_string()))?;

    let fault = Fault::default();
    let (sink, name) = (fault.clone(), info.name.clone());
    device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        let why = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        sink.set(GpuError::Launch {
            device: name.clone(),
            why,
        });
    }));

    let (sink, name) = (fault.clone(), info.name.clone());
    device.set_device_lost_callback(move |reason, why| {
        // The end of the program destroys the device, which is no loss.
        if reason != wgpu::DeviceLostReason::Destroyed {
            sink.set(GpuError::Launch {
                device: name.clone(),
                why: format!("device lost: {why}"),
            });
        }
    });

    let (limits, features) = (device.limits(), device.features());
    let caps = Caps {
        name: info.name.clone(),
        api,
        software,
        // Drivers report a size even where shaders may not use subgroups.
        plane: (features.contains(wgpu::Features::SUBGROUP)
            && info.subgroup_min_size == info.subgroup_max_size
            && info.subgroup_min_size > 0)
            .then_some(info.subgroup_min_size),
        cooperative: cooperative(api, &info, features, &matrices),
        wide_loads: features.contains(wgpu::Features::SHADER_INT64),
        lanes: if software { 2 } else { 4 },
        u16: false,
        f16: features.contains(wgpu::Features::SHADER_F16),
        bf16: false,
        max_binding_bytes: limits
            .max_storage_buffer_binding_size
            .min(limits.max_buffer_size)
            .min(MOST_BINDING_BYTES),
        max_page_bytes: limits.max_buffer_size,
        pool_page_bytes: limits.max_storage_buffer_binding_size,
        pool_alignment: limits.min_uniform_buffer_offset_alignment.into(),
        memory_bytes: None,
        cuda_arch: None,
        multiprocessors: None,
        max_units: limits.max_compute_invocations_per_workgroup,
        max_shared_bytes: limits.max_compute_workgroup_storage_size,
        max_cubes: [limits.max_compute_workgroups_per_dimension; 3],
        alignment: 256,
    };
    let backend = wgpu_backend(api);
    let setup = WgpuSetup {
        instance: instance(wgpu::Backends::from(backend)),
        adapter,
        device,
        queue,
        backend,
    };
    let device = init_device(setup, RuntimeOptions::default());
    let client = Client::<WgpuRuntime>::load(&device);
    claim(&client, &fault, &info.name)?;
    Ok(Gpu::new(Backend::Wgpu(client), caps, fault))
}

/// The matrix units of an adapter that kernels can use: square matrices that WGSL has a name for, added up in f32.
fn cooperative(
    api: Api,
    info: &wgpu::AdapterInfo,
    features: wgpu::Features,
    offered: &[wgpu::CooperativeMatrixProperties],
) -> Option<Cooperative> {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX | wgpu::Features::SUBGROUP) {
        return None;
    }
    let side = |of| {
        let fits = |p: &&wgpu::CooperativeMatrixProperties| {
            (p.ab_type, p.cr_type) == (of, F32)
                && (p.m_size, p.n_size) == (p.k_size, p.k_size)
                && matches!(p.k_size, 8 | 16)
        };
        offered.iter().filter(fits).map(|p| p.k_size).max()
    };
    let (dialect, subgroup) = match api {
        // Apple's subgroups have 32 units; Metal names no number.
        Api::Metal => (Dialect::Metal, 32),
        Api::Vulkan => (Dialect::Vulkan, info.subgroup_max_size.clamp(8, 64)),
        _ => return None,
    };
    // naga 29 writes a product of f16 matrices for Metal with sums in f16.
    let halves = side(F16).filter(|_| api == Api::Vulkan && features.contains(wgpu::Features::SHADER_F16));
    let floats = side(F32);
    (halves.is_some() || floats.is_some()).then_some(Cooperative {
        halves,
        floats,
        dialect,
        subgroup,
    })
}

fn wgpu_backend(api: Api) -> wgpu::Backend {
    match api {
        Api::Metal => wgpu::Backend::Metal,
        Api::Dx12 => wgpu::Backend::Dx12,
        _ => wgpu::Backend::Vulkan,
    }
}

/// Marks the thread that feeds this device, so that a panic on it becomes an error.
pub(super) fn claim<R: Runtime>(client: &ComputeClient<R>, fault: &Fault, name: &str) -> Result<()> {
    let (fault, device) = (fault.clone(), name.to_string());
    client
        .exclusive(move || fault.claim_thread(device))
        .map_err(|e| GpuError::DeviceThread {
            device: name.to_string(),
            why: super::fault::first_sentence(&e),
        })
}

/// A page of exactly `bytes` on the device.
pub(super) fn page(backend: &Backend, bytes: u64) -> Result<Option<Handle>> {
    match backend {
        Backend::Wgpu(c) => persistent(c, bytes).map(Some),
        Backend::Cuda(c) => persistent(c, bytes).map(Some),
        Backend::Dry(c) => persistent(c, bytes).map(Some),
        Backend::DryWgpu(c) => persistent(c, bytes).map(Some),
        Backend::Null => Ok(None),
    }
}

fn persistent<R: Runtime>(client: &ComputeClient<R>, bytes: u64) -> Result<Handle> {
    // Persistent memory is allocated exactly; cubecl's pools would round a page of gigabytes up to the next class.
    // SAFETY: the mode is changed and restored on our own stream, with nothing in between but this allocation.
    unsafe { client.allocation_mode(MemoryAllocationMode::Persistent) };
    let handle = client.empty(bytes as usize);
    unsafe { client.allocation_mode(MemoryAllocationMode::Auto) };
    client.flush().map_err(|e| GpuError::Launch {
        device: "the device".into(),
        why: format!(
            "{bytes} bytes could not be allocated: {}",
            super::fault::first_sentence(&e)
        ),
    })?;
    Ok(handle)
}
