//! What wgpu would hand to the drivers: SPIR-V, MSL and HLSL, by its own options for the shaders of cubecl.

use std::collections::BTreeMap;
use std::fmt;

use naga::back::{hlsl, msl, spv};
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use naga::{Module, ShaderStage};

use super::bindings;
use crate::gpu::Caps;

const UNCHECKED: BoundsCheckPolicies = BoundsCheckPolicies {
    index: BoundsCheckPolicy::Unchecked,
    buffer: BoundsCheckPolicy::Unchecked,
    image_load: BoundsCheckPolicy::Unchecked,
    binding_array: BoundsCheckPolicy::Unchecked,
};

pub(super) fn to_spirv(module: &Module, info: &ModuleInfo, entry: &str, caps: &Caps) -> Result<(), String> {
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

pub(super) fn to_msl(module: &Module, info: &ModuleInfo, entry: &str) -> Result<(), String> {
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

pub(super) fn to_hlsl(module: &Module, info: &ModuleInfo, entry: &str, caps: &Caps) -> Result<(), String> {
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
