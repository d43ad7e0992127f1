//! Compiles the kernels of a dry device for real architectures and reports what each needs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use xxhash_rust::xxh3::xxh3_128;

use super::nvrtc::{Resources, Toolchain};
use super::{DryKernel, dry};

/// Registers of a multiprocessor, on every architecture so far.
const REGISTERS: u32 = 65_536;

/// One kernel on one architecture.
#[derive(Clone, Debug)]
pub struct CudaKernel {
    pub entry: String,
    pub arch: String,
    /// Threads in a block, and dynamic shared memory in bytes.
    pub threads: u32,
    pub shared_bytes: usize,
    /// What it needs, or the compiler's log.
    pub outcome: Result<Resources, String>,
}

/// All kernels on all architectures.
#[derive(Clone, Debug, Default)]
pub struct CudaReport {
    /// Ordered by entry point, then architecture.
    pub kernels: Vec<CudaKernel>,
}

impl CudaReport {
    /// Did everything compile?
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// Kernels that did not compile.
    pub fn failures(&self) -> impl Iterator<Item = &CudaKernel> {
        self.kernels.iter().filter(|k| k.outcome.is_err())
    }

    /// Kernels that keep registers in memory, the worst first.
    pub fn spills(&self) -> Vec<(&CudaKernel, Resources)> {
        let compiled = |k| -> Option<(_, Resources)> {
            let kernel: &CudaKernel = k;
            Some((kernel, *kernel.outcome.as_ref().ok()?))
        };
        let mut spills: Vec<_> = self.kernels.iter().filter_map(compiled).collect();
        spills.retain(|(_, r)| r.spill_bytes > 0);
        spills.sort_by_key(|(_, r)| std::cmp::Reverse(r.spill_bytes));
        spills
    }
}

/// Variants of an entry point on an architecture.
#[derive(Default)]
struct Line {
    variants: usize,
    registers: u32,
    spill_bytes: u32,
    shared_bytes: usize,
    failed: usize,
}

impl fmt::Display for CudaReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: BTreeMap<(&str, &str), Line> = BTreeMap::new();
        for kernel in &self.kernels {
            let line = lines.entry((&kernel.entry, &kernel.arch)).or_default();
            line.variants += 1;
            match &kernel.outcome {
                Ok(r) => {
                    line.registers = line.registers.max(r.registers);
                    line.spill_bytes = line.spill_bytes.max(r.spill_bytes);
                    let shared = kernel.shared_bytes + r.shared_bytes as usize;
                    line.shared_bytes = line.shared_bytes.max(shared);
                }
                Err(_) => line.failed += 1,
            }
        }
        let width = lines.keys().map(|(entry, _)| entry.len()).max().unwrap_or(0).max(6);
        writeln!(
            f,
            "{:width$}  arch     variants  registers  spills B  shared B  failed",
            "kernel"
        )?;
        for ((entry, arch), l) in &lines {
            writeln!(
                f,
                "{entry:width$}  {arch:7}  {:8}  {:9}  {:8}  {:8}  {:6}",
                l.variants, l.registers, l.spill_bytes, l.shared_bytes, l.failed
            )?;
        }
        for kernel in self.failures() {
            let log = kernel.outcome.as_ref().err().map_or("", String::as_str);
            writeln!(f, "\n{} for {} does not compile:\n{log}", kernel.entry, kernel.arch)?;
        }
        let (failed, spills) = (self.failures().count(), self.spills().len());
        write!(
            f,
            "{} kernels compiled, {failed} failed, {spills} spill registers",
            self.kernels.len() - failed
        )
    }
}

