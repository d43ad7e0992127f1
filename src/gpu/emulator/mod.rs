//! A CUDA device made of a C++ compiler: kernels are the CUDA C++ that real devices get, hand-written and generated, built
//! for this machine against `shaders/cuda/include/emulated.h` and run on real memory. That header says what it takes from
//! hardware and what it checks.
//!
//! It is for correctness: numbers in bf16, edges of tiles, waits and barriers, where there is no GPU. It is some ten
//! thousand times slower than one, and says nothing about time.
//!
//! Programs are kept in the folder `ACRLPD_EMULATOR_CACHE`, by a hash of source, header and compiler, and else in a
//! temporary one.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use cubecl_core::ir::DeviceProperties;
use cubecl_runtime::id::KernelId;
use cubecl_runtime::logging::ServerLogger;
use cubecl_runtime::memory_management::{
    ManagedMemoryHandle, MemoryAllocationMode, MemoryConfiguration, MemoryManagement, MemoryManagementOptions,
};
use cubecl_runtime::server::{Binding, CopyDescriptor, KernelArguments, TensorMapBinding};
use cubecl_runtime::storage::{BytesResource, BytesStorage};
use cubecl_runtime::tma::{TensorMapFormat, TensorMapSwizzle};
use xxhash_rust::xxh3::xxh3_64;

use super::{GpuError, Result};

/// Names of C++ compilers, in the order they are tried.
const COMPILERS: [&str; 3] = ["g++", "c++", "clang++"];
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O1",
    "-w",
    "-fPIC",
    "-shared",
    "-march=native",
    "-fno-strict-aliasing",
    // As written: what is fused is fused by name.
    "-ffp-contract=off",
    "-DACRLPD_EMULATED",
];
const HEADER: &str = include_str!("../../../shaders/cuda/include/emulated.h");
const GENERATED: &str = include_str!("../../../shaders/cuda/include/generated.h");

/// What `acrlpd_launch` of a program takes: arguments by address, grid, block, and what decides the order of things.
type Launch = unsafe extern "C" fn(*mut *mut c_void, *const u32, *const u32, u64) -> *const c_char;

/// A kernel, built and loaded.
struct Program {
    launch: Launch,
    /// Keeps the code in memory.
    _library: libloading::Library,
}

/// The memory and the programs of an emulated device.
pub(super) struct Emulator {
    memory: MemoryManagement<BytesStorage>,
    programs: HashMap<KernelId, Arc<Program>>,
    compiler: PathBuf,
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    launches: u64,
}

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Emulator({})", self.compiler.display())
    }
}

/// The C++ compiler that programs are built with: `CXX`, or the first of the usual names that answers.
fn compiler() -> Result<PathBuf> {
    let named = std::env::var_os("CXX").map(PathBuf::from);
    let usual = COMPILERS.iter().map(PathBuf::from);
    let answers = |path: &PathBuf| {
        Command::new(path)
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
    };
    named
        .into_iter()
        .chain(usual)
        .find(answers)
        .ok_or_else(|| GpuError::Unavailable {
            device: "emulated".into(),
            why: "there is no C++ compiler".into(),
            fix: "install g++ or clang, or name one in CXX".into(),
        })
}

/// Whether there is what an emulated device needs: a compiler, and a folder for programs if one is named.
pub(super) fn available() -> Result<()> {
    compiler()?;
    let Some(folder) = std::env::var_os("ACRLPD_EMULATOR_CACHE") else {
        return Ok(());
    };
    std::fs::create_dir_all(&folder).map_err(|e| GpuError::Unavailable {
        device: "emulated".into(),
        why: format!("the folder {} cannot be made: {e}", folder.display()),
        fix: "name another one in ACRLPD_EMULATOR_CACHE".into(),
    })
}

/// A tensor map as `emulated.h` reads it.
#[repr(C, align(64))]
struct Map {
    base: u64,
    size: [u64; 3],
    stride_bytes: [u64; 2],
    tile: [u64; 3],
    element_bytes: u64,
    swizzled: u64,
    unused: [u64; 5],
}

