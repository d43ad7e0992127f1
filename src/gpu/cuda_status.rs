//! What there is of CUDA on this machine, found out before any of it is used: cubecl and cudarc panic where a library,
//! a header or a device is missing or does not fit.
//!
//! What must hold, in the order in which it is asked:
//!
//! | what | why |
//! |---|---|
//! | libcuda can be loaded and initialised | it is the driver |
//! | libnvrtc can be loaded, and is at least 12.8 | kernels are CUDA C++; cubecl's use intrinsics of 12.8 |
//! | the driver is at least as new as NVRTC | it must understand the PTX that NVRTC writes |
//! | the CUDA headers are there | kernels include them |
//! | the device has compute capability 8.0 | bf16 |
//! | NVRTC knows the device's architecture | it compiles for that and no other |

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;
use std::path::PathBuf;

use super::{GpuError, cuda_codes};

/// Kernels need no less.
const OLDEST_NVRTC: Version = Version(12, 8);
/// Devices before Ampere have no bf16.
const OLDEST_CAPABILITY: u32 = 80;
/// Headers that kernels include.
pub(super) const HEADERS: [&str; 4] = ["cuda_runtime.h", "cuda_bf16.h", "cuda_fp16.h", "mma.h"];

/// Major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A CUDA device as the driver describes it.
#[derive(Clone, Debug)]
pub struct CudaDeviceInfo {
    pub name: String,
    /// Compute capability.
    pub capability: Version,
    /// All memory, in bytes.
    pub memory_bytes: u64,
    /// Why it cannot be used.
    pub problem: Option<GpuError>,
}

impl CudaDeviceInfo {
    /// The architecture as a number: 90 for compute capability 9.0.
    pub(super) fn number(&self) -> u32 {
        self.capability.0 * 10 + self.capability.1
    }

    /// The architecture that kernels are compiled for, as cubecl names it.
    pub(super) fn arch(&self) -> String {
        format!("sm_{}{}", self.number(), if self.number() >= 90 { "a" } else { "" })
    }
}

/// What there is of CUDA, as far as it could be found out.
#[derive(Clone, Debug, Default)]
pub struct CudaStatus {
    /// The newest CUDA that the driver supports.
    pub driver: Option<Version>,
    pub nvrtc: Option<Version>,
    /// The folder with the CUDA headers.
    pub headers: Option<PathBuf>,
    pub devices: Vec<CudaDeviceInfo>,
    /// Why CUDA cannot be used at all.
    pub problem: Option<GpuError>,
}

/// Looks at libraries, headers and devices. Creates no context on a device.
pub fn cuda_status() -> CudaStatus {
    let mut status = CudaStatus::default();
    status.problem = status.look().err();
    status
}

fn unavailable(why: impl Into<String>, fix: impl Into<String>) -> GpuError {
    GpuError::Unavailable {
        device: "cuda".into(),
        why: why.into(),
        fix: fix.into(),
    }
}

impl CudaStatus {
    fn look(&mut self) -> Result<(), GpuError> {
        // What is independent of the rest first, so that `doctor` shows it whatever else is missing.
        // SAFETY: this only tries to load the library.
        let nvrtc = unsafe { cudarc::nvrtc::sys::is_culib_present() };
        self.nvrtc = if nvrtc { nvrtc_version() } else { None };
        self.headers = headers();
        // SAFETY: the same.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(unavailable(
                "libcuda was not found",
                "install the NVIDIA driver or use --device vulkan",
            ));
        }
        self.driver = driver_version();
        let initialised = init();
        if initialised == 0 {
            self.devices = devices()?;
        } else {
            let (why, fix) = cuda_codes::told(initialised);
            return Err(unavailable(why, fix));
        }
        if !nvrtc {
            return Err(unavailable(
                "libnvrtc, which compiles the kernels, was not found",
                "install the CUDA toolkit or the wheel nvidia-cuda-nvrtc, with its folder in LD_LIBRARY_PATH, or use \
                 --device vulkan",
            ));
        }
        let (Some(driver), Some(nvrtc)) = (self.driver, self.nvrtc) else {
            let which = if self.driver.is_none() { "libcuda" } else { "libnvrtc" };
            return Err(unavailable(
                format!("{which} does not tell its version"),
                "install the NVIDIA driver and NVRTC anew",
            ));
        };
        if nvrtc < OLDEST_NVRTC {
            return Err(unavailable(
                format!("NVRTC {nvrtc} was found, but kernels need {OLDEST_NVRTC} or newer"),
                "put the libnvrtc of a newer CUDA toolkit first in LD_LIBRARY_PATH",
            ));
        }
        if driver < nvrtc {
            return Err(unavailable(
                format!(
                    "the driver supports CUDA {driver}, which is older than NVRTC {nvrtc}, and would refuse its kernels"
                ),
                "update the NVIDIA driver, or put an older libnvrtc first in LD_LIBRARY_PATH",
            ));
        }
        let Some(folder) = &self.headers else {
            return Err(unavailable(
                "the CUDA headers were not found",
                "set CUDA_PATH to the CUDA toolkit, the folder above include/cuda_runtime.h",
            ));
        };
        if let Some(missing) = HEADERS.iter().find(|h| !folder.join(h).is_file()) {
            return Err(unavailable(
                format!("`{}` has no {missing}", folder.display()),
                "install the headers of the CUDA toolkit (cudart and cccl), or set CUDA_PATH to a folder with all of them",
            ));
        }
        let known = architectures();
        for (i, device) in self.devices.iter_mut().enumerate() {
            device.problem = fits(i, device, nvrtc, &known).err();
        }
        Ok(())
    }
}

