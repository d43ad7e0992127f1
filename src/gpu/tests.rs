//! What a driver or cubecl would pass over in silence is an error here.

use cubecl::prelude::*;

use super::launch::{View, launch};
use super::raw::{RawKernel, Source};
use super::tensor::Tensor;
use super::*;

/// The device tests run on: `ACRLPD_TEST_DEVICE`, else the best there is.
fn open() -> Gpu {
    let choice = std::env::var("ACRLPD_TEST_DEVICE").unwrap_or("auto".into());
    let choice: DeviceChoice = choice.parse().expect("ACRLPD_TEST_DEVICE");
    Gpu::open(choice).expect("tests need a device: apt-get install mesa-vulkan-drivers")
}

fn raw(entry: &'static str, wgsl: &'static str, cuda: &'static str, units: u32) -> RawKernel {
    RawKernel {
        entry,
        wgsl: Source::file(wgsl),
        cuda: Source::file(cuda),
        units,
        shared_bytes: 0,
    }
}

const ONE: CubeCount = CubeCount::Static(1, 1, 1);

/// Does not compile anywhere.
fn broken() -> RawKernel {
    raw("broken", "fn broken( {", "extern \"C\" __global__ void broken( {", 64)
}

#[cube(launch_unchecked)]
fn double(x: &mut View<f32>) {
    let unit = UNIT_POS as usize;
    x.set(unit, 2.0 * x.get(unit));
}

/// Wants far more shared memory than any device has.
#[cube(launch_unchecked)]
fn greedy(x: &mut View<f32>) {
    let mut big = SharedMemory::<f32>::new(16_000_000usize);
    let unit = UNIT_POS as usize;
    big[unit] = x.get(unit);
    sync_cube();
    x.set(unit, big[63 - unit]);
}

/// Is `gpu` broken for good: by every way of asking, and more than once?
#[track_caller]
fn stays_broken(gpu: &Gpu, x: &Tensor) -> GpuError {
    let error = gpu.read_f32(x).expect_err("stale values were returned as a result");
    assert_eq!(gpu.read_later(x).wait(), Err(error.clone()));
    assert_eq!(gpu.sync(), Err(error.clone()));
    assert_eq!(gpu.check(), Err(error.clone()));
    assert_eq!(gpu.memory(), Err(error.clone()));
    // Nothing more is launched or counted.
    gpu.take_record();
    gpu.copy(x, x);
    assert_eq!(gpu.take_record().total().launches, 0);
    assert_eq!(gpu.sync(), Err(error.clone()));
    error
}

#[test]
fn a_kernel_that_does_not_compile_is_an_error_of_every_read() {
    let gpu = open();
    let x = gpu.upload_f32(&[1.0; 64], [64]);
    gpu.launch_raw(Cost::moving("broken", 0), &broken(), ONE, &[&x], &[1]);
    let error = stays_broken(&gpu, &x);
    assert!(matches!(
        &error,
        GpuError::Launch { .. } | GpuError::DeviceThread { .. }
    ));
    assert!(!error.to_string().contains('\n'), "{error}");
    // Another opening of the device is not affected.
    let other = open();
    assert_eq!(other.read_f32(&other.upload_f32(&[2.0], [1])), Ok(vec![2.0]));
}

#[test]
fn a_failure_between_many_launches_is_not_lost() {
    // cubecl submits every 32 launches by itself; what it learns then must still reach the reader.
    let gpu = open();
    let (x, y) = (gpu.upload_f32(&[1.0; 64], [64]), gpu.upload_f32(&[0.0; 64], [64]));
    gpu.launch_raw(Cost::moving("broken", 0), &broken(), ONE, &[&x], &[1]);
    for _ in 0..100 {
        gpu.copy(&x, &y);
    }
    stays_broken(&gpu, &y);
}

#[test]
fn a_failure_is_seen_by_a_read_that_does_not_wait() {
    let gpu = open();
    let x = gpu.upload_f32(&[1.0; 64], [64]);
    gpu.launch_raw(Cost::moving("broken", 0), &broken(), ONE, &[&x], &[1]);
    assert!(gpu.read_later(&x).wait().is_err());
}

#[test]
fn too_much_shared_memory_is_an_error() {
    let gpu = open();
    let x = gpu.upload_f32(&[1.0; 64], [64]);
    launch!(
        &gpu,
        Cost::moving("greedy", 0),
        greedy,
        ONE,
        CubeDim::new_1d(64),
        [&x],
        ()
    );
    stays_broken(&gpu, &x);
}

#[test]
fn more_units_than_the_device_has_are_an_error_even_if_claimed() {
    let gpu = open().with_caps(|c| Caps {
        max_units: 1 << 20,
        ..c
    });
    let x = gpu.upload_f32(&[1.0; 1 << 16], [1 << 16]);
    launch!(
        &gpu,
        Cost::moving("double", 0),
        double,
        ONE,
        CubeDim::new_1d(1 << 16),
        [&x],
        ()
    );
    stays_broken(&gpu, &x);
}

#[test]
fn a_panic_on_the_device_thread_is_an_error() {
    let gpu = open();
    let x = gpu.upload_f32(&[1.0; 64], [64]);
    let panic = || panic!("boom\nBacktrace:\nlong");
    let _ = match gpu.backend() {
        Backend::Wgpu(c) => c.exclusive(panic),
        Backend::Cuda(c) => c.exclusive(panic),
        Backend::Dry(_) | Backend::DryWgpu(_) | Backend::Null => unreachable!("open() opens real devices"),
    };
    let error = stays_broken(&gpu, &x);
    assert!(
        matches!(&error, GpuError::DeviceThread { why, .. } if why == "boom"),
        "{error:?}"
    );
}

