//! Checks WGSL kernels as the drivers of a class of device will get them, on any machine: naga, which wgpu is built on,
//! validates each and translates it to SPIR-V (Vulkan), MSL (Metal) and HLSL (DX12).
//!
//! The options are those of wgpu for the shaders of cubecl: no bounds checks, no zeroed workgroup memory. On Linux wgpu
//! itself is built without the last two languages, so the crate asks naga for them; for the whole crate and not for
//! its tests alone, because then programs and tests share one build of wgpu. The linker drops them from the program.

#[cfg(test)]
mod tests;
mod translate;

use std::collections::BTreeMap;
use std::fmt;

use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ResourceBinding, ShaderStage};

use super::{Caps, Dialect, DryKernel};
use translate::{to_hlsl, to_msl, to_spirv};

/// wgpu binds one buffer more where a kernel asks for the length of an array, and Metal has 31 slots for buffers.
const MOST_BUFFERS: usize = 30;

/// A kernel that a class of device would refuse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WgslFailure {
    pub entry: String,
    /// `WGSL`, `SPIR-V`, `MSL`, `HLSL`, `limits`, or `launch`: its buffers are not those of the source.
    pub stage: &'static str,
    /// naga's message, with the place in the source where there is one.
    pub why: String,
}

/// All kernels of a device on all three interfaces.
#[derive(Clone, Debug, Default)]
pub struct WgslReport {
    /// Name of the device class.
    pub device: String,
    /// Distinct sources that were checked.
    pub checked: usize,
    /// The most workgroup memory and buffers that a kernel has.
    pub shared_bytes: u32,
    pub buffers: usize,
    pub failures: Vec<WgslFailure>,
}

impl WgslReport {
    /// Would every driver take every kernel?
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for WgslReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failures {
            writeln!(
                f,
                "{}: {} on {}:\n{}\n",
                self.device, failure.entry, failure.stage, failure.why
            )?;
        }
        write!(
            f,
            "{}: {} kernels, {} refusals; at most {} bytes of workgroup memory and {} buffers",
            self.device,
            self.checked,
            self.failures.len(),
            self.shared_bytes,
            self.buffers
        )
    }
}

/// Checks every distinct source for devices with the abilities and limits in `caps`. Subgroup operations are allowed
/// only where `caps.plane` says how many units they span, and to kernels on matrix units: others must not be chosen elsewhere.
pub fn check_wgsl(kernels: &[DryKernel], caps: &Caps) -> WgslReport {
    let mut report = WgslReport {
        device: caps.name.clone(),
        ..WgslReport::default()
    };
    // Kernels may differ in their key alone.
    let distinct: BTreeMap<(&str, &str), &DryKernel> = kernels.iter().map(|k| ((&*k.entry, &*k.source), k)).collect();
    for ((entry, source), kernel) in distinct {
        report.checked += 1;
        let fail = |stage, why: String| WgslFailure {
            entry: entry.into(),
            stage,
            why,
        };
        let parsed = validate(source, caps);
        let (module, info) = match parsed {
            Ok(parsed) => parsed,
            Err(why) => {
                report.failures.push(fail("WGSL", why));
                continue;
            }
        };
        let (shared_bytes, buffers) = (shared_bytes(&module), bindings(&module).len());
        report.shared_bytes = report.shared_bytes.max(shared_bytes);
        report.buffers = report.buffers.max(buffers);
        let limits = limits(&module, entry, caps, shared_bytes, buffers);
        report.failures.extend(limits.err().map(|why| fail("limits", why)));
        let launch = launched_as_declared(&module, &info, kernel);
        report.failures.extend(launch.err().map(|why| fail("launch", why)));
        let spirv = || ("SPIR-V", to_spirv(&module, &info, entry, caps));
        let msl = || ("MSL", to_msl(&module, &info, entry));
        let hlsl = || ("HLSL", to_hlsl(&module, &info, entry, caps));
        // Matrix units are one interface's: the other's kernel is another, and DX12 has none.
        let translations = match caps.cooperative.filter(|_| has_matrices(source)) {
            None => vec![spirv(), msl(), hlsl()],
            Some(matrices) if matrices.dialect == Dialect::Metal => vec![msl()],
            Some(_) => vec![spirv()],
        };
        for (stage, translated) in translations {
            report.failures.extend(translated.err().map(|why| fail(stage, why)));
        }
    }
    report
}

