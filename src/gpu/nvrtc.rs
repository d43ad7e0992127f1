//! Compiles CUDA sources with NVRTC and ptxas, no GPU and no driver needed.
//!
//! The compiler comes from NVIDIA's wheels on PyPI (`./x cuda-check` installs them into a virtual environment and
//! sets `ACRLPD_CUDA_WHEELS` to their `nvidia/cu13` folder and `LD_LIBRARY_PATH` to its `lib`).

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;

/// A folder with NVRTC, ptxas and the CUDA headers.
pub struct Toolchain {
    root: PathBuf,
    /// Precompiled headers: without them a kernel takes seconds, nearly all of them for CUDA's headers. Behind a lock,
    /// as NVRTC writes them when it first meets a set of headers.
    headers: Mutex<TempDir>,
}

/// What ptxas says about one kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared_bytes: u32,
    /// Bytes of registers spilled to local memory: stores plus loads.
    pub spill_bytes: u32,
}

impl Toolchain {
    /// The wheels named by `ACRLPD_CUDA_WHEELS`, if they can be used.
    pub fn from_env() -> Option<Toolchain> {
        let root = PathBuf::from(std::env::var_os("ACRLPD_CUDA_WHEELS")?);
        // SAFETY: only tries to load the library.
        let nvrtc = unsafe { cudarc::nvrtc::sys::is_culib_present() };
        if !nvrtc || !root.join("bin/ptxas").is_file() {
            return None;
        }
        let headers = Mutex::new(tempfile::tempdir().ok()?);
        Some(Toolchain { root, headers })
    }

    /// Compiles `source` for `arch` (such as `sm_90a`); the error is the compiler's log.
    pub fn compile(&self, source: &str, arch: &str) -> Result<Resources, String> {
        let ptx = self.ptx(source, arch)?;
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let (ptx_file, cubin) = (folder.path().join("k.ptx"), folder.path().join("k.cubin"));
        std::fs::write(&ptx_file, ptx).map_err(|e| e.to_string())?;
        let out = Command::new(self.root.join("bin/ptxas"))
            .args(["-v", &format!("-arch={arch}")])
            .arg(&ptx_file)
            .arg("-o")
            .arg(&cubin)
            .output()
            .map_err(|e| e.to_string())?;
        let log = String::from_utf8_lossy(&out.stderr).into_owned();
        if out.status.success() {
            Ok(parse(&log))
        } else {
            Err(log)
        }
    }

    fn ptx(&self, source: &str, arch: &str) -> Result<Vec<u8>, String> {
        use cudarc::nvrtc::result as nvrtc;
        let include = |p: &Path| format!("--include-path={}", p.display());
        let headers = self.headers.lock().unwrap_or_else(|e| e.into_inner());
        let options = [
            "--pch".into(),
            format!("--pch-dir={}", headers.path().display()),
            format!("--gpu-architecture={arch}"),
            include(&self.root.join("include")),
            include(&self.root.join("include/cccl")),
        ];
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let program = nvrtc::create_program(&source, None).map_err(|e| format!("{e:?}"))?;
        // SAFETY: `program` is valid until destroyed below.
        unsafe {
            let compiled = nvrtc::compile_program(program, &options);
            let result = match compiled {
                Err(_) => {
                    let log = nvrtc::get_program_log(program).map_err(|e| format!("{e:?}"))?;
                    Err(CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned())
                }
                Ok(()) => {
                    let ptx = nvrtc::get_ptx(program).map_err(|e| format!("{e:?}"))?;
                    Ok(ptx.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect())
                }
            };
            let _ = nvrtc::destroy_program(program);
            result
        }
    }
}

/// Reads `ptxas -v`.
fn parse(log: &str) -> Resources {
    let number_before = |unit: &str| -> u32 {
        log.match_indices(unit)
            .filter_map(|(at, _)| {
                log[..at]
                    .trim_end()
                    .rsplit([' ', '\n', ','])
                    .next()?
                    .parse::<u32>()
                    .ok()
            })
            .max()
            .unwrap_or(0)
    };
    Resources {
        registers: number_before(" registers"),
        shared_bytes: number_before(" bytes smem"),
        spill_bytes: number_before(" bytes spill stores") + number_before(" bytes spill loads"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_ptxas_is_understood() {
        let log = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
                   ptxas info    : Function properties for k\n    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n\
                   ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]\n";
        assert_eq!(
            parse(log),
            Resources {
                registers: 168,
                shared_bytes: 1024,
                spill_bytes: 16
            }
        );
    }
}
