//! What naga does with WGSL's cooperative matrices, which decides how the matrix product is written for each interface
//! (`acrlpd::gpu::Dialect`). These are observations, not wishes: where one of them stops holding after an update of wgpu,
//! the kernel of that interface has to change with it.

use naga::back::{msl, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};

/// SPIR-V's numbers for the layouts of a load, and its instruction.
const ROW_MAJOR: u32 = 0;
const COLUMN_MAJOR: u32 = 1;
const LOAD: u32 = 4457;

/// A kernel that multiplies two matrices of `of`, loaded by `load`, and adds them up in f32.
fn kernel(load: &str, of: &str) -> (Module, ModuleInfo) {
    let source = format!(
        "enable wgpu_cooperative_matrix; enable f16;\n\
         alias MatrixA = coop_mat8x8<{of}, A>; alias MatrixB = coop_mat8x8<{of}, B>; alias MatrixC = coop_mat8x8<f32, C>;\n\
         @group(0) @binding(0) var<storage, read_write> c: array<f32>;\n\
         var<workgroup> a: array<{of}, 64>; var<workgroup> s: array<f32, 64>;\n\
         @compute @workgroup_size(32) fn k() {{\n\
             let m = {load}<MatrixA>(&a[0], 8u); let n = {load}<MatrixB>(&a[0], 8u); var t = {load}<MatrixC>(&s[0], 8u);\n\
             t = coopMultiplyAdd(m, n, t); coopStoreT(t, &c[0], 8u);\n}}"
    );
    let all = Capabilities::COOPERATIVE_MATRIX | Capabilities::SHADER_FLOAT16 | Capabilities::SUBGROUP;
    let mut options = naga::front::wgsl::Options::new();
    options.capabilities = all;
    let module = naga::front::wgsl::Frontend::new_with_options(options)
        .parse(&source)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
    let info = Validator::new(ValidationFlags::all(), all)
        .validate(&module)
        .unwrap_or_else(|e| panic!("{}", e.emit_to_string(&source)));
    (module, info)
}

/// Layouts of the loads, in order.
fn spirv_layouts(load: &str) -> Vec<u32> {
    let (module, info) = kernel(load, "f32");
    let options = spv::Options {
        fake_missing_bindings: true,
        ..spv::Options::default()
    };
    let pipeline = spv::PipelineOptions {
        shader_stage: ShaderStage::Compute,
        entry_point: "k".into(),
    };
    let words = spv::write_vec(&module, &info, &options, Some(&pipeline)).expect("SPIR-V");
    let mut at = 5;
    let (mut constants, mut layouts) = (std::collections::HashMap::new(), Vec::new());
    while at < words.len() {
        let (operation, length) = (words[at] & 0xffff, (words[at] >> 16) as usize);
        match operation {
            // OpConstant: type, result, value.
            43 => drop(constants.insert(words[at + 2], words[at + 3])),
            // Type, result, pointer, layout, stride.
            LOAD => layouts.push(words[at + 4]),
            _ => {}
        }
        at += length;
    }
    layouts.iter().map(|id| constants[id]).collect()
}

fn metal(load: &str, of: &str) -> String {
    let (module, info) = kernel(load, of);
    let options = msl::Options {
        lang_version: (2, 4),
        fake_missing_bindings: true,
        zero_initialize_workgroup_memory: false,
        ..msl::Options::default()
    };
    let pipeline = msl::PipelineOptions::default();
    msl::write_string(&module, &info, &options, &pipeline).expect("MSL").0
}

#[test]
fn a_load_with_t_is_row_by_row_on_vulkan() {
    assert_eq!(spirv_layouts("coopLoadT"), [ROW_MAJOR; 3]);
    assert_eq!(spirv_layouts("coopLoad"), [COLUMN_MAJOR; 3]);
}

/// Metal's `simdgroup_load` reads row by row unless it is told to transpose.
#[test]
fn a_load_with_t_is_transposed_on_metal() {
    let (with, without) = (metal("coopLoadT", "f32"), metal("coopLoad", "f32"));
    assert!(
        with.contains("simdgroup_load(m, ptr, stride, 0, is_row_major)"),
        "{with}"
    );
    assert_eq!(with.matches(", 8u, true)").count(), 3, "{with}");
    assert_eq!(without.matches(", 8u, false)").count(), 3, "{without}");
    // Stores as well: these are `coopStoreT`.
    assert!(with.contains(", 8u, 0, true)"), "{with}");
}

/// So products of f16 on Metal go through matrices of f32.
#[test]
fn products_of_f16_have_no_sums_in_f32_on_metal() {
    let text = metal("coopLoad", "f16");
    let line = text
        .lines()
        .find(|l| l.contains("NagaCooperativeMultiplyAdd(const"))
        .expect("the function");
    assert_eq!(line.matches("simdgroup_half8x8").count(), 4, "{line}");
    assert!(!line.contains("simdgroup_float8x8"), "{line}");
}
