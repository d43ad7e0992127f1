//! Compiles CUDA sources with NVRTC and its assembler, no GPU and no driver needed.
//!
//! The compiler comes from NVIDIA's wheels on PyPI (`./x test` and `./x cuda-check` install them into a virtual environment
//! and set `ACRLPD_CUDA_WHEELS` to their `nvidia/cu13` folder and `LD_LIBRARY_PATH` to its `lib`).

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::RwLock;

use cudarc::nvrtc::result as nvrtc;
use tempfile::TempDir;

/// A folder with NVRTC and the CUDA headers.
pub struct Toolchain {
    root: PathBuf,
    version: String,
    /// Precompiled headers: without them a kernel takes seconds, nearly all of them for CUDA's headers.
    headers: TempDir,
    /// Architectures and headers that are in there. NVRTC writes them when it meets a set first, which no other thread may
    /// see half done.
    precompiled: RwLock<HashSet<String>>,
}

/// What the assembler says about one kernel.
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
        if !unsafe { cudarc::nvrtc::sys::is_culib_present() } || !root.join("include").is_dir() {
            return None;
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there, and both are valid for a write.
        let asked = unsafe { cudarc::nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
        asked.result().ok()?;
        Some(Toolchain {
            root,
            version: format!("NVRTC {major}.{minor}"),
            headers: tempfile::tempdir().ok()?,
            precompiled: RwLock::default(),
        })
    }

    /// Name and version of the compiler.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles `source` for `arch` (such as `sm_90a`); the error is the compiler's log.
    pub fn compile(&self, source: &str, arch: &str) -> Result<Resources, String> {
        let includes: String = source.lines().filter(|l| l.starts_with("#include")).collect();
        let set = format!("{arch} {includes}");
        let known = self.precompiled.read().unwrap_or_else(|e| e.into_inner());
        if includes.is_empty() || known.contains(&set) {
            return self.assemble(source, arch);
        }
        drop(known);
        let mut known = self.precompiled.write().unwrap_or_else(|e| e.into_inner());
        known.insert(set);
        self.assemble(source, arch)
    }

    fn assemble(&self, source: &str, arch: &str) -> Result<Resources, String> {
        let include = |p: &Path| format!("--include-path={}", p.display());
        let options = [
            "--pch".into(),
            format!("--pch-dir={}", self.headers.path().display()),
            format!("--gpu-architecture={arch}"),
            "--ptxas-options=-v".into(),
            include(&self.root.join("include")),
            include(&self.root.join("include/cccl")),
        ];
        let (_, log) = compile(source, &options)?;
        // The kernel would be right, and a fraction as fast.
        if log.contains("wgmma.mma_async instructions are serialized") {
            return Err(log);
        }
        parse(&log).ok_or(format!("the log does not say what the kernel needs:\n{log}"))
    }
}

/// The PTX of a kernel that needs nothing but the compiler: if this fails, no kernel compiles.
///
/// # Errors
/// The compiler's log, in one line.
pub(super) fn first_kernel(arch: &str) -> Result<Vec<u8>, String> {
    const SOURCE: &str = "extern \"C\" __global__ void first(float *x) { x[threadIdx.x] += 1.0f; }";
    let compiled = compile(SOURCE, &[format!("--gpu-architecture={arch}")]);
    let (ptx, _) = compiled.map_err(|log| log.split_whitespace().collect::<Vec<_>>().join(" "))?;
    Ok(ptx)
}

/// PTX and the compiler's log; the error is the log.
fn compile(source: &str, options: &[String]) -> Result<(Vec<u8>, String), String> {
    let source = CString::new(source).map_err(|e| e.to_string())?;
    let program = nvrtc::create_program(&source, None).map_err(|e| format!("{e:?}"))?;
    // SAFETY: `program` is valid until it is destroyed.
    unsafe {
        let compiled = nvrtc::compile_program(program, options);
        let log = nvrtc::get_program_log(program).map_err(|e| format!("{e:?}"));
        let log = log.map(|log| CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned());
        let ptx = compiled.as_ref().ok().map(|()| nvrtc::get_ptx(program));
        let _ = nvrtc::destroy_program(program);
        match (compiled, ptx) {
            (Ok(()), Some(Ok(ptx))) => Ok((ptx.iter().map(|&c| c as u8).take_while(|&b| b != 0).collect(), log?)),
            // Some failures are not the source's, and leave no log.
            (Err(error), _) => Err(log
                .ok()
                .filter(|l| !l.trim().is_empty())
                .unwrap_or(format!("{error:?}"))),
            (_, ptx) => Err(format!("no PTX: {ptx:?}")),
        }
    }
}

/// Reads what `ptxas -v` says: the most that any kernel in the source needs.
fn parse(log: &str) -> Option<Resources> {
    let number_before = |unit: &str| -> Option<u32> {
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
    };
    Some(Resources {
        registers: number_before(" registers")?,
        shared_bytes: number_before(" bytes smem").unwrap_or(0),
        spill_bytes: number_before(" bytes spill stores")? + number_before(" bytes spill loads")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_ptxas_is_understood() {
        let log = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'k' for 'sm_90a'\n\
                   ptxas info    : Function properties for k\n    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads\n\
                   ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]\n";
        let found = Resources {
            registers: 168,
            shared_bytes: 1024,
            spill_bytes: 16,
        };
        assert_eq!(parse(log), Some(found));
        assert_eq!(parse("ptxas info    : 0 bytes gmem\n"), None);
    }
}
