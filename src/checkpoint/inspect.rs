//! A summary of a checkpoint or of bare weights, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::Result;
use super::manifest::Manifest;
use super::norms::is_ours;
use super::resume::resolve;
use super::shards;
use super::state::{self, RunState};
use super::weights::Weights;

/// What is in a path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub path: PathBuf,
    /// Of a training checkpoint.
    pub state: Option<RunState>,
    /// Why a training checkpoint cannot be used, if so.
    pub problem: Option<String>,
    /// `π₀` or `π₀.₅`, if the parameters are one of them.
    pub model: Option<&'static str>,
    pub files: Vec<FileSummary>,
    /// Of all files.
    pub bytes: u64,
}

/// One file, or the shards of one model together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileSummary {
    pub name: String,
    pub bytes: u64,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Number of tensors of each type.
    pub dtypes: BTreeMap<String, usize>,
    pub tensors: Vec<TensorSummary>,
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorSummary {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
}

/// Summarises a training checkpoint, a run's folder (its newest checkpoint), a weights file or a folder with weights.
/// Sizes are compared with the manifest, bytes are not read.
///
/// # Errors
/// Paths that are none of these, and weights that cannot be opened.
pub fn inspect(path: &Path) -> Result<Summary> {
    if is_ours(path)? {
        checkpoint(&resolve(path)?)
    } else {
        Ok(bare(&Weights::open(path)?))
    }
}

fn bare(weights: &Weights) -> Summary {
    let name = weights.path().file_name().map(|n| n.to_string_lossy().into_owned());
    let file = summary(name.unwrap_or_default(), weights);
    Summary {
        path: weights.path().to_owned(),
        state: None,
        problem: None,
        model: weights.architecture(),
        bytes: file.bytes,
        files: vec![file],
    }
}

fn checkpoint(folder: &Path) -> Result<Summary> {
    let mut summary_of_all = Summary {
        path: folder.to_owned(),
        state: None,
        problem: None,
        model: None,
        files: Vec::new(),
        bytes: 0,
    };
    let manifest = match Manifest::read(folder) {
        Ok(manifest) => manifest,
        Err(error) => {
            summary_of_all.problem = Some(error.to_string());
            return Ok(summary_of_all);
        }
    };
    summary_of_all.state = Some(RunState::read(folder)?);
    let params = folder.join(state::PARAMS);
    if params.is_file() || shards::index_at(&params).is_some() {
        summary_of_all.model = Weights::open(&params)?.architecture();
    }
    for (name, bytes) in manifest.files() {
        let file = if name.ends_with(".safetensors") {
            let weights = Weights::open(folder.join(name))?;
            summary(name.to_owned(), &weights)
        } else {
            FileSummary {
                name: name.to_owned(),
                bytes,
                parameters: 0,
                dtypes: BTreeMap::new(),
                tensors: Vec::new(),
            }
        };
        summary_of_all.bytes += bytes;
        summary_of_all.files.push(FileSummary { bytes, ..file });
    }
    Ok(summary_of_all)
}

fn summary(name: String, weights: &Weights) -> FileSummary {
    let mut file = FileSummary {
        name,
        bytes: 0,
        parameters: 0,
        dtypes: BTreeMap::new(),
        tensors: Vec::new(),
    };
    for tensor in weights.iter() {
        let dtype = format!("{:?}", tensor.dtype);
        file.bytes += tensor.bytes;
        file.parameters += tensor.shape.iter().product::<usize>() as u64;
        *file.dtypes.entry(dtype.clone()).or_default() += 1;
        file.tensors.push(TensorSummary {
            name: tensor.name.to_owned(),
            dtype,
            shape: tensor.shape.to_vec(),
        });
    }
    file
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        if let Some(s) = &self.state {
            let saved = date(s.saved_unix_s);
            writeln!(
                f,
                "step {}, config {}, seed {}, saved {saved} UTC by acrlpd {}",
                s.step, s.config, s.seed, s.version
            )?;
        }
        if let Some(model) = self.model {
            writeln!(f, "model {model}")?;
        }
        if let Some(problem) = &self.problem {
            writeln!(f, "{problem}")?;
        }
        let width = self
            .files
            .iter()
            .map(|file| file.name.len())
            .max()
            .unwrap_or(0)
            .max("file".len());
        writeln!(
            f,
            "{:width$}  {:>7}  {:>14}  {:>10}  dtypes",
            "file", "tensors", "parameters", "size"
        )?;
        for file in &self.files {
            let dtypes: Vec<String> = file.dtypes.iter().map(|(dtype, n)| format!("{dtype} ({n})")).collect();
            let (tensors, parameters) = match file.tensors.len() {
                0 => ("-".into(), "-".into()),
                n => (n.to_string(), grouped(file.parameters)),
            };
            let (size, dtypes) = (size(file.bytes), dtypes.join(", "));
            let row = format!(
                "{:width$}  {tensors:>7}  {parameters:>14}  {size:>10}  {dtypes}",
                file.name
            );
            writeln!(f, "{}", row.trim_end())?;
        }
        write!(f, "{:width$}  {:>7}  {:>14}  {:>10}", "total", "", "", size(self.bytes))
    }
}

/// `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let group = |i: usize| {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            ","
        } else {
            ""
        }
    };
    digits
        .char_indices()
        .map(|(i, digit)| format!("{}{digit}", group(i)))
        .collect()
}

/// `1.2 GB`, in powers of 1000 as disks are sold.
fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let power = (bytes.ilog10() / 3).min(units.len() as u32);
    format!(
        "{:.1} {}",
        bytes as f64 / 1000f64.powi(power as i32),
        units[power as usize - 1]
    )
}

/// `2026-11-22 20:26`, of seconds since 1970. Source: Hinnant, "chrono-compatible low-level date algorithms",
/// `civil_from_days`: years begin in March, so that the leap day is the last of its year.
fn date(unix_s: u64) -> String {
    let days = unix_s / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let minutes = unix_s % 86_400 / 60;
    format!("{year}-{month:02}-{day:02} {:02}:{:02}", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            (grouped(0), grouped(999), grouped(3_238_048_528)),
            ("0".into(), "999".into(), "3,238,048,528".into())
        );
        assert_eq!(
            (size(999), size(1000), size(12_952_194_112)),
            ("999 B".into(), "1.0 kB".into(), "13.0 GB".into())
        );
        assert_eq!(size(u64::MAX), "18446744.1 TB");
        // 951782400 is the leap day of 2000, 4107542400 the day after a 28 February that has no leap day.
        for (unix_s, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (951_868_799, "2000-02-29 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
            (1_735_689_599, "2024-12-31 23:59"),
        ] {
            assert_eq!(date(unix_s), text);
        }
    }
}