impl Emulator {
    pub(super) fn new(
        properties: &DeviceProperties,
        logger: Arc<ServerLogger>,
    ) -> std::result::Result<Emulator, String> {
        let compiler = compiler().map_err(|e| e.to_string())?;
        let (folder, temporary) = match std::env::var_os("ACRLPD_EMULATOR_CACHE") {
            Some(folder) => (PathBuf::from(folder), None),
            None => {
                let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Emulator {
            memory: MemoryManagement::from_configuration(
                BytesStorage::default(),
                &properties.memory,
                MemoryConfiguration::SubSlices,
                logger,
                MemoryManagementOptions::new("emulated device"),
            ),
            programs: HashMap::new(),
            compiler,
            folder,
            _temporary: temporary,
            launches: 0,
        })
    }

    pub(super) fn allocate(&mut self, memory: ManagedMemoryHandle, bytes: u64) -> std::result::Result<(), String> {
        let reserved = self.memory.reserve(bytes).map_err(|e| format!("{e:?}"))?;
        self.memory.bind(reserved, memory, 0).map_err(|e| format!("{e:?}"))
    }

    pub(super) fn mode(&mut self, mode: MemoryAllocationMode) {
        self.memory.mode(mode);
    }

    pub(super) fn resource(&mut self, binding: Binding) -> std::result::Result<BytesResource, String> {
        self.memory
            .get_resource(binding.memory, binding.offset_start, binding.offset_end)
            .map_err(|e| format!("{e:?}"))
    }

    pub(super) fn read(&mut self, from: CopyDescriptor) -> std::result::Result<Vec<u8>, String> {
        let bytes = from.shape.iter().product::<usize>() * from.elem_size;
        Ok(self.resource(from.handle)?.read()[..bytes].to_vec())
    }

    pub(super) fn write(&mut self, to: CopyDescriptor, bytes: &[u8]) -> std::result::Result<(), String> {
        self.resource(to.handle)?.write()[..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// Has this kernel been built?
    pub(super) fn knows(&self, id: &KernelId) -> bool {
        self.programs.contains_key(id)
    }

    /// Builds a kernel, or loads it if it was built before.
    pub(super) fn build(&mut self, id: KernelId, entry: &str, source: &str) -> std::result::Result<(), String> {
        let text = translate(entry, source);
        let key = xxh3_64(format!("{text}{HEADER}{FLAGS:?}{}", self.compiler.display()).as_bytes());
        let file = self.folder.join(format!("{entry:.60}-{key:016x}.so"));
        if !file.exists() {
            self.compile(&text, &file)?;
        }
        // SAFETY: the program is ours; loading it runs no code of its own.
        let program = unsafe {
            let library = libloading::Library::new(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            let launch = *library.get::<Launch>(b"acrlpd_launch").map_err(|e| e.to_string())?;
            Program {
                launch,
                _library: library,
            }
        };
        self.programs.insert(id, Arc::new(program));
        Ok(())
    }

    fn compile(&self, text: &str, file: &Path) -> std::result::Result<(), String> {
        let work = tempfile::tempdir_in(&self.folder).map_err(|e| e.to_string())?;
        let (source, made) = (work.path().join("kernel.cpp"), work.path().join("kernel.so"));
        std::fs::write(work.path().join("emulated.h"), HEADER).map_err(|e| e.to_string())?;
        std::fs::write(&source, text).map_err(|e| e.to_string())?;
        let out = Command::new(&self.compiler)
            .args(FLAGS)
            .arg("-o")
            .args([&made, &source])
            .output()
            .map_err(|e| format!("{}: {e}", self.compiler.display()))?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned());
        }
        // Another process may do the same: whoever is last wins, with the same contents.
        std::fs::rename(&made, file).map_err(|e| format!("{}: {e}", file.display()))
    }

    /// Runs a kernel that was built, to its end.
    pub(super) fn launch(
        &mut self,
        id: &KernelId,
        grid: [u32; 3],
        block: [u32; 3],
        arguments: KernelArguments,
    ) -> std::result::Result<(), String> {
        let mut pointers = Vec::new();
        let mut maps = Vec::new();
        for TensorMapBinding { binding, map } in arguments.tensor_maps {
            let base = self.resource(binding)?.get_write_ptr_and_length().0;
            let TensorMapFormat::Tiled(tiled) = &map.format else {
                return Err("only tiled tensor maps are emulated".into());
            };
            let (shape, strides) = (map.metadata.shape(), map.metadata.strides());
            let size = map.storage_ty.size() as u64;
            maps.push(Map {
                base: base as u64,
                size: [shape[2] as u64, shape[1] as u64, shape[0] as u64],
                stride_bytes: [strides[1] as u64 * size, strides[0] as u64 * size],
                tile: [tiled.tile_size[2], tiled.tile_size[1], tiled.tile_size[0]].map(|t| t as u64),
                element_bytes: size,
                swizzled: u64::from(map.swizzle == TensorMapSwizzle::B128),
                unused: [0; 5],
            });
            checked(maps.last())?;
            pointers.push(base);
        }
        for binding in arguments.buffers {
            pointers.push(self.resource(binding)?.get_write_ptr_and_length().0);
        }
        let mut info = arguments.info.data;
        if arguments.info.dynamic_metadata_offset < info.len() {
            pointers.push(info[arguments.info.dynamic_metadata_offset..].as_mut_ptr().cast());
        }
        let maps = maps.iter_mut().map(|m| (m as *mut Map).cast::<c_void>());
        let pointers = pointers.iter_mut().map(|p| (p as *mut *mut u8).cast::<c_void>());
        let scalars = std::iter::once(info.as_mut_ptr().cast::<c_void>());
        let mut arguments: Vec<*mut c_void> = maps.chain(pointers).chain(scalars).collect();
        let program = self.programs.get(id).ok_or("the kernel was not built")?.clone();
        self.launches += 1;
        // Devices may share a loaded program, whose threads and shared memory there is one of.
        static RUNNING: Mutex<()> = Mutex::new(());
        let _running = RUNNING.lock().unwrap_or_else(|e| e.into_inner());
        // SAFETY: the arguments are those of the kernel, in CUDA's order; memory lies in this process and stays until
        // the kernel has ended, which it has when this returns.
        let failure = unsafe {
            let text = (program.launch)(arguments.as_mut_ptr(), grid.as_ptr(), block.as_ptr(), self.launches);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        failure.map_or(Ok(()), Err)
    }
}

/// What the driver would refuse.
fn checked(map: Option<&Map>) -> std::result::Result<(), String> {
    let Some(m) = map else { return Ok(()) };
    let whole = m.base.is_multiple_of(16) && m.stride_bytes.iter().all(|s| s.is_multiple_of(16));
    let small = m.tile.iter().all(|&t| t > 0 && t <= 256) && m.tile[0] * m.element_bytes <= 128;
    if whole && small && m.size.iter().all(|&n| n > 0 && n <= u32::MAX.into()) {
        return Ok(());
    }
    Err(format!(
        "the driver would refuse this tensor map: base {:#x}, size {:?}, strides {:?} bytes, box {:?}",
        m.base, m.size, m.stride_bytes, m.tile
    ))
}

/// CUDA C++ as this machine's compiler takes it.
fn translate(entry: &str, source: &str) -> String {
    let generated = source.contains("#include <cuda_runtime.h>");
    let line = |line: &str| match line.trim() {
        // The headers stand in front, and a program is one file.
        l if l.starts_with("#include <") || l == "#pragma once" => String::new(),
        l if l.starts_with("extern __shared__") => "DYNAMIC_SHARED(dynamic_shared_mem);".into(),
        _ => line.to_owned(),
    };
    let body: Vec<String> = source.lines().map(line).collect();
    let front = if generated { GENERATED } else { "" };
    format!("{front}\n{}\nACRLPD_ENTRY({entry})\n", body.join("\n"))
}
