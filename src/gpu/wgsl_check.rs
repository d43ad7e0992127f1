//! Checks WGSL kernels as the drivers of a class of device will get them, on any machine: naga, which wgpu is built on,
//! validates each and translates it to SPIR-V (Vulkan), MSL (Metal) and HLSL (DX12).
//!
//! The options are those of wgpu for the shaders of cubecl: no bounds checks, no zeroed workgroup memory. On Linux wgpu
//! itself is built without the last two languages, so the crate asks naga for them; for the whole crate and not for
//! its tests alone, because then programs and tests share one build of wgpu. The linker drops them from the program.

use std::collections::BTreeMap;
use std::fmt;

use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ResourceBinding, ShaderStage};

use super::{Caps, Dialect, DryKernel};

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

const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

fn to_spirv(module: &Module, info: &ModuleInfo, entry: &str, caps: &Caps) -> Result<(), String> {
    use spv::Capability::*;
    let mut allowed = vec![Shader, Matrix];
    if caps.plane.is_some() || caps.cooperative.is_some() {
        allowed.extend([GroupNonUniform, GroupNonUniformVote, GroupNonUniformArithmetic]);
        allowed.extend([
            GroupNonUniformBallot,
            GroupNonUniformShuffle,
            GroupNonUniformShuffleRelative,
        ]);
    }
    if caps.cooperative.is_some() {
        allowed.extend([CooperativeMatrixKHR, VulkanMemoryModel]);
    }
    allowed.extend(caps.f16.then_some(Float16));
    allowed.extend(caps.wide_loads.then_some(Int64));
    let options = spv::Options {
        // Vulkan 1.1, the oldest that has subgroups.
        lang_version: (1, 3),
        flags: spv::WriterFlags::empty(),
        fake_missing_bindings: false,
        binding_map: bindings(module)
            .into_iter()
            .map(|b| {
                let target = spv::BindingInfo {
                    descriptor_set: b.group,
                    binding: b.binding,
                    binding_array_size: None,
                };
                (b, target)
            })
            .collect(),
        capabilities: Some(allowed.into_iter().collect()),
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        use_storage_input_output_16: false,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: entry.into(),
    };
    let words = spv::write_vec(module, info, &options, Some(&pipeline)).map_err(|e| e.to_string())?;
    if words.len() < 5 {
        return Err("nothing was written".into());
    }
    Ok(())
}

fn to_msl(module: &Module, info: &ModuleInfo, entry: &str) -> Result<(), String> {
    let bindings = bindings(module);
    let resources = msl::EntryPointResources {
        resources: bindings
            .iter()
            .enumerate()
            .map(|(slot, b)| {
                let target = msl::BindTarget {
                    buffer: Some(slot as u8),
                    mutable: true,
                    ..msl::BindTarget::default()
                };
                (*b, target)
            })
            .collect(),
        immediates_buffer: None,
        sizes_buffer: Some(bindings.len() as u8),
    };
    let options = msl::Options {
        // macOS 12.
        lang_version: (2, 4),
        per_entry_point_map: BTreeMap::from([(entry.to_string(), resources)]),
        fake_missing_bindings: false,
        bounds_check_policies: UNCHECKED,
        zero_initialize_workgroup_memory: false,
        force_loop_bounding: false,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry.into())),
        ..msl::PipelineOptions::default()
    };
    let (text, translation) = msl::write_string(module, info, &options, &pipeline).map_err(|e| e.to_string())?;
    written(&text, &translation.entry_point_names)
}

fn to_hlsl(module: &Module, info: &ModuleInfo, entry: &str, caps: &Caps) -> Result<(), String> {
    let options = hlsl::Options {
        // What needs more than the compiler of every Windows is offered by wgpu only with the newer one.
        shader_model: match (caps.f16, caps.plane.is_some() || caps.wide_loads) {
            (true, _) => hlsl::ShaderModel::V6_2,
            (false, true) => hlsl::ShaderModel::V6_0,
            (false, false) => hlsl::ShaderModel::V5_1,
        },
        binding_map: bindings(module)
            .into_iter()
            .map(|b| {
                let target = hlsl::BindTarget {
                    space: b.group as u8,
                    register: b.binding,
                    ..hlsl::BindTarget::default()
                };
                (b, target)
            })
            .collect(),
        fake_missing_bindings: false,
        zero_initialize_workgroup_memory: false,
        restrict_indexing: false,
        force_loop_bounding: false,
        ..hlsl::Options::default()
    };
    let pipeline = hlsl::PipelineOptions {
        entry_point: Some((ShaderStage::Compute, entry.into())),
    };
    let mut text = String::new();
    let reflection = hlsl::Writer::new(&mut text, &options, &pipeline)
        .write(module, info, None)
        .map_err(|e| e.to_string())?;
    written(&text, &reflection.entry_point_names)
}

