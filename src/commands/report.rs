//! `acrlpd report`.

use std::fs;
use std::path::PathBuf;

use acrlpd::report::{self, ReportError, Run};

use super::Outcome;

#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs, CHECKPOINT_DIR/CONFIG/EXP_NAME.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The page. Default: report.html in the folder of the first run.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: Args) -> Outcome {
    let runs = Run::read_all(&args.runs)?;
    let path = args.out.unwrap_or_else(|| args.runs[0].join("report.html"));
    fs::write(&path, report::render(&runs)).map_err(|source| ReportError::Write {
        path: path.clone(),
        source,
    })?;
    println!("{}", path.display());
    Ok(0)
}
