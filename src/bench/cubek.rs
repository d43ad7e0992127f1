//! cubek's matrix products, the ones burn uses, as a peer on the same device: same operands, same clock, in turn with
//! ours. Only with the feature `peer-cubek`, and only on wgpu: every instance of cubek's kernels costs a build time.
//!
//! cubek has no epilogue here, so what it does is the product alone: no bias, activation or residual, and gradients of
//! weights are stored, not added. Ours does all of it in the time it is compared by.

use cubecl::prelude::{ComputeClient, CubePrimitive, TensorBinding};
use cubecl_wgpu::WgpuRuntime;
use cubek_matmul::components::tile::TileMatmulKind;
use cubek_matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek_matmul::launch::launch_tiling::launch_ref;
use cubek_matmul::routines::BlueprintStrategy;
use cubek_matmul::routines::double_unit::DoubleUnitAlgorithm;
use cubek_matmul::routines::simple::{SimpleAlgorithm, SimpleArgs};
use cubek_matmul::routines::simple_unit::SimpleUnitAlgorithm;
use cubek_std::InputBinding;

use super::check::Expected;
use super::product::{Form, Product};
use super::work::{Room, Work};
use super::{Case, Op, Pace, Row, Status, Way, row, side_by_side};
use crate::gpu::{Api, Backend, Cost, DType, Gpu, Result, Roofline, Tensor};

/// Who it is, in results.
pub const PROGRAM: &str = "cubek 0.2.0";

/// cubek's algorithms that can run through wgpu. Its own choice is the first that the device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    /// On cooperative matrices.
    Cmma,
    /// On registers.
    SimpleUnit,
    /// The same, loading the next stage while it computes.
    DoubleUnit,
}

impl Algorithm {
    const ALL: [Algorithm; 3] = [Algorithm::Cmma, Algorithm::SimpleUnit, Algorithm::DoubleUnit];

    fn name(self) -> &'static str {
        match self {
            Algorithm::Cmma => "cubek simple cmma",
            Algorithm::SimpleUnit => "cubek simple unit",
            Algorithm::DoubleUnit => "cubek double unit",
        }
    }
}

/// Why nothing can be compared on a device, if so.
pub fn unusable(gpu: &Gpu) -> Option<String> {
    let wgpu = !matches!(gpu.caps().api, Api::Cuda | Api::Null);
    (!wgpu).then(|| {
        format!(
            "cubek is measured through wgpu, and {} is opened through {}",
            gpu.caps().name,
            gpu.caps().api
        )
    })
}