/// There is one dry device of an architecture in a process, and one thread for it: those who break sm_86's do so one after
/// the other, and no other test uses it.
fn breakable() -> impl Drop {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(|e| e.into_inner())
}

/// Its operand has a shape, which is metadata of a length that cubecl does not know.
#[cube(launch_unchecked)]
fn shaped(x: &mut cubecl::prelude::Tensor<f32>) {
    x[UNIT_POS as usize] = x.shape(0) as f32;
}

#[test]
fn sizes_that_cuda_would_upload_for_every_launch_are_an_error() {
    let _alone = breakable();
    let gpu = Gpu::dry_cuda(86).expect("always there");
    let x = gpu.f32([64]);
    let Backend::Dry(client) = gpu.backend() else {
        unreachable!("it is dry")
    };
    // SAFETY: the operand is as large as it says.
    unsafe {
        let operand = TensorArg::from_raw_parts(x.bound_handle(), [1].into(), [64].into());
        shaped::launch_unchecked::<CudaDry>(client, ONE, CubeDim::new_1d(64), operand);
    }
    let error = gpu.sync().expect_err("it was taken");
    assert!(error.to_string().contains("upload for every launch"), "{error}");
}

#[test]
fn all_who_opened_a_device_learn_of_a_panic() {
    let _alone = breakable();
    let (a, b) = (
        Gpu::dry_cuda(86).expect("always there"),
        Gpu::dry_cuda(86).expect("always there"),
    );
    let Backend::Dry(client) = a.backend() else {
        unreachable!("it is dry")
    };
    let _ = client.exclusive(|| panic!("boom"));
    assert!(matches!(a.sync(), Err(GpuError::DeviceThread { .. })));
    assert!(matches!(b.sync(), Err(GpuError::DeviceThread { .. })));
    let fresh = Gpu::dry_cuda(86).expect("always there");
    assert_eq!(fresh.sync(), Ok(()));
}

#[test]
fn more_memory_than_there_is_is_an_error() {
    let gpu = open();
    // Past the page limit the arena refuses; where the limit is claimed to be higher, the driver does.
    let pages = gpu.caps().max_page_bytes;
    for claimed in [pages, 1 << 50] {
        let gpu = open().with_caps(|c| Caps {
            max_page_bytes: claimed,
            ..c
        });
        let x = gpu.f32([1 << 44]);
        let error = gpu.read_f32(&x.slice(0, [1])).expect_err("64 TiB were allocated");
        if claimed == pages {
            assert!(matches!(error, GpuError::OutOfMemory { .. }), "{error:?}");
        }
    }
}

#[test]
fn geometry_is_checked_before_the_launch() {
    let gpu = open();
    let (units, cubes) = (gpu.caps().max_units, gpu.caps().max_cubes[0]);
    let refused = |count: CubeCount, dim: CubeDim| {
        let gpu = gpu.with_caps(|c| c);
        let gpu = Gpu::new(gpu.backend().share(), gpu.caps().clone(), Fault::default());
        assert!(!gpu.admit(&Cost::moving("op", 0), &[], &count, &dim));
        gpu.check().expect_err("the launch was admitted")
    };
    let what = |error: GpuError| match error {
        GpuError::Geometry {
            op: "op",
            what,
            asked,
            limit,
            ..
        } if asked > limit => what,
        other => panic!("{other:?}"),
    };
    let dim = CubeDim::new_1d(1);
    assert_eq!(what(refused(ONE, CubeDim::new_1d(units + 1))), "units in a workgroup");
    let x = CubeCount::Static(cubes.saturating_add(1), 1, 1);
    let y = CubeCount::Static(1, gpu.caps().max_cubes[1] + 1, 1);
    let z = CubeCount::Static(1, 1, gpu.caps().max_cubes[2] + 1);
    assert_eq!(what(refused(x, dim)), "workgroups along x");
    assert_eq!(what(refused(y, dim)), "workgroups along y");
    assert_eq!(what(refused(z, dim)), "workgroups along z");
    // 2^16 · 2^16 wraps to nothing in 32 bits: it must not pass for an empty launch.
    let gpu = Gpu::null(Caps::planning());
    let count = CubeCount::Static(1 << 16, 1 << 15, 2);
    assert!(!gpu.admit(&Cost::moving("op", 0), &[], &count, &dim));
    assert_eq!(what(gpu.check().expect_err("admitted")), "units in all workgroups");
}

#[test]
fn an_empty_launch_is_no_launch() {
    let gpu = open();
    for count in [
        CubeCount::Static(0, 1, 1),
        CubeCount::Static(1, 0, 1),
        CubeCount::Static(1, 1, 0),
    ] {
        assert!(!gpu.admit(&Cost::moving("op", 0), &[], &count, &CubeDim::new_1d(64)));
    }
    assert_eq!(gpu.check(), Ok(()));
}

#[test]
fn uploads_are_contiguous_whatever_the_shape() {
    // cubecl's tensors have padded rows on CUDA; ours must not.
    let gpu = Gpu::dry_cuda(90).expect("always there");
    let x = gpu.upload_f32(&[0.0; 15], [3, 5]);
    let (handle, before) = x.exact_handle().expect("a dry device has handles");
    assert_eq!((handle.size_in_used(), before), (60, 0));
    let (handle, before) = x.rows(1..2).exact_handle().expect("a dry device has handles");
    assert_eq!((handle.size_in_used(), before), (20, 0));
}

#[test]
fn sources_are_part_of_the_key_of_a_kernel() {
    use cubecl_runtime::kernel::KernelMetadata;
    let (a, b) = (raw("k", "one", "one", 64), raw("k", "two", "one", 64));
    assert!(a.id() != b.id() && a.id() == a.id());
    assert!(a.id() != raw("k", "one", "two", 64).id());
}
