//! A training run on a terminal: a bar on stderr, rows on stdout.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use acrlpd::train::metrics::Row;
use acrlpd::train::{Finish, Observer, Preparation};
use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::table::{bytes, number, table};

/// Rows between two headers.
const HEADER_EVERY: usize = 25;
const COLUMNS: [&str; 10] = [
    "step", "critic", "actor", "bc", "Q", "best Q", "|g| pi0", "|g| Q", "lr pi0", "steps/s",
];

/// Cells side by side, the steps in a narrower column.
fn line(cells: [String; 10]) -> String {
    let [step, numbers @ ..] = cells;
    numbers
        .iter()
        .fold(format!("{step:>8}"), |line, cell| format!("{line} {cell:>10}"))
}

/// A number, or a dash where nothing was measured.
fn cell(x: f64) -> String {
    if x.is_nan() { "-".into() } else { number(x) }
}

/// One number of a row.
type Pick = fn(&Row) -> f64;

/// Shows a run, and remembers its first and last row.
#[derive(Default)]
pub struct Console {
    bar: Option<ProgressBar>,
    rows: usize,
    first: Option<Row>,
    last: Option<Row>,
}

impl Console {
    /// Prints above the bar.
    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{text}")),
            None => println!("{text}"),
        }
    }

    /// Shows how far a part of the preparation has come.
    fn preparing(&mut self, what: &'static str, done: usize, all: usize) {
        let bar = self
            .bar
            .get_or_insert_with(|| ProgressBar::new(all as u64).with_prefix(what));
        bar.set_position(done as u64);
        if done == all {
            bar.finish_and_clear();
            self.bar = None;
        }
    }

    /// The table at the end.
    pub fn summary(&self, finish: &Finish) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let steps = finish.end - finish.first;
        let mut t = table(&["", "first row", "last row"], 1);
        if let (Some(first), Some(last)) = (&self.first, &self.last) {
            let pick: [(&str, Pick); 6] = [
                ("critic loss", |r| r.critic_loss),
                ("actor loss", |r| r.actor_loss),
                ("BC loss", |r| r.bc_loss),
                ("Q", |r| r.q),
                ("gradient norm of pi0", |r| r.pi0_grad_norm),
                ("gradient norm of critics", |r| r.critic_grad_norm),
            ];
            for (name, value) in pick {
                t.add_row([name.to_owned(), cell(value(first)), cell(value(last))]);
            }
            println!("\n{t}");
        }
        let seconds = finish.elapsed.as_secs_f64();
        println!(
            "steps       {steps} in {seconds:.1} s ({:.2} per s)",
            steps as f64 / seconds.max(1e-9)
        );
        if let Some(first_step) = finish.first_step {
            println!("first step  done {:.1} s after the start", first_step.as_secs_f64());
        }
        println!("data wait   {:.0} ms in all", 1e3 * finish.data_wait.as_secs_f64());
        println!("launches    {:.0} per step", finish.launches_per_step);
        println!("memory      {} at most", bytes(finish.peak_bytes));
        if finish.skipped > 0 {
            println!(
                "skipped     {} steps with gradients that were not finite",
                finish.skipped
            );
        }
        let place = |path: &Option<std::path::PathBuf>| path.as_ref().map(|p| p.display().to_string());
        println!("checkpoint  {}", place(&finish.checkpoint).unwrap_or("none".into()));
        println!(
            "metrics     {}",
            place(&finish.metrics).unwrap_or("none (dry run)".into())
        );
    }
}

impl Observer for Console {
    fn stage(&mut self, what: &str) {
        tracing::debug!("preparing: {what}");
    }

    fn statistics(&mut self, done: usize, all: usize) {
        self.preparing("norm stats", done, all);
    }

    fn weights(&mut self, done: usize, all: usize) {
        self.preparing("weights", done, all);
    }

    fn begin(&mut self, p: &Preparation<'_>) {
        let (plan, source) = (p.plan, p.source);
        let caps = p.gpu.caps();
        let kind = if caps.software {
            ", a CPU: for trying things out"
        } else {
            ""
        };
        let dataset = source.builder.dataset();
        println!("device      {}{kind}", caps.name);
        println!(
            "dataset     {} ({} frames; {} episodes to train on, {} held out)",
            dataset.info().root.display(),
            dataset.info().total_frames,
            source.episodes.train.len(),
            source.episodes.eval.len()
        );
        println!(
            "model       {:.1} M parameters, weights {}",
            plan.parameters as f64 / 1e6,
            match (p.resumed_from, p.weights) {
                (Some(folder), _) => format!("of checkpoint {}", folder.display()),
                (None, Some(path)) => format!("of {}", path.display()),
                (None, None) => "random".into(),
            }
        );
        println!(
            "step        {} samples in {} micro-batches; {:.4} TFLOP, {} launches, {} at most",
            plan.samples,
            plan.micro_batches,
            plan.tflop_per_sample * plan.samples as f64,
            plan.launches,
            bytes(plan.peak_bytes)
        );
        println!("run         {}, steps {} to {}", p.run_dir.display(), p.first, p.end);
        if p.first == p.end {
            println!("nothing to do: the checkpoint is at the last step; give a larger --max-steps to go on");
            return;
        }
        let style = "{prefix} {wide_bar} {pos}/{len} · {per_sec} · {eta} left";
        let bar = ProgressBar::new(p.end).with_position(p.first).with_prefix("training");
        if std::io::stderr().is_terminal() {
            bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        bar.reset_eta();
        self.bar = Some(bar);
    }

    fn step(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    fn row(&mut self, row: &Row) {
        if self.rows.is_multiple_of(HEADER_EVERY) {
            // Colours are for terminals, and not if NO_COLOR is set.
            self.say(&style(line(COLUMNS.map(String::from))).bold().to_string());
        }
        self.rows += 1;
        self.say(&line([
            row.step.to_string(),
            cell(row.critic_loss),
            cell(row.actor_loss),
            cell(row.bc_loss),
            cell(row.q),
            cell(row.best_q),
            cell(row.pi0_grad_norm),
            cell(row.critic_grad_norm),
            cell(row.pi0_lr),
            format!("{:.2}", row.steps_per_s),
        ]));
        if let Some(e) = &row.eval {
            let text = format!(
                "{:>8}  held out: action error {} (one sample), {} (critics' choice); Q {} (recorded), {} (choice)",
                row.step,
                number(e.all.action_error),
                number(e.all.best_action_error),
                number(e.all.q),
                number(e.all.best_q)
            );
            self.say(&style(text).cyan().to_string());
        }
        self.first.get_or_insert_with(|| row.clone());
        self.last = Some(row.clone());
    }

    fn saved(&mut self, folder: &Path, took: Duration) {
        let text = format!("   saved  {} in {:.1} s", folder.display(), took.as_secs_f64());
        self.say(&style(text).dim().to_string());
    }
}
