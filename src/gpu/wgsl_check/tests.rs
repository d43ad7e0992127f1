use super::*;
use crate::gpu::Operands;

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
