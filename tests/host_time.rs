//! What the host needs to issue a step of the published size on CUDA, without a driver behind it.

use std::time::Instant;

use acrlpd::config::Config;
use acrlpd::gpu::{Gpu, Record};
use acrlpd::step::metrics::Metrics;
use acrlpd::step::optimizer::{self, Rates};
use acrlpd::step::schedule::micro_batch;
use acrlpd::train::{plan, setup};

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Our own code, cubecl's client and its device thread; what the driver adds to each launch comes on top.
#[test]
#[ignore = "measures; run it in an optimized build: cargo test --release --test host_time -- --ignored --nocapture"]
fn of_a_full_step_on_cuda() {
    let config = Config::load_with("rl_fold_box", &[("model.dtype".into(), "bfloat16".into())]).expect("a preset");
    let gpu = Gpu::dry_cuda(90).expect("needs no device");
    let learner = setup::learner(&gpu, &config).expect("nothing is allocated");
    let metrics = Metrics::new(&learner, config.batch_size);
    let part = plan::fullest(&config, 8, 1);
    let mut least = [f64::INFINITY; 2];
    let mut record = Record::default();
    for _ in 0..4 {
        gpu.take_record();
        let began = Instant::now();
        metrics.clear(&gpu);
        for _ in 0..config.accumulation() {
            micro_batch(&learner, &metrics, &part, true);
        }
        optimizer::update(&learner, &metrics, 0, Rates::default());
        let issued = began.elapsed().as_secs_f64();
        gpu.sync().expect("every kernel is lowered");
        let done = began.elapsed().as_secs_f64();
        record = gpu.take_record();
        let launches = record.total().launches;
        for (least, now) in least.iter_mut().zip([issued, done]) {
            *least = least.min(now);
        }
        let each = |s: f64| 1e6 * s / launches as f64;
        println!(
            "{launches} launches issued in {:.0} ms ({:.1} µs each), taken in after {:.0} ms ({:.1} µs each)",
            1e3 * issued,
            each(issued),
            1e3 * done,
            each(done)
        );
    }
    for (phase, op, totals) in record.lines {
        println!(
            "{phase:26} {op:34} {:6} launches {:9.1} MB",
            totals.launches,
            1e-6 * totals.bytes
        );
    }
    println!(
        "least: issued {:.0} ms, taken in {:.0} ms",
        1e3 * least[0],
        1e3 * least[1]
    );
}
