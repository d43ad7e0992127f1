//! A copy of a fixture group that is broken in one place.

use std::fs;
use std::path::{Path, PathBuf};

use acrlpd::gpu::Gpu;
use acrlpd::verify::{self, Report};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::Value;
use tempfile::TempDir;

/// Name, shape and bytes of a tensor.
pub type Tensor = (String, Vec<usize>, Vec<u8>);

/// A copy of a group that may be broken.
pub struct Broken {
    dir: TempDir,
    group: &'static str,
}

impl Broken {
    pub fn copy(group: &'static str) -> Broken {
        let dir = TempDir::new().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        for entry in fs::read_dir(golden).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with(&format!("{group}.")) {
                fs::copy(&path, dir.path().join(name)).unwrap();
            }
        }
        Broken { dir, group }
    }

    pub fn path(&self, extension: &str) -> PathBuf {
        self.dir.path().join(format!("{}{extension}", self.group))
    }

    /// Changes the description.
    pub fn describe(self, change: impl FnOnce(&mut Value)) -> Broken {
        let path = self.path(".json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        self
    }

    /// Without the list of tensors, which finds most damage before any check runs.
    pub fn unlisted(self) -> Broken {
        self.describe(|json| {
            json.as_object_mut().unwrap().remove("files").unwrap();
        })
    }

    /// Changes a tensor of `GROUP{part}.safetensors`: (new name, shape, bytes), or nothing to remove it.
    pub fn change(
        self,
        part: &str,
        tensor: &str,
        change: impl FnOnce(&str, Vec<usize>, Vec<u8>) -> Option<Tensor>,
    ) -> Broken {
        let path = self.path(&format!("{part}.safetensors"));
        let bytes = fs::read(&path).unwrap();
        let all = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = all
            .iter()
            .map(|(name, t)| (name.to_string(), t.dtype(), t.shape().to_vec(), t.data().to_vec()))
            .collect();
        let at = tensors.iter().position(|t| t.0 == tensor).expect("the tensor is there");
        let (name, dtype, shape, data) = tensors.remove(at);
        if let Some((name, shape, data)) = change(&name, shape, data) {
            tensors.push((name, dtype, shape, data));
        }
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        serialize_to_file(views, None, &path).unwrap();
        self
    }

    pub fn without(self, part: &str, tensor: &str) -> Broken {
        self.change(part, tensor, |_, _, _| None)
    }

    /// Cuts the last axis to one.
    pub fn cut(self, part: &str, tensor: &str) -> Broken {
        self.change(part, tensor, |name, mut shape, data| {
            let last = shape.last_mut().expect("it has axes");
            let keep = data.len() / *last;
            *last = 1;
            Some((name.into(), shape, data[..keep].to_vec()))
        })
    }

    /// Multiplies the largest f32 by 1.01.
    pub fn nudged(self, part: &str, tensor: &str) -> Broken {
        self.change(part, tensor, |name, shape, mut data| {
            let values: Vec<f32> = data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
            let largest = (0..values.len()).max_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()));
            let at = largest.expect("it has elements");
            data[4 * at..4 * at + 4].copy_from_slice(&(values[at] * 1.01).to_le_bytes());
            Some((name.into(), shape, data))
        })
    }

    fn run(&self, gpu: &Gpu) -> verify::Result<Report> {
        // Updates take long, and nothing here is about them.
        let updates = ["after", "pi0_m/", "pi0_v/", "critic_m/", "critic_v/"];
        let wanted = |name: &str| !updates.iter().any(|u| name.starts_with(u));
        verify::run(gpu, &self.path(""), &wanted)
    }

    /// The error says all of `parts`, in one line.
    #[track_caller]
    pub fn assert_error(self, gpu: &Gpu, parts: &[&str]) {
        let error = match self.run(gpu) {
            Err(error) => error.to_string(),
            Ok(report) => panic!("no error: {report}"),
        };
        println!("{error}");
        assert!(!error.contains('\n'), "{error}");
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }

    /// Exactly these rows fail.
    #[track_caller]
    pub fn assert_failing(self, gpu: &Gpu, rows: &[&str]) {
        let report = self.run(gpu).unwrap();
        assert!(!report.passed());
        let mut failing: Vec<&str> = report
            .rows
            .iter()
            .filter(|r| !r.passed)
            .map(|r| r.tensor.as_str())
            .collect();
        failing.dedup();
        assert_eq!(failing, rows);
    }

    /// Exactly these tensors have no check.
    #[track_caller]
    pub fn assert_unknown(self, gpu: &Gpu, names: &[&str]) {
        let report = self.run(gpu).unwrap();
        assert!(!report.passed());
        assert_eq!(report.unknown, names);
    }
}
