//! Compiles the kernels of a dry device for real architectures and reports what each needs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::DryKernel;
use super::nvrtc::{Resources, Toolchain};

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
    /// Compiles every distinct source for every architecture (such as `sm_90`), on all cores.
    pub fn check(&self, kernels: &[DryKernel], archs: &[&str]) -> CudaReport {
        // Kernels may differ in their key alone.
        let distinct: BTreeMap<(&str, &str), &DryKernel> = kernels
            .iter()
            .map(|k| ((k.entry.as_str(), k.source.as_str()), k))
            .collect();
        let work: Vec<(&DryKernel, &str)> = distinct
            .values()
            .flat_map(|k| archs.iter().map(|arch| (*k, *arch)))
            .collect();
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(work.len())));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((kernel, arch)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.compile(&kernel.source, arch);
                        let result = CudaKernel {
                            entry: kernel.entry.clone(),
                            arch: (*arch).into(),
                            threads: kernel.threads,
                            shared_bytes: kernel.shared_bytes,
                            outcome,
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
}
