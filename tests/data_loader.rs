//! The background loader: order, determinism, resuming, shutting down, errors.

mod data_support;

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use acrlpd::data::{BatchBuilder, Boundary, ChunkBatch, DataError, Dataset, EpisodeSplit, Loader, NormStats, Sampler};
#[cfg(feature = "video")]
use data_support::data;
use data_support::memory::{self, MemoryDataset};
use data_support::{aloha, aloha_spec, tokenizer};
use proptest::prelude::*;

/// Runs `f`, but not for ever: a loader that hangs must fail its test.
fn in_time<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let worker = thread::spawn(move || sender.send(f()));
    match receiver.recv_timeout(Duration::from_secs(60)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the loader hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match worker.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("the sender is dropped only by a panic"),
        },
    }
}

fn toy(dataset: MemoryDataset) -> (Arc<BatchBuilder>, Sampler) {
    let builder = Arc::new(memory::builder(dataset, memory::spec()).unwrap());
    let sampler = Sampler::new(3, &builder.starts(), Some(0.5)).unwrap();
    (builder, sampler)
}

fn toy_batches(start: u64, end: u64, threads: usize, depth: usize) -> Vec<ChunkBatch> {
    let (builder, sampler) = toy(MemoryDataset::new(&[20, 30, 9]));
    let loader = Loader::new(builder, sampler, 4, start, end, threads, depth).unwrap();
    loader.map(Result::unwrap).collect()
}

