//! Limits, number formats, aliasing and threads: what devices do differently from what one might think.

use std::path::Path;

use acrlpd::gpu::{Caps, DType, DeviceChoice, Gpu, GpuError};
use acrlpd::model::params::{Group, Init, ParamStore, ParamTable, ParamTensor, Placement, Room, Scope, Unit};
use acrlpd::model::tables;
use acrlpd::ops::activation::{self, Activation};
use acrlpd::ops::blocks::{self, Rect};
use acrlpd::ops::embedding::{self, Lookup};
use acrlpd::ops::fill;
use acrlpd::verify::{self, Fixture, TrainingGroup};

fn device() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device")
}

fn golden(group: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(group)
}

// ---- Number formats and sizes.

#[test]
fn storage_the_device_lacks_is_refused_before_the_launch() {
    let gpu = device();
    for (dtype, name) in [(DType::Bf16, "bfloat16"), (DType::F16, "float16")] {
        let gpu = device().with_caps(|c| Caps {
            f16: false,
            bf16: false,
            ..c
        });
        fill::zero(&gpu, &gpu.alloc(dtype, [8]));
        let error = gpu.sync().expect_err("the launch was admitted");
        assert!(
            matches!(&error, GpuError::Dtype { op: "fill", dtype, .. } if *dtype == name),
            "{error:?}"
        );
        assert!(error.to_string().contains(&gpu.caps().name), "{error}");
    }
    if !gpu.caps().bf16 {
        // A table of capabilities that is wrong must not lead to wrong numbers either.
        let gpu = gpu.with_caps(|c| Caps { bf16: true, ..c });
        let x = gpu.upload_as(&[1.0; 8], DType::Bf16, [8]);
        fill::set(&gpu, &x, 2.0);
        assert!(gpu.read_f32(&x).is_err(), "stale values were returned as a result");
    }
}