/// Can kernels be compiled for the device?
fn fits(index: usize, device: &CudaDeviceInfo, nvrtc: Version, known: &[u32]) -> Result<(), GpuError> {
    let refuse = |why: String, fix: &str| {
        Err(GpuError::Unavailable {
            device: format!("cuda:{index}"),
            why,
            fix: fix.into(),
        })
    };
    if device.number() < OLDEST_CAPABILITY {
        return refuse(
            format!(
                "{} has compute capability {}, but 8.0 is needed",
                device.name, device.capability
            ),
            "use a device of the Ampere generation or newer, or --device vulkan",
        );
    }
    // Old versions do not tell what they know.
    if !known.is_empty() && !known.contains(&device.number()) {
        return refuse(
            format!("NVRTC {nvrtc} does not know {} ({})", device.arch(), device.name),
            "install a newer CUDA toolkit (libnvrtc)",
        );
    }
    Ok(())
}

/// Where the headers are looked for, which is where cubecl looks.
fn headers() -> Option<PathBuf> {
    let folder = cubecl_cuda::install::cuda_path()?.join("include");
    folder.is_dir().then_some(folder)
}

/// A function of libcuda. Not by cudarc's bindings: these panic where it is missing, and hold codes in an enumeration,
/// which a newer driver does not keep to.
///
/// # Safety
/// libcuda can be loaded, and `F` is the function's type.
unsafe fn driver<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: by the caller.
    unsafe { Some(*cudarc::driver::sys::culib().get::<F>(name.as_bytes()).ok()?) }
}

/// The same of libnvrtc.
///
/// # Safety
/// libnvrtc can be loaded, and `F` is the function's type.
unsafe fn nvrtc<F: Copy>(name: &str) -> Option<F> {
    // SAFETY: by the caller.
    unsafe { Some(*cudarc::nvrtc::sys::culib().get::<F>(name.as_bytes()).ok()?) }
}

/// The driver's code if there is no such function.
const NOT_FOUND: c_int = 500;