/// Measures our kernel and cubek's algorithms on one case, in turn: our row, and theirs, none of which is there for what
/// is no matrix product.
///
/// # Errors
/// A device that failed: nothing more can be measured on this [`Gpu`].
pub fn measure(gpu: &Gpu, case: &Case, dtype: DType, roofline: &Roofline, pace: &Pace) -> Result<(Row, Vec<Row>)> {
    let Op::Product(product) = &case.op else {
        return Ok((super::measure(gpu, case, dtype, roofline, pace)?, Vec::new()));
    };
    let (mut able, mut theirs) = (Vec::new(), Vec::new());
    for algorithm in Algorithm::ALL {
        match tried(gpu, product, dtype, algorithm)? {
            None => able.push(algorithm),
            Some(why) => theirs.push(Row {
                kernel: algorithm.name().into(),
                ..row(case, dtype, Status::Skipped, &why)
            }),
        }
    }
    let ours = |room: Room<'_>| case.op.work(room);
    let makers: Vec<_> = able
        .iter()
        .map(|&algorithm| move |room: Room<'_>| work(product, room, algorithm))
        .collect();
    let mut ways = vec![Way { name: "", make: &ours }];
    ways.extend(able.iter().zip(&makers).map(|(algorithm, make)| Way {
        name: algorithm.name(),
        make,
    }));
    let mut rows = side_by_side(gpu, case, dtype, roofline, pace, &ways)?;
    let own = rows.remove(0);
    theirs.extend(rows);
    Ok((own, theirs))
}

/// Launches it once, to see whether cubek takes it: why not, if so.
fn tried(gpu: &Gpu, product: &Product, dtype: DType, algorithm: Algorithm) -> Result<Option<String>> {
    let mut room = Room::new(gpu, product.dtype(dtype), 0);
    let (a, b, _) = product.operands(&mut room);
    let c = room.output([product.batch, product.m, product.n]);
    let refused = launch(gpu, product, [&a.tensor, &b.tensor, &c], algorithm).err();
    gpu.sync()?;
    Ok(refused.map(|why| format!("cubek refuses: {why}")))
}

/// The work of the plain product, by cubek.
fn work(product: &Product, room: Room<'_>, algorithm: Algorithm) -> Work {
    let mut room = room;
    room.dtype = product.dtype(room.dtype);
    let (a, b, sum) = product.operands(&mut room);
    let c = room.output([product.batch, product.m, product.n]);
    let expected = Expected::new("C", &c, sum);
    let own = product.clone();
    let launch = move |gpu: &Gpu| {
        // It was tried before: what it refuses now stays poisoned, and is wrong.
        let _ = launch(gpu, &own, [&a.tensor, &b.tensor, &c], algorithm);
    };
    room.work(launch, [expected]).flops(product.flops())
}

fn launch(
    gpu: &Gpu,
    product: &Product,
    [a, b, c]: [&Tensor; 3],
    algorithm: Algorithm,
) -> std::result::Result<(), String> {
    let Backend::Wgpu(client) = gpu.backend() else {
        return Ok(());
    };
    let (e, m, n, k) = (product.batch, product.m, product.n, product.k);
    let (transposed_a, transposed_b) = (product.form == Form::Tn, product.form == Form::Nt);
    let cost = Cost::new("cubek", product.flops(), a.bytes() + b.bytes() + c.bytes());
    let mut done = Ok(());
    gpu.run(&cost, client, || {
        let lhs = InputBinding::Normal(matrix(a, [e, m, k], transposed_a), storage(a.dtype()));
        let rhs = InputBinding::Normal(matrix(b, [e, k, n], transposed_b), storage(b.dtype()));
        done = start(client, algorithm, lhs, rhs, matrix(c, [e, m, n], false), c.dtype());
    });
    done
}

type Input = InputBinding<WgpuRuntime>;

fn start(
    client: &ComputeClient<WgpuRuntime>,
    algorithm: Algorithm,
    lhs: Input,
    rhs: Input,
    out: TensorBinding<WgpuRuntime>,
    dtype: DType,
) -> std::result::Result<(), String> {
    // Sums are f32, as ours are.
    let mut types = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: storage(dtype),
        rhs: storage(dtype),
        out: storage(dtype),
    });
    let refused = match algorithm {
        Algorithm::Cmma => {
            let args = SimpleArgs {
                tile_matmul: TileMatmulKind::Cmma,
                ..SimpleArgs::default()
            };
            let inferred = BlueprintStrategy::<(), SimpleAlgorithm>::Inferred(args);
            launch_ref(client, lhs, rhs, out, &inferred, &mut types)
        }
        Algorithm::SimpleUnit => {
            let inferred = BlueprintStrategy::<(), SimpleUnitAlgorithm>::default();
            launch_ref(client, lhs, rhs, out, &inferred, &mut types)
        }
        Algorithm::DoubleUnit => {
            let inferred = BlueprintStrategy::<(), DoubleUnitAlgorithm>::default();
            launch_ref(client, lhs, rhs, out, &inferred, &mut types)
        }
    };
    // In one line: cubek's errors are several.
    refused.map_err(|why| format!("{why:?}").split_whitespace().collect::<Vec<_>>().join(" "))
}

/// `[e, rows, columns]` of a dense tensor, whose memory holds `[e, columns, rows]` if it is transposed.
fn matrix(tensor: &Tensor, [e, rows, columns]: [usize; 3], transposed: bool) -> TensorBinding<WgpuRuntime> {
    let inner = if transposed { [1, rows] } else { [columns, 1] };
    let strides = [rows * columns, inner[0], inner[1]];
    // SAFETY: the tensor holds e · rows · columns elements, densely.
    unsafe { TensorBinding::from_raw_parts(tensor.unaligned_handle(), strides.into(), [e, rows, columns].into()) }
}

fn storage(dtype: DType) -> cubecl::ir::StorageType {
    match dtype {
        DType::F16 => half::f16::as_type_native_unchecked().storage_type(),
        DType::Bf16 => half::bf16::as_type_native_unchecked().storage_type(),
        _ => f32::as_type_native_unchecked().storage_type(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes;
    use crate::ops::testing::gpu;

    #[test]
    fn every_form_is_right_and_measured_beside_ours() {
        let gpu = gpu();
        if unusable(&gpu).is_some() {
            return;
        }
        let best = Roofline {
            flops_per_s: 1e10,
            bytes_per_s: 1e9,
        };
        let pace = Pace::of(gpu.caps());
        let cases = shapes::cases(true).expect("a preset");
        for name in [
            "product/square/nt/64",
            "product/square/nn/64",
            "product/square/tn/64",
            "geglu/sweep/1MB",
        ] {
            let case = cases.iter().find(|case| case.name == name).expect(name);
            let (ours, theirs) = measure(&gpu, case, DType::F32, &best, &pace).expect("the device works");
            assert_eq!(ours.status, Status::Ok, "{ours:?}");
            let right = theirs.iter().filter(|row| row.status == Status::Ok);
            let product = name.starts_with("product");
            assert_eq!(right.count() > 0, product, "{theirs:?}");
            let wrong = theirs
                .iter()
                .find(|row| matches!(row.status, Status::Wrong | Status::Failed));
            assert!(wrong.is_none(), "{wrong:?}");
        }
    }
}
