//! Memory past 2³² bytes and 2³¹ elements: on the null device at the sizes of large models, and on CUDA's kernels on the CPU
//! in memory of which only the touched pages exist.

use std::sync::Arc;

use acrlpd::config::Config;
use acrlpd::gpu::{Caps, DType, Gpu, GpuError, MOST_BINDING_BYTES, MOST_ELEMENTS, Tensor};
use acrlpd::model::params::{Init, ParamStore, ParamTable, Placement, Room, Scope, Unit};
use acrlpd::model::tables;
use acrlpd::ops::embedding::{self, Lookup};
use acrlpd::ops::initial::{Law, Quantiles};
use acrlpd::ops::split::Values;
use acrlpd::ops::{fill, gemm, reduce};
use acrlpd::rng::Key;

use acrlpd::train::{plan, setup};

/// 6.5 · 10⁹ parameters: twice a table of more elements than a 32-bit index reaches, were it in one piece.
fn table() -> Arc<ParamTable> {
    let rows = 1_600_000;
    let one =
        |i: usize| Unit::new(format!("{i}"), Room::Language).one(format!("w{i}"), &[rows, 2048], Init::Normal(0.02));
    Arc::new(ParamTable {
        units: vec![one(0), one(1)],
    })
}

#[test]
fn stores_past_what_an_index_reaches_are_cut() {
    for caps in [
        Caps::planning(),
        // Pages that end in the middle of a group.
        Caps {
            max_page_bytes: 5 << 30,
            ..Caps::planning()
        },
    ] {
        let gpu = Gpu::null(caps);
        let place = Arc::new(Placement::new(table(), gpu.caps()));
        assert!(place.elements() as u64 > u64::from(u32::MAX));
        let segments = place.segments(gpu.caps());
        assert_eq!(segments.iter().map(|s| s.2).sum::<usize>(), place.elements());
        assert!(segments.iter().all(|s| 4 * s.2 as u64 <= MOST_BINDING_BYTES));
        let weights = ParamStore::halves(&gpu, place.clone());
        let copy = ParamStore::new(&gpu, place.clone(), DType::Bf16, Scope::All);
        let moments = ParamStore::zeros(&gpu, place.clone(), DType::F32, Scope::All);
        moments.copy_from(&gpu, &weights);
        copy.convert_from(&gpu, &moments);
        let norm = gpu.f32([2]);
        reduce::squares(&gpu, &weights.room(&gpu, Room::Language), &norm);
        let quantiles = Quantiles::new(&gpu);
        let mut drawn = 0;
        for (tensor, ranges) in weights.named() {
            for range in &ranges {
                Law::Normal(0.02).fill(&gpu, &quantiles, Key::new(1), 0, range);
            }
            let read: usize = ranges.iter().map(Values::len).sum();
            assert_eq!(read, tensor.len());
            drawn += read;
        }
        assert_eq!(drawn, table().len());
        // Nothing was refused: every operand and grid is one that kernels can count.
        assert_eq!(gpu.check(), Ok(()));
    }
}

#[test]
fn the_largest_preset_is_drawn_stepped_and_updated_within_the_limits() {
    for dtype in ["float32", "bfloat16"] {
        let overrides = [("model.dtype".to_owned(), dtype.to_owned())];
        let config = Config::load_with("rl_fold_box", &overrides).expect("a preset");
        // The vocabulary of PaliGemma, in one piece.
        let dims = config.pi0_dims();
        assert_eq!((dims.vocab, dims.language.width), (257_152, 2048));
        let gpu = Gpu::null(Caps::planning());
        let place = Placement::new(Arc::new(tables::pi0(&dims)), gpu.caps());
        let segments = place.segments(gpu.caps());
        assert!(segments.len() > 1 && segments.iter().all(|s| (s.2 as u64) < MOST_ELEMENTS / 2));
        let learner = setup::learner(&gpu, &config).expect("a learner");
        learner.init(1);
        assert_eq!(gpu.check(), Ok(()));
        let parameters =
            (learner.pi0.weights.placement().table().len() + learner.critic.weights.placement().table().len()) as f64;
        let moved = gpu.take_record().total().bytes;
        // Weights once, averages copied, and whatever is rounded: no more than a dozen passes over them.
        assert!(moved > 4.0 * parameters && moved < 64.0 * parameters, "{moved:.2e}");
        plan::step(&gpu, &config, usize::MAX).expect("a step");
    }
}

#[test]
fn what_kernels_cannot_count_is_refused_by_name() {
    let gpu = Gpu::null(Caps {
        max_binding_bytes: 1 << 40,
        ..Caps::planning()
    });
    fill::zero(&gpu, &gpu.f32([MOST_ELEMENTS as usize]));
    assert_eq!(gpu.check(), Ok(()));
    fill::zero(&gpu, &gpu.f32([MOST_ELEMENTS as usize + 1]));
    let error = gpu.check().expect_err("it was admitted");
    assert!(
        matches!(
            &error,
            GpuError::Geometry {
                op: "fill",
                what: "elements in one operand",
                ..
            }
        ),
        "{error:?}"
    );
}

// ---- On memory that is larger than what is touched of it.

fn emulated() -> Option<Gpu> {
    match Gpu::emulated_cuda(90) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            println!("{error}");
            None
        }
    }
}

