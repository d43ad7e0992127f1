//! Opening a CUDA device.

use std::sync::{Arc, Mutex};

use cubecl_common::config::RuntimeConfig;
use cubecl_cuda::{CudaDevice, CudaRuntime};
use cubecl_runtime::config::CubeClRuntimeConfig;
use cubecl_runtime::config::cache::CacheConfig;

use super::client::Client;
use super::cuda_status::{self, CudaDeviceInfo, CudaStatus, Version, cuda_status};
use super::device::claim;
use super::fault::Fault;
use super::kernel_cache::{self, Identity, KernelCache};
use super::{Api, Backend, Caps, Gpu, GpuError, Result};

/// The CUDA devices, or why CUDA cannot be used. Loads the driver, creates no context.
pub(super) fn cuda_devices() -> Result<CudaStatus> {
    let mut status = cuda_status();
    status.problem.take().map_or(Ok(status), Err)
}

pub(super) fn open_cuda(index: usize) -> Result<Gpu> {
    let status = cuda_devices()?;
    let Some(device) = status.devices.get(index) else {
        return Err(GpuError::Unavailable {
            device: format!("cuda:{index}"),
            why: format!("there are {} CUDA devices", status.devices.len()),
            fix: "see `acrlpd doctor` for the devices of this machine".into(),
        });
    };
    if let Some(problem) = device.problem.clone() {
        return Err(problem);
    }
    let name = device.name.clone();
    let fault = Fault::default();
    let cache = kernel_cache::of_device(index, || identity(&status, device));
    // Kernels in the cache were compiled by this compiler and taken by this driver.
    if !cache.as_ref().is_some_and(|c| c.was_filled()) {
        cuda_status::try_out(index, device)?;
    }
    let client = cuda_client(index, cache.as_deref())?;
    claim(&client, &fault, &name)?;
    let properties = client.properties().clone();
    let hardware = &properties.hardware;
    let memory = properties.memory.max_page_size * 4; // cubecl sets the page limit to a quarter of the memory
    let caps = Caps {
        name,
        api: Api::Cuda,
        plane: Some(hardware.plane_size_max),
        memory_bytes: Some(memory),
        cuda_arch: Some(device.number()),
        multiprocessors: hardware.num_streaming_multiprocessors,
        max_units: hardware.max_units_per_cube,
        max_shared_bytes: hardware.max_shared_memory_size as u32,
        max_cubes: [
            hardware.max_cube_count.0,
            hardware.max_cube_count.1,
            hardware.max_cube_count.2,
        ],
        max_page_bytes: memory,
        pool_page_bytes: properties.memory.max_page_size,
        pool_alignment: properties.memory.alignment,
        ..Caps::planning()
    };
    Ok(Gpu::new(Backend::Cuda(client), caps, fault))
}

/// Everything that a kernel's code on this device follows from.
fn identity(status: &CudaStatus, device: &CudaDeviceInfo) -> crate::files::Result<Identity> {
    let version = |v: Option<Version>| v.map_or(String::new(), |v| v.to_string());
    let mut identity = Identity::of_program()?
        .with("driver", version(status.driver))
        .with("nvrtc", version(status.nvrtc))
        .with("nvrtc library", nvrtc_library())
        .with("device", &device.name)
        .with("architecture", device.arch());
    if let Some(folder) = &status.headers {
        for header in cuda_status::HEADERS.iter().chain(&["cuda_runtime_api.h"]) {
            let path = folder.join(header);
            if path.is_file() {
                identity = identity.with_content(header, &path)?;
            }
        }
    }
    Ok(identity)
}

/// Which file NVRTC was loaded from, with its size and time: its version does not tell updates apart.
fn nvrtc_library() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps.lines().filter_map(|l| l.find('/').map(|at| &l[at..]));
    let path = path.into_iter().find(|p| p.contains("libnvrtc.so")).unwrap_or_default();
    let meta = std::fs::metadata(path).ok();
    let time = meta.as_ref().and_then(|m| m.modified().ok());
    format!("{path} {:?} {time:?}", meta.map(|m| m.len()))
}

/// cubecl's client of a CUDA device, which reads and fills `cache`.
fn cuda_client(index: usize, cache: Option<&KernelCache>) -> Result<Client<CudaRuntime>> {
    // Another device must not be opened with this one's cache, nor with another's guard.
    static OPENING: Mutex<()> = Mutex::new(());
    let _one = OPENING.lock().unwrap_or_else(|e| e.into_inner());
    let before = CubeClRuntimeConfig::get();
    if let Some(cache) = cache.filter(|_| before.compilation.cache.is_none()) {
        let mut config = (*before).clone();
        config.compilation.cache = Some(CacheConfig::File(cache.root().to_owned()));
        *CubeClRuntimeConfig::storage().lock() = Some(Arc::new(config));
    }
    let client = super::fault::guarded(|| Client::<CudaRuntime>::load(&CudaDevice { index }));
    *CubeClRuntimeConfig::storage().lock() = Some(before);
    client.map_err(|why| {
        super::fault::explained(GpuError::DeviceThread {
            device: format!("cuda:{index}"),
            why,
        })
    })
}
