//! `acrlpd bench`: medians on a device.

use super::{Outcome, bench_kernels, bench_loader, bench_step};

#[derive(clap::Subcommand)]
pub enum Command {
    /// Whole training steps at one size or several: samples/s, phases, memory beside the plan, what the host does, peers.
    Step(Box<bench_step::Args>),
    /// Every op on the shapes of the step: times, rates, shares of what the device can do, and whether the results are
    /// right.
    Kernels(bench_kernels::Args),
    /// The data side alone: samples/s, and how long a training loop would wait.
    Loader(Box<bench_loader::Args>),
}

pub fn run(command: &Command) -> Outcome {
    match command {
        Command::Step(args) => bench_step::run(args),
        Command::Kernels(args) => bench_kernels::run(args),
        Command::Loader(args) => bench_loader::run(args),
    }
}