impl Toolchain {
    /// Compiles every distinct source for every architecture (such as `sm_90a`) it comes with, on all cores. What compiled
    /// is remembered in the folder `cache`, if one is given, until the source or the compiler changes.
    pub fn check(&self, work: &[(DryKernel, &str)], cache: Option<&Path>) -> CudaReport {
        // Kernels may differ in their key alone.
        let distinct: BTreeMap<(&str, &str, &str), &(DryKernel, &str)> = work
            .iter()
            .map(|w| ((w.0.entry.as_str(), w.0.source.as_str(), w.1), w))
            .collect();
        let work: Vec<_> = distinct.into_values().collect();
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(work.len())));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((kernel, arch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let compiled = self.compile_or_recall(&kernel.source, arch, cache);
                        let result = CudaKernel {
                            entry: kernel.entry.clone(),
                            arch: (*arch).into(),
                            threads: kernel.threads,
                            shared_bytes: kernel.shared_bytes,
                            outcome: compiled.and_then(|needs| launchable(kernel, arch, needs)),
                        };
                        done.lock().unwrap_or_else(|e| e.into_inner()).push(result);
                    }
                });
            }
        });
        let mut kernels = done.into_inner().unwrap_or_else(|e| e.into_inner());
        kernels.sort_by(|a, b| (&a.entry, &a.arch).cmp(&(&b.entry, &b.arch)));
        CudaReport { kernels }
    }

    fn compile_or_recall(&self, source: &str, arch: &str, cache: Option<&Path>) -> Result<Resources, String> {
        let key = format!("{}\n{arch}\n{source}", self.version());
        let file = cache.map(|folder| folder.join(format!("{:032x}", xxh3_128(key.as_bytes()))));
        let remembered = file.as_ref().and_then(|f| recall(&std::fs::read_to_string(f).ok()?));
        if let Some(resources) = remembered {
            return Ok(resources);
        }
        let resources = self.compile(source, arch)?;
        // A cache that cannot be written costs time, nothing else.
        if let Some(file) = file {
            let r = resources;
            let _ = std::fs::write(file, format!("{} {} {}\n", r.registers, r.shared_bytes, r.spill_bytes));
        }
        Ok(resources)
    }
}

/// Would a launch of what compiled get its registers and its shared memory?
fn launchable(kernel: &DryKernel, arch: &str, needs: Resources) -> Result<Resources, String> {
    let (registers, shared) = (
        needs.registers * kernel.threads,
        needs.shared_bytes + kernel.shared_bytes as u32,
    );
    let number = arch.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
    let most_shared = number.parse().map_or(0, dry::most_shared_bytes);
    if registers > REGISTERS {
        return Err(format!(
            "its {} threads need {registers} registers, there are {REGISTERS}",
            kernel.threads
        ));
    }
    if shared > most_shared {
        return Err(format!(
            "it needs {shared} bytes of shared memory, there are {most_shared}"
        ));
    }
    Ok(needs)
}

/// Reads an entry of the cache; anything but three numbers and an end of line is no entry.
fn recall(text: &str) -> Option<Resources> {
    let numbers: Vec<u32> = text
        .strip_suffix('\n')?
        .split(' ')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let &[registers, shared_bytes, spill_bytes] = &numbers[..] else {
        return None;
    };
    Some(Resources {
        registers,
        shared_bytes,
        spill_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_says_what_failed_and_what_spills() {
        let kernel = |entry: &str, outcome| CudaKernel {
            entry: entry.into(),
            arch: "sm_90".into(),
            threads: 64,
            shared_bytes: 1000,
            outcome,
        };
        let resources = |spill_bytes| Resources {
            registers: 40,
            shared_bytes: 24,
            spill_bytes,
        };
        let report = CudaReport {
            kernels: vec![
                kernel("a", Ok(resources(0))),
                kernel("a", Ok(resources(8))),
                kernel("b", Err("line 1: error".into())),
            ],
        };
        assert!(!report.passed());
        assert_eq!(report.spills().len(), 1);
        let text = report.to_string();
        assert!(text.contains("b for sm_90 does not compile:\nline 1: error"), "{text}");
        assert!(
            text.ends_with("2 kernels compiled, 1 failed, 1 spill registers"),
            "{text}"
        );
        let line = text.lines().nth(1).expect("a line for a");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words, ["a", "sm_90", "2", "40", "8", "1024", "0"]);
    }

    #[test]
    fn a_launch_that_would_fail_is_a_failure() {
        let kernel = |threads, shared_bytes| DryKernel {
            threads,
            shared_bytes,
            ..DryKernel::default()
        };
        let needs = |registers, shared_bytes| Resources {
            registers,
            shared_bytes,
            spill_bytes: 0,
        };
        assert!(launchable(&kernel(256, 200_000), "sm_90a", needs(255, 1024)).is_ok());
        assert!(launchable(&kernel(256, 200_000), "sm_80", needs(255, 1024)).is_err());
        assert!(launchable(&kernel(256, 100_000), "sm_89", needs(255, 1024)).is_ok());
        assert!(launchable(&kernel(256, 101_000), "sm_89", needs(255, 1024)).is_err());
        assert!(launchable(&kernel(512, 0), "sm_90a", needs(168, 0)).is_err());
    }

    #[test]
    fn only_whole_entries_of_the_cache_are_used() {
        let found = Resources {
            registers: 40,
            shared_bytes: 1024,
            spill_bytes: 0,
        };
        assert_eq!(recall("40 1024 0\n"), Some(found));
        for broken in ["", "40 1024 0", "40 1024\n", "40 1024 0 1\n", "40 -1 0\n", "nonsense\n"] {
            assert_eq!(recall(broken), None, "{broken:?}");
        }
    }
}