/// Small numbers that bf16 holds.
fn whole(seed: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 3) % 17) as f32 - 8.0).collect()
}

/// Writes numbers at the start of a tensor of f32 or bf16, without a copy of f32 words.
fn put(gpu: &Gpu, to: &Tensor, values: &[f32]) {
    use acrlpd::ops::blocks::{self, Rect};
    let from = gpu.upload_as(values, to.dtype(), [values.len()]);
    let to = to.slice(0, [values.len()]);
    blocks::copy(
        gpu,
        Rect::rows(&from, values.len()),
        Rect::rows(&to, values.len()),
        1,
        values.len(),
        false,
    );
}

#[test]
fn memory_past_four_gigabytes_is_written_and_read_where_it_is() {
    let Some(gpu) = emulated() else { return };
    // One allocation, 4.8 GB.
    let all = gpu.alloc_in(gpu.states(), DType::F32, [1_200_000_000]);
    let (n, first) = (3000, 1_150_000_007);
    let part = all.slice(first, [n]);
    let low = all.slice(first % (1 << 30), [n]);
    fill::set(&gpu, &low, 5.0);
    Law::Normal(1.0).fill(&gpu, &Quantiles::new(&gpu), Key::new(3), 0, &Values::from(&part));
    let want: Vec<f32> = (0..n as u64).map(|i| Law::Normal(1.0).at(Key::new(3), i)).collect();
    assert_eq!(gpu.read_f32(&part), Ok(want.clone()));
    // An offset that lost its upper bits would have ended up here.
    assert_eq!(gpu.read_f32(&low), Ok(vec![5.0; n]));
    let later = gpu.read_later(&part);
    gpu.copy(&part, &low);
    assert_eq!(later.wait(), Ok(want.clone()));
    gpu.write_f32(&part, &vec![1.0; n]);
    assert_eq!(gpu.read_f32(&low), Ok(want));
    assert_eq!(gpu.read_f32(&part.slice(5, [2])), Ok(vec![1.0; 2]));
    let norm = gpu.f32([2]);
    reduce::squares(&gpu, &[part], &norm);
    assert_eq!(gpu.read_f32(&norm), Ok(vec![n as f32, 0.0]));
}

#[test]
fn operands_of_two_to_the_thirty_one_elements_are_indexed_to_their_end() {
    let Some(gpu) = emulated() else { return };
    // Tables that fill a binding: 2³⁰ words and 2³¹ halves, less one row.
    for (dtype, rows) in [(DType::F32, (1 << 19) - 1), (DType::Bf16, (1 << 20) - 1)] {
        let d = 2048;
        let table = gpu.alloc_in(gpu.states(), dtype, [rows, d]);
        assert!(table.bound_bytes() > MOST_BINDING_BYTES - (1 << 14));
        let tokens = [0, rows / 2 + 1, rows - 1];
        for (i, &token) in tokens.iter().enumerate() {
            put(&gpu, &table.rows(token..token + 1).view([d]), &whole(i, d));
        }
        let lookup = Lookup::new(&gpu, tokens.iter().zip(0..).map(|(&t, i)| (t as u32, i)).collect());
        let y = gpu.f32([tokens.len(), d]);
        embedding::forward(&gpu, &[(0, table.clone())], &lookup, 2.0, &y);
        let want: Vec<f32> = (0..3).flat_map(|i| whole(i, d)).map(|v| 2.0 * v).collect();
        assert_eq!(gpu.read_f32(&y).as_ref(), Ok(&want), "{dtype:?}");
        if dtype == DType::F32 {
            embedding::backward(&gpu, &[(0, table.clone())], &lookup, 1.0, &y);
            for (i, &token) in tokens.iter().enumerate() {
                let got = gpu.read_f32(&table.rows(token..token + 1)).expect("the device works");
                assert!(got.iter().zip(&whole(i, d)).all(|(g, w)| *g == 3.0 * w), "row {token}");
            }
        }
        gpu.sync().expect("the device works");
    }
}

#[test]
fn products_step_over_rows_that_lie_gigabytes_apart() {
    let Some(gpu) = emulated() else { return };
    // Four rows of 2²⁹ elements less a few: the last one starts past 3 · 2³⁰ bytes.
    let (m, n, k, ld) = (4, 16, 64, (1 << 29) - 4096);
    let wide = gpu.alloc_in(gpu.states(), DType::Bf16, [m, ld]);
    let a: Vec<f32> = whole(1, m * k);
    for row in 0..m {
        put(
            &gpu,
            &wide.rows(row..row + 1).view([ld]).slice(64, [k]),
            &a[row * k..(row + 1) * k],
        );
    }
    let b = whole(2, n * k);
    let of_b = gpu.upload_as(&b, DType::Bf16, [n, k]);
    let want: Vec<f32> = (0..m * n)
        .map(|i| (0..k).map(|x| a[i / n * k + x] * b[i % n * k + x]).sum())
        .collect();
    for kernel in [gemm::Kernel::Mma, gemm::Kernel::Wgmma] {
        let c = gpu.f32([m, n]);
        gemm::nt(gemm::Mat::from(&wide).columns(64, k), &of_b)
            .with(kernel)
            .to(&gpu, &c);
        assert_eq!(gpu.read_f32(&c).as_ref(), Ok(&want), "{kernel:?}");
    }
}