/// Did the writer write the entry point, under a name it could give?
fn written<E: fmt::Display>(text: &str, names: &[Result<String, E>]) -> Result<(), String> {
    match names {
        [Ok(name)] if text.contains(&**name) => Ok(()),
        [Err(error)] => Err(error.to_string()),
        _ => Err("the entry point was not written".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Operands;
    use super::*;

    /// A device without any extra, with the limits that WebGPU promises.
    fn plain() -> Caps {
        Caps {
            name: "plain".into(),
            plane: None,
            wide_loads: false,
            f16: false,
            bf16: false,
            max_units: 256,
            max_shared_bytes: 16 << 10,
            ..Caps::planning()
        }
    }

    fn check(body: &str, caps: &Caps) -> Vec<(&'static str, String)> {
        let source = format!(
            "@group(0) @binding(0) var<storage, read_write> x: array<f32>;\n\
             var<workgroup> shared_x: array<f32, 64>;\n\
             @compute @workgroup_size(64) fn k(@builtin(local_invocation_index) i: u32) {{ {body} }}\n"
        );
        let report = check_wgsl(&[kernel(source)], caps);
        report.failures.into_iter().map(|f| (f.stage, f.why)).collect()
    }

    /// A hand-written kernel that is launched with one buffer.
    fn kernel(source: String) -> DryKernel {
        DryKernel {
            entry: "k".into(),
            source,
            hand_written: true,
            operands: Operands {
                buffers: 1,
                ..Operands::default()
            },
            ..DryKernel::default()
        }
    }

    #[test]
    fn a_valid_kernel_passes() {
        assert_eq!(check("shared_x[i] = x[i]; x[i] = shared_x[i];", &plain()), []);
    }

    #[test]
    fn syntax_types_and_unknown_names_are_refused_with_their_place() {
        for body in ["x[i] = 1u;", "x[i] = y;", "x[i = 1.0;"] {
            let failures = check(body, &plain());
            assert_eq!(failures.len(), 1, "{body}: {failures:?}");
            assert_eq!(failures[0].0, "WGSL");
            assert!(failures[0].1.contains("wgsl:3:"), "{}", failures[0].1);
        }
    }

    #[test]
    fn abilities_that_a_device_lacks_are_refused() {
        let planes = Caps {
            plane: Some(32),
            ..plain()
        };
        let wide = Caps {
            wide_loads: true,
            ..plain()
        };
        for (body, caps) in [
            ("x[i] = subgroupBroadcast(x[i], 0u);", &planes),
            ("x[i] = f32(u64(i) * u64(i));", &wide),
        ] {
            assert_eq!(check(body, caps), [], "{body}");
            assert!(!check(body, &plain()).is_empty(), "{body}");
        }
        let halves = |caps| {
            let source = "enable f16; @group(0) @binding(0) var<storage, read_write> x: array<f16>;\
                          @compute @workgroup_size(64) fn k() { x[0] = x[1] + 1h; }";
            check_wgsl(&[kernel(source.into())], caps).failures
        };
        let f16 = Caps { f16: true, ..plain() };
        assert_eq!(halves(&f16), []);
        assert!(!halves(&plain()).is_empty());
    }

    #[test]
    fn a_launch_must_bind_what_the_source_declares_and_uses() {
        assert_eq!(
            check("shared_x[i] = 1.0;", &plain())[0],
            ("launch", "buffer `x` is not used".into())
        );
        let source = "@group(0) @binding(0) var<storage, read_write> x: array<f32>;\
                      @compute @workgroup_size(64) fn k() { x[0] = 1.0; }";
        let mut two = kernel(source.into());
        assert_eq!(check_wgsl(&[two.clone()], &plain()).failures, []);
        two.operands.info_words = 2;
        let failures = check_wgsl(&[two], &plain()).failures;
        assert!(failures[0].why.starts_with("2 buffers are bound"), "{failures:?}");
    }

    #[test]
    fn limits_are_held() {
        let small = Caps {
            max_units: 32,
            ..plain()
        };
        assert_eq!(check("x[i] = 0.0;", &small)[0].0, "limits");
        let tight = Caps {
            max_shared_bytes: 255,
            ..plain()
        };
        let failures = check("shared_x[i] = x[i]; x[i] = shared_x[i];", &tight);
        assert!(failures[0].1.contains("256 bytes of workgroup memory"), "{failures:?}");
    }
}