fn init() -> c_int {
    // SAFETY: as the driver's documentation declares it.
    unsafe { driver::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit").map_or(NOT_FOUND, |f| f(0)) }
}

fn driver_version() -> Option<Version> {
    let mut version: c_int = 0;
    // SAFETY: as the driver's documentation declares it.
    let code = unsafe { driver::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDriverGetVersion")?(&mut version) };
    (code == 0).then_some(Version(version as u32 / 1000, version as u32 % 1000 / 10))
}

fn nvrtc_version() -> Option<Version> {
    let (mut major, mut minor): (c_int, c_int) = (0, 0);
    type Ask = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: as NVRTC's documentation declares it.
    let code = unsafe { nvrtc::<Ask>("nvrtcVersion")?(&mut major, &mut minor) };
    (code == 0).then_some(Version(major as u32, minor as u32))
}

/// What NVRTC can compile for; empty if it does not tell.
fn architectures() -> Vec<u32> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> c_int;
    // SAFETY: as NVRTC's documentation declares them; the list is as long as it says.
    unsafe {
        let (Some(number), Some(list)) = (
            nvrtc::<Ask>("nvrtcGetNumSupportedArchs"),
            nvrtc::<Ask>("nvrtcGetSupportedArchs"),
        ) else {
            return Vec::new();
        };
        let mut n = 0;
        if number(&mut n) != 0 || n <= 0 {
            return Vec::new();
        }
        let mut archs = vec![0; n as usize];
        if list(archs.as_mut_ptr()) != 0 {
            return Vec::new();
        }
        archs.into_iter().map(|a| a as u32).collect()
    }
}

fn devices() -> Result<Vec<CudaDeviceInfo>, GpuError> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let told = |code: c_int| -> Result<(), GpuError> {
        let (why, fix) = cuda_codes::told(code);
        if code == 0 { Ok(()) } else { Err(unavailable(why, fix)) }
    };
    type Count = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    // SAFETY: as the driver's documentation declares them; the name is cut to the room it is given.
    unsafe {
        let functions = (
            driver::<Count>("cuDeviceGetCount"),
            driver::<Get>("cuDeviceGet"),
            driver::<Name>("cuDeviceGetName"),
            driver::<Attribute>("cuDeviceGetAttribute"),
            driver::<Memory>("cuDeviceTotalMem_v2"),
        );
        let (Some(count), Some(get), Some(name), Some(attribute), Some(memory)) = functions else {
            return Err(unavailable(
                "libcuda lacks functions that every driver has",
                "install the NVIDIA driver anew",
            ));
        };
        let mut n = 0;
        told(count(&mut n))?;
        let mut devices = Vec::new();
        for index in 0..n {
            let (mut device, mut text, mut major, mut minor, mut bytes) = (0, [0 as c_char; 256], 0, 0, 0);
            told(get(&mut device, index))?;
            told(name(text.as_mut_ptr(), text.len() as c_int - 1, device))?;
            told(attribute(&mut major, MAJOR, device))?;
            told(attribute(&mut minor, MINOR, device))?;
            told(memory(&mut bytes, device))?;
            devices.push(CudaDeviceInfo {
                name: CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned(),
                capability: Version(major as u32, minor as u32),
                memory_bytes: bytes as u64,
                problem: None,
            });
        }
        if devices.is_empty() {
            told(100)?;
        }
        Ok(devices)
    }
}

/// Tries the whole way of a kernel on the device: a context, a compilation, and the driver's taking of the result. The
/// context stays, for cubecl.
pub(super) fn try_out(index: usize, device: &CudaDeviceInfo) -> Result<(), GpuError> {
    let refuse = |why: String, fix: String| GpuError::Unavailable {
        device: format!("cuda:{index}"),
        why,
        fix,
    };
    let told = |doing: &str, code: c_int| {
        let (why, fix) = cuda_codes::told(code);
        if code == 0 {
            Ok(())
        } else {
            Err(refuse(format!("{doing}, {why}"), fix))
        }
    };
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Retain = unsafe extern "C" fn(*mut *mut (), c_int) -> c_int;
    type SetCurrent = unsafe extern "C" fn(*mut ()) -> c_int;
    type Load = unsafe extern "C" fn(*mut *mut (), *const u8) -> c_int;
    // SAFETY: as the driver's documentation declares them, in the order it asks for.
    unsafe {
        let functions = (
            driver::<Get>("cuDeviceGet"),
            driver::<Retain>("cuDevicePrimaryCtxRetain"),
            driver::<SetCurrent>("cuCtxSetCurrent"),
            driver::<Load>("cuModuleLoadData"),
            driver::<SetCurrent>("cuModuleUnload"),
        );
        let (Some(get), Some(retain), Some(set_current), Some(load), Some(unload)) = functions else {
            return Err(refuse(
                "libcuda lacks functions that every driver has".into(),
                "install the NVIDIA driver anew".into(),
            ));
        };
        let (mut handle, mut context, mut module) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        told("opening it", get(&mut handle, index as c_int))?;
        told("opening it", retain(&mut context, handle))?;
        told("opening it", set_current(context))?;
        let mut ptx = super::nvrtc::first_kernel(&device.arch()).map_err(|log| {
            refuse(
                format!("NVRTC cannot compile the simplest kernel: {log}"),
                "install NVRTC whole (libnvrtc and libnvrtc-builtins of one version), with its folder in LD_LIBRARY_PATH"
                    .into(),
            )
        })?;
        ptx.push(0);
        told("loading the simplest kernel", load(&mut module, ptx.as_ptr()))?;
        told("unloading the simplest kernel", unload(module))
    }
}
