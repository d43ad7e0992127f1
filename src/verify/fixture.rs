//! Reading fixture groups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Result, VerifyError};

/// Elements of a tensor as stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    I32(Vec<i32>),
    Bool(Vec<bool>),
    U8(Vec<u8>),
}

/// One tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub shape: Vec<usize>,
    pub values: Values,
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// No elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A group: its description and all its tensors by name.
#[derive(Debug)]
pub struct Fixture {
    pub name: String,
    pub json: Value,
    tensors: BTreeMap<String, Array>,
}

/// Folder and name of the groups that `path` stands for.
pub(super) fn groups(path: &Path) -> Result<Vec<PathBuf>> {
    let file_error = |e: std::io::Error| VerifyError::File {
        path: path.into(),
        why: e.to_string(),
    };
    if path.is_dir() {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(path).map_err(file_error)? {
            let file = entry.map_err(file_error)?.path();
            let stem = file.with_extension("");
            if file.extension().is_some_and(|e| e == "json") && !tensor_files(&stem)?.is_empty() {
                found.push(stem);
            }
        }
        found.sort();
        if found.is_empty() {
            return Err(VerifyError::NothingFound { path: path.into() });
        }
        return Ok(found);
    }
    // GROUP, GROUP.json, GROUP.safetensors or GROUP.part.safetensors
    let mut stem = path.to_path_buf();
    loop {
        if stem.with_file_name(format!("{}.json", name_of(&stem))).is_file() && !tensor_files(&stem)?.is_empty() {
            return Ok(vec![stem]);
        }
        let shorter = stem.with_extension("");
        if shorter == stem {
            return Err(VerifyError::NothingFound { path: path.into() });
        }
        stem = shorter;
    }
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// `GROUP.safetensors` and `GROUP.*.safetensors`.
fn tensor_files(stem: &Path) -> Result<Vec<(String, PathBuf)>> {
    let folder = stem
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = name_of(stem);
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(files);
    };
    for entry in entries.flatten() {
        let file = name_of(&entry.path());
        let Some(rest) = file.strip_prefix(&name).and_then(|r| r.strip_suffix(".safetensors")) else {
            continue;
        };
        match rest.strip_prefix('.') {
            None if rest.is_empty() => files.push((String::new(), entry.path())),
            Some(part) if !part.contains('.') => files.push((part.to_string(), entry.path())),
            _ => {}
        }
    }
    files.sort();
    Ok(files)
}

impl Fixture {
    /// Reads a group by the path [`groups`] gave.
    pub fn open(stem: &Path) -> Result<Fixture> {
        let name = name_of(stem);
        let json_path = stem.with_file_name(format!("{name}.json"));
        let read = |path: &Path| {
            std::fs::read(path).map_err(|e| VerifyError::File {
                path: path.into(),
                why: e.to_string(),
            })
        };
        let json = serde_json::from_slice(&read(&json_path)?).map_err(|e| VerifyError::File {
            path: json_path.clone(),
            why: e.to_string(),
        })?;
        let mut tensors = BTreeMap::new();
        for (part, path) in tensor_files(stem)? {
            let bytes = read(&path)?;
            let file = SafeTensors::deserialize(&bytes).map_err(|e| VerifyError::File {
                path: path.clone(),
                why: e.to_string(),
            })?;
            for (tensor, view) in file.iter() {
                let array = array(&view).ok_or_else(|| VerifyError::File {
                    path: path.clone(),
                    why: format!("{tensor} has an unexpected type {:?}", view.dtype()),
                })?;
                let key = if part.is_empty() {
                    tensor.to_string()
                } else {
                    format!("{part}:{tensor}")
                };
                tensors.insert(key, array);
            }
        }
        Ok(Fixture { name, json, tensors })
    }

    /// Names of all tensors; those of `GROUP.part.safetensors` as `part:name`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor, if the group has it.
    pub fn get(&self, name: &str) -> Option<&Array> {
        self.tensors.get(name)
    }

    /// A tensor the group must have.
    pub fn array(&self, name: &str) -> Result<&Array> {
        self.get(name).ok_or_else(|| self.broken(format!("{name} is missing")))
    }

    /// Its values as f32 (integers and booleans converted).
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(match &self.array(name)?.values {
            Values::F32(v) => v.clone(),
            Values::I32(v) => v.iter().map(|&x| x as f32).collect(),
            Values::Bool(v) => v.iter().map(|&x| x as u8 as f32).collect(),
            Values::U8(v) => v.iter().map(|&x| x as f32).collect(),
        })
    }

    /// Its values as integers.
    pub fn i32(&self, name: &str) -> Result<Vec<i32>> {
        match &self.array(name)?.values {
            Values::I32(v) => Ok(v.clone()),
            _ => Err(self.broken(format!("{name} should be int32"))),
        }
    }

    /// Its values as booleans.
    pub fn bool(&self, name: &str) -> Result<Vec<bool>> {
        match &self.array(name)?.values {
            Values::Bool(v) => Ok(v.clone()),
            _ => Err(self.broken(format!("{name} should be bool"))),
        }
    }

    /// Its values as bytes.
    pub fn u8(&self, name: &str) -> Result<Vec<u8>> {
        match &self.array(name)?.values {
            Values::U8(v) => Ok(v.clone()),
            _ => Err(self.broken(format!("{name} should be uint8"))),
        }
    }

    /// Its shape.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.array(name)?.shape)
    }

    /// A number of the description, by JSON pointer.
    pub fn number(&self, pointer: &str) -> Result<f64> {
        let value = self.json.pointer(pointer).and_then(Value::as_f64);
        value.ok_or_else(|| self.broken(format!("the description has no number at {pointer}")))
    }

    /// The error for a group that is not as it should be.
    pub fn broken(&self, what: String) -> VerifyError {
        VerifyError::Format {
            group: self.name.clone(),
            what,
        }
    }
}

fn array(view: &safetensors::tensor::TensorView<'_>) -> Option<Array> {
    let data = view.data();
    let values = match view.dtype() {
        Dtype::F32 => Values::F32(bytemuck::pod_collect_to_vec(data)),
        Dtype::I32 => Values::I32(bytemuck::pod_collect_to_vec(data)),
        Dtype::BOOL => Values::Bool(data.iter().map(|&b| b != 0).collect()),
        Dtype::U8 => Values::U8(data.to_vec()),
        _ => return None,
    };
    Some(Array {
        shape: view.shape().to_vec(),
        values,
    })
}