#[test]
fn an_operand_past_the_binding_limit_is_refused_before_the_launch() {
    let gpu = device().with_caps(|c| Caps {
        max_binding_bytes: 4096,
        ..c
    });
    let (x, y) = (gpu.f32([2048]), gpu.f32([2048]));
    activation::forward(&gpu, Activation::Gelu, &x, &y);
    let error = gpu.read_f32(&y).expect_err("the launch was admitted");
    let GpuError::BindingTooLarge { op, bytes, limit, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((*op, *bytes, *limit), ("activation", 8192, 4096));
}

#[test]
fn more_elements_than_kernels_can_count_are_refused() {
    let gpu = Gpu::null(Caps::planning());
    let (x, y) = (gpu.alloc(DType::Bf16, [1 << 32]), gpu.alloc(DType::Bf16, [1 << 32]));
    activation::forward(&gpu, Activation::Gelu, &x, &y);
    // 2³² halves: neither can 32 bits count their bytes.
    let error = gpu.sync().expect_err("indices are 32 bits wide");
    assert!(
        matches!(&error, GpuError::BindingTooLarge { bytes, limit, .. } if *bytes == 1 << 33 && *limit == 1 << 32),
        "{error:?}"
    );
}

#[test]
fn halves_and_bytes_need_not_fill_words() {
    let gpu = device();
    let values = [1.0, -2.0, 3.0, 0.5, 65504.0];
    let x = gpu.upload_as(&values, DType::F16, [5]);
    assert_eq!(gpu.read_f32(&x), Ok(values.to_vec()));
    assert_eq!(gpu.read_f32(&x.slice(1, [3])), Ok(values[1..4].to_vec()));
    assert_eq!(gpu.read_f32(&x.slice(4, [1])), Ok(values[4..].to_vec()));
    if gpu.caps().f16 {
        // A kernel that writes three halves leaves the fourth alone.
        let y = gpu.upload_as(&[7.0; 4], DType::F16, [4]);
        fill::set(&gpu, &y.slice(0, [3]), 2.0);
        assert_eq!(gpu.read_f32(&y), Ok(vec![2.0, 2.0, 2.0, 7.0]));
    }
    assert_eq!(gpu.upload_u8(&[1, 2, 3], [3]).bytes(), 3);
    assert_eq!(gpu.sync(), Ok(()));
}

#[test]
fn parts_of_an_upload_are_the_right_parts() {
    // The pool pads uploads; offsets count from the end of what is used, not of what is allocated.
    let gpu = device();
    let values: Vec<f32> = (0..1003).map(|i| i as f32).collect();
    let x = gpu.upload_f32(&values, [1003]);
    for (start, len) in [(0, 1003), (1, 1), (63, 65), (64, 939), (500, 503), (1002, 1)] {
        let want = values[start..start + len].to_vec();
        assert_eq!(gpu.read_f32(&x.slice(start, [len])), Ok(want.clone()));
        let y = gpu.f32([len]);
        gpu.copy(&x.slice(start, [len]), &y);
        assert_eq!(gpu.read_f32(&y), Ok(want));
    }
}

#[test]
fn memory_is_reported() {
    let gpu = device();
    let before = gpu.memory().expect("the device works");
    let x = gpu.f32([1 << 20]);
    let y = gpu.alloc_in(gpu.states(), DType::F32, [1 << 18]);
    fill::zero(&gpu, &x);
    fill::zero(&gpu, &y);
    let during = gpu.memory().expect("the device works");
    assert_eq!(during.used() - before.used(), 5 << 20);
    assert!(
        during.reserved >= during.used() && during.reserved > before.reserved,
        "{during:?}"
    );
    drop((x, y));
    let after = gpu.memory().expect("the device works");
    assert_eq!(after.used(), before.used());
    assert_eq!(
        (after.peak(), after.scratch.peak, after.states.peak),
        (5 << 20, 4 << 20, 1 << 20)
    );
}

// ---- The limit on one binding.

fn one_table(rows: usize, width: usize) -> std::sync::Arc<ParamTable> {
    let table = Group {
        tensors: vec![ParamTensor {
            name: "table".into(),
            shape: vec![rows, width],
            init: Init::Zeros,
        }],
        shape: vec![rows, width],
        learns: true,
    };
    let mut unit = Unit::new("embedding", Room::Language);
    unit.groups.push(table);
    std::sync::Arc::new(ParamTable { units: vec![unit] })
}

/// A table of more than one binding: set, looked up in, given a gradient and read back.
fn use_table(gpu: &Gpu, rows: usize, width: usize) {
    let place = std::sync::Arc::new(Placement::new(one_table(rows, width), gpu.caps()));
    let weights = ParamStore::new(gpu, place.clone(), DType::F32, Scope::All);
    let grads = ParamStore::zeros(gpu, place.clone(), DType::F32, Scope::All);
    let parts = weights.parts(0, 0);
    assert!(parts.len() > 1, "the table fits into one binding");
    let limit = gpu.caps().max_binding_bytes;
    assert!(parts.iter().all(|(_, t)| t.bound_bytes() <= limit));
    assert!(
        place
            .segments(gpu.caps())
            .iter()
            .all(|&(_, _, n)| n as u64 * 4 <= limit)
    );
    weights.write(gpu, |_| Some((0..rows * width).map(|i| (i / width) as f32).collect()));
    // The first and last row of every part.
    let ends = parts.iter().flat_map(|(first, t)| [*first, first + t.dim(0) - 1]);
    let tokens: Vec<usize> = ends.collect();
    let lookup = Lookup::new(
        gpu,
        tokens.iter().enumerate().map(|(i, &t)| (t as u32, i as u32)).collect(),
    );
    let y = gpu.f32([tokens.len(), width]);
    embedding::forward(gpu, &parts, &lookup, 2.0, &y);
    let want: Vec<f32> = tokens.iter().flat_map(|&t| vec![2.0 * t as f32; width]).collect();
    assert_eq!(gpu.read_f32(&y), Ok(want));
    embedding::backward(gpu, &grads.parts(0, 0), &lookup, 1.0, &y);
    for ((first, part), i) in grads.parts(0, 0).iter().zip(0..) {
        let last = part.dim(0) - 1;
        let got = gpu.read_f32(&part.rows(last..last + 1)).expect("the device works");
        assert_eq!(
            got,
            vec![2.0 * tokens[2 * i + 1] as f32; width],
            "part from row {first}"
        );
    }
}

#[test]
fn a_table_is_cut_to_what_one_kernel_may_bind() {
    let gpu = device().with_caps(|c| Caps {
        max_binding_bytes: 64 << 10,
        ..c
    });
    use_table(&gpu, 1000, 48);
}

#[test]
fn a_table_past_the_real_limit_works() {
    let gpu = device();
    let width = 2048;
    let rows = gpu.caps().max_binding_bytes as usize / (4 * width) + 100;
    if gpu.caps().max_binding_bytes <= 256 << 20 {
        use_table(&gpu, rows, width);
    }
}

#[test]
fn training_under_a_small_limit_gives_the_same_numbers() {
    // Enough for every activation, but not for all weights of a group.
    let gpu = device().with_caps(|c| Caps {
        max_binding_bytes: 448 << 10,
        ..c
    });
    let group = TrainingGroup::new(Fixture::open(&golden("acrlpd_tiny")).expect("a fixture")).expect("a group");
    let place = Placement::new(tables::pi0(&group.dims).into(), gpu.caps());
    assert!(place.segments(gpu.caps()).len() > 1, "the limit is no limit");
    let report = verify::run(&gpu, &golden("acrlpd_tiny"), &|_| true).expect("the fixture can be checked");
    assert!(report.passed() && report.rows.len() >= 1000, "{report}");
}

// ---- Aliasing and threads.

#[test]
fn operands_may_share_a_page_and_ops_may_work_in_place() {
    let gpu = device();
    let values: Vec<f32> = (0..200).map(|i| i as f32 - 100.0).collect();
    // Neighbours in one page, starting between aligned addresses.
    let page = gpu.f32([200]);
    gpu.write_f32(&page, &values);
    let (a, b) = (page.slice(3, [50]), page.slice(53, [50]));
    gpu.copy(&a, &b);
    let mut want = values.clone();
    want.copy_within(3..53, 53);
    assert_eq!(gpu.read_f32(&page), Ok(want.clone()));
    // The same operand read and written.
    activation::forward(&gpu, Activation::Relu, &page, &page);
    want.iter_mut().for_each(|v| *v = v.max(0.0));
    assert_eq!(gpu.read_f32(&page), Ok(want.clone()));
    let ld = 20;
    let (left, right) = (Rect::from(&page, ld, 0), Rect::from(&page, ld, 10));
    blocks::copy(&gpu, left, right, 10, 10, true);
    for row in want.chunks_mut(ld) {
        for i in 0..10 {
            row[10 + i] += row[i];
        }
    }
    assert_eq!(gpu.read_f32(&page), Ok(want));
}

#[test]
fn work_of_all_threads_runs_in_the_order_of_issue() {
    let gpu = device();
    let x = gpu.f32([4096]);
    for round in 0..50 {
        let value = round as f32;
        std::thread::scope(|s| {
            s.spawn(|| fill::set(&gpu, &x, value)).join().expect("no panic");
        });
        let got = std::thread::scope(|s| s.spawn(|| gpu.read_f32(&x)).join().expect("no panic"));
        assert_eq!(got, Ok(vec![value; 4096]));
    }
}