#[test]
fn batches_arrive_in_step_order() {
    let batches = in_time(|| toy_batches(0, 40, 4, 6));
    let (builder, sampler) = toy(MemoryDataset::new(&[20, 30, 9]));
    assert_eq!(batches.len(), 40);
    for (step, batch) in batches.iter().enumerate() {
        assert_eq!(
            *batch,
            builder.build(&sampler.draw(step as u64, 4)).unwrap(),
            "step {step}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn threads_depth_and_resuming_change_nothing(threads in 1..6usize, depth in 1..6usize, start in 0..15u64) {
        let whole = in_time(|| toy_batches(0, 15, 1, 1));
        let part = in_time(move || toy_batches(start, 15, threads, depth));
        prop_assert_eq!(&part[..], &whole[start as usize..]);
    }
}

#[test]
fn a_real_dataset_gives_the_same_bits_with_one_and_with_four_threads() {
    same_bits(aloha);
}

#[cfg(feature = "video")]
#[test]
fn videos_give_the_same_bits_with_one_and_with_four_threads() {
    // Decoders are left where another thread goes on; with HEVC, B-frames around them.
    same_bits(|| acrlpd::data::open(data("aloha_v30_hevc")).unwrap());
}

fn same_bits(dataset: fn() -> Arc<dyn Dataset>) {
    let batches = move |threads: usize, start: u64| {
        let mut spec = aloha_spec();
        spec.boundary = Boundary::Pad;
        let stats = NormStats::compute(dataset().as_ref(), &spec, |_, _| ()).unwrap();
        let builder = Arc::new(BatchBuilder::new(dataset(), spec, &stats, tokenizer()).unwrap());
        let sampler = Sampler::new(7, &builder.starts(), Some(0.5)).unwrap();
        let loader = Loader::new(builder, sampler, 8, start, 6, threads, 4).unwrap();
        loader.map(Result::unwrap).collect::<Vec<_>>()
    };
    let (one, four, resumed) = in_time(move || (batches(1, 0), batches(4, 0), batches(4, 3)));
    assert!(one == four);
    assert!(one[3..] == resumed);
    assert!(one.iter().all(|b| b.is_positive.iter().filter(|p| **p).count() == 4));
}

#[test]
fn held_out_episodes_stay_out() {
    let (builder, _) = toy(MemoryDataset::new(&[20; 10]));
    let split = EpisodeSplit::new(1, 10, 0.3).unwrap();
    let drawn = |episodes: &[usize]| {
        let starts = EpisodeSplit::select(&builder.starts(), episodes);
        let sampler = Sampler::new(1, &starts, None).unwrap();
        let batch = builder.build(&sampler.draw(0, 200)).unwrap();
        let mut seen: Vec<usize> = batch.episode_index.iter().map(|e| *e as usize).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(drawn(&split.train), split.train);
    assert_eq!(drawn(&split.eval), split.eval);
}

#[test]
fn dropping_it_early_stops_the_threads() {
    in_time(|| {
        let (builder, sampler) = toy(MemoryDataset::new(&[20]));
        for taken in [0, 1, 3] {
            let mut loader = Loader::new(builder.clone(), sampler.clone(), 4, 0, u64::MAX, 3, 2).unwrap();
            for _ in 0..taken {
                loader.next().unwrap().unwrap();
            }
        }
        // The loaders' threads held clones of it.
        assert_eq!(Arc::strong_count(&builder), 1);
    });
}

#[test]
fn an_empty_range_ends_at_once() {
    assert!(in_time(|| toy_batches(5, 5, 2, 2)).is_empty());
    assert!(in_time(|| toy_batches(6, 5, 2, 2)).is_empty());
}

/// Takes everything; the steps that came, then the error, then nothing.
fn run_into_error(dataset: MemoryDataset, threads: usize) -> (u64, String) {
    let (builder, sampler) = toy(dataset);
    let mut loader = Loader::new(builder, sampler, 4, 0, 10_000, threads, 4).unwrap();
    let mut steps = 0;
    let error = loop {
        match loader.next().expect("an error before the end") {
            Ok(_) => steps += 1,
            Err(error) => break error,
        }
    };
    assert!(
        loader.next().is_none() && loader.next().is_none(),
        "one error, then the end"
    );
    (steps, error.to_string())
}

#[test]
fn an_error_arrives_once_and_at_its_step() {
    for threads in [1, 4] {
        let (steps, error) = in_time(move || {
            run_into_error(
                MemoryDataset {
                    failing_frame: Some(13),
                    ..MemoryDataset::new(&[20, 30])
                },
                threads,
            )
        });
        assert!(
            error.contains("row 13: the image of `cam` cannot be decoded: it is torn"),
            "{error}"
        );
        assert_eq!(steps, first_step_with(13));
    }
}

#[test]
fn a_panic_arrives_as_an_error() {
    for threads in [1, 4] {
        let (steps, error) = in_time(move || {
            run_into_error(
                MemoryDataset {
                    panicking_frame: Some(13),
                    ..MemoryDataset::new(&[20, 30])
                },
                threads,
            )
        });
        assert_eq!(steps, first_step_with(13));
        assert!(
            error.contains(&format!("at step {steps}")) && error.contains("the picture bit the reader"),
            "{error}"
        );
    }
}

/// The first step whose current or next pictures include the frame.
fn first_step_with(frame: usize) -> u64 {
    let (builder, sampler) = toy(MemoryDataset::new(&[20, 30]));
    let shows = |start: &usize| *start == frame || *start + builder.spec().horizon == frame;
    (0..).find(|step| sampler.draw(*step, 4).iter().any(shows)).unwrap()
}

#[test]
fn workers_stay_within_the_queue() {
    in_time(|| {
        // So long that hardly two chunks of a batch meet in a frame, which would be read once.
        let dataset = Arc::new(MemoryDataset::new(&[20_000]));
        let builder = BatchBuilder::new(
            dataset.clone(),
            memory::spec(),
            &data_support::identity_stats(2, 3),
            tokenizer(),
        );
        let builder = Arc::new(builder.unwrap());
        let sampler = Sampler::new(3, &builder.starts(), None).unwrap();
        let mut loader = Loader::new(builder, sampler, 5, 0, 100, 4, 3).unwrap();
        let pictures_of_a_batch = 5 * 2;
        for taken in [0, 1, 2] {
            let expected = (taken + 3) * pictures_of_a_batch;
            let deadline = Instant::now() + Duration::from_secs(20);
            while dataset.reads.load(Ordering::Relaxed) < expected && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
            thread::sleep(Duration::from_millis(20));
            assert_eq!(dataset.reads.load(Ordering::Relaxed), expected);
            loader.next().unwrap().unwrap();
        }
    });
}

#[test]
fn the_stall_is_the_time_spent_waiting() {
    in_time(|| {
        let delay = Duration::from_millis(5);
        let (builder, sampler) = toy(MemoryDataset {
            delay,
            ..MemoryDataset::new(&[20])
        });
        // A batch is 8 pictures: at least 40 ms.
        let mut loader = Loader::new(builder, sampler, 4, 0, 3, 1, 3).unwrap();
        assert_eq!(loader.stall(), Duration::ZERO);
        let begin = Instant::now();
        loader.next().unwrap().unwrap();
        let waited = loader.stall();
        assert!(waited >= delay * 4 && waited <= begin.elapsed(), "{waited:?}");
        // With the rest built meanwhile, taking it costs nothing.
        thread::sleep(Duration::from_millis(400));
        loader.next().unwrap().unwrap();
        loader.next().unwrap().unwrap();
        assert!(loader.stall() - waited < delay * 8, "{:?}", loader.stall() - waited);
    });
}

#[test]
fn counts_of_zero_are_refused() {
    let (builder, sampler) = toy(MemoryDataset::new(&[20]));
    for (batch, threads, depth, field) in [
        (0, 1, 1, "batch_size"),
        (1, 0, 1, "loader threads"),
        (1, 1, 0, "loader queue_depth"),
    ] {
        let error = Loader::new(builder.clone(), sampler.clone(), batch, 0, 1, threads, depth).unwrap_err();
        assert!(
            matches!(error, DataError::Spec { .. }) && error.to_string().contains(field),
            "{error}"
        );
    }
}