/// Does a kernel use matrix units?
fn has_matrices(source: &str) -> bool {
    source.contains("enable wgpu_cooperative_matrix;")
}

/// What a kernel on such a device may use, in naga's words; wgpu derives the same from the device's features.
fn capabilities(source: &str, caps: &Caps) -> Capabilities {
    let matrices = caps.cooperative.is_some() && has_matrices(source);
    let mut all = Capabilities::empty();
    all.set(Capabilities::COOPERATIVE_MATRIX, matrices);
    all.set(Capabilities::SHADER_FLOAT16, caps.f16);
    all.set(Capabilities::SHADER_INT64, caps.wide_loads);
    all.set(Capabilities::SUBGROUP, caps.plane.is_some() || matrices);
    all
}

fn validate(source: &str, caps: &Caps) -> Result<(Module, ModuleInfo), String> {
    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = capabilities(source, caps);
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(source)
        .map_err(|e| e.emit_to_string(source))?;
    let info = Validator::new(ValidationFlags::all(), capabilities(source, caps))
        .validate(&module)
        .map_err(|e| e.emit_to_string(source))?;
    Ok((module, info))
}

/// Bytes of workgroup memory.
fn shared_bytes(module: &Module) -> u32 {
    let shared = module
        .global_variables
        .iter()
        .filter(|(_, v)| v.space == AddressSpace::WorkGroup);
    shared
        .map(|(_, v)| module.types[v.ty].inner.size(module.to_ctx()))
        .sum()
}

/// The buffers of a module, in order.
fn bindings(module: &Module) -> Vec<ResourceBinding> {
    let mut bindings: Vec<_> = module.global_variables.iter().filter_map(|(_, v)| v.binding).collect();
    bindings.sort_by_key(|b| (b.group, b.binding));
    bindings
}

/// What a pipeline would be refused for although its shader is valid.
fn limits(module: &Module, entry: &str, caps: &Caps, shared_bytes: u32, buffers: usize) -> Result<(), String> {
    let found = module
        .entry_points
        .iter()
        .find(|e| e.name == entry && e.stage == ShaderStage::Compute);
    let found = found.ok_or_else(|| format!("there is no compute entry point `{entry}`"))?;
    let units: u32 = found.workgroup_size.iter().product();
    let over = |what, asked: u64, limit: u64| {
        if asked <= limit {
            return Ok(());
        }
        Err(format!("{asked} {what}, but the limit is {limit}"))
    };
    over("units in a workgroup", units.into(), caps.max_units.into())?;
    over(
        "bytes of workgroup memory",
        shared_bytes.into(),
        caps.max_shared_bytes.into(),
    )?;
    over("buffers", buffers as u64, MOST_BUFFERS as u64)
}

/// Does the launch bind what the source declares? For hand-written kernels wgpu derives the layout from the buffers that
/// are used, so an unused one would shift those after it.
fn launched_as_declared(module: &Module, info: &ModuleInfo, kernel: &DryKernel) -> Result<(), String> {
    let (declared, operands) = (bindings(module), kernel.operands);
    let bound = operands.buffers + usize::from(operands.info_words > 0);
    let in_order = declared
        .iter()
        .enumerate()
        .all(|(i, b)| (b.group, b.binding) == (0, i as u32));
    if !in_order || declared.len() != bound {
        return Err(format!(
            "{bound} buffers are bound, but the source declares {declared:?}"
        ));
    }
    let used = info.get_entry_point(0);
    let unused = module
        .global_variables
        .iter()
        .find(|(handle, v)| kernel.hand_written && v.binding.is_some() && used[*handle].is_empty());
    match unused {
        Some((_, v)) => Err(format!("buffer `{}` is not used", v.name.as_deref().unwrap_or("?"))),
        None => Ok(()),
    }
}
